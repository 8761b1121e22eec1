"""A gateway on a port: in this process before a server that stops at will, or the command before a real one."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from helpers.gateway import Repeating

from ipt_triton.client.gateway.app import build_app
from ipt_triton.client.gateway.keys import Keys
from ipt_triton.client.gateway.serving import make_server
from ipt_triton.client.gateway.settings import Settings

LARGE_PIXELS = 10**6
_TILES = 40


class Halting(Repeating):
    """Tells its progress, and stands still in the middle of a large photo until `going` is set."""

    def __init__(self, going: threading.Event) -> None:
        super().__init__()
        self._going = going

    async def restore(self, image: np.ndarray, task: int | str, progress: Any = None, **options: Any) -> np.ndarray:
        is_large = image.shape[0] * image.shape[1] > LARGE_PIXELS
        for done in range(_TILES + 1) if progress else ():
            progress(done, _TILES)
            await asyncio.sleep(0.005)
            while is_large and done == _TILES // 2 and not self._going.is_set():
                await asyncio.sleep(0.05)
        return await super().restore(image, task, **options)


class Live:
    """A gateway in this process; `stop` ends it as a crash would: connections are cut.

    Attributes:
        url: of the page.
        going: set to let large photos pass, see `Halting`.
    """

    def __init__(self, folder: Path, keys: str = "", **settings: Any) -> None:
        self.going = threading.Event()
        chosen = replace(Settings(folder=folder, workers=1), **settings)
        app = build_app(chosen, lambda: Halting(self.going), Keys(chosen, keys))  # type: ignore[arg-type, return-value]
        self._server = make_server(app)
        self._server.config.timeout_graceful_shutdown = 0
        self._place = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._place.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._server.run, args=([self._place],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()
        self._place.close()


@contextmanager
def live_gateway(folder: Path, keys: str = "", **settings: Any) -> Iterator[Live]:
    """A gateway whose server gives pictures back, see `Halting`."""
    live = Live(folder, keys, **settings)
    try:
        yield live
    finally:
        live.stop()


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
