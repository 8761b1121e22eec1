"""What cutting an image into patches and joining the answers costs one core, beside one pass over the answers.

    ipt-benchmark joiner
    ipt-benchmark joiner --sides 512 2048 --scales 1 4 --json build/joiner.json

No network and no server: the tiler as the router runs it, on random answers (a twentieth of them outside 0..255) in
chunks as the ensembles send them. `one pass` reads a chunk's answers and writes them as float32, `x * 1.0`; joining
counts `Tiler.add` and `result`. The three take turns in each run. CPU time of the calling thread, so that other work on
the machine matters little.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ipt_triton.benchmarks.presentation import Figure, figure, grouped, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark
from ipt_triton.service import MAX_BATCH
from ipt_triton.tiling import PATCH, Tiler

IMAGES, ANSWERS = ("uint8", "uint16"), ("float32", "float16")


def cpu_us(call: Callable[..., object], *arguments: object) -> float:
    """Microseconds of CPU time that a call takes in this thread."""
    started = time.thread_time_ns()
    call(*arguments)
    return (time.thread_time_ns() - started) / 1e3


def cut(tiler: Tiler) -> None:
    for first, last in tiler.batches(MAX_BATCH):
        tiler.patches(first, last)


def join(tiler: Tiler, answers: Sequence[np.ndarray]) -> None:
    for chunk in answers:
        tiler.add(chunk)
    tiler.result()


def one_pass(answers: Sequence[np.ndarray]) -> None:
    for chunk in answers:
        np.multiply(chunk, np.float32(1))


def random_answers(count: int, scale: int, dtype: str) -> list[np.ndarray]:
    """Answers of `dtype` [n, 3, side, side] to `count` patches, in chunks of at most `MAX_BATCH`."""
    rng, side = np.random.default_rng(0), PATCH * scale
    chunks = []
    for first in range(0, count, MAX_BATCH):
        chunk = rng.random((min(MAX_BATCH, count - first), 3, side, side), np.float32)
        chunk *= 268
        chunk -= 6.5
        chunks.append(chunk.astype(dtype))
    return chunks


def measure_case(side: int, image_type: str, answer_type: str, scale: int, runs: int) -> dict[str, Any]:
    """Spreads of microseconds a patch, for an image of side x side."""
    levels = np.random.default_rng(0).integers(0, np.iinfo(image_type).max, (side, side, 3), endpoint=True)
    image = levels.astype(image_type)
    count = Tiler(image, scale).count
    passed, given = (random_answers(count, scale, dtype) for dtype in ("float32", answer_type))
    times: dict[str, list[float]] = {"cut": [], "join": [], "pass": [], "ratio": []}

    for _ in range(runs + 1):
        tiler = Tiler(image, scale)
        times["pass"].append(cpu_us(one_pass, passed) / count)
        times["cut"].append(cpu_us(cut, tiler) / count)
        times["join"].append(cpu_us(join, tiler, given) / count)
        times["ratio"].append(times["join"][-1] / times["pass"][-1])
    spreads = {name: asdict(Spread.of(values[1:])) for name, values in times.items()}
    return {"side": side, "image": image_type, "answers": answer_type, "scale": scale, "patches": count, **spreads}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: a row for each case."""
    rows = []
    for side in arguments.sides:
        for image_type in IMAGES:
            for answer_type in ANSWERS:
                for scale in arguments.scales:
                    rows.append(measure_case(side, image_type, answer_type, scale, arguments.runs))
                    ratio = rows[-1]["ratio"]["median"]
                    print(f"{side} {image_type} {answer_type} x{scale}: {ratio:.1f} passes", file=sys.stderr)
    return {"rows": rows}


def markdown(record: Record) -> str:
    """A table of microseconds a patch, and joining in passes over the answers."""
    rows = [
        (
            row["side"],
            row["image"],
            row["answers"],
            f"x{row['scale']}",
            *(quartiles(row[name]) for name in ("cut", "join", "pass", "ratio")),
            f"{1e6 / (row['cut']['median'] + row['join']['median']):.0f}",
        )
        for row in record.figures["rows"]
    ]
    names = (
        "cutting, µs a patch",
        "joining, µs a patch",
        "one pass, µs a patch",
        "joining : one pass",
        "patches/s a core",
    )
    return (
        f"Patches of {PATCH}x{PATCH}, answers in chunks of {MAX_BATCH}; CPU time of one core. One pass is over the "
        "answers as float32.\n\n" + table(("side", "image", "answers", "scale", *names), rows)
    )


def draw(record: Record) -> Figure:
    """Joining in passes over the answers, by scale, one line for each kind of image and answers."""
    drawn, ax = figure(6, 3.6)
    rows = record.figures["rows"]
    for (side, image, answers), cases in grouped(rows, lambda r: (r["side"], r["image"], r["answers"])).items():
        scales = [case["scale"] for case in cases]
        ax.plot(scales, [case["ratio"]["median"] for case in cases], "o-", label=f"{side}, {image} from {answers}")
    ax.set_xticks(sorted({row["scale"] for row in rows}))
    ax.set_ylim(bottom=0)
    ax.set(xlabel="scale", ylabel="passes over the answers", title="Joining")
    ax.legend(fontsize="small")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("joiner", __doc__)
    sides = "of the square images in pixels (default %(default)s)"
    parser.add_argument("--sides", type=int, nargs="+", default=[512], metavar="N", help=sides)
    parser.add_argument(
        "--scales", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N", help="(default %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=15, help="of each case (default %(default)s)")
    arguments = parser.parse_args(argv)
    if min(*arguments.sides, *arguments.scales, arguments.runs) < 1:
        parser.error("--sides, --scales and --runs take whole numbers above 0")
    return run_benchmark("joiner", argv, arguments, measure, markdown, draw, ("numpy",))
