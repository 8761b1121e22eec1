"""Typed graphs: an FP32 part becomes a strongly typed FP16 or BF16 ONNX graph, ready for TensorRT.

Where which type stands is decided here and written into the graph as casts, so that no builder flag has a say:
convolutions, GEMMs and attention in the low type; LayerNormalization as one operator with FP32 inputs, weights and
output; the residual stream, the mean of the input and the layers that would overflow in FP32.

    peaks = largest_values(part, samples)                       # FP32, real tiles
    typed = typed_graph(part, TypedOptions("fp16", keep=overflowing(peaks, "fp16")))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import TensorProto

from ipt_triton.export.parts.graph import GraphError
from ipt_triton.manifest import IR_VERSION

FP32 = "fp32"
LIMITS = {"fp16": 65504.0, "bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)}
"""The largest finite value of each low type."""

INNER_PORTS = frozenset({"FEATURES", "TASK_EMBEDDING", "BODY_FEATURES"})
"""What goes from part to part; callers see IMAGE and RESTORED only."""

HEADROOM = 0.5
"""Share of the limit from which a layer counts as overflowing: the tiles it was measured on are not the worst there
are."""

_ELEMENT = {FP32: TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
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
        half_ports: inputs and outputs that are FP16, the others are FP32. Not BF16, which numpy and Triton's Python
            backend do not have.
        keep: names of nodes that compute in FP32, see `overflowing`. Of an attention all four nodes are kept, or none.
    """

    precision: str = "fp16"
    residual: str = FP32
    half_ports: frozenset[str] = INNER_PORTS
    keep: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.precision not in LIMITS:
            raise GraphError(f"precision {self.precision!r} is not one of {', '.join(LIMITS)}")
        if self.residual not in (FP32, "low"):
            raise GraphError(f"residual {self.residual!r} is not one of fp32, low")


@dataclass(frozen=True)
class Peak:
    """The largest absolute value, real tiles, that a layer reads, holds as a weight, or writes.

    Attributes:
        layer: name of the node.
        tensor: where the value was found.
        share: `largest` over 65504, the largest FP16 value.
    """

    layer: str
    operator: str
    tensor: str
    largest: float

    @property
    def share(self) -> float:
        return self.largest / LIMITS["fp16"]


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


def peak_table(peaks: Iterable[Peak], rows: int = 20) -> str:
    """Markdown table of the layers with the largest values, largest first."""
    lines = ["| layer | operator | tensor | largest | of 65504 |", "|---|---|---|---:|---:|"]
    for peak in sorted(peaks, key=lambda p: -p.largest)[:rows]:
        lines.append(f"| {peak.layer} | {peak.operator} | {peak.tensor} | {peak.largest:.4g} | {peak.share:.2%} |")
    return "\n".join(lines)


def tensor_types(model: onnx.ModelProto) -> dict[str, str]:
    """Type of every tensor by name (`fp32`, `fp16`, `bf16`, `int64`, ...), inferred anew from inputs and weights alone.

    Raises:
        GraphError: a tensor whose type cannot be inferred, or types that contradict each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # what an exporter noted down is no proof
    try:
        graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"part {model.graph.name} is not typed consistently: {error}") from None
    names = {element: name for name, element in _ELEMENT.items()}
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    types |= {w.name: w.data_type for w in graph.initializer}
    if unknown := [o for node in graph.node for o in node.output if o not in types]:
        raise GraphError(f"part {model.graph.name}: no type follows for {', '.join(unknown)}")
    return {n: names.get(t, TensorProto.DataType.Name(t).lower()) for n, t in types.items()}


def typed_graph(model: onnx.ModelProto, options: TypedOptions) -> onnx.ModelProto:
    """The strongly typed graph of an FP32 part, with the same tensors and a type for each.

    Weights of low layers are stored in the low type.

    Raises:
        GraphError: a name in `keep` that is no node, or a weight of a low layer beyond the type's range.
    """
    floats = {name for name, kind in tensor_types(model).items() if kind == FP32}
    graph = gs.import_onnx(model).toposort()
    if unknown := sorted(options.keep - {node.name for node in graph.nodes}):
        raise GraphError(f"part {graph.name} has no node {', '.join(unknown)} to keep in FP32")
    ports = {t.name: "fp16" if t.name in options.half_ports else FP32 for t in [*graph.inputs, *graph.outputs]}
    patterns = [{node.name for node in pattern} for pattern in attentions(model)]
    keep = options.keep.union(*(pattern for pattern in patterns if pattern & options.keep))
    held = {t.name: ports[t.name] for t in graph.inputs}  # type of each activation as its producer writes it
    for tensor in graph.inputs:
        tensor.dtype = _ELEMENT[ports[tensor.name]]
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
            held[output.name], output.dtype = kind, _ELEMENT[kind]
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
            made = gs.Variable(name, _ELEMENT[wants], tensor.shape)
            self.nodes.append(gs.Node("Cast", f"cast_{name}", {"to": _ELEMENT[wants]}, [tensor], [made]))
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


def attentions(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, ...]]:
    """The patterns that compilers fuse: (Mul that scales Q, MatMul with Kᵀ, Softmax, MatMul with V).

    Raises:
        GraphError: a Softmax in any other surroundings.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        scores = producers.get(softmax.input[0])
        scale = producers.get(scores.input[0]) if scores else None
        readers = [node for node in model.graph.node if softmax.output[0] in node.input]
        pattern = (scale, scores, softmax, *readers)
        complete = tuple(node for node in pattern if node)
        if [node.op_type for node in complete] != ["Mul", "MatMul", "Softmax", "MatMul"]:
            raise GraphError(
                f"node {softmax.name} of part {model.graph.name} does not stand in Mul, MatMul, Softmax, MatMul"
            )
        found.append(complete)
    return found
