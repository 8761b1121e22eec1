"""The asynchronous client: `RestorationClient` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, overload

import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client import protocol, stream
from ipt_triton.client.address import DEFAULT_URL, Access, from_environment, is_http, parse_addresses
from ipt_triton.client.errors import UnknownTask
from ipt_triton.client.flight import in_order_async
from ipt_triton.client.options import Options
from ipt_triton.client.pictures import check_workers, planes_of
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.client.servers import Servers
from ipt_triton.client.stream import Heard, Tally
from ipt_triton.client.transport import AsyncConnection, AsyncGrpcConnection, message_of
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

if TYPE_CHECKING:
    from ipt_triton.client.photo import Photo
    from ipt_triton.client.photo.reading import Source
    from ipt_triton.client.pictures import Picture

T = TypeVar("T")


class AsyncRestorationClient:
    """`RestorationClient` for asyncio: the same methods, to be awaited, and `async with`.

    Cancelling a `restore` cancels its request on the server. Large images do not hold the event loop up: what is to be
    done with files and pixels is done in other threads, and they go in blocks of messages that are soon read.
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
        self._info: ServerInfo | None = None
        self._tells_progress = True  # until a server has no model for it

    @classmethod
    def from_environment(cls) -> AsyncRestorationClient:
        """See `RestorationClient.from_environment`."""
        return cls(**from_environment())

    async def __aenter__(self) -> AsyncRestorationClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back; requests under way fail."""
        for connection in self._servers.connections:
            await connection.close()

    async def info(self) -> ServerInfo:
        """See `RestorationClient.info`."""
        config = await self._call(lambda connection: connection.config(self._timeout))
        self._info = protocol.parse_info(config, self.url)
        return self._info

    async def tasks(self) -> tuple[Task, ...]:
        """See `RestorationClient.tasks`."""
        return (await self.info()).tasks

    @overload
    async def restore(
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
        request_id: str = "",
    ) -> NDArray[Any]: ...

    @overload
    async def restore(
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
        request_id: str = "",
    ) -> Photo: ...

    async def restore(
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
        request_id: str = "",
    ) -> Any:
        """See `RestorationClient.restore`; cancel the task that awaits it to give it up."""
        planes, whole = await asyncio.to_thread(planes_of, image)
        how = task, stride, keep, Options(scale, width, height, tta, strength), request_id
        return await asyncio.to_thread(whole, await self._restore(planes, how, progress))

    async def restore_file(
        self,
        source: Source,
        target: Path | str | BinaryIO,
        task: TaskKey,
        stride: int | None = None,
        keep: int | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        format: str | None = None,
        quality: int | None = None,
        flatten: tuple[int, int, int] | None = None,
        depth: Literal[8, 16] | None = None,
        metadata: bool = True,
        **options: Any,
    ) -> None:
        """See `RestorationClient.restore_file`. Files are read and written in a thread."""
        from ipt_triton.client.photo import check_frames, read_frames, write_frames  # needs what reads files

        stored: dict[str, Any] = {"quality": quality, "flatten": flatten, "depth": depth}
        frames = await asyncio.to_thread(read_frames, source)
        check_frames(frames, target, format, flatten=flatten, depth=depth)
        wanted = Options(**options)
        planes = await asyncio.to_thread(frames.planes)
        restored = await self._restore(planes, (task, stride, keep, wanted, ""), progress)
        info = self._info or await self.info()
        made = protocol.recipe(info, info.chain(task), wanted, stride, keep, **stored)
        result = await asyncio.to_thread(frames.with_planes, restored)
        await asyncio.to_thread(write_frames, result, target, format=format, metadata=metadata, action=made, **stored)

    async def stream(
        self,
        images: Iterable[NDArray[Any] | Picture] | AsyncIterable[NDArray[Any] | Picture],
        task: TaskKey,
        *,
        workers: int = 2,
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """See `RestorationClient.stream`. What is in flight is cancelled when the generator is closed."""
        check_workers(workers)
        calls = (self.restore(image, task, **options) async for image in _each(images))
        async with aclosing(in_order_async(calls, workers)) as results:
            async for result in results:
                yield result

    async def _restore(
        self,
        planes: Sequence[NDArray[Any]],
        how: tuple[TaskKey, int | None, int | None, Options, str],
        progress: Callable[[int, int], None] | None,
    ) -> list[NDArray[Any]]:
        """See `RestorationClient._restore`."""
        try:
            info = self._info or await self.info()
            works = [Restoration(info, plane, *how) for plane in planes]
        except UnknownTask:
            info = await self.info()
            works = [Restoration(info, plane, *how) for plane in planes]
        tally = Tally(sum(work.patches for work in works), progress)
        parts = [(work, part, tally.part()) for work in works for part in work.parts]

        async def ask(work: Restoration, part: Part, heard: Heard) -> triton.InferResult:
            return await (self._infer(work, part) if progress is None else self._infer_watched(work, part, heard))

        calls = (ask(*each) async for each in _each(parts))
        async with aclosing(in_order_async(calls, self._servers.number, early=True)) as answers:
            for work, part, heard in parts:
                await asyncio.to_thread(work.put, part, await anext(answers))
                heard(work.patches_of(part))
        return [await asyncio.to_thread(work.result) for work in works]

    async def _infer(self, work: Restoration, part: Part) -> triton.InferResult:
        message = await asyncio.to_thread(self._message, work, part)
        return await self._call(lambda connection: connection.infer(message, self._timeout))

    async def _infer_watched(self, work: Restoration, part: Part, heard: Heard) -> triton.InferResult:
        """With progress, where the server tells it."""
        if self._tells_progress:
            message = await asyncio.to_thread(stream.message, work, part, self._timeout)
            try:
                return await self._call(
                    lambda connection: stream.infer_async(connection, message, heard, self._timeout)
                )
            except stream.NoProgress:
                self._tells_progress = False
        return await self._infer(work, part)

    def _message(self, work: Restoration, part: Part) -> Any:
        return message_of(ROUTER, work.inputs(part), work.outputs(), self._timeout, work.request_id)

    async def _call(self, send: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """See `RestorationClient._call`."""
        errand = self._servers.errand(self._retries, self._timeout)
        while True:
            with errand.ask() as connection:
                return await send(connection)
            await asyncio.sleep(errand.pause)


async def _each(images: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


def _connect(address: str, access: Access) -> AsyncConnection:
    if not is_http(address):
        return AsyncGrpcConnection(address, access)
    from ipt_triton.client.kserve import AsyncHttpConnection  # of an extra

    return AsyncHttpConnection(address, access)
