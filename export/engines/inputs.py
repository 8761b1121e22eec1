"""What an engine is built from: parts, their graphs and reference tensors, and how TensorRT is told the precision.

Plain functions that need neither GPU nor TensorRT, on numpy alone and in Python 3.9 syntax.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ipt_triton.export.engines.metadata import EngineError

MANIFEST = "manifest.json"
SAMPLES = "samples.npz"
PRECISIONS = ("fp32", "fp16", "bf16")
STRONGLY_TYPED_SINCE = (10,)


@dataclass(frozen=True)
class PartSpec:
    """A part as the manifest has it.

    Attributes:
        inputs, outputs: shape of one sample by tensor name.
        types: numpy's name of the type by tensor name.
        precision: one of `PRECISIONS`, the type that the graph is written in.
        task: the first task that it serves.
    """

    name: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    types: dict[str, str]
    precision: str
    task: str
    flops: int | None


@dataclass(frozen=True)
class OnnxSummary:
    """What a build needs to know of an ONNX graph.

    Attributes:
        nodes: name and operator of each.
        weights: numbers among the initialisers, by type.
        multiplied: those of them that convolutions and matrix products read.
    """

    nodes: tuple[tuple[str, str], ...]
    weights: dict[str, int]
    multiplied: dict[str, int]

    def layer_precision(self, part: PartSpec) -> str:
        """What most layers of the graph compute in: the part's precision, or `fp32` if none multiplies in it.

        ONNX has no BF16 convolution at our operator set, so BF16 heads and tails compute in FP32.
        """
        kind = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}.get(part.precision, "FLOAT")
        return part.precision if self.multiplied.get(kind) else "fp32"


@dataclass(frozen=True)
class PrecisionPlan:
    """How a TensorRT is told the precision: names of network and builder flags, and whether to pin layers' types."""

    precision: str
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]
    cleared_flags: tuple[str, ...]
    pin_types: bool


