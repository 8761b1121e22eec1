"""One photo through the gateway: decoded in a worker, restored by the server in its turn, encoded in a worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from anyio import to_thread

from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.gateway import codec
from ipt_triton.client.gateway.codec import Described, Written
from ipt_triton.client.gateway.journal import request_id
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.problems import BUSY_S, Problem, status_of
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spans import span
from ipt_triton.client.gateway.turns import Turn, Turns
from ipt_triton.client.gateway.workers import Workers
from ipt_triton.client.options import large_enough
from ipt_triton.client.protocol import ServerInfo

Report = Callable[[int, int], None]
"""Is told how many tiles are done, of how many."""

_INFO_S = 30.0
_BYTES_PER_PIXEL = 8  # four samples of 16 bits


@dataclass
class Timings:
    """Seconds of each step, in order."""

    measures: Measures
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, task: str) -> Iterator[None]:
        """A step of a photo's way through a task: timed, counted and traced."""
        started = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            self.measures.steps.labels(name, task).observe(taken)

    def header(self) -> str:
        """As `Server-Timing` has it, in milliseconds."""
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in self.seconds.items())


class Restorer:
    """Restores uploaded files.

    Args:
        client: of the server, or of several.
    """

    def __init__(
        self, client: AsyncRestorationClient, workers: Workers, turns: Turns, settings: Settings, measures: Measures
    ) -> None:
        self._client, self._workers, self._turns = client, workers, turns
        self._settings, self._measures = settings, measures
        self._info: ServerInfo | None = None
        self._asked = 0.0

    async def info(self) -> ServerInfo:
        """What the server says of itself, as it was half a minute ago at most.

        Raises:
            RestorationError: it does not answer.
        """
        if self._info is None or time.monotonic() - self._asked > _INFO_S:
            self._info = await self._client.info()
            self._asked = time.monotonic()
        return self._info

    async def describe(self, upload: Path, options: Options) -> Described:
        """Look at an uploaded file and at what is asked for, before any work; `options.task` becomes the tasks' names.

        Raises:
            Problem, RestorationError: it cannot be done.
        """
        info = await self.info()
        options.task = info.chain(options.named_task).name
        info.rule(options.stride, options.keep)
        options.of_client()
        described = await self._workers.run(0, codec.describe, upload, self._settings.max_pixels)
        pixels = await self._result_pixels(described, options)
        if pixels > self._settings.max_output_pixels:
            raise Problem(
                413,
                f"the result would have {pixels} pixels, and {self._settings.max_output_pixels} are allowed; "
                "send a smaller photo or enlarge it less",
            )
        return described

    async def room_for(self, upload: Path, described: Described, options: Options) -> int:
        """Bytes on disk that a photo may take: the upload, its planes, the restored ones, the result."""
        pixels = described.width * described.height + 2 * await self._result_pixels(described, options)
        return upload.stat().st_size + _BYTES_PER_PIXEL * pixels

    async def _result_pixels(self, described: Described, options: Options) -> int:
        """Of the result, or of what the networks make before it is reduced.

        Raises:
            RestorationError: there are no such tasks, or they do not reach the size.
        """
        info, wishes, size = await self.info(), options.of_client(), (described.width, described.height)
        chain = large_enough(info.tasks, info.chain(options.named_task), wishes.factor(*size))
        return max(math.prod(wishes.size(*size, chain)), math.prod(size) * chain.scale**2)

    def check_waiting(self) -> None:
        """Refuse a photo where many wait.

        Raises:
            Problem: 503.
        """
        if self._turns.is_full:
            raise Problem(503, "too many photos wait already; try again later", 2 * BUSY_S)

    async def restore(
        self,
        upload: Path,
        folder: Path,
        described: Described,
        options: Options,
        owner: str,
        timings: Timings,
        report: Report | None = None,
        entered: Callable[[Turn], None] | None = None,
    ) -> Written:
        """Restore an uploaded file, when its turn comes, into the file `result` of a folder of work.

        The restored planes stay in the folder for `codec.encode` and `codec.show_result`.

        Args:
            owner: between whom turns are fair.
            report: is told the progress.
            entered: see `Turns.turn`.

        Raises:
            Problem, RestorationError: it cannot be done.
        """
        task = "several" if "," in options.named_task else options.named_task
        pixels = described.width * described.height
        async with AsyncExitStack() as turn:
            turn.enter_context(self._counted(task, pixels))
            with timings.step("queue", task):
                await turn.enter_async_context(self._turns.turn(owner, pixels, entered))
            larger = await self._result_pixels(described, options)
            with timings.step("decode", task):
                planes = await self._workers.run(
                    pixels, codec.decode, upload, folder, self._settings.max_pixels, options.format
                )
            with timings.step("restore", task):
                await self._restore_planes(folder, planes, options, report)
            for number in range(planes):
                (folder / f"plane{number}.npy").unlink()
            with timings.step("encode", task):
                chain = options.named_task
                return await self._workers.run(
                    larger,
                    codec.encode,
                    *(folder, folder / "result", options.format, options.quality, options.keeps_metadata, chain),
                )

    @contextmanager
    def _counted(self, task: str, pixels: int) -> Iterator[None]:
        """Counts a photo by what becomes of it."""
        outcome = "cancelled"  # by its caller, or because its time is up
        try:
            yield
            outcome = "restored"
        except Exception as error:
            status = status_of(error)
            outcome = "unavailable" if status == 503 else "invalid" if status < 500 else "failed"
            raise
        finally:
            self._measures.photos.labels(task, outcome).inc()
        self._measures.pixels.labels(task).inc(pixels)

    async def _restore_planes(self, folder: Path, planes: int, options: Options, report: Report | None) -> None:
        """Restore the planes one after the other; the alpha of a photo is a second one, of as many tiles."""
        arguments = options.for_client()
        for number in range(planes):
            if report is not None:
                arguments["progress"] = lambda done, total, before=number: report(before * total + done, planes * total)
            image = await to_thread.run_sync(_load, folder / f"plane{number}.npy")
            restored = await self._client.restore(image, options.named_task, request_id=request_id.get(), **arguments)
            await to_thread.run_sync(_save, folder / f"restored{number}.npy", restored)


def _load(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _save(path: Path, image: np.ndarray) -> None:
    np.save(path, image, allow_pickle=False)
