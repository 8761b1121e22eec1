"""Training images: a pool decoded into memory, and random crops from it.

The pool is one uint8 array per photograph; crops are taken by area, so every pixel is as likely as any other, and
flipped and rotated at random.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

logger = logging.getLogger(__name__)

SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class DataError(ValueError):
    """A data folder that cannot be trained on."""


@dataclass(frozen=True)
class Pool:
    """Decoded photographs, RGB uint8 [height, width, 3], with their file names."""

    images: list[np.ndarray]
    names: list[str]

    @property
    def megapixels(self) -> float:
        return sum(i.shape[0] * i.shape[1] for i in self.images) / 1e6

    def split(self, held_out: int) -> tuple[Pool, Pool]:
        """(training, held-out): `held_out` photographs chosen by the hash of their names, whatever else is there.

        Raises:
            DataError: fewer than `held_out` + 1 photographs.
        """
        if held_out >= len(self.images):
            raise DataError(
                f"{len(self.images)} usable photographs are too few to hold {held_out} out; add photographs"
            )
        order = sorted(range(len(self.names)), key=lambda i: hashlib.sha256(self.names[i].encode()).digest())
        kept, rest = sorted(order[held_out:]), sorted(order[:held_out])
        take = lambda rows: Pool([self.images[i] for i in rows], [self.names[i] for i in rows])  # noqa: E731
        return take(kept), take(rest)


def load_pool(folders: Sequence[Path], min_side: int) -> Pool:
    """Decode every photograph below the folders.

    Files that cannot be read, and photographs with a side below `min_side` pixels, are left out and counted in the log.

    Raises:
        DataError: a folder that is not there, or no usable photograph, with the counts.
    """
    paths: list[Path] = []
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder} is not a folder")
        paths += sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        decoded = list(executor.map(_decode, paths))
    usable = [
        (i, p.name) for i, p in zip(decoded, paths, strict=True) if i is not None and min(i.shape[:2]) >= min_side
    ]
    unreadable = sum(i is None for i in decoded)
    small = len(paths) - unreadable - len(usable)
    logger.info("%d photographs read, %d unreadable, %d below %d px", len(usable), unreadable, small, min_side)
    if not usable:
        raise DataError(
            f"no usable photograph in {', '.join(map(str, folders))}: {len(paths)} files of a known kind, "
            f"{unreadable} unreadable, {small} with a side below {min_side} px"
        )
    return Pool([i for i, _ in usable], [n for _, n in usable])


def _decode(path: Path) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        logger.warning("left out %s: %s", path, error)
        return None


def random_crops(pool: Pool, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Random crops, flipped and rotated at random, as float [count, 3, side, side] in 0..255."""
    areas = torch.tensor([float((i.shape[0] - side + 1) * (i.shape[1] - side + 1)) for i in pool.images])
    chosen = torch.multinomial(areas, count, replacement=True, generator=generator).tolist()
    crops = []
    for index in chosen:
        image = pool.images[index]
        draw = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731
        y, x, turn = draw(image.shape[0] - side + 1), draw(image.shape[1] - side + 1), draw(8)
        crop = np.rot90(image[y : y + side, x : x + side], turn % 4)
        crops.append(np.ascontiguousarray((crop[:, ::-1] if turn >= 4 else crop).transpose(2, 0, 1)))
    return torch.from_numpy(np.stack(crops)).float()
