"""A new task beside served ones: trained on the frozen body, exported, loaded into the running server."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from helpers.support import SMALL, read_image, small_model
from helpers.training import write_photographs

from ipt_triton import RestorationClient
from ipt_triton.export.__main__ import main as ipt_export
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.fit.command import HELD_OUT
from ipt_triton.train.fit.finetune import main as finetune
from ipt_triton.train.model.checkpoint import save_checkpoint

OLD = ("sr_x2", "denoise_30")
TRITON = (
    "--model-control-mode=explicit",
    "--load-model=*",
    "--grpc-restricted-protocol=shared-memory,trace,logging:launcher=closed",
)


def export(checkpoint: Path, folder: Path) -> str:
    """Export to folder/models by way of folder/parts; the hash of the body."""
    arguments = ["--repository", str(folder / "models"), "--parts", str(folder / "parts")]
    assert ipt_export([str(checkpoint), *arguments]) == 0
    return hashlib.sha256((folder / "models" / "body" / "1" / "body.onnx").read_bytes()).hexdigest()


@pytest.mark.server
def test_a_new_task_on_the_same_body_is_served_after_a_reload_without_a_pause(tmp_path: Path):
    tasks = tuple(t for t in OFFICIAL_TASKS if t.name in OLD)
    config = replace(SMALL, encoder_layers=1, decoder_layers=1, tasks=tasks)
    save_checkpoint(small_model(config=config), tmp_path / "old", provenance={"made_by": "tests"})
    write_photographs(tmp_path / "photos", HELD_OUT + 2, side=100)
    image = read_image("kitten")[:90, :75]

    body = export(tmp_path / "old", tmp_path)
    with TritonServer(tmp_path / "models", extra_args=TRITON) as server:
        with RestorationClient(server.grpc_url) as client:
            assert {t.name for t in client.info().tasks} == set(OLD)
            before = {task: client.restore(image, task) for task in OLD}
        task = ["--task", "dejpeg", "--freeze-body", "--data", str(tmp_path / "photos")]
        length = ["--steps", "3", "--batch", "2", "--device", "cpu"]
        assert finetune([str(tmp_path / "old"), *task, *length, "--output", str(tmp_path / "run")]) == 0
        assert export(tmp_path / "run" / "checkpoint", tmp_path) == body

        loaded, seen = threading.Event(), Counter()

        def go_on() -> None:
            with RestorationClient(server.grpc_url, retries=0) as client:
                while not loaded.is_set():
                    for task in OLD:
                        np.testing.assert_array_equal(client.restore(image, task), before[task])
                        seen[task] += 1

        with ThreadPoolExecutor(1) as pool, triton.InferenceServerClient(server.grpc_url) as control:
            others = pool.submit(go_on)
            try:
                for model in ("ipt_dejpeg", "restore"):  # an ensemble brings its new parts along
                    control.load_model(model)
            finally:
                loaded.set()
            others.result()
        assert min(seen[task] for task in OLD) > 1

        with RestorationClient(server.grpc_url) as client:
            assert {t.name for t in client.info().tasks} == {*OLD, "dejpeg"}
            for task in OLD:
                np.testing.assert_array_equal(client.restore(image, task), before[task])
            restored = client.restore(image, "dejpeg")
        assert restored.shape == image.shape and restored.std() > 20
