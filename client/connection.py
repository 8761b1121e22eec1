"""The client of restoration servers. Every image leaves and comes back as a numpy array."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar

import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client import protocol, stream
from ipt_triton.client.address import DEFAULT_URL, Access, from_environment, is_http, parse_addresses
from ipt_triton.client.errors import Cancelled, ServerUnavailable, UnknownTask
from ipt_triton.client.options import Options
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.client.servers import Servers
from ipt_triton.client.transport import Connection, GrpcConnection, message_of
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

T = TypeVar("T")


class RestorationClient:
    """Restores images through one or several servers, which must serve the same. Threads may share one client.

    Args:
        url: HOST:PORT of the server's gRPC port, or http://HOST:PORT or https://… of its HTTP port; several as a
            sequence or separated by commas. A request goes to the server with the least to do for this client, and to
            another one at once if that fails.
        timeout: seconds that one request may take; None waits as long as the connection lives.
        retries: how often a request is sent again, after growing pauses (0.25 s, doubling), while all servers have too
            much to do or cannot be reached. Restoring twice does no harm.
        tls: encrypt gRPC.
        ca: PEM file of the authorities that are trusted; None: the usual ones.
        cert, key: PEM files of the client's own certificate and key.
        headers: sent with each request, as HTTP headers or gRPC metadata.
        token: sent with each request as `authorization: Bearer`.

    Raises:
        InvalidAddress: an address, a file or a header that cannot be used.
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        timeout: float | None = None,
        retries: int = 6,
        *,
        tls: bool = False,
        ca: str | PathLike[str] | None = None,
        cert: str | PathLike[str] | None = None,
        key: str | PathLike[str] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> None:
        addresses = parse_addresses(url)
        access = Access.of(addresses, tls=tls, ca=ca, cert=cert, key=key, headers=headers, token=token)
        self._timeout = timeout
        self._retries = retries
        self._servers = Servers(addresses, lambda address: _connect(address, access))
        self.url = self._servers.url
        self._closed = threading.Event()
        self._info: ServerInfo | None = None
        self._tells_progress = True  # until a server has no model for it

    @classmethod
    def from_environment(cls) -> RestorationClient:
        """A client for IPT_URL, IPT_TLS, IPT_CA, IPT_CERT, IPT_KEY, IPT_TOKEN and IPT_TIMEOUT, as far as they are set.

        Raises:
            InvalidAddress: one of them cannot be used.
        """
        return cls(**from_environment())

    def __enter__(self) -> RestorationClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back; requests under way in other threads fail."""
        self._closed.set()
        for connection in self._servers.connections:
            connection.close()

    def info(self) -> ServerInfo:
        """Ask the server for its tasks, default tiling rule and limits.

        Raises:
            ServerUnavailable, RequestTimeout, ServerError: see `client.errors`.
        """
        config = self._call(lambda connection: connection.config(self._timeout))
        self._info = protocol.parse_info(config, self.url)
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
        request_id: str = "",
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
            request_id: handed to the server, which names it in its log.

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
            work = Restoration(self._info or self.info(), image, task, stride, keep, options, request_id)
        except UnknownTask:  # the server may have been restarted with other tasks
            work = Restoration(self.info(), image, task, stride, keep, options, request_id)
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

    def _infer(self, work: Restoration, part: Part) -> triton.InferResult:
        message = message_of(ROUTER, work.inputs(part), work.outputs(), self._timeout, work.request_id)
        return self._call(lambda connection: connection.infer(message, self._timeout))

    def _infer_watched(
        self, work: Restoration, part: Part, tally: stream.Tally, cancelled: Callable[[], bool] | None
    ) -> triton.InferResult:
        """With progress, where the server tells it."""
        if self._tells_progress:
            message = stream.message(work, part, self._timeout)
            try:
                return self._call(lambda connection: stream.infer(connection, message, tally, cancelled, self._timeout))
            except stream.NoProgress:
                self._tells_progress = False
        return self._infer(work, part)

    def _call(self, send: Callable[[Connection], T]) -> T:
        """What `send` makes of the connection to a server that works.

        Raises:
            RestorationError: it raised tritonclient's InferenceServerException, for each server, or for good.
        """
        errand = self._servers.errand(self._retries, self._timeout)
        while True:
            with errand.ask() as connection:
                return send(connection)
            if errand.pause and self._closed.wait(errand.pause):
                raise ServerUnavailable(f"the connection to {self.url} was closed while a request waited for its turn")


def _connect(address: str, access: Access) -> Connection:
    if not is_http(address):
        return GrpcConnection(address, access)
    from ipt_triton.client.kserve import HttpConnection  # of an extra

    return HttpConnection(address, access)
