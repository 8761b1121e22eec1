"""Rain: streaks as in Rain100L, heavier and longer ones, and mist between them. RGB on the 0..255 scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ipt_triton.tasks import Task
from ipt_triton.train.data.noise import to_uint8_levels

REACH = 40  # half the longest streak, in pixels
HEAVY, MISTY, DRIZZLE = 0.35, 0.3, 0.2  # shares of the samples
MIST = 0.15  # of the picture that the thickest mist replaces
SPOT = 16  # pixels between two independent values of the mist


def rain(clean: Tensor, task: Task, generator: Generator) -> Tensor:
    """Grey layers of rain streaks added to the picture and clipped (the model of Rain100L), some with mist.

    Per sample: one direction, near the vertical and within 35° of it, and two layers of streaks with their own density,
    length (16 to 60 px), thickness (about 1 to 3 px) and brightness. In heavy rain a third layer joins, and streaks are
    up to 80 px long, 5 px thick and half as many again; they fall within 60° of the vertical, each layer in a direction
    of its own. Some samples have no more than a drizzle.
    """
    b, _, height, width = clean.shape
    uniform = lambda low, high: low + (high - low) * torch.rand(b, 1, 1, device=clean.device, generator=generator)  # noqa: E731
    axis = torch.arange(-REACH, REACH + 1, device=clean.device, dtype=clean.dtype)
    y, x = axis.view(1, -1, 1), axis.view(1, 1, -1)
    heavy = uniform(0, 1) < HEAVY
    either = lambda if_heavy, ordinary: torch.where(heavy, if_heavy, ordinary)  # noqa: E731
    angle = either(uniform(-1, 1) * math.radians(60), uniform(-1, 1).pow(3) * math.radians(35))
    strength = torch.where(uniform(0, 1) < DRIZZLE, uniform(0.02, 0.3), uniform(0.3, 1.0))
    layers = torch.zeros(b, height, width, device=clean.device, dtype=clean.dtype)
    for number in range(3):
        tilt = angle + uniform(-1, 1) * either(torch.full_like(angle, 0.15), torch.full_like(angle, 0.03))
        along, across = y * tilt.cos() + x * tilt.sin(), x * tilt.cos() - y * tilt.sin()
        half_length, thickness = either(uniform(8, REACH), uniform(8, 30)), either(uniform(0.4, 1.4), uniform(0.4, 0.9))
        streak = (1 - (along / half_length).square()).clamp(min=0) * torch.exp(-0.5 * (across / thickness).square())
        canvas = (b, height + 2 * REACH, width + 2 * REACH)
        drops = torch.rand(canvas, device=clean.device, generator=generator)
        density = (
            uniform(0.001, 0.006) / (half_length / 8) * either(uniform(0.5, 1.5), torch.full_like(angle, number < 2))
        )
        brightness = -50 * strength * torch.rand(canvas, device=clean.device, generator=generator).clamp(min=1e-6).log()
        impulses = torch.where(drops < density, brightness.clamp(max=255), 0)
        layers += F.conv2d(impulses[None], streak[:, None], groups=b)[0]
    return to_uint8_levels(add_mist(clean, uniform(0, 1) < MISTY, generator) + layers[:, None])


def add_mist(clean: Tensor, misty: Tensor, generator: Generator) -> Tensor:
    """Spray between picture and camera: a smooth, uneven veil of one grey, in the samples of `misty` [B, 1, 1]."""
    b, _, height, width = clean.shape
    spots = torch.rand(b, 1, height // SPOT + 2, width // SPOT + 2, device=clean.device, generator=generator)
    most, grey = torch.rand(2, b, 1, 1, 1, device=clean.device, generator=generator)
    veil = F.interpolate(spots, size=(height, width), mode="bilinear") * misty[:, None] * MIST * most
    return clean + veil * (140 + 100 * grey - clean)
