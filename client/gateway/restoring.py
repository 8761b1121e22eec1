"""One photo through the gateway: decoded in a worker, restored by the server in its turn, encoded in a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anyio import to_thread

from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.gateway import codec
from ipt_triton.client.gateway.codec import Described, Written
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.problems import BUSY_S, Problem
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.turns import Turn, Turns
from ipt_triton.client.gateway.workers import Workers
from ipt_triton.client.protocol import ServerInfo
from ipt_triton.tiling import count_patches

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
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            self.measures.steps.labels(name).observe(taken)

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
        """Look at an uploaded file and at what is asked for, before any work.

        Raises:
            Problem, RestorationError: it cannot be done.
        """
        arguments = options.for_client()
        task = (await self.info()).task(options.named_task)
        (await self.info()).rule(arguments.get("stride"), arguments.get("keep"))
        described = await self._workers.run(0, codec.describe, upload, self._settings.max_pixels)
        pixels = described.width * described.height * task.scale**2
        if pixels > self._settings.max_output_pixels:
            raise Problem(
                413,
                f"the result would have {pixels} pixels, and {self._settings.max_output_pixels} are allowed; "
                "send a smaller photo or enlarge it less",
            )
        return described

    async def room_for(self, upload: Path, described: Described, options: Options) -> int:
        """Bytes on disk that a photo may take: the upload, its planes, the restored ones, the result."""
        scale = (await self.info()).task(options.named_task).scale
        return upload.stat().st_size + _BYTES_PER_PIXEL * described.width * described.height * (1 + 2 * scale**2)

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
        arguments = options.for_client()
        name = options.named_task
        pixels = described.width * described.height
        queued = time.perf_counter()
        async with self._turns.turn(owner, pixels, entered):
            timings.seconds["queue"] = time.perf_counter() - queued
            self._measures.steps.labels("queue").observe(timings.seconds["queue"])
            task = (await self.info()).task(name)
            with timings.step("decode"):
                planes = await self._workers.run(
                    pixels, codec.decode, upload, folder, self._settings.max_pixels, options.format
                )
            with timings.step("restore"):
                await self._restore_planes(folder, planes, name, arguments, report or _nobody)
            for number in range(planes):
                (folder / f"plane{number}.npy").unlink()
            with timings.step("encode"):
                written = await self._workers.run(
                    pixels * task.scale**2,
                    codec.encode,
                    *(folder, folder / "result", options.format, options.quality, options.keeps_metadata, task.name),
                )
        self._measures.pixels.labels(task.name).inc(pixels)
        return written

    async def _restore_planes(
        self, folder: Path, planes: int, task: str, arguments: dict[str, Any], report: Report
    ) -> None:
        for number in range(planes):
            image = await to_thread.run_sync(_load, folder / f"plane{number}.npy")
            patches = await self._patches(image, arguments)
            report(number * patches, planes * patches)
            restored = await self._client.restore(image, task, **arguments)
            report((number + 1) * patches, planes * patches)
            await to_thread.run_sync(_save, folder / f"restored{number}.npy", restored)

    async def _patches(self, image: np.ndarray, arguments: dict[str, Any]) -> int:
        info = await self.info()
        stride, _ = info.rule(arguments.get("stride"), arguments.get("keep"))
        return count_patches(image.shape[0], image.shape[1], info.patch_size, stride)


def _nobody(done: int, total: int) -> None:
    pass


def _load(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _save(path: Path, image: np.ndarray) -> None:
    np.save(path, image, allow_pickle=False)
