"""Restoring with progress: the same request to the model that tells how far it is, and what can be said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ipt_triton.client.errors import Cancelled
from ipt_triton.client.protocol import Part, Restoration
from ipt_triton.client.transport import UNAVAILABLE, AsyncConnection, Connection, message_of
from ipt_triton.service import STREAM

PROGRESS = "PROGRESS"
CANCELLED = "the restoration was cancelled"
POLL_S = 0.1
"""So often a caller is asked whether the work is still wanted."""

_QUEUE_FULL = "maximum queue size"


class NoProgress(Exception):
    """The server has no model that tells how far it is."""


class Tally:
    """Counts patches over all parts of a restoration and tells them, never less than before.

    Args:
        total: patches of all parts.
        tell: called with the patches that are answered, and all.
    """

    def __init__(self, total: int, tell: Callable[[int, int], None] | None) -> None:
        self._total, self._tell = total, tell
        self._before = 0
        self._told = -1
        self.at(0)

    def at(self, done: int) -> None:
        """Patches of the current part are answered; a part that is asked for again begins anew."""
        if self._tell is not None and self._before + done > self._told:
            self._told = self._before + done
            self._tell(self._told, self._total)

    def finish(self, patches: int) -> None:
        """The current part is answered."""
        self._before += patches
        self.at(0)


def infer(
    connection: Connection,
    work: Restoration,
    part: Part,
    tally: Tally,
    cancelled: Callable[[], bool] | None,
    timeout: float | None,
) -> triton.InferResult:
    """The answer to a part's request; its progress goes to the tally.

    Args:
        cancelled: asked ten times a second whether to give up.
        timeout: seconds that it may take.

    Raises:
        Cancelled: `cancelled` says so; the server computes what it has begun, some chunks of patches, and no more.
        NoProgress: the server does not tell it.
        InferenceServerException: as `Connection.infer`.
    """
    with _explained():
        answers = connection.stream(message_of(STREAM, *_tensors(work, part), timeout), timeout)
        try:
            while True:
                if cancelled is not None and cancelled():
                    raise Cancelled(CANCELLED)
                message = answers.get(timeout=POLL_S)
                if message is not None and not _is_progress(message, tally):
                    return message
        finally:
            answers.cancel()


async def infer_async(
    connection: AsyncConnection, work: Restoration, part: Part, tally: Tally, timeout: float | None
) -> triton.InferResult:
    """`infer` for asyncio. It is cancelled with the task that awaits it."""
    with _explained():
        messages = connection.stream(message_of(STREAM, *_tensors(work, part), timeout), timeout)
        async with contextlib.aclosing(messages):
            async for message in messages:
                if not _is_progress(message, tally):
                    return message
    raise InferenceServerException("the stream ended without an answer", UNAVAILABLE)


def _tensors(work: Restoration, part: Part) -> tuple[list[triton.InferInput], list[triton.InferRequestedOutput]]:
    return work.inputs(part), [triton.InferRequestedOutput(PROGRESS), *work.outputs()]


def _is_progress(message: triton.InferResult, tally: Tally) -> bool:
    """Whether a message tells how far the work is, and not the answer; it is told on."""
    progress = message.as_numpy(PROGRESS)
    if progress is not None:
        tally.at(int(progress[0]))
    return progress is not None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What a stream's error means where its status does not tell."""
    try:
        yield
    except InferenceServerException as error:
        if f"'{STREAM}'" in error.message():  # Triton, and HTTP, name the model that there is not
            raise NoProgress from error
        if _QUEUE_FULL in error.message():  # of what it refuses before the model Triton tells the words alone
            raise InferenceServerException(error.message(), UNAVAILABLE) from error
        raise
