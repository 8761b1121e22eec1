"""Writing photos to paths and streams, with the metadata that the format can hold.

Pillow writes. Neither it nor OpenCV writes 16-bit colour together with ICC profile and EXIF, and Pillow fails at a
compressed TIFF with EXIF, so TIFF and 16-bit PNG and PPM are put together here.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, TiffTags

from ipt_triton.client.errors import ImageError, UnsupportedFormat
from ipt_triton.client.photo.formats import DEFLATE_LEVEL, Format, check_format
from ipt_triton.client.photo.metadata import IPTC_TIFF_TAG, PNG_XMP, jpeg_iptc, keep_text, png_texts
from ipt_triton.client.photo.picture import Photo
from ipt_triton.client.photo.samples import Samples, eight_bits
from ipt_triton.client.photo.xmp import with_provenance
from ipt_triton.files import atomic_file

log = logging.getLogger(__name__)

_PART_BYTES = 2**24
_TIFF_XMP = 700
_JPEG_XMP, _JPEG_COMMENT = 65_504, 65_533  # the most bytes that fit into one segment


def write_photo(
    photo: Photo,
    target: Path | str | BinaryIO,
    *,
    format: str | None = None,
    quality: int | None = None,
    flatten: tuple[int, int, int] | None = None,
    depth: Literal[8, 16] | None = None,
    metadata: bool = True,
    action: str = "",
    mtime: float | None = None,
) -> None:
    """Write a photo, replacing a file that is there.

    The file appears whole or not at all: it is written under a temporary name in the same folder and renamed. BMP and
    PPM drop the ICC profile and EXIF, with a warning in the log.

    Args:
        target: a path, or a binary file object, for which `format` must be given.
        format: a name in `FORMATS`, or "same" (see `check_format`); by default the path's suffix names it.
        quality: 1 to 100 of JPEG, WebP and AVIF. The default is high and not the source's: its artefacts are restored,
            and its quantisation would put them back.
        flatten: colour, 0 to 255, that is put under transparent pixels; the result has no alpha.
        depth: 8 rounds 16-bit samples to 8 bits; 16, the default, leaves them.
        metadata: False drops all but the ICC profile, without which colours change, and leaves no provenance.
        action: what was done, such as "sr_x2", for the history in XMP; see `recorded_action`.
        mtime: the file's time of modification, seconds since 1970; by default now. Paths only.

    Raises:
        UnsupportedFormat: see `check_format`; also a photo too large for the format.
        ImageError: the file cannot be written (no folder, no permission, no space).
        ValueError: a quality that is not 1 to 100.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality {quality} is not allowed; give 1 to 100")
    name = name_of(target)
    fmt = check_format(photo, name, format, flatten=flatten, depth=depth)
    photo = prepared(photo, flatten, depth, metadata, action if fmt.metadata else None)
    if not fmt.metadata and (photo.icc or photo.exif):
        log.warning("%s: %s holds no ICC profile and no EXIF; the photo's are dropped", name, fmt.pillow)
    try:
        data = _encode(photo, fmt, quality)
    except (ValueError, OSError, struct.error) as error:
        width, height = photo.size
        raise UnsupportedFormat(
            f"{name}: {width}x{height} pixels cannot be written as {fmt.pillow} ({error}); choose png or tiff"
        ) from error
    store(data, target, name, mtime)


def name_of(target: Path | str | BinaryIO) -> str:
    """What messages call the place that a photo is written to."""
    return str(target) if isinstance(target, (str, Path)) else str(getattr(target, "name", "the stream"))


def store(data: bytes, target: Path | str | BinaryIO, name: str, mtime: float | None) -> None:
    """Put a file's bytes where they belong, see `write_photo`.

    Raises:
        ImageError: the file cannot be written.
    """
    try:
        if not isinstance(target, (str, Path)):
            target.write(data)
            return
        path = Path(target)
        (path.parent / ".").stat()  # the folder is not made here
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
            if mtime is not None:
                os.utime(temporary, (mtime, mtime))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ImageError(f"{name} cannot be written: {error.strerror or error}") from error


