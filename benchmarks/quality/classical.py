"""Classical baselines: what a task must beat to be worth serving."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import Task


def baseline(degraded: np.ndarray, task: Task) -> tuple[str, np.ndarray]:
    """Name and result of a task's classical baseline.

    Enlarging: bicubic upsampling. Denoising and unknown cameras (`real`): non-local means (scikit-image's fast mode,
    h = 0.6 σ; where the task does not tell σ, it is estimated), before they are enlarged. Others: the degraded picture
    itself, since the field's tables of deraining know no classical method.

    Args:
        degraded: RGB [height, width, 3], uint8, or float32 on the 0..255 scale, which unclipped noise may exceed.

    Returns:
        The name, and uint8 RGB [height * scale, width * scale, 3].
    """
    names, image = [], degraded
    if task.kind in ("denoise", "real"):
        names, image = ["non-local means"], _non_local_means(image / 255, task.sigma / 255) * 255
    if task.scale > 1:
        names, image = [*names, "bicubic"], bicubic_up(image, task.scale)
    return ", ".join(names) or "input", to_uint8(image)


def _non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """RGB on the 0..1 scale, denoised; sigma 0: it is estimated."""
    from skimage.restoration import denoise_nl_means, estimate_sigma  # here: other tasks do without scikit-image

    sigma = sigma or estimate_sigma(image, average_sigmas=True, channel_axis=-1)
    return np.asarray(
        denoise_nl_means(
            image, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
        )
    )


def bicubic_up(image: np.ndarray, scale: int) -> np.ndarray:
    """Bicubic (a = -0.5) upsampling of uint8 or float32 [height, width, 3] on the 0..255 scale; uint8."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    size = [side * scale for side in planes.shape[-2:]]
    enlarged = F.interpolate(planes, size=size, mode="bicubic", antialias=True)
    return to_uint8(enlarged[0].permute(1, 2, 0).numpy())
