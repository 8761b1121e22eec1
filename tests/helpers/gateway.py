"""A gateway in this process, whose server is an object that gives every picture back, enlarged by repeating pixels."""

from __future__ import annotations

import asyncio
import io
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from helpers.here import INFO
from helpers.serve import until
from helpers.support import read_image
from PIL import Image

from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.app import build_app
from ipt_triton.client.gateway.keys import Keys
from ipt_triton.client.gateway.serving import listen, make_server
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spool import Spool
from ipt_triton.client.protocol import ServerInfo, Task


class Repeating:
    """An asynchronous client without a server.

    Attributes:
        asked: shapes of the pictures that came; those that readiness sends are not counted.
        held: pictures wait until this is set.
        failure: is raised instead of an answer.
        cancelled: pictures whose caller left.
        options: of the last picture.
        request_id: of the last picture.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.held: asyncio.Event | None = None
        self.failure: RestorationError | None = None
        self.cancelled = 0
        self.options: dict[str, Any] = {}
        self.request_id = ""

    async def __aenter__(self) -> Repeating:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def info(self) -> ServerInfo:
        return INFO

    async def tasks(self) -> tuple[Task, ...]:
        return INFO.tasks

    async def restore(
        self,
        image: np.ndarray,
        task: int | str,
        progress: Callable[[int, int], None] | None = None,
        request_id: str = "",
        **asked: Any,
    ) -> np.ndarray:
        if self.failure is not None:
            raise self.failure
        if image.shape[:2] != (16, 16):
            self.asked.append(image.shape)
            self.options, self.request_id = asked, request_id
            if progress is not None:
                progress(0, 4)
            try:
                if self.held is not None:
                    await self.held.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if progress is not None:
            progress(4, 4)
        scale = INFO.chain(task).scale
        return image.repeat(scale, 0).repeat(scale, 1)


@contextmanager
def gateway(
    folder: Path, client: Repeating | None = None, keys: str = "", **settings: Any
) -> Iterator[tuple[TestClient, Repeating]]:
    """A running gateway: who speaks HTTP with it, and its server."""
    client = client or Repeating()
    with application(folder, client, keys, **settings) as app, TestClient(app, base_url="http://127.0.0.1") as http:
        yield http, client


@contextmanager
def application(folder: Path, client: Repeating, keys: str = "", **settings: Any) -> Iterator[FastAPI]:
    """A gateway's application, not started."""
    chosen = replace(Settings(folder=folder, workers=1), **settings)
    with Spool(folder, chosen.disk_bytes) as spool:
        yield build_app(chosen, lambda: client, Keys(chosen, keys), spool)  # type: ignore[arg-type, return-value]


@contextmanager
def listening(folder: Path, client: Repeating | None = None, **settings: Any) -> Iterator[str]:
    """A gateway on a port of its own, in a thread; http://HOST:PORT."""
    with application(folder, client or Repeating(), **settings) as app, listen("127.0.0.1", 0) as place:
        server = make_server(app)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        until(lambda: server.started or not thread.is_alive(), 60, "start")
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()


def picture(pillow: str = "PNG", width: int = 60, height: int = 40, mode: str = "RGB", **options: Any) -> bytes:
    """A small photo as a file."""
    buffer = io.BytesIO()
    photo = Image.fromarray(read_image("kitten")[:height, :width]).convert(mode)
    photo.save(buffer, pillow, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
