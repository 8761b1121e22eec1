"""What files say of their photos, made true for another file: EXIF, IPTC, resolution, comments, texts."""

from __future__ import annotations

import logging
import struct
from collections.abc import MutableMapping
from typing import Any

from PIL import ExifTags, Image

from ipt_triton.client.photo.xmp import portable_xmp
from ipt_triton.reading import excerpt

log = logging.getLogger(__name__)

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
        ExifTags.Base.Rating,
        ExifTags.Base.RatingPercent,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
        ExifTags.Base.XPAuthor,
        ExifTags.Base.XPKeywords,
        ExifTags.Base.XPSubject,
        ExifTags.IFD.Exif,
        ExifTags.IFD.GPSInfo,
    )
)
_IPTC_RESOURCE = 0x0404
IPTC_TIFF_TAG = 33723
_PNG_IPTC = "Raw profile type iptc"
PNG_XMP = "XML:com.adobe.xmp"


def metadata_of(name: str, image: Image.Image) -> dict[str, Any]:
    """What a loaded image's file says of it, as the fields of `Photo` of these names; what is damaged is left out."""
    dpi = image.info.get("dpi")
    comment = image.info.get("comment", b"")
    text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    return {
        "exif": portable_exif(name, image),
        "xmp": portable_xmp(name, image.info.get("xmp")),
        "iptc": _iptc(name, image),
        "dpi": _resolution(dpi),
        "comment": text.rstrip("\0"),
        "texts": _texts(image),
    }


def portable_exif(name: str, image: Image.Image) -> bytes | None:
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
        keep_text(exif)
        keep_text(details)
        return exif.tobytes() if len(exif) else None
    except Exception as error:  # a photo is worth more than its EXIF
        log.warning("%s: its EXIF is damaged (%s) and dropped", name, excerpt(error))
        return None


class _Text(str):
    """A text of EXIF, which Pillow reads as Latin-1 whatever it is. It writes question marks for what is not ASCII."""

    def encode(self, encoding: str = "latin-1", errors: str = "strict") -> bytes:
        return super().encode("latin-1", errors)


def keep_text(tags: MutableMapping[int, Any]) -> None:
    """Make Pillow write texts of EXIF as the bytes that it read."""
    for tag, value in tags.items():
        if isinstance(value, str) and not value.isascii():
            tags[tag] = _Text(value)


def jpeg_iptc(records: bytes) -> bytes:
    """IPTC as a JPEG's segment APP13, or nothing where it is too long for one."""
    body = b"Photoshop 3.0\0" + _iptc_resource(records)
    if len(body) > 65_533:
        log.warning("IPTC of %d bytes is too long for a JPEG and dropped", len(records))
        return b""
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def png_texts(texts: dict[str, str], comment: str, iptc: bytes | None) -> dict[str, str]:
    """Texts for a PNG: its own, a comment, and IPTC in the form that ImageMagick brought up and exiftool reads."""
    found = dict(texts)
    if comment:
        found.setdefault("Comment", comment)
    if iptc:
        resource = _iptc_resource(iptc)
        digits = resource.hex()
        lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
        found[_PNG_IPTC] = f"\niptc\n{len(resource):8d}\n{lines}\n"
    return found


def _iptc_resource(records: bytes) -> bytes:
    """IPTC as a resource of Photoshop, in which JPEG and PNG hold it."""
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(records)) + records + b"\0" * (len(records) % 2)


def _resolution(dpi: Any) -> tuple[float, float] | None:
    try:
        across, down = float(dpi[0]), float(dpi[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e5 and 0 < down < 1e5 else None


def _iptc(name: str, image: Image.Image) -> bytes | None:
    try:
        if image.format == "TIFF":
            # Many write it as numbers of 32 bits, of which Pillow publicly gives the first one alone.
            return image.tag_v2._tagdata.get(IPTC_TIFF_TAG)  # type: ignore[attr-defined, no-any-return]
        if image.format == "PNG" and _PNG_IPTC in image.info:
            _, _, _, digits = str(image.info[_PNG_IPTC]).split("\n", 3)
            data = bytes.fromhex("".join(digits.split()))
            return data[12 : 12 + struct.unpack(">I", data[8:12])[0]] if data[:4] == b"8BIM" else data
        value = image.info.get("photoshop", {}).get(_IPTC_RESOURCE)
        return bytes(value) if value else None
    except Exception as error:  # a photo is worth more than its IPTC
        log.warning("%s: its IPTC is damaged (%s) and dropped", name, excerpt(error))
        return None


def _texts(image: Image.Image) -> dict[str, str]:
    """A PNG's texts, without those that hold XMP, EXIF, IPTC and profiles."""
    texts = getattr(image, "text", {}) if image.format == "PNG" else {}
    return {
        str(key): str(value)
        for key, value in texts.items()
        if key != PNG_XMP and not str(key).startswith("Raw profile type ")
    }
