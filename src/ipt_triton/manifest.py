"""The manifest of a parts folder: its parts, their tensors and layers, and which of them serve which task.

The export writes it, builders of engines and of repositories read it. Standard library only; the imports are relative,
because this file is also copied beside the Triton models that run engines.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from .errors import IptError
from .reading import build, read_json, shown
from .service import MAX_BATCH
from .tasks import MAX_NAME, Task, task_table

MANIFEST = "manifest.json"
SAMPLES = "samples.npz"
"""Reference tensors beside typed parts: `<task>/<TENSOR>`, float32, as PyTorch computed them on real tiles."""

OPSET, IR_VERSION = 18, 10
"""Of every ONNX part."""

PRECISIONS = {
    "openvino": ("fp32", "bf16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16"),
    "tensorrt-python": ("fp32", "fp16", "bf16"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16"),
}
"""Precisions by runtime: OpenVINO; Triton's TensorRT backend; TensorRT, and TensorRT for RTX, in its Python backend."""

RESIDUALS = ("float32", "float16")
LARGEST_BATCH = 1024
"""That the graphs take."""

MAX_PATCH = 512
"""Largest side of a patch in pixels; the paper has 48."""

MAX_SAMPLE = 2**24
"""Most numbers of a tensor of one patch; the paper has 2**18."""

_BYTES = {"float32": 4, "float16": 2}
_PART_NAME = r"(head|tail)_[a-z][a-z0-9_]*|body(_[0-9a-f]{8})?"
TENSORS = {
    "head": (("IMAGE",), ("FEATURES", "TASK_EMBEDDING")),
    "body": (("FEATURES", "TASK_EMBEDDING"), ("BODY_FEATURES",)),
    "tail": (("BODY_FEATURES",), ("RESTORED",)),
}
"""Inputs and outputs by kind of part, in the order in which a request goes through them."""


class ManifestError(IptError, ValueError):
    """A folder that is not a parts folder."""


@dataclass(frozen=True)
class Port:
    """An input or output of a part or of its engine: name, shape of one sample, and numpy's name of the type."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * _BYTES[self.dtype]

    @property
    def is_huge(self) -> bool:
        """Whether a sample is larger than any of a patch within the bounds."""
        return math.prod(self.shape) > MAX_SAMPLE


class Layer(NamedTuple):
    """A node of a graph, and the type that it writes: `fp32`, `fp16`, `bf16`, `int64`…; in JSON one string."""

    name: str
    operator: str
    type: str

    @classmethod
    def from_json(cls, text: object) -> Layer:
        words = text.rsplit(" ", 2) if isinstance(text, str) else []
        if len(words) != len(cls._fields):
            raise ValueError(f"layer {shown(text)} is not a name, an operator and a type")
        return cls(*words)


@dataclass(frozen=True)
class Parity:
    """A part or its engine against PyTorch FP32 over all outputs: max |a - b|, and PSNR (peak 255) of the worst output
    in dB; `tiles` were run as one batch."""

    precision: str
    max_abs: float
    psnr: float
    tiles: int

    def __str__(self) -> str:
        return f"{self.precision} max |Δ| {self.max_abs:.2g}, PSNR {self.psnr:.1f} dB"


@dataclass(frozen=True)
class ImageParity:
    """Typed parts in a row against PyTorch FP32 on a whole image.

    Attributes:
        psnr: against the FP32 result in dB (floating values, peak 255).
        full: the FP32 result's PSNR-Y against ground truth in dB, None without ground truth.
        loss: what the low type loses of it in dB.
    """

    precision: str
    psnr: float
    full: Optional[float] = None
    loss: Optional[float] = None

    def __str__(self) -> str:
        truth = "" if self.full is None else f", which has {self.full:.2f} dB; loss {self.loss:+.4f} dB"
        return f"{self.precision} {self.psnr:.1f} dB to FP32{truth}"


@dataclass(frozen=True)
class Int8:
    """An INT8 body.

    Attributes:
        share: of its multiplications, how many are INT8, 0 to 1.
        loss: PSNR in dB that each task loses in exact arithmetic, which is the same on every CPU.
        confirmed_with: best INT8 instructions that the CPU of the export lists, whose kernels stayed within the bounds.
    """

    share: float
    loss: dict[str, float]
    confirmed_with: str


@dataclass(frozen=True)
class Part:
    """One ONNX file.

    Attributes:
        name: `head_<task>`, `body…` or `tail_<task>`; also its file's stem and the name of its Triton model.
        sha256: hash of the PyTorch weights it came from.
        parity: against PyTorch FP32 on real tiles, in the manifest's precision.
        flops: floating-point operations per patch; a multiply-add is two.
        weight_count: floating-point numbers that the graph holds as weights.
        layer_precision: what most layers of a typed graph compute in; `fp32` where nothing multiplies in its low type.
        keep: layers of a typed graph that stay FP32 because of their values; of an INT8 body, those that are not INT8.
        residual: type of the sums that run beside the branches, as numpy names it.
        largest_activation: largest absolute value in the FP32 graph, over tiles of all its tasks; typed graphs only.
        int8: what INT8 is of a body and costs it; None elsewhere.
        layers: every node of a graph for TensorRT, in the graph's order.
        onnx_sha256: hash of the file; another file is not published.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sha256: str
    parity: Parity
    flops: int
    weight_count: int
    layer_precision: str
    keep: tuple[str, ...] = ()
    residual: str = "float32"
    largest_activation: Optional[float] = None
    int8: Optional[Int8] = None
    layers: tuple[Layer, ...] = ()
    onnx_sha256: str = ""


