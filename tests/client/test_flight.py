"""Several calls on their way at a time: their order, their number, errors, and the blocks of large images."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import ExitStack, aclosing, closing
from functools import partial
from itertools import count
from typing import Any

import grpc
import numpy as np
import pytest
from helpers.pretended import Refusal, over_grpc
from tritonclient.grpc import InferResult

from ipt_triton import AsyncRestorationClient, RestorationClient, ServerError
from ipt_triton.client import protocol
from ipt_triton.client.flight import in_order, in_order_async


class Fault(Exception):
    pass


def fail() -> int:
    raise Fault


def test_results_come_in_order_and_no_more_calls_are_begun_than_may_be() -> None:
    begun, drawn, first = threading.Semaphore(0), 0, threading.Event()

    def call(number: int) -> int:
        begun.release()
        assert number > 0 or first.wait(60)
        return number

    def calls() -> Iterator[Any]:
        nonlocal drawn
        for number in range(9):
            assert number < 3 or first.is_set()
            drawn += 1
            yield partial(call, number)

    results = in_order(calls(), 3)
    threading.Timer(0.1, lambda: all(begun.acquire(timeout=60) for _ in range(3)) and first.set()).start()
    assert next(results) == 0 and drawn == 3
    assert list(results) == list(range(1, 9))


@pytest.mark.parametrize("early", [False, True])
def test_an_error_comes_in_its_place_or_at_once(early: bool) -> None:
    given_up = threading.Event()

    def first() -> int:
        return int(given_up.wait(60 if early else 0))

    results = in_order([first, fail, lambda: 2], 2, early=early, abandon=given_up.set)
    if not early:
        assert next(results) == 0
    with pytest.raises(Fault):
        next(results)
    assert given_up.is_set()


def test_calls_of_which_nobody_takes_the_results_are_given_up() -> None:
    given_up = threading.Event()
    with closing(in_order([lambda: 1, lambda: int(given_up.wait(60)), fail], 2, abandon=given_up.set)) as results:
        assert next(results) == 1
    assert given_up.is_set()


async def each(*calls: Coroutine[Any, Any, int]) -> AsyncIterator[Coroutine[Any, Any, int]]:
    for call in calls:
        yield call


@pytest.mark.parametrize("early", [False, True])
def test_in_asyncio_too(early: bool) -> None:
    cancelled: list[int] = []

    async def late(number: int, seconds: float) -> int:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async def failing() -> int:
        raise Fault

    async def work() -> None:
        async with aclosing(in_order_async(each(late(0, 0.1), late(1, 0), late(2, 0.05)), 2, early=early)) as results:
            assert [result async for result in results] == [0, 1, 2]
        async with aclosing(in_order_async(each(late(0, 60 * early), failing()), 2, early=early)) as results:
            if not early:
                assert await anext(results) == 0
            with pytest.raises(Fault):
                await anext(results)
        async with aclosing(in_order_async(each(late(1, 0), late(2, 60)), 2, early=early)) as results:
            assert await anext(results) == 1

    asyncio.run(work())
    assert cancelled == ([0, 2] if early else [2])


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MESSAGE_BYTES", 6 * 150**2)
    monkeypatch.setattr(protocol, "_FEWEST_PIXELS", 1)


IMAGE = np.random.default_rng(0).integers(0, 256, (400, 390, 3), np.uint8)


@pytest.mark.usefixtures("small_messages")
def test_servers_share_the_blocks_of_an_image() -> None:
    lock, together, most = threading.Lock(), 0, 0

    def before(*_: Any) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.05)
        with lock:
            together -= 1

    with ExitStack() as stack:
        servers = [stack.enter_context(over_grpc()) for _ in range(2)]
        for server in servers:
            server.before = before
        addresses = [server.address for server in servers]
        with RestorationClient(addresses) as client:
            np.testing.assert_array_equal(client.restore(IMAGE, "derain"), IMAGE)

        async def work() -> np.ndarray:
            async with AsyncRestorationClient(addresses) as client:
                return await client.restore(IMAGE, "derain")

        np.testing.assert_array_equal(asyncio.run(work()), IMAGE)
        assert most == 2 and min(server.asked for server in servers) >= 8


@pytest.mark.usefixtures("small_messages")
def test_one_blocks_failure_is_the_images_and_the_others_are_called_off() -> None:
    broken = Refusal(grpc.StatusCode.INTERNAL, "it broke")
    with over_grpc() as server:
        server.waits = True  # until its caller leaves
        both = threading.Barrier(2)
        server.before = lambda *_: both.wait(60) and None
        twice = [server.address, server.address.replace("localhost", "127.0.0.1")]
        with RestorationClient(twice, retries=0) as client:
            client.info()
            server.failures = [broken]
            with pytest.raises(ServerError, match="it broke"):
                client.restore(IMAGE, "derain", cancelled=lambda: False)
            assert all(server.ended.acquire(timeout=60) for _ in range(2)) and server.asked == 2

        async def work() -> None:
            async with AsyncRestorationClient(twice, retries=0) as client:
                await client.info()
                server.failures = [broken]
                with pytest.raises(ServerError, match="it broke"):
                    await client.restore(IMAGE, "derain", progress=lambda done, due: None)
                assert all(server.ended.acquire(timeout=60) for _ in range(2)) and server.asked == 4

        asyncio.run(work())


@pytest.mark.usefixtures("small_messages")
def test_an_error_waits_for_no_block_that_is_still_computed() -> None:
    over, numbers, both = threading.Event(), count(), threading.Barrier(2)

    def before(request: Any, context: Any) -> None:
        number = next(numbers)
        both.wait(60)
        assert number == 0 or over.wait(60)

    with over_grpc() as server:
        twice = [server.address, server.address.replace("localhost", "127.0.0.1")]
        with RestorationClient(twice, retries=0) as client:
            client.info()
            server.before = before
            server.failures, server.forever = [Refusal(grpc.StatusCode.INTERNAL, "it broke")], True
            with pytest.raises(ServerError, match="it broke"):
                client.restore(IMAGE, "derain")
            assert server.asked == 2
            over.set()


@pytest.mark.usefixtures("small_messages")
def test_no_answer_is_kept_until_python_looks_for_cycles() -> None:
    def answers() -> int:
        return sum(type(found) is InferResult for found in gc.get_objects())

    with over_grpc() as server, RestorationClient(server.address) as client:
        gc.collect()
        gc.disable()
        try:
            client.restore(IMAGE, "derain")
            client.restore(IMAGE[:50, :50], "derain", cancelled=lambda: False)
            assert answers() == 0
        finally:
            gc.enable()
