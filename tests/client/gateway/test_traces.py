"""One photo is one trace: the caller's span, the gateway's, the router's and the parts', each within the right one."""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from helpers.collector import Collector, Span
from helpers.gateway import picture
from helpers.live_gateway import gateway_command
from helpers.support import Served
from opentelemetry.sdk.trace import TracerProvider

from ipt_triton import RestorationClient
from ipt_triton.client.gateway import spans
from ipt_triton.client.gateway.journal import current_request
from ipt_triton.client.gateway.spans import NoTelemetry, tracing
from ipt_triton.jsonlines import JsonLines

CALLER = "b7ad6b7169203331"
STEPS = ("queue", "decode", "restore", "encode")


@pytest.fixture(scope="module")
def gateway(served: Served, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """`ipt-gateway` in front of a real server; both send their traces to one collector."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with (
            gateway_command(served.server.grpc_url, tmp_path_factory.mktemp("gateway")) as url,
            httpx.Client(base_url=url, timeout=60) as http,
        ):
            yield http


def of_caller(flags: str = "01") -> tuple[str, dict[str, str]]:
    """A new trace, and the header of a request within it."""
    trace = secrets.token_hex(16)
    return trace, {"traceparent": f"00-{trace}-{CALLER}-{flags}"}


def way_of(span: Span, among: list[Span]) -> str:
    """The names from a span up to the caller's."""
    above = {one.id: one for one in among}
    names = [span.name]
    while span.parent != CALLER:
        span = above[span.parent]
        names.append(span.name)
    return " < ".join(names)


def traced(collector: Collector, send: Callable[[dict[str, str]], str], *names: str) -> list[Span]:
    """All spans of a request that `send` sends within a trace, of which it returns the id.

    Triton 2.51 takes up most traces, not all (docs/operations.md says how many), so there are several trials.
    """
    for _ in range(6):
        trace, header = of_caller()
        trace = send(header) or trace
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            found = collector.spans(trace)
            if {span.name for span in found} >= {"InferRequest", *names}:
                return found
            time.sleep(0.05)
    raise AssertionError(f"no trace with spans of InferRequest, {names}")


@pytest.mark.server
@pytest.mark.parametrize(("route", "router"), [("/v1/restore", "restore"), ("/v1/jobs", "restore_stream")])
def test_a_photo_through_gateway_and_triton_is_one_trace(
    gateway: httpx.Client, collector: Collector, route: str, router: str
) -> None:
    request = f"POST {route}"

    def send(header: dict[str, str]) -> str:
        headers = {**header, "X-Request-Id": "mine"}
        assert gateway.post(f"{route}?task=sr_x2", content=picture(), headers=headers).is_success
        return ""

    found = traced(collector, send, request, *STEPS)
    whole = f"{router} < InferRequest < restore < {request}"
    chunk = f"ipt_sr_x2 < {whole}"
    network = f"body < {chunk}"
    computed = {f"compute < {way}" for way in (whole, network)}
    steps = {f"{step} < {request}" for step in STEPS}
    ways = [way_of(span, found) for span in found]
    assert set(ways) == {request, *steps, f"InferRequest < restore < {request}", whole, chunk, network, *computed}
    assert ways.count(network) == ways.count(chunk) == 2  # chunks of one photo
    services = {span.name: span.service for span in found}
    assert services["decode"] == "ipt-gateway" and services["body"] == "ipt-server"
    ids = {span.attributes[name] for span in found for name in span.attributes if name.endswith("request_id")}
    assert ids == {"mine"}
    assert sum("triton.request_id" in span.attributes for span in found) == 1 + 2 * 2  # the router, and two chunks


@pytest.mark.server
def test_what_nobody_traces_makes_no_span_of_the_server(gateway: httpx.Client, collector: Collector) -> None:
    unsampled, header = of_caller("00")
    for path in ("/healthz", "/readyz", "/metrics"):  # the gateway itself has restored a picture for each task, too
        gateway.get(path)
    assert gateway.post("/v1/restore?task=sr_x2", content=picture(), headers=header).is_success

    def send(header: dict[str, str]) -> str:
        assert gateway.post("/v1/restore?task=sr_x2", content=picture(), headers=header).is_success
        return ""

    traced(collector, send, "POST /v1/restore")
    assert not collector.spans(unsampled)
    assert all(span.parent for span in collector.spans())  # each trace began with a caller


@pytest.mark.server
@pytest.mark.parametrize("scheme", ["", "http://"])
def test_the_client_hands_on_the_span_of_a_program_that_has_one(
    served: Served, collector: Collector, scheme: str
) -> None:
    tracer = TracerProvider().get_tracer("test")
    url = f"http://{served.server.http_url}" if scheme else served.server.grpc_url
    parents = []
    with RestorationClient(url) as client:

        def send(_: object) -> str:
            with tracer.start_as_current_span("program") as span:
                client.restore(np.zeros((40, 60, 3), np.uint8), "sr_x2")
            context = span.get_span_context()
            parents.append(f"{context.span_id:016x}")
            return f"{context.trace_id:032x}"

        found = traced(collector, send)
    (request,) = (one for one in found if one.name == "InferRequest")
    assert request.parent == parents[-1]


GATEWAY = """
import ipt_triton.client.gateway.app
from ipt_triton.client.gateway.spans import request_span, span, tracing
with tracing(), span("step"), request_span({}, silent=False) as tell:
    tell("GET", "/", 200)
"""
CLIENT = """
from ipt_triton import RestorationClient
from ipt_triton.client.tracing import trace_headers, trace_id
assert trace_headers() == () and trace_id() == ""
"""


@pytest.mark.parametrize(
    ("script", "heavy"), [(CLIENT, "opentelemetry"), (GATEWAY, "opentelemetry.sdk")], ids=["client", "gateway"]
)
def test_nothing_of_opentelemetry_is_imported_unasked_but_its_interface_by_fastapi(script: str, heavy: str) -> None:
    script += f"import sys; print([name for name in sys.modules if name.startswith({heavy!r})])"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_collector_without_the_packages_for_it_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(NoTelemetry, match=r"OTEL_EXPORTER_OTLP_ENDPOINT needs .* 'ipt-triton\[telemetry\]'"), tracing():
        pass


def test_lines_of_the_log_name_the_trace(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.url}/v1/traces")
    trace, header = of_caller()
    with tracing(), spans.request_span(header, silent=False):
        line = JsonLines(current_request).format(logging.makeLogRecord({"msg": "answered"}))
    assert json.loads(line)["trace_id"] == trace
    assert [span.parent for span in collector.spans(trace)] == [CALLER]
    assert "trace_id" not in json.loads(JsonLines(current_request).format(logging.makeLogRecord({"msg": "later"})))
