"""Jobs: from the queue to the result, watched, cancelled, expired, private, and taken up again after a restart."""

from __future__ import annotations

import asyncio
import io
import json
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.gateway import Repeating, gateway, opened, picture

from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.client.gateway.codec import Described
from ipt_triton.client.gateway.job import Job
from ipt_triton.client.gateway.keys import new_key
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.turns import Turn


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (met := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return met


def make(http: TestClient, query: str = "task=sr_x2", photo: bytes | None = None, **options: Any) -> dict[str, Any]:
    answer = http.post(f"/v1/jobs?{query}", content=photo or picture(), **options)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == job["links"]["self"]
    return job


def ended(http: TestClient, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = http.get(job["links"]["self"], **options).json()
        return found if found["state"] in ("done", "failed", "cancelled") else None

    found: dict[str, Any] = until(look)
    return found


def hold(server: Repeating) -> asyncio.Event:
    server.held = asyncio.Event()
    return server.held


def release(http: TestClient, server: Repeating) -> None:
    assert http.portal and server.held
    http.portal.call(server.held.set)


def test_a_job_gives_what_a_direct_restore_gives(http: TestClient, server: Repeating):
    files, data = {"image": ("cat.png", picture())}, {"task": "sr_x2"}
    job = http.post("/v1/jobs", files=files, data=data).json()
    done = ended(http, job)
    assert done["state"] == "done" and done["error"] is None and done["name"] == "cat.png"
    assert (done["input"], done["output"]["width"]) == ({"width": 60, "height": 40}, 120)
    assert done["tiles_done"] == done["tiles"] == 4
    result = http.get(job["links"]["result"])
    assert result.content == http.post("/v1/restore", files=files, data=data).content
    assert len(result.content) == done["output"]["bytes"]
    assert 'filename="cat_sr_x2.png"' in result.headers["Content-Disposition"]


def test_a_result_comes_in_other_formats_from_the_same_pixels(http: TestClient, server: Repeating):
    job = make(http, "task=sr_x2&format=jpg&quality=20")
    ended(http, job)
    lossless = np.asarray(opened(http.get(job["links"]["result"] + "?format=png").content))
    np.testing.assert_array_equal(lossless, np.asarray(opened(picture())).repeat(2, 0).repeat(2, 1))
    better = http.get(job["links"]["result"] + "?quality=100").content
    assert len(better) > len(http.get(job["links"]["result"]).content)
    assert http.get(job["links"]["result"] + "?format=gif").status_code == 422


def test_before_and_after_are_pictures_that_browsers_show(http: TestClient, server: Repeating):
    job = make(http, "task=sr_x2", picture("TIFF", mode="CMYK"))
    assert ended(http, job)["state"] == "done"
    for which, size in (("before", (60, 40)), ("after", (120, 80))):
        shown = http.get(job["links"][which])
        assert opened(shown.content).size == size and shown.headers["Content-Type"] == "image/png"


def test_events_begin_at_once_and_end_with_the_job(http: TestClient, server: Repeating):
    hold(server)
    job = make(http)
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(http.get, job["links"]["events"])
        until(lambda: server.asked)
        time.sleep(0.3)
        release(http, server)
    lines = stream.result().text.splitlines()
    states = [json.loads(line.removeprefix("data: "))["state"] for line in lines if line.startswith("data: ")]
    assert states[-2:] == ["running", "done"] and lines[0] == "event: job"


def test_seconds_that_are_left_are_told_from_a_second_of_tiles_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("ipt_triton.client.gateway.job.time.monotonic", lambda: now)
    turn = Turn("", 1, 0)
    turn.begun.set()
    job = Job(
        id="",
        owner="",
        account="",
        request_id="",
        uploaded="",
        options=Options(task="derain"),
        described=Described("png", 1, 1),
        folder=tmp_path,
        needs=0,
        created=0,
        expires=0,
        turn=turn,
    )
    told = []
    for seconds, done in ((0, 0), (60, 10), (0.5, 12), (0.5, 20), (2, 40), (6, 90)):  # a minute until the photo is sent
        now += seconds
        job.progress(done, 100)
        told.append(job.eta_s)
    assert told == [None, None, None, 8.0, 6.0, 1.1]


def test_a_failed_job_tells_its_problem_and_has_no_result(http: TestClient, server: Repeating):
    server.failure = ServerUnavailable("gone")
    job = make(http)
    failed = ended(http, job)
    assert failed["state"] == "failed" and failed["error"]["status"] == 503
    assert http.get(job["links"]["result"]).status_code == 409


def test_deleting_a_running_job_frees_the_server_and_the_disk(http: TestClient, server: Repeating):
    hold(server)
    job = make(http)
    until(lambda: server.asked)
    assert http.get(job["links"]["result"]).status_code == 409
    assert http.delete(job["links"]["self"]).status_code == 204
    assert server.cancelled == 1
    assert http.get(job["links"]["self"]).json()["state"] == "cancelled"
    assert http.get(job["links"]["result"]).status_code == 410


def test_deleting_a_job_that_is_done_removes_it(http: TestClient, server: Repeating):
    job = make(http)
    ended(http, job)
    assert http.delete(job["links"]["self"]).status_code == 204
    assert http.get(job["links"]["self"]).status_code == 404


def test_the_queue_is_fair_and_tells_positions(tmp_path: Path):
    first, second = new_key("first"), new_key("second")
    keys = f"{first[1]};{second[1]}"
    with gateway(tmp_path, keys=keys, slots=1) as (http, server):
        one, two = ({"Authorization": f"Bearer {key}"} for key, _ in (first, second))
        hold(server)
        jobs = [make(http, photo=picture(width=50 + n), headers=one) for n in range(3)]
        until(lambda: server.asked)
        other = make(http, photo=picture(width=90), headers=two)
        positions = [http.get(job["links"]["self"], headers=one).json()["position"] for job in jobs]
        assert positions == [0, 1, 2] and http.get(other["links"]["self"], headers=two).json()["position"] == 0
        assert http.get(other["links"]["self"], headers=one).status_code == 404
        release(http, server)
        ended(http, jobs[2], headers=one)
        assert [width for _, width, _ in server.asked] == [50, 90, 51, 52]


def test_jobs_expire_with_their_files(tmp_path: Path):
    with gateway(tmp_path, retention_s=0.3) as (http, _):
        job = make(http)
        until(lambda: http.get(job["links"]["self"]).status_code == 410)
        assert not list((tmp_path / "jobs").iterdir())
        assert http.get(job["links"]["result"]).status_code == 410
        until(lambda: http.get(job["links"]["self"]).status_code == 404)


def test_jobs_survive_a_restart_and_one_under_way_is_started_again(tmp_path: Path):
    with gateway(tmp_path) as (http, server):
        done = make(http)
        ended(http, done)
        hold(server)
        broken_off = make(http, "task=sr_x3")
        until(lambda: len(server.asked) == 2)
    with gateway(tmp_path) as (http, server):
        assert ended(http, broken_off)["output"]["width"] == 180
        assert opened(http.get(done["links"]["result"]).content).size == (120, 80)
        assert len(server.asked) == 1


def test_files_lie_in_a_folder_that_is_closed_to_others(tmp_path: Path):
    with gateway(tmp_path / "private") as (http, _):
        make(http)
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o700


def test_a_full_disk_refuses_photos_until_there_is_room(tmp_path: Path):
    with gateway(tmp_path, disk_bytes=300_000, max_upload_bytes=20_000) as (http, server):
        hold(server)
        job = make(http)
        full = http.post("/v1/jobs?task=sr_x2", content=picture())
        assert full.status_code == 503 and int(full.headers["Retry-After"]) > 0
        http.delete(job["links"]["self"])
        release(http, server)
        make(http)


def test_a_large_photo_of_one_visitor_does_not_hold_up_small_ones(tmp_path: Path):
    with gateway(tmp_path, slots=3, large_slots=1) as (http, server):
        gate = hold(server)
        first, second = (make(http, "task=derain", large_photo()) for _ in range(2))
        until(lambda: server.asked)
        server.held = None
        assert ended(http, make(http))["state"] == "done"
        states = [http.get(job["links"]["self"]).json()["state"] for job in (first, second)]
        assert states == ["running", "queued"]
        assert http.portal
        http.portal.call(gate.set)
        ended(http, second)


def large_photo() -> bytes:
    buffer = io.BytesIO()
    opened(picture()).resize((2500, 1700)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("part", ["", "/events", "/result", "/before", "/after"])
def test_an_unknown_job_is_not_found(http: TestClient, part: str):
    assert http.get(f"/v1/jobs/nothing{part}").status_code == 404
