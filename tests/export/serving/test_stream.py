"""`restore_stream`, which tells how far it is: as any client would ask it, and what holds for it as for the router."""

from __future__ import annotations

import queue
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import tritonclient.grpc as triton
from helpers.serve import Command, until
from helpers.support import Served, read_image
from tritonclient.utils import InferenceServerException

from ipt_triton import RestorationClient, ServerUnavailable
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.service import ROUTERS, STREAM
from ipt_triton.tiling import count_patches

pytestmark = pytest.mark.server


class Stream:
    """A stream of its own connection."""

    def __init__(self, connection: triton.InferenceServerClient) -> None:
        self._connection = connection
        self.messages: queue.SimpleQueue[tuple[triton.InferResult | None, Exception | None]] = queue.SimpleQueue()

    def ask(self, image: np.ndarray, task: str) -> None:
        inputs = [triton.InferInput("IMAGE", list(image.shape), "UINT8"), triton.InferInput("TASK", [1], "BYTES")]
        inputs[0].set_data_from_numpy(np.ascontiguousarray(image))
        inputs[1].set_data_from_numpy(np.array([task.encode()], object))
        outputs = [triton.InferRequestedOutput(name) for name in ("PROGRESS", "RESTORED")]
        self._connection.async_stream_infer(STREAM, inputs, outputs=outputs)

    def progress(self) -> tuple[int, int]:
        """The next message, which must be progress."""
        result, error = self.messages.get(timeout=60)
        assert result is not None and result.as_numpy("RESTORED") is None, error
        done, due = result.as_numpy("PROGRESS")
        return int(done), int(due)

    def error(self) -> InferenceServerException:
        _, error = self.messages.get(timeout=60)
        assert isinstance(error, InferenceServerException)
        return error


@contextmanager
def stream(url: str) -> Iterator[Stream]:
    with triton.InferenceServerClient(url) as connection:
        made = Stream(connection)
        connection.start_stream(lambda result, error: made.messages.put((result, error)))
        yield made
        connection.stop_stream(cancel_requests=True)


def photo(height: int, width: int) -> np.ndarray:
    return read_image("parrot")[:height, :width]


def under_way(metrics_url: str) -> float:
    with urllib.request.urlopen(metrics_url) as page:
        lines = page.read().decode().splitlines()
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith("ipt_photographs_under_way{"))


def await_calm(server: TritonServer) -> None:
    deadline = time.monotonic() + 30
    while under_way(server.metrics_url) or server.board.under_way():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_progress_comes_before_the_picture_which_comes_last_and_once(served: Served, client: RestorationClient) -> None:
    image = photo(200, 210)
    due = count_patches(200, 210, scales=(1, 2))
    with stream(served.server.grpc_url) as asked:
        asked.ask(image, "derain,sr_x2")
        told = [asked.progress()]
        while told[-1][0] < due:
            told.append(asked.progress())
        result, _ = asked.messages.get(timeout=60)
        assert asked.messages.empty()
    assert told[0] == (0, due) and told == sorted(told) and {of for _, of in told} == {due}
    assert result is not None and result.as_numpy("PROGRESS") is None
    np.testing.assert_array_equal(result.as_numpy("RESTORED"), client.restore(image, "derain,sr_x2"))


def test_what_is_wrong_with_a_request_is_said_in_the_routers_words(served: Served) -> None:
    with stream(served.server.grpc_url) as asked:
        asked.ask(photo(9, 9), "derain,sharpen")
        assert "stage 2 of 2: TASK 'sharpen' is not a task of this server" in asked.error().message()


def test_many_callers_who_close_their_streams_leave_nothing_behind_and_others_are_served(
    served: Served, client: RestorationClient, tmp_path: Path
) -> None:
    """A server of its own, which is healed: Triton 2.51 may die of a request that ends as its caller leaves."""
    large, small = np.zeros((960, 1000, 3), np.uint8), photo(100, 100)
    expected = client.restore(small, "derain")
    server = Command(copytree(served.repository, tmp_path / "models"))
    server.ready()
    url = server.address("grpc")

    def leave(number: int) -> None:
        with suppress(InferenceServerException), stream(url) as asked:
            asked.ask(large, "derain")
            if number % 2:
                with suppress(queue.Empty):
                    asked.messages.get(timeout=5)

    with RestorationClient(url, retries=40) as patient:

        def is_right() -> None:
            restored = patient.restore(small, "derain", progress=lambda done, due: None)
            np.testing.assert_array_equal(restored, expected)

        def is_calm() -> bool:
            with suppress(OSError):  # while it is healed
                return under_way(server.address("metrics")) == 0
            return False

        with ThreadPoolExecutor(6) as pool:
            leaving = [pool.submit(leave, number) for number in range(24)]
            for _ in range(4):
                is_right()
            for each in leaving:
                each.result()
        until(is_calm, 90, "nothing under way")
        is_right()
    server.refresh()
    server.process.terminate()
    assert server.process.wait(60) == 0, server.output
    assert server.left() == []


