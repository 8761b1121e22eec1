"""Typed parts as `ipt-export parts` writes them, without its parity checks and its reference tensors.

For tests that only build engines of them: seconds instead of a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from ipt_triton.export.parts.graph import count_weights, layer_precision, list_layers
from ipt_triton.export.parts.split import plan_routes
from ipt_triton.export.parts.tracing import TRACER
from ipt_triton.export.parts.typed import type_part
from ipt_triton.manifest import TENSORS, Manifest, Parity, Part, Port, tasks_of_parts
from ipt_triton.reading import sha256_of
from ipt_triton.train.model.checkpoint import Checkpoint

LOW_PORTS = frozenset({"FEATURES", "TASK_EMBEDDING", "BODY_FEATURES"})


def quick_parts(checkpoint: Checkpoint, folder: Path, precision: str, only: Sequence[str] = ()) -> Manifest:
    """Write the parts, all or those named, and a manifest of them.

    Args:
        precision: `fp32`, `fp16` or `bf16`.
    """
    folder.mkdir()
    routes, modules = plan_routes([checkpoint])
    torch.manual_seed(0)
    parts = []
    for name, (kind, (task, *_)) in tasks_of_parts(routes).items():
        if only and name not in only:
            continue
        inputs, outputs = TENSORS[kind]
        tensors = {port: x for port, x in _tensors(checkpoint, task, kind).items() if port in (*inputs, *outputs)}
        graph = TRACER.graph(modules[name][1], {port: tensors[port] for port in inputs}, list(outputs), name)
        if precision != "fp32":
            graph = type_part(graph, {port: tensors[port] for port in inputs}, precision, "fp32", LOW_PORTS).graph
        onnx.save(graph, folder / f"{name}.onnx")
        values = {
            "sha256": "",
            "onnx_sha256": sha256_of(folder / f"{name}.onnx"),
            "parity": Parity(precision, 0, 0, 0),
            "flops": 1,
            "layers": list_layers(graph),
        }
        weights, low = count_weights(graph), layer_precision(graph, precision)
        ports = (_ports(graph.graph.input, tensors), _ports(graph.graph.output, tensors))
        parts.append(Part(name, *ports, weight_count=weights, layer_precision=low, **values))  # type: ignore[arg-type]
    manifest = Manifest(48, "tensorrt-rtx", precision, tuple(parts), () if only else tuple(routes), max_batch=64)
    manifest.save(folder)
    return manifest


@torch.inference_mode()
def _tensors(checkpoint: Checkpoint, task: str, kind: str) -> dict[str, np.ndarray]:
    """The tensors of two random tiles on a task's way; past the head their values are random too."""
    model = checkpoint.model
    tensors = {"IMAGE": 255 * torch.rand(2, 3, 48, 48)}
    tensors["FEATURES"], tensors["TASK_EMBEDDING"] = model.heads[task](tensors["IMAGE"])
    tensors["BODY_FEATURES"] = tensors["FEATURES"]  # of the same shape, and a body takes long
    if kind == "tail":
        tensors["RESTORED"] = model.tails[task](tensors["BODY_FEATURES"])
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _ports(values: Sequence[onnx.ValueInfoProto], tensors: dict[str, np.ndarray]) -> tuple[Port, ...]:
    types = {v.name: onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values}
    return tuple(Port(name, tensors[name].shape[1:], kind) for name, kind in types.items())
