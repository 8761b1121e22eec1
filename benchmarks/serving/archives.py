"""What Ray costs: `ipt-batch` on a folder of photos against a plain loop over the same code in as many processes.

    ipt-benchmark archives
    ipt-benchmark archives --photos 800 --rounds 5 --precision bf16 --json build/archives.json

Both restore the same photos through the same server into a new folder, in turns. Each result tells when it was
written. The rate is that of the results after the first tenth, so the time in which processes start is not in it; it
stands beside it. The plain loop reads, restores and writes as `ipt-batch` does, and keeps no manifest. The server
answers with the model, or, with --null, with pixels that are only repeated: then next to nothing hides what Ray costs.

Exit codes: 0 measured; 1 a way failed, or left photos out; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_precision, of_one_task, photograph, serving
from ipt_triton.benchmarks.serving.router import null_server
from ipt_triton.benchmarks.serving.throughput import positive, size
from ipt_triton.client.batch import Plan
from ipt_triton.client.bulk.command import check_arguments, make_arguments
from ipt_triton.client.bulk.places import Place
from ipt_triton.client.bulk.plan import photos
from ipt_triton.client.bulk.worker import Attempts, Worker
from ipt_triton.tasks import OFFICIAL_TASKS, Chain
from ipt_triton.train.model.checkpoint import load_checkpoint

TASK = OFFICIAL_TASKS[3]
TOGETHER = 8
"""Photos that a process of the plain loop is given at once, as `ipt-batch` does it."""
_PROGRAM = "import sys, ipt_triton.commands as c; sys.exit(c.batch())"

_worker: Worker


@contextmanager
def server(arguments: argparse.Namespace) -> Iterator[str]:
    """HOST:PORT of the server that is asked for."""
    if arguments.null:
        with null_server([TASK], 8) as null:
            yield null.grpc_url
    else:
        checkpoint = of_one_task(load_checkpoint(arguments.checkpoint), TASK.name)
        with serving([checkpoint], arguments.precision) as served:
            yield served.server.grpc_url


def write_archive(folder: Path, count: int, width: int, height: int) -> None:
    """So many photos of one size, each of them another part of one photograph, as PNG."""
    folder.mkdir()
    whole = photograph(2 * width, 2 * height)
    for number in range(count):
        top, left = (number * step % (limit + 1) for step, limit in ((7, height), (11, width)))
        Image.fromarray(whole[top : top + height, left : left + width]).save(folder / f"{number:06}.png")


def with_ray(words: Sequence[str]) -> None:
    """Run `ipt-batch`. Raises BenchmarkError where it fails."""
    ended = subprocess.run([sys.executable, "-c", _PROGRAM, *words], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise BenchmarkError(f"ipt-batch ended with status {ended.returncode}: {ended.stderr[-2000:]}")


def plainly(words: Sequence[str]) -> None:
    """The same without Ray and without a manifest. Raises BenchmarkError where a photo is not restored."""
    parser = make_arguments()
    args = parser.parse_args(words)
    check_arguments(parser, args)
    source, target = Place(args.source), Place(args.target)
    with RestorationClient(args.url) as client:
        chain = client.info().chain(args.task)
    rows = [asdict(photo) for photo in photos(source, target, "", Plan((), Path()))]
    made = (args.source, args.target, {"url": args.url}, chain, args)
    with multiprocessing.get_context("spawn").Pool(args.workers, _begin, made) as pool:
        numbered = [{"number": number, **row} for number, row in enumerate(rows)]
        for outcome in pool.imap_unordered(_restore, numbered, chunksize=TOGETHER):
            if outcome["status"] != "restored":
                raise BenchmarkError(f"the plain loop failed: {outcome['error']}")


def _begin(source: str, target: str, server: dict[str, Any], chain: Chain, args: argparse.Namespace) -> None:
    global _worker
    _worker = Worker(source, target, server, chain, "", args, Attempts())  # without metadata there is no history


def _restore(photo: dict[str, Any]) -> dict[str, Any]:
    return _worker.restore(photo)


WAYS = {"plain loop": plainly, "ipt-batch": with_ray}


def measure_once(
    name: str, archive: Path, target: Path, url: str, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Photos a second after the first tenth, and the seconds until the first one."""
    # Without metadata, as results with them have the times of their photos.
    words = [archive, target, "-t", TASK.name, "--url", url, "--workers", arguments.workers, "--strip-metadata"]
    started = time.time()
    WAYS[name](list(map(str, words)))
    written = sorted(path.stat().st_mtime for path in target.glob("*.png"))
    if len(written) != arguments.photos:
        raise BenchmarkError(f"{name} wrote {len(written)} of {arguments.photos} photos")
    first = len(written) // 10
    return (len(written) - 1 - first) / (written[-1] - written[first]), written[0] - started


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    starts: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as name, server(arguments) as url:
        write_archive(Path(name) / "archive", arguments.photos, *arguments.size)
        for number in range(arguments.rounds):
            for way in sorted(WAYS, reverse=number % 2 == 0):  # each is first in its turn
                rate, start = measure_once(way, Path(name) / "archive", Path(name) / f"{way}-{number}", url, arguments)
                rates[way].append(rate)
                starts[way].append(start)
                print(f"{way}: {rate:.3f} photos/s, the first after {start:.1f} s", file=sys.stderr)
    overhead = [1 - ray / plain for ray, plain in zip(rates["ipt-batch"], rates["plain loop"], strict=True)]
    return {
        "model": "none" if arguments.null else arguments.checkpoint.name,
        "precision": arguments.precision,
        "task": TASK.name,
        "photos": arguments.photos,
        "size": list(arguments.size),
        "workers": arguments.workers,
        "photos_per_s": {way: asdict(Spread.of(values)) for way, values in rates.items()},
        "seconds_to_first": {way: asdict(Spread.of(values)) for way, values in starts.items()},
        "overhead": asdict(Spread.of(overhead)),
    }


