"""A collector of OpenTelemetry's traces: OTLP over HTTP, in protobuf as Python sends it and in JSON as Triton does."""

from __future__ import annotations

import base64
import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """A span; its ids are hexadecimal, and `parent` is empty where it has none."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, str] = field(compare=False)


class Collector:
    """What came so far.

    Attributes:
        url: as OTEL_EXPORTER_OTLP_ENDPOINT names it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[Span] = []

    def take(self, body: bytes, kind: str) -> None:
        """Take a request's body."""
        if kind == "application/json":
            message = json_format.Parse(body, ExportTraceServiceRequest())
        else:
            message = ExportTraceServiceRequest.FromString(body)
        for of_resource in message.resource_spans:
            service = _texts(of_resource.resource.attributes)["service.name"]
            for scope in of_resource.scope_spans:
                for span in scope.spans:
                    ids = [_hexadecimal(id, kind) for id in (span.trace_id, span.span_id, span.parent_span_id)]
                    self._spans.append(Span(service, span.name, *ids, _texts(span.attributes)))

    def spans(self, trace: str | None = None) -> list[Span]:
        """All spans, or those of a trace."""
        return [span for span in self._spans if trace in (None, span.trace)]


def _texts(attributes: Any) -> dict[str, str]:
    return {pair.key: str(getattr(pair.value, pair.value.WhichOneof("value"))) for pair in attributes}


def _hexadecimal(id: bytes, kind: str) -> str:
    """Ids are hexadecimal in OTLP's JSON, where protobuf's JSON expects base64."""
    return base64.b64encode(id).decode() if kind == "application/json" else id.hex()


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(body, self.headers["Content-Type"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield collector
        server.shutdown()
        thread.join()
