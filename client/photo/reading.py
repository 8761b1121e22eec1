"""Reading photos from paths, bytes and streams: refused in one sentence, or whole, upright and with their metadata.

Pillow reads. It reduces 16-bit colour to 8 bits on reading, so OpenCV reads those files.
"""

from __future__ import annotations

import io
import logging
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin

from ipt_triton.client.errors import (
    DamagedImage,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    RestorationError,
    UnsupportedImage,
)
from ipt_triton.client.photo.formats import FORMATS, NO_HEIF
from ipt_triton.client.photo.metadata import metadata_of
from ipt_triton.client.photo.picture import Photo
from ipt_triton.client.photo.samples import Samples, as_rgb, unpremultiply, upright
from ipt_triton.reading import excerpt

log = logging.getLogger(__name__)

Source: TypeAlias = Path | str | bytes | bytearray | memoryview | BinaryIO
"""What photos are read from: a path, the bytes of a file, or a binary file object such as `sys.stdin.buffer`."""

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "PPM", "GIF")
_KINDS = {**{fmt.pillow: name for name, fmt in FORMATS.items()}, "MPO": "jpg", "GIF": "gif", "HEIF": "heif"}
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")

MAX_BYTES = 2**31
"""Of a file that is read; the most pixels that are allowed take less in any format."""

MAX_PIXELS = 2**29
"""Of a picture that is read, 537 megapixels: the client splits what the server does not take at once."""

_UNQUESTIONED_PIXELS, _PIXELS_PER_BYTE = 2**27, 8 * 1032
# Deflate packs at most 1032 bytes into one, and a byte holds at most eight pixels: a file that declares many must be
# large enough to hold them.


_PART_PIXELS = 2**22


@dataclass(frozen=True)
class Header:
    """What the beginning of a picture's file says: format as in `Photo`, and the sides of the upright picture."""

    format: str
    width: int
    height: int


def read_header(source: Source, max_pixels: int = MAX_PIXELS) -> Header:
    """What a picture is, without decoding it.

    Raises:
        ImageError, NotAnImage, DamagedImage, ImageTooLarge, UnsupportedImage: as `read_photo`, as far as is seen so.
    """
    name, data = load(source)
    with explained(name, max_pixels), open_image(name, data, max_pixels) as image:
        _refuse_frames(name, image)
        _refuse_unsupported(name, image)
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
            width, height = height, width
        return Header(_KINDS.get(image.format or "", str(image.format)), width, height)


