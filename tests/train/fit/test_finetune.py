"""Fine-tuning: new tasks beside untouched ones, one body or a body of its own, photographs or pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import CONFIG, photograph
from PIL import Image

from ipt_triton.tasks import OFFICIAL_TASKS, Task
from ipt_triton.train.fit.finetune import main
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint
from ipt_triton.train.model.ipt import IPT
from ipt_triton.train.model.start import identity_start, with_tasks

pytestmark = pytest.mark.usefixtures("repeatable")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = identity_start(IPT(CONFIG))
    for parameter in model.body.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("start") / "checkpoint"
    save_checkpoint(model, folder, provenance={"made_by": "tests"})
    return folder


def command(checkpoint: Path, output: Path, *more: str) -> list[str]:
    settings = ["--precision", "fp32", "--device", "cpu", "--batch", "4", "--warmup", "2"]
    return [str(checkpoint), "--output", str(output), *settings, *more]


def test_a_new_task_on_a_frozen_body_leaves_everything_else_as_it_was(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    more = ["--task", "dejpeg", "--freeze-body", "--data", str(photos), "--steps", "5"]
    assert main(command(checkpoint, tmp_path, *more)) == 0
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "checkpoint")
    assert after.model.config.tasks == (*CONFIG.tasks, Task(6, "dejpeg", "dejpeg"))
    old, new = before.model.state_dict(), after.model.state_dict()
    assert all(torch.equal(new[name], tensor) for name, tensor in old.items())
    assert all(".dejpeg." in name for name in new.keys() - old.keys())
    x = torch.rand(2, 3, 48, 48) * 255
    for task in CONFIG.tasks:
        assert torch.equal(before.model(x, task.name), after.model(x, task.name))
    start = with_tasks(before.model, after.model.config.tasks).state_dict()
    assert {n for n in new if not torch.equal(new[n], start[n])} == new.keys() - old.keys()
    assert after.provenance["parent"] == {"sha256": before.sha256, "provenance": {"made_by": "tests"}}
    assert set(after.quality["held_out_psnr_rgb"]) == {"dejpeg"}


def test_a_task_that_is_known_goes_on_and_the_others_stay(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    more = ["--task", "4", "--freeze-body", "--data", str(photos), "--steps", "3"]
    assert main(command(checkpoint, tmp_path, *more)) == 0
    old, new = (load_checkpoint(f).model.state_dict() for f in (checkpoint, tmp_path / "checkpoint"))
    assert old.keys() == new.keys()
    assert {".".join(n.split(".")[:2]) for n in old if not torch.equal(old[n], new[n])} == {
        "heads.denoise_30",
        "tails.denoise_30",
    }


def test_without_a_frozen_body_the_task_gets_a_body_of_its_own(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    assert main(command(checkpoint, tmp_path, "--task", "denoise_50", "--data", str(photos), "--steps", "3")) == 0
    old, new = load_checkpoint(checkpoint).model, load_checkpoint(tmp_path / "checkpoint").model
    assert new.config.tasks == (OFFICIAL_TASKS[5],)
    assert not torch.equal(old.body.linear_encoding.weight, new.body.linear_encoding.weight)


@pytest.mark.slow
def test_fine_tuning_makes_its_task_better(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    more = ["--task", "denoise_30", "--data", str(photos), "--lr", "4e-3", "--ema", "0.8"]
    assert main(command(checkpoint, tmp_path, *more, "--steps", "1")) == 0
    assert main(command(checkpoint, tmp_path, *more, "--steps", "60", "--resume")) == 0
    history = torch.load(tmp_path / "state.pt", weights_only=True)["history"]
    assert [h["step"] for h in history] == [1, 60]
    assert history[1]["psnr"]["denoise_30"] > history[0]["psnr"]["denoise_30"] + 1


def test_pairs_of_a_task_that_no_formula_describes(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        half = photograph(int(path.stem), 100)[::2, ::2] // 2
        (tmp_path / "dark").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(half)).save(tmp_path / "dark" / path.name)
    described = ["--task", "brighten", "--scale", "2", "--id", "40", "--freeze-body", "--steps", "2"]
    more = [*described, "--paired", str(tmp_path / "dark"), str(photos)]
    assert main(command(checkpoint, tmp_path / "run", *more)) == 0
    found = load_checkpoint(tmp_path / "run" / "checkpoint")
    assert found.model.config.tasks[-1] == Task(40, "brighten", "paired", scale=2)
    assert found.provenance["data"]["photographs"] == 3
    assert found.model(torch.zeros(1, 3, 48, 48), "brighten").shape == (1, 3, 96, 96)


def test_a_new_task_starts_from_its_most_similar_one() -> None:
    torch.manual_seed(0)
    model = IPT(CONFIG)
    for task, donor in (
        (Task(8, "denoise_70", "denoise", sigma=70.0), "denoise_50"),
        (Task(8, "denoise_10", "denoise", sigma=10.0), "denoise_30"),
        (Task(8, "denoise", "denoise"), "denoise_30"),
        (Task(8, "auto", "auto"), "denoise_30"),
    ):
        extended = with_tasks(model, [task])
        for part in ("heads", "tails"):
            for old, new in zip(
                getattr(model, part)[donor].parameters(), getattr(extended, part)[task.name].parameters(), strict=True
            ):
                assert torch.equal(old, new)
    larger = with_tasks(model, [*CONFIG.tasks, Task(8, "sr_x2", "sr", scale=2)])
    assert larger(torch.zeros(1, 3, 48, 48), "sr_x2").shape == (1, 3, 96, 96)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "fog"], "fog is new to the checkpoint; describe it: --degradation"),
        (["--task", "derain", "--sigma", "4"], "has a task 3 derain already; leave out --sigma"),
        (["--task", "fog", "--degradation", "derain", "--id", "4"], "--id 4 is taken by denoise_30"),
        (["--task", "jpeg", "--degradation", "dejpeg", "--quality", "900"], "quality 900"),
        (["--task", "Fog", "--degradation", "derain"], "'Fog'"),
    ],
)
def test_tasks_that_cannot_be_end_with_status_2(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(command(checkpoint, tmp_path / "run", "--data", str(photos), "--steps", "1", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_mismatched_pairs_end_with_status_2(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos, tmp_path / "clean")
    (tmp_path / "clean" / "03.png").unlink()
    more = ["--task", "derain", "--steps", "1", "--paired", str(photos), str(tmp_path / "clean")]
    assert main(command(checkpoint, tmp_path / "run", *more)) == 2
    assert "03 for instance" in capsys.readouterr().err


def test_a_folder_that_is_no_checkpoint_is_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, tmp_path / "run", "--task", "derain", "--data", str(photos), "--steps", "1")) == 1
    assert "is not a checkpoint" in capsys.readouterr().err


def test_photographs_or_pairs_but_not_both(checkpoint: Path, tmp_path: Path) -> None:
    for data in ([], ["--data", "a", "--paired", "b", "c"]):
        with pytest.raises(SystemExit) as ended:
            main(command(checkpoint, tmp_path, "--task", "derain", "--steps", "1", *data))
        assert ended.value.code == 2


def test_the_old_tasks_are_described_as_before(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    more = ["--task", "auto", "--freeze-body", "--data", str(photos), "--steps", "1"]
    assert main(command(checkpoint, tmp_path, *more)) == 0
    tables = [
        json.loads((f / "config.json").read_text())["architecture"]["tasks"]
        for f in (checkpoint, tmp_path / "checkpoint")
    ]
    assert tables[1][: len(tables[0])] == tables[0]
