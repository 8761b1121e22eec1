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
_PART_PIXELS = 2**20


def estimate_sigma(image: NDArray[Any]) -> float | None:
    """Standard deviation of white noise on the 0..255 scale, from the smoothest blocks of a photo.

    Args:
        image: uint8 or uint16, [height, width] or [height, width, 3].

    Returns:
        None for a photo that is too small or too dark or bright everywhere.
    """
    height, width = (side // _BLOCK * _BLOCK for side in image.shape[:2])
    if height * width == 0:
        return None
    rows = max(1, _PART_PIXELS // width // _BLOCK) * _BLOCK
    parts = [_blocks(image, top, min(top + rows, height), width) for top in range(0, height, rows)]
    means, sigmas = (np.concatenate(each) for each in zip(*parts, strict=True))
    usable = sigmas[(means > _DARK) & (means < _BRIGHT)]
    return float(np.percentile(usable, _SMOOTHEST)) if usable.size else None


def _blocks(image: NDArray[Any], top: int, bottom: int, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean level, and noise as it seems, of the blocks [n, m] in rows [top, bottom), on the 0..255 scale."""
    first = max(0, top - 1)  # the mask reaches a row beyond
    pixels = image[first : bottom + 1, :width].astype(np.float32)
    if image.dtype == np.uint16:
        pixels /= 257
    rough = np.abs(cv2.filter2D(pixels, -1, _MASK)) * np.float32(np.sqrt(np.pi / 2) / 6)
    inside = slice(top - first, bottom - first)
    return _block_means(pixels[inside]), _block_means(rough[inside])


def _block_means(values: NDArray[Any]) -> NDArray[Any]:
    height, width = values.shape[:2]
    means = cv2.resize(values, (width // _BLOCK, height // _BLOCK), interpolation=cv2.INTER_AREA)
    return means if values.ndim == 2 else means.reshape(height // _BLOCK, width // _BLOCK, -1).mean(axis=2)


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
