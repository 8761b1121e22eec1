"""How long a server takes to become ready, and what memory it then has, by kind of process.

    ipt-benchmark startup --preset ipt-small --precision bf16
    ipt-benchmark startup --checkpoint weights/ipt-tiny --runs 5 --json build/startup.json

Ready means as for `ipt-serve`: every model is loaded and one small image per task was restored. `first` starts of a
repository that was just written and `later` ones of the same take turns. Memory: a page that several processes share
counts in equal parts to each of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ipt_triton.benchmarks.presentation import Figure, error_bars, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_precision, add_source, source_of
from ipt_triton.benchmarks.serving.memory import MIB, process_name, proportional
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.server import TritonServer

KINDS = {"tritonserver": "tritonserver", "restore": "routers", "body": "bodies"}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: seconds to ready, and processes and their memory in MiB by kind, of the last start."""
    model, checkpoint = source_of(arguments)
    seconds: dict[str, list[float]] = {"first": [], "later": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = export_parts([checkpoint], folder / "parts", arguments.precision)
        for run in range(arguments.runs):
            repository = folder / f"models_{run}"
            write_repository(folder / "parts", manifest, repository, ServingOptions())
            for which, times in seconds.items():
                started = time.perf_counter()
                with TritonServer(repository) as server:
                    times.append(time.perf_counter() - started)
                    processes = memory_by_kind(server.pids)
                print(f"{which} start {run + 1}: {times[-1]:.2f} s", file=sys.stderr)
    return {
        "model": model,
        "precision": arguments.precision,
        "tasks": len(checkpoint.model.config.tasks),
        "seconds_to_ready": {which: asdict(Spread.of(times)) for which, times in seconds.items()},
        "processes": processes,
    }


def memory_by_kind(pids: Sequence[int]) -> dict[str, dict[str, int]]:
    """`count` and `memory_mib` of a server's processes: tritonserver, routers, bodies."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for pid in pids:
        kind = KINDS.get(process_name(pid).split("_")[0])
        if kind:
            groups[kind].append(pid)
    return {
        kind: {"count": len(groups[kind]), "memory_mib": round(proportional(groups[kind]) / MIB)}
        for kind in KINDS.values()
    }


def markdown(record: Record) -> str:
    """Seconds to ready, and memory by kind of process."""
    figures = record.figures
    starts = [
        (f"{which} start of a repository", quartiles(spread, ".1f"), spread["runs"])
        for which, spread in figures["seconds_to_ready"].items()
    ]
    processes = [(kind, p["count"], p["memory_mib"]) for kind, p in figures["processes"].items()]
    count, memory = (sum(p[name] for p in figures["processes"].values()) for name in ("count", "memory_mib"))
    return "\n\n".join(
        (
            f"{figures['model']} in {figures['precision']}, {figures['tasks']} tasks.",
            table(("", "seconds to ready", "runs"), starts),
            table(("processes", "count", "memory, MiB"), [*processes, ("all", count, memory)]),
        )
    )


def draw(record: Record) -> Figure:
    """Seconds to ready, and memory by kind of process."""
    figures = record.figures
    drawn, (left, right) = figure(9, 3.2, ncols=2)
    seconds, processes = figures["seconds_to_ready"], figures["processes"]
    medians = [s["median"] for s in seconds.values()]
    left.bar([f"{which} start" for which in seconds], medians, 0.5, yerr=error_bars(seconds.values()), capsize=4)
    left.set(ylabel="seconds to ready", title=f"{figures['model']}, {figures['tasks']} tasks")
    right.bar(
        [f"{kind}\n({p['count']})" for kind, p in processes.items()], [p["memory_mib"] for p in processes.values()]
    )
    right.set(ylabel="memory, MiB", title="Memory when ready, by kind of process")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("startup", __doc__)
    add_source(parser)
    add_precision(parser)
    parser.add_argument("--runs", type=int, default=3, help="of first and later starts (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs {arguments.runs} is not allowed; give 1 or more")
    packages = ("openvino", "nvidia-pytriton", "numpy")
    return run_benchmark("startup", argv, arguments, measure, markdown, draw, packages)
