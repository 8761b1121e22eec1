"""What the silence of heartbeats means, with a clock and counters of the test's own; no server answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipt_triton.export.serving import heartbeat
from ipt_triton.export.serving.counters import Counters, read_counters
from ipt_triton.export.serving.heartbeat import LOST_S, PATIENCE_S, READY_S, Heart
from ipt_triton.tasks import OFFICIAL_TASKS

WAY = ["head", "body", "tail"]
TASK = OFFICIAL_TASKS[0]


class Clock:
    """Time that passes only when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    return clock


@pytest.fixture
def heart(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heart]:
    heart = Heart("127.0.0.1:1", [TASK], {TASK.name: WAY})
    monkeypatch.setattr(heart._client, "async_infer", lambda *words, **others: None)  # never answered
    yield heart
    heart.close()


def counted(patches: int = 0, *, waiting: str | None = None, under_way: int = 0, answered: int = 0) -> Counters:
    return Counters(
        {"body": patches},
        {"restore": answered, f"ipt_{TASK.name}": answered},
        {waiting: 1} if waiting else {},
        {"restore_0_0": under_way},
    )


def watch(heart: Heart, clock: Clock, seconds: float, looks: Iterator[Counters], busy: bool = False) -> str | None:
    for _ in range(round(2 * seconds)):
        clock.now += 0.5
        if fault := heart.look(next(looks), busy):
            return fault
    return None


def always(counters: Counters) -> Iterator[Counters]:
    while True:
        yield counters


def working(waiting: str | None, **others: int) -> Iterator[Counters]:
    patches = 0
    while True:
        yield counted(patches, waiting=waiting, **others)
        patches += 1


def test_an_unanswered_beat_of_an_idle_server_is_lost_within_five_seconds(heart: Heart, clock: Clock) -> None:
    assert watch(heart, clock, 3.5, always(counted())) is None
    assert "was not answered for" in str(watch(heart, clock, 1.5, always(counted())))


def test_a_beat_may_wait_in_a_queue_that_moves_for_as_long_as_it_takes(heart: Heart, clock: Clock) -> None:
    for queue in ("restore", "body"):
        assert watch(heart, clock, 300, working(queue)) is None
    assert heart.overdue() is not None  # alive, and not ready


def test_a_queue_of_another_task_or_one_that_stands_still_is_no_reason_to_wait(heart: Heart, clock: Clock) -> None:
    assert watch(heart, clock, 60, working("head_of_another")) is not None
    heart._beats[0].sent = None
    assert watch(heart, clock, 60, always(counted(waiting="body"))) is not None


def test_the_routers_queue_may_stand_while_the_server_is_busy(heart: Heart, clock: Clock) -> None:
    assert watch(heart, clock, 60, always(counted(waiting="restore")), busy=True) is None
    assert watch(heart, clock, 2 * PATIENCE_S, always(counted(waiting="restore"))) is not None


def test_a_task_that_clients_are_served_with_is_ready_without_beats(heart: Heart, clock: Clock) -> None:
    assert watch(heart, clock, 60, (counted(n, answered=n) for n in range(1000))) is None
    assert heart.overdue() is None and heart._beats[0].sent is None
    clock.now += READY_S + 1
    assert TASK.name in str(heart.overdue())


def test_a_pause_of_the_whole_container_is_no_fault_of_the_server(heart: Heart, clock: Clock) -> None:
    assert watch(heart, clock, 2.5, always(counted())) is None
    clock.now += 600
    assert heart.look(counted(), False) is None
    assert heart.overdue() is None


def test_a_photograph_that_an_idle_server_computes_nothing_for_is_lost(heart: Heart, clock: Clock) -> None:
    heart._beats.clear()
    assert watch(heart, clock, LOST_S, always(counted(under_way=1))) is None
    assert "a photograph is under way" in str(watch(heart, clock, 1, always(counted(under_way=1))))
    assert watch(heart, clock, 1, always(counted(under_way=0))) is None
    assert watch(heart, clock, 60, always(counted(under_way=1)), busy=True) is None  # a large one being joined


def test_the_page_of_metrics_is_read_by_model_and_instance() -> None:
    page = """
# TYPE nv_inference_count counter
nv_inference_count{model="body",version="1"} 7
nv_inference_count{gpu_uuid="GPU-1",model="body",version="1"} 3
nv_inference_request_success{model="restore",version="1"} 4
nv_inference_pending_request_count{model="body",version="1"} 2
ipt_photographs_under_way{instance="restore_0_1"} 1
nv_cpu_utilization 0
"""
    counters = read_counters(page)
    assert (counters.computed["body"], counters.answered["restore"], counters.waiting["body"]) == (10, 4, 2)
    assert counters.under_way == {"restore_0_1": 1}
