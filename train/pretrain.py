"""Pre-training: all tasks of an IPT at once, from synthetic degradations of clean photographs.

    python -m train.pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h
    python -m train.pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h --resume

As in the paper (section 3.2) every batch belongs to one task drawn at random and trains that task's head, tail and
embedding with the shared body. The loss is L1. Training starts from the identity (`train.model.identity_start`), runs
Adam with warm-up and a cosine schedule over the steps or the time given, and averages the weights (EMA).

`--output` receives `checkpoint/` (averaged weights, servable) and `state.pt` (everything that `--resume` needs), both
replaced atomically every few minutes, at the end, and on SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train.atomic import atomic_file
from train.checkpoint import CheckpointError, save_checkpoint
from train.data import DataError, Pool, load_pool, random_crops
from train.degrade import degrade
from train.model import IPT, PRESETS, ConfigError, IPTConfig, identity_start, preset
from train.tasks import OFFICIAL_TASKS, Task, TaskError, find_task

logger = logging.getLogger(__name__)

HELD_OUT = 12  # photographs that are never trained on
VALIDATION_CROPS = 48  # fixed crops of those for each task


class TrainingError(RuntimeError):
    """Training that cannot start or go on."""


@dataclass
class Recipe:
    """What decides the course of a run; `--resume` must find the same recipe.

    Attributes:
        steps: optimiser steps, or None to train for `seconds`.
        seconds: wall-clock budget over all resumed parts, or None.
        batch: crops in a step.
        lr: peak learning rate of Adam, reached after `warmup` steps, falling to 1 % along a cosine.
        ema: decay of the averaged weights.
        clip: largest norm of the gradient.
        seed: of weights, crops, tasks and degradations.
        precision: `fp32`, or `bf16` for BF16 autocast.
    """

    steps: int | None = None
    seconds: float | None = None
    batch: int = 16
    lr: float = 4e-4
    warmup: int = 300
    ema: float = 0.999
    clip: float = 20.0
    seed: int = 0
    precision: str = "bf16"

    def learning_rate(self, step: int, progress: float) -> float:
        """Learning rate of a step; `progress` is the share of the run that is over, 0 to 1."""
        cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.lr * min(1.0, (step + 1) / max(self.warmup, 1)) * cosine


@dataclass
class Trainer:
    """A run: model, its average, optimiser, random state and clock.

    Attributes:
        model: trained in place.
        average: exponential moving average of the model, what is validated and saved.
        step: optimiser steps done.
        elapsed: seconds of training so far, over all resumed parts.
    """

    config: IPTConfig
    recipe: Recipe
    device: torch.device
    step: int = 0
    elapsed: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.recipe.seed)
        self.model = identity_start(IPT(self.config)).to(self.device).train()
        self.average = IPT(self.config).to(self.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=self.recipe.lr)
        self.crop_generator = torch.Generator().manual_seed(self.recipe.seed)
        self.generator = torch.Generator(self.device).manual_seed(self.recipe.seed)

    def progress(self) -> float:
        """Share of the run that is over: of the steps or of the seconds, whichever is further."""
        shares = [0.0]
        if self.recipe.steps:
            shares.append(self.step / self.recipe.steps)
        if self.recipe.seconds:
            shares.append(self.elapsed / self.recipe.seconds)
        return max(shares)

    def train_step(self, pool: Pool) -> tuple[Task, float]:
        """One optimiser step on one task drawn at random; returns the task and its L1 loss in grey levels.

        Raises:
            TrainingError: the loss is NaN or infinite; names step and task, and changes no weight.
        """
        tasks = self.config.tasks
        task = tasks[int(torch.randint(len(tasks), (), generator=self.crop_generator))]
        side = self.config.patch_size * task.scale
        clean = random_crops(pool, side, self.recipe.batch, self.crop_generator).to(self.device)
        degraded = degrade(clean, task, self.generator)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step, self.progress())
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            restored = self.model(degraded, task.name)
        loss = F.l1_loss(restored.float(), clean)
        if not torch.isfinite(loss):
            raise TrainingError(f"the loss of step {self.step}, task {task.name}, is {loss.item()}; try a lower --lr")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        self.step += 1
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, current in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.lerp_(current, 1 - decay)
        return task, loss.item()

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as plain values and tensors."""
        return {
            "config": self.config.to_dict(),
            "recipe": self.recipe.__dict__,
            "step": self.step,
            "elapsed": self.elapsed,
            "history": self.history,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "crop_generator": self.crop_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue a saved run.

        Raises:
            TrainingError: it was of another architecture, or of another recipe apart from its length.
        """
        if state["config"] != self.config.to_dict():
            raise TrainingError("the saved run is of another architecture or task table; choose another --output")
        lasting = lambda recipe: {k: v for k, v in recipe.items() if k not in ("steps", "seconds")}  # noqa: E731
        old, new = lasting(state["recipe"]), lasting(self.recipe.__dict__)
        if changed := [f"{k} {old[k]} is now {new[k]}" for k in new if old[k] != new[k]]:
            raise TrainingError(f"the saved run had other settings: {', '.join(changed)}; choose another --output")
        self.step, self.elapsed, self.history = state["step"], state["elapsed"], state["history"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.crop_generator.set_state(state["crop_generator"])
        self.generator.set_state(state["generator"])


@torch.no_grad()
def validate(model: IPT, pool: Pool, device: torch.device, batch: int = 16) -> dict[str, float]:
    """Mean PSNR (RGB, dB) by task name over fixed crops of held-out photographs with fixed degradations."""
    result = {}
    for task in model.config.tasks:
        crops = random_crops(
            pool, model.config.patch_size * task.scale, VALIDATION_CROPS, torch.Generator().manual_seed(1)
        )
        generator = torch.Generator(device).manual_seed(1)
        scores: list[Tensor] = []
        for clean in crops.to(device).split(batch):
            restored = model(degrade(clean, task, generator), task.name).clamp(0, 255)
            scores.append(10 * torch.log10(255**2 / (restored - clean).square().flatten(1).mean(1).clamp(min=1e-3)))
        result[task.name] = round(torch.cat(scores).mean().item(), 3)
    return result


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `45m` or `2h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 45m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def git_commit() -> str:
    """Commit of the source that runs, or `unknown` outside a repository."""
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return "unknown"
    return run.stdout.strip() or "unknown"


def save(trainer: Trainer, output: Path, provenance: dict[str, Any]) -> None:
    """Write `state.pt` and the averaged weights as `checkpoint/`, each atomically."""
    with atomic_file(output / "state.pt") as path:
        torch.save(trainer.state(), path)
    provenance = {
        **provenance,
        "steps": trainer.step,
        "patches": trainer.step * trainer.recipe.batch,
        "hours": round(trainer.elapsed / 3600, 3),
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    quality = {"held_out_psnr_rgb": trainer.history[-1]["psnr"]} if trainer.history else {}
    save_checkpoint(trainer.average, output / "checkpoint", provenance, quality)


def train(trainer: Trainer, pool: Pool, output: Path, interval: float = 180.0) -> None:
    """Run to the end of the recipe, or until SIGINT or SIGTERM; validates and saves every `interval` seconds."""
    training, held_out = pool.split(HELD_OUT)
    provenance = {
        "trainer": "train.pretrain",
        "git_commit": git_commit(),
        "data": {
            "photographs": len(training.images),
            "megapixels": round(training.megapixels, 1),
            "held_out": HELD_OUT,
        },
        "recipe": trainer.recipe.__dict__,
        "device": trainer.device.type,
        "torch": torch.__version__,
    }
    stop: list[int] = []
    previous = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    offset, started, reported = trainer.elapsed, time.monotonic(), time.monotonic()
    losses: dict[str, float] = {}
    first_step = trainer.step

    def report() -> None:
        psnr = validate(trainer.average, held_out, trainer.device)
        trainer.history.append({"step": trainer.step, "seconds": round(trainer.elapsed), "psnr": psnr})
        save(trainer, output, provenance)
        rate = (trainer.step - first_step) * trainer.recipe.batch / max(trainer.elapsed - offset, 1e-9)
        logger.info(
            "step %d, %.0f %% done, %.1f patches/s, loss %s, held-out PSNR %s",
            trainer.step,
            100 * min(trainer.progress(), 1),
            rate,
            " ".join(f"{k} {v:.2f}" for k, v in sorted(losses.items())),
            " ".join(f"{k} {v:.2f}" for k, v in psnr.items()),
        )

    try:
        while trainer.progress() < 1 and not stop:
            task, loss = trainer.train_step(training)
            losses[task.name] = loss if task.name not in losses else 0.95 * losses[task.name] + 0.05 * loss
            trainer.elapsed = offset + time.monotonic() - started
            if time.monotonic() - reported >= interval:
                report()
                reported = time.monotonic()
                trainer.elapsed = offset + reported - started
        report()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m train.pretrain",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = Recipe()
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR", help="folders of clean photographs"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoint and state")
    parser.add_argument("--preset", default="ipt-tiny", choices=sorted(PRESETS))
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="names or ids; all six by default")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--time-budget", type=parse_duration, metavar="TIME", help="wall-clock time: 90s, 45m, 2h")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="crops in a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=defaults.lr, help="peak learning rate (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=defaults.warmup, help="steps (default %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=defaults.precision)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--interval", type=parse_duration, default=180.0, metavar="TIME", help="between saves (default 3m)"
    )
    arguments = parser.parse_args(argv)
    if not arguments.steps and not arguments.time_budget:
        parser.error("how long? give --steps or --time-budget")
    for name in ("steps", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is not allowed: it must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done or stopped and saved, 1 failed, 2 wrong arguments or data."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        tasks = [find_task(OFFICIAL_TASKS, t) for t in arguments.tasks or [t.name for t in OFFICIAL_TASKS]]
        recipe = Recipe(
            steps=arguments.steps,
            seconds=arguments.time_budget,
            batch=arguments.batch,
            lr=arguments.lr,
            warmup=arguments.warmup,
            seed=arguments.seed,
            precision=arguments.precision,
        )
        trainer = Trainer(preset(arguments.preset, tasks), recipe, torch.device(arguments.device))
        state = arguments.output / "state.pt"
        if arguments.resume and not state.is_file():
            raise TrainingError(f"nothing to resume: there is no {state}")
        if not arguments.resume and state.exists():
            raise TrainingError(f"{state} exists; add --resume to continue that run, or choose another --output")
        if arguments.resume:
            trainer.load_state(torch.load(state, map_location=trainer.device, weights_only=True))
        largest = max(t.scale for t in tasks) * trainer.config.patch_size
        pool = load_pool(arguments.data, min_side=largest)
        train(trainer, pool, arguments.output, arguments.interval)
    except (ConfigError, DataError, TaskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
