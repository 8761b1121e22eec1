"""What the ablations say: the runs of all settings and seeds as tables, curves, and conclusions that heed the noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple

from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, save_plot, table
from ipt_triton.files import atomic_file
from ipt_triton.train.fit.recipe import PAPER_LAMBDA

Result = dict[str, Any]


class Experiment(NamedTuple):
    """One comparison.

    Attributes:
        title: of its table.
        includes: whether a run's variant belongs to it.
        setting: what is compared, as a reader sees it.
        order: of the settings.
    """

    title: str
    includes: Callable[[Result], bool]
    setting: Callable[[Result], str]
    order: Callable[[Result], Any]


POSITIONS = ("learned", "sincos", "none")
EXPERIMENTS = {
    "contrastive": Experiment(
        "Weight λ of the contrastive loss",
        lambda v: v["network"] == "ipt" and not v["share"] and v["position"] == "learned",
        lambda v: f"λ {v['contrastive']:g}",
        lambda v: v["contrastive"],
    ),
    "position": Experiment(
        "Position encoding",
        lambda v: v["network"] == "ipt" and not v["share"] and v["contrastive"] == PAPER_LAMBDA,
        lambda v: v["position"],
        lambda v: POSITIONS.index(v["position"]),
    ),
    "data": Experiment(
        "Share of data, IPT against EDSR of equal cost",
        lambda v: v["share"] > 0,
        lambda v: f"{v['network'].upper()} {100 * v['share']:.0f} %",
        lambda v: (v["network"] != "ipt", v["share"]),
    ),
}


def summarise(results: Sequence[Result], machine: dict[str, Any]) -> dict[str, Any]:
    """Settings with their means over the seeds, the noise between seeds, and conclusions.

    Raises:
        ReportError: no results, or runs with different settings.
    """
    if not results:
        raise ReportError("no run is finished yet")
    settings = results[0]["settings"]
    if any(r["settings"] != settings for r in results):
        raise ReportError("the runs have different settings; report each kind from a folder of its own")
    experiments = {}
    for name, experiment in EXPERIMENTS.items():
        mine = sorted(
            (r for r in results if experiment.includes(r["variant"])), key=lambda r: experiment.order(r["variant"])
        )
        if runs := grouped(mine, key=lambda r: experiment.setting(r["variant"])):
            experiments[name] = [_setting(label, same) for label, same in runs.items()]
    summary = {
        "settings": settings,
        "machine": machine,
        "parameters": {r["variant"]["network"]: r["parameters"] for r in results},
        "megamacs": {r["variant"]["network"]: r["megamacs"] for r in results},
        "patches": results[0]["patches"],
        "start": results[0]["start"],
        "experiments": experiments,
        "noise": {name: {t: _noise(rows, t) for t in settings["tasks"]} for name, rows in experiments.items()},
    }
    return {**summary, "conclusions": _conclusions(summary), "runs": list(results)}


def _noise(rows: Sequence[Result], task: str) -> float | None:
    """Standard deviation (dB) between the seeds of a setting, pooled over the settings; None if each ran once."""
    squares = sum(variance(row["per_seed"][task]) * (row["runs"] - 1) for row in rows if row["runs"] > 1)
    freedom = sum(row["runs"] - 1 for row in rows)
    return round(math.sqrt(squares / freedom), 3) if freedom else None


def _setting(label: str, runs: Sequence[Result]) -> dict[str, Any]:
    """A setting's PSNR by task, the mean and that of each seed; and the mean on the test set."""
    psnr = _columns([r["psnr"] for r in runs])
    row = {
        "setting": label,
        "variant": {k: v for k, v in runs[0]["variant"].items() if k != "seed"},
        "runs": len(runs),
        "photographs": runs[0]["photographs"],
        "psnr": {task: round(fmean(values), 3) for task, values in psnr.items()},
        "per_seed": psnr,
    }
    if all("eval" in r for r in runs):
        measured = _columns([r["eval"]["psnr_y"] for r in runs])
        row["eval"] = {task: round(fmean(values), 3) for task, values in measured.items()}
        row["eval_set"] = runs[0]["eval"]["set"]
    return row


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {task: [row[task] for row in rows] for task in rows[0]}


def _conclusions(summary: dict[str, Any]) -> list[str]:
    """For each experiment and task: how far settings are apart, and whether the noise may be the reason."""
    lines = []
    for name, rows in summary["experiments"].items():
        for task in summary["settings"]["tasks"]:
            noise = summary["noise"][name][task]
            if name != "data":
                best, worst = (f(rows, key=lambda r: r["psnr"][task]) for f in (max, min))
                lines.append(f"{EXPERIMENTS[name].title}, {task}: {_compare(best, worst, task, noise)}")
                continue
            networks = {n: [r for r in rows if r["variant"]["network"] == n] for n in ("ipt", "edsr")}
            for one, other in itertools.product(*networks.values()):
                if one["variant"]["share"] == other["variant"]["share"]:
                    high, low = sorted((one, other), key=lambda r: -r["psnr"][task])
                    lines.append(f"{task}: {_compare(high, low, task, noise)}")
            gains = (f"{n.upper()} {r[-1]['psnr'][task] - r[0]['psnr'][task]:.2f} dB" for n, r in networks.items() if r)
            lines.append(f"{task}, gained from the smallest to the largest share: {', '.join(gains)}.")
    return lines


