"""The price of speed: PSNR and SSIM per task through the server, by precision and by tiling rule.

    ipt-benchmark quality --checkpoint weights/ipt-tiny --sr Set5 --denoise CBSD68 --derain Rain100L
    ipt-benchmark quality --checkpoint weights/ipt-tiny --sr Set5 --precision bf16 --rules 24/24 48/48

Test sets and figures are those of `ipt-train evaluate`, on 8-bit inputs. A rule is STRIDE/KEEP: the distance of the
tiles, and the side of a tile's centre that is used; 12/24 is the official code's. Every precision is measured with the
default rule, and beside it PyTorch FP32 on the same inputs; every rule in the first precision. Each image goes through
all of them in turns. Quality does not depend on the machine's load; the seconds, taken once for each image, do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ipt_triton.benchmarks.errors import EvaluationError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, table
from ipt_triton.benchmarks.quality.evaluate import Restorer, by_pytorch, by_server, score
from ipt_triton.benchmarks.record import Record, command_line, run_benchmark
from ipt_triton.benchmarks.served import serving
from ipt_triton.manifest import PRECISIONS
from ipt_triton.metrics import figure_of, to_uint8
from ipt_triton.tasks import Task
from ipt_triton.tiling import KEEP, PATCH, STRIDE, check_rule, plan_axis
from ipt_triton.train.data.sets import find_images, load_sample
from ipt_triton.train.model.checkpoint import Checkpoint, load_checkpoint

SERVED = PRECISIONS["openvino"]
KINDS = ("sr", "denoise", "derain")
DEFAULT = (STRIDE, KEEP)
RULES = ((12, 24), (24, 24), (36, 36), (36, 48), (40, 40), (40, 46), (42, 42), (48, 48))
MARKERS = "osD*^vPX<>"

Paths = Sequence[tuple[Path, Path | None]]


def measure_task(restorers: Sequence[Restorer], task: Task, set_name: str, paths: Paths) -> list[dict[str, Any]]:
    """One row for each restorer: means over the images, cost, and what is needed to compare image by image.

    Args:
        paths: as `train.data.sets.find_images` returns them.

    Raises:
        EvaluationError: naming an image that cannot be restored or measured.
    """
    judged = figure_of(task)
    scores: list[list[dict[str, float]]] = [[] for _ in restorers]
    patches, seconds, pixels = [0] * len(restorers), [0.0] * len(restorers), 0
    for restorer in restorers:  # the first patches of a task take longer
        restorer.restore(np.zeros((PATCH, PATCH, 3), np.float32), task)
    for clean, degraded in paths:
        sample = load_sample(clean, degraded, task)
        given = to_uint8(sample.degraded).astype(np.float32)
        height, width = given.shape[:2]
        pixels += height * width
        for i, restorer in enumerate(restorers):
            started = time.perf_counter()
            try:
                restored = to_uint8(restorer.restore(given, task))
                seconds[i] += time.perf_counter() - started
                scores[i].append(asdict(score(restored, sample, task)))
            except (ValueError, FloatingPointError) as error:
                raise EvaluationError(f"{sample.name} cannot be measured for {task.name}: {error}") from error
            rule = restorer.how["stride"], restorer.how["keep"]
            patches[i] += len(plan_axis(height, PATCH, *rule)) * len(plan_axis(width, PATCH, *rule))
    return [
        {
            "task": task.name,
            "set": set_name,
            "images": len(paths),
            **{key: restorer.how[key] for key in ("runtime", "precision", "stride", "keep")},
            "pixels": pixels,
            "patches": patches[i],
            "seconds": round(seconds[i], 3),
            "judged": judged,
            **{key: round(fmean(values[key] for values in scores[i]), 5) for key in scores[i][0]},
            "per_image": [round(values[judged], 5) for values in scores[i]],
        }
        for i, restorer in enumerate(restorers)
    ]


def measure_all(
    checkpoint: Checkpoint,
    sets: dict[str, Path],
    precisions: Sequence[str],
    rules: Sequence[tuple[int, int]],
    limit: int,
) -> list[dict[str, Any]]:
    """All rows, for every task of the checkpoint whose kind has a test set.

    Args:
        sets: folders by kind of task.
        rules: stride and keep; compared in the first precision.
        limit: images of each set.

    Raises:
        EvaluationError: nothing can be measured.
        IptError: export refuses a precision, or a server fails.
    """
    tasks = [task for task in checkpoint.model.config.tasks if task.kind in sets]
    if not tasks:
        raise EvaluationError(f"the checkpoint has no task of the kinds {', '.join(sets)}")
    found = {task: find_images(sets[task.kind], task)[:limit] for task in tasks}
    rows = []
    with ExitStack() as stack:
        restorers = [by_pytorch(checkpoint, *DEFAULT)]
        for precision in precisions:
            url = stack.enter_context(serving([checkpoint], precision)).server.grpc_url
            wanted = dict.fromkeys((DEFAULT, *rules)) if precision == precisions[0] else (DEFAULT,)
            restorers += [stack.enter_context(by_server(url, tasks, *rule)) for rule in wanted]
        for task, paths in found.items():
            print(f"{task.name}: {len(paths)} images", file=sys.stderr)
            rows += measure_task(restorers, task, sets[task.kind].resolve().name, paths)
    return rows


def _rule(row: dict[str, Any]) -> str:
    return f"{row['stride']}/{row['keep']}"


def _evaluations(rows: Sequence[dict[str, Any]]) -> float:
    """Evaluations of an input pixel, on average over the images of all rows."""
    return sum(row["patches"] for row in rows) * PATCH**2 / sum(row["pixels"] for row in rows)


def by_precision(record: Record) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Per task the row of PyTorch FP32 and, with the same rule, one row for each served precision."""
    result = []
    for rows in grouped(record.figures["rows"], lambda row: row["task"]).values():
        oracle = next(row for row in rows if row["runtime"] == "pytorch")
        result.append((oracle, [row for row in rows if row is not oracle and _rule(row) == _rule(oracle)]))
    return result


