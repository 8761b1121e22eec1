"""What the path around the network costs, through a real server whose network only repeats pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import router
from ipt_triton.benchmarks.serving.router import TASKS, measure_case, null_server


@pytest.mark.slow
@pytest.mark.server
def test_rates_and_cpu_time_by_process_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "router.json"
    arguments = [
        "--chunks",
        "8",
        "--scales",
        "1",
        "2",
        "--sides",
        "130",
        "--concurrency",
        "2",
        "--seconds",
        "0.3",
        "--json",
        str(path),
    ]
    assert router.main(arguments) == 0
    record = Record.load(path)
    rows = record.figures["rows"]
    assert [(row["scale"], row["image"]) for row in rows] == [
        (scale, image) for scale in (1, 2) for image in ("uint8", "uint16")
    ]
    for row in rows:
        assert row["patches_per_s"]["median"] > 0 and row["cpu_us"]["router"] > 0 and router.per_core(row) > 0
    assert "| 8 | x2 | uint16 | 130 | 2 |" in capsys.readouterr().out
    assert len(router.draw(record).axes[0].patches) == len(rows) * len(router.ROLES)


@pytest.mark.slow
@pytest.mark.server
def test_images_of_any_size_come_back_with_their_pixels_repeated() -> None:
    rng = np.random.default_rng(0)
    with null_server([TASKS[3]], chunk=5) as server:
        for shape, dtype in (((1, 3000, 3), np.uint8), ((700, 60, 3), np.uint16)):
            image = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            assert measure_case(server, TASKS[3], image, 1, 0.05)["patches_per_s"]["median"] > 0


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        router.main(["--seconds", "0"])
    assert "--seconds take numbers above 0" in capsys.readouterr().err
