"""Floating-point operations of an ONNX graph, counted from its convolutions and matrix multiplications.

A multiply-add is two operations. What runs element by element (activations, normalisation, Softmax, additions) is left
out, as the literature does: at paper size it is below one percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

UNCOUNTED = frozenset({"Attention", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "QLinearConv", "QLinearMatMul"})
"""Operators that multiply matrices and that no part has; a graph with one is refused rather than counted too low."""


def count_flops(model: onnx.ModelProto) -> int:
    """Operations for one sample, that is, with every dynamic leading dimension at 1.

    Raises:
        ValueError: an operator of `UNCOUNTED`, or a shape that ONNX's shape inference does not find.
    """
    return sum(flops_of_nodes(model))


def flops_of_nodes(model: onnx.ModelProto) -> list[int]:
    """Operations for one sample of each node, in the graph's order; raises as `count_flops` does."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for port in single.graph.input:
        port.type.tensor_type.shape.dim[0].dim_value = 1
    for port in single.graph.output:  # they name the dynamic batch; inference finds them again
        port.type.tensor_type.ClearField("shape")
    single.graph.ClearField("value_info")
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in graph.initializer})
    return [_node_flops(node, shapes) for node in graph.node]


def _node_flops(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type in UNCOUNTED:
        raise ValueError(f"cannot count the operations of {node.op_type} ({node.name})")
    if node.op_type not in ("Conv", "MatMul"):
        return 0
    try:
        inputs, output = [shapes[name] for name in node.input[:2]], shapes[node.output[0]]
    except KeyError as error:
        raise ValueError(f"{node.op_type} {node.name}: the shape of {error} is not known") from error
    if any(0 in shape for shape in (*inputs, output)):
        raise ValueError(f"{node.op_type} {node.name}: shapes {inputs} -> {output} are not known entirely")
    # Each output value is a dot product: over input channels per group and kernel, or over A's last dimension.
    weights = inputs[1][1:] if node.op_type == "Conv" else inputs[0][-1:]
    return 2 * math.prod(output) * math.prod(weights)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Dimensions; 0 for an unknown one."""
    return tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)
