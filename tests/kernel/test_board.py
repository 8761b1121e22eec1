"""The board on which routers write what they have left: smaller photographs go first, whichever process they are in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ipt_triton.board import Board


def test_a_router_sees_how_many_have_less_left(tmp_path: Path) -> None:
    small, large, idle = (Board(tmp_path / "board", slot) for slot in (4, 2, 0))
    small.write(3)
    large.write(500)
    assert (small.before(), large.before(), idle.before()) == (0, 1, 0)
    small.write(0)
    assert large.before() == 0


def test_of_two_with_as_much_left_one_goes_first(tmp_path: Path) -> None:
    boards = [Board(tmp_path / "board", slot) for slot in (1, 7)]
    for board in boards:
        board.write(9)
    assert [board.before() for board in boards] == [0, 1]


def test_what_another_process_writes_is_seen_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", 0)
    board.write(9)
    code = (
        "import sys; from pathlib import Path; from ipt_triton.board import Board; Board(Path(sys.argv[1]), 5).write(2)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "board")], check=True)
    assert board.before() == 1


def test_a_slot_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1024 slots and none with number 1024"):
        Board(tmp_path / "board", 1024)
