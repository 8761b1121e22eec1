"""How much noise a photo holds, so that nobody denoises what is not there."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ipt_triton.tasks import Chain

_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to planes; Immerkaer, CVIU 1996
_BLOCK, _SMOOTHEST, _WORTH = 16, 10.0, 0.5
_DARK, _BRIGHT = 8.0, 247.0  # beyond, noise is clipped


def estimate_sigma(image: NDArray[Any]) -> float | None:
    """Standard deviation of white noise on the 0..255 scale, from the smoothest blocks of a photo.

    Args:
        image: uint8 or uint16, [height, width] or [height, width, 3].

    Returns:
        None for a photo that is too small or too dark or bright everywhere.
    """
    values = image[: image.shape[0] // _BLOCK * _BLOCK, : image.shape[1] // _BLOCK * _BLOCK]
    if values.size == 0:
        return None
    pixels = values.astype(np.float32)
    if image.dtype == np.uint16:
        pixels /= 257
    rough = np.abs(cv2.filter2D(pixels, -1, _MASK)) * np.float32(np.sqrt(np.pi / 2) / 6)
    means, sigmas = _block_means(pixels), _block_means(rough)
    usable = sigmas[(means > _DARK) & (means < _BRIGHT)]
    return float(np.percentile(usable, _SMOOTHEST)) if usable.size else None


def _block_means(values: NDArray[Any]) -> NDArray[Any]:
    height, width = values.shape[:2]
    blocks = values.reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, -1)
    return np.asarray(blocks.mean(axis=(1, 3, 4)))


def denoising_warning(image: NDArray[Any], chain: Chain) -> str:
    """A sentence if a task of the chain is for more noise than the photo holds; empty otherwise.

    On weaker noise a network for one strength may blur, tint and band.
    """
    task = next((task for task in chain.tasks if task.kind == "denoise" and task.sigma), None)
    if task is None:
        return ""
    sigma = estimate_sigma(image)
    if sigma is None or sigma >= _WORTH * task.sigma:
        return ""
    return f"its noise is about σ {sigma:.0f}, {task.name} is for σ {task.sigma:g} and may blur or tint it"
