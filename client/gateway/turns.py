"""Whose photo is restored next: fair between callers, and small photos never wait for large ones alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

LARGE_PIXELS = 4_000_000
"""A photo of more pixels is large: few of them are under way at the same time, and one of each caller."""


@dataclass(eq=False)
class Turn:
    """A photo that waits, or is under way."""

    owner: str
    pixels: int
    number: int
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_large(self) -> bool:
        return self.pixels > LARGE_PIXELS


class Turns:
    """Slots, and who gets the next one: the caller with the fewest photos under way, then who waited longest for one.

    Args:
        slots: photos under way at the same time.
        large_slots: of which so many may be large.
        max_waiting: photos that wait.
    """

    def __init__(self, slots: int, large_slots: int, max_waiting: int) -> None:
        self._slots, self._large_slots, self._max_waiting = slots, large_slots, max_waiting
        self._waiting: list[Turn] = []
        self._under_way: list[Turn] = []
        self._numbers = count()
        self._served: dict[str, int] = {}  # when each caller's last turn began
        self._watchers: list[Callable[[], None]] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def watch(self, changed: Callable[[], None]) -> None:
        """Have a function called whenever somebody's place may have changed."""
        self._watchers.append(changed)

    @property
    def is_full(self) -> bool:
        """Whether so many wait that no more are taken."""
        return len(self._waiting) >= self._max_waiting

    @asynccontextmanager
    async def turn(self, owner: str, pixels: int, entered: Callable[[Turn], None] | None = None) -> AsyncIterator[None]:
        """Wait for a turn, and hold its slot for the block.

        Args:
            entered: is handed the turn that waits, for `position`.
        """
        turn = Turn(owner, pixels, next(self._numbers))
        self._waiting.append(turn)
        try:
            if entered is not None:
                entered(turn)
            self._fill()
            await turn.begun.wait()
            yield
        finally:
            (self._under_way if turn in self._under_way else self._waiting).remove(turn)
            self._fill()

    def position(self, turn: Turn) -> int:
        """How many come before this one; 0: it is under way, or next."""
        if turn.begun.is_set():
            return 0
        order = self._order()
        return order.index(turn) if turn in order else 0

    def _order(self) -> list[Turn]:
        """Those who wait, in the order in which they will begin as far as can be told."""
        before = Counter(turn.owner for turn in self._under_way)
        ranks: dict[Turn, tuple[int, int, int]] = {}
        for turn in self._waiting:
            ranks[turn] = before[turn.owner], self._served.get(turn.owner, -1), turn.number
            before[turn.owner] += 1
        return sorted(ranks, key=ranks.__getitem__)

    def _fill(self) -> None:
        while len(self._under_way) < self._slots and (turn := next(filter(self._may_begin, self._order()), None)):
            self._waiting.remove(turn)
            self._under_way.append(turn)
            turn.begun.set()
            self._served[turn.owner] = next(self._numbers)
        present = {turn.owner for turn in (*self._waiting, *self._under_way)}
        self._served = {owner: number for owner, number in self._served.items() if owner in present}
        for changed in self._watchers:
            changed()

    def _may_begin(self, turn: Turn) -> bool:
        large = [other for other in self._under_way if other.is_large]
        return not turn.is_large or (
            len(large) < self._large_slots and all(other.owner != turn.owner for other in large)
        )
