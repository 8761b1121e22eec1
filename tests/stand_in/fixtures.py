"""Fixtures: the stand-in GPU, parts for TensorRT, and engines that were built on it once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.small_engines import TypedParts
from helpers.support import SMALL, small_model
from stand_in.machine import BUILDER, BuiltEngines, Missing, StandIn, make_stand_in

from ipt_triton.export.parts.split import export_parts
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    try:
        return make_stand_in(tmp_path_factory.mktemp("driver"))
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def six_tasks(tmp_path_factory: pytest.TempPathFactory) -> TypedParts:
    """FP16 parts of a small model with all six tasks, for Triton's Python backend."""
    model = small_model(config=replace(SMALL, encoder_layers=1, decoder_layers=1))
    checkpoint = Checkpoint(model, content_hash(dict(model.state_dict())))
    folder = tmp_path_factory.mktemp("six_tasks") / "parts"
    return TypedParts(checkpoint, folder, export_parts([checkpoint], folder, "fp16", "tensorrt-python", max_batch=16))


@pytest.fixture(scope="session")
def built(stand_in: StandIn, six_tasks: TypedParts, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngines:
    """Engines of all parts, built as a person builds them."""
    folder = tmp_path_factory.mktemp("built") / "engines"
    done = stand_in.run(BUILDER, six_tasks.folder, "--output", folder, "--opt-batch", 8, "--json")
    assert done.returncode == 0, done.stderr
    return BuiltEngines(six_tasks, folder, done)
