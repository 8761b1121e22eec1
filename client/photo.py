"""Photos: image files with their orientation, alpha, ICC profile and EXIF, read into arrays and written back whole.

Pillow reads and writes. It reduces 16-bit colour to 8 bits on reading, so OpenCV reads those files. Neither library
writes 16-bit colour together with ICC profile and EXIF, and Pillow fails at a compressed TIFF with EXIF, so TIFF and
16-bit PNG and PPM are put together here.
"""

from __future__ import annotations

import io
import logging
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin

from ipt_triton.client.errors import (
    DamagedImage,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    RestorationError,
    UnsupportedFormat,
    UnsupportedImage,
)
from ipt_triton.files import atomic_file
from ipt_triton.reading import excerpt

log = logging.getLogger(__name__)

Samples = NDArray[Any]  # uint8 or uint16

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# A TIFF's EXIF directory is the file's own, so only tags that describe the picture may move to another file.
_TIFF_DESCRIPTIONS = frozenset(
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.XResolution,
        ExifTags.Base.YResolution,
        ExifTags.Base.ResolutionUnit,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.HostComputer,
        ExifTags.Base.Copyright,
        ExifTags.IFD.Exif,
        ExifTags.IFD.GPSInfo,
    )
)


@dataclass(frozen=True)
class Format:
    """An output format: Pillow's name for it and what it can hold."""

    pillow: str
    bits: int = 8
    alpha: bool = False
    gray: bool = True
    metadata: bool = True
    options: dict[str, Any] = field(default_factory=dict)


FORMATS: dict[str, Format] = {
    "png": Format("PNG", bits=16, alpha=True),
    "tiff": Format("TIFF", bits=16, alpha=True),
    "jpg": Format("JPEG", options={"quality": 95, "subsampling": 0}),
    "webp": Format("WEBP", alpha=True, gray=False, options={"quality": 95, "exact": True}),
    "avif": Format("AVIF", alpha=True, gray=False, options={"quality": 90, "subsampling": "4:4:4"}),
    "bmp": Format("BMP", metadata=False),
    "ppm": Format("PPM", bits=16, metadata=False),
}
"""Output formats by name. `gray` False: the file stores gray as colour. `metadata` False: no ICC profile, no EXIF."""

_ALIASES = {"jpeg": "jpg", "tif": "tiff", "pgm": "ppm", "pnm": "ppm"}
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "PPM", "GIF")
MAX_BYTES = 2**31
"""Of a file that is read; the most pixels that are allowed take less in any format."""

