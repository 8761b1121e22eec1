"""Stand-ins for a RestorationClient: no server, no network, and a record of what was asked."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from helpers import fake_network

from ipt_triton.tiling import KEEP, PATCH, STRIDE, Tiler


class Nearest:
    """Gives every picture back, enlarged by repeating pixels.

    Attributes:
        asked: shapes and types of the pictures, in the order they came.
        most: requests that were under way at one time.
    """

    def __init__(self, scale: int = 1, delay: float = 0.0) -> None:
        self._scale, self._delay = scale, delay
        self._lock = threading.Lock()
        self._now = self.most = 0
        self.asked: list[tuple[tuple[int, ...], str]] = []

    def restore(
        self, image: np.ndarray, task: int | str, stride: int | None = None, keep: int | None = None
    ) -> np.ndarray:
        with self._lock:
            self.asked.append((image.shape, image.dtype.name))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self._delay)
            return self.answer(image, stride, keep)
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, image: np.ndarray, stride: int | None, keep: int | None) -> np.ndarray:
        return image.repeat(self._scale, 0).repeat(self._scale, 1)


class Tiled(Nearest):
    """Restores as a server does, by a network whose answer depends on the whole tile and on the place in it."""

    def answer(self, image: np.ndarray, stride: int | None, keep: int | None) -> np.ndarray:
        return tiled(image, self._scale, stride or STRIDE, keep or KEEP)


def tiled(image: np.ndarray, scale: int, stride: int, keep: int) -> np.ndarray:
    """A picture, gray or RGB, through `fake_network.stamp` in one piece."""
    colour: Any = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    tiler = Tiler(np.ascontiguousarray(colour), scale, PATCH, stride, keep)
    for first, last in tiler.batches(16):
        tiler.add(fake_network.stamp(tiler.patches(first, last), scale))
    return tiler.result() if image.ndim == 3 else tiler.result()[..., 0]
