"""The ONNX graphs of parts: constants folded, in operators that every runtime has; and what is read off a graph."""

from __future__ import annotations

import math

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ipt_triton.export.errors import ExportError
from ipt_triton.manifest import IR_VERSION, OPSET, Layer

FP32 = "fp32"
ELEMENTS = {FP32: TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""ONNX's floating-point types by our names of them."""

OPERATORS = frozenset(
    {"Add", "Concat", "Conv", "DepthToSpace", "Expand", "LayerNormalization", "MatMul", "Mul", "Relu", "Reshape"}
    | {"Shape", "Softmax", "Sub", "Transpose"}
)
"""What a part may consist of: a subset of the operators that TensorRT's ONNX parser takes (onnx-tensorrt,
docs/operators.md)."""


class GraphError(ExportError):
    """A graph with operators or types that the runtimes do not take."""


def clean_graph(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Fold constant sub-graphs, drop what is unused, sort, and name the graph.

    Raises:
        GraphError: an operator outside `OPERATORS`, by name, or another opset than `OPSET`.
    """
    graph = gs.import_onnx(model)
    graph.name = name
    graph.fold_constants(size_threshold=2**31)  # without one it warns of every projection that it cuts out of a matrix
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    cleaned = gs.export_onnx(graph, ir_version=IR_VERSION, producer_name="ipt-triton")
    del cleaned.metadata_props[:]
    for node in cleaned.graph.node:  # the exporter's stack traces and source lines
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*cleaned.graph.value_info, *cleaned.graph.initializer, *cleaned.graph.input, *cleaned.graph.output]:
        del value.metadata_props[:]
    foreign = sorted({node.op_type for node in cleaned.graph.node} - OPERATORS)
    if foreign:
        raise GraphError(f"part {name} holds operators outside the allowed set: {', '.join(foreign)}")
    opsets = {(entry.domain, entry.version) for entry in cleaned.opset_import}
    if opsets != {("", OPSET)}:
        raise GraphError(f"part {name} uses operator sets {sorted(opsets)}; only opset {OPSET} is allowed")
    onnx.checker.check_model(cleaned, full_check=True)
    return cleaned


def tensor_types(model: onnx.ModelProto) -> dict[str, str]:
    """Type of every tensor by name (`fp32`, `fp16`, `bf16`, `int64`, ...), inferred anew from inputs and weights alone.

    Raises:
        GraphError: a tensor whose type cannot be inferred, or types that contradict each other.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # what an exporter noted down proves nothing
    try:
        graph = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise GraphError(f"part {model.graph.name} is not typed consistently: {error}") from None
    names = {element: name for name, element in ELEMENTS.items()}
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    types |= {w.name: w.data_type for w in graph.initializer}
    if unknown := [o for node in graph.node for o in node.output if o not in types]:
        raise GraphError(f"part {model.graph.name}: no type follows for {', '.join(unknown)}")
    return {n: names.get(t, TensorProto.DataType.Name(t).lower()) for n, t in types.items()}


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


def count_weights(model: onnx.ModelProto) -> int:
    """How many floating-point numbers a graph holds as weights."""
    weights = [w for w in model.graph.initializer if w.data_type in ELEMENTS.values()]
    return sum(math.prod(w.dims) for w in weights)


def layer_precision(model: onnx.ModelProto, precision: str) -> str:
    """What most layers of a graph compute in: its precision, or `fp32` if nothing multiplies weights of that type.

    ONNX has no BF16 convolution at our operator set, so BF16 heads and tails compute in FP32.
    """
    read = {name for node in model.graph.node if node.op_type in ("Conv", "MatMul") for name in node.input}
    multiplied = {weight.data_type for weight in model.graph.initializer if weight.name in read}
    return precision if ELEMENTS.get(precision) in multiplied else FP32


def list_layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Every node in the graph's order."""
    types = tensor_types(model)
    return tuple(Layer(node.name, node.op_type, types[node.output[0]]) for node in model.graph.node)
