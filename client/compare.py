"""A result beside its input, and a result beside a reference."""

from __future__ import annotations

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ipt_triton.client.errors import ImageError
from ipt_triton.client.photo import READ_SUFFIXES, Photo, read_photo
from ipt_triton.client.photo.samples import eight_bits
from ipt_triton.metrics import psnr_of_error, psnr_y, ssim_y

_GAP = 8  # white pixels between the two


def side_by_side(before: Photo, after: Photo) -> Photo:
    """A strip: the input, enlarged by bicubic interpolation to the result's height, a white line, the result."""
    width, height = after.size
    enlarged = cv2.resize(before.pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    white = np.full((height, _GAP, 3), np.iinfo(after.pixels.dtype).max, after.pixels.dtype)
    strip = np.concatenate([enlarged, white, after.pixels], axis=1)
    return replace(after, pixels=strip, alpha=None, is_gray=False)


def reference_of(source: Path, folder: Path) -> Path:
    """The reference of a photo: the image in the folder with the same stem.

    Raises:
        ImageError: there is none, or more than one.
    """
    found = [
        path for path in sorted(folder.glob(f"{glob.escape(source.stem)}.*")) if path.suffix.lower() in READ_SUFFIXES
    ]
    if len(found) != 1:
        raise ImageError(f"{folder} holds {len(found)} images called {source.stem}; a reference must be one")
    return found[0]


def figures(restored: Photo, reference: Path, border: int) -> dict[str, float]:
    """PSNR and SSIM of luma against a reference image, in 8 bit and without `border` pixels at each side.

    Raises:
        ImageError: it cannot be read or has another size.
    """
    clean = read_photo(reference)
    if clean.size != restored.size:
        raise ImageError(f"{reference} has {clean.size} pixels, the result {restored.size}: it is no reference of it")
    result, truth = (_bytes(photo.pixels) for photo in (restored, clean))
    try:
        psnr = psnr_of_error(0) if np.array_equal(result, truth) else psnr_y(result, truth, border)
        return {"PSNR-Y": round(psnr, 4), "SSIM-Y": round(ssim_y(result, truth, border), 6)}
    except ValueError as error:
        raise ImageError(f"{reference} and the result cannot be compared: {error}") from error


def _bytes(pixels: NDArray[Any]) -> NDArray[Any]:
    return pixels if pixels.dtype == np.uint8 else eight_bits(pixels)
