"""Worker processes: each call of `codec` runs in one, within bounds of memory and time, and never takes us down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
from anyio import BrokenWorkerProcess, CapacityLimiter, to_process

from ipt_triton.client.gateway import codec
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.problems import Problem
from ipt_triton.client.gateway.settings import Settings

T = TypeVar("T")

_BASE_S, _PER_MEGAPIXEL_S = 40.0, 1.0
"""Seconds for a call, and for each megapixel that it works on; AVIF of a camera's photo takes most, and a process that
has to be started first on a busy machine."""
_START_S = 300.0


class Workers:
    """A bounded number of processes for decoding and encoding.

    Args:
        settings: how many, with how much memory.
        measures: counts the calls that were ended.
    """

    def __init__(self, settings: Settings, measures: Measures) -> None:
        self._settings, self._measures = settings, measures
        self._limiter = CapacityLimiter(settings.workers)
        self._files = 16 * settings.max_output_pixels + 2**20  # four samples of 16 bits, and some room

    async def start(self) -> None:
        """Start all processes, so that the first photos need not wait for them."""
        async with anyio.create_task_group() as group:
            for _ in range(self._settings.workers):
                group.start_soon(self._run, _START_S, codec.give_back_memory, ())

    async def run(self, pixels: int, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function of `codec` in a process.

        Args:
            pixels: that it works on; they decide how long it may take.

        Raises:
            RestorationError: what the function raises.
            Problem: it took too much memory or time, or its process died.
        """
        async with self._limiter:
            return await self._run(_BASE_S + _PER_MEGAPIXEL_S * pixels / 1e6, work, arguments)

    async def _run(self, seconds: float, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        private = CapacityLimiter(1)  # ours has been taken already, so that waiting for it takes none of the seconds
        try:
            with anyio.fail_after(seconds):
                return await to_process.run_sync(
                    codec.confined,
                    self._settings.worker_bytes,
                    self._files,
                    work,
                    arguments,
                    cancellable=True,
                    limiter=private,
                )
        except TimeoutError:
            self._measures.ended_workers.labels("time").inc()
            raise Problem(
                422, f"the image took longer than {seconds:.0f} s to be read or written; simplify it"
            ) from None
        except MemoryError:
            self._measures.ended_workers.labels("memory").inc()
            raise Problem(413, "the image needs more memory than the gateway allows; make it smaller") from None
        except BrokenWorkerProcess:
            self._measures.ended_workers.labels("crash").inc()
            raise Problem(422, "the image broke the process that read it; it is damaged or made to do harm") from None
