"""PSNR and SSIM as the field measures them. numpy only; images are uint8 or float on the 0..255 scale, RGB.

Denoising is measured on RGB, other tasks on luma (BT.601, studio swing): `figure_of`. Super-resolution leaves out
`scale` pixels at each side: `border_of`. Outputs are rounded to 8 bit first (`to_uint8`).
"""

from __future__ import annotations

import math

import numpy as np

from .tasks import Chain, Task

WINDOW, SIGMA = 11, 1.5  # SSIM's Gaussian
K1, K2 = 0.01, 0.03


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clip and round float values on the 0..255 scale to the 256 levels of an 8-bit file; uint8 stays as it is."""
    return image if image.dtype == np.uint8 else np.rint(image.clip(0, 255)).astype(np.uint8)


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601 luma in studio swing, 16..235 (MATLAB's rgb2ycbcr), float64 [height, width]."""
    return image.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def psnr(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB over all values (peak 255), without `border` pixels at each side.

    Raises:
        ValueError: shapes that differ, nothing left inside the border, or images that are equal (their PSNR is infinite
            and must not enter a mean).
    """
    difference = np.subtract(*_inner(restored, clean, border))
    if difference.size == 0:
        raise ValueError(f"an image of shape {list(clean.shape)} has nothing left within a border of {border}")
    error = float(np.square(difference).mean())
    if error == 0:
        raise ValueError("the images are equal, so their PSNR is infinite")
    return psnr_of_error(error)


def psnr_of_error(error: float) -> float:
    """PSNR in dB, peak 255, of a mean square error; of no error 248 dB."""
    return 10 * math.log10(255**2 / max(error, 1e-20))


def psnr_y(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """PSNR of luma in dB, as `psnr`."""
    return psnr(luma(restored), luma(clean), border)


def figure_of(task: Task) -> str:
    """The figure by which the field compares results of a task: `psnr_rgb` for denoising, `psnr_y` for the others."""
    return "psnr_rgb" if task.kind == "denoise" else "psnr_y"


def border_of(task: Task | Chain) -> int:
    """Pixels at each side that the field leaves out: the scale where a photograph grows, none for the others."""
    return task.scale if task.scale > 1 else 0


def task_psnr(restored: np.ndarray, clean: np.ndarray, task: Task) -> float:
    """PSNR in dB as the field measures it for a task (`figure_of`, `border_of`)."""
    measure = psnr if figure_of(task) == "psnr_rgb" else psnr_y
    return measure(restored, clean, border_of(task))


def ssim(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """Structural similarity, at most 1 (Wang et al. 2004), of [height, width] or the mean over [height, width, 3].

    Gaussian window 11x11, σ 1.5, population variances, K1 0.01, K2 0.03, range 255. First `border` pixels go at each
    side, as for PSNR; then only windows that lie wholly inside count ("valid" convolution: the authors' ssim_index.m
    and the tables of super-resolution and deraining). scikit-image with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255` leaves out the same 5 pixels in its mean; MATLAB's own `ssim` does not.
    It gives the same to 1e-15 and takes longer for luma, which is what the field measures (54 ms instead of 49 ms for
    512x512; for colours of 321x480 77 ms instead of 95 ms), so the kernel does without it.

    Raises:
        ValueError: shapes that differ, or fewer than 11 pixels left along a side.
    """
    x, y = _inner(restored, clean, border)
    if min(x.shape[:2]) < WINDOW:
        raise ValueError(
            f"SSIM needs at least {WINDOW} pixels along each side, and of an image of shape {list(clean.shape)} "
            f"{x.shape[0]}x{x.shape[1]} are left within a border of {border}"
        )
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())


def ssim_y(restored: np.ndarray, clean: np.ndarray, border: int = 0) -> float:
    """SSIM of luma, as `ssim`."""
    return ssim(luma(restored), luma(clean), border)


def _inner(restored: np.ndarray, clean: np.ndarray, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Both images without their borders, as float64."""
    if restored.shape != clean.shape:
        raise ValueError(f"shapes {restored.shape} and {clean.shape} differ")
    inner = slice(border, -border or None)
    return restored[inner, inner].astype(np.float64), clean[inner, inner].astype(np.float64)


def _blur(values: np.ndarray) -> np.ndarray:
    """Weighted mean of every window that lies wholly inside, [H, W, ...] -> [H - 10, W - 10, ...]."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    weights /= weights.sum()
    height, width = (side - WINDOW + 1 for side in values.shape[:2])
    rows = sum(w * values[i : i + height] for i, w in enumerate(weights))
    return sum(w * rows[:, i : i + width] for i, w in enumerate(weights))
