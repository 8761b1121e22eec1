"""The pipeline: frames are converted, restored and converted back, several at a time, and leave in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import av
from numpy.typing import NDArray

from ipt_triton.client.splitting import Block
from ipt_triton.client.video.colour import Conversion
from ipt_triton.client.video.making import Making
from ipt_triton.client.video.reuse import Changes
from ipt_triton.client.video.source import Frame, RawFrame

CONVERTED = 2
"""Frames that are converted at a time, before and after the server."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Answer(NamedTuple):
    """A frame, the blocks of it that changed, and each block restored."""

    frame: Frame
    blocks: list[Block]
    restored: list[NDArray[Any]]


class Finished(NamedTuple):
    """A restored frame for the encoder."""

    pts: int
    duration: int
    frame: av.VideoFrame


@dataclass
class Sent:
    """Pixels of all frames, and those of them that the server restored."""

    all: int = 0
    sent: int = 0

    @property
    def share(self) -> float:
        """Share of the pixels that were sent, 0 if there were none."""
        return self.sent / self.all if self.all else 0.0


@contextmanager
def pools(workers: int) -> Iterator[tuple[ThreadPoolExecutor, ThreadPoolExecutor]]:
    """Threads for requests and for conversions. After an error nobody waits for requests that are under way."""
    requests, conversions = ThreadPoolExecutor(workers, "request"), ThreadPoolExecutor(CONVERTED, "conversion")
    try:
        yield requests, conversions
    except BaseException:
        for pool in (requests, conversions):
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    for pool in (requests, conversions):
        pool.shutdown()


def restored_frames(
    raw: Iterable[RawFrame],
    to_picture: Callable[[RawFrame], Frame],
    making: Making,
    conversion: Conversion,
    workers: int,
    sent: Sent,
) -> Generator[Finished, None, None]:
    """Restore frames; of one that follows another, the blocks that changed.

    Pictures at one time: at most workers + 6 as decoded and workers + 6 restored.

    Args:
        raw: decoded frames of one size.
        to_picture: their pictures.
        making: how they are restored.
        conversion: of the frames that are returned.
        workers: threads that ask for restored pictures.
        sent: counts what is restored.
    """
    with pools(workers) as (requests, conversions):

        def ask(change: tuple[Frame, list[Block]]) -> Answer:
            frame, blocks = change
            return Answer(frame, blocks, [making.restore(block.cut(frame.picture)) for block in blocks])

        def convert(result: tuple[Frame, NDArray[Any]]) -> Finished:
            frame, restored = result
            return Finished(frame.pts, frame.duration, conversion.frame(making.finish(frame.picture, restored)))

        pictures = ordered(conversions, to_picture, raw, CONVERTED)
        answers = ordered(requests, ask, _changes(pictures, making, sent), workers)
        yield from ordered(conversions, convert, _assembled(answers), CONVERTED)


def ordered(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Results of `work` in the order of the items, of which at most `ahead` + 1 are taken before their turn."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _changes(frames: Iterable[Frame], making: Making, sent: Sent) -> Iterator[tuple[Frame, list[Block]]]:
    """Frames with the blocks that must be restored; all of the first frame."""
    changes: Changes | None = None
    previous: NDArray[Any] | None = None
    for frame in frames:
        height, width = frame.picture.shape[:2]
        if changes is None or previous is None:
            changes = Changes(height, width, *making.rule, making.in_parts)
            blocks = [changes.whole()]
        else:
            blocks = changes.blocks(previous, frame.picture)
        previous = frame.picture
        sent.all += height * width
        sent.sent += sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks)
        yield frame, blocks


def _assembled(answers: Iterable[Answer]) -> Iterator[tuple[Frame, NDArray[Any]]]:
    """Whole restored pictures: the last one, with the changed blocks put in."""
    picture: NDArray[Any] | None = None
    for frame, blocks, restored in answers:
        height = len(frame.picture)
        if picture is None or (blocks and restored[0].shape == picture.shape):
            picture = restored[0]
        elif blocks:
            picture = picture.copy()
            scale = len(picture) // height
            for block, pixels in zip(blocks, restored, strict=True):
                block.put(pixels, picture, scale)
        yield frame, picture
