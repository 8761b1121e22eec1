"""The example pictures of tasks: photographs degraded as training degrades them, and restored by the server itself.

`WRITE_EXAMPLES=1` before pytest writes them anew.
"""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from fastapi.testclient import TestClient
from helpers.gateway import Repeating, opened
from helpers.support import read_image
from PIL import Image

from ipt_triton.client.gateway.catalogue import EXAMPLES, example_of, in_words
from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import KNOWN_TASKS, Task
from ipt_triton.train.data.degradations import degrade_image

SIDE = 240
CROPS = {
    "sr": ("parrot", 20, 150, 0),
    "denoise": ("kitten", 60, 120, 0),
    "derain": ("skyline", 100, 100, 1),
    "dejpeg": ("colosseum", 100, 140, 3),
    "auto": ("colosseum", 100, 140, 2),
    "real": ("colosseum", 100, 140, 0),
}
"""Photograph, place of the square, and a seed whose degradation is seen well."""


def example(task: Task) -> bytes:
    name, top, left, seed = CROPS[task.kind]
    clean = read_image(name)[top : top + SIDE, left : left + SIDE]
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(degrade_image(clean, task, seed))).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


@pytest.mark.parametrize("task", KNOWN_TASKS, ids=lambda task: task.name)
def test_an_example_is_what_training_makes_of_a_photograph(task: Task):
    made = example(task)
    if os.environ.get("WRITE_EXAMPLES"):
        EXAMPLES.mkdir(exist_ok=True)
        (EXAMPLES / f"{task.name}.jpg").write_bytes(made)
    kept = (EXAMPLES / f"{task.name}.jpg").read_bytes()
    difference = np.asarray(opened(made)).astype(int) - np.asarray(opened(kept))
    assert np.abs(difference).mean() < 1  # another CPU rounds otherwise
    assert example_of(task) and in_words(task).example


def test_the_server_restores_each_example_once(http: TestClient, server: Repeating):
    before, after = (opened(http.get(f"/v1/tasks/sr_x2/{which}.jpg").content) for which in ("before", "after"))
    assert (before.size, after.size) == ((SIDE // 2,) * 2, (SIDE,) * 2)
    http.get("/v1/tasks/sr_x2/after.jpg")
    assert server.asked == [(SIDE // 2, SIDE // 2, 3)]


def test_a_task_without_a_name_that_is_known_has_no_example(http: TestClient):
    assert in_words(Task(40, "old_film", "paired")).example is None
    assert http.get("/v1/tasks/old_film/before.jpg").status_code == 404
