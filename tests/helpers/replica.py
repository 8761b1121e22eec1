"""A pretended server in a process of its own, to be killed or stopped, with a health port like the launcher's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from helpers.pretended import Refusal, over_grpc

from ipt_triton.export.serving.health import Health

TAKES_S = 0.03


class Replica:
    """Gives images back after a moment.

    Args:
        refuses: so many requests are answered with UNAVAILABLE, though it is ready.

    Attributes:
        process: the server.
        grpc, health: its ports, after `ready`.
    """

    def __init__(self, refuses: int = 0) -> None:
        words = [sys.executable, __file__, str(refuses)]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.grpc = self.health = 0

    def ready(self) -> None:
        """Wait until it answers."""
        assert self.process.stdout is not None
        self.grpc, self.health = map(int, self.process.stdout.readline().split())


@contextmanager
def replicas(*refuse: int) -> Iterator[list[Replica]]:
    """Several, started side by side; how many requests each refuses."""
    started = [Replica(refuses) for refuses in refuse]
    try:
        for replica in started:
            replica.ready()
        yield started
    finally:
        for replica in started:
            replica.process.kill()
            replica.process.wait()


def _serve(refuses: int) -> None:
    with over_grpc() as told:
        told.before = lambda request, context: time.sleep(TAKES_S)
        told.failures = refuses * [Refusal(grpc.StatusCode.UNAVAILABLE, "8 photographs are under way")]
        health = Health("127.0.0.1", 0, lambda: None, lambda: b"")
        print(told.address.rpartition(":")[2], health.port, flush=True)
        sys.stdin.read()  # until the test is gone


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
