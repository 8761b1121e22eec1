"""ipt-batch with a real Ray of two processes: drivers and workers that are killed lose nothing and do nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import s3fs
from helpers.pretended import Pretended, over_grpc
from helpers.store import object_store

from ipt_triton.client.photo import Photo, read_photo, write_photo

COMMAND = [sys.executable, "-c", "import sys, ipt_triton.commands as c; sys.exit(c.batch())"]
KILLER = 111
"""The first sample of a photo that kills the process that restores it."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store() -> Iterator[s3fs.S3FileSystem]:
    with object_store() as found:
        yield found


# The address is one of this machine alone, so that nothing asks how others would reach it.
START = """
import sys, ray
ray.init("local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.2", object_store_memory=2**27)
print("address", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray in a process of its own, so that what Ray does to its drivers is not done to the tests."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as Ray sets it for itself
    words = [sys.executable, "-c", START]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
        process.stdin.close()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.fixture
def pretended() -> Iterator[Pretended]:
    with over_grpc() as told:
        yield told


def picture(number: int) -> np.ndarray:
    return np.full((9, 8, 3), number, np.uint8)


def arguments(pretended: Pretended, source: object, target: object, report: Path) -> list[str]:
    words = [source, target, "-t", "derain", "--url", pretended.address, "--every", 0, "--json", report]
    return list(map(str, words))


def run(words: list[str]) -> tuple[int, str]:
    """The command's exit status, and what it says on standard error."""
    ended = subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, text=True, timeout=240)
    return ended.returncode, ended.stderr


def wait_for(ready: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.1)


def kill_owner(context: Any, server: Pretended) -> None:
    """Kill the process at the other end of a request's connection.

    Its port alone does not tell which that is: others may have connections of the same port to other servers.
    """
    ends = int(context.peer().rpartition(":")[2]), int(server.address.rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        both = [end.port for end in (connection.laddr, connection.raddr) if end]
        if both == [*ends] and connection.pid not in (None, os.getpid()):
            os.kill(connection.pid, signal.SIGKILL)


def test_after_a_killed_driver_the_next_one_does_the_rest_from_store_to_store(
    cluster: str, pretended: Pretended, store: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(24):
        write_photo(Photo(picture(number)), tmp_path / "in" / f"{number:02}.png")
    store.put(str(tmp_path / "in"), "archive/photos", recursive=True)
    pretended.before = lambda *_: time.sleep(0.2)
    words = arguments(pretended, "s3://archive/photos", "s3://archive/restored", tmp_path / "report.json")
    words += ["--workers", "1", "--ray", cluster]
    with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE) as driver:
        manifest = "archive/restored/_manifest"
        wait_for(lambda: driver.poll() is not None or (store.exists(manifest) and len(store.ls(manifest)) > 4))
        driver.kill()
        assert driver.wait() == -signal.SIGKILL, driver.stderr and driver.stderr.read()
    before = -1
    while before < pretended.asked:  # its workers may have begun something
        before = pretended.asked
        time.sleep(1)
    status, told = run(words)
    assert status == 0, told
    counts = json.loads((tmp_path / "report.json").read_text())["counts"]
    assert counts["restored"] + counts["skipped"] == 24 and counts["skipped"] >= 4
    assert pretended.asked - before == counts["restored"]
    keys = {key for key in store.find("archive/restored") if not key.endswith(".parquet")}
    assert keys == {f"archive/restored/{number:02}.png" for number in range(24)}
    for number in range(24):
        made = read_photo(store.cat_file(f"archive/restored/{number:02}.png"))
        np.testing.assert_array_equal(made.pixels, picture(number))
    rows = [row for key in store.find("archive/restored/_manifest") for row in rows_of(store.cat_file(key))]
    assert Counter(row["target"] for row in rows) == Counter(f"{number:02}.png" for number in range(24))


def rows_of(data: bytes) -> list[dict[str, Any]]:
    return list(parquet.read_table(pa.BufferReader(data)).to_pylist())


def test_a_worker_that_is_killed_loses_nothing_and_a_photo_that_kills_workers_is_set_aside(
    pretended: Pretended, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(8):
        write_photo(Photo(picture(number)), tmp_path / "in" / f"{number}.png")
    write_photo(Photo(picture(KILLER)), tmp_path / "in" / "killer.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")

    def before(request: Any, context: Any) -> None:
        if KILLER in (request.raw_input_contents[0][0], request.raw_input_contents[1][0]):
            kill_owner(context, pretended)

    pretended.before = before
    words = arguments(pretended, tmp_path / "in", tmp_path / "out", tmp_path / "report.json")
    status, told = run([*words, "--workers", "2"])
    assert status == 1, told
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"restored": 8, "failed": 2}
    assert "killer.png: the process that restored it died 2 times" in told and "bad.png is not an image" in told
    rows = {Path(row["source"]).name: row for row in parquet.read_table(tmp_path / "out" / "_manifest").to_pylist()}
    assert len(rows) == 10 and "died 2 times" in rows["killer.png"]["error"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*(f"{n}.png" for n in range(8)), "_manifest"}
    for number in range(8):
        np.testing.assert_array_equal(read_photo(tmp_path / "out" / f"{number}.png").pixels, picture(number))
