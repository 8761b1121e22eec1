"""Keeps a server serving: watches it, says whether it is ready, and starts it anew when it fails.

Triton 2.51 cannot start one process of a model again, so that a failure of any part is one of the whole server: it is
ended at once, which callers see as a lost connection, and started again on the same ports.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from ipt_triton.export.serving.errors import GaveUpError, InterruptedStartError, ServeError, ServerEndedError
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.export.serving.watch import LOOK_S, Watch

MOST_RESTARTS = 8
WINDOW_S = 600.0
"""A server that fails after `MOST_RESTARTS` starts within this time is given up."""


class Keeper:
    """Keeps one server serving until it is interrupted.

    Args:
        say: gets a line for each restart.
    """

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._watch: Watch | None = None
        self._restarts: deque[float] = deque()
        self._state = "starting"

    def unready(self) -> str | None:
        """Say why the server is not ready, None if it is: every task has restored a picture lately."""
        if self._server.stopping:
            return "stopping"
        watch = self._watch
        return self._state if watch is None else watch.unready()

    def begin(self) -> Watch:
        """Watch a server that was started: from now on `unready` tells how it is."""
        self._watch = watch = Watch(self._server)
        return watch

    def keep(self, timeout: float) -> None:
        """Watch a server that was started until `interrupt` is called on it.

        Args:
            timeout: seconds until ready, of each restart.

        Raises:
            GaveUpError: it failed again and again.
        """
        while (fault := self._watch_over()) is not None:
            try:
                self._heal(fault, timeout)
            except InterruptedStartError:
                return

    def _watch_over(self) -> str | None:
        """Watch one run of the server; return what ended it, None for an interrupt."""
        watch = self._watch or self.begin()
        try:
            while not self._server.wait(LOOK_S):
                if fault := watch.look():
                    return fault
            return None
        except ServerEndedError as error:
            return str(error)
        finally:
            self._watch = None
            watch.close()

    def _heal(self, fault: str, timeout: float) -> None:
        while True:
            self._state = f"restarting: {fault.splitlines()[0]}"
            while self._restarts and time.monotonic() - self._restarts[0] > WINDOW_S:
                self._restarts.popleft()
            if len(self._restarts) == MOST_RESTARTS:
                raise GaveUpError(
                    f"tritonserver was started again {MOST_RESTARTS} times within {WINDOW_S / 60:.0f} minutes and "
                    f"fails still ({fault}): look at what it says above, and at the machine's memory"
                )
            self._say(f"starting tritonserver again: {fault}")
            self._server.end()
            self._server.rest(2 ** (len(self._restarts) - 2) if len(self._restarts) > 1 else 0)
            self._restarts.append(time.monotonic())
            try:
                self._server.start_again(timeout)
                return
            except InterruptedStartError:
                raise
            except ServeError as error:
                fault = str(error)
