"""Splitting: an image over the server's limits becomes blocks whose answers fit together without a trace.

A block begins where a tile begins and ends where a tile ends, so the server cuts it into tiles that the whole image
has too. It owns the pixels that its tiles alone decide, in just the way they would in the whole image; at its inner
edges, where the server keeps tiles up to the edge or a neighbouring block's tile has a say, other blocks own them.

Through a chain of tasks the margin grows: what a stage owns is what comes out right of what the stage before owned.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.tiling import Span, factors, plan_axis


class Piece(NamedTuple):
    """Part of an axis: [start, stop) is sent, [low, high) is owned, in pixels of the input image."""

    start: int
    stop: int
    low: int
    high: int


class Block(NamedTuple):
    """Part of an image: the rows and columns that are sent, and which of them the block owns."""

    rows: Piece
    columns: Piece

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        """The part of an image [height, width, ...] that is sent."""
        return image[self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def put(self, answer: NDArray[Any], result: NDArray[Any], scale: int, add: bool = False) -> None:
        """Put what the block owns of its restored part into the whole result, whose sides are `scale` times as long.

        Args:
            add: to what is there.
        """
        (top, _, first_row, last_row), (left, _, first_column, last_column) = self
        there = result[first_row * scale : last_row * scale, first_column * scale : last_column * scale]
        own = answer[
            (first_row - top) * scale : (last_row - top) * scale,
            (first_column - left) * scale : (last_column - left) * scale,
        ]
        np.add(there, own, out=there) if add else np.copyto(there, own, casting="unsafe")


def owned_from(spans: Sequence[Span], first: int) -> int:
    """Where the pixels begin that come out right if `first` is the first tile: the one before has no say in them."""
    return 0 if first == 0 else max(spans[first].low, spans[first - 1].high)


def owned_to(spans: Sequence[Span], last: int) -> int:
    """Where the pixels end that come out right if `last` is the last tile; beyond an image below one patch."""
    return spans[last].high if last == len(spans) - 1 else min(spans[last].high, spans[last + 1].low)


def right_part(
    whole: Sequence[Span], start: int, stop: int, known: tuple[int, int], patch: int, stride: int, keep: int
) -> tuple[int, int]:
    """Which pixels [low, high) of an axis come out as those of the whole where only [start, stop) is restored.

    These are the pixels of tiles that the whole has too and whose input is right. Where tiles meet, they all must be.

    Args:
        whole: tiles of the whole axis, of which [start, stop) is a part.
        known: [low, high), the part of [start, stop) that is as in the whole.

    Returns:
        (stop, stop) where nothing comes out right.
    """
    if stop - start < patch:
        return stop, stop

    def place(begin: int) -> int:
        """Number of the whole's tile that begins there, if its input is right; -1 if there is none."""
        if not known[0] <= begin <= known[1] - patch:
            return -1
        if begin == whole[-1].start:
            return len(whole) - 1
        return begin // stride if begin % stride == 0 else -1

    own = plan_axis(stop - start, patch, stride, keep)
    places = [place(start + span.start) for span in own]
    good = [index for index, there in enumerate(places) if there >= 0]
    if not good or places[good[0] : good[-1] + 1] != [*range(places[good[0]], places[good[-1]] + 1)]:
        return stop, stop
    low, high = owned_from(whole, places[good[0]]), owned_to(whole, places[good[-1]])
    if good[0] > 0:
        low = max(low, start + own[good[0] - 1].high)
    if good[-1] < len(own) - 1:
        high = min(high, start + own[good[-1] + 1].low)
    return low, max(low, high)


class _Axis:
    """An axis of an image and the tiles that it has in each stage of a chain."""

    def __init__(self, size: int, scales: Sequence[int], patch: int, stride: int, keep: int) -> None:
        self._rule = patch, stride, keep
        self._factors = factors(scales)
        self._tiles = [plan_axis(size * factor, *self._rule) for factor in self._factors[:-1]]
        self.size, self.spans = size, self._tiles[0]

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """Which pixels [low, high) of the input are in the result of [start, stop) as in that of the whole axis."""
        low, high = start, stop
        if (start, stop) == (0, self.size):
            return low, high
        for whole, before, after in zip(self._tiles, self._factors, self._factors[1:], strict=False):
            low, high = right_part(whole, start * before, stop * before, (low, high), *self._rule)
            low, high = low * after // before, high * after // before
        last = self._factors[-1]
        return -(-low // last), high // last


def split_axis(
    size: int, longest: int, patch: int, stride: int, keep: int, scales: Sequence[int] = (1,)
) -> list[Piece]:
    """Pieces of at most `longest` pixels whose owned parts follow each other and cover the axis.

    Args:
        scales: of the stages of a chain.

    Raises:
        InvalidRequest: `longest` is too short for this tiling rule.
    """
    if size <= longest:
        return [Piece(0, size, 0, size)]
    axis = _Axis(size, scales, patch, stride, keep)
    spans, last = axis.spans, len(axis.spans) - 1
    pieces: list[Piece] = []
    first = done = 0
    while done < size:
        piece = None
        # The latest beginning that still owns what is due; from there to the last tile that there is room for.
        first = bisect_right(spans, done, key=lambda span: span.start) - 1
        while piece is None and first >= 0:
            final = first
            while final < last and spans[final + 1].start + patch - spans[first].start <= longest:
                final += 1
            start, stop = spans[first].start, min(spans[final].start + patch, size)
            low, high = axis.owned(start, stop)
            if low <= done < high and stop - start <= longest:
                piece = Piece(start, stop, done, high)
            first -= 1
        if piece is None:
            raise InvalidRequest(
                f"the server's limits leave blocks of {longest} pixels a side, too small for stride {stride}, keep "
                f"{keep} and {len(scales)} tasks in a chain; use the default stride and keep, or raise the server's "
                "pixel limits"
            )
        pieces.append(piece)
        done = piece.high
    return pieces


def _split_evenly(size: int, longest: int, patch: int, *rule: Any) -> list[Piece]:
    """`split_axis` in as many pieces, none much longer than another: the longest one decides what memory they take."""
    pieces = split_axis(size, longest, patch, *rule)
    overlaps = [first.stop - second.start for first, second in pairwise(pieces)]
    shorter = -(-(size + sum(overlaps)) // len(pieces)) + patch
    if shorter < longest:
        with suppress(InvalidRequest):
            even = split_axis(size, shorter, patch, *rule)
            if len(even) == len(pieces):
                return even
    return pieces


def split_image(
    height: int, width: int, max_pixels: int, patch: int, stride: int, keep: int, scales: Sequence[int] = (1,)
) -> list[Block]:
    """Blocks of at most `max_pixels` pixels, row by row; a single one if the image is within the limit.

    Blocks are near squares, whose borders (computed twice) are the shortest.

    Raises:
        InvalidRequest: `max_pixels` is too small for this tiling rule.
    """
    if height * width <= max_pixels:
        tallest, widest = height, width
    else:
        side = math.isqrt(max_pixels)
        widest = width if width <= side else side if height > side else max_pixels // height
        tallest = max_pixels // widest if width <= side else min(height, side)
    return [
        Block(rows, columns)
        for rows in _split_evenly(height, tallest, patch, stride, keep, scales)
        for columns in _split_evenly(width, widest, patch, stride, keep, scales)
    ]
