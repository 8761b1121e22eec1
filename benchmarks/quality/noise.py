"""What denoising does at every strength of noise: a task must not harm what is hardly noisy, nor tint or step a sky.

    ipt-benchmark noise --checkpoint weights/ipt-tiny --data CBSD68

Gaussian noise of each σ on photographs and on a synthetic sky, clipped and rounded to 8 bit as a service sees it; then
each denoising task in plain PyTorch, and non-local means told the true σ. σ 0 is what a task does to a picture that
needs nothing. PSNR of RGB, of equal pictures 98 dB. Of the sky also the tint, the largest mean error of a channel, and
the step, the largest difference of the mean errors on both sides of a line where tiles meet, both in grey levels.
Strong noise leaves a step of its own, since a mean over some hundred pixels still holds some of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ipt_triton.benchmarks.errors import EvaluationError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, table
from ipt_triton.benchmarks.quality.classical import baseline
from ipt_triton.benchmarks.quality.evaluate import by_pytorch
from ipt_triton.benchmarks.record import Record, command_line, run_benchmark
from ipt_triton.metrics import psnr_of_error, to_uint8
from ipt_triton.tasks import KNOWN_TASKS, find_task
from ipt_triton.tiling import KEEP, STRIDE, plan_axis
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.data.sets import find_images, load_sample
from ipt_triton.train.model.checkpoint import load_checkpoint

SIGMAS = (3, 10, 20, 30, 40, 50)
SKY = "sky"
TOP, BOTTOM = (72.0, 122.0, 196.0), (172.0, 205.0, 236.0)
_BESIDE = 8  # pixels on each side of a line whose means are compared: a step shows, what is left of the noise hardly
_BLIND = find_task(KNOWN_TASKS, "denoise")


def sky(height: int = 168, width: int = 208) -> np.ndarray:
    """A clear sky, uint8 [height, width, 3]: deep blue above, pale below, a little lighter to the right."""
    down, right = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 8, width)[None, :, None]
    return to_uint8(np.array(TOP) * (1 - down) + np.array(BOTTOM) * down + right)


def psnr(restored: np.ndarray, clean: np.ndarray) -> float:
    """PSNR of RGB in dB, 98 at most."""
    return psnr_of_error(max(float(np.square(restored.astype(np.float64) - clean).mean()), 1e-5))


def tint(restored: np.ndarray, clean: np.ndarray) -> float:
    """Largest mean error of a channel, in grey levels."""
    return float(np.abs((restored.astype(np.float64) - clean).mean((0, 1))).max())


def step(restored: np.ndarray, clean: np.ndarray) -> float:
    """Largest difference of a channel's mean errors on both sides of a line where tiles meet, in grey levels."""
    error = restored.astype(np.float64) - clean
    found = [0.0]
    for axis in (0, 1):
        profile = error.mean(1 - axis)  # [height or width, 3]
        for place in (low for _, low, _ in plan_axis(len(profile))[1:]):
            before, after = profile[place - _BESIDE : place], profile[place : place + _BESIDE]
            found.append(float(np.abs(after.mean(0) - before.mean(0)).max()))
    return max(found)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    checkpoint = load_checkpoint(arguments.checkpoint)
    tasks = [task for task in checkpoint.model.config.tasks if task.kind in ("denoise", "auto")]
    if not tasks:
        raise EvaluationError(f"{arguments.checkpoint} has no task that removes noise")
    restorer = by_pytorch(checkpoint, STRIDE, KEEP)
    sets = {SKY: [(SKY, sky())]}
    if arguments.data:
        found = find_images(arguments.data, _BLIND)[: arguments.images]
        sets[arguments.data.resolve().name] = [(c.name, load_sample(c, None, _BLIND).clean) for c, _ in found]
    rows = []
    for name, images in sets.items():
        for sigma in (0, *arguments.sigma):
            print(f"{name}: sigma {sigma}", file=sys.stderr)
            noise = replace(_BLIND, sigma=float(sigma))
            noisy = [to_uint8(degrade_image(clean, noise, seed_of(key))) if sigma else clean for key, clean in images]
            row: dict[str, Any] = {"set": name, "images": len(images), "sigma": sigma}
            if sigma:
                pairs = [(given, clean) for given, (_, clean) in zip(noisy, images, strict=True)]
                row["input"] = fmean(psnr(given, clean) for given, clean in pairs)
                row["non-local means"] = fmean(psnr(baseline(given, noise)[1], clean) for given, clean in pairs)
            for task in tasks:
                restored = [to_uint8(restorer.restore(given.astype(np.float32), task)) for given in noisy]
                pairs = [(result, clean) for result, (_, clean) in zip(restored, images, strict=True)]
                row[task.name] = {"psnr": fmean(psnr(*pair) for pair in pairs)}
                if name == SKY:
                    row[task.name] |= {"tint": tint(*pairs[0]), "step": step(*pairs[0])}
            rows.append(row)
    names = [task.name for task in tasks]
    return {"model": arguments.checkpoint.name, "checkpoint_sha256": checkpoint.sha256, "tasks": names, "rows": rows}


