"""Each task by itself, by the number of requests under way: how it is measured, tabulated and drawn."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ipt_triton.benchmarks.presentation import error_bars, powers_of_two, quartiles, table
from ipt_triton.benchmarks.record import Spread
from ipt_triton.benchmarks.serving.load import Request, latency_ms
from ipt_triton.benchmarks.serving.server_statistics import LOAD, PARTS, ROUTER, SERVER, ObservedServer

WINDOWS = 3
PERCENTILES = {"p50": 1, "p95": 20, "p99": 100}
"""Percentiles in the tables, and how many requests it takes to tell one from the largest latency."""


def measure(server: ObservedServer, request: Request, concurrency: int, seconds: float) -> dict[str, Any]:
    """One task at one concurrency: rates, latencies, and where the server's time went; JSON values."""
    windows, where = server.measure([request], concurrency, seconds, WINDOWS)
    rate = Spread.of([window.rate for window in windows])
    return {
        "task": request.task,
        "concurrency": concurrency,
        "requests": sum(len(window.latencies) for window in windows),
        "requests_per_s": asdict(rate),
        "patches_per_s": rate.median * request.patches,
        "input_mp_per_s": rate.median * request.input_pixels / 1e6,
        "output_mp_per_s": rate.median * request.output_pixels / 1e6,
        "latency_ms": latency_ms(windows),
        "server": where,
    }


def markdown(cells: list[dict[str, Any]], images: bool) -> str:
    """Rates and latencies, and below them where the server's time went.

    Args:
        cells: of one level.
        images: whether its requests are photographs, which go through the router.
    """
    most = max(cell["concurrency"] for cell in cells)
    busiest = [cell for cell in cells if cell["concurrency"] == most]
    where = f"Where the time goes, {most} under way ({_share_of(cells)}):"
    return "\n\n".join([_throughput_table(cells, images), where, _server_table(busiest, images)])


def _throughput_table(cells: list[dict[str, Any]], images: bool) -> str:
    header = ["task", "under way", *(["images/s"] if images else []), "patches/s (quartiles)", "MP/s in", "MP/s out"]
    rows = []
    tasks = [cell["task"] for cell in cells]
    for cell in sorted(cells, key=lambda cell: tasks.index(cell["task"])):
        rate, latency = cell["requests_per_s"], cell["latency_ms"]
        rows.append(
            [
                cell["task"],
                cell["concurrency"],
                *([f"{rate['median']:.2f}"] if images else []),
                quartiles(rate, ".1f", cell["patches_per_s"] / rate["median"], "{} ({}–{})"),
                f"{cell['input_mp_per_s']:.3f}",
                f"{cell['output_mp_per_s']:.3f}",
                *(f"{latency[q]:.0f}" if cell["requests"] >= least else "–" for q, least in PERCENTILES.items()),
                cell["requests"],
            ]
        )
    return table([*header, "p50 ms", "p95 ms", "p99 ms", "requests"], rows)


def _share_of(cells: list[dict[str, Any]]) -> str:
    known = cells[0]["server"]["cpu"] is not None
    return "shares of the CPU time" if known else "shares of the time that parts execute; the router's is not known"


def _server_table(cells: list[dict[str, Any]], images: bool) -> str:
    """Mean queue + compute times of the requests to each part, and the shares."""
    cpu = cells[0]["server"]["cpu"] is not None
    parts = [part for part in PARTS if part in cells[0]["server"]]
    roles = [*parts, *([ROUTER] if images else [])]
    holders = [*roles, SERVER, LOAD] if cpu else parts
    rows = []
    for cell in cells:
        server = cell["server"]
        times = [f"{server[r]['queue_ms']:.1f} + {server[r]['compute_ms']:.1f}" for r in roles]
        shares = [server["cpu"][h] if cpu else server[h]["busy"] for h in holders]
        rows.append([cell["task"], server["body_batch"], *times, *(f"{share:.1%}" for share in shares)])
    header = ["task", "body batch", *(f"{r}, queue + compute ms" for r in roles), *(f"{h}, share" for h in holders)]
    return table(header, rows)


def draw(axes: Any, cells: list[dict[str, Any]], title: str) -> None:
    """On three axes: latency against concurrency, throughput against concurrency, and throughput of each task."""
    delay, rate, bars = axes
    tasks = list(dict.fromkeys(cell["task"] for cell in cells))
    steps = sorted({cell["concurrency"] for cell in cells})
    for i, task in enumerate(tasks):
        mine = [cell for cell in cells if cell["task"] == task]
        at = [cell["concurrency"] * 1.04 ** (i - (len(tasks) - 1) / 2) for cell in mine]  # side by side
        p50, p95 = ([cell["latency_ms"][q] / 1e3 for cell in mine] for q in ("p50", "p95"))
        up = [b - a for a, b in zip(p50, p95, strict=True)]
        style = {"color": f"C{i}", "marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2, "label": task}
        delay.errorbar(at, p50, yerr=[[0] * len(up), up], **style)
        rate.errorbar(at, [cell["patches_per_s"] for cell in mine], yerr=_rate_bars(mine), **style)
    for ax in (delay, rate):
        powers_of_two(ax, steps)
        ax.minorticks_off()
        ax.set_xlabel("requests under way")
        ax.set_ylim(0)
    delay.set(ylabel="seconds", title="latency: median, up to the 95th percentile")
    rate.set(ylabel="patches/s", title=title)
    delay.legend(fontsize=8)
    last = [cell for cell in cells if cell["concurrency"] == steps[-1]]
    colors = [f"C{tasks.index(cell['task'])}" for cell in last]
    heights = [cell["patches_per_s"] for cell in last]
    drawn_bars = bars.bar([cell["task"] for cell in last], heights, yerr=_rate_bars(last), color=colors, capsize=3)
    labels = [f"{cell['input_mp_per_s']:.2f} → {cell['output_mp_per_s']:.2f}" for cell in last]
    bars.bar_label(drawn_bars, labels, label_type="center", fontsize=7, color="white", rotation=90)
    bars.set(ylabel="patches/s", title=f"{steps[-1]} under way; in the bars MP/s in → out")
    bars.tick_params(axis="x", rotation=20)
    bars.grid(axis="x", visible=False)


def _rate_bars(cells: list[dict[str, Any]]) -> list[list[float]]:
    """Error bars of the rates in patches/s, whose spreads are of requests/s."""
    rates = [cell["requests_per_s"] for cell in cells]
    return error_bars(rates, [cell["patches_per_s"] / rate["median"] for cell, rate in zip(cells, rates, strict=True)])
