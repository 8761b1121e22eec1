"""Parts or engines become a Triton model repository."""
