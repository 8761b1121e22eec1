"""The trace that running code belongs to, where its program uses OpenTelemetry; elsewhere nothing is imported."""

from __future__ import annotations

import sys

_API = "opentelemetry.trace"


def trace_headers() -> tuple[tuple[str, str], ...]:
    """The current span as W3C's `traceparent` and `tracestate`; none where there is no span, or one not sampled."""
    if _API not in sys.modules:  # then nobody has begun a span
        return ()
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    if get_current_span().get_span_context().trace_flags.sampled:  # Triton does not look at this
        TraceContextTextMapPropagator().inject(headers)
    return tuple(headers.items())


def trace_id() -> str:
    """Of the current span, 32 hexadecimal digits; empty outside of any."""
    if _API not in sys.modules:
        return ""
    from opentelemetry.trace import format_trace_id, get_current_span

    context = get_current_span().get_span_context()
    return format_trace_id(context.trace_id) if context.is_valid else ""
