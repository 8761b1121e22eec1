"""A mixed load of all tasks through one shared body, against one task at a time and against one body per task.

Requests of all tasks go out in turns, so as many patches of each are restored. As long as a patch takes for its task
alone, on average over the tasks, should it take in the mix: the rate to reach is the harmonic mean of the single rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import harmonic_mean
from typing import Any

import torch

from ipt_triton.benchmarks.presentation import Figure, error_bars, figure, quartiles, table
from ipt_triton.benchmarks.record import Spread
from ipt_triton.benchmarks.served import checkpoint_of, of_one_task
from ipt_triton.benchmarks.serving.load import Request, Window, latency_ms
from ipt_triton.benchmarks.serving.memory import MIB, proportional
from ipt_triton.benchmarks.serving.server_statistics import ObservedServer
from ipt_triton.train.model.checkpoint import Checkpoint

ROUNDS = 3
QUARTILES = "{} ({}–{})"
COLORS = {"shared": "C2", "separate": "C1"}
NAMES = {"shared": "one shared body", "separate": "a body per task"}


def one_body_each(checkpoint: Checkpoint) -> list[Checkpoint]:
    """A checkpoint per task, their bodies just so far apart that export does not make them one again."""
    checkpoints = []
    for number, task in enumerate(checkpoint.model.config.tasks, 1):
        model = of_one_task(checkpoint, task.name).model
        with torch.no_grad():
            next(model.body.parameters()).view(-1)[0] += number * 1e-5
        checkpoints.append(checkpoint_of(model))
    return checkpoints


def measure(
    shared: ObservedServer,
    separate: ObservedServer | None,
    requests: Sequence[Request],
    concurrency: int,
    seconds: float,
) -> dict[str, Any]:
    """Each task alone, and all at once, on `shared`, and all at once on `separate`, in turns, three times; JSON values.

    `to_single` is the ratio of the mixed rate to the harmonic mean of the single rates of the same round.

    Raises:
        RestorationError: as `ObservedServer.measure`.
    """
    servers = {"shared": shared} | ({"separate": separate} if separate else {})
    single: dict[str, list[float]] = {request.task: [] for request in requests}
    windows: dict[str, list[Window]] = {name: [] for name in servers}
    where: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for request in requests:
            (window,), _ = shared.measure([request], concurrency, seconds, 1)
            single[request.task].append(window.rate * request.patches)
        for name, server in servers.items():
            (window,), where[name] = server.measure(requests, concurrency, seconds, 1)
            windows[name].append(window)
    means = [harmonic_mean(rates) for rates in zip(*single.values(), strict=True)]
    rates = {name: [window.rate * requests[0].patches for window in windows[name]] for name in servers}
    return {
        "concurrency": concurrency,
        "single_patches_per_s": {task: asdict(Spread.of(values)) for task, values in single.items()},
        "single_mean_patches_per_s": asdict(Spread.of(means)),
        "mixed": {
            name: {
                "patches_per_s": asdict(Spread.of(rates[name])),
                "to_single": asdict(Spread.of([a / b for a, b in zip(rates[name], means, strict=True)])),
                "latency_ms": latency_ms(windows[name]),
                "server": where[name],
                "memory_mib": round(proportional(server.pids) / MIB) or None,
            }
            for name, server in servers.items()
        },
    }


def markdown(levels: dict[str, list[dict[str, Any]]]) -> str:
    """A table for all levels, and the single rates below it."""
    rows: list[list[object]] = []
    notes = []
    for level, cells in levels.items():
        for cell in cells:
            load = [level, cell["concurrency"]]
            alone = quartiles(cell["single_mean_patches_per_s"], ".1f", pattern=QUARTILES)
            rows.append([*load, "one task at a time, mean", alone, *["–"] * 5])
            for name, mixed in cell["mixed"].items():
                forms = {"patches_per_s": ".1f", "to_single": ".3f"}
                rates = (quartiles(mixed[key], form, pattern=QUARTILES) for key, form in forms.items())
                delays = (f"{mixed['latency_ms'][q]:.0f}" for q in ("p50", "p95"))
                held = mixed["server"]["body_batch"], mixed["memory_mib"] or "–"
                rows.append([*load, f"all at once, {NAMES[name]}", *rates, *delays, *held])
            singles = (f"{task} {rate['median']:.1f}" for task, rate in cell["single_patches_per_s"].items())
            notes.append(f"One at a time, `{level}`, {load[1]} under way: {', '.join(singles)} patches/s.")
    header = [
        *("level", "under way", "load", "patches/s (quartiles)", "to one at a time", "p50 ms", "p95 ms", "body batch"),
        "server's memory, MiB",
    ]
    return "\n".join([table(header, rows), "", *notes])


def draw(levels: dict[str, list[dict[str, Any]]]) -> Figure:
    """Rates as bars: tasks alone, their mean, and mixed; the memory of each server beside them."""
    cells = [(level, cell) for level, of_level in levels.items() for cell in of_level]
    drawn, axes = figure(13, 3.6 * len(cells), nrows=len(cells), ncols=2, squeeze=False, width_ratios=[3, 1])
    for (level, cell), (rate, memory) in zip(cells, axes, strict=True):
        bars = {
            **{task: (spread, "C7") for task, spread in cell["single_patches_per_s"].items()},
            "mean of these": (cell["single_mean_patches_per_s"], "C0"),
        }
        bars |= {
            f"all at once,\n{NAMES[name]}": (m["patches_per_s"], COLORS[name]) for name, m in cell["mixed"].items()
        }
        spreads, colors = zip(*bars.values(), strict=True)
        medians = [s["median"] for s in spreads]
        errors = error_bars(spreads)
        rate.bar_label(rate.bar(list(bars), medians, yerr=errors, color=colors, capsize=3), fmt="%.0f", fontsize=8)
        rate.set(ylabel="patches/s", title=f"{level}, {cell['concurrency']} requests under way")
        rate.tick_params(axis="x", labelsize=7)
        held = {NAMES[name]: (m["memory_mib"] or 0, COLORS[name]) for name, m in cell["mixed"].items()}
        sizes, colors = zip(*held.values(), strict=True)
        memory.bar_label(memory.bar(list(held), sizes, color=colors, width=0.6), fontsize=8)
        memory.set(ylabel="MiB", title="memory of the server")
        memory.tick_params(axis="x", labelsize=7)
        for ax in (rate, memory):
            ax.grid(axis="x", visible=False)
    return drawn
