"""What every benchmark shares: its command, the machine it ran on, spreads of measurements, and its record.

A benchmark is a module with `main`, which measures and makes a `Record`, and with two functions of a record alone,
`markdown` (tables) and `draw` (a plot), so that `benchmarks.report` shows a committed record just as the command did.

Python 3.9 syntax and, until a plot is drawn, the standard library alone: `benchmarks.compute.engines` runs on GPU
machines too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.benchmarks.presentation import Figure, save_plot
from ipt_triton.cli import make_parser, run_command
from ipt_triton.cpu import cpu_facts, cpu_flags
from ipt_triton.files import atomic_file
from ipt_triton.reading import build, read_json

ROOT = Path(__file__).resolve().parent.parent
QUIET_CORES = 0.1
"""Other work up to this many cores leaves a measurement quiet."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of `runs` measurements, in their unit."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
        return cls(median, low, high, len(values))


@dataclass(frozen=True)
class Record:
    """A benchmark's result as it is written: everything needed to read it and to run it again.

    Attributes:
        benchmark: the module's name, as in `ipt-benchmark <name>`.
        command: what makes the record, without the interpreter's path.
        machine: processor, cores, versions, and cores busy with other work just before and after.
        figures: what was measured; JSON values only.
    """

    benchmark: str
    command: list[str]
    machine: dict[str, Any]
    figures: dict[str, Any]

    def save(self, path: Path) -> None:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Raises: ReportError if the file is not a record."""
        try:
            return build(cls, read_json(path))
        except ValueError as error:
            raise ReportError(f"{path} is not a record of a benchmark: {error}") from None

    @property
    def footnote(self) -> str:
        """Machine, load, versions, and the command that measures again, as it is called today."""
        facts = dict(self.machine)
        before, after = facts.pop("busy_cores_before"), facts.pop("busy_cores_after")
        quiet = max(before, after) <= QUIET_CORES
        load = "no other work on the machine" if quiet else f"busy machine: other work on {before} to {after} cores"
        versions = ", ".join(f"{k} {v}" for k, v in facts.pop("versions").items())
        commit = facts.pop("commit")
        rest = ", ".join(f"{v} {k}" if k == "cores" else f"{v}" for k, v in facts.items())
        command = " ".join(self.command).replace("python -m benchmarks.", "ipt-benchmark ")
        return f"{rest}; {load}; {versions}; commit {commit}.\n\n    {command}"


@dataclass
class Session:
    """A benchmark under way: `start` looks at the machine, `record` closes it.

    The load is looked at while nothing of ours runs yet or any more, so start it before the server is started and close
    it after the server has stopped.
    """

    benchmark: str
    argv: list[str]
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, benchmark: str, argv: Sequence[str] | None, packages: Iterable[str] = (), **facts: object
    ) -> Session:
        """
        Args:
            argv: the arguments given to `main`; None: those of the process.
            packages: distributions whose versions matter.
            facts: what else the figures depend on, such as the GPU.
        """
        versions = {"Python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
        machine = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), **facts}
        busy = busy_cores()
        if busy > QUIET_CORES:
            print(f"warning: other work keeps {busy} cores busy; figures will suffer", file=sys.stderr)
        machine.update(versions=versions, commit=commit(), busy_cores_before=busy)
        return cls(benchmark, list(sys.argv[1:] if argv is None else argv), machine)

    def record(self, figures: dict[str, Any]) -> Record:
        command = ["ipt-benchmark", self.benchmark, *self.argv]
        return Record(self.benchmark, command, {**self.machine, "busy_cores_after": busy_cores()}, figures)


def command_line(benchmark: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring, with `--json` and `--plot`."""
    parser = make_parser(f"ipt-benchmark {benchmark}", doc or "")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record: machine, command, figures")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot as PNG (needs matplotlib)")
    return parser


def run_benchmark(
    benchmark: str,
    argv: Sequence[str] | None,
    arguments: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    markdown: Callable[[Record], str],
    draw: Callable[[Record], Figure],
    packages: Iterable[str] = (),
) -> int:
    """Measure, print the tables, and write what `--json` and `--plot` ask for; returns the command's exit status.

    Args:
        arguments: of `command_line`'s parser; `measure` makes the record's figures of them.
        packages: as for `Session.start`.
    """

    def work() -> None:
        session = Session.start(benchmark, argv, packages)
        publish(session.record(measure(arguments)), arguments, markdown, draw)

    return run_command(work)


def publish(
    record: Record, arguments: argparse.Namespace, markdown: Callable[[Record], str], draw: Callable[[Record], Figure]
) -> None:
    """Print the tables; write what `--json` and `--plot` ask for."""
    print(markdown(record))
    print(f"\n{record.footnote}")
    if arguments.json:
        record.save(arguments.json)
    if arguments.plot:
        save_plot(draw(record), arguments.plot)


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def processor() -> str:
    """The processor's name and the matrix instructions that matter here."""
    facts, flags = cpu_facts(), cpu_flags()
    if not facts:
        return platform.processor() or platform.machine()
    able = [f for f in ("avx512_bf16", "avx512_vnni", "amx_bf16") if f in flags]
    return " ".join([facts.get("model name", platform.machine()), *able])


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that work at the moment, this process aside (it sleeps meanwhile)."""

    def times() -> tuple[int, int]:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
        values = [int(f) for f in fields]
        return sum(values), values[3] + values[4]

    total, idle = times()
    time.sleep(seconds)
    total_now, idle_now = times()
    return round((1 - (idle_now - idle) / max(1, total_now - total)) * (os.cpu_count() or 1), 2)


def commit() -> str:
    """The checked-out commit, with `+changes` when files of the project differ from it; `unknown` without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+changes" if changed.returncode else "")
