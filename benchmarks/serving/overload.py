"""Goodput of a server that is asked for more than it can do: photographs that clients got before they gave up.

    ipt-benchmark overload --repository triton_models
    ipt-benchmark overload --repository triton_models --size 256x256 --factors 1,8 --seconds 600 --json build/o.json

Each client asks for one photograph after the other. It gives up a photograph after `--patience` seconds, which cancels
the request, and sends a refused one again as `ipt-restore` does, after the pause that the server asks for. `--clients`
of them keep the server just busy; `--factors` says how many times as many there are. Tasks come in turns.

Exit codes: 0 measured; 1 the server failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.presentation import Figure, figure, table
from ipt_triton.benchmarks.record import Record, command_line, run_benchmark
from ipt_triton.benchmarks.served import photograph
from ipt_triton.benchmarks.serving.load import INFER, Request, as_triton, restore_request
from ipt_triton.benchmarks.serving.memory import MIB, proportional
from ipt_triton.benchmarks.serving.replica import Replica
from ipt_triton.benchmarks.serving.throughput import counts, positive, size
from ipt_triton.client.failures import pause, retry_delays
from ipt_triton.client.protocol import parameters
from ipt_triton.client.transport import CHANNEL_ARGS

_RETRIES = 6  # what `ipt-restore` does unless told otherwise


def _within(seconds: float) -> bytes:
    """What makes a serialised request one that says how long its client waits."""
    values = {name: {"int64_param": value} for name, value in (parameters(seconds) or {}).items()}
    return bytes(service_pb2.ModelInferRequest(parameters=values).SerializeToString())


class Crowd:
    """Clients that ask a server without rest, each with a connection of its own, until `over` is set."""

    def __init__(self, url: str, requests: Sequence[Request], patience: float) -> None:
        self.over = threading.Event()
        self.in_time: list[float] = []
        """Seconds that each photograph took that came in time."""
        self.late = 0
        """Photographs that were given up."""
        self.refusals: list[float] = []
        """Seconds until each refusal."""
        self._url, self._patience = url, patience
        self._turns = itertools.cycle(request.message for request in requests)

    def client(self) -> None:
        """Ask until it is over."""
        options = [*CHANNEL_ARGS, ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._url, options=options) as channel:
            infer = channel.unary_unary(INFER)
            while not self.over.is_set():
                started = time.perf_counter()
                if self._ask(infer, next(self._turns), started + self._patience):
                    self.in_time.append(time.perf_counter() - started)
                else:
                    self.late += 1

    def _ask(self, infer: grpc.UnaryUnaryMultiCallable, message: bytes, until: float) -> bool:
        """Whether the photograph came in time."""
        delays = retry_delays(_RETRIES)
        while (left := until - time.perf_counter()) > 0:
            sent = time.perf_counter()
            try:
                infer(message + _within(left), timeout=left)
                return True
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    return False
                self.refusals.append(time.perf_counter() - sent)
                delay = pause(delays, as_triton(error))
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise LoadError(f"under overload: {error.code()}: {error.details()}") from None
            if delay is None:
                delays = retry_delays(_RETRIES)
                continue
            self.over.wait(min(delay, max(0.0, until - time.perf_counter())))
        return False


def measure_crowd(
    replica: Replica, requests: Sequence[Request], clients: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One cell of the record."""
    crowd, pids = Crowd(replica.url, requests, arguments.patience), replica.pids()
    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(crowd.client) for _ in range(clients)]
        try:
            time.sleep(arguments.patience)  # until the crowd is what it will be
            first = (len(crowd.in_time), crowd.late, len(crowd.refusals))
            started, memory = time.perf_counter(), [proportional(pids) / MIB]
            for _ in range(4):
                time.sleep(arguments.seconds / 4)
                memory.append(proportional(pids) / MIB)
            seconds = time.perf_counter() - started
            last = (len(crowd.in_time), crowd.late, len(crowd.refusals))
        finally:
            crowd.over.set()
        for client in asking:
            client.result()
    in_time, late, refused = (after - before for after, before in zip(last, first, strict=True))
    return {
        "clients": clients,
        "goodput": round(in_time / seconds, 3),
        "in_time": in_time,
        "given_up": late,
        "refusals": refused,
        "latency_s": _percentiles(crowd.in_time[first[0] : last[0]]),
        "refusal_s": _percentiles(crowd.refusals[first[2] : last[2]]),
        "memory_mib": [round(level) for level in memory],
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 95)} if values else {}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    with tempfile.TemporaryDirectory() as folder:
        replica = Replica(arguments.repository, Path(folder, "server"))
        try:
            replica.await_ready()
            with RestorationClient(replica.url) as client:
                info = client.info()
            requests = [restore_request(info, task, photograph(*arguments.size)) for task in info.tasks]
            cells = []
            for factor in arguments.factors:
                print(f"{factor} times {arguments.clients} clients ...", file=sys.stderr)
                cells.append(measure_crowd(replica, requests, factor * arguments.clients, arguments))
        finally:
            replica.end()
    facts = {key: getattr(arguments, key) for key in ("patience", "seconds")}
    model = {"checkpoint": info.checkpoint_sha256[:8], "runtime": info.runtime, "precision": info.precision}
    return {**model, **facts, "size": list(arguments.size), "crowds": cells}


