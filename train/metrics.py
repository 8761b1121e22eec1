"""PSNR as the field measures it. numpy only; images are uint8 or float on the 0..255 scale, [height, width, 3] RGB.

Super-resolution and deraining are judged on luma (BT.601, studio swing); super-resolution leaves out `scale` pixels at
each border; denoising is judged on RGB and on luma, uncropped. Outputs are rounded to 8 bit first.
"""

from __future__ import annotations

import math

import numpy as np


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma in studio swing, 16..235 (MATLAB's rgb2ycbcr), float64 [height, width]."""
    return image.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def psnr(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB over all values (peak 255), without `border` pixels at each side.

    Raises:
        ValueError: shapes that differ, or images that are equal (their PSNR is infinite and must not enter a mean).
    """
    if restored.shape != clean.shape:
        raise ValueError(f"shapes {restored.shape} and {clean.shape} differ")
    inner = slice(border, -border or None)
    difference = restored[inner, inner].astype(np.float64) - clean[inner, inner].astype(np.float64)
    error = float(np.square(difference).mean())
    if error == 0:
        raise ValueError("the images are equal, so their PSNR is infinite")
    return 10 * math.log10(255**2 / error)


def psnr_y(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """PSNR of luma in dB, as `psnr`."""
    return psnr(luma(restored), luma(clean), border)
