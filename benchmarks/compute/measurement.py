"""One measured part at one batch size, and the loop that measures it.

Python 3.9 syntax and the standard library alone, as `benchmarks.record`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipt_triton.benchmarks.record import Spread, seconds_of

WARM_UP = 3
FEWEST_RUNS = 5
OPENVINO, PYTORCH, COMPILED = WAYS = ("openvino", "pytorch", "torch.compile")


@dataclass(frozen=True)
class Measurement:
    """One part at one batch size.

    Attributes:
        through: what ran it, one of `WAYS` or `tensorrt`.
        flops: per patch; None if the plan does not give them.
        matmul_rate: FLOP/s of one large matrix multiplication of this precision; None if it was not measured.
    """

    part: str
    precision: str
    batch: int
    latency: Spread
    compute: Spread
    flops: int | None
    matmul_rate: float | None = None
    through: str = OPENVINO

    @property
    def patches_per_second(self) -> float:
        return self.batch / self.latency.median

    @property
    def rate(self) -> float | None:
        """Achieved FLOP/s."""
        return None if self.flops is None else self.flops * self.batch / self.compute.median

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Measurement:
        """The measurement that `asdict` made an entry of a record of."""
        return cls(**{**entry, "latency": Spread(**entry["latency"]), "compute": Spread(**entry["compute"])})


def repeat(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, for about `seconds` in all and at least `FEWEST_RUNS` times, after `WARM_UP` calls."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    while len(times) < FEWEST_RUNS or sum(times) < seconds:
        times.append(seconds_of(call))
    return times


def runs_in(seconds: float, once: float) -> int:
    """How many runs of `once` seconds take about `seconds`."""
    return max(FEWEST_RUNS, min(10_000, int(seconds / once)))
