"""What a person does: the commands on files, with a real server and real photographs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.support import Served, read_image
from PIL import Image

from ipt_triton.benchmarks.demo import main as demo
from ipt_triton.train.model.infer import restore_image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("dog", "parrot"):
        Image.fromarray(read_image(name)[50:150, 60:180]).save(folder / f"{name}.png")
    return folder


def restore_command(served: Served, *arguments: object, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """`python client/restore.py` as a person runs it; `limit`: largest file it may write, in bytes."""
    command = [sys.executable, ROOT / "client" / "restore.py", *arguments, "--url", served.server.grpc_url]
    before = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, preexec_fn=before, timeout=120)


@pytest.mark.parametrize("task", ["sr_x2", "denoise_50"])
def test_command_restores_a_folder_as_pytorch_does(served: Served, photos: Path, tmp_path: Path, task: str):
    run = restore_command(
        served, photos, "--task", task, "--output", tmp_path / "out", "--json", tmp_path / "report.json"
    )
    assert run.returncode == 0, run.stderr
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert [p.name for p in written] == ["dog.png", "parrot.png"]
    for path in written:
        expected = restore_image(served.checkpoint.model, np.asarray(Image.open(photos / path.name)), task)
        assert np.abs(np.asarray(Image.open(path)).astype(int) - expected).max() <= 1
    assert len(json.loads((tmp_path / "report.json").read_text())["photos"]) == 2


def test_bad_photo_is_named_and_the_others_are_restored(served: Served, photos: Path, tmp_path: Path):
    (photos / "broken.png").write_bytes((photos / "dog.png").read_bytes()[:500])
    run = restore_command(served, photos, "--task", "derain", "--output", tmp_path / "out")
    assert run.returncode == 1
    assert "broken.png" in run.stderr
    assert {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()} == {"dog.png", "parrot.png"}


def test_full_disk_is_named_and_leaves_no_half_file(served: Served, photos: Path, tmp_path: Path):
    run = restore_command(served, photos / "dog.png", "--task", "sr_x4", "--output", tmp_path / "out", limit=4096)
    assert run.returncode == 1
    assert "dog.png" in run.stderr
    assert "Traceback" not in run.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_demo_restores_every_task_and_writes_a_report(
    served: Served, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for path in photos.iterdir():  # the report shows squares of 144 pixels
        Image.fromarray(read_image(path.stem)[:150, :160]).save(path)
    arguments = ["--photos", photos, "--output", tmp_path / "demo", "--picture", tmp_path / "sheet.png"]
    assert demo(["--repository", str(served.repository), *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [r.task.name for r in served.manifest.routes]
    page = (tmp_path / "demo" / "report.html").read_text()
    pictures = {p.name for p in (tmp_path / "demo" / "pictures").iterdir()}
    assert len(pictures) >= 2 * 6 * 6
    assert all(f"pictures/{name}" in page for name in pictures)
    assert Image.open(tmp_path / "sheet.png").width > 1000
