"""The work of a batch, without a server."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ipt_triton.client import work
from ipt_triton.client.batch import Job, Plan
from ipt_triton.client.work import Ahead, Outcome, Progress, Record, run_batch


def test_ctrl_c_is_obeyed_though_another_thread_gets_the_signal(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    jobs = Ahead(Plan((str(tmp_path / "photo.png"),), tmp_path / "out").jobs())
    record = Record(quiet=True, log=io.StringIO(), keep=True)
    giving_up = threading.Event()

    def restore(job: object) -> Outcome:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return Outcome("photo.png", "", "not reached" if giving_up.wait(30) else "restored")

    with Progress(lambda: jobs.total) as progress:
        ended = run_batch(jobs, restore, record, progress, 1, giving_up.set)
    assert (ended.interrupted, record.summary()) == (True, "1 not reached")


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def job(number: int, skipped: bool = False) -> Job:
    return Job(Path(f"{number}.png"), Path(f"{number}_out.png"), skipped)


def restored(job: Job) -> Outcome:
    return Outcome.of(job, "restored")


def test_a_photo_whose_line_is_not_taken_is_counted_once() -> None:
    jobs, record = Ahead(map(job, range(5))), Record(quiet=True, log=Full(), keep=True)
    with Progress(lambda: jobs.total) as progress:
        ended = run_batch(jobs, restored, record, progress, 1, lambda: None)
    assert ended.lost is not None and record.kept is not None
    assert sorted(outcome.input for outcome in record.kept) == [f"{number}.png" for number in range(5)]
    assert record.summary() == "1 restored, 4 not reached"


def test_ctrl_c_ends_the_search_for_photos_that_are_not_there_yet() -> None:
    asked = threading.Event()

    def found() -> Iterator[Job]:
        yield job(0, skipped=True)
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(60)
        for number in range(1, 100):
            yield job(number, skipped=True)

    jobs, record = Ahead(found(), 1), Record(quiet=True, log=io.StringIO(), keep=False)
    with Progress(lambda: jobs.total) as progress:
        ended = run_batch(jobs, restored, record, progress, 1, asked.set)
    assert ended.interrupted and sum(record.counts.values()) < 5


def test_ctrl_c_before_the_first_photo_is_handed_out_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    handing_out: list[threading.Thread] = []

    class Late(threading.Thread):
        """Runs only when the main thread was interrupted in waiting for that."""

        def start(self) -> None:
            handing_out.append(self)
            raise KeyboardInterrupt

    def close() -> None:
        threading.Thread.start(handing_out[0])
        handing_out[0].join()

    pretended: Any = SimpleNamespace(**{**vars(threading), "Thread": Late})
    monkeypatch.setattr(work, "threading", pretended)
    waited: list[bool] = []

    def wait(event: threading.Event) -> None:
        waited.append(event.wait(10))

    monkeypatch.setattr(work, "_wait", wait)
    jobs, record = Ahead(map(job, range(3))), Record(quiet=True, log=io.StringIO(), keep=False)
    with Progress(lambda: jobs.total) as progress:
        ended = run_batch(jobs, restored, record, progress, 1, close)
    assert (ended.interrupted, record.summary(), waited) == (True, "3 not reached", [True])
