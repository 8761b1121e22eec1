"""The page of results: every record in benchmarks/results as its tables, its plot, its machine and its command.

    ipt-benchmark report
    ipt-benchmark report --check

Writes README.md and a PNG beside each record. --check writes nothing and looks whether README.md is what the records
give and every plot is there.

Exit codes: 0 written, or in step; 1 not in step, or a file that is not a record of a benchmark; 2 wrong arguments.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipt_triton.benchmarks import BENCHMARKS
from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.benchmarks.presentation import save_plot
from ipt_triton.benchmarks.record import ROOT, Record
from ipt_triton.cli import make_parser, run_command
from ipt_triton.files import atomic_file

RESULTS = ROOT / "benchmarks" / "results"
PAGE = "README.md"
HEADINGS = {
    "throughput": "Throughput and latency of each task",
    "baselines": "Served against other ways to run the same weights",
    "engines": "Parts against the machine's limit",
    "quality": "Quality against speed",
    "noise": "What denoising does at every strength",
    "scaling": "How cost grows",
    "startup": "Start of the server",
    "large_image": "A large photograph",
    "overload": "Overload",
    "gateway": "The gateway",
    "proxies": "Proxies",
    "archives": "Archives",
    "capacity": "Capacity, simulated",
    "soak": "Soak",
    "joiner": "Cutting and joining",
    "router": "Around the network",
    "client": "The command",
    "training": "Training",
    "training_memory": "Memory of training",
}
"""Section of each benchmark, in the order of the page."""
_MALFORMED = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError)


def load_records(folder: Path) -> dict[Path, Record]:
    """Every record of a folder, in the order of the page; a JSON file with a page of its own is left out.

    Raises:
        ReportError: a JSON file that is not a record, or one of an unknown benchmark.
    """
    records = {}
    for path in sorted(folder.glob("*.json")):
        if path.with_suffix(".md") in own_pages(folder):
            continue
        record = Record.load(path)
        if record.benchmark not in HEADINGS:
            known = ", ".join(HEADINGS)
            raise ReportError(f"{path}: there is no benchmark {record.benchmark!r}; there are {known}")
        records[path] = record
    order = list(HEADINGS)
    return dict(sorted(records.items(), key=lambda item: order.index(item[1].benchmark)))


def own_pages(folder: Path) -> list[Path]:
    """Pages that a benchmark wrote itself, as `benchmarks.ablations.run` does."""
    return sorted(path for path in folder.glob("*.md") if path.name != PAGE)


def shown(path: Path, record: Record, what: str) -> Any:
    """The `footnote` of a record, or what its benchmark's `markdown` or `draw` makes of it.

    Raises:
        ReportError: the record's figures or machine are not those that the benchmark writes.
    """
    try:
        if what == "footnote":
            return record.footnote
        module = importlib.import_module(f"ipt_triton.benchmarks.{BENCHMARKS[record.benchmark]}")
        return getattr(module, what)(record)
    except _MALFORMED as error:
        raise ReportError(
            f"{path} is not what ipt-benchmark {record.benchmark} writes ({error!r}); measure it again"
        ) from error


def page(records: dict[Path, Record], others: Sequence[Path]) -> str:
    """The page in Markdown, with links to other pages at its end.

    Raises:
        ReportError: a record's figures are not those that its benchmark shows.
    """
    parts = [
        "# Results",
        "Written by `ipt-benchmark report` from the records in this folder. Figures are medians, with quartiles "
        "in brackets, unless said otherwise. Below each plot: the machine, other load on it just before and after, "
        "versions, and the command that measures again.",
    ]
    section = ""
    for path, record in records.items():
        tables, footnote = (shown(path, record, what) for what in ("markdown", "footnote"))
        if record.benchmark != section:
            section = record.benchmark
            parts.append(f"## {HEADINGS[section]}")
        parts += [f"### {path.stem}", tables, f"![{HEADINGS[section]}: {path.stem}]({path.stem}.png)", footnote]
    if others:
        parts += ["## More", "\n".join(f"- [{path.stem}]({path.name})" for path in others)]
    return "\n\n".join(parts) + "\n"


def write(folder: Path) -> None:
    """Write the page, and a plot for each record.

    Raises:
        ReportError: as `load_records` and `page`; the page is not written then.
    """
    records = load_records(folder)
    text = page(records, own_pages(folder))
    for path, record in records.items():
        save_plot(shown(path, record, "draw"), path.with_suffix(".png"))
    with atomic_file(folder / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def out_of_step(folder: Path) -> list[str]:
    """What of a folder is not what its records give, a sentence each.

    Raises:
        ReportError: as `load_records` and `page`.
    """
    records = load_records(folder)
    written = folder / PAGE
    problems = [f"{plot} is missing" for plot in (p.with_suffix(".png") for p in records) if not plot.exists()]
    if not written.exists() or written.read_text(encoding="utf-8") != page(records, own_pages(folder)):
        problems.append(f"{written} is not what the records give")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = make_parser("ipt-benchmark report", __doc__ or "")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(default benchmarks/results)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not in step")
    arguments = parser.parse_args(argv)
    if not arguments.results.is_dir():
        parser.error(f"there is no folder {arguments.results}")

    def work() -> int:
        if not arguments.check:
            write(arguments.results)
            return 0
        problems = out_of_step(arguments.results)
        for problem in problems:
            print(f"{problem}: run ipt-benchmark report", file=sys.stderr)
        return 1 if problems else 0

    return run_command(work)
