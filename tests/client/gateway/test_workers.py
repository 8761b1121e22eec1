"""Worker processes: what takes too much memory or time, or breaks them, is a problem of its caller alone."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_triton.client.gateway import codec, workers
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.problems import Problem
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.workers import Workers
from ipt_triton.client.photo import read_photo


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.png"
    Image.new("L", (9000, 9000)).save(path)
    return path


@pytest.mark.slow
def test_a_picture_that_needs_more_memory_than_allowed_is_refused(tmp_path: Path, large: Path):
    async def decode() -> int:
        pool = Workers(Settings(workers=1, worker_bytes=150 * 2**20), Measures())
        with pytest.raises(Problem, match="more memory") as refused:
            await pool.run(81_000_000, codec.decode, large, tmp_path, 10**8, "png")
        assert (await pool.run(0, codec.describe, large, 10**8)).width == 9000
        return refused.value.status

    assert asyncio.run(decode()) == 413


def test_what_takes_too_long_is_ended_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch):
    async def wait() -> tuple[str, int]:
        pool = Workers(Settings(workers=1), measures := Measures())
        await pool.start()
        monkeypatch.setattr(workers, "_BASE_S", 0.2)
        with pytest.raises(Problem) as refused:
            await pool.run(0, time.sleep, 60)
        monkeypatch.undo()
        assert b'ended_workers_total{reason="time"} 1.0' in measures.page()
        return str(refused.value), await pool.run(0, os.getpid)

    sentence, process = asyncio.run(wait())
    assert "took longer" in sentence and process != os.getpid()


def test_a_process_that_breaks_is_replaced():
    async def crash() -> int:
        pool = Workers(Settings(workers=1), Measures())
        with pytest.raises(Problem, match="broke the process") as refused:
            await pool.run(0, os.abort)
        await pool.run(0, os.getpid)
        return refused.value.status

    assert asyncio.run(crash()) == 422


def test_a_photo_comes_through_the_files_of_a_folder_as_it_was(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    exif = Image.Exif()
    exif[271] = "Camera"
    Image.fromarray(pixels).save(tmp_path / "upload", "PNG", dpi=(72, 72), exif=exif.tobytes())
    planes = codec.decode(tmp_path / "upload", tmp_path, 1000, "same")
    for number in range(planes):
        (tmp_path / f"plane{number}.npy").rename(tmp_path / f"restored{number}.npy")
    written = codec.encode(tmp_path, tmp_path / "result", "same", None, True, "derain")
    before, after = read_photo(tmp_path / "upload"), read_photo(tmp_path / "result")
    assert (planes, written.format, written.bytes) == (2, "png", (tmp_path / "result").stat().st_size)
    seen = before.alpha > 20  # colours that cannot be seen are not kept
    assert np.abs(before.pixels.astype(int) - after.pixels)[seen].max() <= 1
    np.testing.assert_array_equal(before.alpha, after.alpha)
    assert (before.exif, before.dpi) == (after.exif, after.dpi)
