"""Tables and plots of `benchmarks.serving.scaling`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ipt_triton.benchmarks.presentation import Figure, error_bars, figure, powers_of_two, quartiles, table
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.serving.memory import MIB
from ipt_triton.tiling import PATCH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[dict[str, Any]]
SPREAD = ("median", "low", "high")
ROLES = ("router", "server", "client")


def _spread(values: dict[str, Any]) -> str:
    """Median, and the quartiles where there are any."""
    return quartiles(values, pattern="{}" if values["runs"] == 1 else "{} [{}, {}]")


def _per_task(rows: Rows, name: str) -> float:
    """What one more task adds, between the fewest and the most."""
    return float(rows[-1][name] - rows[0][name]) / max(1, rows[-1]["tasks"] - rows[0]["tasks"])


def side_table(rows: Rows) -> str:
    memory = (f"{role}, MiB" for role in ROLES)
    header = ("side", "evaluations per pixel", "seconds", "seconds per megapixel", "runs", *memory)
    lines = []
    for row in rows:
        pixels, seconds = row["side"] ** 2, row["seconds"]
        evaluations = f"{row['patches'] * PATCH**2 / pixels:.2f}"
        cost = f"{seconds['median'] / pixels * 1e6:.3g}"
        growth = (row["growth_mib"][role] for role in ROLES)
        lines.append((row["side"], evaluations, _spread(seconds), cost, seconds["runs"], *growth))
    return (
        "One photograph at a time by its side in pixels; memory: peak above idle of the router that holds it, of "
        "tritonserver (regions that both see count in both) and of the client.\n\n" + table(header, lines)
    )


def concurrency_table(rows: Rows) -> str:
    header = ("under way", "photographs/s", "megapixels/s", "p50, ms", "p95, ms")
    lines = []
    for row in rows:
        megapixels = row["photos_per_s"]["median"] * rows[0]["side"] ** 2 / 1e6
        p50, p95 = (f"{row['latency_ms'][q]:.0f}" for q in ("p50", "p95"))
        lines.append((row["concurrency"], _spread(row["photos_per_s"]), f"{megapixels:.3g}", p50, p95))
    return f"Photographs of {rows[0]['side']}x{rows[0]['side']}, so many always under way.\n\n" + table(header, lines)


def tasks_table(rows: Rows) -> str:
    header = ("tasks", "processes", "memory of all, MiB", "seconds to ready")
    lines = [(row["tasks"], row["processes"], row["memory_mib"], row["seconds_to_ready"]) for row in rows]
    return (
        f"Tasks on one body, one start each: a task more takes {_per_task(rows, 'memory_mib'):.0f} MiB and "
        f"{_per_task(rows, 'seconds_to_ready'):.1f} s to start.\n\n" + table(header, lines)
    )


def instances_table(rows: Rows) -> str:
    side = rows[0]["side"]
    header = ("bodies", "threads each", f"seconds for {side}x{side}", "memory of all, MiB")
    lines = [(row["instances"], row["threads"], _spread(row["seconds"]), row["memory_mib"]) for row in rows]
    return "Bodies side by side, one photograph at a time.\n\n" + table(header, lines)


def _band(ax: Axes, at: Sequence[int], spreads: Rows) -> None:
    """Medians as a line within their quartiles."""
    median, low, high = ([spread[name] for spread in spreads] for name in SPREAD)
    ax.plot(at, median, "o-")
    ax.fill_between(at, low, high, alpha=0.25)


def draw_sides(left: Axes, right: Axes, rows: Rows) -> None:
    sides = [row["side"] for row in rows]
    _band(left, sides, [{name: row["seconds"][name] / row["side"] ** 2 * 1e6 for name in SPREAD} for row in rows])
    left.set(title="One photograph at a time", ylabel="seconds per megapixel", ylim=(0, None))
    for role in ROLES:
        right.plot(sides, [row["growth_mib"][role] or float("nan") for row in rows], "o-", label=role)
    right.plot(sides, [6 * side**2 / MIB for side in sides], "--", color="0.4", label="photograph and result")
    right.set(title="Memory for it", ylabel="peak above idle, MiB", yscale="log", ylim=(0.8, None))
    right.legend(fontsize="small")
    for ax in (left, right):
        powers_of_two(ax, sides)
        ax.set(xlabel="side of the photograph, pixels")


def draw_concurrency(left: Axes, right: Axes, rows: Rows) -> None:
    levels = [row["concurrency"] for row in rows]
    _band(left, levels, [row["photos_per_s"] for row in rows])
    side = f"{rows[0]['side']}x{rows[0]['side']}"
    left.set(title=f"Photographs of {side} under way", ylabel="photographs per second", ylim=(0, None))
    for quantile in ("p50", "p95"):
        right.plot(levels, [row["latency_ms"][quantile] / 1e3 for row in rows], "o-", label=quantile)
    right.set_yscale("log", base=2)
    right.yaxis.set_major_formatter("{x:g}")
    right.set(title="Their latency", ylabel="seconds")
    right.legend()
    for ax in (left, right):
        powers_of_two(ax, levels)
        ax.set(xlabel="requests under way")


def draw_tasks(left: Axes, right: Axes, rows: Rows) -> None:
    tasks = [row["tasks"] for row in rows]
    left.plot(tasks, [row["memory_mib"] for row in rows], "o-")
    left.set(title="Tasks on one body", ylabel="memory of the whole server, MiB")
    right.plot(tasks, [row["seconds_to_ready"] for row in rows], "o-")
    right.set(title="Start", ylabel="seconds to ready")
    for ax in (left, right):
        ax.set(xlabel="tasks", xticks=tasks, ylim=(0, None))


def draw_instances(left: Axes, right: Axes, rows: Rows) -> None:
    names = [f"{row['instances']} × {row['threads']}" for row in rows]
    medians = [row["seconds"]["median"] for row in rows]
    left.bar(names, medians, 0.6, yerr=error_bars(row["seconds"] for row in rows), capsize=4)
    side = rows[0]["side"]
    left.set(title=f"One photograph of {side}x{side}", ylabel="seconds")
    right.bar(names, [row["memory_mib"] for row in rows], 0.6)
    right.set(title="Memory for it", ylabel="memory of the whole server, MiB")
    for ax in (left, right):
        ax.set(xlabel="bodies × threads of each")


PARTS: dict[str, tuple[Callable[[Rows], str], Callable[[Axes, Axes, Rows], None]]] = {
    "side": (side_table, draw_sides),
    "concurrency": (concurrency_table, draw_concurrency),
    "tasks": (tasks_table, draw_tasks),
    "instances": (instances_table, draw_instances),
}


def markdown(record: Record) -> str:
    """A table for each part that was measured."""
    figures = record.figures
    intro = f"{figures['preset']} in {figures['precision']}, task {figures['task']}."
    return "\n\n".join([intro, *(PARTS[name][0](rows) for name, rows in figures["parts"].items())])


def draw(record: Record) -> Figure:
    """Two plots for each part that was measured, a row each."""
    parts = record.figures["parts"]
    drawn, grid = figure(9, 3.2 * len(parts), nrows=len(parts), ncols=2, squeeze=False)
    for (name, rows), (left, right) in zip(parts.items(), grid, strict=True):
        PARTS[name][1](left, right, rows)
    return drawn
