"""Splitting: an image over the server's limits becomes blocks whose answers fit together without a trace.

A block begins where a tile begins and ends where a tile ends, so the server cuts it into tiles that the whole image
has too. It owns the pixels that its tiles alone decide, in just the way they would in the whole image; at its inner
edges, where the server keeps tiles up to the edge or a neighbouring block's tile has a say, other blocks own them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.tiling import plan_axis


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


def split_axis(size: int, longest: int, patch: int, stride: int, keep: int) -> list[Piece]:
    """Pieces of at most `longest` pixels whose owned parts follow each other and cover the axis.

    Raises:
        InvalidRequest: `longest` is too short for this tiling rule.
    """
    if size <= longest:
        return [Piece(0, size, 0, size)]
    spans = plan_axis(size, patch, stride, keep)
    last = len(spans) - 1

    def low(first: int) -> int:
        return 0 if first == 0 else max(spans[first].low, spans[first - 1].high)

    def high(final: int) -> int:
        return size if final == last else min(spans[final].high, spans[final + 1].low)

    pieces: list[Piece] = []
    first = done = 0
    while done < size:
        while first < last and low(first + 1) <= done:
            first += 1
        final = first
        while final < last and spans[final + 1].start + patch - spans[first].start <= longest:
            final += 1
        stop = min(spans[final].start + patch, size)
        if high(final) <= done or stop - spans[first].start > longest:
            raise InvalidRequest(
                f"the server's limits leave blocks of {longest} pixels a side, too small for stride {stride} and keep "
                f"{keep}; use the default stride and keep, or raise the server's pixel limits"
            )
        pieces.append(Piece(spans[first].start, stop, done, high(final)))
        done = high(final)
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
