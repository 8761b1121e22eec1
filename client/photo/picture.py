"""A photo in memory: upright pixels, alpha, and what its file said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ipt_triton.client.photo.samples import Samples, as_rgb, is_opaque, like, unpremultiply


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo in memory, upright.

    Attributes:
        pixels: RGB [height, width, 3], uint8 or uint16 over the type's full range; gray photos hold it three times.
        alpha: opacity [height, width] of the same type, 0 transparent; None if the photo has none. Not premultiplied.
        is_gray: the photo is stored with one colour channel, and will be again.
        icc: ICC profile of `pixels`, or None.
        exif: EXIF block starting with b"Exif", without orientation, thumbnail and pixel size; or None.
        xmp: XMP packet without orientation and pixel size, or None.
        iptc: IPTC records (IIM), or None.
        dpi: pixels per inch across and down, or None.
        comment: of a JPEG or GIF; empty if there is none.
        texts: keys and values of a PNG's texts.
        format: name in `FORMATS`, or "gif" or "heif", of the file that the photo was read from; None for arrays.
    """

    pixels: Samples
    alpha: Samples | None = None
    is_gray: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    comment: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None

    def __post_init__(self) -> None:
        if self.pixels.dtype not in (np.uint8, np.uint16) or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(
                f"pixels are {self.pixels.dtype} {list(self.pixels.shape)}; "
                "uint8 or uint16 [height, width, 3] are allowed"
            )
        if self.alpha is not None and (
            self.alpha.shape != self.pixels.shape[:2] or self.alpha.dtype != self.pixels.dtype
        ):
            raise ValueError(
                f"alpha is {self.alpha.dtype} {list(self.alpha.shape)}; it must be {self.pixels.dtype} "
                f"{list(self.pixels.shape[:2])} like the pixels"
            )

    @property
    def bits(self) -> int:
        """Bits per sample, 8 or 16."""
        return self.pixels.dtype.itemsize * 8

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def has_alpha(self) -> bool:
        """Whether a pixel is not opaque."""
        return self.alpha is not None and not is_opaque(self.alpha)

    def planes(self) -> tuple[Samples, ...]:
        """The arrays to restore: the pixels ([height, width] if gray), and if the photo is not opaque its alpha too.

        With alpha the pixels are premultiplied, so that colours hidden under transparent pixels do not bleed into
        their neighbours, and are uint16, so that 8-bit colours survive it.
        """
        pixels = self.pixels[..., 0] if self.is_gray else self.pixels
        if self.alpha is None or is_opaque(self.alpha):
            return (pixels,)
        top = np.iinfo(pixels.dtype).max
        weights = self.alpha * (65535.0 / (top * top))
        return np.rint(pixels * like(weights, pixels)).astype(np.uint16), self.alpha

    def with_planes(self, restored: Sequence[Samples]) -> Photo:
        """The photo with its `planes()` replaced by their restored versions, of any one size.

        Args:
            restored: arrays in the order, and of the types and number of dimensions, of `planes()`.
        """
        pixels, alpha = restored[0], self.alpha
        if len(restored) == 2:
            alpha = restored[1]
            pixels = unpremultiply(pixels, alpha)
        elif alpha is not None:
            alpha = np.full(pixels.shape[:2], np.iinfo(alpha.dtype).max, alpha.dtype)
        if self.is_gray:
            pixels = as_rgb(pixels)
        return replace(self, pixels=pixels, alpha=alpha)
