"""What the gateway costs: photos as files over HTTP against the same pixels as tensors over gRPC.

    ipt-benchmark gateway
    ipt-benchmark gateway --checkpoint weights/ipt-tiny --size 512x512 --concurrency 8 --json build/gateway.json

A JPEG goes to `/v1/restore` of an `ipt-gateway` in front of a server of our own; its pixels go to the same server
through `RestorationClient`. Both in turn, so that a machine that gets slower makes both slower: the overhead is the
median of the pairs' ratios. Then as many are kept under way as --concurrency says, one way and then the other, three
times each. At the end, --requests small photos go through the gateway; its memory is read after a tenth and at the end.

Exit codes: 0 measured; 1 the server or the gateway failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import http.client
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.fronted import Fronted
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import add_precision, photograph, serving
from ipt_triton.benchmarks.serving.memory import MIB, proportional
from ipt_triton.benchmarks.serving.throughput import positive, size
from ipt_triton.train.model.checkpoint import load_checkpoint

TASK, ROUNDS, SMALL = "sr_x2", 3, 48


class Sender:
    """Sends one photo again and again over a connection of each thread's own."""

    def __init__(self, address: str, photo: bytes) -> None:
        self._place, self._photo = address.removeprefix("http://"), photo
        self._own = threading.local()

    def __call__(self) -> None:
        """Raises LoadError: another answer than a photo."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._place, timeout=600)
        connection: http.client.HTTPConnection = self._own.connection
        connection.request("POST", f"/v1/restore?task={TASK}", self._photo, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise LoadError(f"the gateway answered {answer.status}: {body.decode(errors='replace')}")


def jpeg(image: np.ndarray) -> bytes:
    """An image as a file, as cameras write them."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def rate(call: Callable[[], object], concurrency: int, seconds: float) -> float:
    """Calls a second, of so many at the same time: for so many seconds a new one follows each that ends."""
    ended: list[float] = []
    started = time.perf_counter()
    stop = started + seconds

    def work(_: int) -> None:
        while time.perf_counter() < stop:
            call()
            ended.append(time.perf_counter())

    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(work, range(concurrency)))
    return len(ended) / (max(ended) - started)


def memory_of(process: int) -> int:
    """Bytes of a process and all below it."""
    root = psutil.Process(process)
    return proportional([root.pid, *(child.pid for child in root.children(recursive=True))])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    checkpoint = load_checkpoint(arguments.checkpoint)
    photo = jpeg(photograph(*arguments.size))
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    with (
        tempfile.TemporaryDirectory() as folder,
        serving([checkpoint], arguments.precision) as served,
        Fronted(Path(folder), served.server.grpc_url) as gateway,
        RestorationClient(served.server.grpc_url) as client,
    ):
        send = Sender(gateway.address, photo)
        tensors = lambda: client.restore(pixels, TASK)  # noqa: E731
        for warm in (tensors, send):
            warm()
        pairs = []
        for _ in range(arguments.pairs):
            pairs.append((seconds_of(tensors), seconds_of(send)))
            print(f"tensors {pairs[-1][0]:.3f} s, gateway {pairs[-1][1]:.3f} s", file=sys.stderr)
        rates: dict[str, list[float]] = {"tensors": [], "gateway": []}
        for _ in range(ROUNDS):
            for way, call in (("tensors", tensors), ("gateway", send)):
                rates[way].append(rate(call, arguments.concurrency, arguments.seconds))
                print(f"{way}: {rates[way][-1]:.3f} photos/s", file=sys.stderr)
        memory = _memory(gateway, arguments)
    return {
        "model": arguments.checkpoint.name,
        "precision": arguments.precision,
        "size": list(arguments.size),
        "seconds": {
            "tensors": asdict(Spread.of([pair[0] for pair in pairs])),
            "gateway": asdict(Spread.of([pair[1] for pair in pairs])),
            "overhead": asdict(Spread.of([pair[1] / pair[0] - 1 for pair in pairs])),
        },
        "concurrency": arguments.concurrency,
        "photos_per_s": {way: asdict(Spread.of(values)) for way, values in rates.items()},
        "memory": memory,
    }


def _memory(gateway: Fronted, arguments: argparse.Namespace) -> dict[str, Any]:
    """MiB of the gateway's processes after a tenth of the requests, and after all."""
    send, seen = Sender(gateway.address, jpeg(photograph(SMALL, SMALL))), []
    with ThreadPoolExecutor(arguments.concurrency) as pool:
        for part in (arguments.requests // 10, arguments.requests - arguments.requests // 10):
            for answer in [pool.submit(send) for _ in range(part)]:
                answer.result()
            seen.append(memory_of(gateway.process.pid) / MIB)
    return {"requests": arguments.requests, "first_tenth_mib": seen[0], "end_mib": seen[1]}


def markdown(record: Record) -> str:
    """A table of both ways, and what they come to."""
    figures = record.figures
    seconds, rates, memory = figures["seconds"], figures["photos_per_s"], figures["memory"]
    rows = [(way, quartiles(seconds[way], ".3f"), quartiles(rates[way], ".2f")) for way in ("tensors", "gateway")]
    under_way = f"photos/s, {figures['concurrency']} under way"
    share = rates["gateway"]["median"] / rates["tensors"]["median"]
    return (
        f"**{figures['model']}, {figures['precision']}, a JPEG of {'x'.join(map(str, figures['size']))}, {TASK}**\n\n"
        + table(("way", "seconds, one alone", under_way), rows)
        + f"\n\nThe gateway takes {quartiles(seconds['overhead'], '.1f', 100)} % longer, and answers "
        f"{100 * share:.1f} % of the photos. Its processes take {memory['first_tenth_mib']:.0f} MiB after a tenth of "
        f"{memory['requests']} requests and {memory['end_mib']:.0f} MiB at the end."
    )


def draw(record: Record) -> Figure:
    """Seconds and rates of both ways."""
    drawn, axes = figure(7, 3.2, ncols=2)
    figures = record.figures
    for ax, values, title in zip(
        axes, (figures["seconds"], figures["photos_per_s"]), ("seconds", "photos/s"), strict=True
    ):
        ax.bar(["tensors", "gateway"], [values[way]["median"] for way in ("tensors", "gateway")], 0.6)
        ax.set_ylabel(title)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("gateway", __doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/ipt-tiny"), help="(default %(default)s)")
    add_precision(parser)
    parser.add_argument("--size", type=size, default=(512, 512), metavar="WxH", help="of the photo (default 512x512)")
    parser.add_argument("--pairs", type=positive(int), default=20, help="one alone, each way (default %(default)s)")
    parser.add_argument("--concurrency", type=positive(int), default=8, help="under way (default %(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=30.0, help="of a window (default %(default)s)")
    parser.add_argument("--requests", type=positive(int), default=5000, help="for the memory (default %(default)s)")
    arguments = parser.parse_args(argv)
    packages = ("numpy", "nvidia-pytriton", "tritonclient", "fastapi", "uvicorn")
    return run_benchmark("gateway", argv, arguments, measure, markdown, draw, packages)


if __name__ == "__main__":
    sys.exit(main())
