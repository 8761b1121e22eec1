"""Whether the server works: a small picture through every task, again and again; `/readyz` tells."""

from __future__ import annotations

import asyncio
import logging
import time

import anyio
import numpy as np

from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.measures import Measures

log = logging.getLogger(__name__)

_PICTURE = np.full((16, 16, 3), 128, np.uint8)


class Readiness:
    """Restores a small picture for each task every so often.

    Args:
        client: of the server.
        every_s: seconds between two rounds.
    """

    def __init__(self, client: AsyncRestorationClient, every_s: float, measures: Measures) -> None:
        self._client, self._every_s, self._measures = client, every_s, measures
        self._worked: dict[str, float] = {}
        self._reason: str | None = "no restore was tried yet"

    @property
    def reason(self) -> str | None:
        """Why the gateway is not ready; None if it is."""
        if self._reason is None and (late := [name for name, age in self.ages().items() if age > 3 * self._every_s]):
            return f"the task {late[0]} has not worked lately"
        return self._reason

    def ages(self) -> dict[str, float]:
        """Seconds since each task last worked."""
        now = time.monotonic()
        return {name: now - moment for name, moment in self._worked.items()}

    async def watch(self) -> None:
        """Try all tasks for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Try all tasks once."""
        name = ""
        try:
            with anyio.fail_after(2 * self._every_s):
                tasks = await self._client.tasks()
                for task in tasks:
                    name = task.name
                    await self._client.restore(_PICTURE, task.id)
                    self._worked[name] = time.monotonic()
                    self._measures.worked.labels(name).set_to_current_time()
        except (RestorationError, TimeoutError) as error:
            told = f"the task {name} does not work" if name else "the restoration server does not answer"
            if told != self._reason:
                log.warning("not ready: %s (%s)", told, error)
            self._reason = told
        else:
            self._worked = {task.name: self._worked[task.name] for task in tasks}
            self._reason = None
