"""What else a user could take: one photograph through PyTorch, ONNX Runtime, OpenVINO and the server, same weights.

    ipt-benchmark baselines --preset ipt
    ipt-benchmark baselines --checkpoint weights/ipt-tiny --only official openvino-bf16 served-bf16 --rounds 7

`official` is PyTorch with as many patches as the official code takes (stride 12, keep 24, and the four borders once
more), all others use our rule. Only the served ones get the photograph and cut and join it; the rest get all patches
ready-made, one task, in one process, on all cores: PyTorch 16 at a time, ONNX Runtime the router's 8, OpenVINO
(`openvino-…`: the exported parts, called directly) the router's 8 in as many threads as there are cores, each with a
stream of its own, so that no core waits for another.

All are measured in turns, round by round. One that would take longer than 4 times `--part` for the whole photograph is
measured on as many patches as take about `--part` seconds and its time is scaled up; the served ones always restore the
whole. Ratios are taken round by round. `--preset` has the weights that training starts from: speed does not depend on
them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino as ov
import torch

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import Serving, add_source, of_one_task, photograph, serving, source_of
from ipt_triton.export.parts.one_core import core
from ipt_triton.export.parts.parity import inference_type
from ipt_triton.manifest import PRECISIONS
from ipt_triton.service import MAX_BATCH
from ipt_triton.tasks import TaskError
from ipt_triton.tiling import KEEP, STRIDE, Tiler
from ipt_triton.train.model.checkpoint import Checkpoint

SERVED = PRECISIONS["openvino"]
"""Patches in one request of the router."""
TORCH_BATCH = 16
"""Patches in one call of PyTorch, as `train.model.infer` has it."""
OFFICIAL_RULE = (12, 24)
WHOLE = 4
"""Whole photographs may take this many times `--part` before they are measured in part."""
PAUSE = 0.3
"""Seconds between two measurements, for threads that spin a while after their work."""

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
"""Patches in batches, float32 [n, 3, 48, 48] in 0..255 -> their restorations, batch by batch."""


def official_count(height: int, width: int, patch: int) -> int:
    """Patches that the official code evaluates for an image (`forward_chop` and `forward_chop_` of model/__init__.py).

    A grid with stride 12; the strips along the four borders are run again, and the bottom right corner once more, which
    is how it covers sides that the stride does not divide.
    """
    rows, columns = ((side - patch) // OFFICIAL_RULE[0] + 1 for side in (height, width))
    return rows * columns + 2 * rows + 2 * columns + 1


class DirectPipeline:
    """Head, body and tail of a task in this process through OpenVINO: a thread and a stream per core."""

    def __init__(self, parts: Path, task: str, precision: str):
        cores = os.cpu_count() or 1
        options = {
            "INFERENCE_PRECISION_HINT": inference_type(precision),
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
        }
        models = [
            core().compile_model(parts / f"{name}.onnx", "CPU", options)
            for name in (f"head_{task}", "body", f"tail_{task}")
        ]
        self._requests = [[model.create_infer_request() for model in models] for _ in range(cores)]

    def __call__(self, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All batches, handed out to the threads as they come free."""
        queue = iter(enumerate(batches))
        answers: list[np.ndarray] = [np.empty(0)] * len(batches)

        def work(requests: list[ov.InferRequest]) -> None:
            head, body, tail = requests
            for i, batch in queue:  # the iterator hands each batch to one thread only
                a = head.infer({"IMAGE": batch}, share_inputs=True, share_outputs=True)
                both = {"FEATURES": a["FEATURES"], "TASK_EMBEDDING": a["TASK_EMBEDDING"]}
                b = body.infer(both, share_inputs=True, share_outputs=True)
                answers[i] = tail.infer({"BODY_FEATURES": b["BODY_FEATURES"]}, share_inputs=True)["RESTORED"]

        with ThreadPoolExecutor(len(self._requests)) as pool:
            list(pool.map(work, self._requests))
        return answers


