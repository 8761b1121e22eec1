"""Memory of a server's processes and of this one, from /proc: now, at its peak, and shared pages counted once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

MIB = 2**20
_INTERVAL_S = 0.05


def process_name(pid: int) -> str:
    """`restore` (the router), a part's name, or the program's; `gone` when it has ended."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "gone"
    for argument in arguments:
        if argument.endswith("/model.py"):
            return Path(argument).parent.parent.name
    return Path(arguments[0]).name


def resident(pid: int) -> tuple[int, int]:
    """(resident, of it not shared with other processes) in bytes; zeros when it has ended."""
    sizes = _sizes(Path(f"/proc/{pid}/status"))
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


def proportional(pids: Iterable[int]) -> int:
    """Bytes that processes take together: a page that several share counts once."""
    return sum(_sizes(Path(f"/proc/{pid}/smaps_rollup")).get("Pss", 0) for pid in pids)


def _sizes(path: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


class Watch:
    """Peak memory of those who hold a photograph: the router, the server and the client, which is this process.

    What they had when the watch was made is taken off. As a context manager it looks every 50 ms, and peaks begin anew.

    Args:
        pids: the server's processes.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        roles = {"restore": "router", "tritonserver": "server"}
        named = {pid: roles.get(process_name(pid)) for pid in pids} | {os.getpid(): "client"}
        self._roles = {pid: role for pid, role in named.items() if role}
        self._before = {pid: resident(pid) for pid in self._roles}
        self._peak = dict(self._before)

    def __enter__(self) -> Watch:
        self._peak = {pid: resident(pid) for pid in self._roles}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            for pid, peak in self._peak.items():
                now = resident(pid)
                self._peak[pid] = max(peak[0], now[0]), max(peak[1], now[1])

    def growth(self) -> dict[str, dict[str, int]]:
        """MiB above the level before, by role: `resident`, and `own`, of it what no other process shares.

        Of several routers the one that grew most, which is the one that held the photograph.
        """
        grown: dict[str, dict[str, int]] = {}
        for pid, role in self._roles.items():
            more = [
                round((peak - before) / MIB) for peak, before in zip(self._peak[pid], self._before[pid], strict=True)
            ]
            if role not in grown or more[0] > grown[role]["resident"]:
                grown[role] = {"resident": more[0], "own": more[1]}
        return grown
