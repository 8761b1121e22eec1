"""Pre-training: it learns, stops and resumes without a trace, and says what is wrong with data and arguments."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train.pretrain
from train.checkpoint import load_checkpoint
from train.data import DataError, Pool, load_pool, random_crops
from train.model import IPTConfig
from train.pretrain import HELD_OUT, Recipe, Trainer, TrainingError, main, parse_duration, save, validate
from train.tasks import OFFICIAL_TASKS, Task

CONFIG = IPTConfig(features=4, encoder_layers=1, decoder_layers=1, heads=2, tasks=OFFICIAL_TASKS[3:])
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal runs give equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def photograph(number: int, side: int = 192) -> np.ndarray:
    """Smooth shapes with edges and a little texture, RGB uint8 [side, side, 3]."""
    random = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    picture = np.stack([110 + 70 * np.sin(x / random.uniform(8, 40) + c) * np.cos(y / 25) for c in range(3)], axis=2)
    for _ in range(6):
        (top, left), (high, wide) = random.integers(0, side - 20, 2), random.integers(10, 90, 2)
        picture[top : top + high, left : left + wide] = random.uniform(0, 255, 3)
    return (picture + random.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(HELD_OUT + 3):
        Image.fromarray(photograph(number)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def pool(photos: Path) -> Pool:
    return load_pool([photos], 192)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        **{f"model.{n}": t for n, t in trainer.model.state_dict().items()},
        **{f"average.{n}": t for n, t in trainer.average.state_dict().items()},
    }


def trainer(steps: int | None, **settings: float) -> Trainer:
    recipe = Recipe(**{"steps": steps, "batch": 4, "warmup": 5, "precision": "fp32", **settings})  # type: ignore[arg-type]
    return Trainer(CONFIG, recipe, CPU)


def test_a_short_run_makes_every_task_better_than_the_degraded_input(pool: Pool, tmp_path: Path) -> None:
    run = trainer(150, lr=2e-3, batch=8, ema=0.9)
    training, held_out = pool.split(HELD_OUT)
    before = validate(run.average, held_out, CPU)
    train.pretrain.train(run, pool, tmp_path)
    after = load_checkpoint(tmp_path / "checkpoint").quality["held_out_psnr_rgb"]
    assert after == validate(run.average, held_out, CPU)
    assert after["denoise_30"] > before["denoise_30"] + 1
    assert after["denoise_50"] > before["denoise_50"] + 1
    assert after["derain"] > before["derain"] - 0.3
    assert len(training.images) == 3


def test_a_run_starts_from_the_identity(pool: Pool) -> None:
    psnr = validate(trainer(1).average, pool.split(HELD_OUT)[1], CPU)
    for task, sigma in (("denoise_30", 30), ("denoise_50", 50)):  # clipping takes a little of the noise away
        assert 20 * math.log10(255 / sigma) <= psnr[task] <= 20 * math.log10(255 / sigma) + 1.5


def test_the_checkpoint_loads_and_tells_how_it_came_about(pool: Pool, tmp_path: Path) -> None:
    run = trainer(3, seed=4)
    train.pretrain.train(run, pool, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint.model.config == CONFIG
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, run.average.state_dict()[name])
    told = checkpoint.provenance
    assert (told["steps"], told["patches"], told["recipe"]["seed"]) == (3, 12, 4)
    assert told["data"] == {"photographs": 3, "megapixels": 0.1, "held_out": 12}
    assert set(checkpoint.quality["held_out_psnr_rgb"]) == {"derain", "denoise_30", "denoise_50"}


class Interrupted(Trainer):
    """Receives SIGTERM in its sixth step."""

    def train_step(self, pool: Pool) -> tuple[Task, float]:
        done = super().train_step(pool)
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return done


def test_a_run_in_two_parts_gives_the_weights_of_a_run_in_one(pool: Pool, tmp_path: Path) -> None:
    whole = trainer(12)
    train.pretrain.train(whole, pool, tmp_path / "whole")
    first = Interrupted(CONFIG, whole.recipe, CPU)
    train.pretrain.train(first, pool, tmp_path / "parts")
    assert first.step == 6
    second = trainer(12)
    second.load_state(torch.load(tmp_path / "parts" / "state.pt", weights_only=True))
    assert second.step == 6 and second.elapsed == first.elapsed
    train.pretrain.train(second, pool, tmp_path / "parts")
    assert second.step == 12
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(second)[name], tensor), name
    checkpoints = [load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "parts")]
    assert checkpoints[0].sha256 == checkpoints[1].sha256
    assert [h["step"] for h in second.history] == [6, 12]


def test_the_seed_decides_the_run(pool: Pool) -> None:
    runs = [trainer(4, seed=seed) for seed in (1, 1, 2)]
    losses = [[run.train_step(pool) for _ in range(4)] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(t, weights(runs[1])[n]) for n, t in weights(runs[0]).items())
    assert not all(torch.equal(t, weights(runs[2])[n]) for n, t in weights(runs[0]).items())


def test_a_step_trains_one_task_with_the_body_and_no_other(pool: Pool) -> None:
    run = trainer(100)
    start = weights(run)
    start = {n: t.clone() for n, t in start.items()}
    task, _ = run.train_step(pool)
    changed = {n.removeprefix("model.") for n, t in weights(run).items() if not torch.equal(t, start[n])}
    changed = {n for n in changed if not n.startswith("average.")}
    trained = {".".join(n.split(".")[:2]) for n in changed if not n.startswith("body.")}
    assert trained == {f"heads.{task.name}", f"tails.{task.name}"}
    assert any(n.startswith("body.") for n in changed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_naming_step_and_task_and_changes_nothing(pool: Pool, value: float) -> None:
    run = trainer(100)
    run.train_step(pool)
    with torch.no_grad():
        for tail in run.model.tails.values():
            tail.conv.bias.fill_(value)
    before = {n: t.clone() for n, t in weights(run).items()}
    with pytest.raises(
        TrainingError, match=r"loss of step 1, task (derain|denoise_\d+), is (nan|inf); try a lower --lr"
    ):
        run.train_step(pool)
    assert run.step == 1
    for name, tensor in weights(run).items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_learning_rate_warms_up_and_falls_along_a_cosine() -> None:
    recipe = Recipe(lr=1.0, warmup=10)
    assert [recipe.learning_rate(step, 0.0) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [recipe.learning_rate(99, p) for p in (0.5, 1.0, 1.2)] == pytest.approx([0.505, 0.01, 0.01])
    assert Recipe(lr=1.0, warmup=0).learning_rate(0, 0.0) == 1.0


def command(photos: Path, output: Path, *more: str) -> list[str]:
    required = ["--data", str(photos), "--output", str(output), "--tasks", "denoise_50", "--precision", "fp32"]
    return [*required, "--batch", "2", "--device", "cpu", *more]


def test_sigterm_saves_and_ends_with_status_0(photos: Path, tmp_path: Path) -> None:
    arguments = command(photos, tmp_path / "run", "--steps", "1000000", "--interval", "1s")
    run = subprocess.Popen(
        [sys.executable, "-m", "train.pretrain", *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "run" / "checkpoint").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    steps = [int(s) for s in re.findall(r"step (\d+),", errors)]
    assert len(steps) >= 2 and "Traceback" not in errors
    assert load_checkpoint(tmp_path / "run" / "checkpoint").provenance["steps"] == steps[-1]
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True)["step"] == steps[-1]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint", "state.pt"]


def test_wrong_resumes_are_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert main(command(photos, output, "--steps", "1", "--resume")) == 1
    assert "nothing to resume" in capsys.readouterr().err
    assert main(command(photos, output, "--steps", "1")) == 0
    for more, message in (
        ([], "add --resume"),
        (["--resume", "--seed", "3"], "seed 0 is now 3"),
        (["--resume", "--lr", "0.1", "--warmup", "7"], "lr 0.0004 is now 0.1, warmup 300 is now 7"),
        (["--resume", "--tasks", "denoise_30"], "another architecture or task table"),
    ):
        before = (output / "state.pt").read_bytes()
        assert main(command(photos, output, "--steps", "2", *more)) == 1
        assert message in capsys.readouterr().err
        assert (output / "state.pt").read_bytes() == before
    assert main(command(photos, output, "--steps", "2", "--resume")) == 0
    assert load_checkpoint(output / "checkpoint").provenance["steps"] == 2


def test_a_saved_state_that_is_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save(trainer(2), tmp_path, {})
    other = Trainer(IPTConfig(**{**vars(CONFIG), "heads": 4}), trainer(2).recipe, CPU)
    with pytest.raises(TrainingError, match="another architecture"):
        other.load_state(torch.load(tmp_path / "state.pt", weights_only=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --steps or --time-budget"),
        (["--steps", "-5"], "--steps -5 is not allowed"),
        (["--steps", "5", "--batch", "0"], "--batch 0 is not allowed"),
        (["--time-budget", "soon"], "'soon' is no duration"),
        (["--steps", "5", "--preset", "ipt-huge"], "ipt-huge"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_task_ends_with_status_2(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(photos), "--output", str(tmp_path / "run"), "--steps", "1", "--tasks", "blur"]) == 2
    assert "unknown task 'blur'; there are: 0 sr_x2" in capsys.readouterr().err


def test_data_that_cannot_be_trained_on_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert main(command(data, tmp_path / "run", "--steps", "1")) == 2
    assert "data is not a folder" in capsys.readouterr().err
    data.mkdir()
    (data / "notes.txt").write_text("no picture")
    (data / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    Image.fromarray(photograph(0, 40)).save(data / "small.png")
    assert main(command(data, tmp_path / "run", "--steps", "1")) == 2
    assert "2 files of a known kind, 1 unreadable, 1 with a side below 48 px" in capsys.readouterr().err
    for number in range(HELD_OUT):
        Image.fromarray(photograph(number, 50)).save(data / f"{number}.png")
    assert main(command(data, tmp_path / "run", "--steps", "1")) == 2
    assert "12 usable photographs are too few to hold 12 out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_held_out_photographs_are_never_trained_on_and_stay_the_same(pool: Pool) -> None:
    training, held_out = pool.split(HELD_OUT)
    assert set(training.names) | set(held_out.names) == set(pool.names)
    assert len(held_out.names) == HELD_OUT and not set(training.names) & set(held_out.names)
    order = list(range(len(pool.names)))[::-1]
    turned = Pool([pool.images[i] for i in order], [pool.names[i] for i in order])
    assert set(turned.split(HELD_OUT)[1].names) == set(held_out.names)
    with pytest.raises(DataError, match="too few"):
        Pool(pool.images[:12], pool.names[:12]).split(HELD_OUT)


def test_crops_are_turned_and_flipped_pieces_and_every_place_is_as_likely() -> None:
    side = 20
    big = np.zeros((60, 40, 3), np.uint8)
    big[..., 0], big[..., 1] = np.mgrid[:60, :40]
    small = np.full((20, 20, 3), 255, np.uint8)
    crops = random_crops(Pool([big, small], ["big", "small"]), side, 4000, torch.Generator().manual_seed(0))
    assert crops.shape == (4000, 3, side, side)
    from_small = (crops == 255).all(dim=3).all(dim=2).all(dim=1)
    assert from_small.float().mean().item() == pytest.approx(1 / (41 * 21 + 1), abs=0.003)
    rows, cols = crops[~from_small, 0], crops[~from_small, 1]
    tops, lefts = rows.flatten(1).amin(1), cols.flatten(1).amin(1)
    assert set(tops.tolist()) == set(range(41)) and set(lefts.tolist()) == set(range(21))
    assert (rows.flatten(1).amax(1) - tops == side - 1).all() and (cols.flatten(1).amax(1) - lefts == side - 1).all()
    first = torch.stack([rows[:, 0, 0] - tops, rows[:, 0, -1] - tops, cols[:, 0, 0] - lefts, cols[:, 0, -1] - lefts], 1)
    assert len({tuple(f.tolist()) for f in first}) == 8  # rotations and reflections of the square


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("45m", 2700), ("2h", 7200), ("1.5h", 5400)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
