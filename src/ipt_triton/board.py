"""The board on which the routers of a server write what they have left to do: who goes first, and what is refused.

Triton runs a router for each photograph, in a process of its own, and drops priorities inside ensembles. So the routers
themselves let small photographs before large ones: each looks at the board before it sends a chunk. They also refuse
what would have to wait too long, and say for how long. `ipt-serve` reads on it which router stands still.

numpy only and Python 3.9 syntax; `ipt-export` copies this file beside the router.
"""

from __future__ import annotations

import math
import os
import re
import time
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np

BOARD = "routers"
"""Name of the file, in the private folder of a server."""

_SLOTS = 1024
_LEFT, _TURNS, _TASK, _DONE, _REFUSED, _MEMORY, _BEGAN = range(7)
_WIDTH = 8  # columns of a slot: those above, and room
# Behind the slots, of the whole server: thousandths of a patch a second, and requests that no router has taken yet.
_RATE, _WAITING = (_SLOTS, 0), (_SLOTS, 1)

ROOM_S = (0.0, 0.5)
"""The last free router, and the one before it, take a photograph alone that is done, with what goes before it and what
waits, after this time. So the last one takes none but those of a chunk, and refuses at once what comes too much."""
_WINDOW_S = 0.5  # over which the rate is measured
_LONGEST_HINT_S = 60.0
_HINT = re.compile(r"; ask again in (\d+(?:\.\d+)?) s$")


class Busy(Exception):
    """A photograph that would have to wait too long; the message says when to ask again."""


def wait_of(message: str) -> Optional[float]:  # noqa: UP045  # read by Python 3.9 too
    """Seconds that a refusal asks its caller to wait; None for another message."""
    found = _HINT.search(message)
    return float(found[1]) if found else None