def read_photo(source: Source, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, AVIF, PPM/PGM, single-frame GIF, or where pillow-heif is installed HEIC.

    EXIF orientation is applied and forgotten, in XMP too. Palettes become RGB, CMYK becomes sRGB (through its profile
    if it has one). 16-bit PNG, TIFF and PPM keep their depth.

    Args:
        source: a path, the bytes of a file, or a binary file object, which is read to its end.
        max_pixels: that are allowed, at most `MAX_PIXELS`.

    Raises:
        ImageError: the file cannot be opened.
        NotAnImage, DamagedImage, ImageTooLarge, UnsupportedImage: what is wrong with its contents. More than
            `max_pixels`, and what a file of its length cannot hold, is refused before there is memory for it.
    """
    name, data = load(source)
    with explained(name, max_pixels), open_image(name, data, max_pixels) as image:
        _refuse_frames(name, image)
        return decode(name, image, data)


@contextmanager
def explained(name: str, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """What decoders raise on broken files, as what `read_photo` raises."""
    try:
        yield
    except (RestorationError, MemoryError):
        raise
    except Image.DecompressionBombError:  # of a part that is larger than its picture
        raise ImageTooLarge(_too_large(name, max_pixels)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise DamagedImage(f"{name} is truncated or damaged ({excerpt(error)}); get a complete copy of it") from error


def as_image(image: Any) -> Photo | Samples:
    """What a caller may give for an image, as what can be restored: arrays as they are, all else as a `Photo`.

    Args:
        image: a numpy array, a `Photo`, a PIL image, or what `read_photo` takes.

    Raises:
        ImageError: as `read_photo`.
        TypeError: anything else.
    """
    if isinstance(image, (np.ndarray, Photo)):
        return image
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    if isinstance(image, (str, Path, bytes, bytearray, memoryview)) or hasattr(image, "read"):
        return read_photo(image)
    raise TypeError(
        f"an image of type {type(image).__name__} is not allowed; "
        "give a path, bytes, a binary file, a PIL image or a numpy array"
    )


def _of_pillow(image: Image.Image) -> Photo:
    """A PIL image as a photo, by way of a TIFF or PNG in memory, so that every mode is treated as in a file."""
    buffer = io.BytesIO()
    kept = {"exif": image.getexif().tobytes()} if len(image.getexif()) else {}
    if image.info.get("icc_profile"):
        kept["icc_profile"] = image.info["icc_profile"]
    lossless = "TIFF" if image.mode in ("CMYK", "YCbCr", "F", "RGBX") else "PNG"
    try:
        image.save(buffer, lossless, **({"compress_level": 1} if lossless == "PNG" else {}), **kept)
    except (OSError, ValueError) as error:
        raise UnsupportedImage(f"a PIL image of mode {image.mode} cannot be restored ({excerpt(error)})") from error
    return read_photo(buffer.getvalue())


def load(source: Source) -> tuple[str, bytes]:
    """The name of a source, for messages, and its bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _bounded("the image", bytes(source))
    if not isinstance(source, (str, Path)):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "the stream"
        try:
            return _bounded(name, source.read(MAX_BYTES + 1))
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
    path = Path(source)
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError(f"{path} is no file; give an image file")
        if status.st_size > MAX_BYTES:
            raise ImageTooLarge(f"{path} holds {status.st_size} bytes; {MAX_BYTES} are allowed: make it smaller")
        return str(path), path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _bounded(name: str, data: bytes) -> tuple[str, bytes]:
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"{name} holds more than the {MAX_BYTES} bytes that are allowed: make it smaller")
    return name, data


def _too_large(name: str, max_pixels: int) -> str:
    return f"{name} claims more than the {max_pixels} pixels that are allowed; make it smaller or cut it into parts"


