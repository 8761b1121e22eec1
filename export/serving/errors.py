"""The errors of serving: each message is one sentence that says what to do."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence

from ipt_triton.errors import IptError


class ServeError(IptError):
    """Something about serving failed; the message is one sentence that says what to do."""


class CheckError(ServeError):
    """The server was not started because checks failed: `problems` holds one sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problems))


class ServerEndedError(ServeError):
    """tritonserver ended by itself: `exit_status` as the shell gives it (128 + signal), `lines` its last
    words."""

    def __init__(self, status: int, lines: Sequence[str]) -> None:
        self.exit_status = status
        self.lines = tuple(lines)
        said = "".join(f"\n  {line}" for line in lines) or " nothing"
        super().__init__(f"tritonserver ended by itself with {describe_status(status)}; it last said:{said}")


class BuildError(ServeError):
    """Engines that the repository lacked could not be built."""


class NotReadyError(ServeError):
    """The server did not become ready in time."""


class WarmUpError(ServeError):
    """A warm-up request failed or its answer was wrong."""


class GaveUpError(ServeError):
    """The server failed again and again."""


class InterruptedStartError(ServeError):
    """`interrupt()` was called while the server was starting."""


def describe_status(status: int) -> str:
    """Say an exit status in words: `exit status 1`, `signal 9 (SIGKILL)`."""
    if status > 128:
        with contextlib.suppress(ValueError):
            return f"signal {status - 128} ({signal.Signals(status - 128).name})"
    return f"exit status {status}"
