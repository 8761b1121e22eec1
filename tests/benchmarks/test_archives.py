"""What Ray costs: ipt-batch and a plain loop through a real server without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import archives


@pytest.mark.slow
@pytest.mark.server
def test_both_ways_restore_all_photos_and_their_rates_are_compared(tmp_path: Path) -> None:
    path = tmp_path / "archives.json"
    words = ["--null", "--photos", "20", "--size", "60x40", "--rounds", "1", "--json", str(path)]
    assert archives.main(words) == 0
    record = Record.load(path)
    rates = {way: spread["median"] for way, spread in record.figures["photos_per_s"].items()}
    overhead = record.figures["overhead"]["median"]
    assert overhead == pytest.approx(1 - rates["ipt-batch"] / rates["plain loop"]) and min(rates.values()) > 0
    assert "20 photos of 60x40, 2 processes" in archives.markdown(record)
    assert len(archives.draw(record).axes[0].patches) == 2


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)ipt-batch ended with status 2: .*--every -1 is not allowed"):
        archives.with_ray([str(tmp_path), str(tmp_path / "out"), "-t", "derain", "--every", "-1"])
