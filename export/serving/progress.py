"""Photographs that stand still while others go on: one instance of a model hangs, and healthy ones hide it.

A chunk of patches waits in queues that are first in, first out. So one that is overtaken by many which came later is
lost, however slow the server is; and one that nothing overtakes may take as long as it likes (`heartbeat` looks at
servers that stand still altogether). The same holds for a router that hangs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ipt_triton.board import Board
from ipt_triton.export.serving.counters import Counters
from ipt_triton.service import ROUTERS, body_of

STILL_S = 3.0
"""Seconds without a turn after which a photograph may be lost."""
OVERTAKEN = 32
"""Requests to its body, beyond twice those that were waiting before it, that have overtaken a lost photograph."""

WORN_S = 300.0
"""A server that ran for so long is started anew when its shared memory is full: what it has taken it never gives back.
A younger one would only fill it again."""

FULL_S, _PAUSE_S = 15.0, 3.0
"""A server that has refused photographs for so long, without a pause of three seconds, is full."""


@dataclass(frozen=True)
class _Turn:
    """The last turn of a router, when it was first seen, and the body's count that makes it a lost one."""

    number: int
    seen: float
    lost_at: float


@dataclass
class Progress:
    """Watches the board of one server.

    Args:
        ways: the models behind the router for each task, by its id.
        most_waiting: requests that may wait for a router, 0 for a queue without bound.
    """

    board: Board
    ways: Mapping[int, Sequence[str]]
    most_waiting: int = 0
    _began: float = field(init=False, default_factory=lambda: time.monotonic())
    _turns: dict[int, _Turn] = field(init=False, default_factory=dict)
    _refused: int = field(init=False, default=0)
    _full_since: float | None = field(init=False, default=None)
    _full_until: float = field(init=False, default=0.0)

    def look(self, counters: Counters) -> str | None:
        """Look once; return what is wrong with the server, or None."""
        now = time.monotonic()
        self.board.tell_waiting(int(sum(counters.waiting.get(router, 0) for router in ROUTERS)))
        self._look_for_room(counters, now)
        if now - self._began > WORN_S and self.board.no_memory():
            return "photographs were refused because the shared memory in /dev/shm is full"
        turns, self._turns = self._turns, {}
        for router, slot in self.board.under_way().items():
            way = self.ways.get(slot.task, ())
            if not way:
                continue
            answered = counters.answered.get(body_of(way), 0)
            turn = turns.get(router)
            if turn is None or turn.number != slot.turns:
                ahead = sum(counters.waiting.get(model, 0) for model in way)
                turn = _Turn(slot.turns, now, answered + 2 * ahead + OVERTAKEN)
            elif now - turn.seen > STILL_S and answered > turn.lost_at:
                return f"a photograph has stood still for {now - turn.seen:.0f} s while others went on"
            self._turns[router] = turn
        return None

    def full(self) -> str | None:
        """Say that photographs have been refused for `FULL_S`; None if they were not."""
        now = time.monotonic()
        if self._full_since is None or now > self._full_until or now - self._full_since <= FULL_S:
            return None
        return f"too much to do: photographs have been refused for {now - self._full_since:.0f} s"

    def _look_for_room(self, counters: Counters, now: float) -> None:
        """Note whether photographs are refused, by the routers or by the queue before them."""
        refused = self.board.refused()
        waiting = max(counters.waiting.get(router, 0) for router in ROUTERS)
        if refused > self._refused or 0 < self.most_waiting <= waiting:
            if self._full_since is None or now > self._full_until:
                self._full_since = now
            self._full_until = now + _PAUSE_S
        self._refused = refused
