"""Names of a body's matrix products, for people: after the modules of `train.model.ipt`, alone and in groups."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import onnx

from ipt_triton.export.parts.graph import GraphError

MOVING = frozenset({"Reshape", "Transpose"})
"""Operators that only rearrange a tensor."""


def layer_names(model: onnx.ModelProto) -> dict[str, str]:
    """Names of a body's matrix products by node, after the modules of `train.model.ipt`.

    `out1`, `encoder.0.linear2`, `decoder.3.cross_attention.projection`, and of an attention also `scores` (query by
    key), `values` (scores by value) and `out`. Found by how the nodes stand, because the exporter drops the weights'
    names and merges equal ones.
    """
    constants = {w.name for w in model.graph.initializer}
    written = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    norms = _norm_names(model)
    names: dict[str, str] = {}
    for node in (n for n in model.graph.node if n.op_type == "MatMul"):
        before = written.get(source_of(node.input[0], written))
        behind = readers[node.output[0]][0]
        if before is None:
            names[node.name] = "linear_encoding"
        elif before.op_type == "Relu":
            first = written[written[before.input[0]].input[0]]
            names[node.name] = f"{names[first.name].removesuffix('1')}2"
        elif behind.op_type == "Add" and readers[behind.output[0]][0].op_type == "Relu":
            layer = norms.get(before.name, "").rpartition(".")[0]
            names[node.name] = f"{layer}.linear1" if layer else "out1"
        else:
            if behind.op_type == "Softmax":
                role = "scores"
            elif node.input[1] not in constants:
                role = "values"
            else:
                role = "out" if before.op_type == "MatMul" else "projection"
            layer, _, norm = _next_norm(node, readers, norms).rpartition(".")  # an attention stands before it
            names[node.name] = f"{layer}.{'cross_attention' if norm == 'norm3' else 'attention'}.{role}"
    return names


def source_of(tensor: str, written: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that this one is but another arrangement of."""
    while tensor in written and written[tensor].op_type in MOVING:
        tensor = written[tensor].input[0]
    return tensor


def _norm_names(model: onnx.ModelProto) -> dict[str, str]:
    """Names of the LayerNormalization nodes: two for each encoder layer, then three for each decoder layer."""
    nodes = [node.name for node in model.graph.node if node.op_type == "LayerNormalization"]
    decoders = sum("TASK_EMBEDDING" in node.input for node in model.graph.node) // 2  # self- and cross-attention
    encoders = (len(nodes) - 3 * decoders) // 2
    names = [f"encoder.{layer}.norm{i}" for layer in range(encoders) for i in (1, 2)]
    names += [f"decoder.{layer}.norm{i}" for layer in range(decoders) for i in (1, 2, 3)]
    return dict(zip(nodes, names, strict=True))


def _next_norm(node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], norms: Mapping[str, str]) -> str:
    """Name of the first LayerNormalization behind a node."""
    waiting = [node]
    for current in waiting:  # breadth first: `waiting` grows
        if current.name in norms:
            return norms[current.name]
        waiting += [reader for output in current.output for reader in readers.get(output, [])]
    raise GraphError(f"node {node.name} has no LayerNormalization behind it; is this a body?")


def groups_of(layers: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Nodes that do the same work at different depths: `encoder.linear2`, `decoder.attention.scores`, `out1`."""
    groups: dict[str, frozenset[str]] = {}
    for node, name in layers.items():
        group = re.sub(r"\.\d+\.", ".", name)
        groups[group] = groups.get(group, frozenset()) | {node}
    return groups


def named(nodes: Iterable[str], groups: Mapping[str, frozenset[str]], layers: Mapping[str, str]) -> tuple[str, ...]:
    """Names for people, sorted: of a group where it is complete, of layers otherwise."""
    chosen = frozenset(nodes)
    whole = {name: group for name, group in groups.items() if group <= chosen}
    rest = chosen.difference(*whole.values())
    return tuple(sorted({*whole, *(layers[node] for node in rest)}))
