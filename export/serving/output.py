"""What tritonserver and its models write: handed on line by line, and the last words of a server that ended."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
from collections import deque
from typing import IO

from ipt_triton.export.serving.preflight_gpu import has_gpu

output_logger = logging.getLogger(__name__)
"""Takes what tritonserver and its models write, a record per line, at Triton's own severity. What is known of a line is
in the record's `fields`, for a log of JSON: its message without what precedes it, its place in Triton's source, its
request."""

# Said at every start on a machine without a GPU, and wrong there about being errors.
_HARMLESS_WITHOUT_GPU = (
    "CudaDriverHelper has not been initialized",
    "failed to allocate pinned system memory: no pinned memory pool",
    "CUDA driver version is insufficient for CUDA runtime version",
)
_SEVERITY = {"E": logging.ERROR, "F": logging.ERROR, "W": logging.WARNING}
_LINE = re.compile(r"[A-Z]\d{4} [\d:.]+ +\d+ (?P<source>\S+:\d+)\] (?P<message>.+)")
_REQUEST = re.compile(r"\[request id: (?!<id_unknown>)(.*?)\]")


class ServerOutput(threading.Thread):
    """Reads a server's output until its end; started at once.

    Args:
        log: file for it; without one each line goes to `output_logger`. Closed at the end, like the stream.
    """

    def __init__(self, stream: IO[bytes], log: IO[bytes] | None) -> None:
        super().__init__(name="tritonserver-output", daemon=True)
        self._stream = stream
        self._log = log
        self._lines: deque[str] = deque(maxlen=400)
        self.start()

    def run(self) -> None:
        with self._stream, self._log or contextlib.nullcontext() as log:
            for raw in self._stream:
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                if log:
                    with contextlib.suppress(OSError):  # a full disk must not block the output, and so the server
                        log.write(raw)
                        log.flush()
                elif _is_harmless(line):
                    output_logger.debug("%s", line)
                elif line:
                    severity = _SEVERITY.get(line[0], logging.INFO) if line[1:5].isdigit() else logging.INFO
                    output_logger.log(severity, "%s", line, extra={"fields": _fields(line)})

    def last_words(self, count: int = 8) -> list[str]:
        """The last lines that tell of an error, else the last lines."""
        said = [line for line in list(self._lines) if line.strip() and not _is_harmless(line)]
        telling = [
            line for line in said if re.match(r"[EF]\d{4} |E |Bad option|\S*Error\b|.*unrecognized option", line)
        ]
        return telling[-count:] or said[-count:]


def _fields(line: str) -> dict[str, str]:
    """What a line tells, by name."""
    found = _LINE.fullmatch(line)
    fields = {"program": "tritonserver", **(found.groupdict() if found else {"message": line})}
    if fields["message"].startswith('"'):  # Triton's own are quoted
        with contextlib.suppress(ValueError):
            fields["message"] = json.loads(fields["message"])
    if request := _REQUEST.search(line):
        fields["request_id"] = request[1]
    return fields


def _is_harmless(line: str) -> bool:
    return not has_gpu() and any(phrase in line for phrase in _HARMLESS_WITHOUT_GPU)
