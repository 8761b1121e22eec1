"""The end of a gateway: nothing new from the moment that it is told to stop, and some time for what is under way."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import CancelScope

from ipt_triton.client.gateway.jobs import Jobs
from ipt_triton.client.gateway.problems import BUSY_S, Problem

log = logging.getLogger(__name__)

GRACE_S = 15.0
"""Seconds that requests and jobs under way get to be finished when the gateway is told to stop."""
_FETCH_S = 5.0
"""Seconds for the callers of a job that was done meanwhile, to notice and to fetch its result."""


class Ending:
    """Knows whether the gateway takes work, and what is under way.

    Args:
        jobs: those of the gateway.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._requests: set[CancelScope] = set()
        self._deadline: float | None = None
        self._logged = False

    @property
    def begun(self) -> bool:
        """Whether the gateway was told to stop."""
        return self._deadline is not None

    def begin(self, grace: float) -> None:
        """Take no new work from now on; what is under way gets `grace` seconds. A signal's handler may call this."""
        self._deadline = time.monotonic() + grace

    def left(self) -> float:
        """Seconds left of the grace, 0 if it is over; without end as long as nobody has told the gateway to stop."""
        return math.inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def look(self) -> bool:
        """Whether a gateway that was told to stop may end: nothing is under way any more, or the grace is over."""
        if not self.begun:
            return False
        if not self._logged:
            self._logged = True
            fields = {"requests": len(self._requests), "jobs": self._jobs.under_way}
            log.info("stopping: what is under way has %.0f s", self.left(), extra={"fields": fields})
        busy = self._requests or self._jobs.under_way or self._jobs.new_results(_FETCH_S)
        return not busy or not self.left()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let the block work for a request.

        Raises:
            Problem: 503, the gateway takes no more work, or it ended before the block did.
        """
        if self.begun:
            raise Problem(503, "the gateway is stopping and takes no more photos; try again later", BUSY_S)
        with CancelScope() as scope:
            self._requests.add(scope)
            try:
                yield
            finally:
                self._requests.discard(scope)
        if scope.cancelled_caught:
            raise Problem(503, "the gateway stopped before the photo was done; send it again later", BUSY_S)

    def give_up(self) -> None:
        """Answer the requests that are still under way with 503; jobs are left for the next gateway."""
        if unfinished := len(self._requests) + self._jobs.under_way:
            log.warning("%d requests and jobs were not finished in time", unfinished)
        for scope in self._requests:
            scope.cancel()
        self._jobs.stopping = True
