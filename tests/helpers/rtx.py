"""What NVIDIA's builder says of an engine, layer by layer, for tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from ipt_triton.export.engines.library import RTX, Library, load_library
from ipt_triton.export.engines.metadata import EngineError


def require_rtx() -> Library:
    """TensorRT for RTX; the test is left out where it is not installed."""
    try:
        return load_library(RTX)
    except EngineError as error:
        pytest.skip(str(error))


@dataclass(frozen=True)
class EngineLayer:
    """A layer of an engine: its kernel's name, the ONNX nodes it computes, and the types of what it reads."""

    name: str
    kind: str
    nodes: tuple[str, ...]
    types: frozenset[str]

    @classmethod
    def of(cls, entry: dict[str, Any]) -> EngineLayer:
        ports = (*entry["Inputs"], *entry["Constants"])
        nodes = tuple(re.findall(r"\[ONNX Layer: (.*?)\]", entry["Metadata"]))
        return cls(entry["Name"], entry["LayerType"], nodes, frozenset(port["Datatype"] for port in ports))


def computing(layers: Sequence[EngineLayer], nodes: set[str]) -> list[EngineLayer]:
    """The layers that compute some of the nodes."""
    return [layer for layer in layers if nodes & set(layer.nodes)]