def test_a_server_that_is_told_to_stop_answers_the_streams_under_way_first(
    served: Served, client: RestorationClient
) -> None:
    image = photo(300, 300)
    expected = client.restore(image, "derain")
    with (
        TritonServer(served.repository) as server,
        ThreadPoolExecutor() as pool,
        RestorationClient(server.grpc_url, retries=0) as connection,
    ):
        answers = [pool.submit(connection.restore, image, "derain", progress=lambda done, due: None) for _ in range(3)]
        while under_way(server.metrics_url) < len(answers):
            assert not any(answer.done() for answer in answers)
        stopping = pool.submit(server.stop, grace=60)
        while not (server._directory / "stopping").exists():
            time.sleep(0.01)
        with pytest.raises(ServerUnavailable, match="the server is stopping; ask another one, or again"):
            connection.restore(image, "derain", progress=lambda done, due: None)
        assert all(np.array_equal(answer.result(), expected) for answer in answers)
        stopping.result()


@pytest.fixture(scope="module")
def narrow(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One that takes one photograph of each kind at a time, and lets one more wait."""
    folder = tmp_path_factory.mktemp("narrow")
    options = ServingOptions(router_instances=1, stream_instances=1, max_waiting=1, max_wait_ms=0)
    manifest = replace(served.manifest, runtime="openvino")
    write_repository(served.repository.parent / "parts", manifest, folder / "models", options)
    with TritonServer(folder / "models") as server:
        yield server


def test_a_full_queue_of_streams_refuses_as_unavailable_and_the_rest_is_right(
    served: Served, client: RestorationClient, narrow: TritonServer
) -> None:
    image = photo(200, 200)
    expected = client.restore(image, "derain")

    def once(_: int) -> np.ndarray | str:
        try:
            with RestorationClient(narrow.grpc_url, retries=0) as hasty:
                return hasty.restore(image, "derain", progress=lambda done, due: None)
        except ServerUnavailable as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(once, range(6)))
    refused = [answer for answer in answers if isinstance(answer, str)]
    assert refused and all("maximum queue size" in text for text in refused)
    restored = [answer for answer in answers if not isinstance(answer, str)]
    assert restored and all(np.array_equal(answer, expected) for answer in restored)
    with RestorationClient(narrow.grpc_url) as patient:
        restored = [patient.restore(image, "derain", progress=lambda done, due: None)]
    np.testing.assert_array_equal(restored[0], expected)


def test_the_two_routers_share_a_board_and_each_has_a_row_of_its_own(served: Served, narrow: TritonServer) -> None:
    image = np.zeros((800, 800, 3), np.uint8)
    with stream(narrow.grpc_url) as asked, ThreadPoolExecutor() as pool, RestorationClient(narrow.grpc_url) as plain:
        asked.ask(image, "derain")
        asked.progress()
        answer = pool.submit(plain.restore, image, "denoise_30")
        deadline = time.monotonic() + 30
        while len(narrow.board.under_way()) < 2:
            assert time.monotonic() < deadline and not answer.done()
            time.sleep(0.01)
        tasks = {slot: row.task for slot, row in narrow.board.under_way().items()}
        assert tasks == {0: 4, 1: 3}
        answer.result()


def test_a_repository_may_do_without_it(served: Served, tmp_path: Path) -> None:
    parts = served.repository.parent / "parts"
    names = write_repository(parts, served.manifest, tmp_path / "models", ServingOptions(stream_instances=0))
    assert STREAM not in names and set(ROUTERS) - set(names) == {STREAM}
    write_repository(parts, served.manifest, tmp_path / "models", ServingOptions())
    assert (tmp_path / "models" / STREAM / "1" / "router.py").is_file()
    write_repository(parts, served.manifest, tmp_path / "models", ServingOptions(stream_instances=0))
    assert not (tmp_path / "models" / STREAM).exists()
