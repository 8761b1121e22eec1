"""The client of a restoration server. Every image leaves and comes back as a numpy array."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ipt_triton.client import protocol, stream
from ipt_triton.client.errors import Cancelled, UnknownTask
from ipt_triton.client.options import Options
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

T = TypeVar("T")


class RestorationClient:
    """Restores images through a server. Threads may share one client.

    Args:
        url: HOST:PORT of the server's gRPC port.
        timeout: seconds that one request may take; None waits as long as the connection lives.
        retries: how often a request is sent again, after growing pauses (0.25 s, doubling), while the server's queue
            is full or the connection is lost. Restoring twice does no harm.
    """

    def __init__(self, url: str = "localhost:8001", timeout: float | None = None, retries: int = 6) -> None:
        self.url = url
        self._timeout = timeout
        self._retries = retries
        self._grpc = self._connect()
        self._closed = threading.Event()
        self._info: ServerInfo | None = None

    def __enter__(self) -> RestorationClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; requests under way in other threads fail."""
        self._closed.set()
        self._grpc.close()

    def info(self) -> ServerInfo:
        """Ask the server for its tasks, default tiling rule and limits.

        Raises:
            ServerUnavailable, RequestTimeout, ServerError: see `client.errors`.
        """
        answer = self._call(lambda: self._grpc.get_model_config(ROUTER, client_timeout=self._timeout))
        self._info = protocol.parse_info(answer.config, self.url)
        return self._info

    def tasks(self) -> tuple[Task, ...]:
        """Ask the server for its tasks."""
        return self.info().tasks

    def restore(
        self,
        image: NDArray[Any],
        task: TaskKey,
        stride: int | None = None,
        keep: int | None = None,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        tta: bool = False,
        strength: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> NDArray[Any]:
        """Restore one image of any size.

        An image over the server's limits is sent in blocks; the result is the same.

        Args:
            image: uint8 or uint16 over the type's full range, RGB [height, width, 3] or gray [height, width].
            task: id or name of a task of the server; or several, in a sequence or separated by commas, which follow
                each other on the server without rounding in between.
            stride, keep: distance of neighbouring tiles and side of the centre that is used, in input pixels;
                1 ≤ stride ≤ keep ≤ 48, keep even. None: the server's default.
            scale: sides of the result over those of the image, any number above 0. A larger network is taken where
                the task's own enlarges less, and the result is reduced.
            width, height: sides of the result in pixels, instead of `scale`. The image keeps its shape; with both it
                becomes the largest that fits.
            tta: restore eight turned and mirrored views and take their mean: eight times the work.
            strength: share of the result, 0 to 1; the rest is the image itself.
            progress: called with the patches that are answered and all that are due, from 0 on.
            cancelled: asked ten times a second whether to give up.

        Returns:
            The restored image in the same type and number of dimensions, sides multiplied by the scale of all tasks
            together, or of the size that was asked for.

        Raises:
            UnknownTask, InvalidRequest: nothing was restored because of an argument.
            Cancelled: because `cancelled` said so.
            ServerUnavailable, RequestTimeout, ServerError: see `client.errors`.
        """
        options = Options(scale, width, height, tta, strength)
        try:
            work = Restoration(self._info or self.info(), image, task, stride, keep, options)
        except UnknownTask:  # the server may have been restarted with other tasks
            work = Restoration(self.info(), image, task, stride, keep, options)
        tally = stream.Tally(work.patches, progress)
        for part in work.parts:
            if cancelled is not None and cancelled():
                raise Cancelled(stream.CANCELLED)
            if progress is None and cancelled is None:
                answer = self._infer(work, part)
            else:
                answer = self._infer_watched(work, part, tally, cancelled)
            work.put(part, answer)
            tally.finish(work.patches_of(part))
        return work.result()

    def _connect(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(self.url, channel_args=protocol.CHANNEL_ARGS)

    def _infer(self, work: Restoration, part: Part) -> triton.InferResult:
        inputs, outputs = work.inputs(part), work.outputs()
        limits = protocol.limits(self._timeout)
        return self._call(lambda: self._grpc.infer(ROUTER, inputs, outputs=outputs, **limits))

    def _infer_watched(
        self, work: Restoration, part: Part, tally: stream.Tally, cancelled: Callable[[], bool] | None
    ) -> triton.InferResult:
        """With progress, where the server tells it."""
        try:
            return self._call(lambda: stream.infer(self._connect, work, part, tally, cancelled, self._timeout))
        except stream.NoProgress:
            return self._infer(work, part)

    def _call(self, send: Callable[[], T]) -> T:
        delays = protocol.retry_delays(self._retries)
        while True:
            try:
                return send()
            except InferenceServerException as error:
                delay = protocol.pause(delays, error)
                if delay is None or self._closed.wait(delay):
                    raise protocol.explain(error, self.url, self._timeout) from error
