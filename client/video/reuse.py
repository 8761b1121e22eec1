"""Reuse: which rectangles of a frame must be restored anew, where the frame before it is restored already.

A tile's output depends on the tile's input alone. So only pixels that a changed tile has a say in can change; the
rectangles below hold these, and around them the tiles that are blended with the changed ones. Each begins and ends
where tiles do, so that the server cuts it as it cuts the whole frame (see `client.splitting`), and the pixels it owns
come out bit for bit as those of the whole frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ipt_triton.client.splitting import Block, Piece, owned_from, owned_to
from ipt_triton.tiling import Span, plan_axis

_MOST_PARTS = 32
"""Separate changes that are looked at one by one; where there are more, their bounding box is restored."""


class _Tiles(NamedTuple):
    """A rectangle of changed tiles: first and last row, first and last column of the tiling."""

    top: int
    bottom: int
    left: int
    right: int

    def union(self, other: _Tiles) -> _Tiles:
        return _Tiles(
            min(self.top, other.top),
            max(self.bottom, other.bottom),
            min(self.left, other.left),
            max(self.right, other.right),
        )


class Changes:
    """Finds what changed from one frame to the next, for frames of one size under one tiling rule.

    Args:
        height, width: of the frames in pixels.
        patch, stride, keep: the tiling rule by which they are restored.
        in_parts: whether parts of a frame are restored; otherwise it goes whole unless nothing in it has changed.
    """

    def __init__(self, height: int, width: int, patch: int, stride: int, keep: int, in_parts: bool = True) -> None:
        self._rows, self._columns = plan_axis(height, patch, stride, keep), plan_axis(width, patch, stride, keep)
        self._patch, self._height, self._width, self._in_parts = patch, height, width, in_parts

    def whole(self) -> Block:
        """The whole frame as one block."""
        return Block(Piece(0, self._height, 0, self._height), Piece(0, self._width, 0, self._width))

    def blocks(self, previous: NDArray[Any], current: NDArray[Any]) -> list[Block]:
        """Blocks of `current` that must be restored; outside of what they own, `previous`'s result holds.

        Args:
            previous, current: frames of one type, [height, width, 3] or [height, width].

        Returns:
            No block if nothing changed; the whole frame if restoring parts would be more work.
        """
        changed = self._changed_tiles(previous, current)
        if not changed.any():
            return []
        if not self._in_parts:
            return [self.whole()]
        number, _, boxes, _ = cv2.connectedComponentsWithStats(changed.astype(np.uint8), connectivity=8)
        parts = [_Tiles(y, y + height - 1, x, x + width - 1) for x, y, width, height, _ in boxes[1:].tolist()]
        if number > _MOST_PARTS:
            rows, columns = np.nonzero(changed)
            parts = [_Tiles(int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max()))]
        parts = self._merge(parts)
        if sum(map(self._cost, parts)) >= len(self._rows) * len(self._columns):
            return [self.whole()]
        return [
            Block(
                self._piece(self._rows, part.top, part.bottom, self._height),
                self._piece(self._columns, part.left, part.right, self._width),
            )
            for part in parts
        ]

    def _changed_tiles(self, previous: NDArray[Any], current: NDArray[Any]) -> NDArray[np.bool_]:
        """Which tiles see another input, [rows of tiles, columns of tiles]."""
        differs = (previous != current).reshape(self._height, -1)
        values = differs.shape[1] // self._width
        bands = np.stack([differs[span.start : span.start + self._patch].any(axis=0) for span in self._rows])
        ends = [(values * span.start, values * (span.start + self._patch)) for span in self._columns]
        return np.stack([bands[:, start:stop].any(axis=1) for start, stop in ends], axis=1)

    def _merge(self, parts: list[_Tiles]) -> list[_Tiles]:
        """Join parts as long as one rectangle around two of them is no more work than both."""
        for i, one in enumerate(parts):
            for j in range(i):
                union = one.union(parts[j])
                if self._cost(union) <= self._cost(one) + self._cost(parts[j]):
                    rest = [part for k, part in enumerate(parts) if k not in (i, j)]
                    return self._merge([*rest, union])
        return parts

    def _cost(self, part: _Tiles) -> int:
        """Tiles that are restored for the changed ones."""
        top, bottom = _surround(self._rows, part.top, part.bottom)
        left, right = _surround(self._columns, part.left, part.right)
        return (bottom - top + 1) * (right - left + 1)

    def _piece(self, spans: list[Span], first: int, last: int, size: int) -> Piece:
        begin, end = _surround(spans, first, last)
        stop = min(spans[end].start + self._patch, size)
        return Piece(spans[begin].start, stop, owned_from(spans, begin), min(owned_to(spans, end), size))


def _surround(spans: list[Span], first: int, last: int) -> tuple[int, int]:
    """The tiles along an axis that must be restored so that the kept parts of tiles first..last are owned."""
    begin, end = first, last
    while owned_from(spans, begin) > spans[first].low:
        begin -= 1
    while owned_to(spans, end) < spans[last].high:
        end += 1
    return begin, end
