"""FP32, FP16 or BF16: an FP32 part becomes a strongly typed ONNX graph, ready for TensorRT.

Where which type stands is decided here and written into the graph as casts, so that no builder flag has a say:
convolutions, GEMMs and attention in the low type; LayerNormalization as one operator with FP32 inputs, weights and
output; the residual stream, the mean of the input and the layers that would overflow on real tiles in FP32.

    typed = type_part(part, tiles, "fp16", "fp32", fp16_ports(samples))
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import TensorProto

from ipt_triton.export.parts.checks import check_types
from ipt_triton.export.parts.graph import ELEMENTS, FP32, GraphError, attentions, tensor_types
from ipt_triton.manifest import IR_VERSION

logger = logging.getLogger(__name__)

LIMITS = {"fp16": 65504.0, "bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)}
"""The largest finite value of each low type."""

INNER_PORTS = frozenset({"FEATURES", "TASK_EMBEDDING", "BODY_FEATURES"})
"""What goes from part to part; callers see IMAGE and RESTORED only."""

HEADROOM = 0.5
"""Share of the limit from which a layer counts as overflowing: the tiles it was measured on are not the worst there
are."""

NUMPY_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_UNDEFINED = frozenset({("bf16", "Conv")})
"""What ONNX does not define at our opset: convolutions of BF16 came with opset 22."""
_FOLLOWING = frozenset({"DepthToSpace", "Expand", "Relu", "Reshape", "Transpose"})
"""Operators that move values or clip them: they take the type they are given, so that no cast stands before them."""


@dataclass(frozen=True)
class TypedOptions:
    """What a typed graph looks like.

    Attributes:
        precision: the low type, `fp16` or `bf16`.
        residual: type of the sums that run beside a part's branches: `fp32`, or `low` for less memory traffic.
        fp16_ports: inputs and outputs that are FP16, the others are FP32. Not BF16, which numpy and Triton's Python
            backend do not have.
        keep: names of nodes that compute in FP32, see `overflowing`. Of an attention all four nodes are kept, or none.
    """

    precision: str = "fp16"
    residual: str = FP32
    fp16_ports: frozenset[str] = INNER_PORTS
    keep: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.precision not in LIMITS:
            raise GraphError(f"precision {self.precision!r} is not one of {', '.join(LIMITS)}")
        if self.residual not in (FP32, "low"):
            raise GraphError(f"residual {self.residual!r} is not one of fp32, low")


@dataclass(frozen=True)
class TypedPart:
    """A typed part.

    Attributes:
        keep: names of the layers that stay FP32 because of their values.
        largest: the largest absolute value that a layer read, held as a weight or wrote.
    """

    graph: onnx.ModelProto
    keep: tuple[str, ...]
    largest: float


def fp16_ports(samples: Iterable[Mapping[str, np.ndarray]]) -> frozenset[str]:
    """Tensors between the parts that fit FP16 in every sample, with the headroom that layers have too."""
    largest: dict[str, float] = {}
    for tensors in samples:
        for name in INNER_PORTS & tensors.keys():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(tensors[name]).max()))
    return frozenset(name for name, value in largest.items() if value <= HEADROOM * LIMITS["fp16"])


def type_part(
    graph: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    precision: str,
    residual: str,
    fp16_ports: frozenset[str],
) -> TypedPart:
    """Type an FP32 part; layers that overflow on the inputs stay FP32.

    Args:
        inputs: float32 tensors [n, ...] by input name, of all tasks that the part serves.
        precision, residual: see `TypedOptions`.

    Raises:
        GraphError: the graph cannot be typed; names the node or weight.
    """
    peaks = largest_values(graph, inputs)
    keep = overflowing(peaks, precision)
    if keep:
        table = peak_table(peak for peak in peaks if peak.layer in keep)
        logger.warning("%s: these layers stay FP32\n%s", graph.graph.name, table)
    typed = typed_graph(graph, TypedOptions(precision, residual, fp16_ports, keep))
    check_types(typed)
    return TypedPart(typed, tuple(sorted(keep)), max(peak.largest for peak in peaks))


@dataclass(frozen=True)
class Peak:
    """The largest absolute value, real tiles, that a layer reads, holds as a weight, or writes.

    Attributes:
        layer: name of the node.
        tensor: where the value was found.
    """

    layer: str
    operator: str
    tensor: str
    largest: float


def largest_values(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> tuple[Peak, ...]:
    """Run an FP32 part with every intermediate tensor as an output, one sample at a time, and keep the largest values.

    Args:
        inputs: float32 samples by input name, [n, ...].

    Raises:
        GraphError: a value is NaN or Inf in FP32 already; names the node.
    """
    types = tensor_types(model)
    given = {i.name for i in model.graph.input}
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer if types[w.name] == FP32}
    inner = [o for node in model.graph.node for o in node.output if types[o] == FP32]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = {name: float(np.abs(w).max()) for name, w in weights.items()}
    largest |= {name: float(np.abs(inputs[name]).max()) for name in given}
    for sample in range(len(next(iter(inputs.values())))):
        values = session.run(inner, {name: inputs[name][sample : sample + 1] for name in given})
        for name, value in zip(inner, values, strict=True):  # max() would drop a NaN
            largest[name] = float(np.maximum(largest.get(name, 0.0), np.abs(value).max()))
    peaks = []
    for node in (n for n in model.graph.node if n.op_type != "Shape"):
        tensors = [t for t in (*node.input, *node.output) if t in largest]
        if broken := [t for t in tensors if not np.isfinite(largest[t])]:
            raise GraphError(f"node {node.name} of part {model.graph.name} holds NaN or Inf in FP32, in {broken[0]}")
        if tensors:
            tensor = max(tensors, key=largest.__getitem__)
            peaks.append(Peak(node.name, node.op_type, tensor, largest[tensor]))
    return tuple(peaks)


def overflowing(peaks: Iterable[Peak], precision: str, headroom: float = HEADROOM) -> frozenset[str]:
    """Layers that read, hold or write a value above `headroom` of the type's limit, for `TypedOptions.keep`."""
    return frozenset(peak.layer for peak in peaks if peak.largest > headroom * LIMITS[precision])


