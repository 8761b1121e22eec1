"""Graph surgery with onnx-graphsurgeon: parts with constants folded, in operators that every runtime has."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from ipt_triton.errors import IptError
from ipt_triton.manifest import IR_VERSION, OPSET

OPERATORS = frozenset(
    {
        "Add",
        "Concat",
        "Conv",
        "DepthToSpace",
        "Expand",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "Relu",
        "Reshape",
        "Shape",
    }
    | {"Softmax", "Sub", "Transpose"}
)
"""What a part may consist of: a subset of the operators that TensorRT's ONNX parser takes (onnx-tensorrt,
docs/operators.md)."""


class GraphError(IptError, ValueError):
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