def markdown(record: Record) -> str:
    """A table for each set of images."""
    tasks, parts = record.figures["tasks"], []
    for name, rows in grouped(record.figures["rows"], lambda row: row["set"]).items():
        what = "a synthetic sky: PSNR in dB, tint and step in grey levels" if name == SKY else f"{name}: PSNR in dB"
        lines = [
            [
                row["sigma"],
                *(f"{row[key]:.2f}" if key in row else "–" for key in ("input", "non-local means")),
                *(_cell(row[task]) for task in tasks),
            ]
            for row in rows
        ]
        images = f", {rows[0]['images']} images" if rows[0]["images"] > 1 else ""
        parts.append(f"{what}{images}:\n\n{table(['σ', 'input', 'non-local means', *tasks], lines)}")
    return f"{record.figures['model']}, Gaussian noise of each σ on " + "\n\nOn ".join(parts)


def _cell(values: dict[str, float]) -> str:
    beside = f" ({values['tint']:.1f}, {values['step']:.1f})" if "tint" in values else ""
    return f"{values['psnr']:.2f}{beside}"


def draw(record: Record) -> Figure:
    """PSNR by σ, a panel for each set of images."""
    sets = grouped(record.figures["rows"], lambda row: row["set"])
    drawn, axes = figure(5 * len(sets), 4, ncols=len(sets), squeeze=False)
    for ax, (name, rows) in zip(axes.flat, sets.items(), strict=True):
        rows = [row for row in rows if row["sigma"]]
        sigmas = [row["sigma"] for row in rows]
        ax.plot(sigmas, [row["input"] for row in rows], "--", color="0.6", label="input")
        ax.plot(sigmas, [row["non-local means"] for row in rows], ":", color="0.3", label="non-local means")
        for task in record.figures["tasks"]:
            ax.plot(sigmas, [row[task]["psnr"] for row in rows], "o-", markersize=4, label=task)
        ax.set(xlabel="σ of the noise, grey levels", ylabel="PSNR, dB", title=name)
        ax.legend(fontsize="small")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("noise", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FOLDER", help="trained weights")
    parser.add_argument("--data", type=Path, metavar="DIR", help="clean photographs, beside the sky")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="of them (default %(default)s)")
    parser.add_argument(
        "--sigma", type=int, nargs="+", default=SIGMAS, help=f"of the noise (default {' '.join(map(str, SIGMAS))})"
    )
    arguments = parser.parse_args(argv)
    if arguments.images < 1:
        parser.error(f"--images {arguments.images} is not allowed: it must be at least 1")
    if wrong := [sigma for sigma in arguments.sigma if not 0 < sigma <= 255]:
        parser.error(f"--sigma {wrong[0]} is not allowed: it must be from 1 to 255")
    return run_benchmark("noise", argv, arguments, measure, markdown, draw, ("torch", "scikit-image", "numpy"))
