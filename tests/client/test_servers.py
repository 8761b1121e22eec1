"""Several servers: requests are spread, who fails is left alone for a while, and one that works is enough."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from helpers.pretended import Pretended, Refusal, over_grpc, over_http
from tritonclient.utils import InferenceServerException

from ipt_triton import (
    AccessRefused,
    AsyncRestorationClient,
    Photo,
    RequestTimeout,
    RestorationClient,
    ServerError,
    ServerUnavailable,
    read_photo,
    write_photo,
)
from ipt_triton.client import servers
from ipt_triton.client.restore import main
from ipt_triton.client.servers import FIRST_REST_S, LONGEST_REST_S, MOST_CUT_OFF, Servers

IMAGE = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
STOPPING = Refusal(grpc.StatusCode.UNAVAILABLE, "Server is stopping")
MISSING = Refusal(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'restore' is not found")
GONE = InferenceServerException("connection refused", "StatusCode.UNAVAILABLE")


class Clock:
    """`time` as far as it is asked for, standing still."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(servers, "time", clock)
    return clock


def named(*addresses: str) -> Servers[str]:
    return Servers(addresses, str)


def asked(found: Servers[str], fails: bool = False) -> str:
    """The first server that a request goes to."""
    errand = found.errand(0, None)
    server = ""
    try:
        with errand.ask() as server:
            if fails:
                raise GONE
    except ServerUnavailable:
        pass
    return server


def test_requests_go_to_the_server_with_the_least_under_way_and_in_turns() -> None:
    found = named("a", "b", "c")
    assert [asked(found) for _ in range(6)] == ["a", "b", "c"] * 2
    with ExitStack() as stack:
        under_way = [stack.enter_context(found.errand(0, None).ask()) for _ in range(7)]
        assert sorted(Counter(under_way).values()) == [2, 2, 3]
        busiest = Counter(under_way).most_common(1)[0][0]
        assert asked(found) != busiest


def test_a_server_that_fails_rests_for_longer_each_time_and_is_used_again_when_it_answers(clock: Clock) -> None:
    found = named("a", "b")
    assert asked(found, fails=True) == "a"
    assert {asked(found) for _ in range(4)} == {"b"}
    clock.now += FIRST_REST_S
    assert asked(found, fails=True) == "a"
    clock.now += FIRST_REST_S
    assert {asked(found) for _ in range(4)} == {"b"}
    clock.now += FIRST_REST_S
    assert {asked(found) for _ in range(4)} == {"a", "b"}
    assert asked(found, fails=True) in "ab"
    clock.now += FIRST_REST_S
    assert {asked(found) for _ in range(4)} == {"a", "b"}


def test_no_rest_is_longer_than_the_longest(clock: Clock) -> None:
    found = named("a", "b")
    for _ in range(40):
        clock.now += LONGEST_REST_S
        while asked(found, fails=True) != "a":
            clock.now += LONGEST_REST_S
    clock.now += LONGEST_REST_S
    assert {asked(found) for _ in range(4)} == {"a", "b"}


def test_a_server_that_has_rested_gets_one_request_until_it_answers(clock: Clock) -> None:
    found = named("a", "b")
    assert asked(found, fails=True) == "a"
    clock.now += FIRST_REST_S
    with found.errand(0, None).ask() as first, found.errand(0, None).ask() as second:
        assert {first, second} == {"a", "b"} and {asked(found) for _ in range(4)} == {"b"}
    assert {asked(found) for _ in range(4)} == {"a", "b"}


def test_a_busy_server_rests_for_as_long_as_it_asks(clock: Clock) -> None:
    found = named("a", "b")
    busy = InferenceServerException("6 photographs are under way; ask again in 3.5 s", "StatusCode.UNAVAILABLE")
    errand = found.errand(0, None)
    with errand.ask() as server:
        raise busy
    assert server == "a" and errand.pause == 0
    clock.now += 3.4
    assert {asked(found) for _ in range(4)} == {"b"}
    clock.now += 0.2
    assert {asked(found) for _ in range(4)} == {"a", "b"}


def test_a_failed_request_goes_elsewhere_at_once_and_waits_when_all_have_failed() -> None:
    found = named("a", "b", "c")
    errand = found.errand(1, None)
    for expected in ("a", "b", "c"):
        assert errand.pause == 0
        with errand.ask() as server:
            assert server == expected
            raise GONE
    assert errand.pause > 0
    for _ in range(2):
        with errand.ask():
            raise GONE
    with (
        pytest.raises(ServerUnavailable, match=r"none of a,b,c answers: the server at \w is away or too busy"),
        errand.ask(),
    ):
        raise GONE


