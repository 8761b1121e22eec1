"""The training loop: it learns, stops and resumes without a trace, and keeps what is good when losses go wrong."""

from __future__ import annotations

import math
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import CONFIG, CPU, feed_of, make_trainer, photograph, weights

from ipt_triton.tasks import Task
from ipt_triton.train.data.feed import Crops, Part, Store, parts_from
from ipt_triton.train.data.pool import Pool
from ipt_triton.train.errors import TrainingError
from ipt_triton.train.fit.command import HELD_OUT
from ipt_triton.train.fit.figures import Figures
from ipt_triton.train.fit.loop import Trainer, save, train
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.fit.state import read_state
from ipt_triton.train.fit.validation import validate
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.model.ipt import IPT, IPTConfig

pytestmark = pytest.mark.usefixtures("repeatable")


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool([photograph(i) for i in range(HELD_OUT + 3)], [f"{i:02d}.png" for i in range(HELD_OUT + 3)])


@pytest.fixture(scope="module")
def held_out(pool: Pool) -> Store:
    return Store(pool.split(HELD_OUT)[1], CPU)


def run(trainer: Trainer, pool: Pool, output: Path) -> None:
    training, held_out = pool.split(HELD_OUT)
    train(trainer, feed_of(trainer, training), Store(held_out, CPU), output)


def step(trainer: Trainer, pool: Pool, count: int = 1) -> None:
    batches = feed_of(trainer, pool).batches(parts_from(trainer.step, trainer.recipe.accumulate, trainer.recipe.crops))
    for _ in range(count):
        trainer.train_step(batches)


@pytest.mark.slow
def test_a_short_run_makes_every_task_better_than_the_degraded_input(
    pool: Pool, held_out: Store, tmp_path: Path
) -> None:
    trainer = make_trainer(120, lr=4e-3, ema=0.9, contrastive=0.01)
    before = validate(trainer.average, held_out, trainer.trained)
    run(trainer, pool, tmp_path)
    after = load_checkpoint(tmp_path / "checkpoint").quality["held_out_psnr_rgb"]
    assert after == validate(trainer.average, held_out, trainer.trained)
    assert after["denoise_30"] > before["denoise_30"] + 1
    assert after["denoise_50"] > before["denoise_50"] + 1
    assert after["derain"] > before["derain"] - 1


def test_a_run_starts_from_the_identity(held_out: Store) -> None:
    psnr = validate(make_trainer(1).average, held_out, CONFIG.tasks)
    for task, sigma in (("denoise_30", 30), ("denoise_50", 50)):  # clipping takes a little of the noise away
        assert 20 * math.log10(255 / sigma) <= psnr[task] <= 20 * math.log10(255 / sigma) + 1.5


def test_the_checkpoint_loads_and_tells_how_it_came_about(pool: Pool, tmp_path: Path) -> None:
    trainer = make_trainer(3, seed=4, accumulate=2)
    run(trainer, pool, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint")
    assert checkpoint.model.config == CONFIG
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, trainer.average.state_dict()[name])
    made = checkpoint.provenance
    assert (made["steps"], made["patches"], made["recipe"]["seed"]) == (3, 24, 4)
    assert set(checkpoint.quality["held_out_psnr_rgb"]) == {"derain", "denoise_30", "denoise_50"}


