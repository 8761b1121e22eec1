"""`triton_python_backend_utils` as far as our models use it, so that they run outside of Triton."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ipt_triton import board, seal, tiling


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self._values = name, values

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError(Exception):
    INVALID_ARG, INTERNAL, UNAVAILABLE, CANCELLED = "INVALID_ARG", "INTERNAL", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        super().__init__(message)
        self.code = code

    def message(self) -> str:
        return str(self)


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = {tensor.name: tensor for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].as_numpy()

    def get(self, name: str) -> Tensor | None:
        return self._tensors.get(name)


class Request:
    """A request to a model, of arrays by name."""

    def __init__(self, outputs: Sequence[str] = (), **inputs: np.ndarray) -> None:
        self._outputs, self._tensors = list(outputs), {name: Tensor(name, x) for name, x in inputs.items()}
        self.sent: dict[str, object] = {}

    def get(self, name: str) -> Tensor | None:
        return self._tensors.get(name)

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def is_cancelled(self) -> bool:
        return False

    def parameters(self) -> str:
        return json.dumps(self.sent)

    def request_id(self) -> str:
        return "the request"

    def trace(self) -> str:
        return "its trace"


class TritonModelException(Exception):
    pass


class MetricFamily:
    """Keeps what its metrics have counted in `counted`, by name and values of labels."""

    GAUGE = COUNTER = 0
    counted: dict[tuple[str, ...], float]

    def __init__(self, name: str, **_: object) -> None:
        self._name = name

    def Metric(self, labels: dict[str, str]) -> SimpleNamespace:
        key, counted = (self._name, *labels.values()), self.counted
        counted[key] = 0

        def increment(value: float) -> None:
            counted[key] += value

        return SimpleNamespace(increment=increment)


Network = Callable[[dict[str, np.ndarray]], InferenceResponse]


def load_model(source: Path, monkeypatch: pytest.MonkeyPatch, network: Network | None = None) -> ModuleType:
    """A model's module, with what lies beside it in a repository; its metrics are kept in `module.counted`.

    Args:
        network: answers to requests that the model sends on; they are kept in `module.asked`.
    """
    asked: list[dict[str, Any]] = []

    class InferenceRequest:
        def __init__(self, **arguments: Any) -> None:
            self.arguments = arguments

        async def async_exec(self) -> InferenceResponse:
            asked.append(self.arguments)
            assert network is not None
            return network({tensor.name: tensor.as_numpy() for tensor in self.arguments["inputs"]})

    utilities: Any = ModuleType("triton_python_backend_utils")
    utilities.Tensor, utilities.TritonError, utilities.InferenceResponse = Tensor, TritonError, InferenceResponse
    utilities.InferenceRequest = InferenceRequest
    utilities.TritonModelException = TritonModelException
    counted: dict[tuple[str, ...], float] = {}
    utilities.MetricFamily = type("MetricFamily", (MetricFamily,), {"counted": counted})
    utilities.PreferredMemory = lambda kind, number: (kind, number)
    utilities.TRITONSERVER_MEMORY_CPU = "CPU"
    utilities.Logger = SimpleNamespace(log_warn=lambda message: None)
    utilities.get_input_tensor_by_name = utilities.get_output_tensor_by_name = lambda found, name: found.get(name)
    for name, module in ((utilities.__name__, utilities), ("tiling", tiling), ("seal", seal), ("board", board)):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None and spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    found.asked, found.counted = asked, counted
    return found
