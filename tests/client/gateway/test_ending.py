"""A gateway that is told to stop: nothing new, time for what is under way, and jobs that the next one goes on with."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import uvicorn
from helpers import live_gateway
from helpers.gateway import application, picture
from helpers.live_gateway import Halting
from helpers.serve import until

from ipt_triton.client.gateway import command, ending
from ipt_triton.client.gateway.serving import listen, make_server

LONG_S = 600.0
"""A grace that no test lasts."""


@dataclass
class Running:
    """A gateway whose photos stand still until `going` is set."""

    http: httpx2.Client
    server: uvicorn.Server
    thread: threading.Thread
    going: threading.Event

    def tell(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    def make_job(self) -> str:
        answer = self.http.post("/v1/jobs?task=sr_x2", content=picture())
        assert answer.status_code == 202, answer.text
        return str(answer.headers["Location"])

    def until_running(self, jobs: int, photos: int) -> None:
        page = f"\nipt_gateway_under_way {photos:.1f}\n", f'ipt_gateway_jobs{{state="running"}} {jobs:.1f}\n'
        until(lambda: all(line in self.http.get("/metrics").text for line in page), 30, "photos under way")

    def ends(self) -> bool:
        self.thread.join(60)
        return not self.thread.is_alive()


@contextmanager
def running(folder: Path, grace: float) -> Iterator[Running]:
    going = threading.Event()
    with application(folder, Halting(going)) as app, listen("127.0.0.1", 0) as place:
        server = make_server(app, grace)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            until(lambda: server.started, 60, "start")
            with httpx2.Client(base_url=f"http://127.0.0.1:{place.getsockname()[1]}", timeout=60) as http:
                yield Running(http, server, thread, going)
        finally:
            going.set()
            server.should_exit = server.force_exit = True
            thread.join()


@pytest.fixture(autouse=True)
def small_photos_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_gateway, "LARGE_PIXELS", 16 * 16)


def test_what_is_under_way_is_finished_and_fetched_and_nothing_new_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_FETCH_S", LONG_S)
    with running(tmp_path, LONG_S) as gateway, ThreadPoolExecutor() as pool:
        until(lambda: gateway.http.get("/readyz").status_code == 200, 30, "ready")
        job = gateway.make_job()
        restored = pool.submit(gateway.http.post, "/v1/restore?task=sr_x2", content=picture())
        gateway.until_running(jobs=1, photos=2)
        events = pool.submit(gateway.http.get, f"{job}/events")
        gateway.tell()

        not_ready = gateway.http.get("/readyz")
        assert not_ready.status_code == 503 and "stopping" in not_ready.json()["detail"]
        for address in ("/v1/restore?task=sr_x2", "/v1/jobs?task=sr_x2"):
            refused = gateway.http.post(address, content=picture())
            assert refused.status_code == 503 and "stopping" in refused.json()["detail"]
            assert int(refused.headers["Retry-After"]) >= 1
        assert gateway.http.get("/healthz").status_code == 200
        assert gateway.http.get(job).json()["state"] == "running"

        gateway.going.set()
        assert restored.result().status_code == 200
        told = [line for line in events.result().text.splitlines() if line.startswith("data: ")]
        assert json.loads(told[-1].removeprefix("data: "))["state"] == "done"
        assert gateway.http.get(f"{job}/result").content == restored.result().content
        assert gateway.ends()


def test_what_takes_longer_is_told_so_or_begun_again_by_the_next_gateway(tmp_path: Path) -> None:
    with running(tmp_path, 0.5) as gateway, ThreadPoolExecutor() as pool:
        job = gateway.make_job()
        restored = pool.submit(gateway.http.post, "/v1/restore?task=sr_x2", content=picture())
        gateway.until_running(jobs=1, photos=2)
        gateway.tell()
        assert gateway.ends()
        answer = restored.result()
        assert answer.status_code == 503 and "stopped before the photo was done" in answer.json()["detail"]
        assert answer.headers["Retry-After"]
    with running(tmp_path, LONG_S) as gateway:
        gateway.going.set()
        until(lambda: gateway.http.get(job).json()["state"] == "done", 30, "done by the next gateway")


def test_a_gateway_without_work_ends_before_its_grace_and_one_that_is_told_twice_too(tmp_path: Path) -> None:
    with running(tmp_path / "idle", LONG_S) as gateway:
        gateway.tell()
        assert gateway.ends()
    with running(tmp_path / "twice", LONG_S) as gateway:
        gateway.make_job()
        gateway.until_running(jobs=1, photos=1)
        gateway.tell()
        time.sleep(0.3)
        assert gateway.thread.is_alive()
        gateway.tell()
        assert gateway.ends()


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon", ""])
def test_a_grace_that_is_none_is_refused_in_a_sentence(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main([f"--grace={seconds}"])
    assert f"{seconds!r} is not allowed: give seconds, 0 or more" in capsys.readouterr().err
