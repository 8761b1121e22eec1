"""The same checkpoint gives the same parts, and parts the same pixels, in any process of one machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.support import SMALL, small_model

from ipt_triton.export.parts.one_core import core
from ipt_triton.export.parts.parity import real_tiles
from ipt_triton.export.parts.split import export_parts
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint

TESTS = Path(__file__).parents[2]
SIDE = 24


def export_and_restore(checkpoint: Path, folder: Path) -> None:
    """Write parts with their reference tensors, and the tiles that they restore one after the other."""
    export_parts([load_checkpoint(checkpoint)], folder / "parts", runtime="tensorrt")
    tensors = [real_tiles(SIDE)]
    for name in ("head_derain", "body", "tail_derain"):
        part = core().compile_model(folder / "parts" / f"{name}.onnx", "CPU")
        tensors = list(part(tensors).values())
    (folder / "restored").write_bytes(tensors[0].tobytes())


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_two_processes_export_and_restore_the_same_bytes(tmp_path: Path) -> None:
    config = replace(SMALL, patch_size=SIDE, encoder_layers=1, decoder_layers=0, tasks=(SMALL.tasks[3],))
    save_checkpoint(small_model(config=config), tmp_path / "checkpoint")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    code = f"""
import sys
sys.path[:0] = {[str(TESTS), str(Path(__file__).parent), str(TESTS.parent / "src")]}
from pathlib import Path
from test_reproducible import export_and_restore
export_and_restore(Path({str(tmp_path / "checkpoint")!r}), Path({str(tmp_path / "there")!r}))
"""
    other = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"})
    export_and_restore(tmp_path / "checkpoint", tmp_path / "here")
    assert other.wait(timeout=300) == 0
    found = hashes(tmp_path / "here")
    assert {"parts/body.onnx", "parts/manifest.json", "parts/samples.npz", "restored"} <= found.keys()
    assert found == hashes(tmp_path / "there")