def peak_table(peaks: Iterable[Peak]) -> str:
    """Markdown table of layers, the one with the largest value first."""
    lines = ["| layer | operator | tensor | largest | of 65504 |", "|---|---|---|---:|---:|"]
    for p in sorted(peaks, key=lambda p: -p.largest):
        lines.append(f"| {p.layer} | {p.operator} | {p.tensor} | {p.largest:.4g} | {p.largest / LIMITS['fp16']:.2%} |")
    return "\n".join(lines)


def typed_graph(model: onnx.ModelProto, options: TypedOptions) -> onnx.ModelProto:
    """The strongly typed graph of an FP32 part, with the same tensors and a type for each.

    Weights of low layers are stored in the low type.

    Raises:
        GraphError: a name in `keep` that is not a node, or a weight of a low layer beyond the type's range.
    """
    floats = {name for name, kind in tensor_types(model).items() if kind == FP32}
    graph = gs.import_onnx(model).toposort()
    if unknown := sorted(options.keep - {node.name for node in graph.nodes}):
        raise GraphError(f"part {graph.name} has no node {', '.join(unknown)} to keep in FP32")
    ports = {t.name: "fp16" if t.name in options.fp16_ports else FP32 for t in [*graph.inputs, *graph.outputs]}
    patterns = [{node.name for node in pattern} for pattern in attentions(model)]
    keep = options.keep.union(*(pattern for pattern in patterns if pattern & options.keep))
    held = {t.name: ports[t.name] for t in graph.inputs}  # type of each activation as its producer writes it
    for tensor in graph.inputs:
        tensor.dtype = ELEMENTS[ports[tensor.name]]
    casts = _Casts()
    for node in list(graph.nodes):
        reads = [t for t in node.inputs if t.name in floats]
        if not reads or node.op == "Shape":
            continue
        kind = _node_type(node, options, ports, held, keep)
        for i, tensor in enumerate(node.inputs):
            if tensor.name in floats:
                node.inputs[i] = casts.given(tensor, held.get(tensor.name, FP32), kind)
        for output in node.outputs:
            held[output.name], output.dtype = kind, ELEMENTS[kind]
    for i, tensor in enumerate(graph.outputs):
        name = tensor.name
        if held[name] != ports[name]:
            tensor.name = f"{name}_{held[name]}"
            graph.outputs[i] = casts.given(tensor, held[name], ports[name], name)
    graph.nodes.extend(casts.nodes)
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    typed = gs.export_onnx(graph, ir_version=IR_VERSION, producer_name="ipt-triton")
    for weight in typed.graph.initializer:
        if weight.name in casts.weights:  # here, because onnx-graphsurgeon 0.6.1 cannot write BF16 with onnx 1.23
            values = onnx.numpy_helper.to_array(weight)
            with np.errstate(over="ignore"):
                lowered = values.astype(NUMPY_TYPES[options.precision])
            if not np.isfinite(lowered.astype(np.float32)).all():
                raise GraphError(
                    f"weight {weight.name} of part {graph.name} reaches {np.abs(values).max():.4g}, beyond "
                    f"{options.precision}; keep the layers that read it in FP32"
                )
            weight.CopyFrom(onnx.numpy_helper.from_array(lowered, weight.name))
    del typed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(typed, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(inferred, full_check=True)
    return inferred


class _Casts:
    """The casts of a graph under construction: one for each tensor and type, however many nodes read it."""

    def __init__(self) -> None:
        self.nodes: list[gs.Node] = []
        self.weights: set[str] = set()  # constants to be stored in the low type
        self._made: dict[tuple[str, str], gs.Tensor] = {}

    def given(self, tensor: gs.Tensor, has: str, wants: str, name: str | None = None) -> gs.Tensor:
        """The tensor in the wanted type: itself, its copy among the weights, or the output of a cast called `name`."""
        if has == wants:
            return tensor
        if name is None and (tensor.name, wants) in self._made:
            return self._made[tensor.name, wants]
        name = name or f"{tensor.name}_{wants}"
        if isinstance(tensor, gs.Constant):
            made = gs.Constant(name, tensor.values)
            self.weights.add(name)
        else:
            made = gs.Variable(name, ELEMENTS[wants], tensor.shape)
            self.nodes.append(gs.Node("Cast", f"cast_{name}", {"to": ELEMENTS[wants]}, [tensor], [made]))
        self._made[tensor.name, wants] = made
        return made


def _node_type(
    node: gs.Node, options: TypedOptions, ports: Mapping[str, str], held: Mapping[str, str], keep: frozenset[str]
) -> str:
    """Type in which a node computes, given what its producers wrote."""
    low = options.precision
    if node.op == "LayerNormalization" or node.name in keep or (low, node.op) in _UNDEFINED:
        return FP32
    if node.op in _FOLLOWING:
        return held.get(node.inputs[0].name, low)
    constants = [isinstance(t, gs.Constant) for t in node.inputs]
    if node.op in ("Add", "Sub") and any(constants):
        outside = [t.name for t in (*node.inputs, *node.outputs) if ports.get(t.name) == FP32]
        # The mean: grey levels of 16-bit images, and of images that are not whole numbers, do not fit 11 bits.
        if outside:
            return FP32
    return FP32 if options.residual == FP32 and _on_residual_stream(node) else low


def _on_residual_stream(node: gs.Node) -> bool:
    """Whether an Add belongs to the sums that pass by the branches.

    Not so are the biases, which belong to their GEMM, and sums that only GEMMs read (query plus task embedding).
    """
    if node.op != "Add":
        return False
    operands = [t for t in node.inputs if not isinstance(t, gs.Constant)]
    bias = len(operands) == 1 and bool(operands[0].inputs) and operands[0].inputs[0].op == "MatMul"
    readers = {reader.op for reader in node.outputs[0].outputs}
    return not bias and readers != {"MatMul"}
