"""Malformed image files of every format, each by a seed: damaged, of any declared size, with bad metadata, spliced."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

import cv2
import numpy as np
from helpers.hostile import hostile_bytes
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
HUGE = (0, 1, 5_000, 40_000, 65_535, 2**31 - 1, 2**32 - 1)
COLUMNS = (0, 1, 5_000, 65_535)


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(mode: str, pillow: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(23, 31, 3)).convert(mode).save(buffer, pillow, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def animated(pillow: str, **options: object) -> bytes:
    frames = [Image.fromarray(noise(23, 31, 3) // (n + 1)) for n in range(3)]
    return saved("RGB", pillow, save_all=True, append_images=frames, **options)


def deep(extension: str, channels: int = 3) -> bytes:
    return cv2.imencode(extension, noise(23, 31, channels, dtype="uint16"))[1].tobytes()


@cache
def valid_files() -> dict[str, list[bytes]]:
    """Valid files by format: modes, depths, palettes, animations, metadata."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    extras = {"icc_profile": SRGB, "exif": exif.tobytes()}
    files = {
        "png": [saved(mode, "PNG", **extras) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")],
        "jpg": [saved("RGB", "JPEG", **extras), saved("CMYK", "JPEG", icc_profile=SRGB), saved("L", "JPEG")],
        "webp": [saved("RGB", "WEBP", **extras), saved("RGBA", "WEBP", lossless=True), animated("WEBP")],
        "tiff": [saved(mode, "TIFF", **extras) for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK", "F")],
        "bmp": [saved(mode, "BMP") for mode in ("RGB", "RGBA", "L", "P", "1")],
        "avif": [saved("RGB", "AVIF", **extras), saved("RGBA", "AVIF"), animated("AVIF")],
        "ppm": [saved(mode, "PPM") for mode in ("RGB", "L", "1")],
        "gif": [saved("P", "GIF"), animated("GIF")],
    }
    files["png"] += [animated("PNG"), deep(".png"), deep(".png", 4)]
    files["jpg"] += [saved("RGB", "JPEG", progressive=True), animated("MPO")]
    files["tiff"] += [saved(mode, "TIFF", compression="tiff_lzw") for mode in ("RGB", "L", "1")]
    files["tiff"] += [saved("RGB", "TIFF", compression="jpeg"), animated("TIFF"), deep(".tiff")]
    files["ppm"] += [deep(".ppm"), b"P3 2 1 255 1 2 3 4 5 6\n"]
    return files


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def huge_png(random: Random) -> bytes:
    """A PNG that declares any size; its pixels are few, or deflated zeros without end, like its profile and text."""
    width, height, depth = random.choice(HUGE), random.choice(HUGE), random.choice((1, 2, 4, 8, 16, 255))
    kind, interlaced = random.choice((0, 2, 3, 4, 6, 7)), random.choice((0, 1))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced))
    bomb = zlib.compress(bytes(2**23))
    extra = random.choice((b"", chunk(b"iCCP", b"a\0\0" + bomb), chunk(b"zTXt", b"a\0\0" + bomb)))
    pixels = chunk(b"IDAT", random.choice((bomb, zlib.compress(b"0123"))))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def huge_ppm(random: Random) -> bytes:
    kind = random.choice((b"P1", b"P3", b"P4", b"P5", b"P6", b"Pf"))
    width, height = random.choice(HUGE), random.choice((*HUGE, -1, 10**30))
    top = random.choice((b"255", b"65535", b"0", b"-1", b"9" * 30))
    return b"%s\n%d %d\n%s\n" % (kind, width, height, top) + bytes(random.choice((0, 100)))


def huge_bmp(random: Random) -> bytes:
    data = bytearray(random.choice(valid_files()["bmp"]))
    data[18:26] = struct.pack("<II", random.choice(HUGE), random.choice(HUGE))
    data[28:30] = struct.pack("<H", random.choice((0, 1, 4, 8, 24, 32, 255)))
    return bytes(data)


def huge_gif(random: Random) -> bytes:
    data = bytearray(random.choice(valid_files()["gif"]))
    data[6:10] = struct.pack("<HH", random.choice(COLUMNS), random.choice(COLUMNS))
    return bytes(data)


def huge_jpg(random: Random) -> bytes:
    data = bytearray(random.choice(valid_files()["jpg"]))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    data[at : at + 4] = struct.pack(">HH", random.choice(COLUMNS), random.choice(COLUMNS))
    return bytes(data)


def huge_tiff(random: Random) -> bytes:
    """A TIFF with one field of an entry of its directory replaced: tag, type, count or value."""
    data = bytearray(random.choice(valid_files()["tiff"]))
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack(order + "I", data[4:8])
    (entries,) = struct.unpack(order + "H", data[directory : directory + 2])
    offset, size, kind = random.choice(((0, 2, "H"), (2, 2, "H"), (4, 4, "I"), (8, 4, "I")))
    at = directory + 2 + 12 * random.randrange(max(entries, 1)) + offset
    value = random.choice((0, 1, 2, 7, 12, 255, 5_000, 65_535, 2**31, 2**32 - 1))
    data[at : at + size] = struct.pack(order + kind, value % 2 ** (8 * size))
    return bytes(data)


HUGE_OF: dict[str, Callable[[Random], bytes]] = {
    **{"png": huge_png, "ppm": huge_ppm, "bmp": huge_bmp, "gif": huge_gif, "jpg": huge_jpg, "tiff": huge_tiff}
}


def with_bad_metadata(name: str, random: Random) -> bytes:
    pillow = {"jpg": "JPEG"}.get(name, name.upper())
    metadata = {"icc_profile": hostile_bytes(SRGB, random)}
    if name not in ("tiff", "avif"):  # Pillow takes it apart to write it
        metadata["exif"] = b"Exif\0\0" + hostile_bytes(b"II*\0\x08\0\0\0" * 9, random)
    return saved(random.choice(("RGB", "CMYK") if name in ("jpg", "tiff") else ("RGB", "RGBA")), pillow, **metadata)


def variant(name: str, random: Random) -> bytes:
    """A malformed file: as it is, damaged, of declared sizes, with bad metadata, or two files in one."""
    data, change = random.choice(valid_files()[name]), random.randrange(8)
    if change < 2 and name in HUGE_OF:
        return HUGE_OF[name](random)
    if change == 2:
        other = random.choice(valid_files()[random.choice([*valid_files()])])
        return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]
    if change == 3 and name in ("png", "jpg", "webp", "tiff", "avif"):
        return with_bad_metadata(name, random)
    return data if change == 4 else hostile_bytes(data, random)
