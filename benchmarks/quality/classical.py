"""Classical baselines: what a task must beat to be worth serving."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import Task


def baseline(degraded: np.ndarray, task: Task) -> tuple[str, np.ndarray]:
    """Name and result of a task's classical baseline.

    Enlarging: bicubic upsampling. Denoising: non-local means (scikit-image's fast mode, h = 0.6 σ; where the task does
    not tell σ, it is estimated). Others: the degraded picture itself, since the field's tables of deraining know no
    classical method.

    Args:
        degraded: RGB [height, width, 3], uint8, or float32 on the 0..255 scale, which unclipped noise may exceed.

    Returns:
        The name, and uint8 RGB [height * scale, width * scale, 3].
    """
    if task.scale > 1:
        return "bicubic", bicubic_up(degraded, task.scale)
    if task.kind == "denoise":
        from skimage.restoration import denoise_nl_means, estimate_sigma  # here: other tasks do without scikit-image

        sigma = task.sigma / 255 or estimate_sigma(degraded / 255, average_sigmas=True, channel_axis=-1)
        denoised = denoise_nl_means(
            degraded / 255, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
        )
        return "non-local means", to_uint8(denoised * 255)
    return "input", to_uint8(degraded)


def bicubic_up(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic (a = -0.5) upsampling of uint8 or float32 [height, width, 3] on the 0..255 scale; uint8."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    size = [side * scale for side in planes.shape[-2:]]
    enlarged = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    return to_uint8(enlarged[0].permute(1, 2, 0).numpy())