def _compare(high: Result, low: Result, task: str, noise: float | None) -> str:
    apart = high["psnr"][task] - low["psnr"][task]
    said = f"{high['setting']} is {apart:.2f} dB above {low['setting']}"
    if noise is None:
        return f"{said}; with one seed each, the noise is not known."
    error = noise * math.sqrt(1 / high["runs"] + 1 / low["runs"])
    verdict = "more than noise" if apart > 2 * error else "which may be noise"
    return f"{said}, {verdict} (standard error {error:.2f} dB)."


def markdown(summary: dict[str, Any]) -> str:
    """The summary as a Markdown page; PSNR in dB."""
    settings, tasks = summary["settings"], summary["settings"]["tasks"]
    networks = ", ".join(
        f"{network.upper()} {summary['parameters'][network] / 1e6:.2f} M parameters and "
        f"{fmean(costs.values()):.0f} million multiply-adds per patch"
        for network, costs in sorted(summary["megamacs"].items())
    )
    machine = summary["machine"]
    lines = [
        f"# Ablations at {settings['size']} scale",
        "",
        f"{settings['steps']} steps of {settings['batch']} crops ({summary['patches']} patches), peak learning rate "
        f"{settings['lr']:g}, the project's trainer from a start as bicubic interpolation; {networks}. "
        f"{settings['device'].upper()}, torch {machine['torch']}. PSNR (RGB, dB) over the middles of photographs held "
        "out, the mean over the seeds with the distance between the best and the worst in brackets. Networks of this "
        "size trained this briefly say nothing about the paper's.",
        "",
        f"Before training: {', '.join(f'{t} {psnr:.2f}' for t, psnr in summary['start'].items())}.",
    ]
    for name, rows in summary["experiments"].items():
        measured = next((r["eval_set"] for r in rows if "eval" in r), None)
        header = ["setting", "photographs", "seeds", *tasks]
        if measured:
            header += [f"{measured} {t}, Y" for t in tasks]
        body = []
        for row in rows:
            cells = [row["setting"], row["photographs"], row["runs"]]
            for task in tasks:
                spread = max(row["per_seed"][task]) - min(row["per_seed"][task])
                cells.append(f"{row['psnr'][task]:.2f}" + (f" ({spread:.2f})" if row["runs"] > 1 else ""))
            if measured:
                cells += [f"{row['eval'][t]:.2f}" if "eval" in row else "–" for t in tasks]
            body.append(cells)
        lines += ["", f"## {EXPERIMENTS[name].title}", "", table(header, body)]
    lines += [
        "",
        "## What they say",
        "",
        "More than noise: more than two standard errors.",
        "",
        *(f"- {line}" for line in summary["conclusions"]),
    ]
    return "\n".join(lines)


def write_report(summary: dict[str, Any], stem: Path) -> None:
    """Write `stem`.json, `stem`.md and `stem`.png. Raises ReportError where matplotlib is not installed."""
    picture = stem.with_suffix(".png")
    save_plot(draw(summary), picture)
    texts = {
        ".json": json.dumps(summary, indent=2),
        ".md": f"{markdown(summary)}\n\n![The same as curves]({picture.name})",
    }
    for suffix, text in texts.items():
        with atomic_file(stem.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n")


def draw(summary: dict[str, Any]) -> Figure:
    """A row of panels for each task, a panel for each experiment, a dot for each run, a line for the means.

    The vertical axis is the gain in PSNR (dB) over the start, the same along a row.
    """
    tasks, experiments = summary["settings"]["tasks"], summary["experiments"]
    size = (3.6 * len(experiments), 2.8 * len(tasks))
    drawn, axes = figure(*size, nrows=len(tasks), ncols=len(experiments), sharex="col", sharey="row", squeeze=False)
    for task, panels in zip(tasks, axes, strict=True):
        for (name, rows), panel in zip(experiments.items(), panels, strict=True):
            _draw(panel, name, rows, summary, task)
        panels[0].set_ylabel(f"{task}: gain over start, dB")
    drawn.suptitle(f"Ablations at {summary['settings']['size']} scale", fontsize=11)
    return drawn


COLOURS = {"ipt": "#2a6fb5", "edsr": "#d1662a"}


def _draw(panel: Any, name: str, rows: Sequence[dict[str, Any]], summary: dict[str, Any], task: str) -> None:
    """One panel."""
    experiment, start = EXPERIMENTS[name], summary["start"][task]
    for network, colour in COLOURS.items():
        mine = [r for r in rows if r["variant"]["network"] == network]
        ticks = [r["setting"].removeprefix(f"{network.upper()} ") for r in mine]
        panel.plot(ticks, [r["psnr"][task] - start for r in mine], color=colour, linewidth=1.5, label=network.upper())
        for run in summary["runs"]:
            if run["variant"]["network"] == network and experiment.includes(run["variant"]):
                tick = experiment.setting(run["variant"]).removeprefix(f"{network.upper()} ")
                panel.plot(tick, run["psnr"][task] - start, "o", color=colour, markersize=4, alpha=0.7)
    panel.set_title(experiment.title.split(",")[0], fontsize=9)
    panel.margins(x=0.1)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", visible=False)
    if name == "data":
        panel.legend(frameon=False, fontsize=8)
