"""The HTTP server: uvicorn, with an end for those who never finish their request's head."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ipt_triton.client.gateway.ending import GRACE_S, Ending

HEAD_S = 15.0
"""Seconds for the head of a connection's first request."""
LINGER_S = 2.0
"""Seconds that a caller may go on sending a body that was refused."""
_MOST_CONNECTIONS = 2000
_ANSWER_S = 1
"""Seconds for the last answers, when the grace is over."""


class _Lingering:
    """A transport that hears its caller out for a moment when it is closed.

    The system takes back what a caller who is still sending has not read yet: the reason why nothing more is taken.
    """

    def __init__(self, transport: Any, linger: Callable[[], bool]) -> None:
        self._transport, self._linger, self._closing = transport, linger, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._closing or bool(self._transport.is_closing())

    def close(self) -> None:
        if self.is_closing() or not self._linger():
            self._transport.close()
            return
        self._closing = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)


class _Impatient(H11Protocol):
    """HTTP/1.1, which ends a connection whose first request does not come in time, and says why it takes no more."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Lingering(transport, self._is_sent_more))  # type: ignore[arg-type]
        self._late = self.loop.call_later(HEAD_S, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)

    def _is_sent_more(self) -> bool:
        return self.cycle is not None and self.conn.their_state is h11.SEND_BODY

    def _end_if_idle(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    """Ends without an error when it is told to stop, once what is under way is done or the grace is over.

    Until then it goes on answering: those who watch jobs, and those who fetch results.
    """

    def __init__(self, config: uvicorn.Config, grace: float) -> None:
        super().__init__(config)
        self._grace = grace

    @property
    def _ending(self) -> Ending | None:
        app: Any = self.config.app
        return app.state.gateway.ending if hasattr(app.state, "gateway") else None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        ending = self._ending
        if ending is None or ending.begun:  # before the start, or told twice
            self.force_exit = self.should_exit or ending is not None
            self.should_exit = True
        else:
            ending.begin(self._grace)

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second; true ends the server."""
        if (ending := self._ending) and ending.look():
            # For what is being sent, and for the answers to requests that are given up.
            self.config.timeout_graceful_shutdown = max(_ANSWER_S, math.ceil(ending.left()))
            ending.give_up()
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(app: FastAPI, grace: float = GRACE_S) -> uvicorn.Server:
    """A server for an application; give its `run` or `serve` the sockets of `listen`.

    Args:
        grace: seconds that requests and jobs under way get when it is told to stop; then requests are answered with
            503, and jobs are left for the next gateway. Told twice, it ends at once.
    """
    return _Server(
        uvicorn.Config(
            app,
            http=_Impatient,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_ANSWER_S,
        ),
        grace,
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address.

    Raises:
        OSError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
