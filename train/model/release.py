"""Release: a checkpoint in half precision, with its measured quality and a model card, ready to be shipped.

    ipt-train release runs/mine/checkpoint weights/mine
    ipt-train evaluate weights/mine --data Set5 --task sr_x2 --json set5.json
    ipt-train release runs/mine/checkpoint weights/mine --evaluation set5.json

What is measured is what is shipped: evaluations of other weights than the rounded ones are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ipt_triton.cli import make_parser
from ipt_triton.tiling import STRIDE
from ipt_triton.train.model.checkpoint import (
    DTYPES,
    Checkpoint,
    CheckpointError,
    content_hash,
    load_checkpoint,
    save_checkpoint,
)

Row = dict[str, Any]


@torch.no_grad()
def rounded(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with its weights rounded to a storage type; the model is changed in place."""
    for parameter in checkpoint.model.parameters():
        parameter.copy_(parameter.to(DTYPES[dtype]))
    return replace(checkpoint, sha256=content_hash(dict(checkpoint.model.state_dict())))


def read_rows(paths: Sequence[Path], sha256: str) -> list[Row]:
    """The rows of evaluation files, without the figures of single images.

    Raises:
        CheckpointError: a file that is no evaluation, or one of other weights.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            found = json.loads(path.read_text())
            rows += [{k: v for k, v in row.items() if k != "per_image"} for row in found]
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is no evaluation: {error}") from None
    for row in rows:
        if row.get("checkpoint_sha256") != sha256:
            raise CheckpointError(
                f"the evaluation of {row.get('task')} on {row.get('set')} is of other weights; evaluate these again"
            )
    return rows


def quality_table(rows: Sequence[Row]) -> str:
    """Markdown: PSNR (dB) and SSIM of each task beside its classical baseline."""
    lines = [
        "| task | set | baseline | PSNR-Y | PSNR-RGB | SSIM-Y |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        psnr_y, psnr_rgb, ssim_y = (
            f"**{row[key]:.{digits}f}** ({row[f'baseline_{key}']:.{digits}f})"
            for key, digits in (("psnr_y", 2), ("psnr_rgb", 2), ("ssim_y", 4))
        )
        where = f"{row['set']}, {row['images']} images"
        lines.append(f"| {row['task']} | {where} | {row['baseline']} | {psnr_y} | {psnr_rgb} | {ssim_y} |")
    return "\n".join(lines)


def model_card(name: str, checkpoint: Checkpoint, rows: Sequence[Row], data: str) -> str:
    """The model card as Markdown.

    Args:
        name: of the weights.
        data: a sentence or more on the training images and their licences.
    """
    config, made = checkpoint.model.config, checkpoint.provenance
    parameters = sum(p.numel() for p in checkpoint.model.parameters()) / 1e6
    tasks = ", ".join(t.name for t in config.tasks)
    seen = made["data"]
    data_line = f"{seen['photographs']} photographs"
    if "megapixels" in seen:  # unknown where workers decode
        data_line += f", {seen['megapixels']} megapixels"
    return f"""# {name}

IPT with {config.features} features, {config.encoder_layers}+{config.decoder_layers} layers and {parameters:.2f} M
parameters for {tasks}, stored in half precision.

## Quality

Ours in bold, the classical baseline in brackets. PSNR in dB; inputs and outputs in 8 bit; super-resolution without
`scale` border pixels. Plain PyTorch in FP32, tiles every {STRIDE} pixels. The test images are for evaluation alone.

{quality_table(rows)}

## Training

- Data: {data_line}; {seen["held_out"]} more were held out. {data}
- Inputs are degraded on the fly: antialiased bicubic reduction; Gaussian noise, every second crop rounded to 8 bit;
  synthetic rain streaks.
{_runs(made, config.patch_size)}

## Limits

Trained for a short time: compare the figures with what larger models reach. Rain is synthetic streaks; mist, and drops
on the lens, are not known to it. Noise of another kind, or far from σ 30 and 50, is out of its range.
"""


def _runs(made: dict[str, Any], patch_size: int) -> str:
    """A list of the training runs behind weights, the first one first."""
    before = made.get("parent")
    recipe = ", ".join(f"{k} {v}" for k, v in made.get("recipe", {}).items() if v is not None)
    start = "the weights before" if before else "the identity"
    where = f"{made['device'].upper()}, torch {made['torch']}, commit {made['git_commit'][:12]}"
    line = (
        f"- From {start}: {made['steps']} steps, {made['patches']} patches of {patch_size}x{patch_size} pixels and "
        f"{made['hours']} hours\n  ({where}).\n  Recipe: {recipe}."
    )
    return f"{_runs(before['provenance'], patch_size)}\n{line}" if before else line


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    parser = make_parser("ipt-train release", __doc__ or "")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--evaluation", type=Path, nargs="+", default=[], metavar="FILE", help="JSON files")
    parser.add_argument("--data", default="", metavar="TEXT", help="on the training images and their licences")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    arguments = parser.parse_args(argv)
    try:
        checkpoint = rounded(load_checkpoint(arguments.checkpoint), arguments.dtype)
        rows = read_rows(arguments.evaluation, checkpoint.sha256)
        card = model_card(arguments.output.name, checkpoint, rows, arguments.data)
        quality = {**checkpoint.quality, "evaluation": rows}
        save_checkpoint(
            checkpoint.model, arguments.output, checkpoint.provenance, quality, arguments.dtype, {"README.md": card}
        )
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyError as error:
        print(f"error: {arguments.checkpoint} does not tell its {error}: was it trained here?", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {sum(p.stat().st_size for p in arguments.output.iterdir()) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
