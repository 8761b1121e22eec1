"""The log of JSON: one object a line, whatever is said, and by whom."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from ipt_triton.jsonlines import JsonLines

HOSTILE = ["two\nlines", "\u2028\u2029\x85", 'a "quote" and a \\', "\x00\x1b[31m", "\udcff", "50 %s"]


def written(message: str, **facts: object) -> dict[str, object]:
    line = JsonLines().format(logging.makeLogRecord({"msg": message, "levelname": "WARNING", **facts}))
    assert line.isascii() and len(line.splitlines()) == 1
    found: dict[str, object] = json.loads(line)
    return found


@pytest.mark.parametrize("message", HOSTILE)
def test_whatever_is_said_is_one_line_and_comes_back(message: str) -> None:
    values = written(message)
    assert values.keys() == {"time", "level", "message"}
    assert (values["level"], values["message"]) == ("warning", message)
    assert datetime.fromisoformat(str(values["time"])).tzinfo is not None


def test_fields_become_values_whatever_they_are() -> None:
    assert written("done", fields={"request_id": HOSTILE[0], "thing": object})["request_id"] == HOSTILE[0]


def test_values_around_are_told_where_there_are_some() -> None:
    formatter = JsonLines(lambda: {"request_id": "r1", "trace_id": ""})
    values = json.loads(formatter.format(logging.makeLogRecord({"msg": "done"})))
    assert values["request_id"] == "r1" and "trace_id" not in values


PROGRAM = """
import threading, warnings
from ipt_triton.jsonlines import log_json
log_json()
warnings.warn("old")
def fail(): raise ValueError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise ValueError("at the end")
"""


def test_warnings_and_errors_that_nobody_catches_are_lines_too() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and run.stdout == ""
    warning, in_thread, at_end = map(json.loads, run.stderr.splitlines())
    assert warning["level"] == "warning" and "old" in warning["message"]
    for values, words in ((in_thread, "in a thread"), (at_end, "at the end")):
        assert values["level"] == "critical" and f"ValueError: {words}" in values["traceback"]
