"""Degradations: clean crops become the inputs of a task. Batched torch operations on any device.

Values are RGB on the 0..255 scale, [B, 3, H, W]. A new degradation is one function here and one line in
`DEGRADATIONS`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ipt_triton.tasks import Task, TaskError
from ipt_triton.train.data.jpeg import BLOCK, compress


def degrade(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """The degraded input of a task: [B, 3, H, W] -> [B, 3, H / scale, W / scale].

    Raises:
        TaskError: no degradation is registered for the task's kind.
    """
    if task.kind not in DEGRADATIONS:
        raise TaskError(f"task {task.name}: no degradation of kind {task.kind!r}; there are: {', '.join(DEGRADATIONS)}")
    return DEGRADATIONS[task.kind](clean, task, generator)


def to_uint8_levels(x: Tensor) -> Tensor:
    """Clip and round to the 256 levels that an 8-bit file holds; stays float."""
    return x.clamp(0, 255).round()


def bicubic_down(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """MATLAB's imresize: bicubic with a = -0.5, antialiased, rounded to 8 bit."""
    size = [side // task.scale for side in clean.shape[-2:]]
    return to_uint8_levels(F.interpolate(clean, size=size, mode="bicubic", antialias=True))


def add_noise(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """White Gaussian noise of standard deviation `task.sigma`; float, neither clipped nor rounded.

    `to_uint8_levels` of it is what an 8-bit file holds.
    """
    return clean + task.sigma * torch.randn(clean.shape, device=clean.device, dtype=clean.dtype, generator=generator)


def gaussian_noise(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """`add_noise` for training on both kinds of input.

    Every second sample is clipped and rounded, as a noisy photo file is; the others stay float, as in the field's
    benchmarks.
    """
    noisy = add_noise(clean, task, generator)
    noisy[::2] = to_uint8_levels(noisy[::2])
    return noisy


RAIN_REACH = 30  # half the longest streak, in pixels


def rain(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """A grey layer of rain streaks added to the picture and clipped (the model of Rain100L).

    Per sample: one direction within 35° of the vertical; two layers of streaks with their own density, length
    (16 to 60 px), thickness (about 1 to 3 px) and brightness.
    """
    b, _, height, width = clean.shape
    uniform = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, device=clean.device, generator=generator)  # noqa: E731
    axis = torch.arange(-RAIN_REACH, RAIN_REACH + 1, device=clean.device, dtype=clean.dtype)
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    angle = uniform(-1, 1).pow(3) * math.radians(35)
    strength = uniform(0.3, 1.0)
    layers = torch.zeros(b, height, width, device=clean.device, dtype=clean.dtype)
    for _ in range(2):
        tilt = angle + uniform(-0.03, 0.03)
        along, across = y * tilt.cos() + x * tilt.sin(), x * tilt.cos() - y * tilt.sin()
        half_length, thickness = uniform(8, RAIN_REACH), uniform(0.4, 0.9)
        streak = (1 - (along / half_length).square()).clamp(min=0) * torch.exp(-0.5 * (across / thickness).square())
        canvas = (b, height + 2 * RAIN_REACH, width + 2 * RAIN_REACH)
        drops = torch.rand(canvas, device=clean.device, generator=generator)
        density = uniform(0.001, 0.006) / (half_length / 8)
        brightness = -50 * strength * torch.rand(canvas, device=clean.device, generator=generator).clamp(min=1e-6).log()
        impulses = torch.where(drops < density, brightness.clamp(max=255), 0)
        layers += F.conv2d(impulses[None], streak[:, None], groups=b)[0]
    return to_uint8_levels(clean + layers[:, None])


def jpeg(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """JPEG of `task.quality` for training on crops: its block grid is anywhere, as in a tile of a photograph.

    The border is mirrored. One place of the grid per batch, so that a batch is one call. `jpeg.compress` is what a
    file of the whole photograph holds.
    """
    top, left = torch.randint(BLOCK, (2,), device=clean.device, generator=generator).split(1)
    height, width = clean.shape[-2:]
    coded = compress(_mirrored(clean, top, left, height + BLOCK, width + BLOCK), task.quality)
    rows, columns = (n + torch.arange(side, device=clean.device) for n, side in ((top, height), (left, width)))
    return coded[..., rows[:, None], columns]


def _mirrored(x: Tensor, top: Tensor | int, left: Tensor | int, height: int, width: int) -> Tensor:
    """`height` times `width` pixels that begin `top` and `left` pixels outside; what is outside is mirrored."""
    sides = (height, top, x.shape[-2]), (width, left, x.shape[-1])
    periods = [((torch.arange(side, device=x.device) - before).remainder(2 * n), n) for side, before, n in sides]
    rows, columns = (torch.minimum(period, 2 * n - 1 - period) for period, n in periods)
    return x[..., rows[:, None], columns]


def gaussian_blur(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """Gaussian blur of standard deviation `task.sigma` pixels, borders mirrored, rounded to 8 bit."""
    reach = math.ceil(4 * task.sigma)
    offsets = torch.arange(-reach, reach + 1, device=clean.device)
    weights = torch.exp(-0.5 * (offsets / task.sigma).square()).to(clean.dtype)
    weights = (weights / weights.sum()).expand(clean.shape[1], 1, 1, -1)
    sides = [side + 2 * reach for side in clean.shape[-2:]]
    blurred = F.conv2d(_mirrored(clean, reach, reach, *sides), weights, groups=clean.shape[1])
    return to_uint8_levels(F.conv2d(blurred, weights.transpose(2, 3), groups=clean.shape[1]))


DEGRADATIONS: dict[str, Callable[[Tensor, Task, Generator], Tensor]] = {
    "sr": bicubic_down,
    "derain": rain,
    "denoise": gaussian_noise,
    "dejpeg": jpeg,
    "deblur": gaussian_blur,
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
    if task.kind == "denoise":
        degraded = add_noise(planes, task, draws)
    elif task.kind == "dejpeg":
        degraded = compress(planes, task.quality)
    else:
        degraded = degrade(planes, task, draws)
    return np.ascontiguousarray(degraded[0].permute(1, 2, 0).numpy())
