"""Cutting, enlarging and showing pictures: the same detail of several versions of one photograph side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ipt_triton.train.data.pictures import enlarged

MARGIN, CAPTION = 8, 18  # pixels


def side_by_side(versions: Sequence[tuple[str, np.ndarray]], side: int = 144, zoom: int = 2) -> Image.Image:
    """The busiest square of a photograph in each of its versions, captioned, from left to right.

    Args:
        versions: captions and uint8 RGB [height, width, 3]. The last is the original, whose busiest square is taken;
            one that is smaller by a whole factor is enlarged by repeating its pixels.
        side: of the square in pixels of the original (less where the original is smaller).
        zoom: magnification.
    """
    original = versions[-1][1]
    side = min(side, *original.shape[:2])
    y, x = busiest_square(original, side)
    cell = side * zoom
    sheet = Image.new("RGB", (len(versions) * (cell + MARGIN) + MARGIN, cell + CAPTION + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (caption, image) in enumerate(versions):
        detail = enlarged(image, original.shape[0] // image.shape[0])[y : y + side, x : x + side]
        left = MARGIN + column * (cell + MARGIN)
        sheet.paste(Image.fromarray(detail).resize((cell, cell), Image.Resampling.NEAREST), (left, MARGIN + CAPTION))
        draw.text((left, MARGIN), caption, fill="black")
    return sheet


def busiest_square(image: np.ndarray, side: int, step: int = 12) -> tuple[int, int]:
    """Top left corner (y, x) of the square with the highest contrast among those on a grid of `step` pixels."""
    grey = image.mean(axis=2)
    rows, columns = (range(0, length - side + 1, step) for length in grey.shape)
    return max(
        ((y, x) for y in rows for x in columns), key=lambda at: grey[at[0] : at[0] + side, at[1] : at[1] + side].std()
    )
