"""Several processes: two of them on the CPU train what one trains with twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.training import one_thread

from ipt_triton.train.fit.pretrain import main
from ipt_triton.train.fit.state import read_state

pytest.importorskip("lightning_fabric")


def arguments(photos: Path, output: Path) -> list[str]:
    # Without the contrastive loss, whose negatives are those of one micro-batch. Random weights change in every layer.
    fixed = ["--tasks", "derain", "denoise_30", "denoise_50", "--precision", "fp32", "--contrastive", "0"]
    return ["--data", str(photos), "--output", str(output), *fixed, "--batch", "2", "--device", "cpu", "--steps", "3"]


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_batch(photos: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launcher, "-m", "ipt_triton.train", "pretrain", *arguments(photos, tmp_path / "two")],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    with one_thread():
        assert main([*arguments(photos, tmp_path / "one"), "--accumulate", "2"]) == 0
    one, two = (read_state(tmp_path / name / "state.pt") for name in ("one", "two"))
    assert (one["step"], two["step"], two["recipe"]["processes"]) == (3, 3, 2)
    assert one["provenance"]["patches"] == two["provenance"]["patches"] == 12
    moved = 0.0
    for kind in ("model", "average"):
        for name, tensor in one[kind].items():
            torch.testing.assert_close(two[kind][name], tensor, rtol=0, atol=1e-6, msg=f"{kind} {name}")
    for number, moments in one["optimiser"]["state"].items():
        moved += moments["exp_avg"].abs().sum().item()
        other = two["optimiser"]["state"][number]["exp_avg"]
        torch.testing.assert_close(other, moments["exp_avg"], rtol=1e-3, atol=1e-7)
    assert moved > 0 and one["optimiser"]["state"].keys() == two["optimiser"]["state"].keys()
    assert one["quality"]["held_out_psnr_rgb"] == pytest.approx(two["quality"]["held_out_psnr_rgb"], abs=2e-3)
