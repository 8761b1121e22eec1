"""The demo on a task beyond the paper's; on the paper's it is in test_end_to_end.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.support import SMALL, read_image, small_model
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.demo import restore_photos
from ipt_triton.benchmarks.served import checkpoint_of, serving
from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import degrade_image, seed_of


@pytest.mark.server
def test_the_demo_makes_jpegs_of_the_quality_that_the_served_task_repairs(tmp_path: Path) -> None:
    dejpeg = Task(6, "dejpeg_40", "dejpeg", quality=40)
    photo = tmp_path / "dog.png"
    Image.fromarray(read_image("dog")[:64, :64]).save(photo)
    model = small_model(config=replace(SMALL, encoder_layers=0, decoder_layers=0, tasks=(dejpeg,)))
    with serving([checkpoint_of(model)], "fp32") as served, RestorationClient(served.server.grpc_url) as client:
        (result,) = restore_photos(client, [photo])
    assert result.task == dejpeg
    assert result.restored.shape == result.clean.shape
    np.testing.assert_array_equal(result.degraded, to_uint8(degrade_image(result.clean, dejpeg, seed_of(photo.name))))
