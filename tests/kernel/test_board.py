"""The board of the routers: smaller photographs go first, whichever process they are in, and none waits too long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipt_triton import board as board_module
from ipt_triton.board import ROOM_S, Board, Busy, Slot, wait_of

ROUTERS = 8


@pytest.fixture
def boards(tmp_path: Path) -> list[Board]:
    return [Board(tmp_path / "board", slot, ROUTERS) for slot in range(ROUTERS)]


def measured(board: Board, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    """Let a router find that the server does so many patches a second."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic, clock.monotonic_ns = lambda: clock.now, lambda: int(clock.now * 1e9)
    monkeypatch.setattr(board_module, "time", clock)
    board.begin(0, rate)
    clock.now += 1
    board.write(0)
    board.end()


def test_a_router_sees_how_many_have_less_left(boards: list[Board]) -> None:
    small, large, idle = boards[4], boards[2], boards[0]
    small.begin(0, 3)
    large.begin(0, 500)
    assert (small.before(), large.before(), idle.before()) == (0, 1, 0)
    small.end()
    assert large.before() == 0


def test_of_those_with_as_much_left_the_earlier_goes_first(boards: list[Board]) -> None:
    order = [boards[5], boards[1], boards[3]]
    for board in order:
        board.begin(0, 9)
    assert [board.before() for board in order] == [0, 1, 2]


def test_what_another_process_writes_is_seen_at_once(tmp_path: Path, boards: list[Board]) -> None:
    boards[0].begin(0, 9)
    code = (
        "import sys; from pathlib import Path; from ipt_triton.board import Board; "
        "Board(Path(sys.argv[1]), 5).begin(3, 2)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "board")], check=True)
    assert boards[0].before() == 1
    assert boards[0].under_way() == {0: Slot(9, 1, 0), 5: Slot(2, 1, 3)}


def test_each_answer_and_each_look_is_a_turn(boards: list[Board]) -> None:
    boards[1].begin(3, 9)
    boards[1].write(9)
    boards[1].write(1)
    assert boards[0].under_way() == {1: Slot(1, 3, 3)}
    boards[1].end()
    assert boards[0].under_way() == {}


def test_the_last_free_routers_are_for_short_photographs(boards: list[Board], monkeypatch: pytest.MonkeyPatch) -> None:
    measured(boards[0], monkeypatch, 100)
    for board in boards[:6]:
        board.begin(0, 500)
    with pytest.raises(Busy, match=r"again in 5\.0 s"):  # then one of the six is done
        boards[6].begin(0, int(100 * ROOM_S[1]) + 1)
    assert boards[0].refused() == 1 and 6 not in boards[0].under_way()
    boards[6].begin(0, 40)
    with pytest.raises(Busy, match=r"^7 photographs are under way; ask again in 0\.4 s$") as caught:
        boards[7].begin(0, 41)  # the one above goes first
    assert wait_of(str(caught.value)) == 0.4
    assert wait_of("the server is stopping; ask another one, or again") is None
    with pytest.raises(Busy, match=r"again in 0\.4 s"):
        boards[7].begin(0, int(100 * ROOM_S[0]) + 1)
    boards[0].tell_waiting(10)
    with pytest.raises(Busy, match=r"again in 2\.0 s"):
        boards[7].begin(0, 20)
    boards[7].begin(0, 8, chunk=8)
    assert len(boards[0].under_way()) == ROUTERS


def test_nothing_is_refused_before_the_rate_is_known_or_by_few_routers(
    tmp_path: Path, boards: list[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    for board in boards:
        board.begin(0, 10_000)
    few = [Board(tmp_path / "few", slot, 3) for slot in range(3)]
    measured(few[0], monkeypatch, 100)
    for board in few:
        board.begin(0, 1000)


def test_what_its_caller_would_not_wait_for_is_refused_unless_nothing_goes_before_it(
    boards: list[Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(boards[0], monkeypatch, 100)
    boards[3].begin(0, 500, within=1)
    boards[1].begin(0, 200, within=1)
    with pytest.raises(Busy, match=r"again in 2\.0 s"):
        boards[2].begin(0, 300, within=4.9)
    boards[2].begin(0, 300, within=5.1)


def test_routers_that_take_other_requests_are_not_the_free_ones_but_their_work_goes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [range(8), range(8, 12)]
    boards = [Board(tmp_path / "two", slot, 12, alike) for alike in groups for slot in alike]
    measured(boards[0], monkeypatch, 100)
    for board in boards[8:11]:
        board.begin(0, 500)
    with pytest.raises(Busy, match=r"^3 photographs are under way"):
        boards[11].begin(0, int(100 * ROOM_S[0]) + 1)
    boards[0].begin(0, 600)  # of eight alike seven are free
    assert boards[0].before() == 3


def test_a_chain_says_which_task_its_patches_go_to(boards: list[Board]) -> None:
    boards[1].begin(3, 9)
    boards[1].turn_to(0)
    assert boards[0].under_way()[1].task == 0


def test_a_slot_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1024 slots and none with number 1024"):
        Board(tmp_path / "board", 1024)


def test_a_board_has_its_place_on_the_disk_from_the_beginning(tmp_path: Path) -> None:
    Board(tmp_path / "board", 0)
    facts = (tmp_path / "board").stat()
    assert 512 * facts.st_blocks >= facts.st_size > 0
