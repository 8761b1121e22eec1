"""Ablations: fair pairs, what is run and kept, and a report that heeds the noise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import write_photographs
from PIL import Image

from ipt_triton.benchmarks.ablations.report import markdown, summarise
from ipt_triton.benchmarks.ablations.run import EXPERIMENTS, SIZES, Settings, Variant, main, megamacs, variants
from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.fit.command import HELD_OUT
from ipt_triton.train.model.ipt import POSITIONS

TASKS = (OFFICIAL_TASKS[0], OFFICIAL_TASKS[5])
EDSR = Variant("edsr", 0.0, "")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, HELD_OUT + 5, side=80)
    return folder


def settings(size: str = "toy") -> Settings:
    return Settings(size, TASKS, 2, 2, 1e-3, None, "cpu")


@pytest.mark.parametrize("size", SIZES)
def test_both_networks_cost_the_same_within_a_tenth(size: str):
    ipt, edsr = (sum(megamacs(settings(size), v).values()) for v in (Variant(), EDSR))
    assert edsr == pytest.approx(ipt, rel=0.1)


def test_both_networks_start_as_bicubic_interpolation():
    patches = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 255
    for task in TASKS:
        with torch.no_grad():
            ipt, edsr = (settings().model(v)(patches, task.name) for v in (Variant(), EDSR))
        torch.testing.assert_close(ipt, edsr, rtol=0, atol=0.01)


def test_every_setting_is_run_once_and_the_first_seed_first():
    runs = list(variants(EXPERIMENTS, 2))
    assert len(runs) == len({v.name for v in runs}) == 2 * (5 + 2 + 10)  # λ 0.1 is also the learned position
    assert [v.seed for v in runs] == [0] * 17 + [1] * 17
    assert {v.position for v in variants(["position"], 1)} == set(POSITIONS)


@pytest.mark.slow
def test_runs_are_kept_and_reported(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output, report = tmp_path / "runs", tmp_path / "results" / "ablations"
    common = ["--data", str(photos), "--output", str(output), "--batch", "2", "--device", "cpu"]
    data = [*common, "--steps", "2", "--only", "data", "--small-pool", "5"]
    assert main([*data, "--eval", str(tiny_set(tmp_path)), "--report", str(report)]) == 0
    assert "| IPT 20 % | 1 | 1 |" in capsys.readouterr().out
    results = sorted(output.glob("*/result.json"))
    assert len(results) == 10
    first = json.loads((output / "edsr-share0.6-seed0" / "result.json").read_text())
    assert first["photographs"] == 3 and first["patches"] == 4 and set(first["psnr"]) == {"sr_x2", "denoise_50"}
    assert first["eval"]["psnr_y"]["denoise_50"] > 10

    kept = {path: path.stat().st_mtime_ns for path in results}
    results[0].unlink()
    assert main([*data, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [r["setting"] for r in summary["experiments"]["data"]][4:6] == ["IPT 100 %", "EDSR 20 %"]
    assert {path for path in results if path.stat().st_mtime_ns == kept[path]} == set(results[1:])
    assert json.loads(report.with_suffix(".json").read_text())["settings"] == summary["settings"]
    assert "![The same as curves](ablations.png)" in report.with_suffix(".md").read_text()
    assert Image.open(report.with_suffix(".png")).width > 300

    assert main([*common, "--steps", "3", "--only", "data", "--small-pool", "5"]) == 1
    assert "other settings (steps)" in capsys.readouterr().err


def tiny_set(folder: Path) -> Path:
    write_photographs(folder / "set", 1, side=40)
    return folder / "set"


def result(psnr: float, **variant: Any) -> dict[str, Any]:
    return {
        "variant": {**Variant().__dict__, **variant},
        "settings": {**settings().to_dict(), "tasks": ["sr_x2"]},
        "photographs": 9,
        "patches": 4,
        "parameters": 1000,
        "megamacs": {"sr_x2": 1.0},
        "start": {"sr_x2": 30.0},
        "psnr": {"sr_x2": psnr},
    }


def test_differences_are_judged_by_those_between_seeds():
    runs = [result(31.0), result(31.3, seed=1), result(31.1, contrastive=0.0), result(30.0, position="none")]
    summary = summarise(runs, {"torch": "2"})
    noise = 0.3 / math.sqrt(2)  # the standard deviation of 31.0 and 31.3
    assert summary["noise"]["contrastive"]["sr_x2"] == pytest.approx(noise, abs=1e-3)
    assert summary["experiments"]["contrastive"][1]["psnr"] == {"sr_x2": 31.15}
    small, large = summary["conclusions"]
    assert "λ 0.1 is 0.05 dB above λ 0, which may be noise (standard error 0.26 dB)." in small
    assert "learned is 1.15 dB above none, more than noise (standard error 0.26 dB)." in large
    assert "| λ 0.1 | 9 | 2 | 31.15 (0.30) |" in markdown(summary)
    assert "the noise is not known" in summarise(runs[1:], {"torch": "2"})["conclusions"][0]


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(ReportError, match="no run is finished"):
        summarise([], {})
    other = result(31.0, seed=1)
    other["settings"] = {**other["settings"], "steps": 9}
    with pytest.raises(ReportError, match="different settings"):
        summarise([result(31.0), other], {})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --data, or --table"),
        (["--data", "x", "--seeds", "0"], "--seeds 0 is not allowed"),
        (["--data", "x", "--small-pool", "0"], "--small-pool 0 is not allowed"),
        (["--data", "x", "--batch", "1"], "give --batch 2 or more"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
):
    with pytest.raises(SystemExit) as ended:
        main(["--output", str(tmp_path), *more])
    assert ended.value.code == 2 and message in capsys.readouterr().err