def by_rule(record: Record) -> dict[str, list[dict[str, Any]]]:
    """Per rule the rows of all tasks in the first served precision; the dearest rule first."""
    rows = [row for row in record.figures["rows"] if row["runtime"] != "pytorch"]
    rules = grouped((row for row in rows if row["precision"] == rows[0]["precision"]), _rule)
    return dict(sorted(rules.items(), key=lambda item: -_evaluations(item[1])))


def gain(row: dict[str, Any], other: dict[str, Any]) -> float:
    """dB that a row is above another of the same task."""
    return float(row[row["judged"]] - other[row["judged"]])


def markdown(record: Record) -> str:
    """One table by precision, one by tiling rule."""
    precisions, rules = by_precision(record), by_rule(record)

    def cell(row: dict[str, Any]) -> str:
        return f"{row[row['judged']]:.2f} / {row['ssim_y']:.4f}"

    served = [row["precision"] for row in precisions[0][1]]
    named = {"psnr_y": "Y", "psnr_rgb": "RGB"}
    first = table(
        ["task", "set", "images", "PSNR of", "PyTorch fp32", *(f"served {name}" for name in served)],
        (
            [*(oracle[key] for key in ("task", "set", "images")), named[oracle["judged"]], *map(cell, (oracle, *rows))]
            for oracle, rows in precisions
        ),
    )
    remarks = []
    for i, name in enumerate(served):
        mean = max(abs(gain(rows[i], oracle)) for oracle, rows in precisions)
        single = max(
            abs(a - b)
            for oracle, rows in precisions
            for a, b in zip(oracle["per_image"], rows[i]["per_image"], strict=True)
        )
        remarks.append(f"{name} {mean:.4f} dB (of a single image {single:.4f} dB)")
    lines = []
    for rule, rows in rules.items():
        patches, seconds, pixels = (sum(row[key] for row in rows) for key in ("patches", "seconds", "pixels"))
        lines.append([rule, patches, f"{_evaluations(rows):.2f}", f"{seconds / pixels * 1e6:.1f}", *map(cell, rows)])
    tasks = [row["task"] for row in next(iter(rules.values()))]
    second = table(["rule", "patches", "evaluations per pixel", "s per megapixel", *tasks], lines)
    rule, precision = _rule(precisions[0][0]), next(iter(rules.values()))[0]["precision"]
    return (
        f"{record.figures['model']}: PSNR in dB / SSIM of Y, by precision with the rule {rule}:\n\n{first}\n\n"
        f"Largest difference of a task from PyTorch FP32: {', '.join(remarks)}.\n\n"
        f"By tiling rule (stride/keep), served in {precision}:\n\n{second}"
    )


