"""What a caller may want beside a task: another size, more views of the picture, less of the change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.tasks import LONGEST_CHAIN, Chain, Task
from ipt_triton.tiling import DTYPES

_MOST_NETWORKS = 3  # that enlarge one picture one after the other


@dataclass(frozen=True)
class Options:
    """How a result may differ from what a chain of tasks makes of a picture.

    Attributes:
        scale: its sides over those of the picture, above 0; None for that of the chain.
        width, height: its sides in pixels. The picture keeps its shape: with both it is the largest that fits.
        tta: restore the picture in its eight turned and mirrored views and take the mean.
        strength: share of the result, 0 to 1; the rest is the picture itself, enlarged bicubically.

    Raises:
        InvalidRequest: values that are not allowed, or that contradict each other.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    tta: bool = False
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.scale is not None and (self.width is not None or self.height is not None):
            raise InvalidRequest("scale together with width or height is not allowed; give one of them")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise InvalidRequest(f"scale {self.scale} is not allowed; give a number above 0")
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None and side < 1:
                raise InvalidRequest(f"{name} {side} is not allowed; give 1 or more pixels")
        if not 0 <= self.strength <= 1:
            raise InvalidRequest(f"strength {self.strength} is not allowed; give 0 to 1")

    def factor(self, width: int, height: int) -> float | None:
        """Sides of the result over those of a picture of this size; None for those that the chain makes."""
        wanted = [wish / side for wish, side in ((self.width, width), (self.height, height)) if wish is not None]
        return min(wanted) if wanted else self.scale

    def size(self, width: int, height: int, chain: Chain) -> tuple[int, int]:
        """Width and height of the result for a picture of this size."""
        factor = self.factor(width, height)
        factor = chain.scale if factor is None else factor
        return max(1, round(width * factor)), max(1, round(height * factor))

    def finished(self, image: NDArray[Any], restored: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
        """What the networks made of an image, in a size and mixed with the image, in the image's type.

        Args:
            image: [height, width] or [height, width, 3], of an integer type.
            restored: of any size, on the scale of that type; not rounded if it is float32.
            size: width and height of the result.
        """
        width, height = size
        if restored.shape[:2] != (height, width):
            restored = resized(restored, width, height)
        if self.strength < 1:
            restored = resized(image, width, height) * (1 - self.strength) + restored * self.strength
        return restored if restored.dtype == image.dtype else rounded(restored, image.dtype)


def large_enough(tasks: Sequence[Task], chain: Chain, factor: float | None) -> Chain:
    """The chain, or one with larger networks in place of those that enlarge, so that its result can be reduced.

    Of all that reach the factor it takes the one with the smallest scale, then with the fewest networks.

    Args:
        tasks: of the server.
        factor: sides of the result over those of the picture; None for what the chain makes.

    Raises:
        InvalidRequest: no chain of these tasks reaches it.
    """
    if factor is None or chain.scale >= factor:
        return chain
    enlarging = [place for place, task in enumerate(chain.tasks) if task.scale > 1]
    kind = chain.tasks[enlarging[-1]].kind if enlarging else "sr"
    networks = {task.scale: task for task in reversed(tasks) if task.kind == kind and task.scale > 1}
    others = [task for task in chain.tasks if task.kind != kind or task.scale == 1]
    before = sum(task in others for task in chain.tasks[: enlarging[-1]]) if enlarging else len(others)
    rest = math.prod(task.scale for task in others)
    most = min(_MOST_NETWORKS, LONGEST_CHAIN - len(others))
    found = [
        scales
        for number in range(1, most + 1)
        for scales in combinations_with_replacement(sorted(networks), number)
        if rest * math.prod(scales) >= factor
    ]
    if not found:
        reached = rest * max(networks, default=1) ** most
        raise InvalidRequest(f"a scale of {factor:g} is not reached by {chain.name} on this server; up to {reached} is")
    best = min(found, key=lambda scales: (math.prod(scales), len(scales)))
    return Chain((*others[:before], *(networks[scale] for scale in best), *others[before:]))


def resized(image: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """An image [h, w] or [h, w, 3] in another size: bicubic (a = -0.5), antialiased where it gets smaller; float32."""
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    planes = np.atleast_3d(image)
    made = np.empty((height, width, planes.shape[2]), np.float32)
    for colour in range(planes.shape[2]):
        plane = Image.fromarray(planes[..., colour].astype(np.float32))
        made[..., colour] = np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
    return made.reshape(height, width, *image.shape[2:])


def rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values on the scale of an integer type as that type."""
    return np.rint(values).clip(0, np.iinfo(dtype).max).astype(dtype)


def unit(dtype: np.dtype[Any]) -> float:
    """What one step of the network's scale, 0..255, is in a type of images."""
    return DTYPES[dtype.name]


@dataclass(frozen=True)
class View:
    """One of the eight ways to turn and mirror a picture: sides swapped or not, then rows and columns reversed."""

    swapped: bool = False
    rows: bool = False
    columns: bool = False

    def of(self, image: NDArray[Any]) -> NDArray[Any]:
        """The view of a picture [height, width, ...]."""
        image = image.swapaxes(0, 1) if self.swapped else image
        return image[:: -1 if self.rows else 1, :: -1 if self.columns else 1]

    def undo(self, view: NDArray[Any]) -> NDArray[Any]:
        """The picture of which this is the view."""
        view = view[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
        return view.swapaxes(0, 1) if self.swapped else view


def views() -> Iterator[View]:
    """All eight, the picture itself first."""
    for number in range(8):
        yield View(bool(number & 4), bool(number & 2), bool(number & 1))
