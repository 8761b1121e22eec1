"""Image formats: which are written and what each can hold, which are read, and which are known but not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ipt_triton.client.errors import UnsupportedFormat
from ipt_triton.client.photo.picture import Photo


@dataclass(frozen=True)
class Format:
    """An output format: Pillow's name for it and what it can hold."""

    pillow: str
    bits: int = 8
    alpha: bool = False
    gray: bool = True
    metadata: bool = True
    options: dict[str, Any] = field(default_factory=dict)


DEFLATE_LEVEL = 4
"""Of PNG and TIFF. A photo of 12 megapixels takes 1.0 s and 7.5 MB; at zlib's own level, 6, 2.7 s and 7.1 MB."""

FORMATS: dict[str, Format] = {
    "png": Format("PNG", bits=16, alpha=True, options={"compress_level": DEFLATE_LEVEL}),
    "tiff": Format("TIFF", bits=16, alpha=True),
    "jpg": Format("JPEG", options={"quality": 95, "subsampling": 0}),
    "webp": Format("WEBP", alpha=True, gray=False, options={"quality": 95, "exact": True}),
    "avif": Format("AVIF", alpha=True, gray=False, options={"quality": 90, "subsampling": "4:4:4"}),
    "bmp": Format("BMP", metadata=False),
    "ppm": Format("PPM", bits=16, metadata=False),
}
"""Output formats by name. `gray` False: the file stores gray as colour. `metadata` False: no ICC profile, no EXIF."""

_ALIASES = {"jpeg": "jpg", "tif": "tiff", "pgm": "ppm", "pnm": "ppm"}
_HEIF = frozenset({".heic", ".heif", ".hif"})
_RAW = frozenset(
    f".{name}"
    for name in [
        "3fr",
        "arw",
        "cr2",
        "cr3",
        "crw",
        "dng",
        "erf",
        "kdc",
        "mrw",
        "nef",
        "nrw",
        "orf",
        "pef",
        "raf",
        "raw",
        "rw2",
        "rwl",
        "sr2",
        "srw",
        "x3f",
    ]
)
_UNREAD = {
    **dict.fromkeys(_RAW, "a camera's raw file: develop it to TIFF or JPEG first"),
    ".jxl": "JPEG XL: convert it to PNG or TIFF first",
    ".psd": "a Photoshop file: export it as TIFF or PNG first",
    ".psb": "a Photoshop file: export it as TIFF or PNG first",
    ".svg": "a drawing: export it as PNG first",
    ".jp2": "JPEG 2000: convert it to PNG or TIFF first",
    ".exr": "floating point: convert it to a 16-bit TIFF first",
    ".hdr": "floating point: convert it to a 16-bit TIFF first",
}
NO_HEIF = "HEIC, which needs pillow-heif: pip install 'ipt-triton[heif]'"

WRITTEN_SUFFIXES = frozenset(f".{name}" for name in (*FORMATS, *_ALIASES))
"""Suffixes, in lower case, of the formats that are written."""

READ_SUFFIXES = (WRITTEN_SUFFIXES | {".gif"}) | (_HEIF if find_spec("pillow_heif") else frozenset())
"""Suffixes, in lower case, of the files that are taken from a folder; those of HEIC where pillow-heif is installed."""


def unread_kind(path: Path | str) -> str | None:
    """What an image is that is known by its suffix but cannot be read, and what to do; None for any other file."""
    suffix = Path(path).suffix.lower()
    if suffix in READ_SUFFIXES:
        return None
    return NO_HEIF if suffix in _HEIF else _UNREAD.get(suffix)


def format_named(name: str) -> str | None:
    """The name in `FORMATS` of a format or suffix, such as "jpg" of ".JPEG"; None if it is not written."""
    name = name.lower().removeprefix(".")
    name = _ALIASES.get(name, name)
    return name if name in FORMATS else None


def same_format(source: Path | str) -> str:
    """The output format, a name in `FORMATS`, that is the same as a source file's by its suffix.

    What is read but not written (GIF, HEIC) and what has no known suffix becomes "png", which loses nothing.
    """
    return format_named(Path(source).suffix) or "png"


def check_format(
    photo: Photo,
    path: Path | str,
    format: str | None = None,
    *,
    flatten: tuple[int, int, int] | None = None,
    depth: Literal[8, 16] | None = None,
) -> Format:
    """The format to write, if it can hold the photo.

    Args:
        path: its suffix names the format if `format` does not; named in errors.
        format: a name in `FORMATS`, or "same": that of the file the photo was read from, "png" if it is not written.
        flatten, depth: as for `write_photo`.

    Raises:
        UnsupportedFormat: unknown format, or it lacks the photo's depth or alpha.
    """
    asked = Path(path).suffix.lower().removeprefix(".") if format is None else format
    name = (format_named(photo.format or "") or "png") if asked == "same" else format_named(asked)
    if name is None:
        raise UnsupportedFormat(f"{path}: no image format is called {asked!r}; allowed are {', '.join(FORMATS)}")
    fmt = FORMATS[name]
    bits, clear = min(photo.bits, depth or 16), photo.has_alpha and flatten is None
    if bits > fmt.bits:
        deep = " or ".join(name for name, f in FORMATS.items() if f.bits >= bits and f.alpha >= clear)
        raise UnsupportedFormat(f"{path}: {fmt.pillow} cannot hold {bits}-bit samples; choose {deep}")
    if clear and not fmt.alpha:
        names = " or ".join(name for name, f in FORMATS.items() if f.alpha and f.bits >= bits)
        raise UnsupportedFormat(f"{path}: {fmt.pillow} cannot hold transparency; choose {names}")
    return fmt
