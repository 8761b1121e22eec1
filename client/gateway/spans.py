"""Spans of OpenTelemetry around requests and their steps, where the environment names a collector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.journal import request_id

_COLLECTOR = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_tracer: Any = None
_QUIET = {"record_exception": False, "set_status_on_exception": False}
"""Messages of errors may name files, and so jobs, whose addresses are their secrets."""


class NoTelemetry(RestorationError):
    """Traces are asked for, and the packages for them are not installed."""

    status = 2


@contextmanager
def tracing() -> Iterator[None]:
    """Send spans to a collector during the block, as OpenTelemetry's variables say; where they name none, do nothing.

    Raises:
        NoTelemetry: a collector is named, and OpenTelemetry is not installed.
    """
    global _tracer
    name = next(filter(os.environ.get, _COLLECTOR), None)
    if name is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise NoTelemetry(f"{name} needs OpenTelemetry: pip install 'ipt-triton[telemetry]'") from error
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or "ipt-gateway"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracer = provider.get_tracer(__name__)
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()  # sends what is left


def span(name: str) -> AbstractContextManager[Any]:
    """A span for the block, within the current one."""
    return nullcontext() if _tracer is None else _tracer.start_as_current_span(name, **_QUIET)


@contextmanager
def request_span(headers: Mapping[str, str], silent: bool) -> Iterator[Callable[[str, str, int], None]]:
    """A span for a request, within its caller's if the headers have a `traceparent`.

    Args:
        silent: make none.

    Yields:
        What takes the request's method, route and status in the end.
    """
    if _tracer is None or silent:
        yield lambda method, route, status: None
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    caller = TraceContextTextMapPropagator().extract(headers)
    with _tracer.start_as_current_span("request", caller, SpanKind.SERVER, **_QUIET) as made:

        def tell(method: str, route: str, status: int) -> None:
            made.update_name(f"{method} {route}")
            made.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "ipt.request_id": request_id.get(),
                }
            )
            if status >= 500:
                made.set_status(StatusCode.ERROR)

        yield tell
