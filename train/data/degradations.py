"""Degradations: clean crops become the inputs of a task. Batched torch operations on any device.

Values are RGB on the 0..255 scale, [B, 3, H, W]. A new degradation is one function here and one line in
`DEGRADATIONS`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ipt_triton.tasks import Task, TaskError
from ipt_triton.train.data.chain import chain, numbers
from ipt_triton.train.data.jpeg import WHOLE_FILES, compress, compress_anywhere, mirrored
from ipt_triton.train.data.noise import add_noise, noise, to_uint8_levels
from ipt_triton.train.data.rain import rain

QUALITIES = 10, 95
"""Worst and best JPEG of a task without a nominal quality. The ratio is even: half are below 31."""

MARGINS = {"sr": 2, "real": 8, "auto": 8}
"""By kind of task: pixels around a degraded crop that are needed to make it as the middle of a photograph is."""

AUTO = {"": 0.15, "denoise": 0.25, "dejpeg": 0.2, "derain": 0.15, "real": 0.25}
"""What a picture of unknown degradation has gone through, with the shares; the first one is nothing."""


def degrade(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """The degraded input of a task: [B, 3, H, W] -> [B, 3, H / scale, W / scale].

    Raises:
        TaskError: no degradation is registered for the task's kind.
    """
    if task.kind not in DEGRADATIONS:
        raise TaskError(f"task {task.name}: no degradation of kind {task.kind!r}; there are: {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[task.kind](clean, task, generator)


def training_pair(wide: Tensor, task: Task, generator: Generator, ranged: bool = False) -> tuple[Tensor, Tensor]:
    """Degraded and clean crops from clean ones with `MARGINS` around: the margin is degraded too, then cut off.

    Args:
        wide: [B, 3, S, S], where S = (patch size + 2 · margin) · scale.
        ranged: noise has all strengths up to the task's nominal one.
    """
    if ranged and task.kind == "denoise":
        degraded = noise(wide, task, generator, ranged=True)
    else:
        degraded = degrade(wide, task, generator)
    margin = MARGINS.get(task.kind, 0)
    return cut(degraded, margin), cut(wide, margin * task.scale)


def cut(x: Tensor, margin: int) -> Tensor:
    """[..., H, W] without `margin` pixels at each side."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def bicubic_down(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """MATLAB's imresize: bicubic with a = -0.5, antialiased, rounded to 8 bit."""
    size = [side // task.scale for side in clean.shape[-2:]]
    return to_uint8_levels(F.interpolate(clean, size=size, mode="bicubic", antialias=True))


def jpeg(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """JPEG of `task.quality`, or of any of `QUALITIES` in each sample, for training on crops.

    `jpeg.compress` is what a file of the whole photograph holds.
    """
    low, high = (task.quality, task.quality) if task.quality else QUALITIES
    even = torch.rand(len(clean), device=clean.device, generator=generator)
    quality = (low * (high / low) ** even).round().int()
    return compress_anywhere(clean, quality, generator, WHOLE_FILES)


def gaussian_blur(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """Gaussian blur of standard deviation `task.sigma` pixels, borders mirrored, rounded to 8 bit."""
    reach = math.ceil(4 * task.sigma)
    offsets = torch.arange(-reach, reach + 1, device=clean.device)
    weights = torch.exp(-0.5 * (offsets / task.sigma).square()).to(clean.dtype)
    weights = (weights / weights.sum()).expand(clean.shape[1], 1, 1, -1)
    sides = [side + 2 * reach for side in clean.shape[-2:]]
    blurred = F.conv2d(mirrored(clean, reach, reach, *sides), weights, groups=clean.shape[1])
    return to_uint8_levels(F.conv2d(blurred, weights.transpose(2, 3), groups=clean.shape[1]))


def real(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """`chain`, another one for each sample."""
    random = numbers(generator)
    return torch.cat([chain(one, task.scale, random, generator) for one in clean.split(1)])


def auto(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """One of the degradations that keep the size, or none, for each sample."""
    kinds = numbers(generator).choice(list(AUTO), len(clean), p=list(AUTO.values()))
    samples = [
        DEGRADATIONS[kind](one, replace(task, kind=kind), generator) if kind else one
        for kind, one in zip(kinds.tolist(), clean.split(1), strict=True)
    ]
    return torch.cat(samples)


DEGRADATIONS: dict[str, Callable[[Tensor, Task, Generator], Tensor]] = {
    "sr": bicubic_down,
    "derain": rain,
    "denoise": noise,
    "dejpeg": jpeg,
    "deblur": gaussian_blur,
    "real": real,
    "auto": auto,
}


def seed_of(name: str) -> int:
    """The seed of an image's noise or rain: the first 63 bits of the sha256 of its file name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def degrade_image(clean: np.ndarray, task: Task, seed: int) -> np.ndarray:
    """Degrade uint8 [height, width, 3] -> float32 [height / scale, width / scale, 3]; noise stays unclipped.

    `to_uint8` of the result is what an 8-bit file would hold. The blocks of JPEG start at the corner, as in a file.
    """
    planes = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None].float()
    draws = torch.Generator().manual_seed(seed)
    if task.kind == "denoise" and task.sigma:
        degraded = add_noise(planes, task.sigma, draws)
    elif task.kind == "dejpeg" and task.quality:
        degraded = compress(planes, task.quality)
    else:
        degraded = degrade(planes, task, draws)
    return np.ascontiguousarray(degraded[0].permute(1, 2, 0).numpy())
