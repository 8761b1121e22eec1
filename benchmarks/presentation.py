"""How results are shown: Markdown tables, spreads as text and as error bars, and plots in one style.

Python 3.9 syntax and, until a plot is drawn, the standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # for annotations, which are not evaluated: matplotlib is imported when a plot is drawn
    Axes = Figure = object

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
SpreadValues = Mapping[str, Any]
"""A `record.Spread` as a record has it."""


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The rows by their key, in the order in which the keys come first."""
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; columns whose cells are all numbers, or start with one, are set to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [all(row[i][:1].isdigit() or row[i] in ("", "–") for row in cells) for i in range(len(header))]
    lines = [header, ["--:" if r else "---" for r in right], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quartiles(spread: SpreadValues, form: str = ".3g", scale: float = 1, pattern: str = "{} [{}, {}]") -> str:
    """Median and quartiles, times `scale`, as the text of a table's cell."""
    return pattern.format(*(format(spread[name] * scale, form) for name in ("median", "low", "high")))


def error_bars(spreads: Iterable[SpreadValues], scales: Iterable[float] | None = None) -> list[list[float]]:
    """Distances of the quartiles from the median, as matplotlib's error bars want them; each times its scale."""
    spreads = list(spreads)
    factors = [1.0] * len(spreads) if scales is None else list(scales)
    return [[abs(s[name] - s["median"]) * f for s, f in zip(spreads, factors)] for name in ("low", "high")]


def figure(width: float = 7, height: float = 4, **subplots: Any) -> tuple[Figure, Any]:
    """A matplotlib figure and its axes in the style of all plots, drawn without a display.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure as plots
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ReportError(f"the plot needs a package ({error}): pip install 'ipt-triton[benchmarks]'") from None
    drawn = plots.Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(**subplots)
    for ax in [axes] if hasattr(axes, "plot") else axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.3)
        ax.set_axisbelow(True)
    return drawn, axes


def powers_of_two(ax: Axes, values: Sequence[int]) -> None:
    """A logarithmic x axis with a tick at each value."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(values), [str(value) for value in values])


def save_plot(drawn: Figure, path: Path) -> None:
    """Write a PNG."""
    with atomic_file(path) as temporary:
        drawn.savefig(temporary, format="png")
