"""Photos on disk: what is read is what was written, upright, whole or refused in one sentence."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from ipt_triton.client.errors import (
    DamagedImage,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    RestorationError,
    UnsupportedFormat,
    UnsupportedImage,
)
from ipt_triton.client.photo import FORMATS, MAX_PIXELS, Photo, check_format, read_photo, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = ExifTags.Base
in_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make_exif(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[EXIF.Make] = "Camera & Co"
    exif[EXIF.DateTime] = "2024:05:06 07:08:09"
    exif[ExifTags.IFD.Exif] = {EXIF.ExposureTime: 0.01, EXIF.ExifImageWidth: 999, EXIF.LensModel: "Lens 50"}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", ExifTags.GPS.GPSLatitude: (48.0, 8.0, 15.0)}
    if orientation:
        exif[EXIF.Orientation] = orientation
    return exif.tobytes()


def noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.dstack([rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)]).astype(
        "u1"
    )


@st.composite
def photos(draw: st.DrawFn, bits: tuple[int, ...] = (8, 16), alpha: bool = True) -> Photo:
    dtype = f"uint{draw(st.sampled_from(bits))}"
    height, width, seed = draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    is_gray = draw(st.booleans())
    pixels = noise((height, width, 1 if is_gray else 3), dtype, seed)
    return Photo(
        pixels=np.repeat(pixels, 3, axis=2) if is_gray else pixels,
        alpha=noise((height, width), dtype, seed + 1) if alpha and draw(st.booleans()) else None,
        is_gray=is_gray,
        icc=SRGB if draw(st.booleans()) else None,
        exif=make_exif() if draw(st.booleans()) else None,
    )


def assert_same_samples(photo: Photo, other: Photo) -> None:
    assert photo.pixels.dtype == other.pixels.dtype
    np.testing.assert_array_equal(photo.pixels, other.pixels)
    assert (photo.alpha is None) == (other.alpha is None)
    if photo.alpha is not None and other.alpha is not None:
        np.testing.assert_array_equal(photo.alpha, other.alpha)


def assert_same_exif(photo: Photo) -> None:
    assert photo.exif
    exif = Image.Exif()
    exif.load(photo.exif)
    assert exif[EXIF.Make] == "Camera & Co"
    details, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert details[EXIF.LensModel] == "Lens 50" and details[EXIF.ExposureTime] == pytest.approx(0.01)
    assert place[ExifTags.GPS.GPSLatitude] == (48.0, 8.0, 15.0)
    assert EXIF.Orientation not in exif and EXIF.ExifImageWidth not in details


@pytest.mark.parametrize("name", ["png", "tiff"])
@in_folder
@given(photo=photos())
def test_png_and_tiff_give_back_every_sample_profile_and_exif(tmp_path: Path, name: str, photo: Photo) -> None:
    path = tmp_path / f"photo.{name}"
    write_photo(photo, path)
    again = read_photo(path)
    assert_same_samples(photo, again)
    gray_alpha_16_tiff = name == "tiff" and photo.bits == 16 and photo.is_gray and photo.alpha is not None
    assert again.is_gray == (photo.is_gray and not gray_alpha_16_tiff)
    assert again.icc == photo.icc
    if photo.exif:
        assert_same_exif(again)


@pytest.mark.parametrize("name", ["bmp", "ppm", "pgm"])
@in_folder
@given(data=st.data())
def test_plain_formats_give_back_every_sample(tmp_path: Path, name: str, data: st.DataObject) -> None:
    photo = data.draw(photos(bits=(8,) if name == "bmp" else (8, 16), alpha=False))
    path = tmp_path / f"photo.{name}"
    write_photo(photo, path)
    again = read_photo(path)
    assert_same_samples(photo, again)
    assert again.is_gray == photo.is_gray


@pytest.mark.parametrize("name", ["jpg", "webp", "avif"])
def test_lossy_formats_stay_close_and_keep_profile_exif_and_alpha(tmp_path: Path, name: str) -> None:
    pixels = smooth(64, 80)
    alpha = pixels[..., 0] if FORMATS[name].alpha else None
    write_photo(Photo(pixels, alpha, icc=SRGB, exif=make_exif()), tmp_path / f"photo.{name}")
    again = read_photo(tmp_path / f"photo.{name}")
    assert np.abs(again.pixels.astype(int) - pixels).mean() < 3
    assert again.icc == SRGB
    assert_same_exif(again)
    if alpha is not None:
        assert again.alpha is not None and np.abs(again.alpha.astype(int) - alpha).mean() < 3


def test_sixteen_bit_files_are_read_the_same_by_opencv(tmp_path: Path) -> None:
    pixels, alpha = noise((20, 30, 3), "uint16"), noise((20, 30), "uint16", 1)
    for name in ("photo.png", "photo.tiff"):
        write_photo(Photo(pixels, alpha, icc=SRGB, exif=make_exif()), tmp_path / name)
        blue_first = cv2.imread(str(tmp_path / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(blue_first, np.dstack([pixels[..., ::-1], alpha]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["png", "jpg", "webp", "avif", "tiff"])
def test_orientation_is_applied_once_and_forgotten(tmp_path: Path, name: str, orientation: int) -> None:
    path = tmp_path / f"photo.{name}"
    Image.fromarray(smooth(24, 40)).save(path, exif=make_exif(orientation), **FORMATS[name].options)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    photo = read_photo(path)
    assert photo.size == ((40, 24) if orientation < 5 else (24, 40))
    np.testing.assert_array_equal(photo.pixels, upright)
    assert_same_exif(photo)
    write_photo(photo, tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as image:
        assert image.getexif().get(EXIF.Orientation, 1) == 1
    np.testing.assert_array_equal(read_photo(tmp_path / "again.png").pixels, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["png", "tiff"])
def test_orientation_of_sixteen_bit_colour_is_that_of_eight_bit(tmp_path: Path, name: str, orientation: int) -> None:
    pixels = smooth(24, 40)
    write_photo(Photo(pixels.astype(np.uint16) * 257, exif=make_exif(orientation)), tmp_path / f"deep.{name}")
    Image.fromarray(pixels).save(tmp_path / f"flat.{name}", exif=make_exif(orientation))
    deep, flat = read_photo(tmp_path / f"deep.{name}"), read_photo(tmp_path / f"flat.{name}")
    assert deep.bits == 16
    np.testing.assert_array_equal(deep.pixels, flat.pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_eight_bit_mode_reads_as_pillow_converts_it(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.dstack([smooth(30, 20), smooth(30, 20)[..., 0]])).convert("RGBA")
    image = image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)
    path = tmp_path / ("photo.tiff" if mode == "CMYK" else "photo.png")
    image.save(path)
    photo = read_photo(path)
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))
    assert photo.is_gray == (mode in ("1", "L", "LA"))
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(photo.alpha, np.asarray(image.getchannel("A")))
    else:
        assert photo.alpha is None


def test_a_palette_with_a_transparent_entry_has_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 1), 1)
    image.save(tmp_path / "photo.png", transparency=1)
    photo = read_photo(tmp_path / "photo.png")
    assert photo.alpha is not None and photo.alpha[1, 1] == 0 and photo.alpha[0, 0] == 255
    assert photo.pixels[0, 0].tolist() == [10, 20, 30] and photo.pixels[1, 1].tolist() == [200, 100, 50]


def test_a_sixteen_bit_colour_key_becomes_alpha(tmp_path: Path) -> None:
    pixels = noise((5, 6, 3), "uint16")
    write_photo(Photo(pixels), tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    body = b"tRNS" + pixels[2, 3].astype(">u2").tobytes()
    chunk = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "photo.png").write_bytes(data[:33] + chunk + data[33:])
    photo = read_photo(tmp_path / "photo.png")
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert photo.alpha is not None and photo.alpha[2, 3] == 0 and (photo.alpha == 0).sum() == 1


def test_a_premultiplied_sixteen_bit_tiff_is_divided_by_its_alpha(tmp_path: Path) -> None:
    alpha = np.full((4, 5), 32768, np.uint16)
    write_photo(Photo(np.full((4, 5, 3), 16384, np.uint16), alpha), tmp_path / "photo.tiff")
    data = (tmp_path / "photo.tiff").read_bytes()
    entry = struct.pack("<HHIHH", TiffImagePlugin.EXTRASAMPLES, 3, 1, 2, 0)
    assert data.count(entry) == 1
    (tmp_path / "photo.tiff").write_bytes(data.replace(entry, entry[:8] + struct.pack("<HH", 1, 0)))
    photo = read_photo(tmp_path / "photo.tiff")
    np.testing.assert_allclose(photo.pixels, 32768, atol=1)


def test_a_ten_bit_ppm_fills_the_whole_range(tmp_path: Path) -> None:
    samples = noise((6, 7, 3), "uint16") >> 6
    (tmp_path / "photo.ppm").write_bytes(b"P6 7 6 1023\n" + samples.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_photo(tmp_path / "photo.ppm").pixels, np.rint(samples * (65535 / 1023)))


@settings(deadline=None)
@given(photo=photos())
def test_restoring_with_an_identity_changes_nothing_that_can_be_seen(photo: Photo) -> None:
    again = photo.with_planes(photo.planes())
    assert again.is_gray == photo.is_gray and again.icc == photo.icc and again.exif == photo.exif
    if photo.alpha is None:
        assert_same_samples(photo, again)
        return
    np.testing.assert_array_equal(again.alpha, photo.alpha)
    shown = photo.alpha > 0
    # A half step of the premultiplied value, seen through the alpha.
    error = np.abs(again.pixels.astype(float) - photo.pixels)[shown]
    allowed = 0 if photo.bits == 8 else 0.5 + 0.5 * 65535 / photo.alpha[shown][:, None]
    assert (error <= allowed).all()


def test_colours_hidden_under_transparency_do_not_reach_the_network() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    alpha = np.full((4, 4), 255, np.uint8)
    alpha[:2] = 0
    colours, opacity = Photo(pixels, alpha).planes()
    assert not colours.any() and colours.dtype == np.uint16
    np.testing.assert_array_equal(opacity, alpha)


def test_an_opaque_alpha_is_not_restored_but_kept() -> None:
    photo = Photo(noise((4, 5, 3), "uint8"), np.full((4, 5), 255, np.uint8))
    (plane,) = photo.planes()
    larger = photo.with_planes([plane.repeat(2, 0).repeat(2, 1)])
    assert larger.alpha is not None and larger.alpha.shape == (8, 10) and (larger.alpha == 255).all()


def encoded(name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth(50, 70)).save(buffer, FORMATS[name].pillow, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_truncated_file_is_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"photo.{name}"
    path.write_bytes(encoded(name)[:-40] if name != "tiff" else encoded(name)[:4000])
    with pytest.raises(DamagedImage, match=r"photo\.\w+ is truncated or damaged"):
        read_photo(path)


@pytest.mark.parametrize("name", ["png", "tiff"])
def test_a_truncated_sixteen_bit_file_is_called_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"photo.{name}"
    write_photo(Photo(noise((40, 40, 3), "uint16")), path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DamagedImage):
        read_photo(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(in_folder, max_examples=150)
@given(
    name=st.sampled_from(["png", "jpg", "tiff", "webp", "bmp", "ppm"]),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    head_only=st.booleans(),
)
def test_a_damaged_file_is_read_or_refused_but_nothing_else(
    tmp_path: Path, name: str, damage: list[tuple[int, int]], head_only: bool
) -> None:
    data = bytearray(encoded(name, **({"exif": make_exif(6)} if FORMATS[name].metadata else {})))
    for position, value in damage:
        data[position % (min(len(data), 200) if head_only else len(data))] = value
    path = tmp_path / "photo"
    path.write_bytes(data)
    try:
        read_photo(path)
    except ImageError as error:
        assert str(path) in str(error)


def write_text(path: Path) -> None:
    path.write_text("not an image")


def write_nothing(path: Path) -> None:
    path.touch()


def write_bomb(path: Path) -> None:
    write_photo(Photo(noise((2, 2, 3), "uint8")), path)
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(path.read_bytes()[:12] + header + struct.pack(">I", zlib.crc32(header)) + path.read_bytes()[33:])


def write_animation(path: Path) -> None:
    frames = [Image.fromarray(smooth(8, 8) // n) for n in (1, 2, 3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def write_floats(path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(path, "TIFF")


def write_text_ppm(path: Path) -> None:
    path.write_text("P3 1 1 65535 1 2 3")


@pytest.mark.parametrize(
    ("write", "error", "sentence"),
    [
        (write_text, NotAnImage, "is not an image that can be read; PNG, JPEG"),
        (write_nothing, NotAnImage, "is not an image"),
        (write_bomb, ImageTooLarge, f"claims more than the {MAX_PIXELS} pixels that are allowed; make it smaller"),
        (write_animation, UnsupportedImage, "holds 3 frames; only single pictures are allowed"),
        (write_floats, UnsupportedImage, "holds samples of kind F; 8- and 16-bit"),
        (write_text_ppm, UnsupportedImage, "holds 16-bit samples as text"),
        (Path.mkdir, ImageError, "cannot be read: Is a directory"),
        (lambda path: None, ImageError, "cannot be read: No such file"),
    ],
)
def test_a_file_that_cannot_be_restored_is_refused_in_one_sentence(
    tmp_path: Path, write: Callable[[Path], None], error: type[ImageError], sentence: str
) -> None:
    path = tmp_path / "photo.png"
    write(path)
    with pytest.raises(error) as caught:
        read_photo(path)
    assert str(caught.value).startswith(f"{path} {sentence}") and "\n" not in str(caught.value)


def test_a_format_that_cannot_hold_the_photo_names_those_that_can(tmp_path: Path) -> None:
    deep = Photo(noise((2, 2, 3), "uint16"))
    with pytest.raises(UnsupportedFormat, match=r"JPEG cannot hold 16-bit samples; choose png or tiff or ppm$"):
        check_format(deep, tmp_path / "a.jpg")
    clear = Photo(noise((2, 2, 3), "uint8"), np.zeros((2, 2), np.uint8))
    with pytest.raises(UnsupportedFormat, match=r"BMP cannot hold transparency; choose png or tiff or webp or avif$"):
        write_photo(clear, tmp_path / "a.bmp")
    with pytest.raises(UnsupportedFormat, match="no image format is called 'xyz'; allowed are png"):
        write_photo(deep, tmp_path / "a.xyz")
    with pytest.raises(UnsupportedFormat, match="16400x1 pixels cannot be written as WEBP"):
        write_photo(Photo(np.zeros((1, 16_400, 3), np.uint8)), tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_what_was_there_and_no_other_file(tmp_path: Path) -> None:
    photo = Photo(noise((4, 4, 3), "uint8"))
    with pytest.raises(ImageError, match="cannot be written: No such file"):
        write_photo(photo, tmp_path / "nowhere" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError, match="cannot be written: Is a directory"):
        write_photo(photo, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


FAILED_WRITES = """
import gc, sys
import numpy as np
from ipt_triton.client.errors import ImageError
from ipt_triton.client.photo import Photo, write_photo
for _ in range(20):
    try:
        write_photo(Photo(np.zeros((4, 4, 3), np.uint8)), sys.argv[1])
    except ImageError as error:
        kept = [error]
        kept.append(kept)
gc.collect()
"""


def test_errors_of_failed_writes_are_collected_as_garbage(tmp_path: Path) -> None:
    """Their frames hold the encoded file; of a view of a BytesIO Python 3.12.1 dies then."""
    command = [sys.executable, "-c", FAILED_WRITES, str(tmp_path / "nowhere" / "a.png")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_photo(Photo(noise((4, 4, 3), "uint8")), tmp_path / "a.png")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_every_error_of_images_is_one_of_the_client() -> None:
    assert issubclass(ImageError, RestorationError)


def test_a_photo_refuses_arrays_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="pixels are float32"):
        Photo(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match="alpha is uint8"):
        Photo(np.zeros((2, 2, 3), np.uint16), np.zeros((2, 2), np.uint8))
