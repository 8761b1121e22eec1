"""The board on which the routers of a server write how much of its photograph each has left to do.

Triton runs a router for each photograph, in a process of its own, and drops priorities inside ensembles. So the routers
themselves let small photographs before large ones: each looks at the board before it sends a chunk.

numpy only and Python 3.9 syntax; `ipt-export` copies this file beside the router.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

_SLOTS = 1024


class Board:
    """Patches left by router, in a file that all of them map into memory.

    Args:
        path: the file, made if it is not there.
        slot: the router's own, different for each, within 0 to 1023.
    """

    def __init__(self, path: Path, slot: int) -> None:
        if not 0 <= slot < _SLOTS:
            raise ValueError(f"a board has {_SLOTS} slots and none with number {slot}")
        with path.open("ab") as file:
            if file.tell() < _SLOTS * 8:
                file.truncate(_SLOTS * 8)  # zeros: nothing to do
        self._left = np.memmap(path, np.int64, "r+", shape=(_SLOTS,))
        self._slot = slot

    def write(self, left: int) -> None:
        """Say how many patches this router has left, 0 for none."""
        self._left[self._slot] = left

    def before(self) -> int:
        """How many photographs under way have less left than this router's; of equal ones the lower slot goes first."""
        left = np.array(self._left)
        own = left[self._slot]
        smaller = (left > 0) & (left < own)
        equal = left[: self._slot] == own
        return int(smaller.sum() + (equal.sum() if own else 0))
