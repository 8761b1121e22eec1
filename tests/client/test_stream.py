"""Progress and cancelling, through a real server and the whole pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.fake_repository import write_fake_repository
from helpers.serve import check_that_nothing_is_computed_any_more, computed
from helpers.support import Served, read_image

from ipt_triton import (
    AsyncRestorationClient,
    Cancelled,
    InvalidRequest,
    Photo,
    RequestTimeout,
    RestorationClient,
    write_photo,
)
from ipt_triton.client.stream import Tally
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tiling import count_patches

pytestmark = pytest.mark.server

LARGE = np.zeros((960, 1000, 3), np.uint8)


def photo(height: int, width: int) -> np.ndarray:
    return read_image("parrot")[:height, :width]


class Heard:
    """What progress tells."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.began = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if done:
            self.began.set()

    def check(self, total: int) -> None:
        assert self.told[0] == (0, total) and self.told[-1] == (total, total)
        done = [done for done, _ in self.told]
        assert done == sorted(set(done)) and len(done) > 3
        assert {of for _, of in self.told} == {total}


def test_progress_goes_from_nothing_to_all_over_the_stages_and_the_picture_is_the_same(
    served: Served, client: RestorationClient
) -> None:
    image, heard = photo(250, 200), Heard()
    restored = client.restore(image, "derain,sr_x2", progress=heard)
    np.testing.assert_array_equal(restored, client.restore(image, "derain,sr_x2"))
    heard.check(count_patches(250, 200, scales=(1, 2)))

    async def work() -> np.ndarray:
        async with AsyncRestorationClient(served.server.grpc_url) as asynchronous:
            return await asynchronous.restore(image, [3, 0], progress=again)

    again = Heard()
    np.testing.assert_array_equal(asyncio.run(work()), restored)
    again.check(heard.told[0][1])


def test_progress_counts_all_blocks_and_views(client: RestorationClient) -> None:
    image, heard = photo(420, 480), Heard()
    assert 16 * image.shape[0] * image.shape[1] > 2_000_000  # the server's limit
    restored = client.restore(image, "sr_x4", progress=heard)
    heard.check(heard.told[0][1])
    assert heard.told[0][1] > count_patches(*image.shape[:2])  # what is computed twice at the blocks' edges
    np.testing.assert_array_equal(restored, client.restore(image, "sr_x4"))
    views = Heard()
    client.restore(photo(60, 70), "derain", tta=True, progress=views)
    views.check(8 * count_patches(60, 70))


def test_an_error_comes_with_its_words_and_its_kind(client: RestorationClient) -> None:
    client._info = replace(client.info(), max_patches=10**6)
    with pytest.raises(InvalidRequest, match="makes 16384 patches at STRIDE 1; at most 6944 are allowed"):
        client.restore(np.zeros((175, 175, 3), np.uint8), "derain", 1, 2, progress=Heard())


def test_a_caller_who_gives_up_ends_the_work_within_the_chunks_that_are_under_way(
    served: Served, client: RestorationClient
) -> None:
    heard, before = Heard(), computed(served)
    with pytest.raises(Cancelled, match="the restoration was cancelled"):
        client.restore(LARGE, "derain", progress=heard, cancelled=heard.began.is_set)
    check_that_nothing_is_computed_any_more(served, before, LARGE)
    with pytest.raises(Cancelled):
        client.restore(LARGE, "derain", cancelled=lambda: True)
    np.testing.assert_array_equal(client.restore(photo(9, 9), "derain", cancelled=lambda: False).shape, (9, 9, 3))


def test_cancelling_the_coroutine_cancels_on_the_server(served: Served) -> None:
    before = computed(served)

    async def work() -> None:
        heard = Heard()
        async with AsyncRestorationClient(served.server.grpc_url) as client:
            restoring = asyncio.ensure_future(client.restore(LARGE, "derain", progress=heard))
            while not heard.began.is_set():
                await asyncio.sleep(0.01)
            restoring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await restoring
            assert (await client.restore(photo(9, 9), "derain", progress=heard)).shape == (9, 9, 3)

    asyncio.run(work())
    check_that_nothing_is_computed_any_more(served, before, LARGE)


