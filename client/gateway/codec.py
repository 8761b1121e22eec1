"""Decoding and encoding, in worker processes alone: files of callers to arrays of pixels on disk, and back.

A folder of work holds `photo.json` (all of a photo but its pixels), `plane<n>.npy` (the arrays to restore) and
`restored<n>.npy` (those that the server answered). What goes between the processes is names and numbers.
"""

from __future__ import annotations

import base64
import ctypes
import io
import json
import logging
import resource
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

from ipt_triton.cli import mute_libraries
from ipt_triton.client.photo import Photo, check_format, read_header, read_photo, same_format, write_photo
from ipt_triton.client.photo.samples import eight_bits

_PIXELS = ("pixels", "alpha")
_SHELL = (1, 1)
LONGEST_SIDE = 8192
"""Of a picture that a browser is to show."""
_LOSSLESS_PIXELS = 2_000_000
_OPEN_FILES = 64


@dataclass(frozen=True)
class Described:
    """A picture file: its format (a name in `FORMATS`, or "gif" or "heif") and its upright sides."""

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class Written:
    """A result: its format, a name in `FORMATS`, its sides, and the bytes of its file."""

    format: str
    width: int
    height: int
    bytes: int


T = TypeVar("T")


def confined(memory: int, file_bytes: int, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """Call a function of this module in this process, which is bounded from here on, see `confine`."""
    confine(memory, file_bytes)
    try:
        return work(*arguments)
    finally:
        give_back_memory()


def confine(memory: int, file_bytes: int) -> None:
    """Bound what this process may take from here on, and let libraries keep quiet. More calls change nothing.

    Args:
        memory: bytes of address space beyond what the interpreter and its libraries have taken already.
        file_bytes: of the largest file that it may write.
    """
    global _confined
    if _confined:
        return
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, most in (
        (resource.RLIMIT_AS, taken + memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))
    cv2.setNumThreads(1)
    mute_libraries()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    _confined = True


_confined = False


def give_back_memory() -> None:
    """Hand free memory back to the system, so that a large photo leaves a small process."""
    with suppress(AttributeError, OSError):  # musl has none
        ctypes.CDLL(None).malloc_trim(0)


def describe(upload: Path, max_pixels: int) -> Described:
    """What an uploaded file is, without decoding it.

    Raises:
        ImageError: as `read_header`.
    """
    return Described(**asdict(read_header(upload.read_bytes(), max_pixels)))


def decode(upload: Path, folder: Path, max_pixels: int, format: str) -> int:
    """Decode an uploaded file into a folder of work; returns the number of planes.

    Args:
        format: of the result, which must be able to hold the photo.

    Raises:
        ImageError: as `read_photo` and `check_format`.
    """
    photo = read_photo(upload.read_bytes(), max_pixels)
    check_format(photo, "the result", format)
    planes = photo.planes()
    for number, plane in enumerate(planes):
        np.save(folder / f"plane{number}.npy", plane, allow_pickle=False)
    (folder / "photo.json").write_text(json.dumps(_shell_to_json(photo)))
    return len(planes)


def encode(folder: Path, target: Path, format: str, quality: int | None, keeps_metadata: bool, action: str) -> Written:
    """Write the restored planes of a folder of work as an image file.

    Raises:
        ImageError: as `write_photo`.
    """
    photo = _restored(folder)
    data = _write(photo, format, quality, keeps_metadata, action)
    target.write_bytes(data)
    name = format if format != "same" else same_format(f".{photo.format}")
    return Written(name, *photo.size, len(data))


def show_upload(upload: Path, target: Path, max_pixels: int) -> None:
    """Write an uploaded photo as a picture that every browser shows, see `_shown`.

    Raises:
        ImageError: as `read_photo`.
    """
    target.write_bytes(_shown(read_photo(upload.read_bytes(), max_pixels)))


def show_result(folder: Path, target: Path) -> None:
    """Write the restored photo of a folder of work as a picture that every browser shows, see `_shown`."""
    target.write_bytes(_shown(_restored(folder)))


class _Result(io.BytesIO):
    name = "the result"  # in messages


def _write(photo: Photo, format: str, quality: int | None, keeps_metadata: bool, action: str) -> bytes:
    result = _Result()
    write_photo(photo, result, format=format, quality=quality, metadata=keeps_metadata, action=action)
    return result.getvalue()


def _shown(photo: Photo) -> bytes:
    """A photo as 8-bit PNG (small ones and those with alpha) or JPEG, at most `LONGEST_SIDE` pixels long."""
    if photo.bits == 16:
        alpha = None if photo.alpha is None else eight_bits(photo.alpha)
        photo = replace(photo, pixels=eight_bits(photo.pixels), alpha=alpha)
    width, height = photo.size
    longest = max(width, height)
    if longest > LONGEST_SIDE:
        size = max(1, width * LONGEST_SIDE // longest), max(1, height * LONGEST_SIDE // longest)
        alpha = None if photo.alpha is None else _smaller(photo.alpha, size)
        photo = replace(photo, pixels=_smaller(photo.pixels, size), alpha=alpha)
    lossless = photo.has_alpha or photo.size[0] * photo.size[1] <= _LOSSLESS_PIXELS
    alpha = photo.alpha if photo.has_alpha else None
    return _write(replace(photo, alpha=alpha), "png" if lossless else "jpg", None, False, "")


def _smaller(samples: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(samples).resize(size, Image.Resampling.BOX))


def _restored(folder: Path) -> Photo:
    shell = _shell_of_json(json.loads((folder / "photo.json").read_text()))
    found = sorted(folder.glob("restored*.npy"))
    return shell.with_planes([np.load(path, mmap_mode="r", allow_pickle=False) for path in found])


def _shell_to_json(photo: Photo) -> dict[str, Any]:
    """A photo's fields without pixels; bytes are in base64, and behind a name that says so."""
    values: dict[str, Any] = {"bits": photo.bits, "has_alpha": photo.alpha is not None}
    for field in fields(photo):
        value = getattr(photo, field.name)
        if isinstance(value, bytes):
            values[f"{field.name}:base64"] = base64.b64encode(value).decode()
        elif field.name not in _PIXELS:
            values[field.name] = dict(value) if field.name == "texts" else value
    return values


def _shell_of_json(values: dict[str, Any]) -> Photo:
    """The photo again, of one pixel, from which `with_planes` makes the restored one."""
    kind = np.dtype(f"uint{values.pop('bits')}")
    alpha = np.full(_SHELL, np.iinfo(kind).max, kind) if values.pop("has_alpha") else None
    known: dict[str, Any] = {}
    for name, value in values.items():
        name, _, coded = name.partition(":")
        known[name] = base64.b64decode(value) if coded else tuple(value) if isinstance(value, list) else value
    return Photo(pixels=np.zeros((*_SHELL, 3), kind), alpha=alpha, **known)
