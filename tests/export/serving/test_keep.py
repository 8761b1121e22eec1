"""A served repository is kept serving: faults are noticed and healed, a stop loses nothing, ready tells the truth."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from helpers.serve import Command, inputs_of, named, until
from helpers.support import Served, read_image
from helpers.toy_repository import ROUTER_CONFIG, ROUTER_MODEL, write_model

from ipt_triton import RestorationClient
from ipt_triton.board import wait_of
from ipt_triton.export.serving import keep, supervise
from ipt_triton.export.serving.errors import GaveUpError, NotReadyError
from ipt_triton.export.serving.keep import Keeper
from ipt_triton.export.serving.server import TritonServer

pytestmark = pytest.mark.server

UNREADY_S, SERVING_S, FOUND_S = 30, 60, 60  # far more than `ipt-benchmark soak` measures: tests share their machine
STUB = "triton_python_backend_stub"
HANGING = ROUTER_MODEL.replace(
    "        scale =",
    """        import pathlib, time
        while task[0] == 3 and pathlib.Path(__file__).with_name("hang").exists():
            time.sleep(0.1)
        scale =""",
)


HANGING_BODY = """    def compute(self, ending, batch):
        import fcntl, time
        try:
            hang = open(Path(__file__).with_name("hang"))
            fcntl.flock(hang, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pass  # told not to, or another instance does
        else:
            while True:
                time.sleep(1)"""


def readiness(url: str) -> tuple[int, str]:
    """Status and words of a page of the health port; 0 where nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "restore", ROUTER_CONFIG, HANGING)
    return tmp_path / "models"


@pytest.fixture
def command(repository: Path) -> Iterator[Command]:
    command = Command(repository)
    command.ready()
    yield command
    (repository / "restore" / "1" / "hang").unlink(missing_ok=True)
    command.process.terminate()
    assert command.process.wait(20) == 0, command.output
    assert command.left() == []


@pytest.mark.slow
def test_whatever_dies_stops_or_hangs_is_noticed_and_serves_again_on_the_same_ports(
    command: Command, repository: Path
) -> None:
    url, grpc_url = command.address("health"), command.address("grpc")
    hang = repository / "restore" / "1" / "hang"

    def hit(name: str, number: signal.Signals) -> None:
        os.kill(named(command.refresh(), name)[-1], number)

    faults: dict[str, Callable[[], None]] = {
        "the process of the model restore is gone": lambda: hit(STUB, signal.SIGKILL),
        "the process of tritonserver is stopped": lambda: hit("tritonserver", signal.SIGSTOP),
        "a picture for derain was not answered": hang.touch,
    }
    for words, fault in faults.items():
        assert readiness(url) == (200, "ready\n")
        fault()
        until(lambda: readiness(url)[0] == 503, UNREADY_S, "unready")
        until(lambda words=words: words in command.output, UNREADY_S, words)
        hang.unlink(missing_ok=True)
        until(lambda: readiness(url)[0] == 200, SERVING_S, "serving again")
        with triton.InferenceServerClient(grpc_url) as client:
            image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
            outputs = [triton.InferRequestedOutput("RESTORED")]
            restored = client.infer("restore", inputs_of(image, 3), outputs=outputs).as_numpy("RESTORED")
        np.testing.assert_array_equal(restored, image)
    command.refresh()


@pytest.mark.slow
def test_a_server_that_fails_again_and_again_is_given_up(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "MOST_RESTARTS", 2)
    model = repository / "restore" / "1" / "model.py"
    # First heartbeats fail, whose pictures are smaller than those of the warm-up; then the model does not load.
    worse = [
        ROUTER_MODEL.replace("        scale =", "        assert len(image) > 8\n        scale ="),
        "import nothing",
    ]
    said: list[str] = []

    def say(line: str) -> None:
        model.write_text(worse[len(said)])
        said.append(line)

    with TritonServer(repository) as server:
        keeper = Keeper(server, say)
        os.kill(next(p for p, (name, _) in server.model_processes().items() if "restore" in name), signal.SIGKILL)
        with pytest.raises(GaveUpError, match=r"2 times within 10 minutes and fails still .*ended by itself"):
            keeper.keep(60)
        assert not server.pids
    assert ["is gone" in said[0], "pictures for" in said[1]] == [True, True]


def photo(seed: int) -> np.ndarray:
    return read_image("parrot")[20 * seed : 20 * seed + 120, 100:240]


