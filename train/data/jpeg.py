"""What JPEG does to a picture, batched in torch: baseline, 4:2:0 chroma, the standard tables, as libjpeg has it.

Entropy coding loses nothing, so it is left out; the rest (colour transform, chroma subsampling, 8x8 DCT, quantisation
and the way back with libjpeg's triangle filter for chroma) runs on the device of the batch, with no copy to the host.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# Quantisation tables of ITU-T T.81, Annex K, row by row.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
BLOCK = 16  # a unit of four luma blocks and one block of each chroma plane
WHOLE_FILES = 0.75  # of the JPEGs in training are taken as files that nobody has cropped since


def compress(clean: Tensor, quality: int | Tensor) -> Tensor:
    """The pictures as a JPEG file of this quality would give them back.

    Args:
        clean: RGB [B, 3, H, W] in 0..255.
        quality: 1 to 100, on libjpeg's scale; one for all, or [B].

    Returns:
        Same shape, whole values in 0..255. libjpeg computes in integers, so single values differ (0.1 to 0.7 levels on
        average over photographs); the PSNR against the original is that of a file within 0.1 dB.
    """
    height, width = clean.shape[-2:]
    padded = F.pad(clean, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate").round()
    r, g, b = padded.unbind(1)
    luma = (0.299 * r + 0.587 * g + 0.114 * b).round()
    chroma = torch.stack([128 + 0.564334 * (b - luma), 128 + 0.713267 * (r - luma)], 1).clamp(0, 255).round()
    luma = _requantise(luma[:, None], _table(LUMINANCE, quality, clean))
    chroma = _requantise(F.avg_pool2d(chroma, 2).round(), _table(CHROMINANCE, quality, clean))
    cb, cr = (F.interpolate(chroma, scale_factor=2, mode="bilinear").round() - 128).split(1, dim=1)
    restored = torch.cat([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], 1)
    return restored[..., :height, :width].clamp(0, 255).round()


def compress_anywhere(clean: Tensor, quality: int | Tensor, generator: Generator, whole: float = 0.0) -> Tensor:
    """`compress` for crops: the block grid is anywhere, as in a tile of a photograph.

    Args:
        whole: share of the batches whose grid has a corner at a multiple of 8 pixels. Tiles of a whole file have it
            there, for their distance is a multiple of 8; tiles of a file that was cropped later have it anywhere.

    The border is mirrored. One place of the grid per batch, so that a batch is one call.
    """
    place = torch.randint(BLOCK, (2,), device=clean.device, generator=generator)
    if whole:
        kept = torch.rand(1, device=clean.device, generator=generator) < whole
        place = torch.where(kept, place // 8 * 8, place)
    top, left = place.split(1)
    height, width = clean.shape[-2:]
    coded = compress(mirrored(clean, top, left, height + BLOCK, width + BLOCK), quality)
    rows, columns = (n + torch.arange(side, device=clean.device) for n, side in ((top, height), (left, width)))
    return coded[..., rows[:, None], columns]


def mirrored(x: Tensor, top: Tensor | int, left: Tensor | int, height: int, width: int) -> Tensor:
    """`height` times `width` pixels that begin `top` and `left` pixels outside; what is outside is mirrored."""
    sides = (height, top, x.shape[-2]), (width, left, x.shape[-1])
    periods = [((torch.arange(side, device=x.device) - before).remainder(2 * n), n) for side, before, n in sides]
    rows, columns = (torch.minimum(period, 2 * n - 1 - period) for period, n in periods)
    return x[..., rows[:, None], columns]


def _table(base: tuple[tuple[int, ...], ...], quality: int | Tensor, like: Tensor) -> Tensor:
    """A quantisation table scaled to each quality as libjpeg does it, [B or 1, 1, 1, 1, 8, 8]."""
    wanted = torch.as_tensor(quality, device=like.device).view(-1, 1, 1, 1, 1, 1)
    percent = torch.where(wanted < 50, 5000 // wanted, 200 - 2 * wanted)
    return ((torch.tensor(base, device=like.device) * percent + 50) // 100).clamp(1, 255).to(like)


def _requantise(plane: Tensor, table: Tensor) -> Tensor:
    """8x8 DCT of [B, C, H, W], rounding to multiples of the table, and back to whole values in 0..255."""
    k = torch.arange(8, device=plane.device, dtype=plane.dtype)
    basis = 0.5 * torch.cos(math.pi / 16 * k[:, None] * (2 * k + 1))  # [frequency, place]
    basis[0] /= math.sqrt(2)
    b, c, height, width = plane.shape
    blocks = plane.view(b, c, height // 8, 8, width // 8, 8).transpose(3, 4) - 128  # [B, C, H/8, W/8, 8, 8]
    kept = (basis @ blocks @ basis.T / table).round() * table
    back = (basis.T @ kept @ basis + 128).clamp(0, 255).round()
    return back.transpose(3, 4).reshape(b, c, height, width)
