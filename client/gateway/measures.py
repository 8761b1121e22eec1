"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Measures:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ipt_gateway_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "ipt_gateway_request_seconds", "Until the answer began.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.steps = Histogram(
            "ipt_gateway_step_seconds", "Of a restore: queue, decode, restore, encode.", ("step", "task"),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.photos = Counter(
            "ipt_gateway_photos", "By how they ended: restored, invalid, unavailable, failed, cancelled.",
            ("task", "outcome"), registry=registry,
        )  # fmt: skip
        self.pixels = Counter("ipt_gateway_pixels", "Of photos that were restored.", ("task",), registry=registry)
        self.ended_workers = Counter(
            "ipt_gateway_ended_workers", "Decodings and encodings that were ended: time, memory, crash.", ("reason",),
            registry=registry,
        )  # fmt: skip
        self.jobs = Gauge("ipt_gateway_jobs", "Jobs by state.", ("state",), registry=registry)
        self.waiting = Gauge("ipt_gateway_waiting", "Photos that wait for their turn.", registry=registry)
        self.under_way = Gauge("ipt_gateway_under_way", "Photos that are being restored.", registry=registry)
        self.disk = Gauge("ipt_gateway_disk_bytes", "Taken or promised in the gateway's folder.", registry=registry)
        self.worked = Gauge(
            "ipt_gateway_task_worked_timestamp_seconds", "When a restore of the task last worked.", ("task",),
            registry=registry,
        )  # fmt: skip

    def page(self) -> bytes:
        """The page of metrics, as text."""
        return generate_latest(self._registry)