def markdown(record: Record) -> str:
    """A row for each crowd."""
    figures = record.figures
    best = max(cell["goodput"] for cell in figures["crowds"])
    rows = [
        (
            cell["clients"],
            f"{cell['goodput']:.1f}",
            f"{cell['goodput'] / best:.2f}",
            cell["given_up"],
            cell["refusals"],
            f"{cell['latency_s'].get('p50', 0):.2f}",
            f"{cell['latency_s'].get('p95', 0):.2f}",
            f"{1e3 * cell['refusal_s'].get('p50', 0):.0f}",
            f"{1e3 * cell['refusal_s'].get('p95', 0):.0f}",
            f"{cell['memory_mib'][0]} to {max(cell['memory_mib'])}",
        )
        for cell in figures["crowds"]
    ]
    width, height = figures["size"]
    head = ("clients", "in time/s", "of the best", "given up", "refusals", "p50, s", "p95, s", "refused after p50, ms")
    return (
        f"Checkpoint `{figures['checkpoint']}` ({figures['runtime']} {figures['precision']}), photographs of "
        f"{width}x{height}, all tasks; clients give a photograph up after {figures['patience']:g} s; "
        f"{figures['seconds']:g} s for each row.\n\n" + table((*head, "p95, ms", "memory, MiB"), rows)
    )


def draw(record: Record) -> Figure:
    """Goodput by clients."""
    drawn, ax = figure(5, 3.6)
    cells = record.figures["crowds"]
    clients, goodput = ([cell[name] for cell in cells] for name in ("clients", "goodput"))
    ax.plot(clients, goodput, "o-")
    ax.set_xscale("log", base=2)
    ax.set_xticks(clients, [str(count) for count in clients])
    ax.set(xlabel="clients", ylabel="photographs in time, per s", title="Goodput under overload")
    ax.set_ylim(0, 1.15 * max(goodput))
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("overload", __doc__)
    parser.add_argument(
        "--repository", type=Path, default=Path("triton_models"), metavar="DIR", help="model repository (%(default)s)"
    )
    parser.add_argument("--size", type=size, default="128x128", help="of a photograph (%(default)s)")
    parser.add_argument("--clients", type=positive(int), default=8, help="that keep the server busy (%(default)s)")
    parser.add_argument("--factors", type=counts, default="1,2,4,8", help="times as many clients (%(default)s)")
    parser.add_argument("--patience", type=positive(float), default=5.0, help="seconds of a client (%(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=20.0, help="of each crowd (%(default)s)")
    packages = ("openvino", "nvidia-pytriton", "tritonclient")
    return run_benchmark("overload", argv, parser.parse_args(argv), measure, markdown, draw, packages)
