"""Around every request: its id, the headers that keep browsers safe, whose pages may call, a line in the log."""

from __future__ import annotations

import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ipt_triton.client.gateway.journal import id_for, request_id
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.problems import Problem
from ipt_triton.client.gateway.spans import request_span
from ipt_triton.reading import shown

log = logging.getLogger(__name__)

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
_PROBES = ("/healthz", "/readyz", "/metrics")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""


class Guard:
    """Middleware of the whole application.

    Args:
        origins: pages elsewhere that may call; `*` is any.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...], measures: Measures) -> None:
        self._app, self._origins, self._measures = app, origins, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        mark = request_id.set(id_for(headers.get("x-request-id", "")))
        started, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-Id"] = request_id.get()
                for name, value in _HEADERS.items():
                    answered.setdefault(name, value)
                self._measures.seconds.labels(_route(scope)).observe(time.perf_counter() - started)
            await send(message)

        with request_span(headers, scope["path"] in _PROBES) as tell:
            try:
                if self._is_foreign(scope, headers):
                    refusal = Problem(403, f"pages of {shown(headers['origin'])} may not call this gateway; see --cors")
                    await refusal.response()(scope, receive, answer)
                else:
                    await self._app(scope, receive, answer)
            finally:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._measures.requests.labels(method, _route(scope), str(status)).inc()
                self._log(scope, status, time.perf_counter() - started)
                tell(method, _route(scope), status)
                request_id.reset(mark)

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether another site's page would change something here; browsers send forms anywhere without asking."""
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE_METHODS or "*" in self._origins or origin in self._origins:
            return False
        return urlsplit(origin).netloc != headers.get("host")

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        if route in _PROBES and status < 400:
            return
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "caller": scope.get("state", {}).get("caller", ""),
            **scope.get("state", {}).get("logged", {}),
        }
        log.info("answered", extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The route's pattern: a job's own address is its secret, and is neither logged nor counted."""
    return str(getattr(scope.get("route"), "path", "other"))
