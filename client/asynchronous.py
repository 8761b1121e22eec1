"""The asynchronous client: `RestorationClient` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, TypeVar

import tritonclient.grpc as triton
from numpy.typing import NDArray

from ipt_triton.client import protocol, stream
from ipt_triton.client.address import DEFAULT_URL, Access, from_environment, is_http, parse_addresses
from ipt_triton.client.errors import UnknownTask
from ipt_triton.client.options import Options
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.client.servers import Servers
from ipt_triton.client.transport import AsyncConnection, AsyncGrpcConnection, message_of
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

T = TypeVar("T")


class AsyncRestorationClient:
    """`RestorationClient` for asyncio: the same methods, to be awaited, and `async with`.

    Cancelling a `restore` cancels its request on the server.
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
    ) -> NDArray[Any]:
        """See `RestorationClient.restore`; cancel the task that awaits it to give it up."""
        options = Options(scale, width, height, tta, strength)
        try:
            work = Restoration(self._info or await self.info(), image, task, stride, keep, options, request_id)
        except UnknownTask:
            work = Restoration(await self.info(), image, task, stride, keep, options, request_id)
        tally = stream.Tally(work.patches, progress)
        for part in work.parts:
            answer = await (self._infer(work, part) if progress is None else self._infer_watched(work, part, tally))
            work.put(part, answer)
            tally.finish(work.patches_of(part))
        return work.result()

    async def _infer(self, work: Restoration, part: Part) -> triton.InferResult:
        message = message_of(ROUTER, work.inputs(part), work.outputs(), self._timeout, work.request_id)
        return await self._call(lambda connection: connection.infer(message, self._timeout))

    async def _infer_watched(self, work: Restoration, part: Part, tally: stream.Tally) -> triton.InferResult:
        """With progress, where the server tells it."""
        if self._tells_progress:
            message = stream.message(work, part, self._timeout)
            try:
                return await self._call(
                    lambda connection: stream.infer_async(connection, message, tally, self._timeout)
                )
            except stream.NoProgress:
                self._tells_progress = False
        return await self._infer(work, part)

    async def _call(self, send: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """See `RestorationClient._call`."""
        errand = self._servers.errand(self._retries, self._timeout)
        while True:
            with errand.ask() as connection:
                return await send(connection)
            await asyncio.sleep(errand.pause)


def _connect(address: str, access: Access) -> AsyncConnection:
    if not is_http(address):
        return AsyncGrpcConnection(address, access)
    from ipt_triton.client.kserve import AsyncHttpConnection  # of an extra

    return AsyncHttpConnection(address, access)
