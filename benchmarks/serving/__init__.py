"""Measurements of a running server: throughput, latency, scaling, memory, start-up."""
