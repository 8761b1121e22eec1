"""Throughput and latency of each task through a running server, by the number of requests under way.

    ipt-benchmark throughput --url localhost:8001 --tasks sr_x2,denoise_30 --concurrency 1,4
    ipt-benchmark throughput --checkpoint weights/ipt-tiny --precision bf16 --size 256x256 --seconds 1
    ipt-benchmark throughput --checkpoint weights/ipt-tiny --mixed --levels patches --concurrency 8

Two levels: `restore`, whole photographs through the router, and `patches`, requests of `--patches` patches to the
ensembles `ipt_<task>`. A closed loop keeps as many requests under way as `--concurrency` says. After a warm-up, three
windows follow one another; each lasts at least `--seconds`, and until a whole round of requests has been answered.
Rates are medians of the windows with their quartiles; latencies are of all requests in them, and the tables leave out a
percentile that so few requests cannot tell from the largest.

With --url the server is there already, and what the record says of the machine is about the client's; CPU time by
process is unknown then. Otherwise a server is started from --checkpoint or --preset, on the same cores as the load.

--mixed: all tasks at once against one task at a time, and, without --url, against a second server on which every task
has a body of its own (the same weights, but for a difference that keeps export from sharing them).

Exit codes: 0 measured; 1 the server failed under load, or could not be started; 2 wrong arguments, or no server.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import ArgumentError
from ipt_triton.benchmarks.presentation import Figure, figure
from ipt_triton.benchmarks.record import Record, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_source, photograph, serving, source_of
from ipt_triton.benchmarks.serving import shared_body, single_tasks
from ipt_triton.benchmarks.serving.load import Request, patch_request, restore_request
from ipt_triton.benchmarks.serving.server_statistics import ObservedServer
from ipt_triton.client.errors import InvalidRequest, ServerUnavailable
from ipt_triton.client.protocol import ServerInfo
from ipt_triton.manifest import PRECISIONS
from ipt_triton.train.model.checkpoint import Checkpoint, CheckpointError

LEVELS = ("restore", "patches")


def requests_of(info: ServerInfo, arguments: argparse.Namespace) -> dict[str, list[Request]]:
    """The requests by level, one for each task.

    Raises:
        InvalidRequest: an unknown task, or one named twice.
    """
    keys = [task.name for task in info.tasks] if arguments.tasks == ["all"] else arguments.tasks
    tasks = [info.task(key) for key in keys]
    if len(set(tasks)) < len(tasks):
        raise InvalidRequest(f"--tasks {','.join(keys)} names a task twice; name each once")
    image = photograph(*arguments.size)
    levels = {
        "restore": lambda: [restore_request(info, task, image) for task in tasks],
        "patches": lambda: [patch_request(info, task, image, arguments.patches) for task in tasks],
    }
    return {level: levels[level]() for level in arguments.levels}


@contextmanager
def observed(checkpoints: Sequence[Checkpoint], precision: str) -> Iterator[ObservedServer]:
    """A server of our own for checkpoints."""
    tasks = [task.name for checkpoint in checkpoints for task in checkpoint.model.config.tasks]
    with (
        serving(checkpoints, precision) as served,
        ObservedServer(served.server.grpc_url, tasks, served.server.pids) as server,
    ):
        yield server


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the servers that are needed and measure all that the command asks for; the record's figures.

    Raises:
        ArgumentError: no server, an argument that it refuses, or no checkpoint.
        IptError: no server of our own came up, or a failure under load.
    """
    try:
        return _measure(arguments)
    except (InvalidRequest, ServerUnavailable, CheckpointError) as error:
        raise ArgumentError(str(error)) from None


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        separate = None
        if arguments.url is None:
            name, checkpoint = source_of(arguments)
            server = stack.enter_context(observed([checkpoint], arguments.precision))
            info = described(server.url)
            if arguments.mixed:
                bodies = shared_body.one_body_each(checkpoint)
                separate = stack.enter_context(observed(bodies, arguments.precision))
        else:
            info = described(arguments.url)
            name = f"checkpoint {info.checkpoint_sha256[:8]}"
            server = stack.enter_context(ObservedServer(arguments.url, [task.name for task in info.tasks]))
        measured: dict[str, list[dict[str, Any]]] = {}
        for level, requests in requests_of(info, arguments).items():
            measured[level] = []
            for concurrency in arguments.concurrency:
                print(f"{level}, {concurrency} under way ...", file=sys.stderr)
                load = (concurrency, arguments.seconds)
                if arguments.mixed:
                    measured[level].append(shared_body.measure(server, separate, requests, *load))
                else:
                    measured[level] += [single_tasks.measure(server, request, *load) for request in requests]
    return {
        "model": name,
        "runtime": info.runtime,
        "precision": info.precision,
        "size": list(arguments.size),
        "patches": arguments.patches,
        "seconds": arguments.seconds,
        "mixed" if arguments.mixed else "levels": measured,
    }


