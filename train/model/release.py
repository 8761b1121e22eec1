"""Release: a checkpoint in half precision, with its measured quality and a model card, ready to be shipped.

    ipt-train release runs/mine/checkpoint weights/mine
    ipt-train evaluate weights/mine --data Set5 --task sr_x2 --json set5.json
    ipt-train release runs/mine/checkpoint weights/mine --evaluation set5.json

What is measured is what is shipped: evaluations of other weights than the rounded ones are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ipt_triton.cli import make_parser, run_command
from ipt_triton.reading import convert, read_json
from ipt_triton.tasks import Task
from ipt_triton.tiling import STRIDE
from ipt_triton.train.errors import CheckpointError
from ipt_triton.train.model.checkpoint import DTYPES, Checkpoint, content_hash, load_checkpoint, save_checkpoint
from ipt_triton.train.model.ipt import IPT

Row = dict[str, Any]

KINDS = {
    "sr": ("scale", "antialiased bicubic reduction by {}", "reductions of another kind"),
    "derain": ("name", "synthetic rain streaks", "mist, and drops on the lens"),
    "denoise": (
        "sigma",
        "Gaussian noise of σ {}, every second crop rounded to 8 bit",
        "noise of another kind, or far from σ {}",
    ),
    "ranged denoise": (
        "sigma",
        "Gaussian noise of σ {} in half of the crops and of anything from 0 to it in the others, every second crop "
        "rounded to 8 bit",
        "noise of another kind, or far above σ {}",
    ),
    "blind denoise": ("name", "Gaussian and Poisson-Gaussian noise of σ 0 to 55", "noise with a pattern"),
    "blind dejpeg": ("name", "JPEG of quality 10 to 95 with 4:2:0 chroma", "other compression"),
    "real": ("name", "chains of blur, resizing, noise and JPEG of random strength ({})", "stronger blur and noise"),
    "auto": ("name", "one of noise, JPEG, rain and such a chain, or nothing ({})", "several at full strength"),
    "dejpeg": ("quality", "JPEG of quality {} with 4:2:0 chroma", "JPEG far from quality {}, and other compression"),
    "deblur": ("sigma", "Gaussian blur of σ {} pixels", "blur of another kind, or far from σ {} pixels"),
    "paired": ("name", "what the pairs of photographs for {} show", "what the pairs for {} do not show"),
}
"""By kind of task: what tells its tasks apart, how inputs are degraded, and what is out of range, in a card's words."""


