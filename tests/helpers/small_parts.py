"""A parts folder of a small model with two tasks, exported once for all test files that ask for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.support import SMALL, small_model

from ipt_triton.export.parts.split import export_parts
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint

MODEL = small_model(config=replace(SMALL, tasks=SMALL.tasks[:2]))


def small_parts(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "small_parts"
    if not folder.exists():
        save_checkpoint(MODEL, folder / "checkpoint", provenance={"made_by": "tests"})
        export_parts([load_checkpoint(folder / "checkpoint")], folder / "parts")
    return folder / "parts"
