"""The launcher's own port: `/readyz`, `/livez` and `/metrics`, for probes, balancers and Prometheus.

Triton's own readiness does not see dead processes, nor that the server is stopping; this one does.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus

_DEADLINE_S = 3.0
_MOST_BYTES = 8192
_MOST_CONNECTIONS = 256


class Health:
    """Answers on a port from the moment that it is made, in a thread of its own, until `close`.

    Args:
        address: IPv4 address to listen on.
        port: 0 for a free one.
        unready: says why the server is not ready, None if it is; called from another thread.
        metrics: the page of metrics; raises OSError when there is none.

    Raises OSError when it cannot listen there.
    """

    def __init__(
        self, address: str, port: int, unready: Callable[[], str | None], metrics: Callable[[], bytes]
    ) -> None:
        self._unready = unready
        self._metrics = metrics
        self._connections = 0
        self._socket = socket.create_server((address, port), backlog=128)
        self.port = int(self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._socket, limit=_MOST_BYTES))
        self._loop.run_forever()
        server.close()
        for task in (tasks := asyncio.all_tasks(self._loop)):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request: who is slow, says too much or comes in too great a number is cut off."""
        self._connections += 1
        try:
            if self._connections <= _MOST_CONNECTIONS:
                await asyncio.wait_for(self._answer(reader, writer), _DEADLINE_S)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError):
            pass
        finally:
            self._connections -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
        method, path = words[0], words[1].partition(b"?")[0] if len(words) > 1 else b""
        status, body = await self._page(method, path)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + (b"" if method == b"HEAD" else body))
        await writer.drain()

    async def _page(self, method: bytes, path: bytes) -> tuple[HTTPStatus, bytes]:
        if method not in (b"GET", b"HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, b"GET alone\n"
        if path == b"/livez":
            return HTTPStatus.OK, b"alive\n"
        if path == b"/readyz":
            reason = self._unready()
            return (HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode()) if reason else (HTTPStatus.OK, b"ready\n")
        if path == b"/metrics":
            try:
                return HTTPStatus.OK, await asyncio.to_thread(self._metrics)
            except OSError:
                return HTTPStatus.SERVICE_UNAVAILABLE, b"no metrics now\n"
        return HTTPStatus.NOT_FOUND, b"/readyz, /livez or /metrics\n"