def by_pytorch(checkpoint: Checkpoint, task: str, bf16: bool = False, compiled: bool = False) -> Run:
    """The whole network in PyTorch, eagerly or through torch.compile, in FP32 or under BF16 autocast."""
    model: Callable[[torch.Tensor, str], torch.Tensor] = checkpoint.model
    if compiled:
        model = torch.compile(checkpoint.model)

    @torch.inference_mode()
    def run(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return [model(torch.from_numpy(batch), task).float().numpy() for batch in batches]

    return run


def by_onnxruntime(parts: Path, task: str) -> Run:
    """Head, body and tail one after the other in ONNX Runtime, FP32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1
    head, body, tail = (
        onnxruntime.InferenceSession(parts / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in (f"head_{task}", "body", f"tail_{task}")
    )

    def run(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
        answers = []
        for batch in batches:
            features, embedding = head.run(["FEATURES", "TASK_EMBEDDING"], {"IMAGE": batch})
            (body_features,) = body.run(None, {"FEATURES": features, "TASK_EMBEDDING": embedding})
            answers.append(tail.run(None, {"BODY_FEATURES": body_features})[0])
        return answers

    return run


@dataclass(frozen=True)
class Contender:
    """One way to restore the photograph.

    Attributes:
        rule: stride and keep.
        count: patches of the photograph by this rule.
        sizes: patches of each batch that there is to measure on; a single one if the work cannot be cut.
        step: smallest number of batches that keeps it busy.
        warm_up: does what only the first time costs.
        run: restores the first n batches.
    """

    name: str
    rule: tuple[int, int]
    count: int
    sizes: tuple[int, ...]
    step: int
    warm_up: Callable[[], object]
    run: Callable[[int], object]


def ready_made(
    name: str,
    tiler: Tiler,
    rule: tuple[int, int],
    size: int,
    run: Run,
    step: int = 1,
    equal: bool = False,
    count: int | None = None,
) -> Contender:
    """A contender that gets its patches cut already, `size` at a time.

    Args:
        count: how many it needs for the photograph, where that is not the tiler's number.
        equal: leave out a smaller last batch, for which torch.compile would compile anew.
    """
    size = min(size, tiler.count)
    batches = [tiler.patches(*bounds) for bounds in tiler.batches(size)]
    if equal:
        batches = [batch for batch in batches if len(batch) == size]
    step = min(step, len(batches))
    sizes = tuple(len(batch) for batch in batches)
    warm_up, first = (lambda: run(batches[:step])), (lambda n: run(batches[:n]))
    return Contender(name, rule, count or tiler.count, sizes, step, warm_up, first)


def through_server(name: str, url: str, photo: np.ndarray, tiler: Tiler, task: str, stack: ExitStack) -> Contender:
    """The contender that gets the photograph."""
    client = stack.enter_context(RestorationClient(url))
    warm_up, run = (lambda: client.restore(photo[:200, :200], task)), (lambda _: client.restore(photo, task))
    return Contender(name, (STRIDE, KEEP), tiler.count, (tiler.count,), 1, warm_up, run)


PYTORCH: dict[str, dict[str, bool]] = {
    "official": {},
    "eager": {},
    "eager-bf16": {"bf16": True},
    "compile": {"compiled": True},
}
NAMES = (*PYTORCH, "onnxruntime", *(f"{way}-{precision}" for way in ("openvino", "served") for precision in SERVED))


def contenders(
    checkpoint: Checkpoint, task: str, side: int, names: Sequence[str], stack: ExitStack, failures: dict[str, str]
) -> Iterator[Contender]:
    """The contenders of these names, one by one; servers live as long as `stack`.

    Args:
        failures: receives why a contender cannot be had, by name.
    """
    photo = photograph(side, side)
    patch, scale = checkpoint.model.config.patch_size, checkpoint.model.task(task).scale
    tiler = Tiler(photo, scale, patch)
    checkpoint = of_one_task(checkpoint, task)
    servers: dict[str, Serving | ValueError] = {}
    for name in names:
        way, _, precision = name.partition("-")
        if name in PYTORCH:
            official = name == "official"
            rule = OFFICIAL_RULE if official else (STRIDE, KEEP)
            count = official_count(side, side, patch) if official else None
            run = by_pytorch(checkpoint, task, **PYTORCH[name])
            yield ready_made(name, Tiler(photo, scale, patch, *rule), rule, TORCH_BATCH, run, equal=True, count=count)
            continue
        precision = precision or "fp32"
        if precision not in servers:
            try:
                servers[precision] = stack.enter_context(serving([checkpoint], precision))
            except ValueError as error:  # export refuses: this machine or these weights cannot have the precision
                servers[precision] = error
        server = servers[precision]
        if isinstance(server, ValueError):
            failures[name] = str(server)
            continue
        if way == "served":
            yield through_server(name, server.server.grpc_url, photo, tiler, task, stack)
            continue
        parts = server.parts
        if way == "openvino":
            run, step = DirectPipeline(parts, task, precision), os.cpu_count() or 1
        else:
            run, step = by_onnxruntime(parts, task), 1
        yield ready_made(name, tiler, (STRIDE, KEEP), MAX_BATCH, run, step)


def batches_to_measure(contender: Contender, part: float) -> int:
    """Warm the contender up; how many of its batches a measurement takes (see the module's docstring)."""
    contender.warm_up()
    if contender.step == len(contender.sizes):
        return contender.step
    seconds = seconds_of(lambda: contender.run(contender.step))
    whole = seconds * contender.count / sum(contender.sizes[: contender.step])
    if whole <= WHOLE * part:
        return len(contender.sizes)
    return min(len(contender.sizes), max(1, round(part / seconds)) * contender.step)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record; progress on stderr.

    Raises:
        BenchmarkError: the checkpoint does not know the task.
    """
    model, checkpoint = source_of(arguments)
    try:
        task = checkpoint.model.task(arguments.task).name
    except TaskError as error:
        raise BenchmarkError(str(error)) from None
    names = [name for name in NAMES if name in arguments.only]
    failures: dict[str, str] = {}
    chosen: list[tuple[Contender, int]] = []
    with ExitStack() as stack:
        for contender in contenders(checkpoint, task, arguments.side, names, stack, failures):
            print(f"{contender.name}: getting ready", file=sys.stderr)
            try:
                chosen.append((contender, batches_to_measure(contender, arguments.part)))
            except RuntimeError as error:  # torch.compile without a working C++ compiler
                failures[contender.name] = str(error).strip().splitlines()[0]
        times: dict[str, list[float]] = {contender.name: [] for contender, _ in chosen}
        for number in range(arguments.rounds):
            for contender, count in chosen:
                time.sleep(PAUSE)
                seconds = seconds_of(partial(contender.run, count))
                times[contender.name].append(seconds * contender.count / sum(contender.sizes[:count]))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    rows = [
        {
            "name": contender.name,
            "rule": "{}/{}".format(*contender.rule),
            "patches": contender.count,
            "measured": sum(contender.sizes[:count]),
            "seconds": asdict(Spread.of(times[contender.name])),
            "times_first": ratio(times[chosen[0][0].name], times[contender.name]),
        }
        for contender, count in chosen
    ]
    pairs = {p: (f"openvino-{p}", f"served-{p}") for p in SERVED}
    return {
        "model": model,
        "task": arguments.task,
        "side": arguments.side,
        "contenders": rows,
        "failures": failures,
        "served_over_direct": {p: ratio(times[a], times[b]) for p, (a, b) in pairs.items() if {a, b} <= times.keys()},
    }


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """The spread of the rounds' ratios."""
    return asdict(Spread.of([a / b for a, b in zip(slow, fast, strict=True)]))


def markdown(record: Record) -> str:
    """A row for each contender; the ratio of served to direct calls below."""
    figures = record.figures
    rows = [
        [
            row["name"],
            row["rule"],
            f"{row['measured']} of {row['patches']}",
            quartiles(row["seconds"]),
            f"{row['patches'] / row['seconds']['median']:.3g}",
            quartiles(row["times_first"]),
        ]
        for row in figures["contenders"]
    ]
    header = ["", "rule", "measured on patches", "s per photograph", "patches/s", f"times {rows[0][0]}"]
    lines = [
        f"{figures['model']}, {figures['task']}, {figures['side']}x{figures['side']} pixels, medians and quartiles of "
        f"{figures['contenders'][0]['seconds']['runs']} rounds:\n",
        table(header, rows),
    ]
    lines += [f"\nNot measured: {name}: {reason}" for name, reason in figures["failures"].items()]
    if pairs := figures["served_over_direct"]:
        what = ", ".join(f"{precision} {quartiles(spread)}" for precision, spread in pairs.items())
        lines.append(f"\nServed against direct calls of OpenVINO (1: as fast): {what}.")
    return "\n".join(lines)


def draw(record: Record) -> Figure:
    """Bars: how many times as fast as the first contender, on a logarithmic axis."""
    rows = record.figures["contenders"]
    drawn, axes = figure(7.5, 1 + 0.38 * len(rows))
    families = list(dict.fromkeys(_family(row["name"]) for row in rows))
    for i, row in enumerate(rows):
        spread = row["times_first"]
        axes.barh(i, spread["median"], color=f"C{families.index(_family(row['name']))}")
        label = f" {spread['median']:.3g}x, {row['seconds']['median']:.3g} s"
        axes.text(spread["median"], i, label, va="center", fontsize="small")
    axes.set_yticks(range(len(rows)), [f"{row['name']} {row['rule']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    medians = [row["times_first"]["median"] for row in rows]
    axes.set_xlim(min(*medians, 1) * 0.8, max(*medians, 1) * 2.5)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(
        xlabel=f"times as fast as {rows[0]['name']}",
        title=f"{record.figures['model']}, one {record.figures['side']}x{record.figures['side']} photograph",
    )
    return drawn


def _family(name: str) -> str:
    return "pytorch" if name in PYTORCH else name.partition("-")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("baselines", __doc__)
    add_source(parser)
    parser.add_argument("--task", default="denoise_30", help="(default %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of the photograph in pixels (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument(
        "--part", type=float, default=10.0, metavar="SECONDS", help="for one measurement of what is slow (default 10)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME", help=f"some of {', '.join(NAMES)}"
    )
    arguments = parser.parse_args(argv)
    packages = ("torch", "onnxruntime", "openvino", "nvidia-pytriton")
    return run_benchmark("baselines", argv, arguments, measure, markdown, draw, packages)
