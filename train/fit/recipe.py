"""A training recipe: everything that decides the course of a run, as one value that a resumed run must repeat.

`Recipe` is the one list of its fields: their defaults, command-line arguments and help.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ipt_triton.tasks import Task
from ipt_triton.train.data.feed import Sampler

SCHEDULES = ("cosine", "paper", "constant")
CHANGEABLE = ("steps", "seconds", "batch", "accumulate", "processes", "precision", "activation_checkpointing")
"""Fields in which a resumed run may differ."""
PAPER_LAMBDA = 0.1
PAPER = {"lr": 5e-5, "contrastive": PAPER_LAMBDA, "noise": "nominal", "busiest": 1}
"""What the schedule of the paper brings along, unless the arguments say otherwise."""


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `45m` or `2h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90s, 45m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def parse_weight(text: str) -> tuple[str, float]:
    """`denoise_50=2` as name or id, and weight."""
    name, _, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a weight of a task; write denoise_50=2, above 0")
    return name, value


def option(value: Any, flag: str, help: str | None = None, command: str = "", **more: Any) -> Any:
    """A field with its default and its command-line argument.

    Args:
        value: the default; a number gives the argument its type, `dict` stands for an empty one.
        command: the sub-command that alone has it.
        more: of argparse's `add_argument`.
    """
    more = {"default": () if value is dict else value, "help": help, **more}
    if type(value) in (int, float):
        more.setdefault("type", type(value))
    metadata = {"flag": flag, "command": command, "more": more}
    return field(default_factory=dict, metadata=metadata) if value is dict else field(default=value, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """What decides the course of a run; but for what is `CHANGEABLE`, a resumed run must have the same.

    `steps` or `seconds`, over all resumed parts, end it, whichever is reached first. The rate of Adam rises to `lr` in
    `warmup` steps; then `cosine` falls to 1 % of it along a cosine, `paper` to 40 % after two thirds, and `constant`
    does not fall. `batch` crops are a micro-batch, and `accumulate` micro-batches in each of `processes` a step; of
    several sizes each has an equal share of the run.
    """

    steps: int | None = option(None, "--steps", "optimiser steps", type=int)
    seconds: float | None = option(
        None, "--time-budget", "wall-clock time: 90s, 45m, 2h", type=parse_duration, metavar="TIME"
    )
    batch: tuple[int, ...] = option(
        (4, 8, 16),
        "--batch",
        "crops at a time on each device; of several numbers each for an equal share of the run (default 4 8 16)",
        default=None,
        nargs="+",
        type=int,
        metavar="N",
    )
    accumulate: int = option(1, "--accumulate", "times these in a step (default %(default)s)", metavar="N")
    processes: int = 1
    lr: float = option(4e-4, "--lr", "peak learning rate", default=None)
    schedule: str = option("cosine", "--schedule", "of the learning rate (default %(default)s)", choices=SCHEDULES)
    warmup: int = option(300, "--warmup", "steps (default %(default)s)")
    ema: float = option(0.999, "--ema", "decay of the averaged weights (default %(default)s)")
    clip: float = option(20.0, "--clip", "largest norm of the gradient (default %(default)s)")
    contrastive: float = option(
        0.0,
        "--contrastive",
        "weight of the contrastive loss (default 0, which leaves it out; 0.1 with --schedule paper)",
        "pretrain",
        default=None,
        metavar="λ",
    )
    sampling: str = option(
        "batch", "--task-sampling", "a task per step or per crop", "pretrain", choices=("batch", "sample")
    )
    weights: Mapping[str, float] = option(
        dict, "--task-weights", "draw it W times as often", "pretrain", nargs="+", type=parse_weight, metavar="TASK=W"
    )
    busiest: int = option(
        4,
        "--busiest",
        "draw K places for a crop and take the one with most detail (default 4; 1 with --schedule paper)",
        default=None,
        metavar="K",
    )
    noise: str = option(
        "ranged",
        "--noise",
        "of tasks with a nominal σ: half of the samples have any from 0 to it, or all have it "
        "(default ranged; nominal with --schedule paper)",
        default=None,
        choices=("ranged", "nominal"),
    )
    seed: int = option(0, "--seed")
    precision: str = option(
        "fp32",
        "--precision",
        "auto takes BF16 where the device computes it fast (default auto)",
        default="auto",
        choices=("auto", "fp32", "bf16"),
    )
    activation_checkpointing: bool = option(
        False,
        "--activation-checkpointing",
        "compute the layers of encoder and decoder again in the backward pass, which takes less memory and more time",
        action="store_true",
    )
    data_fraction: float = option(1.0, "--data-fraction", "train on this share of them (default all)", metavar="F")
    freeze_body: bool = option(
        False, "--freeze-body", "train head, embedding and tail alone", "finetune", action="store_true"
    )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, command: str) -> None:
        """The arguments of the fields that a sub-command has."""
        for f in fields(cls):
            if f.metadata.get("command") in ("", command):
                parser.add_argument(f.metadata["flag"], dest=f.name, **f.metadata["more"])

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, **decided: Any) -> Recipe:
        """The recipe that arguments describe: those left out have the defaults, and `decided` goes before all."""
        given = {f.name: value for f in fields(cls) if (value := getattr(arguments, f.name, None)) is not None}
        paper = PAPER if given.get("schedule") == "paper" else {}
        return cls(**{**paper, **given, **decided})

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch", tuple(self.batch))

    def learning_rate(self, step: int, progress: float) -> float:
        """Learning rate of a step; `progress` is the share of the run that is over, 0 to 1."""
        progress = min(progress, 1.0)
        falling = {
            "cosine": 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)),
            "paper": 1.0 if progress < 2 / 3 else 0.4,  # 5e-5, then 2e-5
            "constant": 1.0,
        }
        return self.lr * min(1.0, (step + 1) / max(self.warmup, 1)) * falling[self.schedule]

    def sampler(self, tasks: Sequence[Task]) -> Sampler:
        """How these tasks are drawn."""
        weights = tuple(self.weights.get(t.name, 1.0) for t in tasks)
        return Sampler(tuple(tasks), self.seed, self.sampling, weights, self.busiest)

    def crops(self, progress: float) -> int:
        """Crops in a micro-batch; `progress` is the share of the run that is over, 0 to 1."""
        return self.batch[min(int(progress * len(self.batch)), len(self.batch) - 1)]
