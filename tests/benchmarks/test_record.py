"""What every benchmark shares: spreads, the record and its file, tables, and the load of the machine."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmarks import MACHINE
from matplotlib.figure import Figure
from PIL import Image

from ipt_triton.benchmarks import presentation, record
from ipt_triton.benchmarks.record import Record, Session, Spread
from ipt_triton.benchmarks.serving import startup
from ipt_triton.export.parts.calibration import CalibrationError
from ipt_triton.export.repository.plans import RepositoryError


@pytest.mark.parametrize("values", [[5.0, 1.0, 2.0, 4.0, 3.0], [2.0, 4.0], [0.3, 0.1, 0.2, 0.7]])
def test_the_spread_is_median_and_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.runs == len(values)
    np.testing.assert_allclose([spread.low, spread.median, spread.high], np.percentile(values, [25, 50, 75]))


def test_one_measurement_has_no_width() -> None:
    assert Spread.of([0.25]) == Spread(0.25, 0.25, 0.25, 1)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = Record("engines", ["python"], MACHINE, {"σ": [1, 2.5, None]})
    written.save(tmp_path / "new" / "record.json")
    assert Record.load(tmp_path / "new" / "record.json") == written


@pytest.mark.parametrize("text", ["[1, 2]", '{"benchmark": "engines"}', "{", "3"])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json is not a record of a benchmark"):
        Record.load(path)


def test_the_footnote_tells_machine_load_versions_and_command() -> None:
    quiet = Record("engines", ["python", "-m", "x"], MACHINE, {}).footnote
    assert quiet.startswith(
        "some CPU, 2 cores; no other work on the machine; Python 3.11.7, numpy 1.26.4; commit abc1234."
    )
    assert quiet.endswith("\n\n    python -m x")
    busy = Record("engines", [], {**MACHINE, "busy_cores_after": 1.5}, {}).footnote
    assert "busy machine: other work on 0.02 to 1.5 cores" in busy


def test_a_session_records_the_command_and_what_the_figures_depend_on() -> None:
    made = Session.start("engines", ["--batch", "3"], ("numpy",), gpu="none").record({"a": 1})
    assert made.command == ["ipt-benchmark", "engines", "--batch", "3"]
    assert made.machine["versions"]["numpy"] == np.__version__ and made.machine["gpu"] == "none"
    assert made.machine["busy_cores_before"] >= 0 and made.machine["busy_cores_after"] >= 0
    assert made.figures == {"a": 1} and made.footnote


def _spin() -> None:
    while True:
        pass


@pytest.mark.slow
def test_work_of_others_is_seen() -> None:
    before = statistics.median(record.busy_cores(0.3) for _ in range(3))
    spinner = multiprocessing.get_context("spawn").Process(target=_spin)
    spinner.start()
    try:
        time.sleep(1)
        during = statistics.median(record.busy_cores(0.3) for _ in range(3))
    finally:
        spinner.kill()
        spinner.join()
    assert during >= min(before + 0.4, 0.9 * (os.cpu_count() or 1))


def test_columns_of_numbers_stand_to_the_right() -> None:
    lines = presentation.table(("name", "value", "share"), [("a1", "3.5 [3, 4]", "–"), ("b", 12, "5 %")]).splitlines()
    assert lines == ["| name | value | share |", "| --- | --: | --: |", "| a1 | 3.5 [3, 4] | – |", "| b | 12 | 5 % |"]


def test_publishing_prints_and_writes_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(shown: Record) -> Figure:
        drawn, ax = presentation.figure()
        ax.plot([1, 2], shown.figures["y"])
        return drawn

    parser = record.command_line("engines", "One sentence.\n\n    an example\n")
    files = ["--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "plots" / "r.png")]
    arguments: argparse.Namespace = parser.parse_args(files)
    made = Record("engines", ["python"], MACHINE, {"y": [1, 2]})
    record.publish(made, arguments, lambda shown: f"y is {shown.figures['y']}", draw)
    assert capsys.readouterr().out == f"y is [1, 2]\n\n{made.footnote}\n"
    assert Record.load(tmp_path / "r.json") == made
    assert Image.open(tmp_path / "plots" / "r.png").size == (910, 520)
    assert "an example" in parser.format_help()


@pytest.mark.parametrize("error", [RepositoryError("two plans for the part body"), CalibrationError("no photographs")])
def test_what_the_export_refuses_ends_a_benchmark_with_a_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: argparse.Namespace) -> dict[str, object]:
        raise error

    monkeypatch.setattr(startup, "measure", refuse)
    assert startup.main(["--preset", "ipt-tiny"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.splitlines()[-1] == f"error: {error}"