def test_a_stream_over_the_timeout_is_given_up_and_frees_the_server(served: Served) -> None:
    before = computed(served)
    with (
        RestorationClient(served.server.grpc_url, timeout=0.5, retries=0) as client,
        pytest.raises(RequestTimeout, match=r"within 0\.5 s"),
    ):
        client.restore(LARGE, "derain", progress=Heard())
    check_that_nothing_is_computed_any_more(served, before, LARGE)


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(write_fake_repository(tmp_path_factory.mktemp("plain") / "models")) as server:
        yield server


def test_a_server_that_tells_no_progress_restores_all_the_same(plain_server: TritonServer) -> None:
    image, heard = np.random.default_rng(0).integers(0, 256, (390, 310, 3), np.uint8), Heard()
    with RestorationClient(plain_server.grpc_url) as client:
        np.testing.assert_array_equal(client.restore(image, "derain", progress=heard), image)
    heard.check(heard.told[0][1])  # a step for each block

    async def work() -> np.ndarray:
        async with AsyncRestorationClient(plain_server.grpc_url) as asynchronous:
            return await asynchronous.restore(image, "derain", progress=Heard())

    np.testing.assert_array_equal(asyncio.run(work()), image)


def test_what_is_told_never_falls_though_a_part_is_asked_for_again() -> None:
    heard = Heard()
    tally = Tally(30, heard)
    first, second = tally.part(), tally.part()
    for part, done in ((first, 5), (second, 1), (first, 0), (first, 8), (second, 2), (first, 10), (second, 20)):
        part(done)
    assert [done for done, _ in heard.told] == [0, 5, 6, 9, 10, 12, 30]


def on_a_terminal(*arguments: object) -> tuple[subprocess.Popen[bytes], int]:
    """The command with standard error on a terminal, and the terminal's other end."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "ipt_triton.client.restore", *map(str, arguments)],
        stderr=terminal,
        stdout=subprocess.PIPE,
    )
    os.close(terminal)
    return process, controller


def read_until(controller: int, ended: Callable[[str], bool]) -> str:
    """What is drawn until that is so, or the command ends."""
    drawn = ""
    with contextlib.suppress(OSError):  # it has ended
        while not ended(drawn):
            drawn += os.read(controller, 10_000).decode()
    return drawn


def test_the_bar_moves_within_a_photo(served: Served, tmp_path: Path) -> None:
    write_photo(Photo(photo(420, 480)), tmp_path / "photo.png")
    process, controller = on_a_terminal(
        tmp_path / "photo.png", "-t", "derain,denoise_30", "-o", tmp_path / "out", "--url", served.server.grpc_url
    )
    drawn = read_until(controller, lambda drawn: False)
    os.close(controller)
    assert process.wait() == 0
    shares = {int(share) for share in re.findall(r"MP/s, photo\.png (\d+)%", drawn)}
    assert len(shares) > 3 and max(shares) <= 100
    assert "1/1" in drawn


def test_ctrl_c_within_a_photo_ends_the_work_on_the_server(served: Served, tmp_path: Path) -> None:
    write_photo(Photo(LARGE), tmp_path / "photo.png")
    before = computed(served)
    process, controller = on_a_terminal(
        tmp_path / "photo.png", "-t", "derain", "-o", tmp_path / "out", "--url", served.server.grpc_url
    )
    read_until(controller, lambda drawn: "MP/s, photo.png" in drawn)
    process.send_signal(signal.SIGINT)
    said = read_until(controller, lambda drawn: False)
    os.close(controller)
    assert "1 not reached; interrupted" in said and process.wait() == 130
    check_that_nothing_is_computed_any_more(served, before, LARGE)
    assert not (tmp_path / "out").exists()
