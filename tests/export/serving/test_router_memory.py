"""The router asks for results where numpy can read them; Triton's module is a stand-in that records the question."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from ipt_triton import tiling
from ipt_triton.export.repository.write import ROUTER_SOURCE


class Recorded:
    """Takes any arguments, as the names of `triton_python_backend_utils` do, and keeps them."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named = arguments, named


class Request(Recorded):
    asked: ClassVar[list[Request]] = []

    async def async_exec(self) -> Request:
        self.asked.append(self)
        return self

    def has_error(self) -> bool:
        return False


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The router's module, outside of Triton."""
    utilities: Any = ModuleType("triton_python_backend_utils")
    utilities.InferenceRequest = Request
    utilities.Tensor = utilities.PreferredMemory = Recorded
    utilities.TRITONSERVER_MEMORY_CPU = "CPU"
    utilities.get_output_tensor_by_name = lambda response, name: response
    Request.as_numpy = lambda self: np.zeros(1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, utilities.__name__, utilities)
    monkeypatch.setitem(sys.modules, "tiling", tiling)
    spec = importlib.util.spec_from_file_location("router", ROUTER_SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_patches_are_asked_for_in_the_memory_of_the_cpu_where_tensorrt_would_leave_them_on_the_gpu(
    router: ModuleType,
) -> None:
    Request.asked.clear()
    asyncio.run(router._restore_patches("ipt_derain", np.zeros((2, 3, 48, 48), np.float32)))
    (request,) = Request.asked
    assert request.named["preferred_memory"].arguments == ("CPU", 0)
