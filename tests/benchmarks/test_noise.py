"""The benchmark of denoising: its sky and what it measures there, and the command on a small model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.support import SMALL, read_image, small_model
from PIL import Image

from ipt_triton.benchmarks.quality import noise
from ipt_triton.benchmarks.record import Record
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.tiling import plan_axis
from ipt_triton.train.model.checkpoint import save_checkpoint


def test_tint_and_step_are_measured_in_grey_levels() -> None:
    clean = noise.sky()
    assert noise.tint(clean, clean) == noise.step(clean, clean) == 0
    blue = clean + np.array([0, 0, 3], np.uint8)
    assert noise.tint(blue, clean) == pytest.approx(3) and noise.step(blue, clean) == 0
    stepped = clean.copy()
    stepped[:, plan_axis(208)[2].low :] += 2
    assert noise.step(stepped, clean) == pytest.approx(2)
    between = clean.copy()
    between[:, plan_axis(208)[2].low + 20 :] += 2  # not where tiles meet
    assert noise.step(between, clean) == 0


def test_the_command_measures_every_strength_on_the_sky_and_on_photographs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(small_model(config=replace(SMALL, tasks=OFFICIAL_TASKS[4:])), tmp_path / "small")
    (tmp_path / "photos").mkdir()
    Image.fromarray(read_image("dog")[:60, :70]).save(tmp_path / "photos" / "dog.png")
    path, plot = tmp_path / "noise.json", tmp_path / "noise.png"
    arguments = ["--checkpoint", str(tmp_path / "small"), "--data", str(tmp_path / "photos"), "--sigma", "5"]
    assert noise.main([*arguments, "--json", str(path), "--plot", str(plot)]) == 0
    record = Record.load(path)
    assert noise.markdown(record) in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {(row["set"], row["sigma"]): row for row in record.figures["rows"]}
    assert list(rows) == [(name, sigma) for name in ("sky", "photos") for sigma in (0, 5)]
    assert record.figures["tasks"] == ["denoise_30", "denoise_50"]
    assert "input" not in rows["sky", 0] and rows["sky", 5]["input"] == pytest.approx(34.15, abs=0.2)
    assert rows["sky", 5]["non-local means"] > rows["sky", 5]["input"] + 5
    assert set(rows["sky", 5]["denoise_30"]) == {"psnr", "tint", "step"}
    assert set(rows["photos", 5]["denoise_30"]) == {"psnr"}


@pytest.mark.parametrize(("argument", "value"), [("--sigma", "0"), ("--sigma", "256"), ("--images", "0")])
def test_impossible_strengths_and_numbers_are_refused(
    argument: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        noise.main(["--checkpoint", "x", argument, value])
    assert stopped.value.code == 2
    assert f"{argument} {value} is not allowed" in capsys.readouterr().err
