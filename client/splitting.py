"""Splitting: an image over the server's limits becomes blocks whose answers fit together without a trace.

A block begins where a tile begins and ends where a tile ends, so the server cuts it into tiles that the whole image
has too. It owns the pixels that its tiles alone decide, in just the way they would in the whole image; at its inner
edges, where the server keeps tiles up to the edge or a neighbouring block's tile has a say, other blocks own them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.tiling import Span, plan_axis


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

    def put(self, answer: NDArray[Any], result: NDArray[Any], scale: int) -> None:
        """Put what the block owns of its restored part into the whole result, whose sides are `scale` times as long."""
        (top, _, first_row, last_row), (left, _, first_column, last_column) = self
        result[first_row * scale : last_row * scale, first_column * scale : last_column * scale] = answer[
            (first_row - top) * scale : (last_row - top) * scale,
            (first_column - left) * scale : (last_column - left) * scale,
        ]


def owned_from(spans: Sequence[Span], first: int) -> int:
    """Where the pixels begin that come out right if `first` is the first tile: the one before has no say in them."""
    return 0 if first == 0 else max(spans[first].low, spans[first - 1].high)


def owned_to(spans: Sequence[Span], last: int) -> int:
    """Where the pixels end that come out right if `last` is the last tile; beyond an image below one patch."""
    return spans[last].high if last == len(spans) - 1 else min(spans[last].high, spans[last + 1].low)


def split_axis(size: int, longest: int, patch: int, stride: int, keep: int) -> list[Piece]:
    """Pieces of at most `longest` pixels whose owned parts follow each other and cover the axis.

    Raises:
        InvalidRequest: `longest` is too short for this tiling rule.
    """
    if size <= longest:
        return [Piece(0, size, 0, size)]
    spans = plan_axis(size, patch, stride, keep)
    last = len(spans) - 1
    pieces: list[Piece] = []
    first = done = 0
    while done < size:
        while first < last and owned_from(spans, first + 1) <= done:
            first += 1
        final = first
        while final < last and spans[final + 1].start + patch - spans[first].start <= longest:
            final += 1
        stop, high = min(spans[final].start + patch, size), min(owned_to(spans, final), size)
        if high <= done or stop - spans[first].start > longest:
            raise InvalidRequest(
                f"the server's limits leave blocks of {longest} pixels a side, too small for stride {stride} and keep "
                f"{keep}; use the default stride and keep, or raise the server's pixel limits"
            )
        pieces.append(Piece(spans[first].start, stop, done, high))
        done = high
    return pieces


def split_image(height: int, width: int, max_pixels: int, patch: int, stride: int, keep: int) -> list[Block]:
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
        for rows in split_axis(height, tallest, patch, stride, keep)
        for columns in split_axis(width, widest, patch, stride, keep)
    ]