@dataclass(frozen=True)
class Route:
    """A task and the parts that serve it; `image` is their parity in a row on a whole image, for typed graphs."""

    task: Task
    head: str
    body: str
    tail: str
    checkpoint_sha256: str
    image: Optional[ImageParity] = None


def tasks_of_parts(routes: Sequence[Route]) -> dict[str, tuple[str, list[str]]]:
    """Kind of each part, a key of `TENSORS`, and the names of the tasks that it serves, by the part's name."""
    parts: dict[str, tuple[str, list[str]]] = {}
    for route in routes:
        for kind in TENSORS:
            parts.setdefault(getattr(route, kind), (kind, []))[1].append(route.task.name)
    return parts


@dataclass(frozen=True)
class Manifest:
    """What a parts folder holds; runtime and precision as `ipt-export` takes them.

    Attributes:
        max_batch: most patches of one request to the network, and the largest batch that engines are built for.
    """

    patch_size: int
    runtime: str
    precision: str
    parts: tuple[Part, ...]
    routes: tuple[Route, ...]
    opset: int = OPSET
    ir_version: int = IR_VERSION
    max_batch: int = MAX_BATCH

    @property
    def graph_precision(self) -> str:
        """The type that the graphs are written in: OpenVINO gets FP32 and is told the precision as it compiles them."""
        return "fp32" if self.runtime == "openvino" else self.precision

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        for part in values["parts"]:
            part["layers"] = [" ".join(layer) for layer in part["layers"]]
        return values

    def part(self, name: str) -> Part:
        return next(p for p in self.parts if p.name == name)

    def save(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a parts folder.

    Raises:
        ManifestError: there is no manifest, or not one of this version, or one that no export writes.
    """
    try:
        return _checked(build(Manifest, read_json(folder / MANIFEST)))
    except OSError as error:
        raise ManifestError(f"{folder} is not a folder of parts ({error}): run ipt-export CHECKPOINT first") from None
    except ValueError as error:
        raise ManifestError(
            f"{folder / MANIFEST} is not of this version ({error}): run ipt-export CHECKPOINT again"
        ) from None


def _checked(manifest: Manifest) -> Manifest:
    """The manifest, if an export may have written it: its names become those of files. Raises ValueError."""
    _check_range("patch_size", manifest.patch_size, 1, MAX_PATCH)
    _check_range("max_batch", manifest.max_batch, 1, LARGEST_BATCH)
    if manifest.precision not in PRECISIONS.get(manifest.runtime, ()):
        raise ValueError(f"runtime {shown(manifest.runtime)} has no precision {shown(manifest.precision)}")
    if (manifest.opset, manifest.ir_version) != (OPSET, IR_VERSION):
        raise ValueError(f"its graphs have opset {manifest.opset} and IR version {manifest.ir_version}")
    for part in manifest.parts:
        if not re.fullmatch(_PART_NAME, part.name) or len(part.name) > MAX_NAME + len("head_"):
            raise ValueError(f"part {shown(part.name)} is not head_TASK, body, body_HASH or tail_TASK")
        for port in (*part.inputs, *part.outputs):
            if port.dtype not in _BYTES or not 1 <= len(port.shape) <= 3 or min(port.shape) < 1 or port.is_huge:
                raise ValueError(f"tensor {shown(str(port))} of {part.name} is not allowed")
    parts = {part.name: part for part in manifest.parts}
    if len(parts) != len(manifest.parts):
        raise ValueError("two parts have one name")
    if manifest.routes:
        task_table(route.task for route in manifest.routes)
    for route in manifest.routes:
        _check_route(route, parts, manifest.patch_size)
    return manifest


def _check_route(route: Route, parts: Mapping[str, Part], side: int) -> None:
    """Raises ValueError unless the parts are there, are the task's, and hand on what the next one takes."""
    task, larger = route.task.name, side * route.task.scale
    shapes: dict[str, tuple[int, ...]] = {"IMAGE": (3, side, side), "RESTORED": (3, larger, larger)}
    for kind, tensors in TENSORS.items():
        name = getattr(route, kind)
        if name not in parts or (name != f"{kind}_{task}" if kind != "body" else not name.startswith(kind)):
            raise ValueError(f"task {task} has no {kind} {shown(name)}")
        for names, ports in zip(tensors, (parts[name].inputs, parts[name].outputs)):
            if names != tuple(port.name for port in ports):
                raise ValueError(f"{name} has other tensors than {', '.join(names)}")
            for port in ports:
                if shapes.setdefault(port.name, port.shape) != port.shape:
                    raise ValueError(f"{port} of {name} does not fit {list(shapes[port.name])} of task {task}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} is not within {low} to {high}")
