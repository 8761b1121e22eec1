"""What cutting and joining cost: measured, recorded and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import joiner


def test_each_case_has_its_costs_a_patch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "joiner.json"
    assert joiner.main(["--sides", "100", "--scales", "1", "3", "--runs", "2", "--json", str(path)]) == 0
    record = Record.load(path)
    rows = record.figures["rows"]
    assert [(row["image"], row["answers"], row["scale"]) for row in rows] == [
        (image, answers, scale)
        for image in ("uint8", "uint16")
        for answers in ("float32", "float16")
        for scale in (1, 3)
    ]
    for row in rows:
        assert row["patches"] == 9 and row["ratio"]["runs"] == 2
        assert min(row[name]["median"] for name in ("cut", "join", "pass", "ratio")) > 0
    assert "| 100 | uint8 | float32 | x1 |" in capsys.readouterr().out
    assert len(joiner.draw(record).axes[0].lines) == 4


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        joiner.main(["--runs", "0"])
    assert "--runs take whole numbers above 0" in capsys.readouterr().err
