"""Fine-tuning: one task of a checkpoint, known to it or new, on photographs or on pairs.

    ipt-train finetune weights/ipt-tiny --task denoise_30 --data photos --output runs/d30 --time-budget 30m
    ipt-train finetune weights/ipt-tiny --task dejpeg --freeze-body --data photos --output runs/jpeg --steps 999
    ipt-train finetune weights/ipt-tiny --task denoise_70 --degradation denoise --sigma 70 --freeze-body \
        --data photos --output runs/d70 --steps 5000
    ipt-train finetune weights/ipt-tiny --task dehaze --paired hazy clear --output runs/dehaze --steps 5000

With `--freeze-body` head, embedding and tail of the task are trained alone; the new checkpoint holds all tasks, and
what was there before is untouched bit for bit. Without it the body changes, which fits the other tasks no longer: the
new checkpoint holds the fine-tuned task alone, with a body of its own.

A new task starts from the head of the checkpoint's most similar task, and from its tail if that has the same scale. Its
id is the next free one, unless `--id` is given. The loss is L1, the learning rate 2e-4, or 2e-5 for official weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ipt_triton.cli import make_parser
from ipt_triton.tasks import KINDS, KNOWN_TASKS, SCALES, Task, TaskError, find_task
from ipt_triton.train.fit.command import add_arguments, check_arguments, read_parent, run, run_training
from ipt_triton.train.fit.runtime import Runtime
from ipt_triton.train.model.start import with_tasks

LEARNING_RATE, OFFICIAL_LEARNING_RATE = 2e-4, 2e-5  # the paper's for its fine-tuning
DESCRIPTION = ("id", "degradation", "scale", "sigma", "quality")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("ipt-train finetune", __doc__ or "")
    add = parser.add_argument
    add("checkpoint", type=Path, help="checkpoint folder")
    add("--task", required=True, help="name or id; a new name adds a task")
    add("--paired", type=Path, nargs=2, metavar=("DEGRADED", "CLEAN"), help="folders with pairs of the same names")
    add("--id", type=int, help="of a new task (default the next free one)")
    add("--degradation", choices=KINDS, help="of a new task (with --paired: default paired)")
    add("--scale", type=int, choices=SCALES, help="of a new task (default 1)")
    add("--sigma", type=float, help="of a new task: of its noise (0..255) or blur (pixels)")
    add("--quality", type=int, help="of a new task: of JPEG, 1 to 100")
    add_arguments(parser, "finetune")
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    if bool(arguments.data) == bool(arguments.paired):
        parser.error("on what? give either --data or --paired")
    if arguments.paired and arguments.workers:
        parser.error("pairs are kept in memory: leave out --workers")
    return arguments


def describe_task(arguments: argparse.Namespace, known: Sequence[Task]) -> Task:
    """The task to train: one of the checkpoint's, or a new one from the arguments or from the tasks of the project.

    Raises:
        TaskError: a known task described anew, a new one without a description, or one that cannot be.
    """
    given = {name: getattr(arguments, name) for name in DESCRIPTION if getattr(arguments, name) is not None}
    if any(arguments.task in (t.name, str(t.id)) for t in known):
        task = find_task(known, arguments.task)
        if given:
            options = ", ".join(f"--{name}" for name in given)
            raise TaskError(f"the checkpoint has a task {task.id} {task.name} already; leave out {options}")
        return task
    number = given.pop("id", max(t.id for t in known) + 1)
    if any(t.id == number for t in known):
        raise TaskError(f"--id {number} is taken by {find_task(known, number).name}; choose another")
    kind = given.pop("degradation", None)
    if kind is None and not given:
        for task in KNOWN_TASKS:
            if task.name == arguments.task:
                return replace(task, id=number)
    if kind is None and not arguments.paired:
        raise TaskError(
            f"{arguments.task} is new to the checkpoint; describe it: --degradation and its --scale or --sigma"
        )
    return Task(number, arguments.task, kind or "paired", **given)


def finetune(arguments: argparse.Namespace, runtime: Runtime) -> None:
    """The run that the arguments describe."""
    parent, provenance = runtime.in_all(lambda: read_parent(arguments.checkpoint))
    task = describe_task(arguments, parent.config.tasks)
    torch.manual_seed(arguments.seed)
    others = [t for t in parent.config.tasks if t.name != task.name] if arguments.freeze_body else []
    model = with_tasks(parent, [*others, task])
    if arguments.freeze_body:
        model.requires_grad_(False)
        for part in (model.heads[task.name], model.tails[task.name]):
            part.requires_grad_(True)
    provenance = {"trainer": "train.fit.finetune", "task": task.name, **provenance}
    official = "importer" in provenance["parent"]["provenance"]
    lr = arguments.lr or (OFFICIAL_LEARNING_RATE if official else LEARNING_RATE)
    run(arguments, runtime, model, [task], provenance, lr=lr, contrastive=0.0)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done or stopped and saved, 1 failed, 2 wrong arguments or data."""
    return run_training(parse_arguments(argv), finetune)
