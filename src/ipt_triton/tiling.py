"""Tiling: any image through a network that takes fixed square patches, and back into one image.

The rule has two numbers. `stride` is the distance of neighbouring tiles; `keep` is the side of the tile's centre that
is used. A border tile keeps up to the image's edge; the last tile is clamped to the border; an image below one patch is
reflect-padded at the bottom and right. Where kept areas overlap by less than half, one tile is faded into the next, its
weight falling linearly to its edge; where by more, all count alike, as in the official code.

40/46 is the default: at most 1.8 evaluations a pixel from 256 pixels a side. 12/24 is the rule of the official code (16
evaluations and 4 predictions a pixel), 36/36 that of the MindSpore release (`ipt-benchmark quality` compares them).

numpy only and Python 3.9 syntax: PyTorch inference, the client and Triton's router run this one source (`ipt-export`
copies it beside the router). Most pixels of the result come from one tile: they are copied and rounded; only the strips
where tiles meet are blended, for many tiles at a time. Weights are whole numbers, so a network that returns its input
gives the image back bit for bit; they are always summed in the same order, so the result does not depend on batch
size.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import NamedTuple, Optional

import numpy as np

PATCH = 48
STRIDE = 40
KEEP = 46
DTYPES = {"uint8": 1.0, "uint16": 257.0}  # value = dtype's unit × a network value in 0..255
FLOAT = "float32"
"""Type of pictures on the network's own scale, which may exceed 0..255: between the stages of a chain, for example."""


_TOGETHER = 1 << 21
"""Bytes of answers that are joined at a time: enough that calls of numpy cost little, and about what a cache holds."""

_FAR = 30_000.0
"""Answers are rounded as 16-bit integers, or as 32-bit ones times 257; those beyond this are clipped before."""

_HUGE = 1e30
"""Weighted sums of such answers still fit into float32."""


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


def factors(scales: Sequence[int]) -> list[int]:
    """How many times as long sides are before each stage of a chain with these scales, and after the last one."""
    return list(accumulate(scales, mul, initial=1))


