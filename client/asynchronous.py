"""The asynchronous client: `RestorationClient` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from ipt_triton.client import protocol, stream
from ipt_triton.client.errors import UnknownTask
from ipt_triton.client.options import Options
from ipt_triton.client.protocol import Part, Restoration, ServerInfo, Task
from ipt_triton.service import ROUTER
from ipt_triton.tasks import TaskKey

T = TypeVar("T")


class AsyncRestorationClient:
    """`RestorationClient` for asyncio: the same methods, to be awaited, and `async with`.

    Cancelling a `restore` cancels its request on the server.
    """

    def __init__(self, url: str = "localhost:8001", timeout: float | None = None, retries: int = 6) -> None:
        self.url = url
        self._timeout = timeout
        self._retries = retries
        self._grpc = triton_aio.InferenceServerClient(url, channel_args=protocol.CHANNEL_ARGS)
        self._info: ServerInfo | None = None

    async def __aenter__(self) -> AsyncRestorationClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back; requests under way fail."""
        await self._grpc.close()

    async def info(self) -> ServerInfo:
        """See `RestorationClient.info`."""
        answer = await self._call(lambda: self._grpc.get_model_config(ROUTER, client_timeout=self._timeout))
        self._info = protocol.parse_info(answer.config, self.url)
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
    ) -> NDArray[Any]:
        """See `RestorationClient.restore`; cancel the task that awaits it to give it up."""
        options = Options(scale, width, height, tta, strength)
        try:
            work = Restoration(self._info or await self.info(), image, task, stride, keep, options)
        except UnknownTask:
            work = Restoration(await self.info(), image, task, stride, keep, options)
        tally = stream.Tally(work.patches, progress)
        for part in work.parts:
            answer = await (self._infer(work, part) if progress is None else self._infer_watched(work, part, tally))
            work.put(part, answer)
            tally.finish(work.patches_of(part))
        return work.result()

    async def _infer(self, work: Restoration, part: Part) -> triton.InferResult:
        inputs, outputs = work.inputs(part), work.outputs()
        limits = protocol.limits(self._timeout)
        return await self._call(lambda: self._grpc.infer(ROUTER, inputs, outputs=outputs, **limits))

    async def _infer_watched(self, work: Restoration, part: Part, tally: stream.Tally) -> triton.InferResult:
        """With progress, where the server tells it."""
        try:
            return await self._call(lambda: stream.infer_async(self._grpc, work, part, tally, self._timeout))
        except stream.NoProgress:
            return await self._infer(work, part)

    async def _call(self, send: Callable[[], Awaitable[T]]) -> T:
        delays = protocol.retry_delays(self._retries)
        while True:
            try:
                return await send()
            except InferenceServerException as error:
                delay = protocol.pause(delays, error)
                if delay is None:
                    raise protocol.explain(error, self.url, self._timeout) from error
            await asyncio.sleep(delay)