READ_SUFFIXES = frozenset(f".{name}" for name in (*FORMATS, *_ALIASES, "gif"))
"""Suffixes, in lower case, of the files that are taken from a folder."""


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo in memory, upright.

    Attributes:
        pixels: RGB [height, width, 3], uint8 or uint16 over the type's full range; gray photos hold it three times.
        alpha: opacity [height, width] of the same type, 0 transparent; None if the photo has none. Not premultiplied.
        is_gray: the photo is stored with one colour channel, and will be again.
        icc: ICC profile of `pixels`, or None.
        exif: EXIF block starting with b"Exif", without orientation, thumbnail and pixel size; or None.
    """

    pixels: Samples
    alpha: Samples | None = None
    is_gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype not in (np.uint8, np.uint16) or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(
                f"pixels are {self.pixels.dtype} {list(self.pixels.shape)}; "
                "uint8 or uint16 [height, width, 3] are allowed"
            )
        if self.alpha is not None and (
            self.alpha.shape != self.pixels.shape[:2] or self.alpha.dtype != self.pixels.dtype
        ):
            raise ValueError(
                f"alpha is {self.alpha.dtype} {list(self.alpha.shape)}; it must be {self.pixels.dtype} "
                f"{list(self.pixels.shape[:2])} like the pixels"
            )

    @property
    def bits(self) -> int:
        """Bits per sample, 8 or 16."""
        return self.pixels.dtype.itemsize * 8

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def planes(self) -> tuple[Samples, ...]:
        """The arrays to restore: the pixels ([height, width] if gray), and if the photo is not opaque its alpha too.

        With alpha the pixels are premultiplied, so that colours hidden under transparent pixels do not bleed into
        their neighbours, and are uint16, so that 8-bit colours survive it.
        """
        pixels = self.pixels[..., 0] if self.is_gray else self.pixels
        if self.alpha is None or _is_opaque(self.alpha):
            return (pixels,)
        top = np.iinfo(pixels.dtype).max
        weights = self.alpha * (65535.0 / (top * top))
        return np.rint(pixels * _like(weights, pixels)).astype(np.uint16), self.alpha

    def with_planes(self, restored: Sequence[Samples]) -> Photo:
        """The photo with its `planes()` replaced by their restored versions, of any one size.

        Args:
            restored: arrays in the order, and of the types and number of dimensions, of `planes()`.
        """
        pixels, alpha = restored[0], self.alpha
        if len(restored) == 2:
            alpha = restored[1]
            pixels = _unpremultiply(pixels, alpha)
        elif alpha is not None:
            alpha = np.full(pixels.shape[:2], np.iinfo(alpha.dtype).max, alpha.dtype)
        if self.is_gray:
            pixels = _as_rgb(pixels)
        return replace(self, pixels=pixels, alpha=alpha)


def read_photo(path: Path | str) -> Photo:
    """Read a PNG, JPEG, WebP, TIFF, BMP, AVIF, PPM/PGM or single-frame GIF file.

    EXIF orientation is applied and forgotten. Palettes become RGB, CMYK becomes sRGB (through its profile if it has
    one). 16-bit PNG, TIFF and PPM keep their depth.

    Raises:
        ImageError: the file cannot be opened.
        NotAnImage, DamagedImage, ImageTooLarge, UnsupportedImage: what is wrong with its contents.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise ImageError(f"{path} is no file; give an image file")
        if status.st_size > MAX_BYTES:
            raise ImageTooLarge(f"{path} holds {status.st_size} bytes; {MAX_BYTES} are allowed: make it smaller")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _decode(path, data)
    except (RestorationError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise NotAnImage(f"{path} is not an image that can be read; {', '.join(_READ_FORMATS)} are") from None
    except Image.DecompressionBombError:
        raise ImageTooLarge(
            f"{path} claims more than the {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels that are allowed; "
            "make it smaller or cut it into parts"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise DamagedImage(f"{path} is truncated or damaged ({excerpt(error)}); get a complete copy of it") from error


def check_format(photo: Photo, path: Path | str) -> Format:
    """The format that the path's suffix names, if it can hold the photo.

    Raises:
        UnsupportedFormat: unknown suffix, or the format lacks the photo's depth or alpha.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    fmt = FORMATS.get(_ALIASES.get(suffix, suffix))
    if fmt is None:
        raise UnsupportedFormat(f"{path}: no image format is called {suffix!r}; allowed are {', '.join(FORMATS)}")
    if photo.bits > fmt.bits:
        deep = " or ".join(name for name, f in FORMATS.items() if f.bits >= photo.bits and f.alpha >= _has_alpha(photo))
        raise UnsupportedFormat(f"{path}: {fmt.pillow} cannot hold {photo.bits}-bit samples; choose {deep}")
    if _has_alpha(photo) and not fmt.alpha:
        clear = " or ".join(name for name, f in FORMATS.items() if f.alpha and f.bits >= photo.bits)
        raise UnsupportedFormat(f"{path}: {fmt.pillow} cannot hold transparency; choose {clear}")
    return fmt


def write_photo(photo: Photo, path: Path | str) -> None:
    """Write a photo in the format of the path's suffix, replacing a file that is there.

    The file appears whole or not at all: it is written under a temporary name in the same folder and renamed. BMP and
    PPM drop the ICC profile and EXIF, with a warning in the log.

    Raises:
        UnsupportedFormat: see `check_format`; also a photo too large for the format.
        ImageError: the file cannot be written (no folder, no permission, no space).
    """
    path = Path(path)
    fmt = check_format(photo, path)
    if not fmt.metadata and (photo.icc or photo.exif):
        log.warning("%s: %s holds no ICC profile and no EXIF; the photo's are dropped", path, fmt.pillow)
    try:
        data = _encode(photo, fmt)
    except (ValueError, OSError, struct.error) as error:
        width, height = photo.size
        raise UnsupportedFormat(
            f"{path}: {width}x{height} pixels cannot be written as {fmt.pillow} ({error}); choose png or tiff"
        ) from error
    try:
        (path.parent / ".").stat()  # the folder is not made here
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{path} cannot be written: {error.strerror or error}") from error


def _decode(path: Path, data: bytes) -> Photo:
    with Image.open(io.BytesIO(data), formats=_READ_FORMATS) as image:
        _refuse_unsupported(path, image)
        maximum = _stored_maximum(image)
        is_gray = image.mode in _GRAY_MODES or "LA;16" in str(image.tile)  # Pillow calls the latter RGBA
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)  # Pillow has applied a TIFF's already
        icc = image.info.get("icc_profile")
        exif = _portable_exif(path, image)
        if maximum > 255:
            pixels, alpha = _deep_samples(path, image, data, maximum)
        else:
            has_alpha = image.has_transparency_data
            if image.mode == "CMYK":
                colours, icc = _cmyk_to_srgb(image, icc), None
            else:
                colours = image.convert("RGBA" if has_alpha else "RGB")
            samples = np.asarray(colours)
            pixels, alpha = samples[..., :3], samples[..., 3] if has_alpha else None
    return Photo(
        pixels=_upright(pixels, orientation),
        alpha=None if alpha is None else _upright(alpha, orientation),
        is_gray=is_gray,
        icc=icc,
        exif=exif,
    )


def _refuse_unsupported(path: Path, image: ImageFile.ImageFile) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo and its previews
    if frames > 1:
        raise UnsupportedImage(f"{path} holds {frames} frames; only single pictures are allowed: save each as a file")
    integer32 = image.mode == "I" and image.format == "TIFF"
    if image.mode not in (*_GRAY_MODES, *_COLOUR_MODES) or integer32:
        raise UnsupportedImage(
            f"{path} holds samples of kind {image.mode}; 8- and 16-bit gray, RGB and CMYK are allowed"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        white_is_zero = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if bits not in (1, 2, 4, 8, 16) or (bits == 16 and (white_is_zero or image.mode == "CMYK")):
            kind = "CMYK" if image.mode == "CMYK" else "inverted" if white_is_zero else ""
            raise UnsupportedImage(f"{path} holds {bits}-bit {kind} samples; convert it to 8- or 16-bit gray or RGB")
    if image.tile and image.tile[0].codec_name == "ppm_plain" and _stored_maximum(image) > 255:
        raise UnsupportedImage(f"{path} holds 16-bit samples as text; convert it to a binary PPM or PNG")


def _stored_maximum(image: ImageFile.ImageFile) -> int:
    """The largest value of the samples as the file stores them, which `image.mode` does not tell for colour."""
    arguments = image.tile[0].args if image.tile else None
    if image.format == "PPM" and isinstance(arguments, tuple):
        return int(arguments[1])
    return 65535 if ";16" in str(image.tile) else 255


def _deep_samples(path: Path, image: Image.Image, data: bytes, maximum: int) -> tuple[Samples, Samples | None]:
    alpha = None
    if image.mode in _GRAY_MODES:
        pixels = _as_rgb(np.asarray(image).astype(np.uint16))
    else:
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
            raise UnsupportedImage(f"{path} holds 16-bit colour that OpenCV cannot read; save it as a 16-bit RGB PNG")
        pixels = samples[..., 2::-1]
        if maximum != 65535:
            pixels = np.rint(pixels * (65535.0 / maximum)).astype(np.uint16)
        if image.mode == "RGBA":
            alpha = samples[..., 3]
    if "transparency" in image.info:  # PNG's colour key
        alpha = np.where((pixels != np.asarray(image.info["transparency"])).any(axis=2), 65535, 0).astype(np.uint16)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and alpha is not None:
        premultiplied = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES) == (1,)
        pixels = _unpremultiply(pixels, alpha) if premultiplied else pixels
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


def _portable_exif(path: Path, image: Image.Image) -> bytes | None:
    """EXIF that stays true in another file: no orientation, sizes or (Pillow drops it) thumbnail."""
    try:
        exif = image.getexif()
        dropped = {int(ExifTags.Base.Orientation)}
        if image.format == "TIFF":
            dropped |= set(exif) - _TIFF_DESCRIPTIONS
        for tag in dropped & set(exif):
            del exif[tag]
        details = exif.get_ifd(ExifTags.IFD.Exif)
        for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight):
            details.pop(tag, None)
        return exif.tobytes() if len(exif) else None
    except Exception as error:  # a photo is worth more than its EXIF
        log.warning("%s: its EXIF is damaged (%s) and dropped", path, error)
        return None


def _upright(samples: Samples, orientation: int) -> Samples:
    """Apply EXIF orientation 1..8 to [height, width, ...]; other values mean 1."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


def _is_opaque(alpha: Samples) -> bool:
    return bool((alpha == np.iinfo(alpha.dtype).max).all())


def _has_alpha(photo: Photo) -> bool:
    return photo.alpha is not None and not _is_opaque(photo.alpha)


def _unpremultiply(pixels: Samples, alpha: Samples) -> Samples:
    """Colours of uint16 premultiplied pixels, in alpha's type; 0 where alpha is 0."""
    top = np.iinfo(alpha.dtype).max
    colours = pixels * _like(top * top / 65535.0 / np.maximum(alpha, 1), pixels)
    colours[alpha == 0] = 0
    return np.rint(colours.clip(0, top)).astype(alpha.dtype)


def _like(weights: NDArray[np.float64], pixels: Samples) -> NDArray[np.float64]:
    return weights if pixels.ndim == 2 else weights[..., None]


def _as_rgb(gray: Samples) -> Samples:
    return np.repeat(gray[..., None], 3, axis=2)


def _encode(photo: Photo, fmt: Format) -> bytes:
    samples = photo.pixels[..., :1] if photo.is_gray else photo.pixels
    if photo.alpha is not None and fmt.alpha:
        samples = np.dstack([samples, photo.alpha])
    if fmt.pillow == "TIFF":
        return _tiff(samples, photo)
    if photo.bits == 16:
        return _png16(samples, photo) if fmt.pillow == "PNG" else _ppm16(samples, photo)
    options = dict(fmt.options)
    if fmt.metadata:
        gray_profile = photo.icc is not None and photo.icc[16:20] == b"GRAY"
        if photo.icc and (fmt.gray or not gray_profile):
            options["icc_profile"] = photo.icc
        if photo.exif:
            options["exif"] = photo.exif
    buffer = io.BytesIO()
    Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples).save(buffer, fmt.pillow, **options)
    return buffer.getvalue()


def _png16(samples: Samples, photo: Photo) -> bytes:
    """16-bit PNG of 1 to 4 channels (gray, gray and alpha, RGB, RGBA) with ICC profile and EXIF."""
    height, width, channels = samples.shape
    rows = np.ascontiguousarray(samples, ">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)  # the first byte names the filter: 1 is Sub
    step = 2 * channels
    filtered[:, 1 : 1 + step] = rows[:, :step]
    np.subtract(rows[:, step:], rows[:, :-step], out=filtered[:, 1 + step :])
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if photo.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)))
    if photo.exif:
        chunks.append((b"eXIf", photo.exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(filtered.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _tiff(samples: Samples, photo: Photo) -> bytes:
    """TIFF of 1 to 4 channels, deflated with the horizontal predictor, with ICC profile and EXIF."""
    if samples.shape[2] == 2 and photo.bits == 16:  # neither Pillow nor OpenCV reads gray and alpha of this depth
        samples = samples[..., [0, 0, 0, 1]]
    height, width, channels = samples.shape
    differences = samples.astype(samples.dtype.newbyteorder("<"))
    differences[:, 1:] -= samples[:, :-1]
    body = zlib.compress(differences.tobytes())
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if photo.exif:
        exif = Image.Exif()
        exif.load(photo.exif)
        for tag in exif:
            tags[tag] = exif.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else exif[tag]
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
    return b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8) + body


def _ppm16(samples: Samples, photo: Photo) -> bytes:
    width, height = photo.size
    return f"P{5 if photo.is_gray else 6}\n{width} {height}\n65535\n".encode() + samples.astype(">u2").tobytes()
