"""Tiling: any image through a network that takes fixed square patches, and back into one image.

The rule has two numbers. `stride` is the distance of neighbouring tiles; `keep` is the side of the tile's centre that
is used. A border tile keeps up to the image's edge; the last tile is clamped to the border; an image below one patch is
reflect-padded at the bottom and right. Where kept areas overlap by less than half, one tile is faded into the next, its
weight falling linearly to its edge; where by more, all count alike, as in the official code.

40/46 is the default: at most 1.8 evaluations a pixel from 256 pixels a side. 12/24 is the rule of the official code (16
evaluations and 4 predictions a pixel), 36/36 that of the MindSpore release (`ipt-benchmark quality` compares them).

numpy only and Python 3.9 syntax: PyTorch inference, the client and Triton's router run this one source (`ipt-export`
copies it beside the router). Weights are whole numbers and sums are taken in float64, so a network that returns its
input gives the image back bit for bit, and the result does not depend on batch size or order of arrival.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

PATCH = 48
STRIDE = 40
KEEP = 46
DTYPES = {"uint8": 1.0, "uint16": 257.0}  # value = dtype's unit × a network value in 0..255


class Span(NamedTuple):
    """One tile along one axis: it covers [start, start + patch) and its kept part is [low, high), in pixels."""

    start: int
    low: int
    high: int


def check_rule(stride: int, keep: int, patch: int = PATCH) -> None:
    """Raise ValueError, naming the value and what is allowed, unless 1 ≤ stride ≤ keep ≤ patch and keep is even."""
    if not 2 <= keep <= patch or keep % 2:
        raise ValueError(f"KEEP {keep} is not allowed: it must be even and from 2 to {patch}")
    if not 1 <= stride <= keep:
        raise ValueError(f"STRIDE {stride} is not allowed: it must be from 1 to KEEP, which is {keep}")


def plan_axis(size: int, patch: int = PATCH, stride: int = STRIDE, keep: int = KEEP) -> list[Span]:
    """Tiles along an axis of `size` pixels (≥ 1), in order; their kept parts cover it without a gap."""
    check_rule(stride, keep, patch)
    if size < 1:
        raise ValueError(f"an image side of {size} pixels is not allowed: it must be at least 1")
    size = max(size, patch)
    last = size - patch
    starts = [*range(0, last, stride), last]
    trim = (patch - keep) // 2
    return [Span(s, s + trim if s > 0 else 0, s + patch - trim if s < last else size) for s in starts]


class Tiler:
    """Cuts one image into patches and puts the network's answers together again.

    Patches come in row-major order; answers may be handed back in pieces of any size, in the same order. Beside the
    output image it holds one row of tiles, so memory does not grow with the image's height.

    Args:
        image: uint8 or uint16, [height, width, 3], any size from 1x1.
        scale: output side over input side.
        patch, stride, keep: the tiling rule, see the module's docstring.
        floating: take a float32 image on the 0..255 scale instead, which may exceed it (unclipped noise); the result
            is float32, neither rounded nor clipped. Asked for explicitly, so that nobody's picture in 0..1 slips in.
    """

    def __init__(
        self,
        image: np.ndarray,
        scale: int,
        patch: int = PATCH,
        stride: int = STRIDE,
        keep: int = KEEP,
        floating: bool = False,
    ):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image of shape {list(image.shape)} is not allowed: it must be [height, width, 3]")
        allowed = ("float32",) if floating else tuple(DTYPES)
        if image.dtype.name not in allowed:
            raise ValueError(f"an image of type {image.dtype} is not allowed: it must be {' or '.join(allowed)}")
        height, width = image.shape[:2]
        self._rows = plan_axis(height, patch, stride, keep)
        self._cols = plan_axis(width, patch, stride, keep)
        self._patch, self._scale, self._unit = patch, scale, DTYPES.get(image.dtype.name, 1.0)
        self._floating = floating
        padding = ((0, max(0, patch - height)), (0, max(0, patch - width)), (0, 0))
        self._image = np.pad(image, padding, mode="reflect") if height < patch or width < patch else image
        self._size = (height * scale, width * scale)
        out_height, out_width = (side * scale for side in self._image.shape[:2])
        self._output = np.empty((out_height, out_width, 3), image.dtype)
        self._band = np.zeros((patch * scale, out_width, 3), np.float64)  # sums of output rows from self._done on
        fade = (keep - stride) * scale if 2 * stride > keep else 0
        self._row_weights, self._row_sums = _weights(self._rows, scale, fade)
        self._col_weights, self._col_sums = _weights(self._cols, scale, fade)
        self._done = 0
        self._next = 0

    @property
    def count(self) -> int:
        """Number of patches."""
        return len(self._rows) * len(self._cols)

    def patches(self, first: int, last: int) -> np.ndarray:
        """Patches [first, last) as float32 [n, 3, patch, patch] in 0..255."""
        out = np.empty((last - first, 3, self._patch, self._patch), np.float32)
        for i, index in enumerate(range(first, last)):
            row, col = divmod(index, len(self._cols))
            y, x = self._rows[row].start, self._cols[col].start
            out[i] = self._image[y : y + self._patch, x : x + self._patch].transpose(2, 0, 1)
        if self._unit != 1:
            out /= np.float32(self._unit)
        return out

    def batches(self, size: int, workers: int = 1) -> Iterator[tuple[int, int]]:
        """Bounds (first, last) of successive batches of at most `size` patches.

        All are full but the last one; for several `workers` they are as many for each and of nearly the same size, so
        that all finish together.
        """
        if workers == 1:
            bounds = [*range(0, self.count, size), self.count]
        else:
            number = min(self.count, -(-self.count // (workers * size)) * workers)
            bounds = [i * self.count // number for i in range(number + 1)]
        yield from zip(bounds, bounds[1:])

    def add(self, answers: np.ndarray) -> None:
        """Take the network's answers [n, 3, patch * scale, patch * scale] for the next n patches.

        Raises:
            FloatingPointError: an answer holds NaN or Inf; nothing of it reaches the image.
            ValueError: wrong shape, or more answers than patches.
        """
        side = self._patch * self._scale
        if answers.ndim != 4 or answers.shape[1:] != (3, side, side) or self._next + len(answers) > self.count:
            raise ValueError(
                f"answers of shape {list(answers.shape)} do not fit: patch {self._next} of {self.count} is due, "
                f"[n, 3, {side}, {side}]"
            )
        for answer in answers:
            self._add_one(answer)

    def _add_one(self, answer: np.ndarray) -> None:
        row, col = divmod(self._next, len(self._cols))
        ys, xs, s = self._rows[row], self._cols[col], self._scale
        if not np.isfinite(answer).all():
            raise FloatingPointError(
                f"the network returned NaN or Inf for the patch at row {ys.start}, column {xs.start}"
            )
        kept = answer[
            :, (ys.low - ys.start) * s : (ys.high - ys.start) * s, (xs.low - xs.start) * s : (xs.high - xs.start) * s
        ]
        weights = self._row_weights[row][:, None] * self._col_weights[col]
        self._band[ys.low * s - self._done : ys.high * s - self._done, xs.low * s : xs.high * s] += weights[
            :, :, None
        ] * kept.transpose(1, 2, 0)
        self._next += 1
        if col == len(self._cols) - 1:
            self._finish_rows(self._rows[row + 1].low * s if row + 1 < len(self._rows) else self._output.shape[0])

    def _finish_rows(self, until: int) -> None:
        """Write output rows [done, until), which no later tile touches, and move the band on."""
        rows = until - self._done
        block = self._band[:rows]
        block /= self._row_sums[self._done : until, None, None] * self._col_sums[None, :, None]
        if not self._floating:
            block *= self._unit
            np.rint(block, out=block)
            np.clip(block, 0, 255 * self._unit, out=block)
        self._output[self._done : until] = block
        rest = self._band.shape[0] - rows
        self._band[:rest] = self._band[rows:].copy()
        self._band[rest:] = 0
        self._done = until

    def result(self) -> np.ndarray:
        """The restored image [height * scale, width * scale, 3] in the input's dtype.

        Raises:
            ValueError: some patches have no answer yet.
        """
        if self._next != self.count:
            raise ValueError(f"only {self._next} of {self.count} patches have been answered")
        return np.ascontiguousarray(self._output[: self._size[0], : self._size[1]])


def _weights(spans: list[Span], scale: int, fade: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Weights of each tile's kept output pixels along an axis, and their sums by output pixel of the axis (float64).

    At an edge within the image they rise from 1 to fade + 1 over `fade` pixels. In two dimensions both multiply.
    """
    size = spans[-1].high * scale
    sums = np.zeros(size)
    weights = []
    for span in spans:
        low, high = span.low * scale, span.high * scale
        pixels = np.arange(low, high)
        rise = np.minimum(pixels - low, fade) if low > 0 else fade
        fall = np.minimum(high - 1 - pixels, fade) if high < size else fade
        weights.append(np.minimum(rise, fall) + np.ones(high - low))
        sums[low:high] += weights[-1]
    return weights, sums
