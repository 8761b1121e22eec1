"""What TensorRT 8.6 is told layer by layer, on a network that answers as its parser does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.engines.tensorrt8 import pin_types
from ipt_triton.manifest import Layer

KINDS = (
    "CONSTANT",
    "SHUFFLE",
    "CONCATENATION",
    "SLICE",
    "SHAPE",
    "CAST",
    "IDENTITY",
    "MATRIX_MULTIPLY",
    "NORMALIZATION",
)
LIB: Any = SimpleNamespace(
    DataType=SimpleNamespace(FLOAT="float", HALF="half"), LayerType=SimpleNamespace(**{kind: kind for kind in KINDS})
)


class Network:
    """A weakly typed network: every tensor is FP32, whatever the graph says."""

    def __init__(self, *layers: tuple[str, str]):
        self.layers = [SimpleNamespace(name=name, type=kind, precision=None, output=None) for name, kind in layers]
        self.num_layers = len(layers)
        for layer in self.layers:
            layer.set_output_type = lambda index, kind, layer=layer: setattr(layer, "output", (index, kind))

    def get_layer(self, index: int) -> SimpleNamespace:
        return self.layers[index]


def pinned(network: Network) -> dict[str, object]:
    return {layer.name: layer.precision for layer in network.layers if layer.precision}


def test_a_layer_gets_the_type_that_its_node_writes() -> None:
    nodes = (
        Layer("linear", "MatMul", "fp16"),
        Layer("norm", "LayerNormalization", "fp32"),
        Layer("shape", "Shape", "int64"),
    )
    network = Network(
        ("linear", "MATRIX_MULTIPLY"),
        ("norm", "NORMALIZATION"),
        ("norm_17", "MATRIX_MULTIPLY"),  # the second layer that the parser made of one node
        ("shape", "MATRIX_MULTIPLY"),
        ("(Unnamed Layer* 4) [Shuffle]", "MATRIX_MULTIPLY"),
    )
    pin_types(LIB, network, nodes)  # type: ignore[arg-type]
    assert pinned(network) == {"linear": "half", "norm": "float", "norm_17": "float"}
    assert network.layers[0].output == (0, "half")


def test_a_node_whose_own_name_ends_in_a_number_is_not_taken_for_another_ones_second_layer() -> None:
    network = Network(("linear", "MATRIX_MULTIPLY"), ("linear_1", "MATRIX_MULTIPLY"))
    pin_types(LIB, network, (Layer("linear", "MatMul", "fp32"), Layer("linear_1", "MatMul", "fp16")))  # type: ignore[arg-type]
    assert pinned(network) == {"linear": "float", "linear_1": "half"}


def test_layers_that_move_data_choose_for_themselves() -> None:
    network = Network(*((kind.lower(), kind) for kind in KINDS))
    pin_types(LIB, network, [Layer(kind.lower(), "Any", "fp16") for kind in KINDS])  # type: ignore[arg-type]
    assert set(pinned(network)) == {"matrix_multiply", "normalization"}


def test_a_network_that_does_not_know_the_graphs_names_is_refused() -> None:
    with pytest.raises(EngineError, match="no layer that TensorRT's parser made has the name of a node"):
        pin_types(LIB, Network(("other", "MATRIX_MULTIPLY")), [Layer("linear", "MatMul", "fp16")])  # type: ignore[arg-type]
