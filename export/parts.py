"""Splitting: a checkpoint becomes ONNX heads, bodies and tails with a manifest, each checked against PyTorch.

The parts folder holds `head_<task>.onnx`, `body.onnx` (or `body_<8 hex of its hash>.onnx` when there are several) and
`tail_<task>.onnx`, and `manifest.json`: tasks, tensors, hashes, operator set, and the parity of each part. Tasks whose
checkpoints hold the same body, bit for bit, share it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.parity import Parity, check_part, real_tiles
from export.surgery import IR_VERSION, OPSET, clean_graph
from train.atomic import atomic_directory
from train.checkpoint import Checkpoint, content_hash
from train.model import IPT
from train.tasks import Task, task_table

logger = logging.getLogger(__name__)

MAX_BATCH = 8
MANIFEST = "manifest.json"


class ExportError(ValueError):
    """Checkpoints that cannot be exported together, or a part that misses its tolerance."""


@dataclass(frozen=True)
class Port:
    """An input or output of a part: tensor name and shape of one sample (float32)."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One ONNX file.

    Attributes:
        name: `head_<task>`, `body…` or `tail_<task>`; also its file's stem and the name of its Triton model.
        sha256: hash of the PyTorch weights it came from.
        parity: against PyTorch FP32 on real tiles, by precision.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sha256: str
    parity: Parity


@dataclass(frozen=True)
class Route:
    """A task and the parts that serve it."""

    task: Task
    head: str
    body: str
    tail: str
    checkpoint_sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a parts folder holds."""

    patch_size: int
    precision: str
    parts: tuple[Part, ...]
    routes: tuple[Route, ...]
    opset: int = OPSET
    ir_version: int = IR_VERSION
    max_batch: int = MAX_BATCH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def part(self, name: str) -> Part:
        return next(p for p in self.parts if p.name == name)


def plan_routes(checkpoints: Sequence[Checkpoint]) -> tuple[list[Route], dict[str, tuple[str, nn.Module]]]:
    """Who is served by which part: routes in task order, and the modules by part name with their hashes.

    Raises:
        ExportError: checkpoints of different patch sizes, or a task given twice.
    """
    patch_sizes = {c.model.config.patch_size for c in checkpoints}
    if len(patch_sizes) != 1:
        raise ExportError(f"checkpoints of patch sizes {sorted(patch_sizes)} cannot be served together")
    body_hashes = [_module_hash(c.model.body) for c in checkpoints]
    single = len(set(body_hashes)) == 1
    routes: list[Route] = []
    modules: dict[str, tuple[str, nn.Module]] = {}
    for checkpoint, body_hash in zip(checkpoints, body_hashes, strict=True):
        body = "body" if single else f"body_{body_hash[:8]}"
        modules.setdefault(body, (body_hash, checkpoint.model.body))
        for task in checkpoint.model.config.tasks:
            twins = [r.task for r in routes if task.id == r.task.id or task.name == r.task.name]
            if twins:
                raise ExportError(
                    f"task {task.id} {task.name} meets task {twins[0].id} {twins[0].name} of another checkpoint; "
                    "export only one of the two"
                )
            head, tail = f"head_{task.name}", f"tail_{task.name}"
            for name, module in ((head, checkpoint.model.heads[task.name]), (tail, checkpoint.model.tails[task.name])):
                modules[name] = (_module_hash(module), module)
            routes.append(Route(task, head, body, tail, checkpoint.sha256))
    task_table(r.task for r in routes)
    return sorted(routes, key=lambda r: r.task.id), modules


def export_parts(checkpoints: Sequence[Checkpoint], folder: Path, precision: str = "fp32") -> Manifest:
    """Write the parts folder atomically.

    Args:
        precision: `fp32` or `bf16`: how the parts will be run; the parity gate uses it.

    Raises:
        ExportError, GraphError, ParityError: nothing is written then.
    """
    routes, modules = plan_routes(checkpoints)
    config = checkpoints[0].model.config
    with atomic_directory(folder) as temporary:
        parts: dict[str, Part] = {}
        for route in routes:
            model = next(c.model for c in checkpoints if c.sha256 == route.checkpoint_sha256)
            samples = _samples(model, route.task)
            for name, inputs, outputs in (
                (route.head, ("IMAGE",), ("FEATURES", "TASK_EMBEDDING")),
                (route.body, ("FEATURES", "TASK_EMBEDDING"), ("BODY_FEATURES",)),
                (route.tail, ("BODY_FEATURES",), ("RESTORED",)),
            ):
                if name in parts:
                    continue
                sha256, module = modules[name]
                path = temporary / f"{name}.onnx"
                onnx.save(to_onnx(module, {i: samples[i] for i in inputs}, outputs, name), path)
                parity = check_part(path, {i: samples[i] for i in inputs}, {o: samples[o] for o in outputs}, precision)
                logger.info("%s: %s", name, parity)
                ports = {n: Port(n, tuple(samples[n].shape[1:])) for n in (*inputs, *outputs)}
                parts[name] = Part(
                    name, tuple(ports[i] for i in inputs), tuple(ports[o] for o in outputs), sha256, parity
                )
        manifest = Manifest(config.patch_size, precision, tuple(parts.values()), tuple(routes))
        (temporary / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=2) + "\n")
    return manifest


@torch.inference_mode()
def _samples(model: IPT, task: Task) -> dict[str, np.ndarray]:
    """Every tensor of a task's path on real tiles, as PyTorch FP32 computes it."""
    tiles = torch.from_numpy(real_tiles(model.config.patch_size))
    features, embedding = model.heads[task.name](tiles)
    body_features = model.body(features, embedding)
    restored = model.tails[task.name](body_features)
    names = ("IMAGE", "FEATURES", "TASK_EMBEDDING", "BODY_FEATURES", "RESTORED")
    return {
        n: t.contiguous().numpy()
        for n, t in zip(names, (tiles, features, embedding, body_features, restored), strict=True)
    }


def to_onnx(module: nn.Module, inputs: dict[str, np.ndarray], outputs: Sequence[str], name: str) -> onnx.ModelProto:
    """A module as a clean ONNX graph with a dynamic batch."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    tensors: list[Tensor] = [torch.from_numpy(x) for x in inputs.values()]
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            tuple(tensors),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple({0: batch} for _ in tensors),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None only when the exporter writes a file itself
    return clean_graph(program.model_proto, name)


def _module_hash(module: nn.Module) -> str:
    return content_hash(dict(module.state_dict()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about torchvision and its own internals."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
