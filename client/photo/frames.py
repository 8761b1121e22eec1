"""Files of several pictures: animations with their timing, and documents of pages; read and written picture by picture.

Animations are GIF, APNG, WebP and AVIF; they are written as APNG, WebP or AVIF, of which APNG loses nothing. Pages are
those of a TIFF. One picture is read and written as `read_photo` and `write_photo` do it.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ipt_triton.client.errors import ImageTooLarge, UnsupportedFormat, UnsupportedImage
from ipt_triton.client.photo.formats import Format, check_format
from ipt_triton.client.photo.picture import Photo
from ipt_triton.client.photo.reading import MAX_PIXELS, Source, count_frames, decode, explained, load, open_image
from ipt_triton.client.photo.samples import Samples, as_rgb
from ipt_triton.client.photo.writing import (
    metadata_options,
    name_of,
    prepared,
    samples_of,
    store,
    tiff_page,
    write_photo,
)

log = logging.getLogger(__name__)

ANIMATED, PAGED = ("PNG", "WEBP", "AVIF"), ("TIFF",)
"""Pillow's names of the formats that hold animations and pages."""

_USUAL_MS = 100.0  # what browsers show a frame for that says nothing, or 0


@dataclass(frozen=True, eq=False)
class Frames:
    """The pictures of a file.

    Attributes:
        photos: in their order; of an animation all have one size.
        durations: milliseconds that each is shown; empty for pages and for a single picture.
        plays: how often an animation is shown; 0 without end.
    """

    photos: tuple[Photo, ...]
    durations: tuple[float, ...] = ()
    plays: int = 0

    @property
    def is_single(self) -> bool:
        """Whether there is one picture alone."""
        return len(self.photos) == 1

    def planes(self) -> list[Samples]:
        """The arrays to restore, see `Photo.planes`, picture by picture."""
        return [plane for photo in self.photos for plane in photo.planes()]

    def with_planes(self, restored: Sequence[Samples]) -> Frames:
        """The pictures with their `planes()` replaced by their restored versions."""
        planes = iter(restored)
        made = (photo.with_planes([next(planes) for _ in photo.planes()]) for photo in self.photos)
        return replace(self, photos=tuple(made))

    def restored(self, restore: Callable[[Samples], Samples]) -> Frames:
        """The pictures with what `restore` makes of each of their planes, one after the other; see `Photo.planes`."""
        made = (photo.with_planes([restore(plane) for plane in photo.planes()]) for photo in self.photos)
        return replace(self, photos=tuple(made))


def read_frames(source: Source) -> Frames:
    """Read all pictures of a file.

    Args:
        source: what `read_photo` takes.

    Raises:
        ImageError: as `read_photo`; `ImageTooLarge` also if all pictures together have more pixels than one may have.
    """
    name, data = load(source)
    with explained(name), open_image(name, data) as image:
        number = count_frames(image)
        if number == 1:
            return Frames((decode(name, image, data),))
        if image.info.get("default_image") or getattr(image, "default_image", False):
            raise UnsupportedImage(f"{name} holds a picture beside its animation; save the animation alone")
        photos, durations, pixels = [], [], 0
        for page in range(number):
            image.seek(page)
            pixels += image.width * image.height
            if pixels > MAX_PIXELS:
                raise ImageTooLarge(f"{name} holds {number} frames of more than {MAX_PIXELS} pixels; cut it into parts")
            photos.append(decode(name, image, data, page))
            durations.append(float(image.info.get("duration") or _USUAL_MS))
        if image.format in PAGED:
            return Frames(tuple(photos))
        gray, clear = all(p.is_gray for p in photos), any(p.alpha is not None for p in photos)
        alike = (replace(p, is_gray=gray, alpha=_alpha(p) if clear else None) for p in photos)
        return Frames(tuple(alike), tuple(durations), _plays(image))


def _alpha(photo: Photo) -> Samples:
    if photo.alpha is not None:
        return photo.alpha
    return np.full(photo.pixels.shape[:2], np.iinfo(photo.pixels.dtype).max, photo.pixels.dtype)


