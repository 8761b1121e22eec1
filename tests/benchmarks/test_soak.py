"""Two servers under load whose processes are killed, stopped and started; and a server that is asked for too much."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.support import Served

from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving import overload, soak


@pytest.mark.slow
def test_a_minute_of_faults_brings_no_wrong_picture_and_leaves_nothing(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    arguments = ["--repository", str(served.repository), "--minutes", "1", "--seed", "1", "--json", str(path)]
    assert soak.main(arguments) == 0
    record = Record.load(path)
    assert record.figures["photographs"]["right"] > 0 and record.figures["faults"]
    assert "Did not hold: nothing" in soak.markdown(record)
    assert len(soak.draw(record).axes[0].lines) == 1 + len(record.figures["faults"])


HELD = {
    "photographs": {"right": 3},
    "failures": [],
    "differing_afterwards": 0,
    "faults": [{}],
    "memory_mib": {"before": [100, 100], "after": [120, 90]},
    "left": [],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"failures": ["wrong: job 3"]}, "job 3"),
        ({"differing_afterwards": 2}, "2 pictures are others"),
        ({"faults": []}, "nothing befell"),
        ({"memory_mib": {"before": [100, 100], "after": [100, 300]}}, "from 100 to 300 MiB"),
        ({"left": ["/dev/shm/x"]}, "left: /dev/shm/x"),
    ],
)
def test_what_does_not_hold_is_named(change: dict[str, object], words: str) -> None:
    assert soak.broken(HELD) == []
    assert words in soak.broken({**HELD, **change})[0]


@pytest.mark.slow
def test_more_clients_than_the_server_can_serve_are_counted(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "overload.json"
    arguments = ["--repository", str(served.repository), "--clients", "2", "--factors", "1,6", "--patience", "2"]
    assert overload.main([*arguments, "--seconds", "2", "--json", str(path)]) == 0
    record = Record.load(path)
    few, many = record.figures["crowds"]
    assert (few["clients"], many["clients"]) == (2, 12)
    assert few["goodput"] > 0 and many["goodput"] > 0 and many["refusals"] > 0
    assert "| 12 |" in overload.markdown(record)
    assert list(overload.draw(record).axes[0].lines[0].get_xdata()) == [2, 12]
