"""Pre-training: all tasks of an IPT at once, from synthetic degradations of clean photographs.

    ipt-train pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h
    ipt-train pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h --resume
    ipt-train pretrain --data photos --output runs/more --start weights/ipt-tiny --time-budget 2h --lr 3e-4
    ipt-train pretrain --data photos --output runs/all --start weights/ipt-tiny --tasks all --time-budget 10h
    torchrun --nproc-per-node 8 -m ipt_triton.train pretrain --data imagenet --workers 12 --output runs/ipt \
        --preset ipt --batch 32 --schedule paper --steps 1500000 --compile

As in the paper (section 3.2) every step belongs to one task drawn at random and trains that task's head, tail and
embedding with the shared body; `--task-sampling sample` draws a task for each crop instead. The loss is L1, plus
`--contrastive` times the paper's contrastive loss. Training starts from the identity (`identity_start`) or, with
`--start`, from the weights of a checkpoint; tasks that it lacks start from its most similar ones. It runs Adam with
warm-up and a cosine schedule over the steps or the time given, and averages the weights (EMA). With `--schedule paper`
come the paper's learning rate, contrastive loss, noise of the nominal strength alone, and crops from anywhere.

`--output` receives `checkpoint/` (averaged weights, servable) and `state.pt` (everything that `--resume` needs), both
replaced atomically every few minutes, at the end, and on SIGINT or SIGTERM. The presets `edsr*`, `rdn*` and `ignn*`
train a convolutional rival behind the same trainer; their result is `state.pt` alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ipt_triton.cli import make_parser
from ipt_triton.tasks import KNOWN_TASKS, OFFICIAL_TASKS, Task, find_task
from ipt_triton.train.fit.command import add_arguments, check_arguments, read_parent, run, run_training
from ipt_triton.train.fit.recipe import Recipe
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.model.ipt import IPT, POSITIONS, PRESETS, Network, preset
from ipt_triton.train.model.start import identity_start, with_tasks
from ipt_triton.train.rivals.presets import RIVAL_PRESETS, untrained

PRESET = "ipt-tiny"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("ipt-train pretrain", __doc__ or "")
    add = parser.add_argument
    add("--preset", choices=sorted([*PRESETS, *RIVAL_PRESETS]), help=f"(default {PRESET})")
    add("--start", type=Path, metavar="CHECKPOINT", help="start from its weights, with its architecture")
    add("--position", choices=POSITIONS, help="how a token's place is told, for ablations (default learned)")
    add(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names or ids, or `all`; by default those of --start, or the paper's six",
    )
    add_arguments(parser, "pretrain")
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    if not arguments.data:
        parser.error("on what? give --data")
    if arguments.start:
        for name in ("preset", "position"):
            if getattr(arguments, name):
                parser.error(f"--{name} is decided by the checkpoint of --start: leave it out")
    else:
        arguments.preset = arguments.preset or PRESET
    convolutional = arguments.preset in RIVAL_PRESETS
    if convolutional and arguments.contrastive is None:
        arguments.contrastive = 0.0
    recipe = Recipe.from_arguments(arguments)
    if recipe.contrastive < 0:
        parser.error(f"--contrastive {recipe.contrastive} is not allowed: it must not be negative")
    if recipe.contrastive and min(recipe.batch) < 2:
        parser.error("the contrastive loss compares images: give --batch 2 or more, or --contrastive 0")
    if convolutional and (arguments.contrastive or arguments.position or arguments.activation_checkpointing):
        parser.error(
            "--contrastive, --position and --activation-checkpointing are about transformers, and "
            f"{arguments.preset} is not one"
        )
    return arguments


def new_model(arguments: argparse.Namespace, tasks: Sequence[Task]) -> Network:
    """The untrained model, its weights decided by --seed."""
    torch.manual_seed(arguments.seed)
    if arguments.preset in RIVAL_PRESETS:
        return untrained(replace(RIVAL_PRESETS[arguments.preset], tasks=tuple(tasks)))
    config = preset(arguments.preset, tasks)
    return identity_start(IPT(replace(config, position=arguments.position or config.position)))


def choose_tasks(names: Sequence[str] | None, of_start: Sequence[Task] = ()) -> Sequence[Task]:
    """The tasks that are asked for, by name or id: those of a checkpoint come before those of the project.

    Raises:
        TaskError: an unknown task, or a checkpoint's with the id of another one.
    """
    if names is None:
        return of_start or OFFICIAL_TASKS
    known = (*of_start, *(t for t in KNOWN_TASKS if t.name not in [o.name for o in of_start]))
    return known if names == ["all"] else [find_task(known, name) for name in names]


def pretrain(arguments: argparse.Namespace, runtime: Runtime) -> None:
    """The run that the arguments describe."""
    model: Network
    if arguments.start:
        parent, origin = runtime.in_all(lambda: read_parent(arguments.start))
        torch.manual_seed(arguments.seed)
        model = with_tasks(parent, choose_tasks(arguments.tasks, parent.config.tasks))
    else:
        model, origin = new_model(arguments, choose_tasks(arguments.tasks)), {"preset": arguments.preset}
    weights = {find_task(model.config.tasks, name).name: weight for name, weight in arguments.weights}
    provenance = {"trainer": "train.fit.pretrain", **origin}
    run(arguments, runtime, model, model.config.tasks, provenance, weights=weights)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done or stopped and saved, 1 failed, 2 wrong arguments or data."""
    return run_training(parse_arguments(argv), pretrain)
