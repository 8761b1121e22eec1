"""The log of a server as lines of JSON: one object for each event, with its time, level and message."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import TracebackType

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Writes a record as a line of JSON; a record's `fields` become values of their own.

    Args:
        around: tells of what the running code works for, such as the id of a request; empty values are left out.
    """

    def __init__(self, around: Callable[[], Mapping[str, str]] = dict) -> None:
        super().__init__()
        self._around = around

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
            **{name: value for name, value in self._around().items() if value},
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)


def log_json(around: Callable[[], Mapping[str, str]] = dict, level: int = logging.INFO) -> None:
    """Let this process log lines of JSON to standard error, its warnings and the errors that end it included.

    Args:
        around: see `JsonLines`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(around))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_error
    threading.excepthook = lambda failed: _log_error(failed.exc_type, failed.exc_value, failed.exc_traceback)


def _log_error(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None) -> None:
    if issubclass(kind, Exception):  # no Ctrl-C, and no thread that ends itself
        log.critical("an unexpected error", exc_info=(kind, error or kind(), traceback))
