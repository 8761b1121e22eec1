"""Test sets: folders of clean images, degraded here by their names, or of pairs; for evaluation and validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ipt_triton.images import SUFFIXES, read_rgb
from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.errors import ImageSetError


@dataclass(frozen=True)
class Sample:
    """One image of a test set.

    Attributes:
        name: file name of the clean image.
        clean: uint8 RGB [height, width, 3]; the sides are multiples of the task's scale.
        degraded: float32 [height / scale, width / scale, 3]; whole values in 0..255, but noise is neither clipped nor
            rounded.
    """

    name: str
    clean: np.ndarray
    degraded: np.ndarray


def find_images(data: Path, task: Task) -> list[tuple[Path, Path | None]]:
    """Clean images of a test set, each with its rainy version where the set holds pairs, in the order of their names.

    Raises:
        ImageSetError: no such folder, no images, pairs that do not match, or pairs for another task than deraining.
    """
    if not data.is_dir():
        raise ImageSetError(f"{data} is not a folder")
    rain, norain = data / "rain", data / "norain"
    if rain.is_dir() and norain.is_dir():
        if task.kind != "derain":
            raise ImageSetError(
                f"{data} holds rainy pairs, and task {task.name} needs clean images; give {norain}, for instance"
            )
        rainy, clean = _images(rain), _images(norain)
        if alone := sorted(rainy.keys() ^ clean.keys()):
            raise ImageSetError(
                f"{data}: rain/ and norain/ must hold the same file names, and only one of them has {', '.join(alone)}"
            )
        found: list[tuple[Path, Path | None]] = [(clean[name], rainy[name]) for name in sorted(clean)]
    else:
        found = [(path, None) for _, path in sorted(_images(data).items())]
    if not found:
        raise ImageSetError(f"{data} holds neither images ({', '.join(sorted(SUFFIXES))}) nor rain/ and norain/")
    return found


def _images(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()}


def load_sample(clean_path: Path, degraded_path: Path | None, task: Task) -> Sample:
    """Read a clean image and read or make its degraded version.

    Raises:
        ImageSetError: naming a file that cannot be read, is smaller than the scale, or does not match the other.
    """
    clean = read_rgb(clean_path)
    if degraded_path is not None:
        degraded = read_rgb(degraded_path)
        if degraded.shape != clean.shape:
            raise ImageSetError(
                f"{degraded_path} is {degraded.shape[1]}x{degraded.shape[0]}, but {clean_path} is "
                f"{clean.shape[1]}x{clean.shape[0]}"
            )
        return Sample(clean_path.name, clean, degraded.astype(np.float32))
    whole = cut_to_scale(clean, task.scale)
    if not whole.size:
        raise ImageSetError(
            f"{clean_path} is {clean.shape[1]}x{clean.shape[0]}, smaller than the scale {task.scale} of {task.name}"
        )
    return Sample(clean_path.name, whole, degrade_image(whole, task, seed_of(clean_path.name)))


def cut_to_scale(image: np.ndarray, scale: int) -> np.ndarray:
    """An image without the last rows and columns that exceed a multiple of the scale."""
    height, width = (side // scale * scale for side in image.shape[:2])
    return image[:height, :width]
