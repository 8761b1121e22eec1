"""Memory of a training step with and without activation checkpointing: its peak, and what each part of the model keeps.

    ipt-benchmark training_memory --preset ipt
    ipt-benchmark training_memory --preset ipt-small --batch 8 --precision fp32 --json build/training_memory.json

Each row is a process of its own that runs the project's trainer on the CPU. Its peak is the one that Linux keeps of
resident memory (VmHWM), less what was resident before the model was made: workspaces of libraries are in it, and what
the allocator holds back. What the forward pass keeps for the backward pass is counted from its tensors, each storage
once. Weights themselves are left out of it; their copies in BF16 have a line of their own. Seconds are those that the
process computes in a step after the first, over all threads: other work on the machine hardly changes them.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ipt_triton.benchmarks.compute.training import open_trainer
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_precision
from ipt_triton.tasks import OFFICIAL_TASKS, find_task
from ipt_triton.train.fit.losses import Group, Objective
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.model.ipt import IPT, PRESETS, EncoderLayer, preset

MIB = 2**20
FOR_EACH = 5 * 4  # bytes of FP32 for each parameter: weight, gradient, two moments of Adam, average
REST = "rest of the body, loss"
PARTS = ("head", "encoder layer", "decoder layer", REST, "tail")
COPIES = "copies of weights in BF16"
WAYS = {False: "without", True: "with activation checkpointing"}


def sizes_of(model: IPT) -> dict[str, dict[str, int]]:
    """By part of the model how many there are of it, and their parameters together."""
    modules: dict[str, list[nn.Module]] = {
        "head": [*model.heads.values()],
        "encoder layer": [*model.body.encoder],
        "decoder layer": [*model.body.decoder],
        "tail": [*model.tails.values()],
    }
    sizes = {part: {"count": len(of_it), "parameters": sum(map(_parameters, of_it))} for part, of_it in modules.items()}
    rest = _parameters(model) - sum(size["parameters"] for size in sizes.values())
    return {**sizes, REST: {"count": 1, "parameters": rest}}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def kept_bytes(objective: Objective, groups: Sequence[Group]) -> dict[str, int]:
    """Bytes that a forward pass keeps for its backward pass, by part of the model, and as copies of weights."""
    model = objective.model
    weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = Counter(dict.fromkeys((*PARTS, COPIES), 0))
    seen: set[int] = set()
    places = [REST]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights | seen:
            seen.add(storage.data_ptr())
            kept[COPIES if _is_of_one_weight(tensor) else places[-1]] += storage.nbytes()
        return tensor

    def enter(part: str, *_: object) -> None:
        places.append(part)

    def leave(*_: object) -> None:
        places.pop()

    def run(layer: nn.Module, *inputs: Tensor) -> Tensor:
        """A layer, and what activation checkpointing keeps before it calls the layer."""
        enter("encoder layer" if isinstance(layer, EncoderLayer) else "decoder layer")
        output = run_layer(layer, *inputs)
        leave()
        return output

    run_layer, objective.run_layer = objective.run_layer, run
    ends = [("head", module) for module in model.heads.values()] + [("tail", module) for module in model.tails.values()]
    hooks = [module.register_forward_pre_hook(partial(enter, part)) for part, module in ends]
    hooks += [module.register_forward_hook(leave) for _, module in ends]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        objective(groups)
    objective.run_layer = run_layer
    for hook in hooks:
        hook.remove()
    return dict(kept)


def _is_of_one_weight(tensor: Tensor) -> bool:
    """Whether a tensor was made from a parameter and nothing else, as its copy in another type is."""
    node = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is not None and not node.next_functions


def measure_step(name: str, task: str, recipe: Recipe, steps: int) -> dict[str, Any]:
    """A row of the record; of this process nothing else may have trained."""
    config = preset(name, [find_task(OFFICIAL_TASKS, task)])
    before = resident("VmRSS")
    trainer, batches = open_trainer(recipe, config, torch.device("cpu"))
    assert isinstance(trainer.objective, Objective)  # one process wraps nothing around it

    def step() -> None:
        trainer.train_step(batches)
        trainer.collect_figures()

    step()
    clock = [time.process_time()]
    for _ in range(steps):
        step()
        clock.append(time.process_time())
    peak = resident("VmHWM") - before
    (batch,), side, scale = recipe.batch, config.patch_size, config.tasks[0].scale
    crops = Group(task, 255 * torch.rand(batch, 3, side, side), 255 * torch.rand(batch, 3, side * scale, side * scale))
    return {
        "batch": batch,
        "activation_checkpointing": recipe.activation_checkpointing,
        "peak": peak,
        "cpu_seconds": asdict(Spread.of([later - earlier for earlier, later in pairwise(clock)])),
        "kept": kept_bytes(trainer.objective, [crops]),
    }


def resident(field: str) -> int:
    """Bytes of this process's memory: `VmRSS`, what is resident, or `VmHWM`, the most that ever was."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    rows = []
    for batch in arguments.batch:
        for checkpointing in WAYS:
            recipe = Recipe(
                steps=10**9,
                batch=(batch,),
                lr=1e-6,
                precision=arguments.precision,
                activation_checkpointing=checkpointing,
            )
            step = partial(measure_step, arguments.preset, arguments.task, recipe, arguments.steps)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                rows.append(fresh.submit(step).result())
    return {
        **{name: getattr(arguments, name) for name in ("preset", "task", "steps", "precision")},
        "threads": torch.get_num_threads(),
        "parts": sizes_of(IPT(preset(arguments.preset, [find_task(OFFICIAL_TASKS, arguments.task)]))),
        "rows": rows,
    }


