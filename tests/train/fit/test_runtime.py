"""Several processes: two of them on the CPU, one of which dies, train what one trains with twice the batch."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import dying_process, parted_process, watched_process
from helpers.training import one_thread

from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.data.feed import Sampler, WorkerFeed
from ipt_triton.train.data.pack import main as pack
from ipt_triton.train.data.shards import read_index
from ipt_triton.train.errors import DataError, StateError, TrainingError
from ipt_triton.train.fit.command import HELD_OUT, open_data, run
from ipt_triton.train.fit.pretrain import main, parse_arguments
from ipt_triton.train.fit.runtime import Runtime, open_runtime
from ipt_triton.train.fit.state import read_state

pytest.importorskip("lightning_fabric")


def arguments(photos: Path, output: Path) -> list[str]:
    # Without the contrastive loss, whose negatives are those of one micro-batch. Random weights change in every layer.
    fixed = ["--tasks", "derain", "denoise_30", "denoise_50", "--precision", "fp32", "--contrastive", "0"]
    return ["--data", str(photos), "--output", str(output), *fixed, "--batch", "2", "--device", "cpu", "--steps", "3"]


def test_each_of_several_processes_reads_files_of_its_own(photos: Path, tmp_path: Path) -> None:
    args = parse_arguments([*arguments(photos, tmp_path), "--workers", "1"])
    shares = []
    for rank in range(3):
        runtime = Runtime(torch.device("cpu"), rank, 3)
        feed, _, described = open_data(args, Sampler(OFFICIAL_TASKS[:1]), 24, runtime)
        assert isinstance(feed, WorkerFeed)
        shares.append({photograph.path for photograph in feed.photographs})
    assert sum(map(len, shares)) == len(set().union(*shares)) == described["photographs"]
    assert min(map(len, shares)) > 0
    with pytest.raises(DataError, match="are too few for 1000 processes"):
        open_data(args, Sampler(OFFICIAL_TASKS[:1]), 24, Runtime(torch.device("cpu"), 0, 1000))


def test_what_torchrun_starts_again_goes_on_and_no_other_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_arguments(arguments(tmp_path / "no-photos", tmp_path))

    def begin(launch: str) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
        run(args, open_runtime("cpu", 1), torch.nn.Identity(), (), {})  # type: ignore[arg-type]

    def write(launch: str) -> None:
        (tmp_path / "recipe.json").write_text(json.dumps({"launch": launch}))

    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # says nothing: what was refused is started again too
    (tmp_path / "state.pt").write_bytes(b"")
    for there in ("", "other", "none"):
        write(there)
        with pytest.raises(TrainingError, match="add --resume to continue that run"):
            begin("ours" if there else "")
    for launch, wrote in (("ours", "ours"), ("none", f"{socket.gethostname()} {os.getppid()}")):
        write(wrote)
        with pytest.raises(StateError, match="is damaged"):  # so it was read
            begin(launch)
    args.resume = True
    (tmp_path / "state.pt").unlink()
    with pytest.raises(StateError, match="nothing to resume"):
        begin("ours")


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with processes of one thread each."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def torchrun(*words: str) -> str:
    """Run a script in two processes; what they say on standard error."""
    ended = start(*TORCHRUN, *words)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("few_held_out_crops")
def test_two_processes_of_which_one_dies_train_what_one_trains_with_twice_the_batch(
    photos: Path, tmp_path: Path
) -> None:
    command = [*arguments(photos, tmp_path / "two"), "--interval", "0s", "--activation-checkpointing"]
    told = torchrun("--max-restarts", "1", dying_process.__file__, *command)
    assert "exitcode: -9" in told
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


@pytest.mark.slow
def test_each_of_two_processes_opens_shards_of_its_own_alone(photos: Path, tmp_path: Path) -> None:
    assert pack([str(photos), "--output", str(tmp_path / "photos.tar"), "--shards", "4", "--min-side", "48"]) == 0
    shards = sorted(tmp_path.glob("*.tar"))
    command = arguments(photos, tmp_path / "run")
    command[1:2] = map(str, shards)
    torchrun(watched_process.__file__, str(tmp_path / "opened"), *command, "--workers", "1")
    opened = [line.split(" ", 1) for line in (tmp_path / "opened").read_text().splitlines()]
    for rank in (0, 1):
        assert {Path(path) for by, path in opened if by == str(rank)} == set(shards[rank::2])
    assert len(opened) > 2 * len(shards)  # not for the index alone
    state = read_state(tmp_path / "run" / "state.pt")
    assert state["step"] == 3
    assert state["provenance"]["data"]["photographs"] == sum(len(read_index(s)) for s in shards) - HELD_OUT


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, []], ids=["torchrun", "our own"])
def test_what_one_process_alone_misses_ends_both_with_its_sentence(
    photos: Path, tmp_path: Path, launcher: list[str]
) -> None:
    ended = start(*launcher, parted_process.__file__, *arguments(photos, tmp_path / "run"), "--devices", "2")
    missing = f"{photos}-not-mounted is not a folder"
    assert f"error: {missing}" in ended.stderr and "Connection closed by peer" not in ended.stderr
    if launcher:  # which ends the other one if it is not quick
        assert re.search(r"Root Cause.*\n(.*\n){3}.*rank +: [01] .*\n.*exitcode +: 2 ", ended.stderr), ended.stderr
    else:
        assert f"error: process 1 of 2, on {socket.gethostname()}: {missing}" in ended.stderr
        assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()
