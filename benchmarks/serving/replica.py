"""`ipt-serve` as its users run it, for benchmarks of what it does about faults and overload."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil

from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.export.serving.preflight import LOOPBACK, free_ports
from ipt_triton.export.serving.supervise import SHARED_MEMORY

READY_S = 120.0
"""A server that is not ready after this time, whatever befell it, has not healed."""


class Replica:
    """One `ipt-serve`, on the same ports whenever it is started.

    Args:
        folder: for its temporary files and its log; the environment of all its processes names it.

    Attributes:
        url: HOST:PORT of gRPC.
        ports: its ports: `grpc`, `metrics` and `health`.
    """

    def __init__(self, repository: Path, folder: Path) -> None:
        self._temporary, self._log = folder / "tmp", folder / "log"
        self._temporary.mkdir(parents=True)
        self._launchers: list[int] = []
        self.ports = dict(zip(("grpc", "metrics", "health"), free_ports(LOOPBACK, 3), strict=True))
        self.url, self._ready = f"{LOOPBACK}:{self.ports['grpc']}", f"http://{LOOPBACK}:{self.ports['health']}/readyz"
        flags = [f"--{name}-port={port}" for name, port in self.ports.items()]
        module = "ipt_triton.export.serving.command"
        self._command = [sys.executable, "-m", module, f"--repository={repository}", *flags]
        self.start()

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            environment = {**os.environ, "TMPDIR": str(self._temporary)}
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        self._launchers.append(self.process.pid)

    def ready(self) -> bool:
        """What its health port says."""
        try:
            with urllib.request.urlopen(self._ready, timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def await_ready(self) -> None:
        """Wait until it is ready. Raises LoadError when it does not get ready."""
        deadline = time.monotonic() + READY_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                lines = "\n  ".join(self._log.read_text(errors="replace").splitlines()[-8:])
                raise LoadError(
                    f"a server did not get ready (exit status {self.process.poll()}); it last said\n  {lines}"
                )
            time.sleep(0.1)

    def pids(self, name: str = "") -> list[int]:
        """Its processes; those of a program alone if one is named."""
        with suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
            return [process.pid for process in family if process.name().startswith(name)]
        return []

    def left(self) -> list[str]:
        """Processes, regions of shared memory and files that are there though it has ended."""
        mark = f"TMPDIR={self._temporary}".encode()
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    found.append(f"process {process.pid} {process.name()}")
        regions = [r for pid in self._launchers for r in SHARED_MEMORY.glob(f"ipt-serve-*-{pid}-*")]
        return [*found, *map(str, regions), *map(str, self._temporary.iterdir())]

    def end(self) -> None:
        """Tell it to stop and wait."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise LoadError("a server that was told to stop did not end within 60 s") from None