class Interrupted(Trainer):
    """Receives SIGTERM in its sixth step."""

    def train_step(self, batches: Iterator[list[Crops]]) -> None:
        super().train_step(batches)
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"batch": (2, 4)}, {"sampling": "sample", "accumulate": 2, "schedule": "paper"}])
def test_a_run_in_two_parts_gives_the_weights_of_a_run_in_one(
    pool: Pool, tmp_path: Path, settings: dict[str, str]
) -> None:
    whole = make_trainer(12, **settings)
    run(whole, pool, tmp_path / "whole")
    first = make_trainer(12, **settings)
    first.__class__ = Interrupted
    run(first, pool, tmp_path / "parts")
    assert first.step == 6
    second = make_trainer(12, **settings)
    second.load_state(read_state(tmp_path / "parts" / "state.pt"))
    assert second.step == 6 and second.elapsed == first.elapsed
    run(second, pool, tmp_path / "parts")
    assert second.step == 12
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(second)[name], tensor), name
    checkpoints = [load_checkpoint(tmp_path / name / "checkpoint") for name in ("whole", "parts")]
    assert checkpoints[0].sha256 == checkpoints[1].sha256
    assert [h["step"] for h in second.history] == [6, 12]


def test_the_seed_decides_the_run(pool: Pool) -> None:
    runs = [make_trainer(4, seed=seed) for seed in (1, 1, 2)]
    for trainer in runs:
        step(trainer, pool, 4)
    figures = [trainer.collect_figures() for trainer in runs]
    assert figures[0] == figures[1] != figures[2]
    same, other = (all(torch.equal(t, weights(runs[i])[n]) for n, t in weights(runs[0]).items()) for i in (1, 2))
    assert same and not other


def test_a_step_trains_one_task_with_the_body_and_no_other(pool: Pool) -> None:
    trainer = make_trainer(100)
    start = weights(trainer)
    step(trainer, pool)
    (figures,) = trainer.collect_figures()
    changed = {n for n, t in weights(trainer).items() if not torch.equal(t, start[n])}
    trained = {".".join(n.split(".")[1:3]) for n in changed if ".body." not in n}
    assert trained == {f"heads.{figures.tasks}", f"tails.{figures.tasks}"}
    assert any(n.startswith("model.body.") for n in changed) and any(n.startswith("average.body.") for n in changed)


def test_a_step_of_samples_trains_several_tasks(pool: Pool) -> None:
    trainer = make_trainer(100, sampling="sample", batch=(12,), weights={"derain": 0.001})
    step(trainer, pool, 3)
    assert {f.tasks for f in trainer.collect_figures()} == {"denoise_30 denoise_50"}


