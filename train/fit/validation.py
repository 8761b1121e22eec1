"""Validation: the PSNR of a model over fixed crops of photographs that it is not trained on, and over test sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from ipt_triton.metrics import task_psnr, to_uint8
from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import training_pair
from ipt_triton.train.data.feed import Store, generator
from ipt_triton.train.data.sets import Sample, find_images, load_sample
from ipt_triton.train.fit.losses import Group, psnr_of_error
from ipt_triton.train.model.ipt import Network

VALIDATION_CROPS = 48  # of each task
BUSIEST = 4  # places drawn for each of them, of which the busiest is taken: a score of flat crops says little


def validation_groups(store: Store, task: Task, patch_size: int, batch: int = 16) -> Iterator[Group]:
    """The same crops of held-out photographs with the same degradation, every time."""
    crops = store.crops(task, patch_size, VALIDATION_CROPS, generator(store.device, 1), BUSIEST)
    draws = generator(store.device, 2)
    for first in range(0, VALIDATION_CROPS, batch):
        clean = crops.clean[first : first + batch].float()
        if crops.degraded is None:
            yield Group(task.name, *training_pair(clean, task, draws))
        else:
            yield Group(task.name, crops.degraded[first : first + batch].float(), clean)


@torch.no_grad()
def validate(model: Network, store: Store, tasks: Sequence[Task]) -> dict[str, float]:
    """Mean PSNR (RGB, dB) by task name over fixed crops of held-out photographs."""
    result = {}
    for task in tasks:
        scores = []
        for _, degraded, clean in validation_groups(store, task, model.config.patch_size):
            error = (model(degraded, task.name).clamp(0, 255) - clean).square().flatten(1).mean(1)
            scores.append(psnr_of_error(error))
        result[task.name] = round(torch.cat(scores).mean().item(), 3)
    return result


class ImageSet(NamedTuple):
    """A test set for one task: whole images with their degraded versions."""

    name: str
    task: Task
    samples: list[Sample]


def load_set(folder: Path, task: Task) -> ImageSet:
    """Read a test set. Raises ImageSetError and UnreadableImage as `load_sample` does."""
    samples = [load_sample(clean, degraded, task) for clean, degraded in find_images(folder, task)]
    return ImageSet(f"{task.name} {folder.resolve().name}", task, samples)


def measure_sets(model: Network, sets: Sequence[ImageSet]) -> dict[str, float]:
    """By name of set the mean PSNR (dB) as the field measures it for the task, of 8-bit inputs and results."""
    if not sets:
        return {}
    from ipt_triton.train.model.infer import restore_image  # needs Pillow, which machines with packed pools may lack

    return {
        name: round(
            fmean(
                task_psnr(to_uint8(restore_image(model, to_uint8(s.degraded), task.name)), s.clean, task)
                for s in samples
            ),
            3,
        )
        for name, task, samples in sets
    }
