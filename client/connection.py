"""The client of restoration servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, overload

import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client import protocol, stream
from ipt_triton.client.address import DEFAULT_URL, Access, from_environment, is_http, parse_addresses
from ipt_triton.client.errors import Cancelled, ServerUnavailable, UnknownTask
from ipt_triton.client.flight import in_order
from ipt_triton.client.options import Options
from ipt_triton.client.pictures import check_workers, planes_of
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.client.servers import Servers
from ipt_triton.client.stream import Heard, Tally
from ipt_triton.client.transport import CANCELLED, POLL_S, Connection, GrpcConnection, message_of
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

if TYPE_CHECKING:
    from ipt_triton.client.photo import Photo
    from ipt_triton.client.photo.reading import Source
    from ipt_triton.client.pictures import Picture

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
        # A request over HTTP cannot be called off, so none is left alone in a thread.
        self._at_once = 1 if any(map(is_http, addresses)) else len(addresses)
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

    @overload
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
    ) -> NDArray[Any]: ...

    @overload
    def restore(
        self,
        image: Picture,
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
    ) -> Photo: ...

    def restore(
        self,
        image: NDArray[Any] | Picture,
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
    ) -> Any:
        """Restore one image of any size.

        A large image is sent in blocks, as many at a time as there are servers; the result is the same.

        Args:
            image: an array, uint8 or uint16 over the type's full range, RGB [height, width, 3] or gray [height, width];
                or a `Photo`, a path, the bytes of a file, a binary file or a PIL image.
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
            progress: called with the patches that are answered and all that are due, from 0 on. Where several
                servers share an image, by several threads, one at a time.
            cancelled: asked ten times a second whether to give up; by the same threads, maybe several at once.
            request_id: handed to the server, which names it in its log.

        Returns:
            For an array the restored one in the same type and number of dimensions, for anything else a `Photo` with
            what its file said of it. Its sides are multiplied by the scale of all tasks together, or as asked for.

        Raises:
            UnknownTask, InvalidRequest: nothing was restored because of an argument.
            ImageError, TypeError: a file that cannot be read, and what is no image.
            Cancelled: because `cancelled` said so.
            ServerUnavailable, RequestTimeout, ServerError: see `client.errors`.
        """
        planes, whole = planes_of(image)
        how = task, stride, keep, Options(scale, width, height, tta, strength), request_id
        return whole(self._restore(planes, how, progress, cancelled))

    def restore_file(
        self,
        source: Source,
        target: Path | str | BinaryIO,
        task: TaskKey,
        stride: int | None = None,
        keep: int | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        format: str | None = None,
        quality: int | None = None,
        flatten: tuple[int, int, int] | None = None,
        depth: Literal[8, 16] | None = None,
        metadata: bool = True,
        **options: Any,
    ) -> None:
        """Restore a file into another one, all frames and pages of it; a file that is there is replaced.

        Args:
            source: a path, the bytes of a file, or a binary file.
            target: a path, or a binary file, for which `format` must be given.
            task, stride, keep, progress, cancelled: see `restore`.
            format, quality, flatten, depth, metadata: see `photo.write_photo`.
            options: `scale`, `width`, `height`, `tta`, `strength`, see `restore`.

        Raises:
            ImageError: a file that cannot be read or written.
            RestorationError: as `restore`.
        """
        from ipt_triton.client.photo import check_frames, read_frames, write_frames  # needs what reads files

        stored: dict[str, Any] = {"quality": quality, "flatten": flatten, "depth": depth}
        frames = read_frames(source)
        check_frames(frames, target, format, flatten=flatten, depth=depth)
        wanted = Options(**options)
        restored = self._restore(frames.planes(), (task, stride, keep, wanted, ""), progress, cancelled)
        info = self._info or self.info()
        made = protocol.recipe(info, info.chain(task), wanted, stride, keep, **stored)
        write_frames(frames.with_planes(restored), target, format=format, metadata=metadata, action=made, **stored)

    def stream(
        self, images: Iterable[NDArray[Any] | Picture], task: TaskKey, *, workers: int = 2, **options: Any
    ) -> Iterator[Any]:
        """Restore images as they come, several at a time; the results come in the same order.

        No more images than that are taken before their results are.

        Args:
            images: each as for `restore`.
            workers: images in flight.
            options: of `restore`.

        Raises:
            InvalidRequest: no workers.
            RestorationError: as `restore`, in the place of the first result that there is none of.
        """
        check_workers(workers)
        yield from in_order((partial(self.restore, image, task, **options) for image in images), workers)

    def _restore(
        self,
        planes: Sequence[NDArray[Any]],
        how: tuple[TaskKey, int | None, int | None, Options, str],
        progress: Callable[[int, int], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[NDArray[Any]]:
        """Restore the arrays of an image.

        Args:
            how: task, stride, keep, options and the request's id, see `Restoration`.
        """
        try:
            info = self._info or self.info()
            works = [Restoration(info, plane, *how) for plane in planes]
        except UnknownTask:  # the server may have been restarted with other tasks
            info = self.info()
            works = [Restoration(info, plane, *how) for plane in planes]
        tally = Tally(sum(work.patches for work in works), progress)
        parts = [(work, part, tally.part()) for work in works for part in work.parts]
        given_up = threading.Event()

        def give_up() -> None:
            given_up.set()
            tally.close()

        def unwanted() -> bool:
            return given_up.is_set() or (cancelled is not None and cancelled())

        def ask(work: Restoration, part: Part, heard: Heard) -> triton.InferResult:
            if unwanted():
                raise Cancelled(CANCELLED)
            if progress is None and cancelled is None:
                return self._infer(work, part, unwanted if at_once > 1 else None)
            return self._infer_watched(work, part, heard, unwanted)

        at_once = min(len(parts), self._at_once)
        calls = [partial(ask, *each) for each in parts]
        answers = in_order(calls, at_once, early=True, abandon=give_up) if at_once > 1 else (call() for call in calls)
        with closing(answers):
            for work, part, heard in parts:
                work.put(part, next(answers))
                heard(work.patches_of(part))
        return [work.result() for work in works]

    def _infer(self, work: Restoration, part: Part, unwanted: Callable[[], bool] | None = None) -> triton.InferResult:
        message = message_of(ROUTER, work.inputs(part), work.outputs(), self._timeout, work.request_id)
        return self._call(lambda connection: connection.infer(message, self._timeout, unwanted), unwanted)

    def _infer_watched(
        self, work: Restoration, part: Part, heard: Heard, unwanted: Callable[[], bool]
    ) -> triton.InferResult:
        """With progress, where the server tells it."""
        if self._tells_progress:
            message = stream.message(work, part, self._timeout)
            try:
                return self._call(
                    lambda connection: stream.infer(connection, message, heard, unwanted, self._timeout), unwanted
                )
            except stream.NoProgress:
                self._tells_progress = False
        return self._infer(work, part)

    def _call(self, send: Callable[[Connection], T], unwanted: Callable[[], bool] | None = None) -> T:
        """What `send` makes of the connection to a server that works.

        Args:
            unwanted: asked ten times a second, while it waits for its turn, whether to give up.

        Raises:
            Cancelled: `unwanted` says so.
            RestorationError: it raised tritonclient's InferenceServerException, for each server, or for good.
        """
        errand = self._servers.errand(self._retries, self._timeout)
        while True:
            with errand.ask() as connection:
                return send(connection)
            end = time.monotonic() + errand.pause
            while (left := end - time.monotonic()) > 0:
                if self._closed.wait(left if unwanted is None else min(left, POLL_S)):
                    raise ServerUnavailable(
                        f"the connection to {self.url} was closed while a request waited for its turn"
                    )
                if unwanted is not None and unwanted():
                    raise Cancelled(CANCELLED)


def _connect(address: str, access: Access) -> Connection:
    if not is_http(address):
        return GrpcConnection(address, access)
    from ipt_triton.client.kserve import HttpConnection  # of an extra

    return HttpConnection(address, access)
