"""Parts against PyTorch FP32: in OpenVINO as they are served, and typed ones operator by operator.

ONNX Runtime cannot judge a low-precision graph as a whole: its CPU provider has no FP16 convolution, matrix product or
softmax, computes them in FP32, and drops the casts between them, so that a chain of layers is rounded once at its end
(and BF16 it refuses). `OpByOp` therefore runs the graph one operator at a time and rounds every result to its declared
type: what a GPU does that multiplies in the low type and sums in FP32.

`tiles.png` beside this file is a sheet of 48x48 tiles cut from the project's CC0 sample photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import torch
from onnx import TensorProto

from ipt_triton.export.parts.graph import tensor_types
from ipt_triton.export.parts.one_core import core
from ipt_triton.export.parts.typed import NUMPY_TYPES
from ipt_triton.images import read_rgb
from ipt_triton.manifest import IR_VERSION, OPSET, ImageParity, Parity
from ipt_triton.metrics import psnr_of_error, psnr_y, to_uint8
from ipt_triton.parity import ParityError, compare
from ipt_triton.service import MAX_BATCH
from ipt_triton.tasks import Task
from ipt_triton.tiling import FLOAT, PATCH, STRIDE, Tiler
from ipt_triton.train.data.degradations import DEGRADATIONS, degrade_image
from ipt_triton.train.model.ipt import IPT

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
    compiled = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": inference_type(precision)})
    results = compiled(inputs)
    return compare(path.stem, {name: results[name] for name in expected}, expected, precision)


def has_bf16() -> bool:
    """Whether OpenVINO computes in BF16 on this CPU."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def inference_type(precision: str) -> ov.Type:
    """What OpenVINO is told to compute in: of INT8 parts, all that is not INT8 is BF16 where the CPU has it."""
    return ov.Type.bf16 if precision == "bf16" or (precision == "int8" and has_bf16()) else ov.Type.f32


IMAGE_TOLERANCES = {"fp16": (50.0, 0.02), "bf16": (45.0, 0.1)}
"""What a low type may cost a whole image: least PSNR in dB against the FP32 result (floating values, peak 255), and
largest loss of PSNR-Y in dB against ground truth (8-bit values)."""


