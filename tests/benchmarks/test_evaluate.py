"""Evaluation: the field's protocol, reproducible degradations, the server's figures, errors of one sentence."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.support import Served, read_image, small_model
from PIL import Image

import ipt_triton.train.__main__
from ipt_triton import commands
from ipt_triton.benchmarks.errors import ArgumentError, EvaluationError
from ipt_triton.benchmarks.quality.classical import baseline as classical
from ipt_triton.benchmarks.quality.classical import bicubic_up
from ipt_triton.benchmarks.quality.evaluate import (
    Restorer,
    at_level,
    by_server,
    evaluate_image,
    main,
    self_ensemble,
)
from ipt_triton.metrics import psnr, psnr_y, ssim_y, to_uint8
from ipt_triton.tasks import KNOWN_TASKS, OFFICIAL_TASKS, Task, find_task
from ipt_triton.tiling import Tiler
from ipt_triton.train.data.degradations import degrade, degrade_image, seed_of
from ipt_triton.train.data.sets import Sample, find_images, load_sample
from ipt_triton.train.model.infer import restore_image


def task(name: str):
    return find_task(OFFICIAL_TASKS, name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A test set of two small photographs whose sides are no multiples of every scale."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("kitten", "torii"):
        Image.fromarray(read_image(name)[:71, :86]).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def rainy(tmp_path: Path) -> Path:
    """A test set of one pair."""
    folder = tmp_path / "rainy"
    clean = read_image("dog")[:60, :70]
    for kind, image in (("norain", clean), ("rain", degrade_image(clean, task("derain"), 3).astype(np.uint8))):
        (folder / kind).mkdir(parents=True)
        Image.fromarray(image).save(folder / kind / "a.png")
    return folder


def rows_of(folder: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    """Rows of the JSON file that the command writes."""
    assert main([*map(str, arguments), "--json", str(folder / "rows.json")]) == 0
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


def test_super_resolution_is_measured_by_the_fields_protocol(small_checkpoint: Path, photos: Path, tmp_path: Path):
    [row] = rows_of(tmp_path, small_checkpoint, "--data", photos, "--task", "sr_x3")
    assert (row["task"], row["set"], row["images"], row["baseline"]) == ("sr_x3", "photos", 2, "bicubic")
    restored_values, bicubic_values = [], []
    for name in ("kitten", "torii"):
        clean = read_image(name)[:69, :84]
        planes = torch.tensor(clean.transpose(2, 0, 1))[None].float()
        low = degrade(planes, task("sr_x3"), torch.Generator())[0].permute(1, 2, 0).byte().numpy()
        restored = restore_image(small_model(), low, "sr_x3")
        cut = (slice(3, -3), slice(3, -3))
        for values, image in ((restored_values, restored), (bicubic_values, bicubic_up(low, 3))):
            values.append(
                (psnr_y(image[cut], clean[cut]), psnr(image[cut], clean[cut]), ssim_y(image[cut], clean[cut]))
            )
    for prefix, values in (("", restored_values), ("baseline_", bicubic_values)):
        keys = [f"{prefix}{key}" for key in ("psnr_y", "psnr_rgb", "ssim_y")]
        assert [row[key] for key in keys] == pytest.approx(np.mean(values, axis=0).tolist(), abs=1e-3)
        for image, expected in zip(row["per_image"], values, strict=True):
            assert [image[key] for key in keys] == pytest.approx(expected, abs=1e-3)
    assert [image["name"] for image in row["per_image"]] == ["kitten.png", "torii.png"]


def test_denoising_is_measured_as_float_and_as_8_bit(small_checkpoint: Path, photos: Path, tmp_path: Path):
    [row] = rows_of(tmp_path, small_checkpoint, "--data", photos, "--task", "denoise_50", "--limit", "1")
    clean = read_image("kitten")[:71, :86]
    noise = torch.randn(1, 3, 71, 86, generator=torch.Generator().manual_seed(seed_of("kitten.png")))
    noisy = clean + 50 * noise[0].permute(1, 2, 0).numpy()
    as_float = restore_image(small_model(), noisy, "denoise_50")
    as_uint8 = restore_image(small_model(), noisy.clip(0, 255).round().astype(np.uint8), "denoise_50")
    assert as_float.dtype == np.float32
    assert row["float_psnr_rgb"] == pytest.approx(psnr(as_float.clip(0, 255).round(), clean), abs=1e-3)
    assert row["psnr_rgb"] == pytest.approx(psnr(as_uint8, clean), abs=1e-3)
    assert row["float_psnr_rgb"] != pytest.approx(row["psnr_rgb"], abs=0.05)
    assert row["baseline"] == "non-local means" and row["float_baseline_psnr_y"] != row["baseline_psnr_y"]


@pytest.mark.parametrize(
    ("name", "baseline", "least"),
    [("denoise", "non-local means", 1.0), ("real_x2", "non-local means, bicubic", 0.0)],
)
def test_a_baseline_of_unknown_noise_estimates_it(name: str, baseline: str, least: float) -> None:
    clean = read_image("kitten")[:96, :96]
    task = find_task(KNOWN_TASKS, name)
    degraded = to_uint8(degrade_image(clean, task, 1))
    words, result = classical(degraded, task)
    assert (words, result.shape) == (baseline, clean.shape)
    before = bicubic_up(degraded, task.scale) if task.scale > 1 else degraded
    assert psnr(result, clean) >= psnr(before, clean) + least


def test_rainy_pairs_are_read_as_they_are(small_checkpoint: Path, rainy: Path, tmp_path: Path):
    [row] = rows_of(tmp_path, small_checkpoint, "--data", rainy, "--task", "derain")
    clean, rain = (np.asarray(Image.open(rainy / kind / "a.png")) for kind in ("norain", "rain"))
    assert row["baseline"] == "input"
    assert row["baseline_psnr_y"] == pytest.approx(psnr_y(rain, clean))
    assert row["psnr_y"] == pytest.approx(psnr_y(restore_image(small_model(), rain, "derain"), clean), abs=1e-3)


def test_the_server_gives_the_figures_of_pytorch(served: Served, small_checkpoint: Path, photos: Path, tmp_path: Path):
    arguments = (small_checkpoint, "--data", photos, "--task", "sr_x2", "denoise_30", "derain")
    served_rows = rows_of(tmp_path, *arguments, "--url", served.server.grpc_url)
    rows = rows_of(tmp_path, *arguments)
    assert [row["runtime"] for row in (served_rows[0], rows[0])] == ["openvino", "pytorch"]
    for of_server, of_pytorch in zip(served_rows, rows, strict=True):
        assert of_server["checkpoint_sha256"] == of_pytorch["checkpoint_sha256"]
        for key in ("psnr_y", "psnr_rgb"):
            assert of_server[key] == pytest.approx(of_pytorch[key], abs=0.02)
        assert of_server["ssim_y"] == pytest.approx(of_pytorch["ssim_y"], abs=1e-3)
        assert of_server["baseline_psnr_y"] == of_pytorch["baseline_psnr_y"]
    assert "float_psnr_rgb" in rows[1] and not any(key.startswith("float") for key in served_rows[1])


@pytest.mark.parametrize(
    ("unserved", "message"),
    [
        (Task(9, "denoise_70", "denoise", sigma=70), "task 'denoise_70' is not served"),
        (Task(0, "sr_x2", "sr", scale=3), r"sr_x2 is Task\(.*scale=2.* at .*scale=3.* in the checkpoint"),
    ],
)
def test_a_server_that_knows_other_tasks_is_refused(served: Served, unserved: Task, message: str):
    with pytest.raises(EvaluationError, match=message), by_server(served.server.grpc_url, [unserved], None, None):
        pass


def test_noise_depends_on_the_file_name_alone(photos: Path, tmp_path: Path):
    two = {
        path.name: load_sample(path, None, task("denoise_30")) for path, _ in find_images(photos, task("denoise_30"))
    }
    (photos / "kitten.png").unlink()
    moved = photos.rename(tmp_path / "moved")
    [(path, _)] = find_images(moved, task("denoise_30"))
    np.testing.assert_array_equal(load_sample(path, None, task("denoise_30")).degraded, two["torii.png"].degraded)
    noise = {name: sample.degraded - sample.clean for name, sample in two.items()}
    assert not np.allclose(noise["kitten.png"], noise["torii.png"])


def test_blind_tasks_are_measured_at_the_strength_asked_for():
    blind = find_task(KNOWN_TASKS, "denoise")
    level, task_at = at_level(blind, 15.0, None)
    assert level == {"level": "sigma 15"}
    assert degrade_image(np.full((80, 80, 3), 128, np.uint8), task_at, 1).std() == pytest.approx(15, rel=0.03)
    assert at_level(blind, None, None) == ({}, blind)
    assert at_level(find_task(KNOWN_TASKS, "dejpeg"), None, 10)[1].quality == 10
    for wrong, sigma, quality in (("denoise_30", 15.0, None), ("dejpeg", 15.0, None), ("auto", None, 40)):
        with pytest.raises(ArgumentError, match="without one of their own"):
            at_level(find_task(KNOWN_TASKS, wrong), sigma, quality)


def test_noise_for_evaluation_is_unclipped_for_every_image():
    noisy = degrade_image(np.zeros((40, 40, 3), np.uint8), task("denoise_50"), seed=1)
    assert noisy.dtype == np.float32 and noisy.min() < -50
    assert noisy.std() == pytest.approx(50, rel=0.05)


def test_jpeg_is_that_of_a_file_with_its_blocks_from_the_corner():
    clean = read_image("dog")[:101, :135]
    file = io.BytesIO()
    Image.fromarray(clean).save(file, "JPEG", quality=40)
    expected = np.asarray(Image.open(file)).astype(float)
    dejpeg = Task(6, "dejpeg_40", "dejpeg", quality=40)
    degraded = degrade_image(clean, dejpeg, seed=1)
    assert np.abs(degraded - expected).mean() < 1
    planes = torch.tensor(clean.transpose(2, 0, 1))[None].float()
    elsewhere = degrade(planes, dejpeg, torch.Generator().manual_seed(1))[0].permute(1, 2, 0).numpy()
    assert np.abs(elsewhere - expected).mean() > 2  # as training sees it


@pytest.mark.parametrize("scale", [1, 2])
def test_a_floating_tiler_returns_what_the_network_answers(scale: int):
    image = np.random.default_rng(0).normal(128, 200, (60, 101, 3)).astype(np.float32)  # far beyond 0..255
    tiler = Tiler(image, scale, stride=12, keep=24, dtype="float32")
    for first, last in tiler.batches(5):
        tiler.add(tiler.patches(first, last).repeat(scale, axis=2).repeat(scale, axis=3))
    restored = tiler.result()
    assert restored.dtype == np.float32
    np.testing.assert_array_equal(restored, image.repeat(scale, axis=0).repeat(scale, axis=1))


def test_float_input_gives_the_8_bit_result_before_rounding():
    photo = read_image("skyline")[:60, :75]
    restored = restore_image(small_model(), photo.astype(np.float32), "sr_x2")
    assert not np.array_equal(restored, restored.round())
    difference = np.abs(to_uint8(restored).astype(int) - restore_image(small_model(), photo, "sr_x2"))
    assert difference.max() <= 1 and difference.mean() < 1e-3


def test_self_ensemble_undoes_its_turns_and_takes_the_mean():
    image = np.random.default_rng(1).uniform(0, 255, (4, 6, 3)).astype(np.float32)
    seen = []

    def double(given: np.ndarray, _: object) -> np.ndarray:
        assert given.flags["C_CONTIGUOUS"]
        seen.append(given.tobytes())
        return given.repeat(2, axis=0).repeat(2, axis=1) + 0.25 * (len(seen) - 1)

    restored = self_ensemble(Restorer(double, True, {"tta": False}))
    np.testing.assert_allclose(
        restored.restore(image, task("sr_x2")), image.repeat(2, axis=0).repeat(2, axis=1) + 0.25 * 3.5, rtol=1e-6
    )
    assert len(set(seen)) == 8 and restored.how["tta"]


def test_self_ensemble_is_on_the_command_line(small_checkpoint: Path, rainy: Path, tmp_path: Path):
    [row] = rows_of(tmp_path, small_checkpoint, "--data", rainy, "--task", "3", "--tta")
    [plain] = rows_of(tmp_path, small_checkpoint, "--data", rainy, "--task", "3")
    assert row["tta"] and not plain["tta"]
    assert row["psnr_y"] > plain["psnr_y"]  # the mean of answers with random errors


def test_stdout_is_a_markdown_table_and_pictures_lie_side_by_side(
    small_checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO)
    arguments = [small_checkpoint, "--data", photos, "--limit", "1", "--task", "sr_x2", "denoise_30"]
    assert main([*map(str, arguments), "--pictures", str(tmp_path / "pictures")]) == 0
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    header, rule, *rows = lines
    assert len(rows) == 2 and len({len(line) for line in lines}) == 1
    assert header[:5] == ["task", "set", "images", "PSNR Y", "PSNR RGB"] and set("".join(rule)) == set("-:")
    assert rows[0][header.index("float PSNR RGB")] == "–" and float(rows[1][header.index("float PSNR RGB")]) > 5
    assert "sr_x2 1/1 kitten.png" in caplog.text
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["denoise_30-kitten.png", "sr_x2-kitten.png"]
    with Image.open(tmp_path / "pictures" / "sr_x2-kitten.png") as sheet:
        shown = np.asarray(sheet)
    clean = read_image("kitten")[:70, :86]
    assert shown.shape[1] == 4 * (2 * 70 + 8) + 8
    original = shown[26 : 26 + 140, -148:-8]
    candidates = [clean[:70, x : x + 70].repeat(2, axis=0).repeat(2, axis=1) for x in range(17)]
    assert any(np.array_equal(original, candidate) for candidate in candidates)


def test_an_infinite_psnr_is_an_error_that_names_the_image():
    clean = read_image("dog")[:40, :40]
    sample = Sample("dog.png", clean, clean.astype(np.float32))
    with pytest.raises(EvaluationError, match=r"dog\.png cannot be measured for derain: .* PSNR is infinite"):
        evaluate_image(sample, task("derain"), Restorer(lambda image, _: image, True, {}))


def test_a_network_that_returns_nan_is_an_error_that_names_the_image(small_checkpoint: Path):
    model = small_model()
    with torch.no_grad():
        model.tails["derain"].conv.bias[0] = float("nan")
    sample = Sample("dog.png", read_image("dog")[:40, :40], read_image("kitten")[:40, :40].astype(np.float32))
    with pytest.raises(EvaluationError, match=r"dog\.png .* NaN or Inf for the patch at row 0, column 0"):
        restorer = Restorer(lambda image, task: restore_image(model, image, task.name), True, {})
        evaluate_image(sample, task("derain"), restorer)


def spoil(photos: Path, what: str) -> None:
    """Make a test set one that cannot be evaluated."""
    if what == "empty":
        for path in photos.iterdir():
            path.unlink()
    elif what == "unreadable":
        (photos / "kitten.png").write_bytes(b"no picture")
    elif what == "truncated":
        (photos / "kitten.png").write_bytes((photos / "kitten.png").read_bytes()[:2000])
    elif what == "tiny":
        Image.new("RGB", (3, 40)).save(photos / "kitten.png")
    elif what == "small":
        Image.new("RGB", (12, 40)).save(photos / "kitten.png")
    elif what in ("pairs", "unmatched", "misshaped"):
        for kind in ("rain", "norain"):
            (photos / kind).mkdir()
            Image.new("RGB", (40, 30 if kind == "rain" and what == "misshaped" else 40)).save(photos / kind / "a.png")
        if what == "unmatched":
            (photos / "rain" / "b.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "name", "words"),
    [
        ("empty", "sr_x4", "holds neither images (.avif"),
        ("unreadable", "sr_x4", "kitten.png cannot be read: cannot identify"),
        ("truncated", "sr_x4", "kitten.png cannot be read: "),
        ("tiny", "sr_x4", "kitten.png is 3x40, smaller than the scale 4 of sr_x4"),
        ("small", "sr_x4", "kitten.png cannot be measured for sr_x4: SSIM needs at least 11 pixels"),
        ("pairs", "sr_x4", "holds rainy pairs, and task sr_x4 needs clean images"),
        ("unmatched", "derain", "must hold the same file names, and only one of them has b.png"),
        ("misshaped", "derain", "rain/a.png is 40x30, but "),
    ],
)
def test_a_set_that_cannot_be_evaluated_is_one_sentence(
    small_checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str], what: str, name: str, words: str
):
    spoil(photos, what)
    assert main([str(small_checkpoint), "--data", str(photos), "--task", name]) == 1
    out, err = capsys.readouterr()
    assert not out and words in err and err.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--task", "sharpen"], 2, "unknown task 'sharpen'; there are: 0 sr_x2"),
        (["--task", "derain", "--stride", "0"], 2, "STRIDE 0 is not allowed"),
        (["--task", "derain", "--keep", "50"], 2, "KEEP 50 is not allowed"),
        pytest.param(["--task", "derain", "--url", "127.0.0.1:1"], 1, "127.0.0.1:1", marks=pytest.mark.slow),
    ],
)
def test_wrong_arguments_have_a_status_of_their_own(
    small_checkpoint: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
):
    assert main([str(small_checkpoint), "--data", str(photos), *arguments]) == status
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--limit", "0"], ["--url", "localhost:1", "--precision", "bf16"]])
def test_contradicting_options_are_refused(photos: Path, wrong: list[str]):
    with pytest.raises(SystemExit) as end:
        main(["nowhere", "--data", str(photos), "--task", "derain", *wrong])
    assert end.value.code == 2


def test_a_missing_checkpoint_or_folder_is_named(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path), "--data", str(tmp_path), "--task", "derain"]) == 1
    assert "is not a checkpoint" in capsys.readouterr().err
    assert main([str(small_checkpoint), "--data", str(tmp_path / "none"), "--task", "derain"]) == 1
    assert "none is not a folder" in capsys.readouterr().err


def test_ipt_train_hands_the_arguments_to_its_sub_commands(
    small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["ipt-train", *words])
        return commands.train()

    assert run("evaluate", str(small_checkpoint), "--data", str(tmp_path / "none"), "--task", "0") == 1
    assert "none is not a folder" in capsys.readouterr().err
    for command in ("evaluate", *ipt_triton.train.__main__.COMMANDS):
        with pytest.raises(SystemExit) as end:
            run(command, "--help")
        assert end.value.code == 0 and "usage:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        run("bake")
    assert end.value.code == 2
