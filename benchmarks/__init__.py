"""Benchmarks room: the demo and the measurements."""

BENCHMARKS = {
    "throughput": "serving.throughput",
    "scaling": "serving.scaling",
    "startup": "serving.startup",
    "large_image": "serving.large_image",
    "gateway": "serving.gateway",
    "proxies": "serving.proxies",
    "archives": "serving.archives",
    "overload": "serving.overload",
    "capacity": "serving.capacity",
    "soak": "serving.soak",
    "joiner": "serving.joiner",
    "router": "serving.router",
    "client": "serving.client",
    "engines": "compute.engines",
    "baselines": "compute.baselines",
    "training": "compute.training",
    "training_memory": "compute.training_memory",
    "quality": "quality.tradeoff",
    "noise": "quality.noise",
    "ablations": "ablations.run",
    "demo": "demo",
    "report": "report",
}
"""Modules of this room by the benchmark's name, as records have it."""
