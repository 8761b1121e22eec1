"""The parity gate: a part in its runtime and precision against PyTorch FP32, on real tiles.

`tiles.png` beside this file is a sheet of 48x48 tiles cut from the project's CC0 sample photographs
(`tests/images/SOURCES.csv`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov
from PIL import Image

TILES = Path(__file__).with_name("tiles.png")


class ParityError(ValueError):
    """A part whose results are not those of PyTorch."""


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost: largest absolute difference, and PSNR in dB against a peak of 255."""

    max_abs: float
    psnr: float


TOLERANCES = {
    "fp32": Tolerance(0.1, 80.0),
    "fp16": Tolerance(16.0, 50.0),
    "bf16": Tolerance(64.0, 45.0),
    "int8": Tolerance(64.0, 40.0),
}
"""Tensors are on the grey-level scale, but those between the parts are features, whose single values may be far off
without a trace in the image. FP32 differs by rounding alone (0.02 at paper size with random weights); FP16 has 11
significant bits, BF16 has 8, so that a feature of 100 is stored to 0.25. What INT8 may cost in the restored tiles is
bounded by `export.quantize`, which also leaves layers out of INT8 for this gate's sake."""


@dataclass(frozen=True)
class Parity:
    """Measured over all outputs of a part: max |a - b|, and PSNR (peak 255) of the worst output in dB."""

    precision: str
    max_abs: float
    psnr: float
    tiles: int

    @property
    def cost_share(self) -> float:
        """How much of its tolerance a part uses: above 1 it is refused. The larger of max |Δ| and the RMS error."""
        allowed = TOLERANCES[self.precision]
        return float(max(self.max_abs / allowed.max_abs, 10 ** ((allowed.psnr - self.psnr) / 20)))

    def __str__(self) -> str:
        return f"{self.precision} max |Δ| {self.max_abs:.2g}, PSNR {self.psnr:.1f} dB"

    def to_dict(self) -> dict[str, float | str | int]:
        return asdict(self)


@cache
def tile_sheet() -> np.ndarray:
    """All tiles as one image, uint8 [height, width, 3]."""
    return np.asarray(Image.open(TILES).convert("RGB"))


@cache
def real_tiles(patch_size: int) -> np.ndarray:
    """Tiles of photographs as float32 [n, 3, patch_size, patch_size] in 0..255."""
    sheet = tile_sheet()
    rows, columns = sheet.shape[0] // patch_size, sheet.shape[1] // patch_size
    tiles = sheet[: rows * patch_size, : columns * patch_size].reshape(rows, patch_size, columns, patch_size, 3)
    return np.ascontiguousarray(tiles.transpose(0, 2, 4, 1, 3).reshape(-1, 3, patch_size, patch_size), np.float32)


def check_part(path: Path, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], precision: str) -> Parity:
    """Run an ONNX part with OpenVINO and compare.

    Raises:
        ParityError: NaN or Inf, or a difference above the precision's tolerance; names part and figures.
    """
    if precision == "bf16" and not has_bf16():
        raise ParityError("this CPU computes no BF16, so its parity cannot be checked here; use --precision fp32")
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": inference_type(precision)})
    results = compiled(inputs)
    return compare(path.stem, {name: results[name] for name in expected}, expected, precision)


def has_bf16() -> bool:
    """Whether OpenVINO computes in BF16 on this CPU."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def inference_type(precision: str) -> ov.Type:
    """What OpenVINO is told to compute in: of INT8 parts, all that is not INT8 is BF16 where the CPU has it."""
    return ov.Type.bf16 if precision == "bf16" or (precision == "int8" and has_bf16()) else ov.Type.f32


def compare(name: str, results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str) -> Parity:
    """Parity of results with what PyTorch computed; raises ParityError as `check_part` does."""
    parity = measure(name, results, expected, precision)
    if parity.cost_share > 1:
        allowed = TOLERANCES[precision]
        raise ParityError(
            f"part {name}: {parity}; allowed are max |Δ| {allowed.max_abs} and PSNR {allowed.psnr} dB; not published"
        )
    return parity


def measure(name: str, results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], precision: str) -> Parity:
    """Parity of results, within the tolerance or not. Raises ParityError for NaN or Inf."""
    largest, lowest = 0.0, float("inf")
    for output, wanted in expected.items():
        difference = np.abs(results[output].astype(np.float64) - wanted)
        if not np.isfinite(difference).all():
            raise ParityError(f"part {name} in {precision}: {output} holds NaN or Inf; not published")
        largest = max(largest, float(difference.max()))
        lowest = min(lowest, psnr(float(np.square(difference).mean())))
    return Parity(precision, largest, lowest, len(next(iter(expected.values()))))


def psnr(error: float) -> float:
    """PSNR in dB, peak 255, of a mean square error; of no error 200 dB and more."""
    return 10 * math.log10(255**2 / max(error, 1e-20))
