"""A gateway on a port: in this process before a server that stops at will, or the command before a real one."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from helpers.gateway import Repeating, application

from ipt_triton.client.gateway.serving import listen, make_server

LARGE_PIXELS = 10**6


class Halting(Repeating):
    """Stands still with a large photo, half done, until `going` is set."""

    def __init__(self, going: threading.Event) -> None:
        super().__init__()
        self._going = going

    async def restore(self, image: np.ndarray, task: int | str, progress: Any = None, **options: Any) -> np.ndarray:
        if progress is not None:
            for done in (0, 10, 20):
                progress(done, 40)
                await asyncio.sleep(0.1)
        while image.shape[0] * image.shape[1] > LARGE_PIXELS and not self._going.is_set():
            await asyncio.sleep(0.02)
        return await super().restore(image, task, **options)


@dataclass
class Live:
    """A gateway in this process.

    Attributes:
        url: of the page.
        going: set to let large photos pass, see `Halting`.
        stop: ends it as a crash would, with its connections cut.
    """

    url: str
    going: threading.Event
    stop: Callable[[], None]


@contextmanager
def live_gateway(folder: Path, **settings: Any) -> Iterator[Live]:
    """A gateway whose server gives pictures back, see `Halting`."""
    going = threading.Event()
    with application(folder, Halting(going), **settings) as app, listen("127.0.0.1", 0) as place:
        server = make_server(app)
        server.config.timeout_graceful_shutdown = 0
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()

        def stop() -> None:
            server.should_exit = server.force_exit = True
            thread.join()
            place.close()

        try:
            yield Live(f"http://127.0.0.1:{place.getsockname()[1]}/", going, stop)
        finally:
            stop()


@contextmanager
def gateway_command(url: str, folder: Path) -> Iterator[str]:
    """`ipt-gateway` in front of a server: the page's address."""
    words = [sys.executable, "-m", "ipt_triton.client.gateway.command", "--url", url, "--port", "0", "--folder", folder]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "ipt-gateway has not started"
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
