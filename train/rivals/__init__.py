"""Convolutional networks that the paper's ablations compare IPT with."""