class OpByOp:
    """Runs a typed graph operator by operator, each in FP32 with its result rounded to the declared type.

    Values are float32 arrays that hold numbers of the declared type. Overflow gives Inf, as it does on a GPU.
    """

    def __init__(self, model: onnx.ModelProto):
        self.name = model.graph.name
        self._types = tensor_types(model)
        self._model = model
        self._weights = {w.name: _widen(onnx.numpy_helper.to_array(w)) for w in model.graph.initializer}
        self._last_use = {t: i for i, node in enumerate(model.graph.node) for t in node.input}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._settings = onnxruntime.SessionOptions()
        self._settings.intra_op_num_threads = 1  # or each operator's thread pool would spin beside the others

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for samples [n, ...] by input name."""
        wanted = {o.name for o in self._model.graph.output}
        values = {i.name: self._rounded(i.name, inputs[i.name]) for i in self._model.graph.input}
        for index, node in enumerate(self._model.graph.node):
            given = {t: self._weights[t] if t in self._weights else values[t] for t in node.input if t}
            results = [given[node.input[0]]] if node.op_type == "Cast" else self._run(node, given)
            values |= {t: self._rounded(t, x) for t, x in zip(node.output, results, strict=True)}
            for name in node.input:
                if self._last_use[name] == index and name not in wanted:
                    values.pop(name, None)
        return {name: values[name] for name in wanted}

    def _run(self, node: onnx.NodeProto, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        if node.name not in self._sessions:
            value, element = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
            inputs = [value(t, element(x.dtype), [None] * x.ndim) for t, x in given.items()]
            kind = TensorProto.INT64 if self._types[node.output[0]] == "int64" else TensorProto.FLOAT
            outputs = [value(t, kind, None) for t in node.output]
            graph = onnx.helper.make_graph([node], node.name, inputs, outputs)
            single = onnx.helper.make_model(
                graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
            )
            self._sessions[node.name] = onnxruntime.InferenceSession(
                single.SerializeToString(), self._settings, providers=["CPUExecutionProvider"]
            )
        results: list[np.ndarray] = self._sessions[node.name].run(None, given)
        return results

    def _rounded(self, name: str, value: np.ndarray) -> np.ndarray:
        kind = NUMPY_TYPES.get(self._types[name])
        with np.errstate(over="ignore"):
            return _widen(value if kind is None else value.astype(kind))


def _widen(value: np.ndarray) -> np.ndarray:
    return value if value.dtype == np.int64 else value.astype(np.float32)


Network = Callable[[np.ndarray], np.ndarray]
"""Patches [n, 3, P, P] in 0..255 -> restored patches [n, 3, P·scale, P·scale], float32."""


def chain(parts: Sequence[OpByOp]) -> Network:
    """Head, body and tail of a task in a row, typed or FP32, run operator by operator."""

    def network(patches: np.ndarray) -> np.ndarray:
        values = {"IMAGE": patches}
        for part in parts:
            values = part(values)
        return values["RESTORED"]

    return network


def check_image(
    name: str,
    image: np.ndarray,
    clean: np.ndarray | None,
    scale: int,
    full: Network,
    typed: Network,
    precision: str,
    patch: int = PATCH,
) -> ImageParity:
    """Restore an image by an FP32 network and by its typed one, tile by tile, and compare.

    Args:
        image: float32 [height, width, 3] on the 0..255 scale.
        clean: uint8 [height * scale, width * scale, 3], None where there is no ground truth.

    Raises:
        ParityError: NaN or Inf, too far from the FP32 result, or too much worse against ground truth; names the image.
    """
    least_psnr, largest_loss = IMAGE_TOLERANCES[precision]
    try:
        wanted, restored = (_restore(image, scale, network, patch) for network in (full, typed))
    except FloatingPointError as error:
        raise ParityError(f"image {name} in {precision}: {error}") from None
    parity = ImageParity(precision, psnr_of_error(float(np.square(restored.astype(np.float64) - wanted).mean())))
    if clean is not None:
        best, reached = (psnr_y(to_uint8(x), clean, scale if scale > 1 else 0) for x in (wanted, restored))
        parity = replace(parity, full=best, loss=best - reached)
    if parity.psnr < least_psnr or (parity.loss or 0.0) > largest_loss:
        raise ParityError(
            f"image {name}: {parity}; allowed are {least_psnr} dB and a loss of {largest_loss} dB; not published"
        )
    return parity


def _restore(image: np.ndarray, scale: int, network: Network, patch: int, batch: int = MAX_BATCH) -> np.ndarray:
    """A whole image in floating values, neither rounded nor clipped."""
    tiler = Tiler(image, scale, patch, dtype=FLOAT)
    for first, last in tiler.batches(batch):
        tiler.add(network(tiler.patches(first, last)))
    return tiler.result()


def check_task(model: IPT, task: Task, parts: Sequence[OpByOp], precision: str) -> ImageParity:
    """Restore a degraded image by PyTorch in FP32 and by the typed head, body and tail, and compare.

    Raises:
        ParityError: see `check_image`; names the task.
    """

    @torch.inference_mode()
    def pytorch(patches: np.ndarray) -> np.ndarray:
        restored: np.ndarray = model(torch.from_numpy(patches), task.name).numpy()
        return restored

    patch = model.config.patch_size
    side = patch + STRIDE  # at most 2x2 tiles
    clean = tile_sheet()[: side * task.scale, : side * task.scale] if task.kind in DEGRADATIONS else None
    image = tile_sheet()[:side, :side].astype(np.float32) if clean is None else degrade_image(clean, task, seed=0)
    return check_image(f"of task {task.name}", image, clean, task.scale, pytorch, chain(parts), precision, patch)
