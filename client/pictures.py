"""What a caller may give for an image, as arrays to restore, and their results as what he gets for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL import Image

    from ipt_triton.client.photo import Photo
    from ipt_triton.client.photo.reading import Source

    Picture: TypeAlias = Photo | Source | Image.Image


def planes_of(image: Any) -> tuple[Sequence[NDArray[Any]], Callable[[Sequence[NDArray[Any]]], Any]]:
    """The arrays of an image, and what makes of their results an array of an array, and a `Photo` of anything else.

    Args:
        image: what `as_image` takes.

    Raises:
        ImageError, TypeError: see `as_image`.
    """
    if isinstance(image, np.ndarray):
        return (image,), lambda restored: restored[0]
    from ipt_triton.client.photo import Photo, as_image  # needs what reads files

    photo = as_image(image)
    assert isinstance(photo, Photo)
    return photo.planes(), photo.with_planes


def check_workers(number: int) -> None:
    """Raise InvalidRequest unless it is a number of images that can be in flight."""
    if number < 1:
        raise InvalidRequest(f"workers {number} is not allowed; give 1 or more")