def test_a_request_whose_answer_is_cut_off_each_time_is_given_up_and_a_proxys_settings_are_named(clock: Clock) -> None:
    errand = named("a", "b").errand(100, None)
    cut_off = InferenceServerException("Received RST_STREAM with error code 2", "StatusCode.INTERNAL")
    for _ in range(MOST_CUT_OFF - 1):
        with errand.ask():
            raise cut_off
    with (
        pytest.raises(RequestTimeout, match=r"was cut off .*time limits of a proxy .*nginx: grpc_read_timeout"),
        errand.ask(),
    ):
        raise cut_off


# With connections


@pytest.fixture
def two() -> Iterator[tuple[Pretended, Pretended]]:
    """One over gRPC and one over HTTP, which give the same answers."""
    with over_grpc() as first, over_http() as second:
        yield first, second


def url_of(two: tuple[Pretended, Pretended]) -> str:
    return ",".join(each.address for each in two)


def test_one_of_two_servers_is_enough_whatever_happens_to_the_other(two: tuple[Pretended, Pretended]) -> None:
    first, second = two
    first.failures, first.forever = [STOPPING], True
    with RestorationClient(url_of(two), retries=0) as client:
        assert client.info().tasks
        for _ in range(4):
            np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)
    assert (first.asked, second.asked) == (0, 4)
    with RestorationClient(f"localhost:1,{second.address}", retries=0) as client:
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)


def test_threads_share_two_servers_evenly(two: tuple[Pretended, Pretended]) -> None:
    for server in two:
        server.before = lambda *_: time.sleep(0.3)  # so that all are under way at once, however slowly they start
    with RestorationClient(url_of(two)) as client:
        client.info()
        threads = [threading.Thread(target=client.restore, args=(IMAGE, "derain")) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert two[0].asked + two[1].asked == 12 and min(two[0].asked, two[1].asked) > 2


def test_the_asynchronous_client_goes_elsewhere_too(two: tuple[Pretended, Pretended]) -> None:
    two[1].failures, two[1].forever = [Refusal(502, "<html>bad gateway</html>")], True

    async def work() -> list[np.ndarray]:
        async with AsyncRestorationClient(url_of(two), retries=0) as client:
            return await asyncio.gather(*(client.restore(IMAGE, "derain") for _ in range(4)))

    for restored in asyncio.run(work()):
        np.testing.assert_array_equal(restored, IMAGE)


def test_a_model_that_was_never_there_and_a_refused_token_are_told_at_once(two: tuple[Pretended, Pretended]) -> None:
    for refusals, error in (
        ((MISSING, Refusal(404, MISSING.words)), ServerError),
        ((Refusal(grpc.StatusCode.UNAUTHENTICATED, "no"), Refusal(401, "no")), AccessRefused),
    ):
        for each, refusal in zip(two, refusals, strict=True):
            each.failures, each.forever = [refusal], True
        with RestorationClient(url_of(two), retries=1000) as client, pytest.raises(error, match=r"none of .* answers"):
            client.info()


def test_who_waits_for_servers_that_worked_is_told_once(
    two: tuple[Pretended, Pretended], caplog: pytest.LogCaptureFixture
) -> None:
    with RestorationClient(url_of(two), retries=4) as client:
        client.info()
        two[0].failures = [STOPPING] * 3
        two[1].failures = [Refusal(503, "Server is stopping")] * 3
        np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)
    told = [record for record in caplog.records if record.levelno == logging.WARNING and "client" in record.name]
    assert len(told) == 1 and "waiting: none of" in told[0].getMessage()


# The command


def test_the_command_takes_several_servers_headers_and_a_token(
    two: tuple[Pretended, Pretended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(Photo(IMAGE), tmp_path / "photo.png")
    monkeypatch.setenv("IPT_TOKEN", "secret")
    words = ["-t", "derain", "-o", str(tmp_path / "out"), "--url", url_of(two), "--header", "X-Team: prints"]
    assert main([str(tmp_path), *words]) == 0
    np.testing.assert_array_equal(read_photo(tmp_path / "out" / "photo.png").pixels, IMAGE)
    for each in two:  # one was asked for its tasks, the other one for the photo
        assert (each.headers["x-team"], each.headers["authorization"]) == ("prints", "Bearer secret")


def test_the_command_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-tasks", "--url", "localhost:1", "--retries", "3"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "ipt-restore: waiting for the server at localhost:1"
    assert "the server at localhost:1 is away or too busy" in told[1] and len(told) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--header", "colourless"], "header 'colourless' is not allowed; give NAME:VALUE"),
        (["--ca", "ca.crt"], "ca, cert and key are for TLS, and localhost:1 is without"),
        (["--cert", "a.crt", "--tls"], "a client's certificate needs its key"),
    ],
)
def test_the_command_names_what_cannot_be_used(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(["--list-tasks", "--url", "localhost:1", *words]) == 2
    except SystemExit as end:
        assert end.code == 2
    assert sentence in capsys.readouterr().err