def described(url: str) -> ServerInfo:
    """What a server says about itself.

    Raises:
        ServerUnavailable, ServerError: see `client.errors`.
    """
    with RestorationClient(url, retries=0) as client:
        return client.info()


def markdown(record: Record) -> str:
    """The record's tables."""
    figures = record.figures
    if "mixed" in figures:
        return f"{_subject(figures)}\n\n{shared_body.markdown(figures['mixed'])}"
    parts = [
        f"**{title(figures, level)}**\n\n{single_tasks.markdown(cells, level == 'restore')}"
        for level, cells in figures["levels"].items()
    ]
    return "\n\n".join([_subject(figures), *parts])


def draw(record: Record) -> Figure:
    """A row of plots for each level; see `single_tasks.draw` and `shared_body.draw`."""
    figures = record.figures
    if "mixed" in figures:
        return shared_body.draw(figures["mixed"])
    rows = figures["levels"]
    drawn, axes = figure(15, 4.3 * len(rows), nrows=len(rows), ncols=3, squeeze=False)
    for (level, cells), row in zip(rows.items(), axes, strict=True):
        single_tasks.draw(row, cells, title(figures, level))
    return drawn


def _subject(figures: dict[str, Any]) -> str:
    loads = "; ".join(title(figures, level) for level in figures.get("levels") or figures["mixed"])
    return f"`{figures['model']}`, {figures['runtime']} {figures['precision']}. {loads}."


def title(figures: dict[str, Any], level: str) -> str:
    """What a request of a level is."""
    width, height = figures["size"]
    if level == "restore":
        return f"Photographs of {width}x{height} to `restore`"
    return f"{figures['patches']} patches a request to `ipt_<task>`"


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT in pixels."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give WIDTHxHEIGHT in pixels, such as 512x512")
    return int(width), int(height)


def counts(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas; sorted, each once."""
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1; give for example 1,2,4,8")
    return sorted({int(word) for word in words})


def levels(text: str) -> list[str]:
    """Names of levels, separated by commas."""
    words = list(dict.fromkeys(text.split(",")))
    if not set(words) <= set(LEVELS):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give one or both of {','.join(LEVELS)}")
    return words


def positive(kind: type[int] | type[float]) -> Any:
    """A parser of numbers above 0."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a number above 0")
        return value

    return parse


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("throughput", __doc__)
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC port of a running server")
    add_source(parser, required=False)
    parser.add_argument(
        "--precision", choices=PRECISIONS["openvino"], default="fp32", help="of our own server (%(default)s)"
    )
    parser.add_argument("--tasks", type=lambda text: text.split(","), default="all", help="names or ids (%(default)s)")
    parser.add_argument("--concurrency", type=counts, default="1,2,4,8", help="requests under way (%(default)s)")
    parser.add_argument("--size", type=size, default="512x512", help="of a photograph (%(default)s)")
    parser.add_argument("--patches", type=positive(int), default=8, help="in a request to an ensemble (%(default)s)")
    parser.add_argument("--levels", type=levels, default=",".join(LEVELS), help="what to measure (%(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=3.0, help="of a window, at least (%(default)s)")
    parser.add_argument("--mixed", action="store_true", help="all tasks at once instead of each by itself")
    arguments = parser.parse_args(argv)
    own = arguments.checkpoint is not None or arguments.preset is not None
    if own == (arguments.url is not None):
        parser.error("give a server: either --url, or --checkpoint or --preset")
    packages = ("tritonclient", *(("nvidia-pytriton", "openvino") if own else ()))
    return run_benchmark("throughput", argv, arguments, measure, markdown, draw, packages)
