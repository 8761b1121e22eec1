"""The parity gate: what a precision may cost against PyTorch FP32, and whether results stay within it. numpy alone.

Parts are held to it by the export (`export.parts.parity`), engines by their builder (`export.engines.checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .errors import IptError
from .manifest import Parity
from .metrics import psnr_of_error


class ParityError(IptError, ValueError):
    """Results that are not those of PyTorch, or no numbers."""


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost: largest absolute difference, and PSNR in dB against a peak of 255."""

    max_abs: float
    psnr: float

    def used_by(self, parity: Parity) -> float:
        """How much of it a part uses: above 1 it is refused. The larger of max |Δ| and the RMS error."""
        return float(max(parity.max_abs / self.max_abs, 10 ** ((self.psnr - parity.psnr) / 20)))


TOLERANCES = {
    "fp32": Tolerance(0.1, 80.0),
    "fp16": Tolerance(16.0, 50.0),
    "bf16": Tolerance(64.0, 45.0),
    "int8": Tolerance(64.0, 40.0),
}
"""Tensors are on the grey-level scale, but those between the parts are features, whose single values may be far off
without a trace in the image. FP32 differs by rounding alone (0.02 at paper size with random weights); FP16 has 11
significant bits, BF16 has 8, so that a feature of 100 is stored to 0.25. What INT8 may cost in the restored tiles is
bounded by `export.parts.int8`, which also leaves layers out of INT8 for this gate's sake."""


def check_finite(name: str, results: Mapping[str, np.ndarray], precision: str) -> None:
    """Raises ParityError where an output holds NaN or Inf."""
    for output, values in results.items():
        if not np.isfinite(values).all():
            raise ParityError(f"part {name} in {precision}: {output} holds NaN or Inf; not published")


def measure(name: str, results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str) -> Parity:
    """Parity of a part's results with what PyTorch computed, within the tolerance or not.

    Raises:
        ParityError: NaN or Inf.
    """
    differences = {output: np.abs(results[output].astype(np.float64) - wanted) for output, wanted in expected.items()}
    check_finite(name, differences, precision)
    largest = max(float(difference.max()) for difference in differences.values())
    lowest = min(psnr_of_error(float(np.square(difference).mean())) for difference in differences.values())
    return Parity(precision, largest, lowest, len(next(iter(expected.values()))))


def compare(name: str, results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str) -> Parity:
    """Parity of a part's results with what PyTorch computed.

    Raises:
        ParityError: NaN or Inf, or a difference above the precision's tolerance; names part and figures.
    """
    parity, allowed = measure(name, results, expected, precision), TOLERANCES[precision]
    if allowed.used_by(parity) > 1:
        raise ParityError(
            f"part {name}: {parity}; allowed are max |Δ| {allowed.max_abs} and PSNR {allowed.psnr} dB; not published"
        )
    return parity
