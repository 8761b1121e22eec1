"""What photographs go through on their way: blur, resizing, noise and JPEG, once or twice, each of random strength.

After the chain of Real-ESRGAN (Wang et al. 2021) and milder, since a small network that is to undo everything undoes
nothing well: σ of blur up to 0.9 pixels (scale 1), 1.4 (2) or 2.4 (4) instead of 3, σ of noise up to 15 instead of 30,
JPEG from 40 on instead of 30, and a second pass, of half the strength, in two of five samples instead of all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ipt_triton.train.data.jpeg import WHOLE_FILES, compress_anywhere
from ipt_triton.train.data.noise import add_noise, add_sensor_noise, to_uint8_levels

AGAIN, RESIZED, LAST = 0.4, 0.5, 0.6
"""Shares of the samples: with a second pass, with a detour over another size, with JPEG at the very end."""

NOISE, QUALITIES = 15.0, (40, 96)
KERNELS = {"gaussian": 0.4, "oriented": 0.25, "generalised": 0.1, "plateau": 0.15, "sinc": 0.1}
"""Kinds of blur with their shares; the last is the ringing of a sharp low-pass filter."""


def numbers(generator: Generator) -> np.random.Generator:
    """Random numbers for decisions on the host, decided by one draw of a device's generator."""
    return np.random.default_rng(int(torch.randint(2**62, (), device=generator.device, generator=generator)))


def blur_kernel(random: np.random.Generator, widest: float, device: torch.device) -> Tensor:
    """A blur of a random kind, [K, K] with sum 1; σ from 0.2 to `widest` pixels along each axis of an ellipse."""
    kind = random.choice(list(KERNELS), p=list(KERNELS.values()))
    sigma = random.uniform(0.2, widest, 2) if kind != "gaussian" else [random.uniform(0.2, widest)] * 2
    reach = 6 if kind == "sinc" else math.ceil(3 * max(sigma))
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, device=device, dtype=torch.float32)] * 2, indexing="ij")
    if kind == "sinc":
        radius, cutoff = (x * x + y * y).sqrt().clamp(min=1e-4), random.uniform(math.pi / 2, math.pi)
        kernel = torch.special.bessel_j1(cutoff * radius) / radius
    else:
        angle, power = random.uniform(0, math.pi), random.uniform(0.7, 3)
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        square = (along / sigma[0]).square() + (across / sigma[1]).square()
        if kind == "plateau":
            kernel = 1 / (1 + square.pow(power))
        else:
            kernel = torch.exp(-0.5 * (square.pow(power) if kind == "generalised" else square))
    return kernel / kernel.sum()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """[B, C, H, W] convolved with [K, K], borders mirrored."""
    padded = F.pad(x, [len(kernel) // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def resize(x: Tensor, size: tuple[int, int], random: np.random.Generator) -> Tensor:
    """To another size, by the mean of areas, bilinearly or bicubically, each as likely."""
    mode = str(random.choice(["area", "bilinear", "bicubic"]))
    return F.interpolate(x, size=size, mode=mode, antialias=mode != "area")


def chain(clean: Tensor, scale: int, random: np.random.Generator, generator: Generator) -> Tensor:
    """One picture [1, 3, H, W] in 0..255 degraded, [1, 3, H / scale, W / scale] in whole levels.

    Args:
        random: of the decisions; `generator`, on the picture's device, is that of the noise.
    """
    height, width = clean.shape[-2:]
    x = clean
    for strength in (1.0, 0.5)[: 1 + (random.random() < AGAIN)]:
        if random.random() < 0.7 * strength:
            x = blur(x, blur_kernel(random, strength * (0.4 + 0.5 * scale), clean.device))
        if strength == 1 and random.random() < RESIZED:
            factor = math.exp(random.uniform(math.log(0.7 / scale), math.log(1.1)))
            x = resize(x, (round(height * factor), round(width * factor)), random)
        if random.random() < 0.7:
            x = _noisy(x, strength * NOISE, random, generator)
        if random.random() < 0.6 * strength:
            x = compress_anywhere(to_uint8_levels(x), int(random.integers(*QUALITIES)), generator)
    size = height // scale, width // scale
    if x.shape[-2:] != size:
        x = resize(x, size, random)
    x = to_uint8_levels(x)
    if random.random() >= LAST:
        return x
    return compress_anywhere(x, int(random.integers(*QUALITIES)), generator, WHOLE_FILES)


def _noisy(x: Tensor, most: float, random: np.random.Generator, generator: Generator) -> Tensor:
    """Grey noise, Gaussian noise or that of a sensor, σ up to `most`, weak noise more often."""
    sigma, kind = most * random.uniform() ** 1.5, random.random()
    if kind < 0.3:
        return x + add_noise(torch.zeros_like(x[:, :1]), sigma, generator)
    if kind < 0.6:
        return add_noise(x, sigma, generator)
    return add_sensor_noise(x, x.new_tensor(sigma), x.new_tensor(random.uniform()), generator)
