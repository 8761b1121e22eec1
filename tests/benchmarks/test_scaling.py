"""The benchmarks of growth, start and large photographs: each part on a small model and a real server."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from helpers.support import small_model

from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import large_image, memory, scaling, startup
from ipt_triton.train.model.checkpoint import save_checkpoint
from ipt_triton.train.model.ipt import PRESETS, IPTConfig

TINY = IPTConfig(features=3, encoder_layers=1, decoder_layers=1, heads=3)


@pytest.fixture(autouse=True)
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "ipt-tiny", TINY)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one task: fewer parts to export and to start."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(small_model(config=replace(TINY, tasks=(scaling.TASK,))), folder, provenance={"made_by": "tests"})
    return folder


def measured(path: Path, *arguments: str) -> list[dict]:
    part = arguments[0]
    assert scaling.main(["--only", part, "--points", *arguments[1:], "--seconds", "0.2", "--json", str(path)]) == 0
    record = Record.load(path)
    assert list(record.figures["parts"]) == [part]
    assert len(scaling.draw(record).axes) == 2
    return record.figures["parts"][part]


@pytest.mark.server
def test_the_cost_of_sides_is_measured_from_the_smallest_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(tmp_path / "r.json", "side", "200", "48")
    assert [(row["side"], row["patches"]) for row in rows] == [(48, 1), (200, 25)]
    assert all(set(row["growth_mib"]) == {"router", "server", "client"} for row in rows)
    seconds = rows[0]["seconds"]
    assert 0 < seconds["low"] <= seconds["median"] and 1 <= seconds["runs"] <= scaling.MOST_RUNS
    lines = capsys.readouterr().out.splitlines()
    cells = next(line for line in lines if line.startswith("| 200 |")).split(" | ")
    assert cells[1] == "1.44"  # 25 tiles of 48x48 for 200x200 pixels
    assert float(cells[3]) == pytest.approx(rows[1]["seconds"]["median"] / 0.04, rel=0.01)


@pytest.mark.server
def test_every_level_of_concurrency_is_kept_up(tmp_path: Path) -> None:
    rows = measured(tmp_path / "r.json", "concurrency", "1", "3")
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        # Little's law: so many under way at all times, whatever the speed.
        under_way = row["photos_per_s"]["median"] * row["latency_ms"]["mean"] / 1e3
        assert under_way == pytest.approx(row["concurrency"], rel=0.35)


@pytest.mark.server
def test_a_task_more_adds_memory_and_no_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = measured(tmp_path / "r.json", "tasks", "1", "2")
    assert rows[1]["processes"] == rows[0]["processes"]
    added = rows[1]["memory_mib"] - rows[0]["memory_mib"]
    assert abs(added) < 100  # on a busy machine levels differ by some MiB
    assert f"a task more takes {added} MiB" in capsys.readouterr().out


def test_points_need_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--points", "3"])
    assert "--points belongs to a part" in capsys.readouterr().err


@pytest.mark.server
def test_start_up_is_timed_and_every_process_counted(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert startup.main(["--checkpoint", str(checkpoint), "--runs", "1", "--json", str(path)]) == 0
    record = Record.load(path)
    assert all(record.figures["seconds_to_ready"][which]["runs"] == 1 for which in ("first", "later"))
    processes = record.figures["processes"]
    assert {kind: p["count"] for kind, p in processes.items()} == {
        "tritonserver": 1,
        "routers": 14,
        "bodies": 2,
    }
    assert all(p["memory_mib"] > 5 for p in processes.values())
    assert len(startup.draw(record).axes) == 2


@pytest.mark.server
def test_small_photographs_are_timed_beside_a_large_one(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    arguments = ["--checkpoint", str(checkpoint), "--side", "1500", "--requests", "2"]
    assert large_image.main([*arguments, "--json", str(path)]) == 0
    record = Record.load(path)
    held = record.figures["memory"]
    assert held["identical"]
    # The client holds what it sent and what came back, and no more than a few copies.
    assert 2 * held["image_mib"] < held["growth_mib"]["client"]["resident"] + 4 < 12 * held["image_mib"]
    latency = record.figures["latency"]
    assert 0 < latency["alone_s"]["p25"] <= latency["alone_s"]["p50"] <= latency["alone_s"]["p95"]
    assert f"| p50 | {latency['alone_s']['p50']:.3f} |" in capsys.readouterr().out
    assert len(large_image.draw(record).axes) == 2


def test_a_watch_sees_memory_that_is_gone_again() -> None:
    watch = memory.Watch([])
    # A mapping of its own: what numpy frees may stay with the allocator, depending on what ran before.
    with watch, mmap.mmap(-1, 64 * memory.MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)  # takes every page
        time.sleep(0.3)
    held = watch.growth()["client"]["own"]
    with watch:
        time.sleep(0.2)
    assert held >= 60 and held - watch.growth()["client"]["own"] >= 40  # other threads may take some meanwhile


def test_processes_are_named_by_their_program_and_ended_ones_are_gone() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        while memory.process_name(sleeper.pid) == "":  # it has no command line yet
            time.sleep(0.01)
        assert memory.process_name(sleeper.pid) == Path(sys.executable).name
        process = psutil.Process(sleeper.pid)
        assert 0 < memory.proportional([sleeper.pid]) <= memory.resident(process)[0]
    finally:
        sleeper.kill()
        sleeper.wait()
    assert memory.process_name(sleeper.pid) == "gone"
    assert memory.proportional([sleeper.pid]) == 0 and memory.resident(process) == (0, 0)
