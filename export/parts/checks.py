"""Whether TensorRT takes a graph: operators and types against its published lists, and no types mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from ipt_triton.export.parts.graph import FP32, GraphError, attentions, list_layers, tensor_types
from ipt_triton.manifest import IR_VERSION, OPSET

_FLOATS_8 = frozenset({"fp32", "fp16"})
_FLOATS_10 = frozenset({"fp32", "fp16", "bf16"})
_MOVING = ("Concat", "Expand", "Reshape", "Shape", "Transpose")
_SUMS = ("Add", "Mul", "Sub")
_FLOAT_ONLY = ("Conv", "LayerNormalization", "MatMul", "Softmax")


@dataclass(frozen=True)
class OperatorList:
    """What a version of TensorRT's ONNX parser takes, as far as the parts need it.

    Attributes:
        opsets: oldest and newest operator set.
        types: types by operator. Shapes are INT64; 8.6 narrows them to INT32 as it reads.
    """

    opsets: tuple[int, int]
    types: Mapping[str, frozenset[str]]


_TYPES_8: dict[str, frozenset[str]] = {
    **dict.fromkeys((*_MOVING, *_SUMS, "Cast", "DepthToSpace"), _FLOATS_8 | {"int64"}),
    **dict.fromkeys((*_FLOAT_ONLY, "Relu"), _FLOATS_8),
}
_TYPES_10: dict[str, frozenset[str]] = {
    **dict.fromkeys((*_MOVING, *_SUMS, "Cast", "DepthToSpace", "Relu"), _FLOATS_10 | {"int64"}),
    **dict.fromkeys(_FLOAT_ONLY, _FLOATS_10),
}
TENSORRT_OPERATORS = {
    "8.6": OperatorList((7, 17), _TYPES_8),
    "10.1": OperatorList((9, 20), _TYPES_10),
    "10.15": OperatorList((9, 24), _TYPES_10),
}
"""onnx-tensorrt, docs/operators.md: branches 8.6-GA (ee0b139) and 10.1-GA (96e7811), and the file of 10.15 (2026-02).
10.1 and 10.15 agree in every operator listed here, so the versions between them do."""


def check_operators(model: onnx.ModelProto, version: str) -> None:
    """Hold a graph against TensorRT's published operators and types.

    A graph of a newer operator set than the version publishes must be valid, as it stands, in the newest that it does.

    Raises:
        GraphError: names the operators and types, or the opset, and the version.
    """
    allowed = TENSORRT_OPERATORS[version]
    types = tensor_types(model)
    used = {(n.op_type, types[t]) for n in model.graph.node for t in (*n.input, *n.output) if t}
    wrong = sorted(f"{op} of {kind}" for op, kind in used if kind not in allowed.types.get(op, frozenset()))
    if wrong:
        raise GraphError(f"part {model.graph.name}: TensorRT {version} does not take {', '.join(wrong)}")
    (opset,) = (entry.version for entry in model.opset_import)
    oldest, newest = allowed.opsets
    if opset < oldest:
        raise GraphError(f"part {model.graph.name} is of opset {opset}; TensorRT {version} takes {oldest} to {newest}")
    if opset > newest:
        older = onnx.ModelProto()
        older.CopyFrom(model)
        older.opset_import[0].version = newest
        try:
            onnx.checker.check_model(older, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise GraphError(
                f"part {model.graph.name} is of opset {opset} and not valid in {newest}, the newest that TensorRT "
                f"{version} takes: {error}"
            ) from None


def check_types(model: onnx.ModelProto) -> None:
    """Prove a graph strongly typed: types follow from inputs and weights alone, and no operator mixes them.

    Also that LayerNormalization is in FP32, that every attention is the plain pattern, whose operators then have one
    type, and that opset and IR version are the pinned ones.

    Raises:
        GraphError: names the node.
    """
    name = model.graph.name
    if ([(e.domain, e.version) for e in model.opset_import], model.ir_version) != ([("", OPSET)], IR_VERSION):
        raise GraphError(f"part {name} must be of opset {OPSET} and IR version {IR_VERSION}")
    attentions(model)
    for node, operator, kind in list_layers(model):  # which refuses operators with unlike operands
        if operator == "LayerNormalization" and kind != FP32:
            raise GraphError(f"node {node} of part {name} normalises in {kind}; it must be FP32")


def check_for_tensorrt(graph: onnx.ModelProto, precision: str) -> None:
    """Hold a part against the operators of every TensorRT that computes in the precision; raises GraphError."""
    for version in TENSORRT_OPERATORS:
        if (precision, version) != ("bf16", "8.6"):
            check_operators(graph, version)
