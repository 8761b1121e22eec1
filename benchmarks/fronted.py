"""A gateway of one's own in front of a server: `ipt-gateway` as a user runs it, on a free port."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ipt_triton.benchmarks.errors import BenchmarkError

PROGRAM = (sys.executable, "-m", "ipt_triton.client.gateway.command")
_START_S, _STOP_S = 120.0, 30.0


class Fronted:
    """A running gateway; as a context manager it starts and stops.

    Args:
        folder: made; for its files, and for `log`, which takes all that it writes.
        url: HOST:PORT of the server.
        arguments: further ones of the command.
        program: the command itself.
    """

    def __init__(self, folder: Path, url: str, arguments: Sequence[str] = (), program: Sequence[str] = PROGRAM) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*program, "--url", url, "--port", "0", "--folder", str(folder / "files"), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Fronted:
        """Raises BenchmarkError: it does not start."""
        deadline = time.monotonic() + _START_S
        while "startup complete" not in self.output:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"the gateway did not start: {self.output}")
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    @property
    def address(self) -> str:
        """http://HOST:PORT."""
        found = re.search(r"^page: (http://\S+?)/$", self.output, re.MULTILINE)
        assert found is not None
        return found[1]
