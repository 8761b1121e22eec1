"""Queueing in front of several servers, simulated: what photographs wait for, and what to scale by.

    ipt-benchmark capacity
    ipt-benchmark capacity --rate 6000 --overhead 0.02 --start 120 --json build/gpu.json

First the simulation is compared with what one real server did (the records of `overload` and `throughput`). Then
photographs of `--sides` come by chance to `--replicas` servers of `--rate` patches a second. At last the load is
tripled for half an hour, and a scaler that wants `--targets` photographs a server follows. Seeds are fixed, so a record
can be made again.

Exit codes: 0 simulated; 1 a record is missing or malformed, or simpy is; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, table
from ipt_triton.benchmarks.record import ROOT, Record, command_line, run_benchmark
from ipt_triton.benchmarks.serving.throughput import counts, positive
from ipt_triton.tiling import count_patches

RESULTS = ROOT / "benchmarks" / "results"
SEED = 2026
UTILISATIONS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
BUSY = (0.8, 2.4, 1800.0)
"""Servers kept busy by the load that is scaled for: before and after, meanwhile, and how long each lasts."""


def compare_overload() -> list[dict[str, Any]]:
    """Crowds of clients who give up: the smallest gives the rate of the server, the others are foretold."""
    from ipt_triton.benchmarks.serving.queueing import closed_loop

    figures = Record.load(RESULTS / "overload.json").figures
    patches = count_patches(*figures["size"])
    rate = patches * figures["crowds"][0]["goodput"]
    rows = []
    for crowd in figures["crowds"]:
        random.seed(SEED)
        count = closed_loop(rate, 0, crowd["clients"], patches, 10 * figures["seconds"], figures["patience"])
        measured = {"per_s": crowd["goodput"], "p50_s": crowd["latency_s"]["p50"], "given_up": crowd["given_up"]}
        simulated = {
            "per_s": len(count.seconds) / figures["seconds"] / 10,
            "p50_s": float(np.median(count.seconds)),
            "given_up": count.given_up / 10,
        }
        rows.append({"record": "overload", "clients": crowd["clients"], "measured": measured, "simulated": simulated})
    return rows


def compare_throughput() -> list[dict[str, Any]]:
    """Clients without end of one task: 8 give the rate, 1 gives what is not queued for, 2 and 4 are foretold."""
    from ipt_triton.benchmarks.serving.queueing import closed_loop

    figures = Record.load(RESULTS / "throughput-ipt-tiny.json").figures
    patches = count_patches(*figures["size"])
    rows = []
    for task, cells in grouped(figures["levels"]["restore"], lambda cell: cell["task"]).items():
        by_clients = {cell["concurrency"]: cell for cell in cells}
        rate = by_clients[8]["patches_per_s"]
        overhead = by_clients[1]["latency_ms"]["p50"] / 1000 - patches / rate
        for clients, cell in by_clients.items():
            random.seed(SEED)
            count = closed_loop(rate, max(0.0, overhead), clients, patches, 60.0)
            measured = {"per_s": cell["requests_per_s"]["median"], "p50_s": cell["latency_ms"]["p50"] / 1000}
            simulated = {"per_s": len(count.seconds) / 60, "p50_s": float(np.median(count.seconds))}
            record = f"throughput, {task}"
            rows.append({"record": record, "clients": clients, "measured": measured, "simulated": simulated})
    return rows


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    try:
        from ipt_triton.benchmarks.serving.queueing import Load, Scaler, steady
    except ImportError as error:
        raise ReportError(f"the simulation needs a package ({error}): pip install 'ipt-triton[benchmarks]'") from None
    patches = tuple(count_patches(side, side) for side in arguments.sides)
    load = Load(patches, tuple(arguments.shares), arguments.rate, arguments.overhead)
    rows = []
    for replicas in arguments.replicas:
        for utilisation in UTILISATIONS:
            print(f"{replicas} servers, {utilisation:.0%} busy ...", file=sys.stderr)
            random.seed(SEED)
            count, level = steady(load, replicas, utilisation, arguments.seconds)
            rows.append({"replicas": replicas, "utilisation": utilisation, "level": level, **_summary(count)})
    calm, busy, lasts = BUSY
    scaled = []
    for target in arguments.targets:
        print(f"scaled to {target} photographs a server ...", file=sys.stderr)
        random.seed(SEED)
        scaler = Scaler(target, start_s=arguments.start)
        count, servers = scaler.run(load, lambda now: busy if lasts <= now < 2 * lasts else calm, 3 * lasts)
        scaled.append({"target": target, "servers": servers, **_summary(count)})
    facts = {key: getattr(arguments, key) for key in ("rate", "overhead", "sides", "shares", "seconds", "start")}
    checks = compare_overload() + compare_throughput()
    return {**facts, "patches": patches, "busy": list(BUSY), "checks": checks, "steady": rows, "scaled": scaled}


def _summary(count: Any) -> dict[str, float]:
    asked = len(count.seconds) + count.refusals
    largest = max(patches for patches, _ in count.slowdowns)
    p50, p95 = np.percentile([slowdown for _, slowdown in count.slowdowns], (50, 95))
    return {
        "photographs": len(count.seconds),
        "p50": float(p50),
        "p95": float(p95),
        "largest_p95": float(np.percentile([slow for patches, slow in count.slowdowns if patches == largest], 95)),
        "refused": count.refusals / max(1, asked),
    }


def markdown(record: Record) -> str:
    """What was compared, the servers under loads that stay, and the scaler."""
    figures = record.figures
    checks = [
        (
            row["record"],
            row["clients"],
            f"{row['measured']['per_s']:.2f}",
            f"{row['simulated']['per_s']:.2f}",
            f"{row['simulated']['per_s'] / row['measured']['per_s'] - 1:+.0%}",
            f"{row['measured']['p50_s']:.3f}",
            f"{row['simulated']['p50_s']:.3f}",
            f"{row['simulated']['p50_s'] / row['measured']['p50_s'] - 1:+.0%}",
            row["measured"].get("given_up", "–"),
            f"{row['simulated']['given_up']:.0f}" if "given_up" in row["simulated"] else "–",
        )
        for row in figures["checks"]
    ]
    head = ("record", "clients", "per s, measured", "simulated", "", "p50, s, measured", "simulated", "")
    rows = [
        (
            row["replicas"],
            f"{row['utilisation']:.0%}",
            f"{row['level']:.2f}",
            f"{row['p50']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['largest_p95']:.2f}",
            f"{row['refused']:.1%}",
        )
        for row in figures["steady"]
    ]
    scaled = [
        (
            f"{row['target']:g}",
            f"{row['servers']:.2f}",
            f"{row['p50']:.2f}",
            f"{row['p95']:.2f}",
            f"{row['largest_p95']:.2f}",
            f"{row['refused']:.1%}",
        )
        for row in figures["scaled"]
    ]
    sizes = ", ".join(f"{s}x{s} ({share:.0%})" for s, share in zip(figures["sides"], figures["shares"], strict=True))
    calm, busy, lasts = figures["busy"]
    slower = ("slower, p50", "slower, p95", "the largest, p95", "refusals")
    return "\n\n".join(
        [
            "Simulated, and one real server as it was measured. Of each record the rate comes from one row, "
            "in `throughput` the seconds that nobody waits for from another; the rest is foretold.",
            table((*head, "given up, measured", "simulated"), checks),
            f"Servers of {figures['rate']:g} patches/s, {figures['overhead']:g} s of each photograph not queued for; "
            f"photographs of {sizes} come by chance for {figures['seconds']:g} s. Slower: than alone.",
            table(("servers", "busy", "photographs a server", *slower), rows),
            f"Scaled from 2 to 8 servers, each of which starts in {figures['start']:g} s. The load keeps {calm:g} "
            f"servers busy for {lasts / 60:g} minutes, {busy:g} for as long, and {calm:g} again.",
            table(("photographs a server wanted", "servers", *slower), scaled),
        ]
    )


def draw(record: Record) -> Figure:
    """Slowdown by photographs a server, and by what is scaled to."""
    drawn, (left, right) = figure(9, 3.8, ncols=2)
    for replicas, rows in grouped(record.figures["steady"], lambda row: row["replicas"]).items():
        left.plot([row["level"] for row in rows], [row["p95"] for row in rows], "o-", label=f"{replicas} servers")
    left.set(xlabel="photographs a server, mean", ylabel="times as long as alone, p95", title="Loads that stay")
    left.legend()
    scaled = record.figures["scaled"]
    lines = {"p95": "slower, p95", "largest_p95": "the largest, p95", "servers": "servers, mean"}
    for name, label in lines.items():
        right.plot([row["target"] for row in scaled], [row[name] for row in scaled], "o-", label=label)
    right.set(xlabel="photographs a server wanted", title="A load that triples, scaled")
    right.legend()
    for ax in (left, right):
        ax.set_ylim(bottom=0)
    return drawn


def numbers(text: str) -> list[float]:
    """Numbers above 0 with commas between."""
    return [positive(float)(word) for word in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("capacity", __doc__)
    parser.add_argument("--rate", type=positive(float), default=250.0, help="patches/s of a server (%(default)s)")
    parser.add_argument(
        "--overhead", type=positive(float), default=0.04, help="seconds of a photograph not queued for (%(default)s)"
    )
    parser.add_argument("--sides", type=counts, default="512,1024,2450", help="of photographs (%(default)s)")
    parser.add_argument("--shares", type=numbers, default="0.7,0.25,0.05", help="how often each comes (%(default)s)")
    parser.add_argument("--replicas", type=counts, default="1,2,4,8", help="servers (%(default)s)")
    parser.add_argument("--targets", type=numbers, default="1,2,3,4,6", help="photographs a server (%(default)s)")
    parser.add_argument("--start", type=positive(float), default=60.0, help="seconds of a server's start (%(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=3600.0, help="of each load that stays (%(default)s)")
    arguments = parser.parse_args(argv)
    if len(arguments.sides) != len(arguments.shares):
        parser.error(f"--shares: {len(arguments.shares)} are given for {len(arguments.sides)} sides")
    return run_benchmark("capacity", argv, arguments, measure, markdown, draw, ("simpy",))
