"""What the command offers beside restoring: streams, formats, comparisons, warnings, logs, and a server of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers.here import INFO, Here, run
from PIL import Image

from ipt_triton.client import local, restore
from ipt_triton.client.noise import denoising_warning, estimate_sigma
from ipt_triton.client.photo import Photo, read_photo, write_photo
from ipt_triton.metrics import psnr_y, ssim_y
from ipt_triton.tasks import OFFICIAL_TASKS, Chain

DERAIN = ("-t", "derain")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "server" not in request.keywords:
        monkeypatch.setattr(restore, "RestorationClient", Here)
        monkeypatch.setenv("IPT_URL", "here")


def picture(seed: int = 0, side: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def test_a_format_stays_as_it_is_unless_another_is_asked_for(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.webp", "d.tif"):
        write_photo(Photo(picture()), tmp_path / name)
    Image.fromarray(picture()).save(tmp_path / "e.gif")
    assert run(tmp_path, *DERAIN, "-o", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "b.png", "c.webp", "d.tif", "e.png"]
    for name in ("a.jpg", "c.webp", "d.tif"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.format == {"a.jpg": "JPEG", "c.webp": "WEBP", "d.tif": "TIFF"}[name]


def test_a_photo_goes_from_standard_input_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "PNG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.getvalue())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(os.dup(1), "wb")))
    assert run("-", *DERAIN, "-o", "-") == 0
    out, told = capfdbinary.readouterr()
    np.testing.assert_array_equal(read_photo(out).pixels, picture())
    assert told == b""


def test_quality_depth_flattening_and_metadata_are_as_asked_for(tmp_path: Path) -> None:
    clear = np.full((40, 40), 128, np.uint16) * 257
    write_photo(Photo(picture().astype(np.uint16) * 257, alpha=clear, comment="by hand"), tmp_path / "a.png")
    os.utime(tmp_path / "a.png", (10**9, 10**9))
    options = ("--depth", 8, "--flatten", "white")
    assert run(tmp_path / "a.png", *DERAIN, "-o", tmp_path / "good.jpg", *options) == 0
    assert run(tmp_path / "a.png", *DERAIN, "-o", tmp_path / "bad.jpg", *options, "-q", 5) == 0
    assert (tmp_path / "good.jpg").stat().st_size > 2 * (tmp_path / "bad.jpg").stat().st_size
    assert (tmp_path / "good.jpg").stat().st_mtime == 10**9 and read_photo(tmp_path / "good.jpg").comment == "by hand"
    assert run(tmp_path / "a.png", *DERAIN, "-o", tmp_path / "bare.png", "--strip-metadata") == 0
    assert read_photo(tmp_path / "bare.png").comment == "" and (tmp_path / "bare.png").stat().st_mtime > 10**9
    assert run(tmp_path / "a.png", *DERAIN, "-o", tmp_path / "clear.jpg", "--depth", 8) == 1


def test_a_result_is_compared_with_its_input_and_with_a_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy, clean = picture(1), picture(2)
    (tmp_path / "clean").mkdir()
    write_photo(Photo(noisy), tmp_path / "a.png")
    write_photo(Photo(clean), tmp_path / "clean" / "a.tif")
    report = tmp_path / "report.json"
    arguments = (*DERAIN, "-o", tmp_path / "out", "--compare", "--reference", tmp_path / "clean", "--json", report)
    assert run(tmp_path / "a.png", *arguments) == 0
    strip = read_photo(tmp_path / "out" / "a_compare.png").pixels
    np.testing.assert_array_equal(strip[:, :40], noisy)
    np.testing.assert_array_equal(strip[:, -40:], noisy)
    assert strip.shape == (40, 88, 3) and (strip[:, 40:48] == 255).all()
    figures = json.loads(report.read_text())["photos"][0]["figures"]
    assert figures["PSNR-Y"] == pytest.approx(psnr_y(noisy, clean), abs=1e-4)
    assert figures["SSIM-Y"] == pytest.approx(ssim_y(noisy, clean), abs=1e-6)
    assert f"PSNR-Y {figures['PSNR-Y']:.4g}" in capsys.readouterr().out
    write_photo(Photo(noisy), tmp_path / "[a].png")
    write_photo(Photo(clean), tmp_path / "clean" / "[a].tif")
    assert run(tmp_path / "[a].png", *DERAIN, "-o", tmp_path / "out", "--reference", tmp_path / "clean") == 0
    capsys.readouterr()
    write_photo(Photo(picture(3)), tmp_path / "b.png")
    assert run(tmp_path / "b.png", *DERAIN, "-o", tmp_path / "out", "--reference", tmp_path / "clean") == 1
    assert "holds 0 images called b; a reference must be one" in capsys.readouterr().err
    assert not (tmp_path / "out" / "b.png").exists()


@pytest.mark.parametrize("sigma", [3, 10, 30, 50])
def test_noise_is_estimated_within_a_quarter_and_a_level(sigma: float) -> None:
    ramp = np.broadcast_to(np.linspace(80, 180, 512)[:, None], (512, 512, 3)).reshape(512, 512, 3)
    noisy = ramp + np.random.default_rng(0).normal(0, sigma, (512, 512, 3))
    image = np.rint(noisy.clip(0, 255)).astype(np.uint8)
    found = estimate_sigma(image)
    assert found is not None and abs(found - sigma) <= 0.25 * sigma + 1
    assert estimate_sigma(image.astype(np.uint16) * 257) == pytest.approx(found, rel=1e-3)


def test_denoising_what_is_not_noisy_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = np.full((64, 64, 3), 120, np.uint8)
    write_photo(Photo(flat), tmp_path / "flat.png")
    assert run(tmp_path / "flat.png", "-t", "denoise_30", "-o", tmp_path / "out") == 0
    assert "flat.png: its noise is about σ 0, denoise_30 is for σ 30 and may blur or tint it" in capsys.readouterr().err
    assert estimate_sigma(np.zeros((64, 64, 3), np.uint8)) is None and estimate_sigma(flat[:9]) is None
    assert denoising_warning(flat, Chain((OFFICIAL_TASKS[0],))) == ""


def test_results_are_left_alone_while_they_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    told = ("a.jpg", "b.png", "c.webp", "d.tif", "e.avif")
    for name in (*told, "f.bmp"):
        write_photo(Photo(picture(side=200)), folder / name, mtime=10**9)

    def again(*options: object) -> set[str]:
        """Names of what a second run restores."""
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        assert run(folder, "-o", out, "--skip-existing", "--log", log, *options) == 0
        lines = map(json.loads, log.read_text().splitlines())
        return {Path(line["input"]).name for line in lines if line["status"] == "restored"}

    assert again(*DERAIN) == {*told, "f.bmp"} and again(*DERAIN) == set()
    for made in (
        (*DERAIN, "--strength", 0.5),
        ("-t", "derain,denoise_30"),
        (*DERAIN, "--tta"),
        (*DERAIN, "--stride", 12, "--keep", 24),
        (*DERAIN, "-q", 80),
        DERAIN,
    ):
        assert again(*made) == set(told) and again(*made) == set()  # nothing is known of a BMP
    os.utime(folder / "b.png", (10**9 + 1, 10**9 + 1))
    assert again(*DERAIN) == set()  # as coarsely as FAT keeps times
    for name in ("b.png", "f.bmp"):
        os.utime(folder / name, (10**9 + 60, 10**9 + 60))
    assert again(*DERAIN) == {"b.png"} and again(*DERAIN) == set()
    for weights in ("1" * 64, f"{'1' * 64},{'2' * 64}", f"{'1' * 64},{'3' * 64}"):
        monkeypatch.setattr(Here, "info", lambda _, weights=weights: replace(INFO, checkpoint_sha256=weights))
        assert again(*DERAIN) == set(told) and again(*DERAIN) == set()
    assert again(*DERAIN, "--strip-metadata", "--suffix", "_bare") == {*told, "f.bmp"}
    assert again("-t", "denoise_30", "--strip-metadata", "--suffix", "_bare") == set()


def test_a_file_that_is_not_ours_is_left_alone_however_old_it_is(tmp_path: Path) -> None:
    write_photo(Photo(picture()), tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    write_photo(Photo(picture(1)), tmp_path / "out" / "a.png", metadata=False, mtime=1)
    assert run(tmp_path / "a.png", *DERAIN, "-o", tmp_path / "out", "--skip-existing") == 0
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "a.png").pixels, picture(1))


def test_what_is_no_file_or_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    write_photo(Photo(picture()), tmp_path / "a.png")
    write_photo(Photo(picture()), tmp_path / "b.png")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / "b.png")  # who opens it waits for ever
    assert run(tmp_path / "a.png", tmp_path / "b.png", *DERAIN, "-o", tmp_path / "out", "--skip-existing") == 0


def test_a_photo_that_changes_while_it_is_restored_is_restored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(Photo(picture()), tmp_path / "a.png", mtime=10**9)
    arguments = (tmp_path / "a.png", *DERAIN, "-o", tmp_path / "out", "--skip-existing")

    def restore_and_change(_: Here, image: np.ndarray, *__: object, **___: object) -> np.ndarray:
        write_photo(Photo(picture(1)), tmp_path / "a.png", mtime=10**9 + 60)
        return image

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Here, "restore", restore_and_change)
        assert run(*arguments) == 0
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "a.png").pixels, picture())
    assert run(*arguments) == 0
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "a.png").pixels, picture(1))


def test_a_log_has_a_line_for_each_photo_and_says_what_was_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        write_photo(Photo(picture()), tmp_path / "in" / name)
    (tmp_path / "in" / "c.cr2").touch()
    (tmp_path / "in" / "notes.txt").touch()
    log, report = tmp_path / "log", tmp_path / "report.json"
    log.write_text('{"input": "before"}\n')
    assert run(tmp_path / "in", *DERAIN, "-o", tmp_path / "out", "--log", log, "--json", report) == 1
    told = capsys.readouterr().err
    assert "c.cr2: it cannot be read, being a camera's raw file: develop it" in told and "notes.txt: no images" in told
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line.get("status", "") for line in lines) == ["", "failed", "restored", "restored"]
    assert json.loads(report.read_text())["passed_over"] == {"number": 1, "first": [str(tmp_path / "in" / "notes.txt")]}


def test_where_no_server_can_be_started_one_must_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IPT_URL")
    monkeypatch.setattr(local, "answers", lambda url: False)
    monkeypatch.setattr(local, "fcntl", None)
    assert run("--list-tasks") == 2
    assert "a server of our own needs Linux; name one that runs with --url" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
def test_a_server_of_our_own_is_started_shared_kept_and_ended(tmp_path: Path) -> None:
    write_photo(Photo(picture()), tmp_path / "a.png")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("IPT_URL", None)
    weights = Path(restore.__file__).resolve().parents[1] / "weights" / "ipt-tiny"

    def restored(name: str, *words: str) -> str:
        command = [sys.executable, "-c", "import sys, ipt_triton.commands as c; sys.exit(c.restore())"]
        arguments = [str(tmp_path / "a.png"), *DERAIN, "-o", str(tmp_path / name), "--weights", str(weights), *words]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def processes(what: str) -> list[psutil.Process]:
        found = [p for p in psutil.process_iter(["cmdline"]) if what in " ".join(p.info["cmdline"] or [])]
        return [p for p in found if str(tmp_path) in " ".join(p.info["cmdline"])]

    def await_end(what: str) -> None:
        deadline = time.monotonic() + 60
        while processes(what) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes(what)

    first = restored("one.png", "--keep-server", "0.1")
    assert "exporting ipt-tiny into" in first and "starting a server of our own" in first
    assert len(processes("client.local")) == 1 and restored("two.png") == ""
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    await_end("client.local")
    assert not processes("--repository") and not list((tmp_path / "cache" / "ipt-triton").glob("*.server"))

    restored("three.png", "--keep-server", "5")
    (keeper,) = processes("client.local")
    keeper.kill()
    await_end("--repository")
    assert "starting a server of our own" in restored("four.png")
    await_end("client.local")
