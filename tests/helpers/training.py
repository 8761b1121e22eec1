"""What the tests of training share: photographs, a very small model, and its weights as one dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.data.feed import MemoryFeed, Store
from ipt_triton.train.data.pool import Pool
from ipt_triton.train.fit.loop import Trainer
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.model.ipt import IPT, IPTConfig
from ipt_triton.train.model.start import identity_start

CONFIG = IPTConfig(features=4, encoder_layers=1, decoder_layers=1, heads=2, tasks=OFFICIAL_TASKS[3:])
CPU = torch.device("cpu")


@contextmanager
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


def write_photographs(folder: Path, count: int, side: int = 192) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(photograph(number, side)).save(folder / f"{number:02d}.png")


def make_trainer(steps: int | None, config: IPTConfig = CONFIG, **settings: Any) -> Trainer:
    values: dict[str, Any] = {"steps": steps, "batch": (4,), "warmup": 5, "precision": "fp32", **settings}
    recipe = Recipe(**values)
    torch.manual_seed(recipe.seed)
    return Trainer(identity_start(IPT(config)), recipe, Runtime(CPU), config.tasks)


def feed_of(trainer: Trainer, pool: Pool) -> MemoryFeed:
    sampler = trainer.recipe.sampler(trainer.trained)
    return MemoryFeed(Store(pool, CPU), sampler, trainer.model.config.patch_size)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of the model's and the average's weights."""
    return {
        **{f"model.{n}": t.clone() for n, t in trainer.model.state_dict().items()},
        **{f"average.{n}": t.clone() for n, t in trainer.average.state_dict().items()},
    }
