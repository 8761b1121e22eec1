"""A training recipe: everything that decides the course of a run, as one value that a resumed run must repeat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipt_triton.tasks import Task
from ipt_triton.train.data.feed import Sampler

SCHEDULES = ("cosine", "paper", "constant")
LENGTH = ("steps", "seconds")  # what a resumed run may change


@dataclass(frozen=True)
class Recipe:
    """What decides the course of a run; apart from its length, a resumed run must have the same.

    Attributes:
        steps: optimiser steps, or None to train for `seconds`.
        seconds: wall-clock budget over all resumed parts, or None.
        batch: crops in a micro-batch of one process.
        accumulate: micro-batches in a step of one process.
        processes: that share a step.
        lr: peak learning rate of Adam, reached after `warmup` steps.
        schedule: `cosine` falls to 1 % of `lr` along a cosine; `paper` to 40 % after two thirds; or `constant`.
        ema: decay of the averaged weights.
        clip: largest norm of the gradient.
        contrastive: weight λ of the contrastive loss.
        sampling: tasks are drawn for each `batch` or each `sample`.
        weights: how often a task is drawn, relative to 1 for those not named.
        seed: of weights, crops, tasks and degradations.
        precision: `fp32`, or `bf16` for BF16 autocast.
        data_fraction: of the photographs that are not held out.
        freeze_body: fine-tuning trains head, embedding and tail alone.
    """

    steps: int | None = None
    seconds: float | None = None
    batch: int = 16
    accumulate: int = 1
    processes: int = 1
    lr: float = 4e-4
    schedule: str = "cosine"
    warmup: int = 300
    ema: float = 0.999
    clip: float = 20.0
    contrastive: float = 0.1
    sampling: str = "batch"
    weights: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    precision: str = "bf16"
    data_fraction: float = 1.0
    freeze_body: bool = False

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
        return Sampler(tuple(tasks), self.batch, self.seed, self.sampling, weights)

    @property
    def patches(self) -> int:
        """Crops in a step, over all micro-batches and processes."""
        return self.batch * self.accumulate * self.processes
