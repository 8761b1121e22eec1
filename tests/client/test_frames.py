"""Animations and pages: every frame is read and written, with its timing and depth, or refused in a sentence."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.here import Here, run
from PIL import Image

from ipt_triton.client import restore
from ipt_triton.client.errors import DamagedImage, UnsupportedFormat
from ipt_triton.client.photo import Frames, Photo, read_frames, write_frames, write_photo

DURATIONS = [40, 120, 80]


def picture(seed: int, *, dtype: str = "uint8", side: int = 24) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (side, side + 6, 3), dtype, endpoint=True)


def animation(kind: str, **options: object) -> bytes:
    """Three frames of few colours, so that a GIF holds them too."""
    frames = [Image.fromarray(picture(seed) // 200 * 200) for seed in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=DURATIONS, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "plays"),
    [
        ("GIF", {"loop": 0}, 0),
        ("GIF", {}, 1),
        ("GIF", {"loop": 2}, 3),
        ("PNG", {"loop": 2}, 2),
        ("WEBP", {"loop": 0, "lossless": True}, 0),
        ("WEBP", {"loop": 4, "lossless": True}, 4),
    ],
)
def test_an_animation_is_read_frame_by_frame_with_its_timing(kind: str, options: dict[str, object], plays: int) -> None:
    frames = read_frames(animation(kind, **options))
    assert frames.durations == tuple(DURATIONS) and frames.plays == plays and not frames.is_single
    for seed, photo in enumerate(frames.photos):
        np.testing.assert_array_equal(photo.pixels, picture(seed) // 200 * 200)


@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
@pytest.mark.parametrize("clear", [False, True])
def test_an_animation_is_written_with_its_timing_in_formats_that_hold_one(
    tmp_path: Path, suffix: str, clear: bool
) -> None:
    alpha = np.full((24, 30), 255, np.uint8)
    alpha[:12] = 0
    photos = tuple(Photo(np.full((24, 30, 3), 80 * i, np.uint8), alpha if clear else None) for i in range(3))
    path = tmp_path / f"out.{suffix}"
    write_frames(Frames(photos, tuple(map(float, DURATIONS)), 3), path, quality=100)
    again = read_frames(path)
    assert again.durations == tuple(DURATIONS)
    assert again.plays == 3 or suffix == "avif"  # which tells of endless ones alone
    for photo, read in zip(photos, again.photos, strict=True):
        assert np.abs(read.pixels[12:].astype(int) - photo.pixels[12:]).max() <= 3
        assert (read.alpha is not None) == clear
        if read.alpha is not None:
            np.testing.assert_array_equal(read.alpha, alpha)


def test_pages_of_a_tiff_keep_their_own_sizes_depths_and_kinds(tmp_path: Path) -> None:
    deep = Photo(picture(1, dtype="uint16"), picture(2, dtype="uint16")[..., 0])
    gray = Photo(picture(3)[..., :1].repeat(3, 2), is_gray=True, dpi=(300.0, 300.0))
    pages = (Photo(picture(0), icc=None), deep, gray, Photo(picture(4, dtype="uint16", side=9)))
    write_frames(Frames(pages), tmp_path / "pages.tif")
    with Image.open(tmp_path / "pages.tif") as opened:
        assert opened.n_frames == 4
    again = read_frames(tmp_path / "pages.tif")
    assert again.durations == ()
    for page, read in zip(pages, again.photos, strict=True):
        np.testing.assert_array_equal(read.pixels, page.pixels)
        assert read.is_gray == page.is_gray
        if page.alpha is not None:
            np.testing.assert_array_equal(read.alpha, page.alpha)
    assert again.photos[2].dpi == (300, 300)


def test_a_single_picture_is_written_as_ever(tmp_path: Path) -> None:
    write_frames(Frames((Photo(picture(0)),)), tmp_path / "one.png")
    write_photo(Photo(picture(0)), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert read_frames(tmp_path / "one.png").is_single


@pytest.mark.parametrize(
    ("name", "durations", "sentence"),
    [
        ("out.jpg", (40.0, 40.0), "JPEG cannot hold 2 frames of an animation; choose png or webp or avif"),
        ("out.tif", (40.0, 40.0), "TIFF cannot hold 2 frames of an animation"),
        ("out.png", (), "PNG cannot hold 2 pages; choose tiff"),
    ],
)
def test_a_format_that_cannot_hold_them_is_refused(
    tmp_path: Path, name: str, durations: tuple[float, ...], sentence: str
) -> None:
    photos = (Photo(picture(0)), Photo(picture(1)))
    with pytest.raises(UnsupportedFormat, match=sentence):
        write_frames(Frames(photos, durations), tmp_path / name)
    assert not list(tmp_path.iterdir())
    sixteen = replace(photos[0], pixels=picture(0, dtype="uint16"))
    with pytest.raises(UnsupportedFormat, match="PNG cannot hold 2 16-bit frames of an animation"):
        write_frames(Frames((sixteen, sixteen), (40.0, 40.0)), tmp_path / "out.png")


def test_an_animation_that_is_cut_off_is_damaged() -> None:
    data = animation("PNG")
    with pytest.raises(DamagedImage):
        read_frames(data[: len(data) // 2])


def test_the_command_restores_every_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "RestorationClient", Here)
    monkeypatch.setenv("IPT_URL", "here")
    (tmp_path / "a.gif").write_bytes(animation("GIF", loop=0))
    (tmp_path / "b.webp").write_bytes(animation("WEBP", loop=0, lossless=True))
    write_frames(Frames((Photo(picture(0)), Photo(picture(1)))), tmp_path / "c.tif")
    assert run(tmp_path, "-t", "derain", "-o", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.webp", "c.tif"]
    made = read_frames(tmp_path / "out" / "a.png")
    assert made.durations == tuple(DURATIONS) and made.plays == 0
    np.testing.assert_array_equal(made.photos[2].pixels, picture(2) // 200 * 200)
    assert len(read_frames(tmp_path / "out" / "b.webp").photos) == 3
    np.testing.assert_array_equal(read_frames(tmp_path / "out" / "c.tif").photos[1].pixels, picture(1))
    assert run(tmp_path / "a.gif", "-t", "derain", "-o", tmp_path / "b.jpg") == 1
