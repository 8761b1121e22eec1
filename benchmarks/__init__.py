"""Benchmarks room: the demo and the measurements."""
