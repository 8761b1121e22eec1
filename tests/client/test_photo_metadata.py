"""What is kept of a photo, what is told of its restoration, and the ways in and out other than paths."""

from __future__ import annotations

import io
import json
import logging
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.here import Here, run
from PIL import Image, ImageCms

from ipt_triton import version
from ipt_triton.client import restore
from ipt_triton.client.errors import ImageTooLarge, NotAnImage, UnsupportedFormat, UnsupportedImage
from ipt_triton.client.photo import (
    MAX_PIXELS,
    Photo,
    as_image,
    check_format,
    read_photo,
    recorded_action,
    same_format,
    unread_kind,
    write_photo,
)

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
IPTC = b"\x1c\x02\x78\x00\x07A title"  # record 2, data set 120: caption
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Camera"'
    b' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="Editor 1" xmp:Rating="4"/></rdf:RDF></x:xmpmeta>'
)
RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def full_photo(bits: int = 8) -> Photo:
    pixels = RGB if bits == 8 else RGB.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    source = Photo(pixels, icc=SRGB, exif=exif.tobytes(), iptc=IPTC, dpi=(300.0, 300.0), comment="by hand")
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", xmp=XMP)
    return Photo(**{**vars(source), "xmp": read_photo(buffer.getvalue()).xmp})


@pytest.mark.parametrize(("name", "bits"), [("jpg", 8), ("png", 8), ("png", 16), ("tiff", 8), ("tiff", 16)])
def test_iptc_resolution_xmp_and_comments_are_kept(tmp_path: Path, name: str, bits: int) -> None:
    path = tmp_path / f"a.{name}"
    write_photo(full_photo(bits), path, action="sr_x2")
    again = read_photo(path)
    assert again.iptc == IPTC and again.icc == SRGB and again.exif
    assert again.dpi == pytest.approx((300, 300), abs=0.1)
    assert again.xmp and b"Camera" in again.xmp and b"Rating" in again.xmp
    assert name == "tiff" or "by hand" in (again.comment, again.texts.get("Comment"))
    assert again.format == name


