"""Measurements of restored images: evaluation by the field's protocol, quality against speed."""
