"""ONNX parts in OpenVINO against PyTorch FP32, on real tiles.

`tiles.png` beside this file is a sheet of 48x48 tiles cut from the project's CC0 sample photographs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov

from ipt_triton.images import read_rgb
from ipt_triton.manifest import Parity
from ipt_triton.parity import ParityError, compare

TILES = Path(__file__).with_name("tiles.png")


@cache
def tile_sheet() -> np.ndarray:
    """All tiles as one image, uint8 [height, width, 3]."""
    return read_rgb(TILES)


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
