"""Pictures as files and on sheets: formats by the ending of a name, whole files, pixels made larger."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ipt_triton.files import atomic_file
from ipt_triton.images import SUFFIXES
from ipt_triton.train.errors import WrongInput


def format_of(path: Path) -> str:
    """Pillow's name of the format that a file name's ending stands for. Raises WrongInput naming those there are."""
    file_format = Image.registered_extensions().get(path.suffix.lower(), "")
    if file_format not in Image.SAVE:
        raise WrongInput(f"{path} does not end like an image file; use one of {', '.join(sorted(SUFFIXES))}")
    return file_format


def write_picture(image: Image.Image, path: Path) -> None:
    """Write a whole file in the format of its ending. Raises WrongInput as `format_of` does."""
    file_format = format_of(path)
    with atomic_file(path) as temporary:
        image.save(temporary, format=file_format)


def enlarged(image: np.ndarray, factor: int) -> np.ndarray:
    """An image whose pixels are repeated, [height, width, 3] -> [height * factor, width * factor, 3]."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
