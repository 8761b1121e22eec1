"""The work of a batch, without a server."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path

from ipt_triton.client.batch import Plan
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