@pytest.mark.parametrize("name", ["jpg", "png", "tiff", "webp", "avif"])
def test_texts_of_exif_stay_the_bytes_that_they_were(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Jörg 雨".encode()
    write_photo(Photo(RGB, exif=exif.tobytes()), tmp_path / f"a.{name}")
    write_photo(read_photo(tmp_path / f"a.{name}"), tmp_path / f"b.{name}")
    assert "Jörg 雨".encode() in (tmp_path / f"b.{name}").read_bytes()


def test_iptc_is_kept_of_tiffs_that_hold_it_as_numbers(tmp_path: Path) -> None:
    records = IPTC + bytes(-len(IPTC) % 4)
    write_photo(Photo(RGB, iptc=records), tmp_path / "a.tif")
    undefined, numbers = struct.pack("<HHI", 33723, 7, len(records)), struct.pack("<HHI", 33723, 4, len(records) // 4)
    data = (tmp_path / "a.tif").read_bytes()
    assert data.count(undefined) == 1 and read_photo(data.replace(undefined, numbers)).iptc == records


@pytest.mark.parametrize("name", ["jpg", "png", "tiff", "webp", "avif"])
def test_xmp_tells_what_was_done_after_what_it_told_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    write_photo(full_photo(), path, action="sr_x2")
    write_photo(read_photo(path), path, action="derain")
    packet = read_photo(path).xmp
    assert packet is not None
    text = packet.decode()
    ElementTree.fromstring(text)
    assert "Orientation" not in text and "Editor 1" not in text
    assert text.count("<xmp:CreatorTool") == 1 and "ipt-triton " in text
    assert text.index("sr_x2") < text.index("derain") and text.count("<rdf:li") == 2


@pytest.mark.parametrize("name", ["jpg", "png", "tiff", "webp", "avif"])
def test_stripping_leaves_nothing_but_the_profile(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    write_photo(full_photo(), path, metadata=False, action="sr_x2")
    again = read_photo(path)
    assert (again.icc, again.exif, again.xmp, again.iptc, again.comment, again.texts) == (
        SRGB,
        None,
        None,
        None,
        "",
        {},
    )
    assert b"ipt-triton" not in path.read_bytes()


@pytest.mark.parametrize("packet", [b"<x", b"\xff\x00<", b'<!DOCTYPE a [<!ENTITY b "c">]><a/>', b"<a/>"])
def test_damaged_xmp_costs_a_warning_and_not_the_picture(packet: bytes, caplog: pytest.LogCaptureFixture) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", xmp=packet)
    with caplog.at_level(logging.WARNING):
        assert read_photo(buffer.getvalue()).xmp is None
    assert "XMP is damaged" in caplog.text


def test_paths_bytes_streams_pillow_and_arrays_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(Photo(RGB), path)
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), io.BytesIO(data), Image.fromarray(RGB), Photo(RGB)):
        photo = as_image(source)
        assert isinstance(photo, Photo)
        np.testing.assert_array_equal(photo.pixels, RGB)
    assert as_image(RGB) is RGB
    with pytest.raises(TypeError, match=r"type int is not allowed; give a path"):
        as_image(3)
    with pytest.raises(NotAnImage, match=r"^the image is not an image"):
        read_photo(b"text")


def test_a_stream_takes_what_a_file_takes() -> None:
    stream = io.BytesIO()
    write_photo(Photo(RGB), stream, format="png")
    np.testing.assert_array_equal(read_photo(stream.getvalue()).pixels, RGB)


def test_the_same_format_is_that_of_the_source_or_one_that_loses_nothing(tmp_path: Path) -> None:
    write_photo(Photo(RGB), tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    assert check_format(photo, "anything", "same").pillow == "JPEG"
    assert check_format(Photo(RGB, format="gif"), "anything", "same").pillow == "PNG"
    assert [same_format(name) for name in ("a.JPEG", "a.tif", "a.gif", "a.heic", "a")] == [
        "jpg",
        "tiff",
        "png",
        "png",
        "png",
    ]


def test_depth_and_flatten_make_photos_fit_into_a_jpeg(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 65535, np.uint16)
    photo = Photo(pixels, np.zeros((8, 8), np.uint16))
    with pytest.raises(UnsupportedFormat, match="16-bit"):
        write_photo(photo, tmp_path / "a.jpg", flatten=(255, 0, 0))
    with pytest.raises(UnsupportedFormat, match="transparency"):
        write_photo(photo, tmp_path / "a.jpg", depth=8)
    write_photo(photo, tmp_path / "a.jpg", flatten=(255, 0, 0), depth=8)
    red = read_photo(tmp_path / "a.jpg").pixels
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 2


def test_sixteen_bits_are_rounded_to_the_nearest_eight(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    write_photo(Photo(np.repeat(every[..., None], 3, 2)), tmp_path / "a.png", depth=8)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png").pixels[..., 0], np.rint(every / 257))


def test_provenance_holds_no_time_so_that_results_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("a.png", "b.png"):
        write_photo(full_photo(), tmp_path / name, action="sr_x2")
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    xmp = read_photo(tmp_path / "a.png").xmp
    assert xmp is not None and b"softwareAgent" in xmp and b"when" not in xmp


@pytest.mark.parametrize("name", ["jpg", "png", "tiff", "webp", "avif"])
def test_what_was_done_last_is_read_without_decoding_the_picture(tmp_path: Path, name: str) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    path = tmp_path / f"a.{name}"
    write_photo(Photo(noisy, icc=SRGB, exif=full_photo().exif, iptc=IPTC), path, action="sr_x2")
    write_photo(read_photo(path), path, action="derain; flatten <1 & 2>")
    assert path.stat().st_size > 400_000
    assert recorded_action(path) == "derain; flatten <1 & 2>"
    path.write_bytes(path.read_bytes().replace(b"derain; flatten", b"derain; \xff\xfeatten"))
    assert str(recorded_action(path)).startswith("derain; \ufffd")
    write_photo(Photo(noisy), path, metadata=False)
    assert recorded_action(path) is None


def test_sources_that_run_without_an_installation_write_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    version.installed_version.cache_clear()
    try:
        write_photo(Photo(RGB), tmp_path / "a.png", action="sr_x2")
    finally:
        version.installed_version.cache_clear()
    xmp = read_photo(tmp_path / "a.png").xmp
    assert xmp is not None and b"ipt-triton of a checkout" in xmp


def test_quality_and_time_are_as_asked(tmp_path: Path) -> None:
    write_photo(Photo(RGB), tmp_path / "low.jpg", quality=10, mtime=1_000_000_000)
    write_photo(Photo(RGB), tmp_path / "high.jpg")
    assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "high.jpg").stat().st_size
    assert (tmp_path / "low.jpg").stat().st_mtime == 1_000_000_000
    with pytest.raises(ValueError, match="quality 0 is not allowed; give 1 to 100"):
        write_photo(Photo(RGB), tmp_path / "a.jpg", quality=0)


def png_of(width: int, height: int, body: bytes) -> bytes:
    """A gray 1-bit PNG that declares a size."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(ImageTooLarge, match=rf"the {MAX_PIXELS} pixels that are allowed"):
        read_photo(png_of(30_000, 30_000, b""))
    with pytest.raises(ImageTooLarge, match=r"claims 400000000 pixels, more than its .* bytes can hold"):
        read_photo(png_of(20_000, 20_000, b""))


@pytest.mark.slow
def test_three_hundred_megapixels_are_read_without_a_warning() -> None:
    width, height = 20_000, 15_000
    body = zlib.compress(bytes((1 + width // 8) * height), 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(png_of(width, height, body)).size == (width, height)


def test_known_images_that_are_not_read_are_told_from_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "camera's raw file" in (unread_kind("a.CR2") or "") and "Photoshop" in (unread_kind(Path("a.psd")) or "")
    assert unread_kind("a.jpg") is None and unread_kind("a.txt") is None


def test_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("ipt_triton.client.photo.reading.find_spec", lambda name: None)
    with pytest.raises(UnsupportedImage, match=r"needs pillow-heif: pip install 'ipt-triton\[heif\]'"):
        read_photo(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))


def test_a_photo_of_a_telephone_is_read_with_its_profile_and_what_the_camera_wrote(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pixels = np.dstack(np.meshgrid(np.arange(30, 230, 2), np.arange(50, 210, 2), [120])).astype(np.uint8)
    exif = Image.Exif()
    exif[271] = "Camera"
    file = heif.from_pillow(Image.fromarray(pixels))
    file.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes(), icc_profile=SRGB)
    photo = read_photo(tmp_path / "a.heic")
    assert (photo.format, photo.icc) == ("heif", SRGB)
    assert photo.exif is not None and b"Camera" in photo.exif
    assert photo.pixels.shape == pixels.shape and np.abs(photo.pixels.astype(int) - pixels).mean() < 3


TAGS = """EXIF:Make=Camera EXIF:Model=M EXIF:Artist=Jörg EXIF:Copyright=©me EXIF:DateTimeOriginal=2020:01:02_03:04:05
EXIF:SubSecTimeOriginal=12 EXIF:OffsetTimeOriginal=+02:00 EXIF:ExposureTime=1/250 EXIF:FNumber=2.8 EXIF:ISO=400
EXIF:LensModel=50mm EXIF:OwnerName=Jörg EXIF:UserComment=hello EXIF:XPTitle=title EXIF:Rating=3 EXIF:GPSLatitude=48.2
EXIF:GPSLatitudeRef=N EXIF:GPSLongitude=16.3 EXIF:GPSLongitudeRef=E EXIF:GPSAltitude=170 EXIF:XResolution=300
EXIF:YResolution=300 IPTC:CodedCharacterSet=utf8 IPTC:Keywords=rain IPTC:Keywords=town IPTC:City=Wien
XMP-dc:Subject=rain XMP-dc:Title=Rain XMP-xmp:Rating=4 XMP-photoshop:City=Wien XMP-lr:HierarchicalSubject=a|b"""
INTENDED = {
    # Sides of what is upright now, and the provenance.
    *("IFD0:Orientation", "File:ImageWidth", "File:ImageHeight", "IFD0:ImageWidth", "IFD0:ImageHeight"),
    *("PNG:ImageWidth", "PNG:ImageHeight", "RIFF:ImageWidth", "RIFF:ImageHeight"),
    *("XMP-xmp:CreatorTool", "XMP-xmpMM:History"),
    # How samples are stored.
    *("File:YCbCrSubSampling", "QuickTime:ChromaFormat", "QuickTime:CompatibleBrands"),
    *("QuickTime:MediaDataOffset", "QuickTime:MediaDataSize", "IFD0:Compression", "IFD0:Predictor"),
    *("IFD0:RowsPerStrip", "IFD0:StripByteCounts", "IFD0:StripOffsets"),
}


def told(path: Path) -> dict[str, object]:
    """What exiftool tells of a file, by group and tag, without its place and times and what it derives."""
    command = ["exiftool", "-json", "-G1", "-a", "-struct", str(path)]
    (tags,) = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    outside = ("SourceFile", "ExifTool", "System", "Composite")
    return {key: value for key, value in tags.items() if key.split(":")[0] not in outside}


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool (Debian's libimage-exiftool-perl) is not installed")
@pytest.mark.parametrize("name", ["jpg", "png", "tif", "webp", "avif"])
def test_exiftool_finds_only_what_was_meant_to_change(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / f"a.{name}"
    Image.fromarray(RGB).save(source, icc_profile=SRGB, dpi=(300, 300))
    tags = [f"-{tag.replace('_', ' ')}" for tag in TAGS.split()]
    tags += ["-Comment=by hand"] if name in ("jpg", "png") else []
    # Of a turned AVIF Pillow hands out EXIF that it has written anew, with question marks.
    tags += ["-EXIF:Orientation#=6"] if name != "avif" else []
    subprocess.run(["exiftool", "-q", "-overwrite_original", *tags, source], check=True, capture_output=True)
    monkeypatch.setattr(restore, "RestorationClient", Here)
    assert run(source, "-t", "derain", "-o", tmp_path / "out", "--url", "here") == 0
    before, after = told(source), told(tmp_path / "out" / source.name)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed <= INTENDED and "XMP-xmpMM:History" in changed
    assert len(before) > 70 and before["IFD0:Artist"] == "Jörg" and after["ExifIFD:OwnerName"] == "Jörg"
