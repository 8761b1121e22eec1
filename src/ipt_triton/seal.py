"""Seals: two numbers that go with every patch from part to part, so that no patch is taken for another one.

When one of the processes of Triton's Python backend stalls, Triton 2.51 may hand its answers to the wrong request, or
hand on memory that holds another request's tensors by then. A seal says which patch of which image a row belongs to
(`tag`, a fingerprint of the patch itself) and what the tensors beside it looked like when they were written. Each part
compares both as it reads, and the router as it joins.

numpy only and Python 3.9 syntax; `ipt-export` copies this file beside the Triton models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

SEAL = "SEAL"
"""Name of the tensor, int64 [n, 2]: tag, and fingerprint of the tensors that it goes with."""

_SAMPLES = 256
"""Words of a row that make its fingerprint: few enough to cost nothing, and a foreign row differs in most of them."""


class BrokenSeal(ValueError):
    """Rows that are not what was written, or not of the patches that were asked for."""


def fingerprint(tensor: np.ndarray) -> np.ndarray:
    """A number for each row of a tensor [n, ...], int64 [n], from words that are spread evenly over the row."""
    rows = np.ascontiguousarray(tensor).reshape(len(tensor), -1).view(np.uint16)
    step = max(1, rows.shape[1] // _SAMPLES) | 1  # odd, so that it meets all columns of a picture
    words = rows[:, ::step].astype(np.uint64)
    numbers: np.ndarray = (words * _factors(words.shape[1])).sum(axis=1, dtype=np.uint64).view(np.int64)
    return numbers


def seal(tags: np.ndarray, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Seals, int64 [n, 2], of rows of tensors [n, ...] that belong to `tags` [n]."""
    return np.stack([tags, _together(tensors)], axis=1)


def check_seal(seals: np.ndarray, tensors: Sequence[np.ndarray]) -> np.ndarray:
    """The tags [n] of sealed rows. Rows with a seal of zeros, such as those of a warm-up, are taken as they are.

    Raises:
        BrokenSeal: a row is not the one that was sealed.
    """
    seals = seals.reshape(-1, 2)
    broken = (seals[:, 1] != _together(tensors)) & seals.any(axis=1)
    if broken.any():
        raise BrokenSeal(f"{broken.sum()} of {len(broken)} patches arrived as something else than what was sent")
    tags: np.ndarray = seals[:, 0]
    return tags


def _together(tensors: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(len(tensors[0]), np.int64)
    for place, tensor in enumerate(tensors):
        total += fingerprint(tensor) * (2 * place + 1)  # wraps around, as it should
    return total


@cache
def _factors(count: int) -> np.ndarray:
    """Odd factors without a pattern, the same in every process."""
    return np.random.default_rng(0).integers(1, 2**63, count, dtype=np.uint64) | np.uint64(1)
