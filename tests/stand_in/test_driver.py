"""The stand-in driver notices what a GPU may let pass: work that is not waited for, freed memory, captures."""

from __future__ import annotations

import pytest
from stand_in.machine import StandIn


@pytest.mark.slow
def test_work_that_is_not_done_properly_shows(stand_in: StandIn) -> None:
    seen = stand_in.play("rules")
    assert "invalid device context" in seen["no context"]
    assert seen["not synchronised"] == [2] * 8 and seen["new memory is NaN"] and seen["two streams"]
    assert "operation not supported" in seen["not played"]
    for call in ("synchronise in a capture", "allocate in a capture"):
        refused, ended = seen[call]
        assert "not permitted when stream is capturing" in refused and "901" in ended
    assert seen["captured"] == [0] * 8 and seen["replayed"] == [3] * 8
    assert "illegal memory access" in seen["freed memory"] and "illegal memory access" in seen["after that"]
