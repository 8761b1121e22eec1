"""What the ablations say: tables and plots of the finished experiments, differences beside their spread over the seeds.

Runs of one seed see the same crops with the same noise. So settings are compared seed by seed: a difference is the mean
over the seeds of the differences within each, its spread is the standard error of that mean, and it is more than noise
if Student's t test says so at 5 %.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ipt_triton.benchmarks.ablations.experiments import EXPERIMENTS, SHARES, Variant
from ipt_triton.benchmarks.errors import ReportError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, save_plot, table
from ipt_triton.files import atomic_file

Result = dict[str, Any]

CRITICAL = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
"""Standard errors that a mean of so many values must be from 0 to differ from it (Student's t, two sides, 5 %)."""


def summarise(results: Sequence[Result], seeds: int, machine: dict[str, Any]) -> dict[str, Any]:
    """The experiments of which every setting has run with the first `seeds` seeds, and how far the others are.

    Raises:
        ReportError: no experiment is finished, or runs with different settings.
    """
    if not results:
        raise ReportError("no run is finished yet")
    settings = results[0]["settings"]
    if any(r["settings"] != settings for r in results):
        raise ReportError("the runs have different settings; report each kind from a folder of its own")
    known = {Variant(**r["variant"]): r for r in results}
    experiments, unfinished, used = {}, {}, {}
    for name, experiment in EXPERIMENTS.items():
        wanted = [replace(setting, seed=seed) for setting in experiment.settings for seed in range(seeds)]
        there = {v: known[v] for v in wanted if v in known}
        if len(there) < len(wanted):
            unfinished[name] = {"runs": len(there), "of": len(wanted)}
            continue
        used.update(there)
        experiments[name] = [_row(name, setting, seeds, there) for setting in experiment.settings]
    if not experiments:
        counts = ", ".join(f"{name} {n['runs']} of {n['of']} runs" for name, n in unfinished.items())
        raise ReportError(f"no experiment is finished with {seeds} seeds yet: {counts}")
    summary = {
        "settings": settings,
        "machine": machine,
        "seeds": seeds,
        "patches": results[0]["patches"],
        "start": results[0]["start"],
        "experiments": experiments,
        "unfinished": unfinished,
    }
    return {**summary, "conclusions": _conclusions(summary), "runs": list(used.values())}


def _row(name: str, setting: Variant, seeds: int, results: Mapping[Variant, Result]) -> dict[str, Any]:
    """A setting: its cost, its PSNR by measure with that of each seed, and its difference from the reference."""
    experiment = EXPERIMENTS[name]
    reference = experiment.reference(setting)
    own, others = ([results[replace(v, seed=seed)] for seed in range(seeds)] for v in (setting, reference))
    psnr, compared = (_columns(runs) for runs in (own, others))
    row = {
        "setting": experiment.label(setting),
        "network": setting.network,
        "share": setting.share,
        "photographs": own[0]["photographs"],
        "parameters": own[0]["parameters"],
        "megamacs": fmean(own[0]["megamacs"].values()),
        "psnr": {measure: round(fmean(values), 3) for measure, values in psnr.items()},
        "per_seed": psnr,
    }
    if setting != reference:
        row["reference"] = experiment.label(reference)
        row["difference"] = {m: _difference(psnr[m], compared[m]) for m in psnr if m in compared}
    return row


def _columns(runs: Sequence[Result]) -> dict[str, list[float]]:
    """PSNR of each run by measure: the tasks and, where a test set was measured, the set with each task."""
    rows = []
    for run in runs:
        evaluated = run.get("eval", {"set": "", "psnr_y": {}})
        rows.append({**run["psnr"], **{f"{evaluated['set']} {t}, Y": v for t, v in evaluated["psnr_y"].items()}})
    return {m: [row[m] for row in rows] for m in rows[0] if all(m in row for row in rows)}


def _difference(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Mean difference (dB) over the seeds; with several, its standard error and whether it is more than noise."""
    apart = [value - other for value, other in zip(values, others, strict=True)]
    mean, error = fmean(apart), _standard_error(apart)
    if error is None:
        return {"mean": round(mean, 3), "error": None, "clear": None}
    clear = abs(mean) > CRITICAL[min(len(apart), max(CRITICAL))] * error
    return {"mean": round(mean, 3), "error": round(error, 3), "clear": clear}


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of the values; None for one value alone."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _shown(difference: Mapping[str, Any]) -> str:
    spread = "" if difference["error"] is None else f" ± {difference['error']:.2f}"
    return f"{difference['mean']:+.2f}{spread}".replace("-", "−")


def _conclusions(summary: dict[str, Any]) -> list[str]:
    """For each experiment and task: which settings differ from the reference by more than noise, and which may not.

    Of shares also what each network gains from the smallest to the largest.
    """
    lines = []
    for name, rows in summary["experiments"].items():
        for task in summary["settings"]["tasks"]:
            for reference, mine in grouped((r for r in rows if "difference" in r), lambda r: r["reference"]).items():
                verdicts = {None: "from one seed", True: "more than noise", False: "may be noise"}
                told = [
                    f"{verdict}: " + ", ".join(f"{r['setting']} {_shown(r['difference'][task])}" for r in same)
                    for clear, verdict in verdicts.items()
                    if (same := [r for r in mine if r["difference"][task]["clear"] is clear])
                ]
                lines.append(f"{EXPERIMENTS[name].title}, {task}, dB from {reference}: {'; '.join(told)}.")
            if name == "data":
                gains = [
                    f"{network.upper()} {_shown(_difference(mine[-1]['per_seed'][task], mine[0]['per_seed'][task]))}"
                    for network, mine in grouped(rows, lambda r: r["network"]).items()
                ]
                shares = f"{100 * SHARES[0]:.0f} to {100 * SHARES[-1]:.0f} %"
                lines.append(f"{EXPERIMENTS[name].title}, {task}, dB gained from {shares}: {', '.join(gains)}.")
    return lines


def markdown(summary: dict[str, Any], plots: Mapping[str, str] | None = None) -> str:
    """The summary as a Markdown page; PSNR in dB.

    Args:
        plots: file names of plots by experiment.
    """
    settings = summary["settings"]
    lines = [
        f"# Ablations at {settings['size']} scale",
        "",
        f"{settings['steps']} steps of {settings['batch']} crops ({summary['patches']} patches), peak learning rate "
        f"{settings['lr']:g}, seeds: {summary['seeds']}, the project's trainer from a start as bicubic interpolation. "
        f"{settings['device'].upper()}, torch {summary['machine']['torch']}. PSNR (RGB, dB) over the middles of "
        "photographs held out, the mean over the seeds. In brackets the difference from the published IPT (for shares: "
        "with the same share) ± its standard error over the seeds. **Networks of this size trained this briefly say "
        "nothing about the paper's.**",
        "",
        f"Before training: {', '.join(f'{t} {psnr:.2f}' for t, psnr in summary['start'].items())}.",
    ]
    for name, rows in summary["experiments"].items():
        measures = [m for m in rows[0]["psnr"] if all(m in row["psnr"] for row in rows)]
        header = ["setting", "photographs", "parameters, K", "multiply-adds, M", *measures]
        body = [
            [
                row["setting"],
                row["photographs"],
                f"{row['parameters'] / 1e3:.0f}",
                f"{row['megamacs']:.1f}",
                *(
                    f"{row['psnr'][m]:.2f}" + (f" ({_shown(row['difference'][m])})" if "difference" in row else "")
                    for m in measures
                ),
            ]
            for row in rows
        ]
        lines += ["", f"## {EXPERIMENTS[name].title}", "", table(header, body)]
        if plots:
            lines += ["", f"![{EXPERIMENTS[name].title}]({plots[name]})"]
    lines += ["", "## What they say", ""]
    lines += ["More than noise: Student's t test of the differences, seed by seed, at 5 %.", ""]
    lines += [f"- {line}" for line in summary["conclusions"]]
    if summary["unfinished"]:
        counts = ", ".join(f"{name} ({n['runs']} of {n['of']} runs)" for name, n in summary["unfinished"].items())
        lines += ["", f"Not finished: {counts}."]
    return "\n".join(lines)


def write_report(summary: dict[str, Any], stem: Path) -> None:
    """Write `stem`.json, `stem`.md and for each experiment `stem`-NAME.png.

    Raises:
        ReportError: matplotlib is not installed.
    """
    plots = {name: f"{stem.name}-{name}.png" for name in summary["experiments"]}
    for name, picture in plots.items():
        save_plot(draw(summary, name), stem.parent / picture)
    for suffix, text in ((".json", json.dumps(summary, indent=2)), (".md", markdown(summary, plots))):
        with atomic_file(stem.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n")


COLOURS = {"ipt": "#2a6fb5", "edsr": "#d1662a", "rdn": "#3a8f5c", "ignn": "#8a4fa3"}


def draw(summary: dict[str, Any], name: str) -> Figure:
    """An experiment, a panel for each task: of shares the curves of the networks, else differences from the reference.

    A dot for each run, bars of one standard error on both sides of the means.
    """
    tasks, rows = summary["settings"]["tasks"], summary["experiments"][name]
    drawn, axes = figure(4.2 * len(tasks), 3.4, ncols=len(tasks), squeeze=False)
    for task, panel in zip(tasks, axes[0], strict=True):
        if name == "data":
            _draw_shares(panel, rows, task)
        else:
            _draw_differences(panel, rows, task)
        panel.set_title(task, fontsize=10)
        panel.tick_params(labelsize=8)
    drawn.suptitle(f"{EXPERIMENTS[name].title}, {summary['settings']['size']} scale", fontsize=11)
    return drawn


def _draw_differences(panel: Any, rows: Sequence[dict[str, Any]], task: str) -> None:
    """PSNR of each setting less that of the reference."""
    reference = next(row for row in rows if "difference" not in row)
    for place, row in enumerate(rows):
        colour = COLOURS[row["network"]]
        apart = [v - o for v, o in zip(row["per_seed"][task], reference["per_seed"][task], strict=True)]
        panel.plot([place] * len(apart), apart, "o", color=colour, markersize=4, alpha=0.5)
        panel.errorbar(place, fmean(apart), _standard_error(apart), fmt="_", markersize=14, capsize=4, color=colour)
    panel.axhline(0, color="#888888", linewidth=0.8)
    panel.set_xticks(range(len(rows)), [row["setting"] for row in rows])
    panel.set_ylabel(f"dB from {reference['setting']}")
    panel.margins(x=0.1)


def _draw_shares(panel: Any, rows: Sequence[dict[str, Any]], task: str) -> None:
    """PSNR over the share of data, a curve for each network."""
    for network, mine in grouped(rows, lambda r: r["network"]).items():
        shares, colour = [100 * row["share"] for row in mine], COLOURS[network]
        for share, row in zip(shares, mine, strict=True):
            runs = row["per_seed"][task]
            panel.plot([share] * len(runs), runs, "o", color=colour, markersize=3, alpha=0.4)
        errors = [_standard_error(row["per_seed"][task]) or 0 for row in mine]
        means = [row["psnr"][task] for row in mine]
        panel.errorbar(shares, means, errors, color=colour, capsize=3, linewidth=1.5, label=network.upper())
    panel.set_xticks([100 * share for share in SHARES])
    panel.set_xlabel("share of the photographs, %")
    panel.set_ylabel("PSNR, dB")
    panel.legend(frameon=False, fontsize=8)
