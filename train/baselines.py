"""Classical baselines: what a task must beat to be worth serving."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage.restoration import denoise_nl_means

from train.tasks import Task


def baseline(degraded: np.ndarray, task: Task) -> tuple[str, np.ndarray]:
    """Name and result of a task's classical baseline.

    Super-resolution: bicubic upsampling. Denoising: non-local means (scikit-image's fast mode, h = 0.6 σ). Deraining:
    the rainy picture itself, since the field's tables know no classical method.

    Args:
        degraded: uint8 RGB [height, width, 3].

    Returns:
        The name, and uint8 RGB [height * scale, width * scale, 3].
    """
    if task.kind == "sr":
        return "bicubic", bicubic_up(degraded, task.scale)
    if task.kind == "denoise":
        sigma = task.sigma / 255
        denoised = denoise_nl_means(
            degraded / 255, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
        )
        return "non-local means", np.rint(np.clip(denoised, 0, 1) * 255).astype(np.uint8)
    return "input", degraded


def bicubic_up(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic (a = -0.5) upsampling of uint8 [height, width, 3]."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    size = [side * scale for side in planes.shape[-2:]]
    enlarged = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    return enlarged.clamp(0, 255).round().byte()[0].permute(1, 2, 0).numpy()
