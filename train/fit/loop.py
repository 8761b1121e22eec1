"""The training loop that pre-training and fine-tuning share: steps, averaged weights, reports, saves, resumption.

    trainer = Trainer(model, Recipe(steps=1000), Runtime(torch.device("cpu")), model.config.tasks)
    train(trainer, feed, held_out, Path("runs/mine"))

The loop never waits for the device: losses stay there until the next report. A loss or gradient that is not finite is
found then, before anything is saved, so what was saved last stays good.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import training_pair
from ipt_triton.train.data.feed import Crops, Feed, Store, generator, parts_from
from ipt_triton.train.errors import MissingPackage, TrainingError
from ipt_triton.train.fit.figures import Display, Figures
from ipt_triton.train.fit.losses import Group, Objective
from ipt_triton.train.fit.recipe import CHANGEABLE, Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.fit.state import STATE, write_checkpoint, write_state
from ipt_triton.train.fit.store import RunStore
from ipt_triton.train.fit.validation import ImageSet, measure_sets, validate
from ipt_triton.train.model.ipt import IPT, Network

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cadence:
    """Seconds between two progress lines, and between two validations with a save; and how many saves are kept."""

    report: float = 30.0
    save: float = 180.0
    keep: int = 0


class Trainer:
    """A run: model, its average, optimiser and clock.

    Args:
        model: trained in place, those of its parameters that require gradients.
        trained: tasks that are drawn.
        provenance: for the checkpoint, beside what the trainer knows itself.
        compiled: run the body through torch.compile.

    Attributes:
        average: exponential moving average of the model, what is validated and saved.
        step: optimiser steps done.
        patches: crops seen, over all processes.
        elapsed: seconds of training so far, over all resumed parts.
        history: step, seconds, held-out PSNR by task and PSNR of test sets by name at each validation.
    """

    def __init__(
        self,
        model: Network,
        recipe: Recipe,
        runtime: Runtime,
        trained: Sequence[Task],
        provenance: dict[str, Any] | None = None,
        compiled: bool = False,
    ):
        self.recipe, self.runtime, self.trained = recipe, runtime, tuple(trained)
        self.provenance = provenance or {}
        self.step, self.patches, self.elapsed = 0, 0, 0.0
        self.history: list[dict[str, Any]] = []
        self.model = model.to(runtime.device).train()
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = [p for p in zip(self.average.parameters(), model.parameters(), strict=True) if p[1].requires_grad]
        self._averages: list[Tensor] = [average for average, _ in pairs]
        self._parameters: list[Tensor] = [parameter for _, parameter in pairs]
        self.optimiser = torch.optim.Adam(self._parameters, lr=recipe.lr, betas=(0.9, 0.999), fused=True)
        self.objective = runtime.wrap(
            Objective(model, recipe.contrastive, recipe.precision, compiled, recipe.activation_checkpointing)
        )
        self._pending: list[tuple[int, str, Tensor]] = []

    def progress(self, step: int | None = None) -> float:
        """Share of the run that is over: of the steps (at this one or another) or seconds, whichever is further."""
        shares = [0.0]
        if self.recipe.steps:
            shares.append((self.step if step is None else step) / self.recipe.steps)
        if self.recipe.seconds:
            shares.append(self.elapsed / self.recipe.seconds)
        return max(shares)

    def train_step(self, batches: Iterator[list[Crops]]) -> None:
        """One optimiser step on the next `accumulate` micro-batches; `collect_figures` returns what it measured."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step, self.progress())
        self.optimiser.zero_grad(set_to_none=True)
        figures, names = [], []
        seen = 0
        for number in range(self.recipe.accumulate):
            groups = self._degrade(next(batches), number)
            with self.runtime.no_sync(self.objective, number < self.recipe.accumulate - 1):
                loss, measured = self.objective(groups)
                self.runtime.backward(loss / self.recipe.accumulate)
            figures.append(measured)
            names += [g.task for g in groups]
            seen += sum(len(g.clean) for g in groups)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip)
        self.optimiser.step()
        self._pending.append(
            (self.step, " ".join(sorted(set(names))), torch.cat([sum(figures) / len(figures), norm[None]]))
        )
        self.step += 1
        self.patches += seen * self.runtime.processes
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    def _degrade(self, crops: Sequence[Crops], number: int) -> list[Group]:
        """Floats from a micro-batch, degraded unless it came in pairs."""
        part = number * self.runtime.processes + self.runtime.rank
        groups = []
        for place, (task, clean, degraded) in enumerate(crops):
            target = clean.to(self.runtime.device).float()
            if degraded is None:
                draws = generator(self.runtime.device, self.recipe.seed, self.step, part, place)
                pair = training_pair(target, task, draws, ranged=self.recipe.noise == "ranged")
                groups.append(Group(task.name, *pair))
            else:
                groups.append(Group(task.name, degraded.to(self.runtime.device).float(), target))
        return groups

    def collect_figures(self) -> list[Figures]:
        """Wait for the steps since the last call and return what they measured, averaged over the processes.

        Raises:
            TrainingError: a loss or gradient was NaN or infinite; names step and task.
        """
        if not self._pending:
            return []
        values = self.runtime.mean(torch.stack([v for _, _, v in self._pending])).tolist()
        steps = [Figures(step, tasks, *v) for (step, tasks, _), v in zip(self._pending, values, strict=True)]
        self._pending.clear()
        for figures in steps:
            for name, value in (("loss", figures.pixel + figures.contrastive), ("gradient", figures.gradient)):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the {name} of step {figures.step}, task {figures.tasks}, is {value}; "
                        "what was saved before is kept; try a lower --lr"
                    )
        return steps

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain values and tensors."""
        provenance = {
            **self.provenance,
            "recipe": asdict(self.recipe),
            "steps": self.step,
            "patches": self.patches,
            "hours": round(self.elapsed / 3600, 3),
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        return {
            "config": self.model.config.to_dict(),
            "recipe": asdict(self.recipe),
            "trained": [t.name for t in self.trained],
            "step": self.step,
            "patches": self.patches,
            "elapsed": self.elapsed,
            "history": self.history,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "provenance": provenance,
            "quality": self._quality(),
        }

    def _quality(self) -> dict[str, dict[str, float]]:
        """Figures of the last validation, for the checkpoint."""
        if not self.history:
            return {}
        sets = self.history[-1]["sets"]
        return {"held_out_psnr_rgb": self.history[-1]["psnr"], **({"validation_psnr": sets} if sets else {})}

    def is_best(self) -> bool:
        """Whether no validation before the last one gave a higher mean, over the test sets or else over the tasks."""
        means = [fmean((h["sets"] or h["psnr"]).values()) for h in self.history]
        return bool(means) and means[-1] == max(means)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue a saved run.

        Raises:
            TrainingError: it was of another architecture, or of another recipe apart from what may change.
        """
        if state["config"] != self.model.config.to_dict() or state["trained"] != [t.name for t in self.trained]:
            raise TrainingError("the saved run is of another architecture or task table; choose another --output")
        old, new = state["recipe"], asdict(self.recipe)
        if changed := [
            f"{k} {old.get(k)} is now {new[k]}" for k in new if k not in CHANGEABLE and old.get(k) != new[k]
        ]:
            raise TrainingError(f"the saved run had other settings: {', '.join(changed)}; choose another --output")
        self.step, self.patches, self.elapsed = state["step"], state["patches"], state["elapsed"]
        self.history = state["history"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


def save(trainer: Trainer, output: Path, keep: int = 0) -> None:
    """Write `state.pt`, and of an IPT the averaged weights as `checkpoint/`, each atomically.

    They are written to `best/` as well if the last validation is the best so far, and to `steps/NUMBER/`, of which the
    last `keep` stay.

    Raises:
        TrainingError: a weight is not finite; nothing is written.
        StateError: the checkpoint cannot be written.
    """
    state = trainer.state()
    for part in ("model", "average"):
        for name, tensor in state[part].items():
            if not torch.isfinite(tensor).all():
                raise TrainingError(
                    f"after step {trainer.step} the weight {name} is not finite; what was saved before is kept; try a "
                    "lower --lr"
                )
    write_state(state, output / STATE)
    if not isinstance(trainer.model, IPT):
        return
    copies = ["checkpoint"] + ["best"] * trainer.is_best() + [f"steps/{trainer.step:08d}"] * bool(keep)
    try:
        for copy_of in copies:
            write_checkpoint(state, output / copy_of)
    except MissingPackage:
        logger.warning("without safetensors no checkpoint is written; later: ipt-train checkpoint state.pt FOLDER")
    for old in sorted((output / "steps").glob("*"))[:-keep] if keep else ():
        shutil.rmtree(old)


def train(
    trainer: Trainer,
    feed: Feed,
    held_out: Store,
    output: Path,
    cadence: Cadence = Cadence(),
    display: Display | None = None,
    sets: Sequence[ImageSet] = (),
    store: RunStore | None = None,
) -> None:
    """Run to the end of the recipe, or until SIGINT or SIGTERM, which save as well.

    Args:
        sets: test sets to measure at each validation.
        store: gets a copy of what is saved.

    Raises:
        TrainingError: a loss or gradient is not finite.
        StateError: the checkpoint cannot be written, or the last copy.
    """
    runtime = trainer.runtime
    before, started = trainer.elapsed, time.monotonic()
    saved = reported = started
    report = Report(trainer, display)
    with stop_signals() as received:

        def read_clock() -> tuple[float, bool, bool, bool]:
            """Seconds of training, and whether to stop, report or save; all processes heed the first one's."""
            now = time.monotonic()
            due = now - reported >= cadence.report, now - saved >= cadence.save
            return before + now - started, bool(received), *due

        def validate_and_save(ended: bool = False) -> None:
            report.progress()
            if runtime.rank == 0:
                report.held_out(held_out, sets)
                save(trainer, output, cadence.keep)
                if store is not None:
                    store.put(output, may_fail=not ended)

        recipe = trainer.recipe
        sizes = lambda step: recipe.crops(trainer.progress(step))  # noqa: E731
        batches = feed.batches(parts_from(trainer.step, recipe.accumulate, sizes, runtime.rank, runtime.processes))
        first = trainer.step
        while trainer.progress() < 1:
            if (trainer.step - first) % runtime.agree_every == 0:
                trainer.elapsed, stop, report_is_due, save_is_due = runtime.from_first(read_clock)
                if stop or trainer.progress() >= 1:
                    break
                if save_is_due:
                    validate_and_save()
                    saved = reported = time.monotonic()
                elif report_is_due:
                    report.progress()
                    reported = time.monotonic()
            trainer.train_step(batches)
        trainer.elapsed = before + time.monotonic() - started
        validate_and_save(ended=True)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Report:
    """Progress lines: what the steps since the last one measured, and how fast they were."""

    def __init__(self, trainer: Trainer, display: Display | None):
        self.trainer, self.display = trainer, display
        self.since, self.patches, self.started_at = time.monotonic(), trainer.patches, trainer.progress()
        self.started = self.since

    def progress(self) -> None:
        """Log the steps since the last call. Raises TrainingError as `Trainer.collect_figures` does."""
        trainer, steps = self.trainer, self.trainer.collect_figures()
        now, done = time.monotonic(), trainer.progress()
        if not steps or trainer.runtime.rank:
            return
        rate = (trainer.patches - self.patches) / (now - self.since)
        left = (now - self.started) * (1 - min(done, 1)) / max(done - self.started_at, 1e-9)
        means = {
            name: [sum(v) / len(v) for v in zip(*(s[2:] for s in steps if s.series == name), strict=True)]
            for name in sorted({s.series for s in steps})
        }
        logger.info(
            "step %d, %.0f %% done, %.1f patches/s, %s left, %s",
            trainer.step,
            100 * min(done, 1),
            rate,
            f"{left / 3600:.1f} h" if left >= 3600 else f"{left / 60:.0f} min" if left >= 60 else f"{left:.0f} s",
            ", ".join(f"{name} loss {v[0]:.2f} PSNR {v[2]:.2f}" for name, v in means.items()),
        )
        if self.display:
            self.display.show_steps(steps, rate, trainer.optimiser.param_groups[0]["lr"])
        self.since, self.patches = now, trainer.patches

    def held_out(self, store: Store, sets: Sequence[ImageSet]) -> None:
        """Validate the averaged weights and add to the history."""
        trainer = self.trainer
        psnr, of_sets = validate(trainer.average, store, trainer.trained), measure_sets(trainer.average, sets)
        figures = {"step": trainer.step, "seconds": round(trainer.elapsed), "psnr": psnr, "sets": of_sets}
        trainer.history.append(figures)
        for title, values in (("held-out", psnr), ("test sets'", of_sets)):
            if values:
                line = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
                logger.info("step %d, %s PSNR %s", trainer.step, title, line)
        if self.display:
            self.display.show_held_out(trainer.step, psnr, trainer.average, store)
        self.since = time.monotonic()
