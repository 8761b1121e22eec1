"""Plain reading of image files, and the sample photographs.

`client.photo` reads what people send, with all that belongs to it; here a file is three channels of 8 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from .errors import IptError
from .reading import excerpt

SUFFIXES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings, in lower case, of the files that are taken for images."""

PHOTOS = Path(__file__).with_name("photos")
"""Six CC0 photographs for the demo, the tests and the calibration of INT8; `SOURCES.csv` has their sources."""


class UnreadableImage(IptError, ValueError):
    """A file that is not an image, or a damaged one."""


def read_rgb(file: Path | BinaryIO, name: str = "") -> np.ndarray:
    """An image file as uint8 RGB [height, width, 3], without regard to EXIF orientation and profile.

    Args:
        name: of what is no file of its own, for the message.

    Raises:
        UnreadableImage: naming the file and what is wrong with it.
    """
    from PIL import Image  # here, because machines that read no images may lack Pillow

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise UnreadableImage(f"{name or file} cannot be read: {excerpt(error)}") from error
