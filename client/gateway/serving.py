"""The HTTP server: uvicorn, with an end for those who never finish their request's head."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 15.0
"""Seconds for the head of a connection's first request."""
_MOST_CONNECTIONS = 2000
_GRACE_S = 15


class _Impatient(H11Protocol):
    """HTTP/1.1, which ends a connection whose first request does not come in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _end_if_idle(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    """Ends without an error when it is told to stop, and lets those go who watch jobs."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # told twice
        self.should_exit = True
        app: Any = self.config.app
        if hasattr(app.state, "gateway"):
            app.state.gateway.jobs.stopping = True


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for an application; give its `run` or `serve` the sockets of `listen`."""
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
            timeout_graceful_shutdown=_GRACE_S,
        )
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
