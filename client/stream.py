"""Restoring with progress: the same request to the model that tells how far it is, and what can be said of it.

A stream carries one request, so ending it cancels that request alone. After the picture it ends by itself: of 25 that
were ended at once, Triton 2.51 never finished the trace of two.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ipt_triton.client.errors import Cancelled
from ipt_triton.client.failures import UNAVAILABLE
from ipt_triton.client.protocol import Part, Restoration
from ipt_triton.client.transport import CANCELLED, POLL_S, AsyncConnection, Connection, message_of
from ipt_triton.service import STREAM

PROGRESS = "PROGRESS"
_QUEUE_FULL = "maximum queue size"
_END_S = 1.0
"""So long a stream may take to end after the picture, before it is ended."""


class NoProgress(Exception):
    """The server has no model that tells how far it is."""


Heard = Callable[[int], None]
"""Takes how many patches of a part are answered; fewer than before where it is asked for again."""


class Tally:
    """Counts patches over all parts of a restoration and tells them, never less than before. Threads may share it.

    Args:
        total: patches of all parts.
        tell: called with the patches that are answered, and all.
    """

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self._total, self._tell = total, tell
        self._told, self._done = -1, 0
        self._lock = threading.Lock()
        self.part()(0)

    def close(self) -> None:
        """Tell nothing any more."""
        with self._lock:
            self._tell = None

    def part(self) -> Heard:
        """For a part of the restoration."""
        before = 0

        def heard(done: int) -> None:
            nonlocal before
            with self._lock:
                self._done += done - before
                before = done
                if self._tell is not None and self._done > self._told:
                    self._told = self._done
                    self._tell(self._told, self._total)

        return heard


def message(work: Restoration, part: Part, timeout: float | None) -> Any:
    """The request for a part with its progress, a ModelInferRequest message."""
    outputs = [triton.InferRequestedOutput(PROGRESS), *work.outputs()]
    return message_of(STREAM, work.inputs(part), outputs, timeout, work.request_id)


def infer(
    connection: Connection, message: Any, heard: Heard, unwanted: Callable[[], bool], timeout: float | None
) -> triton.InferResult:
    """The answer to a request of `message`.

    Args:
        heard: takes its progress.
        unwanted: asked ten times a second whether to give up.
        timeout: seconds that it may take.

    Raises:
        Cancelled: `unwanted` says so; the server computes what it has begun, a chunk of patches, and no more.
        NoProgress: the server does not tell it.
        InferenceServerException: as `Connection.infer`.
    """
    with _told_apart():
        answers = connection.stream(message, timeout)
        try:
            while True:
                if unwanted():
                    raise Cancelled(CANCELLED)
                answer = answers.get(POLL_S)
                if answer is not None and not unwanted() and _is_picture(answer, heard):
                    with suppress(InferenceServerException):
                        answers.get(_END_S)
                    return answer
        finally:
            answers.cancel()


async def infer_async(
    connection: AsyncConnection, message: Any, heard: Heard, timeout: float | None
) -> triton.InferResult:
    """`infer` for asyncio. Cancelled with the task that awaits it."""
    with _told_apart():
        async with aclosing(connection.stream(message, timeout)) as answers:
            async for answer in answers:
                if _is_picture(answer, heard):
                    with suppress(InferenceServerException, asyncio.TimeoutError):
                        await asyncio.wait_for(anext(answers, None), _END_S)
                    return answer
    raise InferenceServerException("the stream ended without an answer", UNAVAILABLE)


def _is_picture(answer: triton.InferResult, heard: Heard) -> bool:
    """Whether an answer is the last one; `heard` takes the progress of others."""
    progress = answer.as_numpy(PROGRESS)
    if progress is None:
        return True
    heard(int(progress[0]))
    return False


@contextmanager
def _told_apart() -> Iterator[None]:
    """What a failure is that says so in its words alone: a server without the model, or one with too much to do."""
    try:
        yield
    except InferenceServerException as error:
        if f"'{STREAM}'" in error.message():  # Triton names models that it does not have
            raise NoProgress from error
        if _QUEUE_FULL in error.message():  # of what it refuses before the model it tells no status in a stream
            raise InferenceServerException(error.message(), UNAVAILABLE) from error
        raise