@torch.no_grad()
def rounded(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with its weights rounded to a storage type; the model is changed in place."""
    for parameter in checkpoint.model.parameters():
        parameter.copy_(parameter.to(DTYPES[dtype]))
    return replace(checkpoint, sha256=content_hash(dict(checkpoint.model.state_dict())))


def read_rows(paths: Sequence[Path], sha256: str) -> list[Row]:
    """The rows of evaluation files, without the figures of single images.

    Raises:
        CheckpointError: a file that is not an evaluation, or one of other weights.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            found = convert(list[dict[str, Any]], read_json(path), "its content")
            rows += [{k: v for k, v in row.items() if k != "per_image"} for row in found]
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not an evaluation: {error}") from None
    for row in rows:
        if row.get("checkpoint_sha256") != sha256:
            raise CheckpointError(
                f"the evaluation of {row.get('task')} on {row.get('set')} is of other weights; evaluate these again"
            )
    return rows


def quality_table(rows: Sequence[Row]) -> str:
    """Markdown: PSNR (dB) and SSIM of each task beside its classical baseline."""
    lines = ["| task | set | baseline | PSNR-Y | PSNR-RGB | SSIM-Y |", "|---|---|---|---|---|---|"]
    for row in rows:
        psnr_y, psnr_rgb, ssim_y = (
            f"**{row[key]:.{digits}f}** ({row[f'baseline_{key}']:.{digits}f})"
            for key, digits in (("psnr_y", 2), ("psnr_rgb", 2), ("ssim_y", 4))
        )
        where = f"{row['set']}, {row['images']} images"
        task = " ".join(filter(None, (row["task"], row.get("level"))))
        lines.append(f"| {task} | {where} | {row['baseline']} | {psnr_y} | {psnr_rgb} | {ssim_y} |")
    return "\n".join(lines)


def training_runs(provenance: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The provenance of each training run behind the weights of a checkpoint folder, the first one first.

    Raises:
        CheckpointError: the folder holds weights that were not trained here.
    """
    runs = [provenance]
    while "parent" in runs[0]:
        runs.insert(0, runs[0]["parent"]["provenance"])
    needed = ("steps", "patches", "hours", "device", "torch", "git_commit")
    for run in runs:
        if missing := [key for key in ("data", *needed)[run is not provenance :] if key not in run]:
            raise CheckpointError(f"{folder} does not tell its {missing[0]!r}: was it trained here?")
    return runs


def degradations(tasks: Iterable[Task], paired: Iterable[str], ranged: bool) -> Iterator[tuple[str, str]]:
    """By kind of task: how its inputs were degraded, and what is out of range.

    Args:
        paired: names of tasks that were trained on pairs, whatever their kind.
        ranged: noise had all strengths up to the nominal one.
    """
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        kind = task.kind
        if kind in ("denoise", "dejpeg") and not task.sigma + task.quality:
            kind = f"blind {kind}"
        elif kind == "denoise" and ranged:
            kind = "ranged denoise"
        groups.setdefault("paired" if task.name in paired else kind, []).append(task)
    for kind, members in groups.items():
        attribute, how, outside = KINDS[kind]
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in (getattr(t, attribute) for t in members)]
        joined = " and ".join([", ".join(values[:-1]), values[-1]] if values[1:] else values)
        yield how.format(joined), outside.format(joined)


def model_card(name: str, model: IPT, runs: Sequence[dict[str, Any]], rows: Sequence[Row], data: str) -> str:
    """The model card as Markdown.

    Args:
        name: of the weights.
        runs: as `training_runs` gives them.
        data: a sentence or more on the training images and their licences.
    """
    config, seen = model.config, runs[-1]["data"]
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    tasks = ", ".join(t.name for t in config.tasks)
    photographs = f"{seen['photographs']} photographs"
    if "megapixels" in seen:  # unknown where workers decode
        photographs += f", {seen['megapixels']} megapixels"
    paired = {run["task"] for run in runs if run.get("data", {}).get("paired")}
    ranged = runs[-1].get("recipe", {}).get("noise") == "ranged"
    inputs, outside = zip(*degradations(config.tasks, paired, ranged), strict=True)
    border = "; super-resolution without `scale` border pixels" if any(t.scale > 1 for t in config.tasks) else ""
    history = "\n".join(_listed(run, config.patch_size) for run in runs)
    return f"""# {name}

IPT with {config.features} features, {config.encoder_layers}+{config.decoder_layers} layers and {parameters:.2f} M
parameters for {tasks}, stored in half precision.

## Quality

Ours in bold, the classical baseline in brackets. PSNR in dB; inputs and outputs in 8 bit{border}.
{_computed(rows)}, tiles every {STRIDE} pixels. The test images are for evaluation alone.

{quality_table(rows)}

## Training

- Data: {photographs}; {seen["held_out"]} more were held out. {data}
- Degradation of the inputs: {"; ".join(inputs)}.
{history}

## Limits

Trained for a short time: compare the figures with what larger models reach. Out of its range: {"; ".join(outside)}.
"""


def _computed(rows: Sequence[Row]) -> str:
    """What restored the images of the table."""
    ways = sorted({(row.get("runtime", "pytorch"), row.get("precision", "fp32")) for row in rows}) or [
        ("pytorch", "fp32")
    ]
    return " and ".join(
        f"{'Plain PyTorch' if runtime == 'pytorch' else f'A server with {runtime}'} in {precision.upper()}"
        for runtime, precision in ways
    )


def _listed(run: dict[str, Any], patch_size: int) -> str:
    """A training run as an item of a list."""
    origin = "the weights before" if "parent" in run else "the identity"
    recipe = ", ".join(f"{k} {v}" for k, v in run.get("recipe", {}).items() if v is not None)
    return f"""- From {origin}: {run["steps"]} steps, {run["patches"]} patches of {patch_size}x{patch_size} pixels and \
{run["hours"]} hours
  ({run["device"].upper()}, torch {run["torch"]}, commit {run["git_commit"][:12]}).
  Recipe: {recipe}."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    parser = make_parser("ipt-train release", __doc__ or "")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--evaluation", type=Path, nargs="+", default=[], metavar="FILE", help="JSON files")
    parser.add_argument("--data", default="", metavar="TEXT", help="on the training images and their licences")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    arguments = parser.parse_args(argv)

    def work() -> None:
        checkpoint = rounded(load_checkpoint(arguments.checkpoint), arguments.dtype)
        rows = read_rows(arguments.evaluation, checkpoint.sha256)
        runs = training_runs(checkpoint.provenance, arguments.checkpoint)
        card = {"README.md": model_card(arguments.output.name, checkpoint.model, runs, rows, arguments.data)}
        quality = {**checkpoint.quality, "evaluation": rows}
        save_checkpoint(checkpoint.model, arguments.output, checkpoint.provenance, quality, arguments.dtype, card)
        print(f"{arguments.output}: {sum(p.stat().st_size for p in arguments.output.iterdir()) / 2**20:.1f} MiB")

    return run_command(work)