def open_image(name: str, data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFile.ImageFile:
    """Open by Pillow's readers themselves: `Image.open` has a lower limit of pixels, and warns before it.

    Raises:
        NotAnImage, UnsupportedImage, ImageTooLarge: what is wrong with it.
    """
    Image.init()
    formats: tuple[str, ...] = _READ_FORMATS
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        if not find_spec("pillow_heif"):
            raise UnsupportedImage(f"{name} is {NO_HEIF}")
        import pillow_heif

        pillow_heif.register_heif_opener()
        formats = (*_READ_FORMATS, "HEIF")
    for kind in formats:
        factory, accepts = Image.OPEN[kind]
        if accepts is None or _true(accepts(data[:16])):
            try:
                image = factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
            _check_size(name, image, len(data), max_pixels)
            return image
    raise NotAnImage(f"{name} is not an image that can be read; {', '.join(formats)} are")


def _true(answer: bool | str) -> bool:
    """What a reader says of a file's beginning; text is its reason to refuse."""
    return not isinstance(answer, str) and bool(answer)


def _check_size(name: str, image: Image.Image, held: int, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageTooLarge(_too_large(name, max_pixels))
    if pixels > max(_UNQUESTIONED_PIXELS, held * _PIXELS_PER_BYTE):
        raise ImageTooLarge(f"{name} claims {pixels} pixels, more than its {held} bytes can hold; get a complete copy")


def count_frames(image: ImageFile.ImageFile) -> int:
    """Pictures of a file; 1 for MPO, which is a photo and its previews."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _refuse_frames(name: str, image: ImageFile.ImageFile) -> None:
    if (frames := count_frames(image)) > 1:
        raise UnsupportedImage(f"{name} holds {frames} frames; only single pictures are allowed here")


def decode(name: str, image: ImageFile.ImageFile, data: bytes, page: int = 0) -> Photo:
    """The picture at which an opened file stands.

    Args:
        data: the file.
        page: the number of that picture, from 0.
    """
    _refuse_unsupported(name, image)
    maximum = _stored_maximum(image)
    is_gray = image.mode in _GRAY_MODES or "LA;16" in str(image.tile)  # Pillow calls the latter RGBA
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)  # Pillow has applied a TIFF's already
    icc = image.info.get("icc_profile")
    metadata = metadata_of(name, image)
    kind = _KINDS.get(image.format or "", image.format)
    if maximum > 255:
        pixels, alpha = _deep_samples(name, image, data, maximum, page)
    else:
        has_alpha = image.has_transparency_data
        colours: Image.Image = image
        if image.mode == "CMYK":
            colours, icc = _cmyk_to_srgb(image, icc), None
        samples = _samples(colours, "RGBA" if has_alpha else "RGB")
        pixels, alpha = samples[..., :3], samples[..., 3] if has_alpha else None
    return Photo(
        pixels=upright(pixels, orientation),
        alpha=None if alpha is None else upright(alpha, orientation),
        is_gray=is_gray,
        icc=icc,
        format=kind,
        **metadata,
    )


def _samples(image: Image.Image, mode: str) -> Samples:
    """A loaded picture's samples in a mode of 8-bit samples, uint8 [height, width, channels].

    Part by part: on its way from Pillow to an array a picture is in memory three times.
    """
    samples = np.empty((image.height, image.width, len(mode)), np.uint8)
    rows = max(1, _PART_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        part = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        samples[top:bottom] = np.asarray(part if part.mode == mode else part.convert(mode))
    return samples


def _refuse_unsupported(name: str, image: ImageFile.ImageFile) -> None:
    integer32 = image.mode == "I" and image.format == "TIFF"
    if image.mode not in (*_GRAY_MODES, *_COLOUR_MODES) or integer32:
        raise UnsupportedImage(
            f"{name} holds samples of kind {image.mode}; 8- and 16-bit gray, RGB and CMYK are allowed"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if bits not in (1, 2, 4, 8, 16) or (bits == 16 and (white_is_zero or image.mode == "CMYK")):
            kind = "CMYK" if image.mode == "CMYK" else "inverted" if white_is_zero else ""
            raise UnsupportedImage(f"{name} holds {bits}-bit {kind} samples; convert it to 8- or 16-bit gray or RGB")
    if image.tile and image.tile[0].codec_name == "ppm_plain" and _stored_maximum(image) > 255:
        raise UnsupportedImage(f"{name} holds 16-bit samples as text; convert it to a binary PPM or PNG")


def _stored_maximum(image: ImageFile.ImageFile) -> int:
    """The largest value of the samples as the file stores them, which `image.mode` does not tell for colour."""
    arguments = image.tile[0].args if image.tile else None
    if image.format == "PPM" and isinstance(arguments, tuple):
        return int(arguments[1])
    return 65535 if ";16" in str(image.tile) else 255


def _deep_samples(
    name: str, image: Image.Image, data: bytes, maximum: int, page: int
) -> tuple[Samples, Samples | None]:
    alpha = None
    if image.mode in _GRAY_MODES:
        pixels = as_rgb(np.asarray(image).astype(np.uint16))
    else:
        _, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED, range=(page, page + 1))
        samples = pages[0] if pages else None
        if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
            raise UnsupportedImage(f"{name} holds 16-bit colour that OpenCV cannot read; save it as a 16-bit RGB PNG")
        pixels = samples[..., 2::-1]
        if maximum != 65535:
            pixels = np.rint(pixels * (65535.0 / maximum)).astype(np.uint16)
        if image.mode == "RGBA":
            alpha = samples[..., 3]
    if "transparency" in image.info:  # PNG's colour key
        alpha = np.where((pixels != np.asarray(image.info["transparency"])).any(axis=2), 65535, 0).astype(np.uint16)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and alpha is not None:
        premultiplied = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES) == (1,)
        pixels = unpremultiply(pixels, alpha) if premultiplied else pixels
    return pixels, alpha


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError) as error:
            log.warning("the CMYK profile is unusable (%s); colours are converted without it", error)
    return image.convert("RGB")
