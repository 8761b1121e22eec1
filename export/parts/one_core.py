"""OpenVINO's Core, one for the whole process.

On CPUs with AMX, each Core that loads the CPU plugin gives its thread another stack for signal handlers. At its end it
takes that away and puts back the one from before, which may be that of a Core that has ended. Then the next signal
that Python handles, Ctrl-C or the end of a child, kills the process without a word. Seen with OpenVINO 2026.4.1 and two
Cores that ended in the order in which they began. One Core that lives as long as the process does not do this.
"""

from __future__ import annotations

import threading
from functools import cache

import openvino as ov

_lock = threading.Lock()


def core() -> ov.Core:
    """The Core, its CPU plugin loaded."""
    with _lock:
        return _made()


@cache
def _made() -> ov.Core:
    only = ov.Core()
    only.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return only
