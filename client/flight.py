"""Several calls on their way at a time, their results in the order of the calls, in threads and in asyncio."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator, Iterable
from concurrent import futures
from typing import Any, TypeVar

T = TypeVar("T")


def in_order(
    calls: Iterable[Callable[[], T]], at_once: int, *, early: bool = False, abandon: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Yield what the calls return, which threads make; no more of them are begun before results are taken.

    Args:
        at_once: calls on their way.
        early: raise an error as soon as any call has one, not in its place, and wait for no other call then.
        abandon: called at the end, so that calls whose results nobody waits for can end.
    """
    waiting: deque[futures.Future[T]] = deque()
    pool = futures.ThreadPoolExecutor(at_once, thread_name_prefix="in-flight")

    def first() -> T:
        while early and not waiting[0].done():
            for each in waiting:
                if each.done():
                    each.result()
            futures.wait([each for each in waiting if not each.done()], None, futures.FIRST_COMPLETED)
        return waiting.popleft().result()

    try:
        for call in calls:
            waiting.append(pool.submit(contextvars.copy_context().run, call))  # with the span that it belongs to
            if len(waiting) == at_once:
                yield first()
        while waiting:
            yield first()
    finally:
        abandon()
        pool.shutdown(wait=not early, cancel_futures=True)


async def in_order_async(
    calls: AsyncIterable[Coroutine[Any, Any, T]], at_once: int, *, early: bool = False
) -> AsyncGenerator[T, None]:
    """`in_order` for asyncio: calls whose results nobody waits for are cancelled."""
    waiting: deque[asyncio.Task[T]] = deque()

    async def first() -> T:
        while early and not waiting[0].done():
            for each in waiting:
                if each.done():
                    each.result()
            await asyncio.wait([each for each in waiting if not each.done()], return_when=asyncio.FIRST_COMPLETED)
        return await waiting.popleft()

    try:
        async for call in calls:
            waiting.append(asyncio.create_task(call))
            if len(waiting) == at_once:
                yield await first()
        while waiting:
            yield await first()
    finally:
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
