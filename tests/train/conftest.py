"""Fixtures of several test files of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.training import one_thread, write_photographs

from ipt_triton.train.fit import validation
from ipt_triton.train.fit.command import HELD_OUT


@pytest.fixture(scope="module")
def repeatable() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def few_held_out_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not read the figures of a validation."""
    monkeypatch.setattr(validation, "VALIDATION_CROPS", 4)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs more than are held out."""
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, HELD_OUT + 3, side=100)
    return folder