def prepared(
    photo: Photo, flatten: tuple[int, int, int] | None, depth: int | None, metadata: bool, action: str | None
) -> Photo:
    """The photo as it is to be stored: flattened, reduced, and stripped or with its provenance (None: without)."""
    if flatten is not None and photo.alpha is not None:
        photo = _flattened(photo, flatten)
    if depth == 8 and photo.bits == 16:
        alpha = None if photo.alpha is None else eight_bits(photo.alpha)
        photo = replace(photo, pixels=eight_bits(photo.pixels), alpha=alpha)
    if not metadata:
        return replace(photo, exif=None, xmp=None, iptc=None, dpi=None, comment="", texts={})
    if action is None:
        return photo
    return replace(photo, xmp=with_provenance(photo.xmp, action))


def _flattened(photo: Photo, colour: tuple[int, int, int]) -> Photo:
    assert photo.alpha is not None
    top = np.iinfo(photo.pixels.dtype).max
    weights = (photo.alpha / top)[..., None]
    mixed = photo.pixels * weights + np.asarray(colour) * (top / 255) * (1 - weights)
    gray = photo.is_gray and len(set(colour)) == 1
    return replace(photo, pixels=np.rint(mixed).astype(photo.pixels.dtype), alpha=None, is_gray=gray)


def samples_of(photo: Photo, alpha: bool = True) -> Samples:
    """What is stored of a photo, [height, width, 1 to 4]: gray or colours, then alpha, if there is one and wanted."""
    samples = photo.pixels[..., :1] if photo.is_gray else photo.pixels
    return samples if photo.alpha is None or not alpha else np.dstack([samples, photo.alpha])


def _encode(photo: Photo, fmt: Format, quality: int | None) -> bytes:
    samples = samples_of(photo, fmt.alpha)
    if fmt.pillow == "TIFF":
        return b"II*\0" + struct.pack("<I", 8) + tiff_page(samples, photo, 8)
    if photo.bits == 16:
        return _png16(samples, photo) if fmt.pillow == "PNG" else _ppm16(samples, photo)
    options = {**fmt.options, **metadata_options(photo, fmt)}
    if quality is not None and "quality" in fmt.options:
        options["quality"] = quality
    buffer = io.BytesIO()
    Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(buffer, fmt.pillow, **options)
    return buffer.getvalue()  # a view of it in a cycle of references ends Python 3.12.1


def metadata_options(photo: Photo, fmt: Format) -> dict[str, Any]:
    """What Pillow's writer of the format takes of the photo's metadata."""
    options: dict[str, Any] = {}
    if photo.dpi and fmt.pillow in ("JPEG", "PNG", "BMP"):
        options["dpi"] = photo.dpi
    if not fmt.metadata:
        return options
    gray_profile = photo.icc is not None and photo.icc[16:20] == b"GRAY"
    if photo.icc and (fmt.gray or not gray_profile):
        options["icc_profile"] = photo.icc
    if photo.exif:
        options["exif"] = photo.exif
    if fmt.pillow == "PNG":
        options["pnginfo"] = _png_info(photo)
    elif photo.xmp and not (fmt.pillow == "JPEG" and len(photo.xmp) > _JPEG_XMP):
        options["xmp"] = photo.xmp
    elif photo.xmp:
        log.warning("XMP of %d bytes is too long for a JPEG and dropped", len(photo.xmp))
    if fmt.pillow == "JPEG":
        comment = photo.comment or photo.texts.get("Comment", "")
        if comment:
            options["comment"] = comment.encode()[:_JPEG_COMMENT]
        if photo.iptc:
            options["extra"] = jpeg_iptc(photo.iptc)
    return options


