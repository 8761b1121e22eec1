"""What `ipt-restore` costs: each part of the benchmark on small pictures, few files and real servers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.support import small_model

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.served import photograph
from ipt_triton.benchmarks.serving import client as benchmark
from ipt_triton.benchmarks.serving.router import null_server
from ipt_triton.service import MAX_BATCH
from ipt_triton.train.model.checkpoint import save_checkpoint
from ipt_triton.train.model.ipt import IPTConfig


def arguments(part: str, path: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(path.parent / "small"), "--only", part, "--json", str(path), *more]


@pytest.mark.slow
@pytest.mark.server
def test_cpu_time_and_served_time_of_a_photograph_are_told_apart_from_the_start(tmp_path: Path) -> None:
    config = IPTConfig(features=3, encoder_layers=1, decoder_layers=1, heads=3, tasks=(benchmark.DERAIN,))
    save_checkpoint(small_model(config=config), tmp_path / "small", provenance={"made_by": "tests"})
    path = tmp_path / "r.json"
    assert benchmark.main(arguments("cpu", path, "--tasks", "derain", "--photos", "1", "7")) == 0
    record = Record.load(path)
    (row,) = record.figures["cpu"]["rows"]
    cpu, wall, start = (row[f"{what}_s"]["median"] for what in ("cpu", "wall", "start"))
    # A start costs many times as much as a photograph, and not the same each time: the differences may be of any sign.
    assert abs(cpu) < start and math.isfinite(row["server_cpu_s"]["median"])
    assert row["share"]["median"] == pytest.approx(cpu / wall)
    assert "| derain |" in benchmark.markdown(record) and len(benchmark.draw(record).axes) == 1


@pytest.mark.slow
@pytest.mark.server
def test_a_large_picture_takes_bounded_memory_and_comes_out_as_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert benchmark.main(arguments("memory", path, "--megapixels", "3", "--message-mib", "3")) == 0
    record = Record.load(path)
    smallest, row = record.figures["memory"]["rows"]
    assert row["identical"] and row["blocks"][0] > 5 and row["blocks"][1] == 1 and smallest["blocks"] == [1, 1]
    # As for 300 megapixels, with room for the allocator's: see the record.
    assert 6 < benchmark.bytes_a_pixel([smallest], row) < 30
    assert "| the same bytes as in 1 |" in benchmark.markdown(record) and len(benchmark.draw(record).axes) == 1
    row["identical"] = False
    assert "| ANOTHER FILE as in 1 |" in benchmark.markdown(record)


@pytest.mark.server
def test_marks_tell_how_a_picture_was_cut() -> None:
    image = photograph(200, 150)
    with null_server([benchmark.DERAIN], MAX_BATCH, marks=True) as server, RestorationClient(server.grpc_url) as client:
        usual, again, otherwise = (client.restore(image, "derain", stride) for stride in (None, 40, 39))
    np.testing.assert_array_equal(usual, again)
    assert (usual != otherwise).mean() > 0.5 and (usual != image).mean() > 0.5


@pytest.mark.slow
@pytest.mark.server
def test_a_plan_of_many_files_is_timed_to_the_first_result_and_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert benchmark.main(arguments("planning", path, "--files", "12000")) == 0
    record = Record.load(path)
    figures = record.figures["planning"]
    assert min(figures["first_s"], figures["every_s"]) > 0
    assert 20 < figures["first_peak_mib"] < 200 and 20 < figures["every_peak_mib"] < 200
    assert "A folder of 12000 photographs: the first result " in benchmark.markdown(record)
    assert len(benchmark.draw(record).axes) == 1


def test_a_command_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"ipt-restore ended with 2: .*is not there"):
        benchmark.run_command("localhost:1", tmp_path / "none.png", "-t", "derain", "-o", tmp_path)


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, sentence in (
        (["--photos", "5", "5"], "--photos takes two numbers, the larger one last"),
        (["--megapixels", "600"], "--megapixels 600 is not allowed; a picture has"),
        (["--files", "1"], "--files 1 is not allowed; give 2 or more"),
    ):
        with pytest.raises(SystemExit, match="2"):
            benchmark.main(["--preset", "ipt-tiny", *words])
        assert sentence in capsys.readouterr().err
