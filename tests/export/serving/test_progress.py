"""Which photographs are lost and when a server is full, with a board, a clock and counters of the test's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ipt_triton.board import Board
from ipt_triton.export.serving import progress
from ipt_triton.export.serving.counters import Counters
from ipt_triton.export.serving.progress import FULL_S, OVERTAKEN, STILL_S, WORN_S, Progress

WAYS = {3: ["head", "body", "tail"]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def router(tmp_path: Path) -> Board:
    router = Board(tmp_path / "board", 2, 8)
    router.begin(3, 100)
    return router


def counted(answered: float, **waiting: float) -> Counters:
    return Counters({}, {"body": answered}, waiting, {})


def test_a_photograph_that_many_others_overtake_is_lost(router: Board, clock: SimpleNamespace) -> None:
    watched = Progress(router, WAYS)
    assert watched.look(counted(0, body=10)) is None
    clock.now += STILL_S + 1
    assert watched.look(counted(20 + OVERTAKEN)) is None  # twice those before it, and these
    assert watched.look(counted(21 + OVERTAKEN)) == "a photograph has stood still for 4 s while others went on"


def test_a_slow_server_may_take_as_long_as_it_likes(router: Board, clock: SimpleNamespace) -> None:
    watched = Progress(router, WAYS)
    for _ in range(600):
        clock.now += 10
        assert watched.look(counted(OVERTAKEN)) is None


def test_a_photograph_that_moves_is_not_lost(router: Board, clock: SimpleNamespace) -> None:
    watched = Progress(router, WAYS)
    for number in range(100):
        clock.now += STILL_S + 1
        router.write(100 if number % 2 else 99)  # waits for its turn, or is answered
        assert watched.look(counted(1000 * number)) is None
    router.end()
    clock.now += STILL_S + 1
    assert watched.look(counted(10**6)) is None


def test_routers_are_told_how_many_requests_wait(router: Board, tmp_path: Path) -> None:
    Progress(router, WAYS).look(counted(0, restore=7))
    assert np.fromfile(tmp_path / "board", np.int64).reshape(-1, 8)[-1, 1] == 7


def test_a_burst_is_no_reason_before_some_seconds(router: Board, clock: SimpleNamespace) -> None:
    watched = Progress(router, WAYS)
    assert watched.look(counted(0)) is None
    clock.now += STILL_S - 1
    assert watched.look(counted(10**6)) is None


def test_a_server_whose_shared_memory_is_full_is_started_anew_unless_it_was_just_started(
    router: Board, clock: SimpleNamespace
) -> None:
    watched = Progress(router, WAYS)
    router.tell_no_memory()
    clock.now += WORN_S
    assert watched.look(counted(0)) is None
    assert router.refused() == 1
    clock.now += 1
    assert "/dev/shm is full" in str(watched.look(counted(0)))


@pytest.mark.parametrize("by", ["routers", "queue"])
def test_a_server_that_refuses_for_a_while_is_full_until_it_does_no_more(
    router: Board, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    refused = 0
    monkeypatch.setattr(router, "refused", lambda: refused)
    watched = Progress(router, WAYS, most_waiting=64)

    def look(refuses: bool) -> str | None:
        nonlocal refused
        clock.now += 0.5
        refused += refuses and by == "routers"
        watched.look(counted(0, restore=64 if refuses and by == "queue" else 63))
        return watched.full()

    assert {look(number % 3 == 0) for number in range(round(2 * FULL_S) + 1)} == {None}
    assert look(True) == "too much to do: photographs have been refused for 16 s"
    assert look(False) is not None
    for _ in range(6):
        look(False)
    assert {look(False), look(True)} == {None}
