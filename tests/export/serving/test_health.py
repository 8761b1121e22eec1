"""The launcher's own port: what its pages say, and who is cut off."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from ipt_triton.export.serving import health
from ipt_triton.export.serving.health import Health


class State:
    """What the port tells of."""

    reason: str | None = "starting"
    page: bytes | None = None

    def unready(self) -> str | None:
        return self.reason

    def metrics(self) -> bytes:
        if self.page is None:
            raise ConnectionError
        return self.page


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
def port(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(health, "_DEADLINE_S", 0.5)
    with closing(Health("127.0.0.1", 0, state.unready, state.metrics)) as port:
        yield port.port


def ask(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def test_readiness_says_why_not_and_life_is_told_apart(port: int, state: State) -> None:
    assert ask(port, "/readyz") == (503, b"starting\n")
    assert ask(port, "/livez") == (200, b"alive\n")
    state.reason = None
    assert ask(port, "/readyz?verbose") == (200, b"ready\n")
    assert ask(port, "/readyz", "HEAD") == (200, b"")


def test_the_page_of_metrics_is_handed_on_where_there_is_one(port: int, state: State) -> None:
    assert ask(port, "/metrics")[0] == 503
    state.page = b"nv_inference_count 1\n"
    assert ask(port, "/metrics") == (200, state.page)


def test_nothing_else_is_answered(port: int) -> None:
    assert ask(port, "/v2/health/ready")[0] == 404
    assert ask(port, "/readyz", "POST")[0] == 405


@pytest.mark.parametrize("words", [b"GET /readyz HTTP/1.1\r\n", b"x" * 100_000, b"\r\n\r\n", b""])
def test_who_is_slow_or_says_too_much_is_cut_off_and_others_are_served(port: int, words: bytes) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(words)
        assert ask(port, "/livez")[0] == 200
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            answer = b""
    assert b" 200 " not in answer
    assert time.monotonic() - started < 30


def test_hundreds_of_idle_connections_do_not_keep_others_out_for_long(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(400)]
    try:
        time.sleep(1)
        assert ask(port, "/livez")[0] == 200
    finally:
        for connection in idle:
            connection.close()