def _png_info(photo: Photo) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    if photo.xmp:
        info.add_itxt(PNG_XMP, photo.xmp.decode())
    for key, value in png_texts(dict(photo.texts), photo.comment, photo.iptc).items():
        info.add_text(key, value)
    return info


def _png16(samples: Samples, photo: Photo) -> bytes:
    """16-bit PNG of 1 to 4 channels (gray, gray and alpha, RGB, RGBA) with ICC profile and EXIF."""
    height, width, channels = samples.shape
    step = 2 * channels

    def filtered(part: Samples) -> Samples:
        rows = np.ascontiguousarray(part, ">u2").view(np.uint8).reshape(len(part), -1)
        made = np.ones((len(part), rows.shape[1] + 1), np.uint8)  # the first byte names the filter: 1 is Sub
        made[:, 1 : 1 + step] = rows[:, :step]
        np.subtract(rows[:, step:], rows[:, :-step], out=made[:, 1 + step :])
        return made

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if photo.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)))
    if photo.exif:
        chunks.append((b"eXIf", photo.exif.removeprefix(b"Exif\0\0")))
    if photo.dpi:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in photo.dpi), 1)))
    chunks += [(chunk[0], chunk[1]) for chunk in _png_info(photo).chunks]
    chunks += [(b"IDAT", _deflated(samples, filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _deflated(samples: Samples, predict: Callable[[Samples], Samples]) -> bytes:
    """What a predictor makes of samples [height, width, ...], deflated; some rows at a time, to save memory."""
    compressor = zlib.compressobj(DEFLATE_LEVEL)
    rows = max(1, _PART_BYTES // samples[0].nbytes)
    parts = [compressor.compress(predict(samples[top : top + rows]).tobytes()) for top in range(0, len(samples), rows)]
    return b"".join((*parts, compressor.flush()))


def tiff_page(samples: Samples, photo: Photo, offset: int) -> bytes:
    """A page of a TIFF, which begins at `offset` in the file: a directory, and samples of 1 to 4 channels.

    They are deflated with the horizontal predictor; the directory holds ICC profile and EXIF.
    """
    if samples.shape[2] == 2 and photo.bits == 16:  # neither Pillow nor OpenCV reads gray and alpha of this depth
        samples = samples[..., [0, 0, 0, 1]]
    height, width, channels = samples.shape

    def differences(part: Samples) -> Samples:
        made = part.astype(part.dtype.newbyteorder("<"))
        made[:, 1:] -= part[:, :-1]
        return made

    body = _deflated(samples, differences)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if photo.exif:
        exif = Image.Exif()
        exif.load(photo.exif)
        keep_text(exif)
        for tag in exif:
            if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
                directory = exif.get_ifd(tag)
                keep_text(directory)
                tags[tag] = directory
            else:
                tags[tag] = exif[tag]
    if photo.xmp:
        tags[_TIFF_XMP] = photo.xmp
    if photo.iptc:
        tags.tagtype[IPTC_TIFF_TAG] = TiffTags.UNDEFINED
        tags[IPTC_TIFF_TAG] = photo.iptc
    if photo.dpi:
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = photo.dpi
        tags[TiffImagePlugin.RESOLUTION_UNIT] = 2
    tags[TiffImagePlugin.IMAGEWIDTH] = width
    tags[TiffImagePlugin.IMAGELENGTH] = height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (photo.bits,) * channels
    tags[TiffImagePlugin.COMPRESSION] = 8
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if channels > 2 else 1
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # Pillow adds the directory's end
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = len(body)
    tags[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    tags[TiffImagePlugin.PREDICTOR] = 2
    if channels in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # not premultiplied
    if photo.icc:
        tags[TiffImagePlugin.ICCPROFILE] = photo.icc
    return tags.tobytes(offset) + body


def _ppm16(samples: Samples, photo: Photo) -> bytes:
    width, height = photo.size
    return f"P{5 if photo.is_gray else 6}\n{width} {height}\n65535\n".encode() + samples.astype(">u2").tobytes()
