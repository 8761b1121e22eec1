"""Samples of photos: orientation, opacity, premultiplied colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]  # uint8 or uint16


def upright(samples: Samples, orientation: int) -> Samples:
    """Apply EXIF orientation 1..8 to [height, width, ...]; other values mean 1."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


def is_opaque(alpha: Samples) -> bool:
    return bool((alpha == np.iinfo(alpha.dtype).max).all())


def unpremultiply(pixels: Samples, alpha: Samples) -> Samples:
    """Colours of uint16 premultiplied pixels, in alpha's type; 0 where alpha is 0."""
    top = np.iinfo(alpha.dtype).max
    colours = pixels * like(top * top / 65535.0 / np.maximum(alpha, 1), pixels)
    colours[alpha == 0] = 0
    return np.rint(colours.clip(0, top)).astype(alpha.dtype)


def like(weights: NDArray[np.float64], pixels: Samples) -> NDArray[np.float64]:
    return weights if pixels.ndim == 2 else weights[..., None]


def as_rgb(gray: Samples) -> Samples:
    return np.repeat(gray[..., None], 3, axis=2)


def eight_bits(samples: Samples) -> Samples:
    """16-bit samples to the nearest of 8 bits: 257 steps make one."""
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