def test_two_accumulated_micro_batches_are_one_batch_of_twice_the_size(pool: Pool) -> None:
    """Not bit for bit: the sums are in another order."""
    both, doubled = make_trainer(10, accumulate=2, noise="nominal"), make_trainer(10, batch=(8,), noise="nominal")

    def joined(pieces: int) -> Iterator[list[Crops]]:
        """Both micro-batches of each step as clean pairs (noise would differ), at once or one after the other."""
        feed = feed_of(both, pool).batches(Part(s, n, 4) for s in range(3) for n in (0, 1))
        for (one,), (two,) in zip(feed, feed, strict=True):
            for clean in torch.cat([one.clean, two.clean]).chunk(pieces):
                yield [Crops(one.task, clean, clean)]

    at_once, apart = joined(1), joined(2)
    for _ in range(3):
        doubled.train_step(at_once)
        both.train_step(apart)
    for name, tensor in weights(doubled).items():
        torch.testing.assert_close(weights(both)[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_naming_step_and_task_and_keeps_what_was_saved(
    pool: Pool, tmp_path: Path, value: float
) -> None:
    trainer = make_trainer(5)
    run(trainer, pool, tmp_path)
    before = load_checkpoint(tmp_path / "checkpoint").sha256, (tmp_path / "state.pt").read_bytes()
    again = make_trainer(10)
    again.load_state(read_state(tmp_path / "state.pt"))
    with torch.no_grad():
        for tail in again.model.tails.values():
            tail.conv.bias.fill_(value)
    with pytest.raises(
        TrainingError, match=r"loss of step 5, task (derain|denoise_\d+), is (nan|inf); .* try a lower --lr"
    ):
        run(again, pool, tmp_path)
    assert (load_checkpoint(tmp_path / "checkpoint").sha256, (tmp_path / "state.pt").read_bytes()) == before


def test_a_gradient_that_is_not_finite_stops_as_well(pool: Pool) -> None:
    trainer = make_trainer(5)
    next(iter(trainer.model.body.parameters())).register_hook(lambda gradient: gradient * float("nan"))
    step(trainer, pool)
    with pytest.raises(TrainingError, match=r"gradient of step 0, task \w+, is nan"):
        trainer.collect_figures()


@pytest.mark.parametrize("part", ["model", "average"])
def test_weights_that_are_not_finite_are_never_saved(pool: Pool, tmp_path: Path, part: str) -> None:
    """Even if every loss so far was finite: the weights themselves are looked at."""
    trainer = make_trainer(5)
    run(trainer, pool, tmp_path)
    before = load_checkpoint(tmp_path / "checkpoint").sha256, (tmp_path / "state.pt").read_bytes()
    with torch.no_grad():
        getattr(trainer, part).body.out1.weight[3, 4] = float("nan")
    with pytest.raises(TrainingError, match=r"after step 5 the weight body\.out1\.weight is not finite"):
        save(trainer, tmp_path)
    assert (load_checkpoint(tmp_path / "checkpoint").sha256, (tmp_path / "state.pt").read_bytes()) == before


def test_schedules_warm_up_and_fall() -> None:
    cosine = Recipe(lr=1.0, warmup=10)
    assert [cosine.learning_rate(step, 0.0) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [cosine.learning_rate(99, p) for p in (0.5, 1.0, 1.2)] == pytest.approx([0.505, 0.01, 0.01])
    assert Recipe(lr=1.0, warmup=0).learning_rate(0, 0.0) == 1.0
    paper = Recipe(lr=5e-5, warmup=0, schedule="paper")
    assert [paper.learning_rate(9, p) for p in (0.0, 0.66, 0.67, 1.0)] == pytest.approx([5e-5, 5e-5, 2e-5, 2e-5])
    assert Recipe(lr=2e-5, warmup=0, schedule="constant").learning_rate(9, 1.0) == 2e-5


def test_each_size_of_batch_has_an_equal_share_of_the_run() -> None:
    recipe = Recipe(batch=(4, 8, 16))
    assert [recipe.crops(p) for p in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0, 1.2)] == [4, 4, 8, 8, 16, 16, 16]


def test_a_growing_batch_is_counted_by_its_crops(pool: Pool) -> None:
    trainer = make_trainer(4, batch=(2, 6))
    batches = feed_of(trainer, pool).batches(parts_from(0, 1, lambda s: trainer.recipe.crops(trainer.progress(s))))
    for _ in range(4):
        trainer.train_step(batches)
    assert trainer.patches == 2 + 2 + 6 + 6


def test_the_best_checkpoint_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    trainer = make_trainer(9)
    for step, psnr, of_sets in ((1, 30.0, 25.0), (2, 28.0, 26.0), (3, 31.0, 25.5)):
        trainer.step = step
        trainer.history.append({"step": step, "seconds": 0, "psnr": {"derain": psnr}, "sets": {"derain X": of_sets}})
        save(trainer, tmp_path, keep=2)
    steps = {p.name: load_checkpoint(p).provenance["steps"] for p in (tmp_path / "best", tmp_path / "checkpoint")}
    assert steps == {"best": 2, "checkpoint": 3}  # by the test sets, where there are some
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["00000002", "00000003"]
    assert load_checkpoint(tmp_path / "best").quality["validation_psnr"] == {"derain X": 26.0}


@pytest.mark.parametrize(
    ("flags", "precision"), [("avx2 fma", "fp32"), ("avx2 avx512_bf16", "bf16"), ("avx512f amx_bf16", "bf16")]
)
def test_a_cpu_trains_in_bf16_where_it_multiplies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, precision: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n\n")
    monkeypatch.setattr("ipt_triton.cpu.CPUINFO", tmp_path / "cpuinfo")
    assert Runtime(CPU).precision == precision


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    save(make_trainer(2), tmp_path)
    state = read_state(tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="another architecture"):
        make_trainer(2, IPTConfig(**{**vars(CONFIG), "heads": 4})).load_state(state)
    with pytest.raises(TrainingError, match=r"contrastive 0.0 is now 0.2, seed 0 is now 3; choose another --output"):
        make_trainer(2, seed=3, contrastive=0.2).load_state(state)
    del state["recipe"]["clip"]
    with pytest.raises(TrainingError, match=r"clip None is now 20.0"):
        make_trainer(2).load_state(state)
    make_trainer(9, batch=(2, 8), accumulate=3, precision="bf16").load_state(read_state(tmp_path / "state.pt"))


@pytest.mark.slow
def test_pairs_are_trained_as_they_are(pool: Pool, tmp_path: Path) -> None:
    """The inputs are the clean pictures made darker; the model learns to make them brighter."""
    task = Task(0, "brighten", "paired")
    config = IPTConfig(**{**vars(CONFIG), "tasks": (task,)})
    dark = [(0.8 * i).astype(np.uint8) for i in pool.images]
    trainer = make_trainer(60, config, lr=3e-3, ema=0.9)
    run(trainer, Pool(pool.images, pool.names, dark), tmp_path)
    start = make_trainer(1, config)
    store = Store(Pool(pool.images, pool.names, dark).split(HELD_OUT)[1], CPU)
    before, after = (validate(t.average, store, [task])["brighten"] for t in (start, trainer))
    assert 15 < before < 25 and after > before + 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_runs_each_layer_twice_and_changes_no_bit(pool: Pool, precision: str) -> None:
    plain, recomputing = (
        make_trainer(
            3, accumulate=2, contrastive=0.1, sampling="sample", precision=precision, activation_checkpointing=way
        )
        for way in (False, True)
    )
    runs: Counter[Trainer] = Counter()
    for trainer in (plain, recomputing):
        for layer in (*trainer.model.body.encoder, *trainer.model.body.decoder):
            layer.register_forward_pre_hook(lambda *_, trainer=trainer: runs.update([trainer]))
        step(trainer, pool, 3)
        validate(trainer.average, Store(pool.take(range(2)), CPU), trainer.trained)  # keeps nothing, computes once
    assert (runs[plain], runs[recomputing]) == (3 * 2 * 2, 2 * 3 * 2 * 2)
    assert plain.collect_figures() == recomputing.collect_figures()
    for name, tensor in weights(plain).items():
        assert torch.equal(weights(recomputing)[name], tensor), name


def test_a_run_may_go_on_with_activation_checkpointing(tmp_path: Path) -> None:
    save(make_trainer(2), tmp_path)
    make_trainer(2, activation_checkpointing=True).load_state(read_state(tmp_path / "state.pt"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_body_computes_the_same(pool: Pool, monkeypatch: pytest.MonkeyPatch, checkpointing: bool) -> None:
    """Graphs are captured but not turned into machine code, which takes a minute on a busy machine."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    plain = make_trainer(3)
    torch.manual_seed(0)
    model = IPT(CONFIG)
    model.load_state_dict(plain.model.state_dict())
    recipe = replace(plain.recipe, activation_checkpointing=checkpointing)
    compiled = Trainer(model, recipe, Runtime(CPU), CONFIG.tasks, compiled=True)
    for trainer in (plain, compiled):
        step(trainer, pool, 3)
    for one, other in zip(plain.collect_figures(), compiled.collect_figures(), strict=True):
        assert one.tasks == other.tasks and list(one[2:]) == pytest.approx(list(other[2:]), rel=1e-3)


def test_a_step_of_several_tasks_is_one_series() -> None:
    one = Figures(3, "derain", 1.0, 0.5, 30.0, 2.0)
    assert one.series == "derain" and one._replace(tasks="derain sr_x2").series == "mixed"