def reserved_routers(routers: int) -> int:
    """How many of the routers take a photograph alone that is done soon."""
    return min(len(ROOM_S), routers // 4)


def wait_for(
    patches: int,
    before: int,
    waiting: int,
    free: int,
    reserved: int,
    soonest: int,
    rate: float,
    within: float = math.inf,
) -> float:
    """Seconds after which a photograph that a router has got may be asked for again; 0 if it is taken on now.

    Args:
        patches: of the photograph.
        before: patches left of those under way that go before it.
        waiting: requests that wait for a router, taken as if each were like this one.
        free: routers that have nothing to do beside this one.
        reserved: see `reserved_routers`.
        soonest: patches left of the one under way that is done first, which frees a router.
        rate: patches a second of the server.
        within: seconds after which its caller leaves.
    """
    waits = before + patches * waiting
    too_long = free < reserved and (waits + patches) / rate > ROOM_S[free]
    too_long = too_long or (before > 0 and (before + patches) / rate > within)
    if free < reserved:
        waits = max(waits, soonest)
    return min(max(waits / rate, 0.1), _LONGEST_HINT_S) if too_long else 0.0


class Slot(NamedTuple):
    """What a router with a photograph under way says of it: patches left, turns taken so far, id of the task."""

    left: int
    turns: int
    task: int


class Board:
    """Work of each router, in a file that all of them map into memory.

    Args:
        path: the file, made if it is not there.
        slot: the router's own, different for each, within 0 to 1023.
        routers: how many there are; 0: none refuses anything.
        alike: slots of the routers that take the same requests as this one; by default all.
    """

    def __init__(self, path: Path, slot: int = 0, routers: int = 0, alike: Optional[range] = None) -> None:  # noqa: UP045
        if not 0 <= slot < _SLOTS:
            raise ValueError(f"a board has {_SLOTS} slots and none with number {slot}")
        shape = (_SLOTS + 1, _WIDTH)
        path.touch()
        # Zeros, nothing to do, in blocks of their own: a disk that fills up is no matter. Where a file system sets none
        # aside, glibc writes them, for which the file must be open for reading and not for appending.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 8 * shape[0] * shape[1])
        self._rows = np.memmap(path, np.int64, "r+", shape=shape)
        self._slots, self._own, self._slot = self._rows[: routers or _SLOTS], self._rows[slot], slot
        self._alike = range(routers) if alike is None else alike
        self._routers, self._reserved = routers, reserved_routers(len(self._alike))
        self._since, self._done_then = 0.0, 0

    def begin(self, task: int, patches: int, chunk: int = 0, within: float = math.inf) -> None:
        """Take a photograph of so many patches on; one of a chunk at most is never refused.

        Args:
            within: seconds after which its caller leaves; what would come later than that is refused at once.

        Raises:
            Busy: it would have to wait too long.
        """
        self._own[_BEGAN] = time.monotonic_ns()
        self._own[_LEFT] = patches  # before the look at the others: two that begin at once see each other
        if self._routers and patches > chunk and (wait := self._wait(patches, within)):
            self._own[_LEFT] = 0
            self._own[_REFUSED] += 1
            raise Busy(f"{self._under_way()} photographs are under way; ask again in {wait:.1f} s")
        self._own[_TASK] = task
        self._since, self._done_then = time.monotonic(), self.done()
        self._own[_TURNS] += 1

    def turn_to(self, task: int) -> None:
        """Say that the photograph's patches go to this task from now on."""
        self._own[_TASK] = task

    def write(self, left: int) -> None:
        """Say how many patches this router has left to be answered; the same number again is a turn too."""
        self._own[_DONE] += self._own[_LEFT] - left
        self._own[_LEFT] = left
        self._own[_TURNS] += 1
        seconds = time.monotonic() - self._since
        if seconds >= _WINDOW_S:
            rate = 1000 * (self.done() - self._done_then) / seconds
            self._rows[_RATE] = round((self._rows[_RATE] + rate) / 2 if self._rows[_RATE] else rate)
            self._since, self._done_then = time.monotonic(), self.done()

    def end(self) -> None:
        """Say that nothing is left, whether the photograph was restored or given up."""
        self._own[_LEFT] = 0

    def before(self, least: int = 1) -> int:
        """How many photographs under way have less left than this router's; of equal ones the earlier goes first.

        Args:
            least: patches that they have left at least.
        """
        left = np.array(self._slots[:, _LEFT])
        return int((self._goes_before(left, int(left[self._slot])) & (left >= least)).sum())

    def under_way(self) -> dict[int, Slot]:
        """What each router with a photograph under way says of it, by slot."""
        rows = np.array(self._slots)
        return {int(i): Slot(*map(int, rows[i, :3])) for i in np.flatnonzero(rows[:, _LEFT] > 0)}

    def tell_waiting(self, requests: int) -> None:
        """Let the routers know how many requests wait for one of them."""
        self._rows[_WAITING] = requests

    def tell_no_memory(self) -> None:
        """Say that this router had to refuse a photograph because there was no shared memory left."""
        self._own[[_REFUSED, _MEMORY]] += 1

    def refused(self) -> int:
        """Photographs that the routers have refused so far because there was too much to do."""
        return int(self._slots[:, _REFUSED].sum())

    def no_memory(self) -> int:
        """How many of them for want of shared memory."""
        return int(self._slots[:, _MEMORY].sum())

    def _goes_before(self, left: np.ndarray, own: int) -> np.ndarray:
        equal = (left == own) & (self._slots[:, _BEGAN] < self._own[_BEGAN]) & (own > 0)
        return ((left > 0) & (left < own)) | equal

    def _wait(self, patches: int, within: float) -> float:
        """Seconds after which a photograph may be asked for again; 0 if it can be taken on now."""
        rate = self._rows[_RATE] / 1000
        if not rate:
            return 0.0  # not measured yet
        left = np.array(self._slots[:, _LEFT])
        left[self._slot] = 0
        before = int(left[self._goes_before(left, patches)].sum())
        free = max(0, len(self._alike) - 1 - int((left[self._alike.start : self._alike.stop] > 0).sum()))
        soonest = int(left[left > 0].min(initial=np.iinfo(left.dtype).max))
        waiting = int(self._rows[_WAITING])
        return wait_for(patches, before, waiting, free, self._reserved, soonest, rate, within)

    def done(self) -> int:
        """Patches that the routers have got answers to since the server started."""
        return int(self._slots[:, _DONE].sum())

    def _under_way(self) -> int:
        return int((self._slots[:, _LEFT] > 0).sum())
