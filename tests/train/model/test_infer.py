"""Whole-image inference in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.support import read_image, small_model
from PIL import Image

from ipt_triton.benchmarks.quality.classical import bicubic_up
from ipt_triton.images import PHOTOS
from ipt_triton.metrics import psnr
from ipt_triton.train.model.infer import main, restore_image
from ipt_triton.train.model.ipt import IPT, PRESETS
from ipt_triton.train.model.start import identity_start

pytestmark = pytest.mark.usefixtures("repeatable")


def test_result_does_not_depend_on_the_batch_size():
    model, photo = small_model(), read_image("kitten")[:100, :140]
    one = restore_image(model, photo, "sr_x2", batch=1).astype(int)
    for batch in (3, 64):
        assert np.abs(restore_image(model, photo, "sr_x2", batch=batch) - one).max() <= 1


@pytest.mark.parametrize("task", ["sr_x2", "sr_x3", "sr_x4"])
def test_untrained_model_upsamples_bicubically(task: str):
    model = identity_start(IPT(PRESETS["ipt-tiny"])).eval()
    photo = read_image("torii")[:90, :110]
    scale = model.task(task).scale
    restored, expected = restore_image(model, photo, task), bicubic_up(photo, scale)
    border = 3 * scale  # the network pads with the mean colour, interpolation repeats the edge
    difference = np.abs(restored.astype(int) - expected)[border:-border, border:-border]
    assert difference.max() <= 1


def test_untrained_model_returns_the_picture_for_tasks_without_scale():
    model = identity_start(IPT(PRESETS["ipt-tiny"])).eval()
    photo = read_image("torii")[:90, :110]
    np.testing.assert_array_equal(restore_image(model, photo, "derain"), photo)


def test_bf16_stays_close_to_fp32():
    model, photo = small_model(), read_image("dog")[:60, :60]
    exact = restore_image(model, photo, "denoise_30")
    assert psnr(restore_image(model, photo, "denoise_30", precision="bf16"), exact) > 40


def test_command_writes_the_picture_that_the_function_returns(small_checkpoint: Path, tmp_path: Path):
    Image.fromarray(read_image("parrot")[:50, :70]).save(tmp_path / "in.png")
    output = tmp_path / "out.png"
    assert main([str(small_checkpoint), str(tmp_path / "in.png"), str(output), "--task", "0", "--keep", "48"]) == 0
    expected = restore_image(small_model(), read_image("parrot")[:50, :70], "sr_x2", keep=48)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), expected)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["in.png", "out.png", "--task", "sharpen"], 2, "unknown task 'sharpen'; there are: 0 sr_x2"),
        (["in.png", "out.png", "--task", "derain", "--stride", "47"], 1, "STRIDE 47 is not allowed"),
        (["in.png", "out.what", "--task", "derain"], 2, "out.what does not end like an image file; use one of .avif, "),
        (["none.png", "out.psd", "--task", "derain"], 2, "out.psd does not end like an image file"),  # before any work
        (["none.png", "out.png", "--task", "derain"], 1, "none.png"),
    ],
)
def test_wrong_argument_is_one_sentence_and_writes_nothing(
    small_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
):
    (tmp_path / "in.png").write_bytes((PHOTOS / "dog.png").read_bytes())
    paths = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert main([str(small_checkpoint), *paths]) == status
    assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["in.png"]
