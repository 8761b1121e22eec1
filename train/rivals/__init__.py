"""Convolutional networks that the paper compares IPT with."""