def markdown(record: Record) -> str:
    """Peaks and times by batch, and what the parts of the model hold."""
    figures = record.figures
    parts = figures["parts"]
    whole = sum(part["parameters"] for part in parts.values())
    peaks = [
        (
            row["batch"],
            WAYS[row["activation_checkpointing"]],
            _mib(row["peak"]),
            _mib(sum(row["kept"].values())),
            quartiles(row["cpu_seconds"]),
        )
        for row in figures["rows"]
    ]
    batch, kept = _of_the_largest_batch(figures)
    held = [
        (
            part,
            parts[part]["count"],
            f"{parts[part]['parameters'] / 1e6:.2f}",
            _mib(FOR_EACH * parts[part]["parameters"]),
            *(f"{kept[way][part] / batch / MIB:.1f}" for way in WAYS),
        )
        for part in PARTS
    ]
    copies = (COPIES, "", "", "", *(f"{kept[way][COPIES] / MIB:.0f} in all" for way in WAYS))
    return (
        f"{_setting(figures)}, {figures['threads']} threads, {figures['steps']} steps. {whole / 1e6:.1f} M parameters; "
        f"with gradients, moments of Adam and averages, all in FP32, they take {_mib(FOR_EACH * whole)} MiB.\n\n"
        + table(("batch", "layers", "peak, MiB", "kept for the backward pass, MiB", "CPU s a step [quartiles]"), peaks)
        + "\n\n"
        + table(
            (
                "part",
                "of them",
                "parameters, M",
                "with gradients, Adam, averages, MiB",
                "kept a crop, MiB",
                "with checkpointing",
            ),
            [*held, copies],
        )
    )


def draw(record: Record) -> Figure:
    """Peaks by batch, and what is kept for each crop by part, both with and without checkpointing."""
    figures = record.figures
    drawn, (left, right) = figure(9, 3.6, ncols=2)
    batches = sorted({row["batch"] for row in figures["rows"]})
    for number, (way, label) in enumerate(WAYS.items()):
        peaks = {r["batch"]: r["peak"] / MIB for r in figures["rows"] if r["activation_checkpointing"] is way}
        places = [place + 0.4 * number - 0.2 for place in range(len(batches))]
        left.bar(places, [peaks[batch] for batch in batches], 0.4, label=label)
    left.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    left.set(xlabel="crops in a step", ylabel="peak, MiB", title=_setting(figures))
    left.margins(y=0.25)
    left.legend(frameon=False, loc="upper left")
    batch, kept = _of_the_largest_batch(figures)
    below = [0.0] * len(WAYS)
    for part in PARTS:
        heights = [kept[way][part] / batch / MIB for way in WAYS]
        right.bar(["without", "with"], heights, 0.6, bottom=below, label=part)
        below = [b + h for b, h in zip(below, heights, strict=True)]
    right.set(xlabel="activation checkpointing", ylabel="kept, MiB a crop")
    right.legend(frameon=False)
    return drawn


def _of_the_largest_batch(figures: dict[str, Any]) -> tuple[int, dict[bool, dict[str, int]]]:
    """It, and what its steps keep, without and with checkpointing."""
    batch = max(row["batch"] for row in figures["rows"])
    return batch, {r["activation_checkpointing"]: r["kept"] for r in figures["rows"] if r["batch"] == batch}


def _setting(figures: dict[str, Any]) -> str:
    return f"{figures['preset']}, {figures['task']}, {figures['precision']}"


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("training_memory", __doc__)
    names = [task.name for task in OFFICIAL_TASKS]
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ipt", help="(default %(default)s)")
    parser.add_argument("--task", choices=names, default="sr_x4", help="(default %(default)s, of the largest tail)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 16], metavar="N", help="(default 1 2 4 16)")
    parser.add_argument("--steps", type=int, default=3, help="that are measured (default %(default)s)")
    add_precision(parser, "bf16")
    arguments = parser.parse_args(argv)
    if min(*arguments.batch, arguments.steps) < 1:
        parser.error("--batch and --steps must be at least 1")
    return run_benchmark("training_memory", argv, arguments, measure, markdown, draw, ("torch",))