def draw(record: Record) -> Figure:
    """PSNR against that of the dearest rule by evaluations per pixel; PSNR against PyTorch FP32 by precision."""
    rules, precisions = by_rule(record), by_precision(record)
    drawn, (left, right) = figure(10, 4.5, ncols=2, width_ratios=(2, 1))
    dearest, best = next(iter(rules.items()))
    for i, (oracle, _) in enumerate(precisions):
        for marker, rows in zip(MARKERS, rules.values(), strict=False):
            left.plot(_evaluations([rows[i]]), gain(rows[i], best[i]), marker, color=f"C{i}", markersize=7, alpha=0.8)
        left.plot([], [], "s", color=f"C{i}", label=oracle["task"])
    for marker, rule in zip(MARKERS, rules, strict=False):
        left.plot([], [], marker, color="0.4", label=rule)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    left.set(xlabel="evaluations of an input pixel", ylabel=f"dB against {dearest}", title="Tiling rule (stride/keep)")
    left.legend(ncols=2, fontsize="small")
    for i, (oracle, rows) in enumerate(precisions):
        gains = [gain(row, oracle) for row in rows]
        right.plot([row["precision"] for row in rows], gains, "o", color=f"C{i}", alpha=0.8)
    right.margins(x=0.3)
    right.axhline(0, color="0.4", linewidth=1)
    right.set(ylabel="dB against PyTorch FP32", title=f"Precision, rule {_rule(precisions[0][0])}")
    return drawn


def tiling_rule(text: str) -> tuple[int, int]:
    """`36/48` as stride and keep, for argparse."""
    try:
        stride, keep = map(int, text.split("/"))
        check_rule(stride, keep)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rule STRIDE/KEEP: {error}") from None
    return stride, keep


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    checkpoint = load_checkpoint(arguments.checkpoint)
    sets = {kind: getattr(arguments, kind) for kind in KINDS if getattr(arguments, kind)}
    try:
        rows = measure_all(checkpoint, sets, arguments.precision, arguments.rules, arguments.images)
    except ValueError as error:  # what export or the tiling of this patch size refuses
        raise EvaluationError(str(error)) from error
    return {"model": arguments.checkpoint.name, "checkpoint_sha256": checkpoint.sha256, "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("quality", __doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FOLDER", help="trained weights")
    for kind, what in zip(KINDS, ("super-resolution: clean images", "clean images", "rain/ and norain/"), strict=True):
        parser.add_argument(f"--{kind}", type=Path, metavar="DIR", help=f"test set for {kind} tasks ({what})")
    parser.add_argument("--images", type=int, default=5, metavar="N", help="of each set (default %(default)s)")
    parser.add_argument("--precision", nargs="+", choices=SERVED, default=list(SERVED), help="(default: all)")
    parser.add_argument(
        "--rules",
        nargs="*",
        type=tiling_rule,
        default=RULES,
        metavar="STRIDE/KEEP",
        help=f"beside {STRIDE}/{KEEP} (default {' '.join(f'{s}/{k}' for s, k in RULES)})",
    )
    arguments = parser.parse_args(argv)
    if not any(getattr(arguments, kind) for kind in KINDS):
        parser.error("give at least one test set: " + ", ".join(f"--{kind}" for kind in KINDS))
    if arguments.images < 1:
        parser.error(f"--images {arguments.images} is not allowed: it must be at least 1")
    packages = ("torch", "openvino", "nvidia-pytriton", "numpy")
    return run_benchmark("quality", argv, arguments, measure, markdown, draw, packages)
