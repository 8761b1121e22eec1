"""Restoring with progress: the same request to the model that tells how far it is, and what can be said of it.

A stream of its own connection carries one request, so closing it cancels that request alone.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ipt_triton.client import protocol
from ipt_triton.client.errors import Cancelled
from ipt_triton.client.protocol import Part, Restoration
from ipt_triton.service import STREAM

PROGRESS = "PROGRESS"
CANCELLED = "the restoration was cancelled"
POLL_S = 0.1
"""So often a caller is asked whether the work is still wanted."""

_QUEUE_FULL = "maximum queue size"
_STATUS = {"triton_grpc_error": "true"}  # Triton tells a status, not the words alone, and ends the stream


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
    connect: Callable[[], triton.InferenceServerClient],
    work: Restoration,
    part: Part,
    tally: Tally,
    cancelled: Callable[[], bool] | None,
    timeout: float | None,
) -> triton.InferResult:
    """The answer to a part's request; its progress goes to the tally.

    Args:
        connect: makes a connection to the server.
        cancelled: asked ten times a second whether to give up.
        timeout: seconds that it may take.

    Raises:
        Cancelled: `cancelled` says so; the server computes what it has begun, a chunk of patches, and no more.
        NoProgress: the server does not tell it.
        InferenceServerException: as tritonclient's `infer`.
    """
    answers: queue.SimpleQueue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.SimpleQueue()
    deadline = None if timeout is None else time.monotonic() + timeout
    with connect() as connection:
        connection.start_stream(lambda result, error: answers.put((result, error)), headers=_STATUS)
        try:
            connection.async_stream_infer(STREAM, **_request(work, part, timeout))
            while True:
                if cancelled is not None and cancelled():
                    raise Cancelled(CANCELLED)
                if deadline is not None and time.monotonic() > deadline:
                    raise InferenceServerException("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED")
                with contextlib.suppress(queue.Empty):
                    answer = _take(*answers.get(timeout=POLL_S), tally)
                    if answer is not None:
                        return answer
        finally:
            connection.stop_stream(cancel_requests=True)


async def infer_async(
    connection: Any, work: Restoration, part: Part, tally: Tally, timeout: float | None
) -> triton.InferResult:
    """`infer` over a connection of asyncio, of which each stream is its own. Cancelled with the task that awaits it."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": STREAM, **_request(work, part, timeout)}

    stream = connection.stream_infer(requests(), stream_timeout=timeout, headers=_STATUS)
    try:
        with _translated():
            async for result, error in stream:
                answer = _take(result, error, tally)
                if answer is not None:
                    return answer
    finally:
        stream.cancel()
    raise InferenceServerException("the stream ended without an answer", "StatusCode.UNAVAILABLE")


def _request(work: Restoration, part: Part, timeout: float | None) -> dict[str, Any]:
    return {
        "inputs": work.inputs(part),
        "outputs": [triton.InferRequestedOutput(PROGRESS), *work.outputs()],
        "parameters": protocol.parameters(timeout),
    }


def _take(
    result: triton.InferResult | None, error: InferenceServerException | None, tally: Tally
) -> triton.InferResult | None:
    """What one message brings: an error, progress, or the answer."""
    if error is not None:
        if f"'{STREAM}'" in error.message():  # Triton names models that it does not have
            raise NoProgress
        if _QUEUE_FULL in error.message():  # of what it refuses before the model Triton tells the words alone
            raise InferenceServerException(error.message(), "StatusCode.UNAVAILABLE")
        raise error
    assert result is not None
    progress = result.as_numpy(PROGRESS)
    if progress is None:
        return result
    tally.at(int(progress[0]))
    return None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """gRPC's errors as tritonclient's, as its other calls raise them."""
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        raise InferenceServerException(error.details(), str(error.code())) from error