def markdown(record: Record) -> str:
    """A table of both ways, and what they come to."""
    figures = record.figures
    rates, starts = figures["photos_per_s"], figures["seconds_to_first"]
    rows = [(way, quartiles(rates[way], ".2f"), quartiles(starts[way], ".1f")) for way in WAYS]
    network = "no network" if figures["model"] == "none" else f"{figures['model']}, {figures['precision']}"
    size_of = "x".join(map(str, figures["size"]))
    return (
        f"**{network}, {figures['task']}, {figures['photos']} photos of {size_of}, {figures['workers']} processes**\n\n"
        + table(("way", "photos/s", "seconds until the first"), rows)
        + f"\n\nipt-batch restores {quartiles(figures['overhead'], '.1f', 100)} % fewer photos a second."
    )


def draw(record: Record) -> Figure:
    """Rates of both ways."""
    drawn, ax = figure(5, 3)
    rates = record.figures["photos_per_s"]
    ax.bar(list(WAYS), [rates[way]["median"] for way in WAYS], 0.6)
    ax.set_ylabel("photos/s")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("archives", __doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/ipt-tiny"), help="(default %(default)s)")
    parser.add_argument("--null", action="store_true", help="no network: pixels are only repeated")
    add_precision(parser)
    parser.add_argument("--photos", type=positive(int), default=400, metavar="N", help="(default %(default)s)")
    parser.add_argument("--size", type=size, default=(128, 128), metavar="WxH", help="of a photo (default 128x128)")
    parser.add_argument("--workers", type=positive(int), default=2, metavar="N", help="processes (default %(default)s)")
    parser.add_argument("--rounds", type=positive(int), default=5, help="(default %(default)s)")
    arguments = parser.parse_args(argv)
    packages = ("ray", "pyarrow", "nvidia-pytriton", "tritonclient")
    return run_benchmark("archives", argv, arguments, measure, markdown, draw, packages)


if __name__ == "__main__":
    sys.exit(main())