def count_patches(
    height: int, width: int, patch: int = PATCH, stride: int = STRIDE, scales: Sequence[int] = (1,)
) -> int:
    """Number of patches of an image, from its size in pixels alone: nothing is allocated.

    Args:
        scales: of the stages of a chain, whose patches are counted together.
    """

    def along(side: int) -> int:
        return -(-max(0, side - patch) // stride) + 1

    return sum(along(height * factor) * along(width * factor) for factor in factors(scales)[:-1])


class Tiler:
    """Cuts one image into patches and puts the network's answers together again.

    Patches come in row-major order; answers may be handed back in pieces of any size, in the same order. Beside the
    images it holds what two rows of tiles share, so memory does not grow with the image's height, and of the padding of
    a narrow image only that of the patches that are asked for.

    Args:
        image: uint8 or uint16, [height, width, 3], any size from 1x1; or float32 on the 0..255 scale, which it may
            exceed (unclipped noise, a result that was not rounded).
        scale: output side over input side.
        patch, stride, keep: the tiling rule, see the module's docstring.
        dtype: of the result; None for an integer image's own. A float32 result is neither rounded nor clipped. For a
            float32 image it must be given, so that nobody's picture in 0..1 slips in.
    """

    def __init__(
        self,
        image: np.ndarray,
        scale: int,
        patch: int = PATCH,
        stride: int = STRIDE,
        keep: int = KEEP,
        dtype: Optional[str] = None,
    ):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image of shape {list(image.shape)} is not allowed: it must be [height, width, 3]")
        allowed = tuple(DTYPES) if dtype is None else (*DTYPES, FLOAT)
        for what, kind in (("an image", image.dtype.name), ("a result", dtype or image.dtype.name)):
            if kind not in allowed:
                raise ValueError(f"{what} of type {kind} is not allowed: it must be {' or '.join(allowed)}")
        height, width = image.shape[:2]
        self._image, self._patch, self._scale = image, patch, scale
        self._rows = plan_axis(height, patch, stride, keep)
        self._cols = plan_axis(width, patch, stride, keep)
        self._output = np.empty((height * scale, width * scale, 3), dtype or image.dtype)
        fade = keep - stride if 2 * stride > keep else 0
        self._joiner = _Joiner(self._output, self._rows, self._cols, patch, scale, fade)

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
            tile = self._image[y : y + self._patch, x : x + self._patch]
            height, width = tile.shape[:2]
            if height < self._patch or width < self._patch:
                padding = ((0, self._patch - height), (0, self._patch - width), (0, 0))
                tile = np.pad(tile, padding, mode="reflect")
            out[i] = tile.transpose(2, 0, 1)
        unit = DTYPES.get(self._image.dtype.name, 1.0)
        if unit != 1:
            out /= np.float32(unit)
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
        """Take the network's answers [n, 3, patch * scale, patch * scale], float32 or float16, for the next n patches.

        Raises:
            FloatingPointError: an answer holds NaN or Inf; nothing of it reaches the image.
            ValueError: wrong shape, or more answers than patches.
        """
        side, due = self._patch * self._scale, self._joiner.taken
        if answers.ndim != 4 or answers.shape[1:] != (3, side, side) or due + len(answers) > self.count:
            raise ValueError(
                f"answers of shape {list(answers.shape)} do not fit: patch {due} of {self.count} is due, "
                f"[n, 3, {side}, {side}]"
            )
        if not self._joiner.add(answers):
            row, col = divmod(self._joiner.taken, len(self._cols))
            raise FloatingPointError(
                f"the network returned NaN or Inf for the patch at row {self._rows[row].start}, "
                f"column {self._cols[col].start}"
            )

    def result(self) -> np.ndarray:
        """The restored image [height * scale, width * scale, 3].

        Raises:
            ValueError: some patches have no answer yet.
        """
        if self._joiner.taken != self.count:
            raise ValueError(f"only {self._joiner.taken} of {self.count} patches have been answered")
        return self._output


_Look = tuple[int, tuple[tuple[int, int, int], ...]]
"""How tiles share a stretch, in pixels: its width, and for each its offset in the tile and its rise and fall."""

_BEYOND = 1 << 40
"""Where a tile at the image's edge is kept to: it does not fade there."""


class _Cells(NamedTuple):
    """Stretches of a line that the same number of tiles share in the same way, one after each tile of a run.

    Places count values, three to a pixel. Stretch i is [x + i * step, x + i * step + width); there tile `tile + i` and
    those after it have a say, with what begins at `offsets` in them, by `weights`, float32 [width] and whole numbers,
    whose sum is `total`. One tile alone has no weights.
    """

    x: int
    step: int
    number: int
    width: int
    tile: int
    offsets: tuple[int, ...]
    weights: tuple[np.ndarray, ...]
    total: Optional[np.ndarray]


class _Segment(NamedTuple):
    """Neighbouring tiles of a row that are joined together: [first, stop).

    Tiles from `begin` on are still at hand when they come, and those from `keep` on must be so afterwards. They finish
    the output columns [left, right), which `cells` cover; those count from `left` and from tile `begin`.
    """

    begin: int
    first: int
    stop: int
    keep: int
    left: int
    right: int
    cells: tuple[_Cells, ...]


class _Band(NamedTuple):
    """What a row of tiles finishes, in output lines: [low, until). Its tiles reach from `top`, and are kept to `high`.

    Lines [low, done) are shared with rows of tiles before and need this row's `weights`; what it finishes of them is a
    weighted sum, to be divided by `sums`. `factors` make weighted sums of what it leaves to rows of tiles to come,
    [until, high). All three are float32 [lines, 1].
    """

    top: int
    low: int
    done: int
    until: int
    high: int
    weights: np.ndarray
    sums: np.ndarray
    factors: np.ndarray


class _Blend(NamedTuple):
    """One `_Cells` as views: `pieces` of the tiles at hand and their `target`, each [stretches, lines, width]."""

    target: np.ndarray
    pieces: list[np.ndarray]
    weights: tuple[np.ndarray, ...]
    total: Optional[np.ndarray]


class _Joiner:
    """Joins answers in row-major order into `output`, [height, width, 3], which may be smaller than what they cover.

    Each segment's tiles are blended with the row of tiles above while they are tiles still; then side by side to whole
    lines; then lines are rounded into the image. What the next segment or the next row of tiles needs is kept.
    """

    def __init__(
        self, output: np.ndarray, rows: Sequence[Span], cols: Sequence[Span], patch: int, scale: int, fade: int
    ):
        self._output, self._rows, self._patch, self._scale, self._fade = output, rows, patch, scale, fade
        self._columns, side = len(cols), patch * scale
        self._segments = _plan_segments(
            cols, output.shape[1] // scale, max(1, _TOGETHER // (12 * side**2)), scale, fade
        )
        self._starts = [segment.first for segment in self._segments]
        tiles = max(segment.stop - segment.begin for segment in self._segments)
        width = 3 * max(segment.right - segment.left for segment in self._segments)
        shared = max((above.high - below.low for above, below in zip(rows, rows[1:])), default=0)
        strip = max((c.number * c.width for segment in self._segments for c in segment.cells if c.weights), default=0)
        self._unit = DTYPES.get(output.dtype.name)  # None: neither round nor clip
        kind = "float64" if self._unit is None else "float32"  # so that identity holds where nothing is rounded
        self._window = np.empty((tiles, side, 3 * side), kind)  # the tiles at hand, colours last
        self._shared = np.empty((self._columns, shared * scale, 3 * side), kind)  # sums for the rows to come
        self._shared_sums = b""  # of their weights
        self._strips = np.empty((2, side * strip), kind)
        self._lines = np.empty(side * width, kind)
        self._levels = np.empty(side * width, np.int16 if self._unit == 1 else np.int32)
        self._blends: dict[tuple[int, int, int], list[_Blend]] = {}
        self._far = False  # whether an answer was beyond _FAR
        self.taken = 0

    def add(self, answers: np.ndarray) -> bool:
        """Take the next answers; False if one holds NaN or Inf: then those before it are taken."""
        while len(answers):
            row, col = divmod(self.taken, self._columns)
            segment = self._segments[bisect_right(self._starts, col) - 1]
            count = min(len(answers), segment.stop - col)
            if not self._take(answers[:count], self._window[col - segment.begin :][:count]):
                return False
            if col + count == segment.stop:
                self._join(row, segment)
            answers = answers[count:]
        return True

    def _take(self, answers: np.ndarray, window: np.ndarray) -> bool:
        values = _from_half(answers) if answers.dtype == np.float16 else answers
        count, colours, side, _ = answers.shape
        pixels = window.reshape(count, side, side, colours)
        for colour in range(colours):
            pixels[..., colour] = values[:, colour]
        vectors = window.reshape(-1, 1, colours * self._patch**2)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.matmul(vectors, vectors.transpose(0, 2, 1)).max()  # the fastest look at them all
        if not squares < _FAR**2:
            finite = np.isfinite(answers).all(axis=(1, 2, 3))
            if not finite.all():
                self.taken += int(finite.argmin())
                return False
            self._far = True
            if self._unit is not None:
                np.clip(window, -_HUGE, _HUGE, out=window)
        self.taken += count
        return True

    def _join(self, row: int, segment: _Segment) -> None:
        """Finish what the tiles of a segment finish, and keep what is needed of them."""
        if segment.first == 0:
            self._band = self._plan_band(row)
        band = self._band
        begin, keep = segment.begin, segment.keep
        window = self._window[: segment.stop - begin]
        if band.done > band.low:
            mixed = window[segment.first - begin :, band.low - band.top : band.done - band.top]
            mixed *= band.weights
            mixed += self._shared[segment.first : segment.stop, : band.done - band.low]
        bottom = min(band.until, len(self._output))
        lines = self._lines[: (bottom - band.low) * (segment.right - segment.left) * 3].reshape(bottom - band.low, -1)
        kept = slice(band.low - band.top, bottom - band.top)
        for blend in self._views(segment.cells, window[:, kept], lines, kept.start):
            self._blend(blend)
        lines[: len(band.sums)] /= band.sums
        self._write(lines, self._output[band.low : bottom, segment.left : segment.right])
        if band.until < band.high:
            left = window[: keep - begin, band.until - band.top : band.high - band.top]
            np.multiply(left, band.factors, out=self._shared[begin:keep, : band.high - band.until])
        if keep < segment.stop:
            self._window[: segment.stop - keep] = window[keep - begin :]

    def _views(self, layout: tuple[_Cells, ...], tiles: np.ndarray, lines: np.ndarray, start: int) -> list[_Blend]:
        """Made once for all segments and rows of tiles with this layout and these lines of their tiles."""
        key = (id(layout), start, len(lines))
        if key not in self._blends:
            self._blends[key] = [_plan_blend(cells, tiles, lines) for cells in layout]
        return self._blends[key]

    def _blend(self, blend: _Blend) -> None:
        """Copy what one tile decides; of the others write the weighted mean."""
        target, pieces, weights, total = blend
        if total is None:
            np.copyto(target, pieces[0])
            return
        summed, share = (strip[: target.size].reshape(target.shape) for strip in self._strips)
        np.multiply(pieces[0], weights[0], out=summed)
        for piece, weight in zip(pieces[1:], weights[1:]):
            np.multiply(piece, weight, out=share)
            summed += share
        np.divide(summed, total, out=target)

    def _write(self, lines: np.ndarray, target: np.ndarray) -> None:
        """Finished lines [rows, columns * 3] into their place in the image [rows, columns, 3]."""
        if self._unit is not None:
            if self._unit != 1:
                lines *= self._unit
            if self._far:
                np.clip(lines, 0, 255 * self._unit, out=lines)
            np.rint(lines, out=lines)
            levels = self._levels[: lines.size].reshape(lines.shape)
            np.copyto(levels, lines, casting="unsafe")
            lines = levels.clip(0, int(255 * self._unit), out=levels)
        np.copyto(target, lines.reshape(target.shape), casting="unsafe")

    def _plan_band(self, row: int) -> _Band:
        top, low, high = self._rows[row]
        last = row == len(self._rows) - 1
        done = self._rows[row - 1].high if row else low
        until = high if last else self._rows[row + 1].low
        scale, fade = self._scale, self._fade
        own = _weights(high - low, 0 if low else fade, fade if last else 0, scale, fade)
        weights, sums, factors, self._shared_sums = _plan_sums(
            (done - low) * scale, (until - low) * scale, own.tobytes(), self._shared_sums
        )
        return _Band(top * scale, low * scale, done * scale, until * scale, high * scale, weights, sums, factors)


@lru_cache(maxsize=64)
def _plan_sums(done: int, until: int, own: bytes, shared: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """`weights`, `sums` and `factors` of a `_Band` whose lines count from its `low`, and the sums for the next one.

    Args:
        own, shared: weights of all its lines, and for the first ones sums of those of the rows of tiles above, float32.
    """
    weights, above = (np.frombuffer(values, np.float32)[:, None] for values in (own, shared))
    sums = weights.copy()
    sums[: len(above)] += above
    factors = weights[until:].copy()
    factors[: max(0, done - until)] = 1  # these are weighted sums already
    return weights[:done], sums[: min(done, until)], factors, sums[until:].tobytes()


def _plan_blend(cells: _Cells, tiles: np.ndarray, lines: np.ndarray) -> _Blend:
    """Views of tiles [tiles, lines, values] and of contiguous lines [lines, values] for these cells."""
    x, step, number, width, tile, offsets, weights, total = cells
    rows, item = len(lines), lines.itemsize
    strides = (step * item, lines.strides[0], item)
    target: np.ndarray = np.ndarray((number, rows, width), lines.dtype, lines, x * item, strides)
    pieces = [tiles[tile + i : tile + i + number, :, at : at + width] for i, at in enumerate(offsets)]
    return _Blend(target, pieces, weights, total)


def _from_half(answers: np.ndarray) -> np.ndarray:
    """float16 as float32, four times as fast as numpy does it; NaN and Inf become numbers from 65536 on."""
    bits = np.left_shift(answers.view(np.int16), 13, dtype=np.int32)  # sign in the upper bits, exponent too small
    bits &= np.int32(-0x70002000)
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)
    return values


@lru_cache(maxsize=256)
def _weights(length: int, rise: int, fall: int, scale: int, fade: int) -> np.ndarray:
    """Weights of `length` pixels along an axis, as whole numbers for each output pixel: float32 [length * scale].

    They grow with the distance from the edges of the tile's kept part, from 1 to fade * scale + 1. The first pixel is
    `rise` pixels from the one edge and the last one `fall` pixels from the other.
    """
    steps = np.arange(length * scale)
    nearest = np.minimum(rise * scale + steps, fall * scale + steps[::-1])
    return np.minimum(nearest, fade * scale).astype(np.float32) + 1


def _plan_segments(cols: Sequence[Span], width: int, together: int, scale: int, fade: int) -> list[_Segment]:
    """Segments of at most `together` tiles for a row of tiles, whose image is `width` pixels wide."""
    segments, begin = [], 0
    for first in range(0, len(cols), together):
        stop = min(first + together, len(cols))
        left, right = cols[first].low, cols[stop].low if stop < len(cols) else cols[-1].high
        keep = begin
        while keep < stop and (stop == len(cols) or cols[keep].high <= right):
            keep += 1
        tiles = tuple(
            Span(
                tile.start - left,
                tile.low - left if tile.low > 0 else -_BEYOND,
                tile.high - left if tile.high < cols[-1].high else _BEYOND,
            )
            for tile in cols[begin:stop]
        )
        right = min(right, width)
        cells = _plan_cells(tiles, right - left, scale, fade)
        segments.append(_Segment(begin, first, stop, keep, left * scale, right * scale, cells))
        begin = keep
    return segments


@lru_cache(maxsize=64)
def _plan_cells(tiles: tuple[Span, ...], length: int, scale: int, fade: int) -> tuple[_Cells, ...]:
    """The cells of the columns [0, length) under these tiles; at the image's edges a tile is kept to `_BEYOND`."""
    edges = sorted({0, length, *(edge for tile in tiles for edge in (tile.low, tile.high) if 0 < edge < length)})
    runs: list[tuple[int, int, list[int], _Look]] = []  # first place, first tile, places and look of each
    latest: dict[_Look, int] = {}
    first = last = 0
    for x, end in zip(edges, edges[1:]):
        while tiles[first].high <= x:
            first += 1
        while last < len(tiles) and tiles[last].low <= x:
            last += 1
        shares = ((x - tile.start, min(x - tile.low, fade), min(tile.high - end, fade)) for tile in tiles[first:last])
        look = (end - x, tuple(shares))
        if look in latest:
            _, tile, places, _ = runs[latest[look]]
            even = len(places) == 1 or x - places[-1] == places[1] - places[0]
            if first == tile + len(places) and even:
                places.append(x)
                continue
        latest[look] = len(runs)
        runs.append((x, first, [x], look))
    cells = []
    for x, tile, places, (width, looks) in runs:
        step = places[1] - x if len(places) > 1 else 0
        weights: tuple[np.ndarray, ...] = ()
        total = None
        if len(looks) > 1:
            weights = tuple(np.repeat(_weights(width, rise, fall, scale, fade), 3) for _, rise, fall in looks)
            total = np.sum(weights, axis=0)
        offsets = tuple(3 * scale * offset for offset, _, _ in looks)
        cells.append(
            _Cells(3 * scale * x, 3 * scale * step, len(places), 3 * scale * width, tile, offsets, weights, total)
        )
    return tuple(cells)
