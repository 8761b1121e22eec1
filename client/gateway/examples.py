"""The example pictures of tasks, restored by the server that is there: each once, when it is first asked for."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from ipt_triton.client.gateway.catalogue import example_of
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.problems import Problem
from ipt_triton.client.gateway.restoring import Restorer, Timings
from ipt_triton.client.gateway.spool import Spool
from ipt_triton.tasks import Task

_OWNER = "examples"


class Examples:
    """Restored examples in a folder of work, until `close`."""

    def __init__(self, restorer: Restorer, spool: Spool, measures: Measures) -> None:
        self._restorer, self._measures = restorer, measures
        self._spool, self._held = spool, ExitStack()
        self._made: dict[Task, Path] = {}
        self._locks: defaultdict[Task, asyncio.Lock] = defaultdict(asyncio.Lock)

    def close(self) -> None:
        """Remove them."""
        self._held.close()

    async def restored(self, task: Task) -> Path:
        """A JPEG of the task's example, restored.

        Raises:
            Problem, RestorationError: there is none, or the server does not work.
        """
        source = example_of(task)
        if source is None:
            raise Problem(404, f"the task {task.name} has no example")
        async with self._locks[task]:
            if task not in self._made:
                self._made[task] = await self._restore(source, task)
        return self._made[task]

    async def _restore(self, source: Path, task: Task) -> Path:
        options = Options(task=task.name)
        with ExitStack() as stack:
            folder = stack.enter_context(self._spool.work())
            described = await self._restorer.describe(source, options)
            await self._restorer.restore(source, folder, described, options, _OWNER, Timings(self._measures))
            self._held.push(stack.pop_all())
        return folder / "result"
