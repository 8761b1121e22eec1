"""The benchmark of quality: the command against a real server, the protocol's figures, and its tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.support import SMALL, read_image, small_model
from PIL import Image

from ipt_triton.benchmarks.quality import tradeoff
from ipt_triton.benchmarks.record import Record
from ipt_triton.metrics import psnr, psnr_y, to_uint8
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.tiling import KEEP, STRIDE, Tiler
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.model.checkpoint import save_checkpoint
from ipt_triton.train.model.infer import restore_image

SR, DENOISE = OFFICIAL_TASKS[0], OFFICIAL_TASKS[4]
MODEL = small_model(config=replace(SMALL, tasks=(SR, DENOISE)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three clean images of 142x162 pixels."""
    folder = tmp_path / "Photos"
    folder.mkdir()
    for name in ("dog", "kitten", "torii"):
        Image.fromarray(read_image(name)[200:342, 100:262]).save(folder / f"{name}.png")
    return folder


@pytest.mark.server
def test_the_command_measures_every_rule_and_precision_beside_pytorch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(MODEL, tmp_path / "small")
    path, plot = tmp_path / "results" / "quality.json", tmp_path / "results" / "quality.png"
    arguments = ["--checkpoint", str(tmp_path / "small"), "--sr", str(data), "--denoise", str(data), "--images", "2"]
    chosen = ["--precision", "fp32", "--rules", "24/24", "36/48"]
    assert tradeoff.main([*arguments, *chosen, "--json", str(path), "--plot", str(plot)]) == 0
    record = Record.load(path)
    assert tradeoff.markdown(record) in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {(r["task"], (r["runtime"], r["stride"], r["keep"])): r for r in record.figures["rows"]}
    rules = [("pytorch", STRIDE, KEEP), ("openvino", STRIDE, KEEP), ("openvino", 24, 24), ("openvino", 36, 48)]
    assert list(rows) == [(task.name, rule) for task in (SR, DENOISE) for rule in rules]
    for task, figure, side in ((SR, psnr_y, (71, 81)), (DENOISE, psnr, (142, 162))):
        for rule in rules:
            row = rows[task.name, rule]
            expected = []
            for name in ("dog", "kitten"):
                clean = read_image(name)[200:342, 100:262]
                degraded = to_uint8(degrade_image(clean, task, seed_of(f"{name}.png")))
                restored = restore_image(MODEL, degraded, task.name, *rule[1:])
                expected.append(figure(restored, clean, task.scale if task is SR else 0))
            assert row["per_image"] == pytest.approx(expected, abs=0.002)
            assert row[row["judged"]] == pytest.approx(np.mean(expected), abs=0.002)
            assert row["patches"] == 2 * Tiler(np.zeros((*side, 3), np.uint8), 1, 48, *rule[1:]).count
            assert (row["set"], row["images"], row["pixels"]) == ("Photos", 2, 2 * side[0] * side[1])
    assert rows[SR.name, rules[2]]["psnr_y"] != rows[SR.name, rules[3]]["psnr_y"]


def row(task: str, runtime: str, precision: str, rule: tuple[int, int], psnr_y: float, single: float) -> dict:
    common = {"set": "Set5", "images": 2, "pixels": 48**2, "seconds": 0.5, "judged": "psnr_y", "ssim_y": 0.9}
    cost = {"stride": rule[0], "keep": rule[1], "patches": {36: 2, 12: 16, 48: 1}[rule[0]]}
    how = {"task": task, "runtime": runtime, "precision": precision}
    return {**how, **common, **cost, "psnr_y": psnr_y, "per_image": [single, 2 * psnr_y - single]}


def test_the_tables_name_the_largest_differences_and_order_the_rules_by_cost() -> None:
    rows = [
        row("a", "pytorch", "fp32", (36, 36), 30.0, 30.0),
        row("a", "openvino", "fp32", (36, 36), 30.001, 30.0),
        row("a", "openvino", "fp32", (48, 48), 29.9, 29.9),
        row("a", "openvino", "fp32", (12, 24), 30.1, 30.1),
        row("a", "openvino", "bf16", (36, 36), 29.99, 30.2),
    ]
    record = Record("quality", [], {}, {"model": "tiny", "rows": rows})
    text = tradeoff.markdown(record)
    assert "fp32 0.0010 dB (of a single image 0.0020 dB), bf16 0.0100 dB (of a single image 0.2200 dB)." in text
    assert "| a | Set5 | 2 | Y | 30.00 / 0.9000 | 30.00 / 0.9000 | 29.99 / 0.9000 |" in text
    assert [line.split(" | ")[:4] for line in text.splitlines()[-3:]] == [
        ["| 12/24", "16", "16.00", "217.0"],
        ["| 36/36", "2", "2.00", "217.0"],
        ["| 48/48", "1", "1.00", "217.0"],
    ]


@pytest.mark.parametrize("text", ["36", "48/36", "36/37", "36/50", "a/b"])
def test_a_rule_that_no_tiling_can_follow_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        tradeoff.main(["--checkpoint", "x", "--sr", "y", "--rules", text])
    assert stopped.value.code == 2
    assert f"'{text}' is not a rule STRIDE/KEEP" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_test_set_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(MODEL, tmp_path / "small")
    with pytest.raises(SystemExit) as stopped:
        tradeoff.main(["--checkpoint", str(tmp_path / "small")])
    assert stopped.value.code == 2 and "--sr, --denoise, --derain" in capsys.readouterr().err
    assert tradeoff.main(["--checkpoint", str(tmp_path / "small"), "--sr", str(tmp_path / "none")]) == 1
    assert "error: " in (error := capsys.readouterr().err) and "none is not a folder" in error
    assert tradeoff.main(["--checkpoint", str(tmp_path / "small"), "--derain", str(tmp_path)]) == 1
    assert "no task of the kinds derain" in capsys.readouterr().err