@pytest.fixture(scope="class")
def loaded(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The small model behind `ipt-serve`, with a body of which one instance can hang; the last test of the class ends
    it."""
    folder = Path(shutil.copytree(served.repository, tmp_path_factory.mktemp("loaded") / "models"))
    body = folder / "body" / "1" / "model.py"
    start = "    def compute(self, ending, batch):"
    assert start in body.read_text()
    body.write_text(body.read_text().replace(start, HANGING_BODY))
    command = Command(folder)
    command.ready()
    yield command
    command.process.kill()
    command.process.wait()


@pytest.mark.slow
class TestUnderLoad:
    def test_photographs_under_a_body_that_hangs_beside_a_healthy_one_all_come_back_right(
        self, served: Served, loaded: Command
    ) -> None:
        jobs = [(photo(seed), task) for seed in range(3) for task in ("sr_x2", "derain", "denoise_50")]
        with RestorationClient(served.server.grpc_url) as client:
            expected = [client.restore(*job) for job in jobs]
        stop = threading.Event()

        def work(number: int) -> int:
            done = 0
            with RestorationClient(loaded.address("grpc"), retries=12) as client:  # a busy machine starts slowly
                while not stop.is_set():
                    index = (number + done) % len(jobs)
                    np.testing.assert_array_equal(client.restore(*jobs[index]), expected[index])
                    done += 1
            return done

        with ThreadPoolExecutor(6) as pool:
            workers = [pool.submit(work, number) for number in range(6)]
            try:
                time.sleep(2)
                loaded.refresh()
                hang = loaded.repository / "body" / "1" / "hang"
                hang.touch()
                until(lambda: "starting tritonserver again" in loaded.output, FOUND_S, "found")
                hang.unlink()
                until(lambda: readiness(loaded.address("health"))[0] == 200, 60, "serving again")
                time.sleep(1)
            finally:
                stop.set()
            assert min(worker.result(60) for worker in workers) > 0
        assert loaded.output.count("starting tritonserver again") == 1
        assert "a photograph has stood still" in loaded.output

    def test_a_stop_restores_right_or_refuses_as_unavailable(self, served: Served, loaded: Command) -> None:
        with RestorationClient(served.server.grpc_url) as client:
            expected = client.restore(photo(0), "sr_x2")
        statuses: list[str] = []
        over = threading.Event()

        def work(_: int) -> None:
            """Asks again at once, whatever comes, as many new clients would."""
            with triton.InferenceServerClient(loaded.address("grpc")) as client:
                while not over.is_set():
                    try:
                        outputs = [triton.InferRequestedOutput("RESTORED")]
                        answer = client.infer("restore", inputs_of(photo(0), 0), outputs=outputs)
                        np.testing.assert_array_equal(answer.as_numpy("RESTORED"), expected)
                        statuses.append("right")
                    except triton.InferenceServerException as error:
                        busy = wait_of(error.message()) is not None  # on slow machines
                        statuses.append("busy" if busy else f"{error.status()}: {error.message()}")
                        time.sleep(0.01)

        loaded.refresh()
        with ThreadPoolExecutor(6) as pool:
            workers = [pool.submit(work, number) for number in range(6)]
            try:
                until(lambda: statuses.count("right") > 6, 60, "restoring")
                before = len(statuses)
                loaded.process.terminate()
                url = loaded.address("health")
                until(lambda: readiness(url)[0] != 200, UNREADY_S, "unready")
                assert loaded.process.wait(20) == 0
                time.sleep(0.2)
            finally:
                over.set()
            for worker in workers:
                worker.result(20)
        assert set(statuses[:before]) <= {"right", "busy"}
        others = set(statuses) - {"right", "busy"}
        assert any("the server is stopping" in status for status in others)
        assert all(status.startswith("StatusCode.UNAVAILABLE") for status in others), others
        assert "right" in statuses[before:]  # those under way
        assert loaded.left() == []


def test_a_process_that_dies_before_it_has_begun_ends_the_start(repository: Path) -> None:
    stub = repository / "restore" / STUB  # Triton runs this one for the model
    stub.write_text("#!/bin/sh\nkill -9 $$\n")
    stub.chmod(0o755)
    with pytest.raises(NotReadyError, match="a model died while tritonserver started: start it again"):
        TritonServer(repository).start(60)


@pytest.mark.slow
def test_an_overloaded_server_is_not_taken_for_a_dead_one(served: Served) -> None:
    large = read_image("parrot")[:400, :400]
    said: list[str] = []
    with TritonServer(served.repository) as server, ThreadPoolExecutor(16) as pool:
        keeper = Keeper(server, said.append)
        assert keeper.unready() == "starting"
        keeper.begin()  # what `ipt-serve` does before it says ready
        assert keeper.unready() is None
        keeping = threading.Thread(target=keeper.keep, args=(60,))
        keeping.start()
        with RestorationClient(server.grpc_url, timeout=120) as client:
            answers = [pool.submit(client.restore, large, "derain") for _ in range(16)]
            assert len({answer.result().tobytes() for answer in answers}) == 1
        server.interrupt()
        keeping.join()
    assert said == []
    assert not list(supervise.SHARED_MEMORY.glob(f"{server.region_prefix}*"))
