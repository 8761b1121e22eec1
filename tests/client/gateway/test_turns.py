"""Whose photo is restored next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from ipt_triton.client.gateway.turns import LARGE_PIXELS, Turn, Turns

LARGE = LARGE_PIXELS + 1


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @wraps(test)
    def plain() -> None:
        asyncio.run(test())

    return plain


class Photos:
    """Photos that begin in their turn and end when they are told to."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.begun: list[str] = []
        self.waiting: dict[str, Turn] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def add(self, name: str, pixels: int = 1) -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._photo(name, pixels))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await asyncio.sleep(0)

    async def _photo(self, name: str, pixels: int) -> None:
        async with self._turns.turn(name[0], pixels, lambda turn: self.waiting.__setitem__(name, turn)):
            self.begun.append(name)
            await self._ends[name].wait()


@run
async def test_callers_take_turns_however_much_one_of_them_sends():
    photos = Photos(Turns(1, 1, 10))
    for name in ("a1", "a2", "a3", "b1", "c1"):
        await photos.add(name)
    for name in ("a1", "b1", "c1", "a2"):
        assert photos.begun[-1] == name
        await photos.end(name)
    assert photos.begun[-1] == "a3"


@run
async def test_small_photos_pass_large_ones_that_may_not_begin_yet():
    photos = Photos(Turns(3, 2, 10))
    for name, pixels in (("a1", LARGE), ("a2", LARGE), ("b1", LARGE), ("c1", LARGE), ("c2", 1)):
        await photos.add(name, pixels)
    assert photos.begun == ["a1", "b1", "c2"]
    await photos.end("b1")
    assert photos.begun[3:] == ["c1"]


@run
async def test_one_who_leaves_the_queue_makes_place():
    turns = Turns(1, 1, 2)
    photos = Photos(turns)
    for name in ("a1", "b1", "c1"):
        await photos.add(name)
    assert turns.is_full and turns.position(photos.waiting["c1"]) == 1
    photos.tasks["b1"].cancel()
    await asyncio.wait({photos.tasks["b1"]})
    assert (turns.is_full, turns.waiting, turns.position(photos.waiting["c1"])) == (False, 1, 0)
    await photos.end("a1")
    assert photos.begun == ["a1", "c1"]
