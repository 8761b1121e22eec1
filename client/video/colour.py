"""Colours: frames as the decoder gives them, as RGB or gray arrays, and back in the stream's own matrix and range.

swscale takes BT.601 unless told otherwise and rounds coarsely, so matrix and chroma are computed here, in float32. What
is read and written again unchanged is the same up to rounding, unless RGB cannot hold it: levels beyond black and white
and colours outside the gamut are clipped.

Sources: ITU-R BT.601, BT.709, BT.2020 and ITU-T H.273 (code points, ranges, chroma locations).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

RGB, UNSPECIFIED = 0, 2
FULL_RANGE = 2

_WEIGHTS = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601
    6: (0.299, 0.114),
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
    10: (0.2627, 0.0593),
}
"""Shares of red and blue in luma, by H.273's matrix coefficients."""

_HD_LINES = 720
"""From this height on, players take an unspecified matrix as BT.709, below as BT.601."""


@dataclass(frozen=True)
class Layout:
    """How the samples of a planar format lie.

    Attributes:
        name: FFmpeg's name of the format.
        kind: "yuv", "rgb" or "gray".
        bits: of a sample, 8 to 16.
        halvings: how often chroma is halved along height and width.
    """

    name: str
    kind: str
    bits: int
    halvings: tuple[int, int] = (0, 0)

    @property
    def top(self) -> int:
        """The largest value of a sample."""
        return (1 << self.bits) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples in memory."""
        return np.dtype(np.uint8 if self.bits == 8 else "<u2")


def layout_of(name: str) -> Layout | None:
    """The planar layout that holds what a pixel format holds but for alpha; None for floating point and the like."""
    form = av.VideoFormat(name)
    components = [component for component in form.components if not component.is_alpha]
    bits = max(8, *(component.bits for component in components))
    depth = "" if bits == 8 else f"{bits}le"
    if not 8 <= bits <= 16 or name.startswith(("bayer", "xyz")) or "f16" in name or "f32" in name:
        return None
    if form.is_rgb or form.has_palette:
        bits = 8 if form.has_palette else bits
        return Layout("gbrp" if bits == 8 else f"gbrp{bits}le", "rgb", bits)
    if len(components) == 1:
        return Layout(f"gray{depth}", "gray", bits)
    chroma = av.VideoFormat(name, 64, 64).components[1]
    halvings = ((64 // chroma.height).bit_length() - 1, (64 // chroma.width).bit_length() - 1)
    sampling = {(0, 0): "444", (0, 1): "422", (1, 1): "420", (1, 0): "440", (0, 2): "411", (2, 2): "410"}.get(halvings)
    return None if sampling is None else Layout(f"yuv{sampling}p{depth}", "yuv", bits, halvings)


@dataclass(frozen=True)
class Conversion:
    """Between a planar layout and pictures: uint8 for 8-bit samples, uint16 for deeper ones, over the full range.

    Attributes:
        layout: of the samples.
        matrix: H.273's matrix coefficients; unspecified ones are taken by the picture's height, as players do.
        full: samples use the full range, not 16..235 and 16..240 (at 8 bits).
        cosited: chroma samples lie on luma samples, not between them, along height and width.
    """

    layout: Layout
    matrix: int
    full: bool
    cosited: tuple[bool, bool] = (False, True)

    def picture(self, frame: av.VideoFrame) -> NDArray[Any]:
        """A frame as RGB [height, width, 3], or as gray [height, width].

        Args:
            frame: of any format whose `layout_of` is `layout`.
        """
        planes = [plane.astype(np.float32) for plane in _planes(frame, self.layout)]
        kind = np.uint8 if self.layout.bits == 8 else np.uint16
        if self.layout.kind == "yuv":
            height, width = planes[0].shape
            planes[1:] = [self._enlarge(chroma, height, width) for chroma in planes[1:]]
        elif self.layout.kind == "rgb":
            planes = [planes[2], planes[0], planes[1]]
        samples = planes[0] if len(planes) == 1 else cv2.merge(planes)
        values: NDArray[Any] = cv2.transform(samples, self._to_rgb(samples.shape[0]))
        return _rounded(values, kind)

    def frame(self, picture: NDArray[Any]) -> av.VideoFrame:
        """A picture as a frame of this layout; the picture's height decides as in `picture`."""
        if picture.ndim == 2 and self.layout.kind != "gray":
            picture = cv2.merge([picture] * 3)
        samples = cv2.transform(picture.astype(np.float32), self._from_rgb(picture.shape[0]))
        height, width = samples.shape[:2]
        planes: list[NDArray[Any]] = [samples] if samples.ndim == 2 else list(cv2.split(samples))
        if self.layout.kind == "yuv":
            planes[1:] = [self._reduce(chroma) for chroma in planes[1:]]
        elif self.layout.kind == "rgb":
            planes = [planes[1], planes[2], planes[0]]
        frame = av.VideoFrame(width, height, self.layout.name)
        for plane, values in zip(_planes(frame, self.layout), planes, strict=True):
            plane[:] = np.clip(np.rint(values), 0, self.layout.top)
        return frame

    def _to_rgb(self, height: int) -> NDArray[np.float64]:
        """Affine map of samples to pictures, [channels, channels + 1]."""
        top = 255 if self.layout.bits == 8 else 65535
        unit = 1 << (self.layout.bits - 8)
        black, span, swing = (0, self.layout.top, self.layout.top) if self.full else (16 * unit, 219 * unit, 224 * unit)
        if self.layout.kind == "gray":
            return np.array([[top / span, -black * top / span]])
        if self.layout.kind == "rgb":
            return np.hstack([np.eye(3) * (top / self.layout.top), np.zeros((3, 1))])
        red, blue = _WEIGHTS.get(self.matrix, _WEIGHTS[1 if height >= _HD_LINES else 6])
        green = 1 - red - blue
        linear = np.array(
            [
                [1, 0, 2 * (1 - red)],
                [1, -2 * blue * (1 - blue) / green, -2 * red * (1 - red) / green],
                [1, 2 * (1 - blue), 0],
            ]
        ) @ np.diag([top / span, top / swing, top / swing])
        middle = 128 * unit
        return np.hstack([linear, -linear @ np.array([[black], [middle], [middle]])])

    def _from_rgb(self, height: int) -> NDArray[np.float64]:
        forward = self._to_rgb(height)
        linear = np.linalg.inv(forward[:, :-1])
        return np.hstack([linear, -linear @ forward[:, -1:]])

    def _enlarge(self, chroma: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
        for axis, size in enumerate((height, width)):
            for halving in reversed(range(self.layout.halvings[axis])):
                chroma = _double(chroma, axis, self.cosited[axis], -(-size >> halving))
        return chroma

    def _reduce(self, chroma: NDArray[np.float32]) -> NDArray[np.float32]:
        for axis in (0, 1):
            for _ in range(self.layout.halvings[axis]):
                chroma = _halve(chroma, axis, self.cosited[axis])
        return chroma


def _planes(frame: av.VideoFrame, layout: Layout) -> list[NDArray[Any]]:
    """The samples of a frame, [height, width] each; views of its memory if it has this layout."""
    if frame.format.name.replace("yuvj", "yuv") != layout.name and not _has_planes_of(frame.format.name, layout):
        frame = frame.reformat(format=layout.name)
    views = []
    for plane in list(frame.planes)[: 1 if layout.kind == "gray" else 3]:
        samples = np.frombuffer(memoryview(plane), layout.dtype)
        views.append(samples.reshape(plane.height, -1)[:, : plane.width])
    return views


def _has_planes_of(name: str, layout: Layout) -> bool:
    """Whether a format is the layout with a plane of alpha after it."""
    return name.replace("yuva", "yuv").replace("gbrap", "gbrp") == layout.name


def _double(values: NDArray[np.float32], axis: int, cosited: bool, size: int) -> NDArray[np.float32]:
    """`size` samples along an axis, twice as many or one less, linear between them; `_halve` gives the old ones back.

    Cosited: every other sample is an old one. Otherwise two new ones lie around each old one, at a quarter of the
    distance to its neighbours, and their mean is the old one; of an odd size the last one lies on the last old one.
    """
    values = np.moveaxis(values, axis, 0)
    before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
    out = np.empty((2 * len(values), *values.shape[1:]), values.dtype)
    if cosited:
        out[0::2], out[1::2] = values, (values + after) / 2
    else:
        slope = (after - before) / 8
        out[0::2], out[1::2] = values - slope, values + slope
        if size % 2:
            out[-2] = values[-1]
    return np.moveaxis(out[:size], 0, axis)


def _halve(values: NDArray[np.float32], axis: int, cosited: bool) -> NDArray[np.float32]:
    """Half as many samples along an axis; of an odd number the last one counts twice."""
    values = np.moveaxis(values, axis, 0)
    first, second = values[0::2], values[1::2]
    if cosited:
        halved = first
    else:
        second = np.concatenate([second, first[len(second) :]])
        halved = (first + second) / 2
    return np.moveaxis(halved, 0, axis)


def _rounded(values: NDArray[np.float32], kind: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    np.rint(values, out=values)
    return np.clip(values, 0, np.iinfo(kind).max, out=values).astype(kind)