def read_manifest(folder: Path) -> tuple[PartSpec, ...]:
    """The parts of a parts folder, in the manifest's order.

    Raises:
        EngineError: no manifest, or not one of `ipt-export`.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # OpenVINO gets FP32 graphs and is told the precision when it compiles them.
        precision = "fp32" if manifest["runtime"] == "openvino" else str(manifest["precision"])
        parts = []
        for part in manifest["parts"]:
            tasks = [r["task"]["name"] for r in manifest["routes"] if part["name"] in (r["head"], r["body"], r["tail"])]
            ports = [{p["name"]: tuple(p["shape"]) for p in part[kind]} for kind in ("inputs", "outputs")]
            types = {p["name"]: str(p["dtype"]) for p in (*part["inputs"], *part["outputs"])}
            parts.append(PartSpec(part["name"], ports[0], ports[1], types, precision, tasks[0], part["flops"]))
    except FileNotFoundError as error:
        raise EngineError(f"{path} is missing: run ipt-export, or name the parts folder that it wrote") from error
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineError(f"{path} is not a manifest of ipt-export ({reason}): run ipt-export again") from error
    return tuple(parts)


def choose_parts(parts: Sequence[PartSpec], only: Sequence[str]) -> tuple[PartSpec, ...]:
    """The parts named, all of them if none is; raises EngineError for a name that is not there."""
    unknown = sorted(set(only) - {part.name for part in parts})
    if unknown:
        raise EngineError(f"there is no part {', '.join(unknown)}; there are {', '.join(p.name for p in parts)}")
    return tuple(part for part in parts if not only or part.name in only)


def read_onnx(model: bytes) -> OnnxSummary:
    """Nodes and weights of an ONNX file (onnx.proto3: ModelProto.graph is field 7), without the onnx package.

    Raises:
        EngineError: it is not an ONNX file.
    """
    types = {1: "FLOAT", 10: "FLOAT16", 16: "BFLOAT16"}
    nodes: list[tuple[str, str]] = []
    tensors: dict[str, tuple[str, int]] = {}
    read: set[str] = set()
    try:
        (graph,) = [value for field, value in _fields(model) if field == 7]
        for field, value in _fields(graph):
            if field == 1:  # NodeProto: input 1, name 3, op_type 4
                texts = [(f, bytes(v).decode()) for f, v in _fields(value) if f in (1, 3, 4)]
                nodes.append((dict(texts).get(3, ""), dict(texts).get(4, "")))
                if nodes[-1][1] in ("Conv", "MatMul"):
                    read.update(text for f, text in texts if f == 1)
            elif field == 5:  # TensorProto: dims 1, data_type 2, name 8
                shape, kind, name = [], "other", ""
                for f, v in _fields(value):
                    if f == 1:
                        shape += [v] if isinstance(v, int) else list(_varints(v))
                    elif f == 2:
                        kind = types.get(int(v), "other")
                    elif f == 8:
                        name = bytes(v).decode()
                tensors[name] = (kind, int(np.prod(shape, dtype=np.int64)))
    except (ValueError, IndexError, UnicodeDecodeError, TypeError) as error:
        raise EngineError(f"not an ONNX file that can be read ({error}): run ipt-export again") from error
    weights: dict[str, int] = {}
    multiplied: dict[str, int] = {}
    for name, (kind, count) in tensors.items():
        weights[kind] = weights.get(kind, 0) + count
        if name in read:
            multiplied[kind] = multiplied.get(kind, 0) + count
    return OnnxSummary(tuple(nodes), weights, multiplied)


def _varint(data: memoryview, start: int) -> tuple[int, int]:
    """A base-128 number and where it ends."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def _varints(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _fields(data: bytes | memoryview) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message as (number, int or memoryview); fixed-size numbers are left out."""
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = _varint(view, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield key >> 3, value
        elif kind == 2:
            length, at = _varint(view, at)
            if at + length > len(view):
                raise ValueError("it ends in the middle of a field")
            yield key >> 3, view[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def plan_precision(version: tuple[int, ...], asked: str | None, graph: str) -> PrecisionPlan:
    """How to reach a precision with a TensorRT version.

    Args:
        version: of TensorRT, such as (10, 13, 3).
        asked: one of `PRECISIONS`, None for the graph's own.
        graph: precision that the graph is typed in.

    Raises:
        EngineError: this TensorRT cannot compute this graph so; names the remedy.
    """
    precision = asked or graph
    text = ".".join(str(number) for number in version[:2])
    cleared = ("TF32",) if precision == "fp32" else ()  # TF32 has 10 bits: it would miss the FP32 tolerance
    if version >= STRONGLY_TYPED_SINCE:
        if precision != graph:
            raise EngineError(
                f"TensorRT {text} computes what the graph says, and the parts are {graph.upper()}: "
                f"export them with --precision {precision}, or ask for {graph}"
            )
        return PrecisionPlan(precision, ("STRONGLY_TYPED",), (), cleared, pin_types=False)
    if "bf16" in (precision, graph):
        raise EngineError(f"TensorRT {text} computes no BF16: use TensorRT 10 or newer, or export FP16 parts")
    if precision == "fp32" and graph != "fp32":
        raise EngineError(f"the parts are {graph.upper()} and FP32 was asked for: export them with --precision fp32")
    if precision == "fp32":
        return PrecisionPlan(precision, ("EXPLICIT_BATCH",), (), cleared, pin_types=False)
    pin = graph == "fp16"
    # Preferred, not obeyed: where no kernel fits, a slower or less exact one serves, and the parity check judges it.
    flags = ("FP16", "PREFER_PRECISION_CONSTRAINTS") if pin else ("FP16",)
    return PrecisionPlan(precision, ("EXPLICIT_BATCH",), flags, cleared, pin)


def profile_shapes(
    name: str, network: Sequence[int], manifest: Sequence[int], profile: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """Smallest, optimal and largest shape of an input.

    Args:
        network: the shape that TensorRT read from the graph, -1 for what is dynamic.
        manifest: shape of one sample.

    Raises:
        EngineError: the graph's batch is fixed, or the two shapes differ.
    """
    if not network or network[0] != -1:
        raise EngineError(f"{name} has shape {list(network)}; a dynamic batch is needed: run ipt-export again")
    if len(network) != len(manifest) + 1 or any(network[i + 1] not in (-1, side) for i, side in enumerate(manifest)):
        raise EngineError(
            f"{name} has shape {list(network)} in the graph and [n, {', '.join(map(str, manifest))}] in the manifest: "
            "run ipt-export again"
        )
    return tuple((batch, *manifest) for batch in profile)


def reference_tensors(folder: Path, part: PartSpec) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]] | None:
    """Inputs and expected outputs of a part, float32 [n or 1, ...]; None when the folder holds no `samples.npz`.

    Raises:
        EngineError: the file lacks the part's tensors.
    """
    path = folder / SAMPLES
    if not path.is_file():
        return None
    try:
        with np.load(path) as samples:
            tensors = {name: samples[f"{part.task}/{name}"] for name in (*part.inputs, *part.outputs)}
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{path} lacks tensors of {part.name} ({error}): run ipt-export again") from error
    return {n: tensors[n] for n in part.inputs}, {n: tensors[n] for n in part.outputs}


def repeat_rows(tensor: np.ndarray, batch: int) -> np.ndarray:
    """`batch` rows, the tensor's own in turn."""
    return np.ascontiguousarray(tensor[np.arange(batch) % len(tensor)])


def random_inputs(part: PartSpec, batch: int) -> dict[str, np.ndarray]:
    """Grey levels for IMAGE, standard normal values for the rest: enough to see whether anything is NaN."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.uniform(0, 255, (batch, *shape)) if name == "IMAGE" else generator.normal(size=(batch, *shape))
        ).astype(np.float32)
        for name, shape in part.inputs.items()
    }
