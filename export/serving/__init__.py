"""A model repository becomes a running, watched Triton server."""
