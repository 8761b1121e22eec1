"""Hostile variants of valid files: JSON that lacks, retypes, inflates and nests its values; bytes cut, turned, spliced.

Everything comes from a `random.Random`, so that a seed names a variant for good.
"""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

DEEP = "\u0001deep\u0001"
WORDS = (
    *("", "..", "../evil", "../../evil", "/evil", "body/../../evil", "a\0b", "evil\n", "\x1b[31mred", "\ud800"),
    *("x" * 300, "x" * 100_000, "NaN", "0", "body", "head_evil", "tail_", "float64", "sr_x2"),
)
NUMBERS = (0, -1, -48, 1, 2, 1.5, -0.0, 1e9, 10**9, 2**31, 2**63, -(2**63), 10**18, 10**30, 10**5000, 1e308)
NAMED = (float("nan"), float("inf"), -float("inf"))
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": {}}, [1, "2", None], {"1": 1}, [0] * 1000, DEEP)


def hostile_value(random: Random) -> Any:
    return copy.deepcopy(random.choice(random.choice((WORDS, NUMBERS, NAMED, OTHERS))))


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of JSON values."""
    found: list[tuple[Any, Any]] = []
    for key in list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ():
        found += [(values, key), *places(values[key])]
    return found


def hostile_json(values: Any, random: Random) -> str:
    """The text of JSON values with one to three changes."""
    values = copy.deepcopy(values)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        there = places(values)
        if not there:
            break
        container, key = random.choice(there)
        change = random.randrange(6)
        if change == 0:
            del container[key]
        elif change == 1 and isinstance(container, dict):
            container[random.choice((*WORDS, "extra", "0"))] = container.pop(key)
        elif change == 2 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif change == 3:
            container[key] = [container[key]]
        elif change == 4 and isinstance(container[key], (int, float)):
            container[key] = random.choice(NUMBERS + NAMED)
        else:
            container[key] = hostile_value(random)
    text = dump(values)
    depth = random.choice((50, 300, 5_000, 200_000))
    return text.replace(json.dumps(DEEP), "[" * depth + "]" * depth)


def dump(values: Any) -> str:
    """JSON of any numbers; Python writes none of more than 4300 digits."""
    text = json.dumps(values, default=str) if not _has_long(values) else json.dumps(_shorten(values))
    return text.replace('"LONG"', "1" + "0" * 5000)


def _has_long(values: Any) -> bool:
    return any(isinstance(c[k], int) and abs(c[k]) > 10**4000 for c, k in places(values))


def _shorten(values: Any) -> Any:
    for container, key in places(values):
        if isinstance(container[key], int) and abs(container[key]) > 10**4000:
            container[key] = "LONG"
    return values


def hostile_bytes(data: bytes, random: Random) -> bytes:
    """Bytes cut off, turned, overwritten, doubled or spliced."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        size = max(len(changed), 1)
        at, length = random.randrange(size), random.choice((1, 2, 4, 16, 200))
        change = random.randrange(6)
        if change == 0:
            del changed[at:]
        elif change == 1:
            for place in range(at, min(at + length, len(changed))):
                changed[place] ^= 1 << random.randrange(8)
        elif change == 2:
            changed[at : at + length] = random.choice((b"\xff", b"\0", b"\x7f", b"9")) * length
        elif change == 3:
            del changed[at : at + length]
        elif change == 4:
            changed[at:at] = changed[at : at + length]
        else:  # headers lie in the first bytes
            start = random.randrange(min(64, size))
            changed[start : start + 4] = random.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(changed)
