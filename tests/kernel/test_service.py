"""What a router says of itself, as the export writes it and clients read it."""

from __future__ import annotations

import json

import pytest

from ipt_triton.service import (
    GPU_CHUNK_BYTES,
    ServiceError,
    ServiceInfo,
    ensemble_name,
    gpu_batch,
    graph_batches,
)
from ipt_triton.tasks import KNOWN_TASKS, OFFICIAL_TASKS

INFO = ServiceInfo(KNOWN_TASKS, 48, 40, 46, 64_000_000, 256_000_000, 444_444, "ab", "openvino", "bf16")


def test_parameters_read_back_are_the_same() -> None:
    parameters = INFO.to_parameters()
    assert all(isinstance(value, str) for value in parameters.values())
    assert ServiceInfo.from_parameters(parameters) == INFO
    assert ServiceInfo.from_parameters({**parameters, "generated_by": "ipt-export"}) == INFO


@pytest.mark.parametrize(
    ("name", "value"), [("tasks", None), ("stride", None), ("keep", "wide"), ("tasks", "[{}]"), ("tasks", "{")]
)
def test_parameters_that_lack_something_are_refused_by_name(name: str, value: str | None) -> None:
    parameters = {k: v for k, v in {**INFO.to_parameters(), name: value}.items() if v is not None}
    with pytest.raises(ServiceError, match="the model 'restore' does not describe its tasks"):
        ServiceInfo.from_parameters(parameters)


def test_tasks_of_a_newer_server_are_read_as_far_as_they_are_known() -> None:
    table = [
        {"id": 9, "name": "dehaze", "kind": "dehaze", "scale": 8, "sigma": 0.5, "haze": 0.5},
        {"id": 3, "name": "derain", "kind": "derain", "scale": 1, "sigma": 0, "quality": 0, "drops": True},
    ]
    info = ServiceInfo.from_parameters({**INFO.to_parameters(), "tasks": json.dumps(table)})
    assert info.tasks[1] == OFFICIAL_TASKS[3]
    dehaze = info.tasks[0]
    assert (dehaze.id, dehaze.name, dehaze.kind, dehaze.scale, dehaze.sigma) == (9, "dehaze", "dehaze", 8, 0.5)
    assert [ensemble_name(task.name) for task in info.tasks] == ["ipt_dehaze", "ipt_derain"]


@pytest.mark.parametrize(
    ("megabytes", "batch"), [(0.1, 256), (0.6, 128), (1.35, 64), (3, 32), (100, 8)]
)  # 0.6: ipt-tiny at x4, 1.35: the paper's model
def test_a_gpus_batch_is_a_power_of_two_whose_tensors_fit(megabytes: float, batch: int) -> None:
    patch = int(megabytes * 2**20)
    assert gpu_batch(patch) == batch
    assert batch == 8 or batch * patch <= GPU_CHUNK_BYTES


def test_small_batches_every_eighth_and_the_largest_have_a_cuda_graph() -> None:
    assert graph_batches(5) == (1, 2, 3, 4, 5)
    assert graph_batches(20) == (1, 2, 3, 4, 5, 6, 7, 8, 16, 20)
