"""The simulation of queueing: alone nobody waits, short photographs go first, refusals follow the board's rule."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import simpy

from ipt_triton.benchmarks.record import ROOT, Record
from ipt_triton.benchmarks.serving import capacity
from ipt_triton.benchmarks.serving.queueing import Count, Load, Refused, Scaler, Server, ask, closed_loop, steady
from ipt_triton.tiling import count_patches

LOAD = Load((9, 169), (0.5, 0.5), 100.0, 0.1)


@pytest.fixture(autouse=True)
def same_chance() -> None:
    random.seed(7)


def test_a_photograph_alone_takes_its_patches_by_the_rate_and_what_is_not_queued_for() -> None:
    env = simpy.Environment()
    process = env.process(Server(env, rate=100.0, overhead=0.5).restore(250))
    env.run(process)
    assert env.now == pytest.approx(3.0)


def test_a_short_photograph_goes_before_a_long_one_that_came_first() -> None:
    env, ends = simpy.Environment(), {}
    server = Server(env, rate=100.0)

    def photograph(name: str, after: float, patches: int):
        yield env.timeout(after)
        yield from server.restore(patches)
        ends[name] = env.now

    env.process(photograph("long", 0, 400))
    env.process(photograph("short", 1, 40))
    env.run()
    assert ends["short"] < 1.6 and ends["long"] == pytest.approx(4.4)


def test_a_long_photograph_is_not_forgotten_among_short_ones() -> None:
    env, ends = simpy.Environment(), []
    server = Server(env, rate=100.0)

    def stream():
        while True:
            yield env.process(server.restore(20))

    def long():
        yield from server.restore(80)
        ends.append(env.now)

    for _ in range(3):
        env.process(stream())
    env.process(long())
    env.run(100)
    assert len(ends) == 1 and 30 < ends[0] < 60  # ten chunks, one in five seconds


def test_a_full_server_refuses_with_the_time_that_its_work_takes() -> None:
    env, refusals = simpy.Environment(), []
    server = Server(env, rate=100.0)

    def photograph():
        try:
            yield from server.restore(300)
        except Refused as refused:
            refusals.append(refused.wait)

    for _ in range(9):
        env.process(photograph())
    env.run()
    assert refusals == [24.0]  # eight are taken on; those before it take 24 s


def test_a_caller_who_leaves_frees_what_was_left() -> None:
    env, count = simpy.Environment(), Count()
    server = Server(env, rate=100.0)
    impatient = env.process(ask(env, [server], 1000, 2.0, count))
    assert env.run(impatient) is False
    began = env.now
    env.run(env.process(server.restore(100)))
    assert env.now - began == pytest.approx(1.0, abs=0.1)


def test_a_balancer_asks_another_server_when_one_refuses() -> None:
    env, count = simpy.Environment(), Count()
    servers = [Server(env, rate=100.0), Server(env, rate=100.0)]
    for _ in range(8):
        env.process(servers[0].restore(300))
    env.run(0.1)
    asked = env.process(ask(env, servers, 200, 60.0, count, retries=2))
    assert env.run(asked) is True
    assert env.now < 2.2


def test_a_busy_server_does_what_its_rate_allows_whatever_the_crowd() -> None:
    for clients in (4, 8, 40):
        count = closed_loop(90.0, 0.0, clients, 9, 100.0, patience=5.0)
        assert len(count.seconds) / 100 == pytest.approx(10.0, rel=0.03)
        assert (count.given_up > 0) == (clients == 40)


def test_photographs_in_a_server_grow_with_its_load_and_agree_with_littles_law() -> None:
    levels = []
    for utilisation in (0.3, 0.8):
        count, level = steady(LOAD, 2, utilisation, 2000.0)
        per_s = utilisation * LOAD.rate / LOAD.mean_patches
        queued = sum(count.seconds) / len(count.seconds) - LOAD.overhead
        assert level == pytest.approx(per_s * queued, rel=0.15)
        levels.append(level)
    assert levels[0] < levels[1]


def test_a_scaler_takes_more_servers_for_a_smaller_target_and_photographs_wait_less() -> None:
    outcomes = {}
    for target in (1.0, 6.0):
        random.seed(7)
        count, servers = Scaler(target).run(LOAD, lambda now: 3.0 if 600 < now < 1200 else 0.5, 1800.0)
        outcomes[target] = servers, sum(count.seconds) / len(count.seconds)
    assert outcomes[1.0][0] > outcomes[6.0][0] >= 2 and outcomes[1.0][1] < outcomes[6.0][1]


@pytest.mark.slow
def test_a_record_is_made_that_can_be_shown_and_foretells_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    assert capacity.main(["--replicas", "2", "--targets", "2", "--seconds", "300", "--json", str(path)]) == 0
    record = Record.load(path)
    assert [row["utilisation"] for row in record.figures["steady"]] == list(capacity.UTILISATIONS)
    for row in record.figures["checks"]:
        for value in ("per_s", "p50_s"):
            assert row["simulated"][value] == pytest.approx(row["measured"][value], rel=0.12)
    assert "| 2 | 70% |" in capsys.readouterr().out
    assert len(capacity.draw(record).axes) == 2


def test_shares_must_be_as_many_as_sides() -> None:
    with pytest.raises(SystemExit) as end:
        capacity.main(["--sides", "64,128", "--shares", "1"])
    assert end.value.code == 2


def number(text: str) -> float:
    return float(text.replace(" ", ""))


def test_the_page_computes_what_it_says_it_computes_and_scales_as_the_chart_does() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text()
    patches, used = count_patches(1024, 1024), 0.7
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (`ipt|RTX|H100)", line)]
    assert len(rows) == 9
    for cells in rows:
        rate, megapixels, a_day, hours = (
            number(cell) for cell in (cells[-5 if "measured" in cells[3] else -4], *cells[-3:])
        )
        assert megapixels == pytest.approx(rate * 1024**2 / 1e6 / patches, rel=0.005)
        assert a_day == pytest.approx(86_400 * used * rate / patches, rel=0.001)
        assert hours == pytest.approx(1e6 * patches / 3600 / used / rate, rel=0.005)
        if cells[0] in ("RTX 4090", "H100 SXM"):
            work, peak = (1.04e9 if "tiny" in cells[1] else 66e9), (165e12 if "RTX" in cells[0] else 989e12)
            carried = 8 * (1563 if "x4" in cells[1] else 13_100)
            assert number(cells[2]) == pytest.approx(0.4 * peak / work, rel=0.001)
            assert (number(cells[3]), number(cells[4])) == (carried, min(number(cells[2]), carried))
    record = json.loads((ROOT / "benchmarks" / "results" / "throughput-ipt-tiny.json").read_text())
    full = {c["task"]: c["patches_per_s"] for c in record["figures"]["levels"]["restore"] if c["concurrency"] == 8}
    measured = {cells[0]: number(cells[2]) for cells in rows}
    assert measured["`ipt-tiny`, x4"] == round(full["sr_x4"])
    assert measured["`ipt-tiny`, x1 tasks"] == round(full["denoise_30"])
    (target,) = re.findall(r"scales to \*\*(\d+) photographs a server\*\*", text)
    assert f"photographsPerReplica: {target}\n" in (ROOT / "deploy/helm/ipt-triton/values.yaml").read_text()
