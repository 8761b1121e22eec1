"""Noise: Gaussian of one strength or of many, and Poisson-Gaussian as sensors have it. RGB on the 0..255 scale."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ipt_triton.tasks import Task

STRONGEST = 55.0
"""σ of the strongest noise that a task without a nominal σ meets."""


def to_uint8_levels(x: Tensor) -> Tensor:
    """Clip and round to the 256 levels that an 8-bit file holds; stays float."""
    return x.clamp(0, 255).round()


def add_noise(clean: Tensor, sigma: float | Tensor, generator: Generator) -> Tensor:
    """White Gaussian noise of standard deviation `sigma`; float, neither clipped nor rounded.

    `to_uint8_levels` of it is what an 8-bit file holds.
    """
    return clean + sigma * torch.randn(clean.shape, device=clean.device, dtype=clean.dtype, generator=generator)


def add_sensor_noise(clean: Tensor, sigma: Tensor, photons: Tensor, generator: Generator) -> Tensor:
    """Poisson-Gaussian noise (Foi et al. 2008) with the variance σ² at mid-grey.

    The share `photons` (0 to 1) of it comes from the arrival of photons and is proportional to the brightness; the rest
    is Gaussian.
    """
    gain = (photons * sigma.square() / 128).clamp(min=1e-3)  # levels a photon
    arrived = torch.poisson(clean.clamp(0, 255) / gain, generator=generator) * gain
    return add_noise(arrived, sigma * (1 - photons).sqrt(), generator)


def blind_noise(clean: Tensor, generator: Generator) -> Tensor:
    """Noise of unknown strength, in half of the samples Gaussian and in the others Poisson-Gaussian.

    σ is 0 to 55, weak noise, as most photographs have it, more often: three in ten lie below 5, one in ten above 45.
    """
    sigma, photons, kind = torch.rand(3, len(clean), 1, 1, 1, device=clean.device, generator=generator)
    sigma = STRONGEST * sigma.square()
    return torch.where(
        kind < 0.5, add_noise(clean, sigma, generator), add_sensor_noise(clean, sigma, photons, generator)
    )


def noise(clean: Tensor, task: Task, generator: Generator, ranged: bool = False) -> Tensor:
    """The noise of a task for training on both kinds of input: `blind_noise` if it has no nominal σ, else Gaussian.

    Every second sample is clipped and rounded, as a noisy photo file is; the others stay float, as in the field's
    benchmarks.

    Args:
        ranged: σ is the nominal one in about half of the samples and anything from 0 to it in the others.
    """
    if not task.sigma:
        noisy = blind_noise(clean, generator)
    elif ranged:
        share = (2 * torch.rand(len(clean), 1, 1, 1, device=clean.device, generator=generator)).clamp(max=1)
        noisy = add_noise(clean, task.sigma * share, generator)
    else:
        noisy = add_noise(clean, task.sigma, generator)
    noisy[::2] = to_uint8_levels(noisy[::2])
    return noisy
