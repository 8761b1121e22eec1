"""What the log tells of the request that the running code works for: its id, and its trace."""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar

from ipt_triton.client.tracing import trace_id
from ipt_triton.jsonlines import log_json

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request or job that the running code works for; empty outside of any."""

_ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def id_for(asked: str) -> str:
    """A request's id: the one that it brings, if that is short and plain, else a new one."""
    return asked if _ALLOWED.fullmatch(asked) else secrets.token_hex(8)


def current_request() -> dict[str, str]:
    """Ids of the request and the trace that the running code belongs to; empty outside of any."""
    return {"request_id": request_id.get(), "trace_id": trace_id()}


def log_requests() -> None:
    """Let this process log lines of JSON to standard error, each with the ids of its request."""
    log_json(current_request)
    logging.getLogger("uvicorn.access").disabled = True  # ours says more
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings quote what callers send