def _plays(image: Image.Image) -> int:
    """How often an opened animation is to be shown; a GIF tells how often it is repeated."""
    loop = image.info.get("loop")
    if image.format == "GIF":
        return 1 if loop is None else 0 if loop == 0 else int(loop) + 1
    return int(loop or 0)


def write_frames(
    frames: Frames,
    target: Path | str | BinaryIO,
    *,
    format: str | None = None,
    quality: int | None = None,
    flatten: tuple[int, int, int] | None = None,
    depth: Any = None,
    metadata: bool = True,
    action: str = "",
    mtime: float | None = None,
) -> None:
    """Write pictures to a file that holds them all, see `write_photo`.

    Raises:
        UnsupportedFormat: as `write_photo`; or the format holds no animation, or no pages.
        ImageError: as `write_photo`.
    """
    options: dict[str, Any] = {"flatten": flatten, "depth": depth}
    if frames.is_single:
        write_photo(
            frames.photos[0],
            target,
            format=format,
            quality=quality,
            metadata=metadata,
            action=action,
            mtime=mtime,
            **options,
        )
        return
    fmt = check_frames(frames, target, format, flatten=flatten, depth=depth)
    photos = [prepared(photo, flatten, depth, metadata, action) for photo in frames.photos]
    name = name_of(target)
    try:
        data = _pages(photos) if fmt.pillow in PAGED else _animation(photos, frames, fmt, quality)
    except (ValueError, OSError, struct.error) as error:
        raise UnsupportedFormat(f"{name}: the frames cannot be written as {fmt.pillow} ({error})") from error
    store(data, target, name, mtime)


def check_frames(
    frames: Frames,
    target: Path | str | BinaryIO,
    format: str | None = None,
    *,
    flatten: tuple[int, int, int] | None = None,
    depth: Any = None,
) -> Format:
    """The format to write, if it can hold the pictures; see `check_format`.

    Raises:
        UnsupportedFormat: it cannot.
    """
    name = name_of(target)
    for photo in frames.photos:
        fmt = check_format(photo, name, format, flatten=flatten, depth=depth)
    if frames.is_single:
        return fmt
    kind, allowed = ("frames of an animation", ANIMATED) if frames.durations else ("pages", PAGED)
    deep = frames.durations and max(photo.bits for photo in frames.photos) > 8 and depth != 8
    if fmt.pillow not in allowed or deep:
        bits = "16-bit " if deep else ""
        raise UnsupportedFormat(
            f"{name}: {fmt.pillow} cannot hold {len(frames.photos)} {bits}{kind}; choose "
            f"{' or '.join(each.lower() for each in allowed)}"
        )
    return fmt


def _animation(photos: list[Photo], frames: Frames, fmt: Format, quality: int | None) -> bytes:
    options = {**fmt.options, **metadata_options(photos[0], fmt)}
    if quality is not None and "quality" in fmt.options:
        options["quality"] = quality
    if fmt.pillow == "WEBP" and photos[0].alpha is not None:
        options["lossless"] = True  # Pillow's lossy animations come out without their alpha
    images = [Image.fromarray(_colours(photo)) for photo in photos]
    durations = [round(milliseconds) for milliseconds in frames.durations]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        fmt.pillow,
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=frames.plays,
        **options,
    )
    return buffer.getvalue()


def _colours(photo: Photo) -> Samples:
    """RGB or RGBA, which all three formats hold in every frame."""
    samples = samples_of(photo)
    if samples.shape[2] in (1, 2):
        samples = np.dstack([as_rgb(samples[..., 0]), *([samples[..., 1]] if samples.shape[2] == 2 else [])])
    return np.ascontiguousarray(samples)


def _pages(photos: list[Photo]) -> bytes:
    """A TIFF of several pages: each is a directory and its samples, and tells where the next one begins."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    link = 4
    for photo in photos:
        data += b"\0" * (len(data) % 2)
        struct.pack_into("<I", data, link, len(data))
        link = len(data)
        data += tiff_page(samples_of(photo), photo, len(data))
        entries = struct.unpack_from("<H", data, link)[0]
        link += 2 + 12 * entries
    if len(data) >= 2**32:
        raise ValueError("it would be larger than the 4 GiB that TIFF allows")
    return bytes(data)
