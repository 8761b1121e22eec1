"""Lowering: FP32 parts become typed parts for TensorRT; what has which type is decided on real tiles.

`export.parts.typed` writes the graphs and `export.parts.checks` proves them; this file chooses for them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from ipt_triton.export.parts.checks import (
    TENSORRT_OPERATORS,
    ImageParity,
    OpByOp,
    chain,
    check_image,
    check_operators,
    check_types,
)
from ipt_triton.export.parts.parity import tile_sheet
from ipt_triton.export.parts.typed import (
    HEADROOM,
    INNER_PORTS,
    LIMITS,
    TypedOptions,
    largest_values,
    overflowing,
    peak_table,
    typed_graph,
)
from ipt_triton.tasks import Task
from ipt_triton.tiling import STRIDE
from ipt_triton.train.data.degradations import DEGRADATIONS, degrade_image
from ipt_triton.train.model.ipt import IPT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lowered:
    """A typed part.

    Attributes:
        keep: names of the layers that stay FP32 because of their values.
        largest: the largest absolute value that a layer read, held as a weight or wrote.
    """

    graph: onnx.ModelProto
    keep: tuple[str, ...]
    largest: float


def choose_half_ports(samples: Iterable[Mapping[str, np.ndarray]]) -> frozenset[str]:
    """Tensors between the parts that fit FP16 in every sample, with the headroom that layers have too."""
    largest: dict[str, float] = {}
    for tensors in samples:
        for name in INNER_PORTS & tensors.keys():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(tensors[name]).max()))
    return frozenset(name for name, value in largest.items() if value <= HEADROOM * LIMITS["fp16"])


def lower(
    graph: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    precision: str,
    residual: str,
    half_ports: frozenset[str],
) -> Lowered:
    """Type an FP32 part; layers that overflow on the inputs stay FP32.

    Args:
        inputs: float32 tensors [n, ...] by input name, of all tasks that the part serves.
        precision, residual: see `export.parts.typed.TypedOptions`.

    Raises:
        GraphError: the graph cannot be typed; names the node or weight.
    """
    peaks = largest_values(graph, inputs)
    keep = overflowing(peaks, precision)
    if keep:
        table = peak_table([peak for peak in peaks if peak.layer in keep], rows=len(keep))
        logger.warning("%s: these layers stay FP32\n%s", graph.graph.name, table)
    typed = typed_graph(graph, TypedOptions(precision, residual, half_ports, keep))
    check_types(typed)
    return Lowered(typed, tuple(sorted(keep)), max(peak.largest for peak in peaks))


def check_for_tensorrt(graph: onnx.ModelProto, precision: str) -> None:
    """Hold a part against the operators of every TensorRT that computes in the precision; raises GraphError."""
    for version in TENSORRT_OPERATORS:
        if (precision, version) != ("bf16", "8.6"):
            check_operators(graph, version)


def check_task(model: IPT, task: Task, parts: Sequence[OpByOp], precision: str) -> ImageParity:
    """Restore a degraded image by PyTorch in FP32 and by the typed head, body and tail, and compare.

    Raises:
        ParityError: see `export.parts.checks.check_image`; names the task.
    """

    @torch.inference_mode()
    def pytorch(patches: np.ndarray) -> np.ndarray:
        restored: np.ndarray = model(torch.from_numpy(patches), task.name).numpy()
        return restored

    patch = model.config.patch_size
    image, clean = _image(task, patch)
    return check_image(f"of task {task.name}", image, clean, task.scale, pytorch, chain(parts), precision, patch)


def _image(task: Task, patch: int) -> tuple[np.ndarray, np.ndarray | None]:
    """An image of at most 2x2 tiles, float32 and degraded for the task, and the clean one where there is one."""
    side = patch + STRIDE
    if task.kind not in DEGRADATIONS:
        return tile_sheet()[:side, :side].astype(np.float32), None
    clean = tile_sheet()[: side * task.scale, : side * task.scale]
    return degrade_image(clean, task, seed=0), clean
