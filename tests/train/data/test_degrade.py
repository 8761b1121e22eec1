"""Degraded photographs as files: what `evaluate` would restore, in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_triton.images import PHOTOS, read_rgb
from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import KNOWN_TASKS, find_task
from ipt_triton.train.data.degrade import SMALLEST, main
from ipt_triton.train.data.sets import load_sample


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for path, name in zip(sorted(PHOTOS.glob("*.png")), ("a.png", "deep/b.png"), strict=False):
        Image.open(path).crop((100, 100, 165, 150)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_files_hold_what_is_measured_on(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert main([str(photos), "--task", "sr_x3", "7", "--output", str(output)]) == 0
    for name in ("sr_x3", "dejpeg"):
        sample = load_sample(photos / "a.png", None, find_task(KNOWN_TASKS, name))
        np.testing.assert_array_equal(read_rgb(output / name / "a.png"), to_uint8(sample.degraded))
    assert sorted(p.relative_to(output).as_posix() for p in output.rglob("*.png")) == [
        "dejpeg/a.png",
        "dejpeg/deep/b.png",
        "sr_x3/a.png",
        "sr_x3/deep/b.png",
    ]


def test_a_seed_gives_others(photos: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in ("0", "1", "1"):
        output = tmp_path / str(len(pictures))
        assert main([str(photos), "--task", "denoise_30", "--seed", seed, "--output", str(output)]) == 0
        pictures.append(read_rgb(output / "denoise_30" / "a.png"))
    assert not np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[1], pictures[2])


def test_a_sheet_has_a_row_for_each_task(photos: Path, tmp_path: Path) -> None:
    sizes = []
    for tasks in (["derain"], ["derain", "real_x4", "auto"]):
        assert main([str(photos), "--task", *tasks, "--sheet", str(tmp_path / "sheet.png")]) == 0
        sizes.append(Image.open(tmp_path / "sheet.png").size)
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] - sizes[0][1] == 2 * (sizes[0][1] - 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "derain"], "where to"),
        (["--task", "derain", "--output", "out", "--seed", "-1"], "--seed -1 is not allowed"),
        (["--task", "derain", "--output", "out", "--seed", str(1 << 63)], "is not allowed"),
        (["--task", "derain", "--output", "out", "--sheet", "sheet.txt"], "does not end like an image file"),
        (["--task", "fog", "--output", "out"], "fog"),
        (["--task", "derain", "3", "--output", "out"], "a task is named twice"),
    ],
)
def test_what_cannot_be_done_is_said(
    photos: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    try:
        status = main([str(photos), *words])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status != 0 and said in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


def test_nothing_is_written_over(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(photos), "--task", "derain", "--output", str(tmp_path / "out")]
    assert (main(words), main(words)) == (0, 2)
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("height, status", [(SMALLEST - 1, 2), (SMALLEST, 0)])
def test_a_photograph_that_is_too_small_is_named(
    height: int, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, height)).save(tmp_path / "photos" / "thin.png")
    words = [
        str(tmp_path / "photos"),
        "--output",
        str(tmp_path / "out"),
        "--task",
        *(task.name for task in KNOWN_TASKS),
    ]
    assert main(words) == status
    assert ("thin.png is 40x31; a side must have 32 pixels or more" in capsys.readouterr().err) == (status == 2)
