"""Releasing weights: rounded, measured, described."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.support import SMALL, small_model

from ipt_triton.tasks import Task
from ipt_triton.train.__main__ import main as ipt_train
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint
from ipt_triton.train.model.release import main

PROVENANCE: dict[str, Any] = {
    "data": {"photographs": 20, "megapixels": 3.5, "held_out": 2},
    "recipe": {"lr": 4e-4, "seed": 3, "steps": None},
    "steps": 100,
    "patches": 1600,
    "hours": 0.1,
    "device": "cpu",
    "torch": "2.13.0",
    "git_commit": "0123456789abcdef",
}


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    save_checkpoint(small_model(), tmp_path / "trained", PROVENANCE, {"held_out_psnr_rgb": {"derain": 30.0}})
    return tmp_path / "trained"


def evaluation(path: Path, sha256: str) -> Path:
    row = {"task": "derain", "set": "Rain", "images": 3, "checkpoint_sha256": sha256, "baseline": "input"}
    row |= {"runtime": "openvino", "precision": "fp32"}
    figures = {"psnr_y": 33.754, "psnr_rgb": 32.4, "ssim_y": 0.94601}
    row |= figures | {f"baseline_{k}": v - 1 for k, v in figures.items()} | {"per_image": [{"name": "a.png"}]}
    path.write_text(json.dumps([row]))
    return path


def test_released_weights_are_rounded_and_carry_card_and_figures(trained: Path, tmp_path: Path):
    output = tmp_path / "released"
    assert main([str(trained), str(output)]) == 0
    released = load_checkpoint(output)
    assert released.sha256 != load_checkpoint(trained).sha256
    assert sum(p.stat().st_size for p in output.glob("*.safetensors")) < 0.6 * sum(
        p.stat().st_size for p in trained.glob("*.safetensors")
    )

    figures = evaluation(tmp_path / "rain.json", released.sha256)
    assert ipt_train(["release", str(trained), str(output), "--evaluation", str(figures), "--data", "CC0."]) == 0
    again = load_checkpoint(output)
    assert again.sha256 == released.sha256
    assert again.provenance == PROVENANCE
    assert again.quality["held_out_psnr_rgb"] == {"derain": 30.0}
    assert [r["psnr_y"] for r in again.quality["evaluation"]] == [33.754]
    card = (output / "README.md").read_text()
    assert "| derain | Rain, 3 images | input | **33.75** (32.75) | **32.40** (31.40) | **0.9460** (-0.0540) |" in card
    assert "A server with openvino in FP32, tiles every 40 pixels." in card
    assert "20 photographs, 3.5 megapixels; 2 more were held out. CC0." in card
    assert "lr 0.0004, seed 3." in card


def test_weights_that_were_trained_on_tell_of_both_runs(tmp_path: Path):
    second = {**PROVENANCE, "steps": 70, "parent": {"sha256": "00", "provenance": PROVENANCE}}
    save_checkpoint(small_model(), tmp_path / "trained", second, {})
    assert main([str(tmp_path / "trained"), str(tmp_path / "released")]) == 0
    card = (tmp_path / "released" / "README.md").read_text()
    assert card.index("- From the identity: 100 steps") < card.index("- From the weights before: 70 steps")


def test_a_run_whose_workers_decoded_does_not_know_its_megapixels(tmp_path: Path):
    seen = {name: value for name, value in PROVENANCE["data"].items() if name != "megapixels"}
    save_checkpoint(small_model(), tmp_path / "trained", {**PROVENANCE, "data": seen}, {})
    assert main([str(tmp_path / "trained"), str(tmp_path / "released")]) == 0
    assert "- Data: 20 photographs; 2 more were held out." in (tmp_path / "released" / "README.md").read_text()


def test_weights_without_their_story_are_refused(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(small_checkpoint), str(tmp_path / "released")]) == 1
    assert "does not tell its 'data'" in capsys.readouterr().err
    assert not (tmp_path / "released").exists()


def test_figures_of_other_weights_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = evaluation(tmp_path / "rain.json", load_checkpoint(trained).sha256)  # before rounding
    assert main([str(trained), str(tmp_path / "released"), "--evaluation", str(figures)]) == 1
    assert "the evaluation of derain on Rain is of other weights" in capsys.readouterr().err
    assert not (tmp_path / "released").exists()


def test_file_that_is_no_evaluation_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.json").write_text("{]")
    assert main([str(trained), str(tmp_path / "released"), "--evaluation", str(tmp_path / "x.json")]) == 1
    assert "x.json is not an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tasks", "paired", "inputs", "outside"),
    [
        ([Task(4, "denoise_15", "denoise", sigma=15)], False, "Gaussian noise of σ 15, every", "or far from σ 15."),
        (
            [Task(6, "denoise", "denoise")],
            False,
            "Gaussian and Poisson-Gaussian noise of σ 0 to 55.",
            "with a pattern.",
        ),
        ([Task(7, "dejpeg", "dejpeg")], False, "JPEG of quality 10 to 95 with 4:2:0 chroma.", "other compression."),
        (
            [Task(1, "sr_x3", "sr", scale=3), Task(2, "sr_x4", "sr", scale=4)],
            False,
            "antialiased bicubic reduction by 3 and 4.",
            "reductions of another kind.",
        ),
        ([Task(6, "jpeg", "dejpeg", quality=10)], False, "JPEG of quality 10 with", "JPEG far from quality 10,"),
        (
            [Task(7, "deblur", "deblur", sigma=1.6)],
            False,
            "Gaussian blur of σ 1.6 pixels.",
            "or far from σ 1.6 pixels.",
        ),
        ([Task(3, "derain", "derain")], False, "synthetic rain streaks.", "mist, and drops on the lens."),
        ([Task(3, "derain", "derain")], True, "what the pairs of photographs for derain show.", "do not show."),
        ([Task(8, "fog", "paired")], True, "what the pairs of photographs for fog show.", "the pairs for fog do not"),
    ],
)
def test_a_card_tells_of_its_own_tasks_and_of_no_other(
    tmp_path: Path, tasks: list[Task], paired: bool, inputs: str, outside: str
):
    model = small_model(config=replace(SMALL, tasks=tuple(tasks)))
    made = {**PROVENANCE, "data": {**PROVENANCE["data"], "paired": paired}, "task": tasks[0].name}
    save_checkpoint(model, tmp_path / "trained", made, {})
    assert main([str(tmp_path / "trained"), str(tmp_path / "released")]) == 0
    card = (tmp_path / "released" / "README.md").read_text()
    assert f"- Degradation of the inputs: {inputs}" in card
    assert outside in card.replace("\n", " ")[card.index("Out of its range:") :]
    kinds = {"bicubic": "sr", "border": "sr", "rain streaks": "derain", "noise": "denoise", "JPEG": "dejpeg"}
    for word, kind in {**kinds, "blur of": "deblur", "pairs": "paired"}.items():
        assert (word in card) == (("paired" if paired else tasks[0].kind) == kind), word
