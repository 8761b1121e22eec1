"""Looks after a running server: its processes four times a second, its counters and heartbeats twice a second."""

from __future__ import annotations

import contextlib
import os
import time

from google.protobuf import text_format

from ipt_triton.export.serving import preflight, supervise
from ipt_triton.export.serving.heartbeat import Heart
from ipt_triton.export.serving.progress import Progress
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.service import ROUTER, ensemble_name

LOOK_S = 0.25
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Watch:
    """Watches one run of a server, from its warm-up to its end; made when it is ready.

    Triton never replaces a Python model's process that died, answers "ready" all the same, and may hand answers to the
    wrong requests once such a process was stopped for a second. So one that is gone, or found stopped twice in a row,
    is the end of the whole server.
    """

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._processes = server.model_processes()
        self._stopped: set[int] = set()
        ways = {task.name: _way(server, task.name) for task in server.tasks}
        self._heart = Heart(server.grpc_url, server.tasks, ways, server.has_metrics)
        by_id = {task.id: ways[task.name] for task in server.tasks}
        self._progress = Progress(server.board, by_id, _most_waiting(server))
        self._looks = 0
        self._ticks, self._ticks_at = 0, time.monotonic()

    def close(self) -> None:
        """End the heartbeats."""
        self._heart.close()

    def unready(self) -> str | None:
        """Say why the server is not ready; None when each task has restored a picture lately and there is room."""
        return self._heart.overdue() or self._progress.full()

    def look(self) -> str | None:
        """Look once, every `LOOK_S`; return what is wrong, in words, or None."""
        if fault := self._look_at_processes():
            return fault
        self._looks += 1
        if self._looks % 2:
            return None
        counters = None
        if self._server.has_metrics:
            with contextlib.suppress(TimeoutError):
                counters = self._server.counters()
        lost = self._progress.look(counters) if counters else None
        return lost or self._heart.look(counters, self._is_busy())

    def _look_at_processes(self) -> str | None:
        stopped = set()
        for process, (name, started) in self._processes.items():
            try:
                state, start = supervise.state_of(process)
            except OSError:
                return f"the process of {name} is gone"
            if start != started:
                return f"the process of {name} is gone"
            if state == "T":
                if process in self._stopped:
                    return f"the process of {name} is stopped"
                stopped.add(process)
        self._stopped = stopped
        return None

    def _is_busy(self) -> bool:
        """Whether the server's processes have used half a core or more since the last time."""
        ticks, now = sum(map(supervise.cpu_ticks, self._processes)), time.monotonic()
        share = (ticks - self._ticks) / _TICKS_PER_S / max(now - self._ticks_at, 1e-3)
        self._ticks, self._ticks_at = ticks, now
        return share >= 0.5


def _way(server: TritonServer, task: str) -> list[str]:
    """The models behind the router for a task; none in a repository of another kind."""
    with contextlib.suppress(OSError, text_format.ParseError):
        config = preflight.read_config(server.repository / ensemble_name(task))
        return [step.model_name for step in config.ensemble_scheduling.step]
    return []


def _most_waiting(server: TritonServer) -> int:
    """Bound of the queue before the routers; 0 for none."""
    with contextlib.suppress(OSError, text_format.ParseError):
        config = preflight.read_config(server.repository / ROUTER)
        return int(config.dynamic_batching.default_queue_policy.max_queue_size)
    return 0
