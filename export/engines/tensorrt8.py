"""What TensorRT 8.6 alone needs: it is told the precision by flags, and the types of an FP16 graph layer by layer.

Python 3.9 syntax.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.manifest import Layer

if TYPE_CHECKING:
    import tensorrt as trt


def flags_8(asked: str, graph: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the network flags and of the builder flags, for a precision and that of the graph.

    Raises:
        EngineError: TensorRT 8.6 cannot compute this graph so; names the remedy.
    """
    if "bf16" in (asked, graph):
        raise EngineError("TensorRT 8.6 computes no BF16: use TensorRT 10 or newer, or export FP16 parts")
    if asked == "fp32" and graph != "fp32":
        raise EngineError(f"the parts are {graph.upper()} and FP32 was asked for: export them with --precision fp32")
    if asked == "fp32":
        return ("EXPLICIT_BATCH",), ()
    # Preferred, not obeyed: where no kernel fits, a slower or less exact one serves, and the parity check measures it.
    return ("EXPLICIT_BATCH",), ("FP16", "PREFER_PRECISION_CONSTRAINTS") if graph == "fp16" else ("FP16",)


def pin_types(lib: ModuleType, network: trt.INetworkDefinition, layers: Sequence[Layer]) -> None:
    """Tell TensorRT to compute each layer of a typed graph in the type that its node writes.

    The parser names layers after nodes. Where one node becomes several layers, it appends `_` and a number to the name
    of all but the first (onnx-tensorrt, `ImporterContext::registerLayer`). Layers that only move data choose for
    themselves.

    Raises:
        EngineError: no layer has the name of a node.
    """
    kinds = {"fp32": lib.DataType.FLOAT, "fp16": lib.DataType.HALF}
    moving = {
        lib.LayerType.CONSTANT,
        lib.LayerType.SHUFFLE,
        lib.LayerType.CONCATENATION,
        lib.LayerType.SLICE,
        lib.LayerType.SHAPE,
        lib.LayerType.CAST,
        lib.LayerType.IDENTITY,
    }
    types = {layer.name: layer.type for layer in layers}
    pinned = 0
    for index in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(index)
        kind = kinds.get(_type_of(layer.name, types))
        if kind is not None and layer.type not in moving:
            layer.precision = kind
            layer.set_output_type(0, kind)
            pinned += 1
    if not pinned:
        raise EngineError("no layer that TensorRT's parser made has the name of a node of the graph")


def _type_of(layer: str, types: Mapping[str, str]) -> str:
    """The type of the node that a layer was made for; empty when there is none."""
    return types.get(layer) or types.get(re.sub(r"_\d+$", "", layer), "")
