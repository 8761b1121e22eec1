"""What a gateway tells of itself: tasks in words, samples, health, metrics, its description."""

from __future__ import annotations

import time
from pathlib import Path

from fastapi.testclient import TestClient
from helpers.gateway import Repeating, gateway, opened, picture

from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.client.gateway.catalogue import in_words
from ipt_triton.tasks import KNOWN_TASKS, Task


def test_tasks_are_told_in_words_with_the_limits_of_photos(http: TestClient):
    answer = http.get("/v1/tasks").json()
    titles = {task["name"]: (task["group"], task["title"]) for task in answer["tasks"]}
    assert titles["sr_x2"] == ("Enlarge", "Enlarge 2×") and titles["denoise_50"] == ("Clean", "Remove heavy noise")
    assert answer["formats"][0] == "same" and answer["max_pixels"] == 100_000_000


def test_every_known_task_has_a_title_of_its_own():
    words = [in_words(task) for task in KNOWN_TASKS]
    assert len({word.title for word in words}) == len(words)
    assert in_words(Task(40, "old_film", "paired")).title == "Old film"


def test_samples_can_be_fetched_and_nothing_else(http: TestClient):
    listed = http.get("/v1/samples").json()["samples"]
    assert {sample["name"] for sample in listed} >= {"colosseum", "kitten"}
    assert opened(http.get(listed[0]["url"]).content).format == "PNG"
    assert http.get("/v1/samples/..%2Ftasks.png").status_code == 404


def test_it_is_ready_when_every_task_has_worked_and_not_when_one_fails(tmp_path: Path):
    with gateway(tmp_path, probe_s=0.05) as (http, server):
        assert http.get("/healthz").text == "alive\n"
        assert until(lambda: http.get("/readyz").status_code == 200)
        assert set(http.get("/readyz").json()["tasks"]) >= {"sr_x2", "derain"}
        server.failure = ServerUnavailable("gone")
        assert until(lambda: http.get("/readyz").status_code == 503)
        assert "sr_x2 does not work" in http.get("/readyz").json()["detail"]


def test_metrics_count_requests_by_route(http: TestClient, server: Repeating):
    http.post("/v1/restore?task=derain", content=picture())
    page = http.get("/metrics").text
    assert 'ipt_gateway_requests_total{method="POST",route="/v1/restore",status="200"}' in page
    assert 'ipt_gateway_pixels_total{task="derain"}' in page


def test_the_description_is_openapi_and_the_page_of_it_names_every_route(http: TestClient):
    description = http.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in str(description)
    page = http.get("/docs").text
    assert all(path in page for path in description["paths"])
    assert "http:" not in page and "https:" not in page and "<script" not in page


def until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(met)
