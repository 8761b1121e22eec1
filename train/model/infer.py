"""Restore one photograph in plain PyTorch: the oracle for everything that is served.

ipt-train infer weights/ipt-tiny photo.png restored.png --task sr_x2
ipt-train infer weights/ipt-tiny photo.png restored.png --task denoise_30 --stride 12 --keep 24
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ipt_triton.cli import make_parser, run_command
from ipt_triton.images import read_rgb
from ipt_triton.tiling import KEEP, STRIDE, Tiler
from ipt_triton.train.data.pictures import format_of, write_picture
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.model.ipt import Network


@torch.inference_mode()
def restore_image(
    model: Network,
    image: np.ndarray,
    task: int | str,
    stride: int = STRIDE,
    keep: int = KEEP,
    batch: int = 16,
    precision: str = "fp32",
) -> np.ndarray:
    """Restore a whole image, tile by tile.

    Args:
        image: uint8 or uint16 RGB [height, width, 3], any size from 1x1; or float32 on the 0..255 scale, which it may
            exceed (noise as the field's benchmarks add it), and then the result is neither rounded nor clipped.
        task: id or name.
        stride, keep: the tiling rule (`tiling`).
        batch: patches in one pass; does not change the result beyond rounding.
        precision: `fp32`, or `bf16` for BF16 autocast.

    Returns:
        [height * scale, width * scale, 3] in the dtype of `image`.

    Raises:
        TaskError: the model has no such task.
        ValueError: stride, keep or image are not allowed.
    """
    found = model.task(task)
    device = next(model.parameters()).device
    tiler = Tiler(image, found.scale, model.config.patch_size, stride, keep, image.dtype.name)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for first, last in tiler.batches(batch):
            patches = torch.from_numpy(tiler.patches(first, last)).to(device)
            tiler.add(model(patches, found.name).float().cpu().numpy())
    return tiler.result()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = make_parser("ipt-train infer", __doc__ or "")
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("input", type=Path, help="8-bit photograph")
    parser.add_argument("output", type=Path, help="restored photograph; the name's ending decides the format")
    parser.add_argument("--task", required=True, help="name or id")
    parser.add_argument("--stride", type=int, default=STRIDE, help="distance of tiles (default %(default)s)")
    parser.add_argument(
        "--keep", type=int, default=KEEP, help="side of a tile's centre that is used (default %(default)s)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args(argv)

    def work() -> None:
        format_of(arguments.output)  # what it refuses is known before the work
        model = load_checkpoint(arguments.checkpoint).model
        image = read_rgb(arguments.input)
        tiling = arguments.stride, arguments.keep
        restored = restore_image(model, image, arguments.task, *tiling, precision=arguments.precision)
        write_picture(Image.fromarray(restored), arguments.output)

    return run_command(work, ValueError)
