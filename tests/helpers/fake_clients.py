"""Stand-ins for a RestorationClient: no server, no network, and a record of what was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from helpers import fake_network

from ipt_triton.client.options import Options
from ipt_triton.client.protocol import Restoration, ServerInfo
from ipt_triton.tasks import OFFICIAL_TASKS, TaskKey
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
        self, image: np.ndarray, task: TaskKey, stride: int | None = None, keep: int | None = None, *, tta: bool = False
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


class Stamping:
    """A client whose server is `fake_network.stamp`; what it asks and how it joins answers are the real client's.

    Attributes:
        asked: shapes of the pictures, in the order they came.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def info(self) -> ServerInfo:
        return ServerInfo(OFFICIAL_TASKS, PATCH, STRIDE, KEEP, 10**6, 10**7, 10**4, "0" * 64, "openvino", "fp32")

    def restore(
        self, image: np.ndarray, task: TaskKey, stride: int | None = None, keep: int | None = None, **options: Any
    ) -> np.ndarray:
        self.asked.append(image.shape)
        work = Restoration(self.info(), image, task, stride, keep, Options(**options))
        kinds = {"RESTORED": "uint8", "RESTORED16": "uint16", "RESTORED32": "float32"}
        kind = kinds[work.outputs()[0].name()]
        for part in work.parts:
            pixels = part.block.cut(part.view.of(image))
            colour = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2)
            answer = stamped(np.ascontiguousarray(colour), work.chain.scales, stride or STRIDE, keep or KEEP, kind)
            work.put(part, SimpleNamespace(as_numpy=lambda _, answer=answer: answer))  # type: ignore[arg-type]
        return work.result()


def stamped(image: np.ndarray, scales: Sequence[int], stride: int, keep: int, kind: str) -> np.ndarray:
    """An RGB picture through several networks, not rounded in between, in a type that `Tiler` makes."""
    for stage, scale in enumerate(scales, 1):
        tiler = Tiler(image, scale, PATCH, stride, keep, dtype=kind if stage == len(scales) else "float32")
        for first, last in tiler.batches(16):
            tiler.add(fake_network.stamp(tiler.patches(first, last), scale).astype(np.float32))
        image = tiler.result()
    return image


def tiled(image: np.ndarray, scale: int, stride: int, keep: int) -> np.ndarray:
    """A picture, gray or RGB, through `fake_network.stamp` in one piece."""
    colour: Any = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    tiler = Tiler(np.ascontiguousarray(colour), scale, PATCH, stride, keep)
    for first, last in tiler.batches(16):
        tiler.add(fake_network.stamp(tiler.patches(first, last), scale))
    return tiler.result() if image.ndim == 3 else tiler.result()[..., 0]
