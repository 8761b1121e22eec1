"""The log: a line of JSON for each event, with the id of the request that it belongs to."""

from __future__ import annotations

import json
import logging
import re
import secrets
from contextvars import ContextVar
from datetime import datetime, timezone

from ipt_triton.client.tracing import trace_id

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request or job that the running code works for; empty outside of any."""

_ALLOWED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def id_for(asked: str) -> str:
    """A request's id: the one that it brings, if that is short and plain, else a new one."""
    return asked if _ALLOWED.fullmatch(asked) else secrets.token_hex(8)


class JsonLines(logging.Formatter):
    """Writes a record as a line of JSON; a record's `fields` become values of their own."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if current := request_id.get():
            values["request_id"] = current
        if trace := trace_id():
            values["trace_id"] = trace
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def log_json(level: int = logging.INFO) -> None:
    """Let this process log lines of JSON to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").disabled = True  # ours says more
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings quote what callers send
