"""Measurements of the network's parts in each runtime, and of training."""
