"""What the trainer costs: its patches per second against a bare loop of forward, backward and optimiser step.

    ipt-benchmark training --preset ipt-tiny --batch 16
    ipt-benchmark training --preset ipt --batch 64 --compile --device cuda --json build/training.json

The bare loop gets random tensors of the same shapes, ready-made on the device, and does nothing else: no crops,
degradations, averaged weights, clipping or figures. Both train the same tasks in the same order, in turns in one
run; the figure is the ratio of the medians. `--contrastive` adds that loss to the trainer alone and shows its price.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ipt_triton.benchmarks.presentation import Figure, error_bars, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import add_precision
from ipt_triton.train.data.feed import Crops, MemoryFeed, Part, Store, parts_from
from ipt_triton.train.data.pool import Pool
from ipt_triton.train.fit.loop import Trainer
from ipt_triton.train.fit.losses import run_body
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.model.ipt import IPT, PRESETS, IPTConfig, preset
from ipt_triton.train.model.start import identity_start

LOOPS = {"trainer": "ipt-train's trainer", "bare": "bare loop"}
PHOTOGRAPHS, SIDE = 16, 512  # of the pool that the trainer cuts crops from


def open_trainer(
    recipe: Recipe, config: IPTConfig, device: torch.device, compiled: bool = False
) -> tuple[Trainer, Iterator[list[Crops]]]:
    """The project's trainer of a new model, and batches for it from photographs that are noise."""
    torch.manual_seed(recipe.seed)
    trainer = Trainer(identity_start(IPT(config)), recipe, Runtime(device), config.tasks, compiled=compiled)
    random = np.random.default_rng(0)
    photographs = [random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(PHOTOGRAPHS)]
    store = Store(Pool(photographs, [str(i) for i in range(PHOTOGRAPHS)]), device)
    feed = MemoryFeed(store, recipe.sampler(config.tasks), config.patch_size)
    return trainer, feed.batches(parts_from(0, 1, recipe.crops))


def trainer_steps(recipe: Recipe, name: str, device: torch.device, compiled: bool) -> Callable[[int], None]:
    """A function that runs this many steps of the project's trainer and waits for them."""
    trainer, batches = open_trainer(recipe, preset(name), device, compiled)

    def run(count: int) -> None:
        for _ in range(count):
            trainer.train_step(batches)
        trainer.collect_figures()

    return run


def bare_steps(recipe: Recipe, name: str, device: torch.device, compiled: bool) -> Callable[[int], None]:
    """A function that runs this many steps of a bare loop over the same tasks and waits for them."""
    torch.manual_seed(recipe.seed)
    model = identity_start(IPT(preset(name))).to(device)
    body = torch.compile(run_body) if compiled else run_body
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    sampler = recipe.sampler(model.config.tasks)
    patch = model.config.patch_size
    (batch,) = recipe.batch
    inputs = 255 * torch.rand(batch, 3, patch, patch, device=device)
    sides = {t.scale * patch for t in model.config.tasks}
    targets = {s: 255 * torch.rand(batch, 3, s, s, device=device) for s in sides}
    done = 0

    def run(count: int) -> None:
        nonlocal done
        for _ in range(count):
            ((task, _),) = sampler.groups(Part(done, 0, batch))
            done += 1
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                restored = model.tails[task.name](body(model.body, *model.heads[task.name](inputs))[0])
            F.l1_loss(restored.float(), targets[task.scale * patch]).backward()
            optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def time_loops(runs: dict[str, Callable[[int], None]], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds for `steps` steps of each, `rounds` times in turns, after a round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = seconds_of(partial(run, steps))
            if number:
                times[name].append(seconds)
    return times


def markdown(record: Record) -> str:
    """Patches per second of both loops, and their ratio."""
    figures = record.figures
    rates = {name: figures["patches_per_s"][name] for name in LOOPS}
    rows = [(LOOPS[name], quartiles(rate)) for name, rate in rates.items()]
    ratio = rates["trainer"]["median"] / rates["bare"]["median"]
    return (
        f"{_setting(figures)}, {figures['device']}, {figures['threads']} threads; {rates['bare']['runs']} rounds of "
        f"{figures['steps']} steps of each in turns. Trainer : bare loop = **{ratio:.3f}**.\n\n"
        + table(("loop", "patches/s, median [quartiles]"), rows)
    )


def draw(record: Record) -> Figure:
    """Patches per second of both loops."""
    drawn, ax = figure(6, 2.4)
    rates = [record.figures["patches_per_s"][name] for name in LOOPS]
    medians = [rate["median"] for rate in rates]
    ax.barh(list(LOOPS.values()), medians, 0.6, xerr=error_bars(rates), capsize=4, color=["C0", "C7"])
    ax.invert_yaxis()
    ax.set(xlabel="training patches per second", title=_setting(record.figures))
    return drawn


def _setting(figures: dict[str, Any]) -> str:
    extra = f", contrastive loss {figures['contrastive']:g}" if figures["contrastive"] else ""
    compiled = ", compiled" if figures["compiled"] else ""
    return f"{figures['preset']} in {figures['precision']}, batch {figures['batch']}{extra}{compiled}"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    device = torch.device(arguments.device)
    recipe = Recipe(
        steps=10**9, batch=(arguments.batch,), precision=arguments.precision, contrastive=arguments.contrastive, lr=1e-6
    )
    common = (recipe, arguments.preset, device, arguments.compile)
    loops = {"trainer": trainer_steps(*common), "bare": bare_steps(*common)}
    times = time_loops(loops, arguments.steps, arguments.rounds)
    patches = arguments.steps * arguments.batch
    return {
        **{name: getattr(arguments, name) for name in ("preset", "batch", "steps", "precision", "contrastive")},
        "compiled": arguments.compile,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "patches_per_s": {name: asdict(Spread.of([patches / t for t in values])) for name, values in times.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("training", __doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ipt-tiny", help="(default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--steps", type=int, default=12, help="in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    add_precision(parser, "bf16")
    parser.add_argument("--contrastive", type=float, default=0.0, metavar="λ", help="for the trainer (default 0)")
    parser.add_argument("--compile", action="store_true", help="torch.compile both bodies")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(argv)
    return run_benchmark("training", argv, arguments, measure, markdown, draw, ("torch", "numpy"))
