"""What tritonserver writes, handed on: its severity, and what a log of JSON is told of each line."""

from __future__ import annotations

import io
import logging

import pytest

from ipt_triton.export.serving import output
from ipt_triton.export.serving.output import ServerOutput

PREFIX = "E1129 21:01:06.365661 26144 pb_stub.cc:402] "


def handed_on(text: bytes, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    with caplog.at_level(logging.INFO, output.__name__):
        ServerOutput(io.BytesIO(text), None).join(5)
    return caplog.records


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (f'{PREFIX}"it \\"failed\\""', {"message": 'it "failed"', "source": "pb_stub.cc:402"}),
        (f"{PREFIX}[request id: r-1] too large", {"message": "[request id: r-1] too large", "request_id": "r-1"}),
        (f"{PREFIX}[request id: <id_unknown>] too large", {"source": "pb_stub.cc:402"}),
        (f"{PREFIX}true", {"message": "true"}),
        (f'{PREFIX}"torn', {"message": '"torn'}),
        (f"{PREFIX}", {"message": PREFIX.strip()}),
        ("+-----+", {"message": "+-----+"}),
        ("Traceback (most recent call last):", {"message": "Traceback (most recent call last):"}),
    ],
)
def test_a_log_is_told_what_a_line_says(line: str, fields: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    (record,) = handed_on(line.encode() + b"\n", caplog)
    assert record.getMessage() == line.strip()
    told = vars(record)["fields"]
    assert told["program"] == "tritonserver" and fields.items() <= told.items()
    assert ("request_id" in told) == ("request_id" in fields)
    assert record.levelno == (logging.ERROR if line.startswith("E") else logging.INFO)


def test_bytes_that_are_no_text_pass(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = handed_on(b"\xff\xfe caught\n\n", caplog)
    assert record.getMessage() == "\ufffd\ufffd caught"
