"""Ablations: fair pairs, what is run and kept, and a report that heeds the noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import write_photographs
from PIL import Image

from ipt_triton.benchmarks.ablations.experiments import EXPERIMENTS, NETWORKS, Variant, variants
from ipt_triton.benchmarks.ablations.report import markdown, summarise
from ipt_triton.benchmarks.ablations.run import SIZES, Settings, main, megamacs
from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.data.pool import load_pool
from ipt_triton.train.fit.command import HELD_OUT
from ipt_triton.train.model.ipt import POSITIONS

TASKS = (OFFICIAL_TASKS[0], OFFICIAL_TASKS[5])
RIVALS = NETWORKS[1:]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, HELD_OUT + 5, side=80)
    return folder


def settings(size: str = "toy") -> Settings:
    return Settings(size, TASKS, 2, 2, 1e-3, None, "cpu")


@pytest.mark.parametrize("size", SIZES)
def test_all_networks_cost_the_same_within_an_eighth(size: str):
    ipt, *rivals = (sum(megamacs(settings(size), v).values()) for v in NETWORKS)
    assert rivals == pytest.approx([ipt] * 3, rel=0.125)


@pytest.mark.parametrize("rival", RIVALS, ids=lambda v: v.network)
def test_all_networks_start_as_bicubic_interpolation(rival: Variant):
    patches = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 255
    for task in TASKS:
        with torch.no_grad():
            ipt, other = (settings().model(v)(patches, task.name) for v in (Variant(), rival))
        torch.testing.assert_close(ipt, other, rtol=0, atol=0.01)


def test_every_setting_is_run_once_and_the_first_seed_of_an_experiment_first():
    runs = list(variants(EXPERIMENTS, 2))
    # IPT as published is a setting of three experiments
    assert len(runs) == len({v.name for v in runs}) == 2 * (5 + 3 + 4 + 20)
    assert [v.seed for v in runs[:10]] == [0] * 5 + [1] * 5
    assert {v.position for v in variants(["position"], 1)} == set(POSITIONS)
    assert {v.network for v in variants(["rivals"], 1)} == {"ipt", "edsr", "rdn", "ignn"}
    assert {(v.network, v.share) for v in variants(["data"], 1)} == {
        (v.network, share / 5) for v in NETWORKS for share in range(1, 6)
    }


@pytest.mark.slow
def test_runs_are_kept_and_reported(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output, report = tmp_path / "runs", tmp_path / "results" / "ablations"
    common = ["--data", str(photos), "--output", str(output), "--batch", "2", "--device", "cpu", "--seeds", "2"]
    rivals = [*common, "--steps", "2", "--only", "rivals"]
    assert main([*rivals, "--eval", str(tiny_set(tmp_path)), "--report", str(report)]) == 0
    assert "| IGNN | 5 |" in capsys.readouterr().out
    results = sorted(output.glob("*/result.json"))
    assert len(results) == 8
    first = json.loads((output / "edsr-seed0" / "result.json").read_text())
    assert first["photographs"] == 5 and first["patches"] == 4 and set(first["psnr"]) == {"sr_x2", "denoise_50"}
    assert first["eval"]["psnr_y"]["denoise_50"] > 10
    assert str(tmp_path) not in "".join(path.read_text() for path in results)

    kept = {path: path.stat().st_mtime_ns for path in results}
    results[0].unlink()
    assert main([*rivals, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [r["setting"] for r in summary["experiments"]["rivals"]] == ["IPT", "EDSR", "RDN", "IGNN"]
    assert {path for path in results if path.stat().st_mtime_ns == kept[path]} == set(results[1:])
    assert json.loads(report.with_suffix(".json").read_text())["settings"] == summary["settings"]
    page = report.with_suffix(".md").read_text()
    assert "(ablations-rivals.png)" in page and "Not finished: position (2 of 10 runs), contrastive (2 of 10" in page
    assert Image.open(report.with_name("ablations-rivals.png")).width > 300
    assert [p.name for p in report.parent.glob("*.png")] == ["ablations-rivals.png"]

    assert main([*common, "--steps", "3", "--only", "rivals"]) == 1
    assert "other settings (steps)" in capsys.readouterr().err


def test_a_share_is_taken_of_the_small_pool(photos: Path):
    pool = load_pool([photos], 60)
    whole = len(pool.names)
    few = Settings("toy", TASKS, 2, 2, 1e-3, 10, "cpu")
    sizes = [len(few.photographs(v, pool).names) for v in (Variant(), Variant(share=1.0), Variant(share=0.2))]
    assert sizes == [whole, 10, 2]


def tiny_set(folder: Path) -> Path:
    write_photographs(folder / "set", 1, side=40)
    return folder / "set"


def result(psnr: float, variant: Variant) -> dict[str, Any]:
    return {
        "variant": dict(variant.__dict__),
        "settings": {**settings().to_dict(), "tasks": ["sr_x2"]},
        "photographs": 9,
        "patches": 4,
        "parameters": 1000,
        "megamacs": {"sr_x2": 1.0},
        "start": {"sr_x2": 30.0},
        "psnr": {"sr_x2": psnr},
    }


def results_of(figures: dict[Variant, Sequence[float]]) -> list[dict[str, Any]]:
    """Runs of settings with these PSNRs by seed."""
    return [
        result(psnr, replace(setting, seed=seed)) for setting, runs in figures.items() for seed, psnr in enumerate(runs)
    ]


def test_differences_are_taken_seed_by_seed_and_stand_beside_their_spread():
    edsr, rdn, ignn = RIVALS
    # All vary by a decibel with the seed, but EDSR always beside IPT.
    psnr = {Variant(): (31.0, 32.0, 30.0), edsr: (31.5, 32.6, 30.4), rdn: (31.5, 31.2, 30.6), ignn: (31.0, 32.0, 30.0)}
    summary = summarise(results_of(psnr), 3, {"torch": "2"})
    ipt, row, other, same = summary["experiments"]["rivals"]
    assert "difference" not in ipt and ipt["psnr"] == {"sr_x2": 31.0}
    # 0.5, 0.6, 0.4: deviation 0.1, so the standard error is 0.1 / √3 and the mean is 8.7 of them
    assert row["difference"]["sr_x2"] == {"mean": 0.5, "error": 0.058, "clear": True}
    assert other["difference"]["sr_x2"] == {"mean": 0.1, "error": 0.451, "clear": False}
    assert same["difference"]["sr_x2"] == {"mean": 0.0, "error": 0.0, "clear": False}
    (line,) = summary["conclusions"]
    assert line.endswith(
        "sr_x2, dB from IPT: more than noise: EDSR +0.50 ± 0.06; may be noise: RDN +0.10 ± 0.45, IGNN +0.00 ± 0.00."
    )
    page = markdown(summary)
    assert page.startswith("# Ablations at toy scale") and "say nothing about the paper's" in page
    assert "| EDSR | 9 | 1 | 1.0 | 31.50 (+0.50 ± 0.06) |" in page


def test_two_standard_errors_are_not_enough_with_three_seeds():
    rest = dict.fromkeys(RIVALS[1:], (31.0, 31.0, 31.0))
    psnr = {Variant(): (31.0, 31.0, 31.0), RIVALS[0]: (31.1, 31.2, 31.3), **rest}
    difference = summarise(results_of(psnr), 3, {"torch": "2"})["experiments"]["rivals"][1]["difference"]["sr_x2"]
    assert difference["mean"] > 3 * difference["error"] and difference["clear"] is False  # Student's t asks for 4.3


def test_a_share_is_compared_with_ipt_at_the_same_share():
    psnr = {v: (30 + v.share + (v.network == "edsr"),) for v in EXPERIMENTS["data"].settings}
    summary = summarise(results_of(psnr), 1, {"torch": "2"})
    rows = {r["setting"]: r for r in summary["experiments"]["data"]}
    assert rows["EDSR 20 %"]["reference"] == "IPT 20 %"
    assert rows["EDSR 20 %"]["difference"]["sr_x2"] == {"mean": 1.0, "error": None, "clear": None}
    assert "from one seed: EDSR 100 % +1.00, RDN 100 % +0.00," in summary["conclusions"][4]
    assert summary["conclusions"][5].endswith("20 to 100 %: IPT +0.80, EDSR +0.80, RDN +0.80, IGNN +0.80.")


def test_experiments_that_are_not_finished_are_left_out_and_counted():
    finished = results_of(dict.fromkeys(NETWORKS, (31.0, 31.0)))
    begun = results_of({Variant(position="none"): (31.0,)})
    summary = summarise([*finished, *begun], 2, {"torch": "2"})
    assert list(summary["experiments"]) == ["rivals"] and len(summary["runs"]) == 8
    assert summary["unfinished"]["position"] == {"runs": 3, "of": 10}
    with pytest.raises(ReportError, match="is finished with 3 seeds yet: position 3 of 15 runs, rivals 8 of 12"):
        summarise([*finished, *begun], 3, {"torch": "2"})


def test_runs_that_cannot_be_compared_are_refused():
    with pytest.raises(ReportError, match="no run is finished"):
        summarise([], 1, {})
    other = result(31.0, Variant(seed=1))
    other["settings"] = {**other["settings"], "steps": 9}
    with pytest.raises(ReportError, match="different settings"):
        summarise([result(31.0, Variant()), other], 1, {})


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
