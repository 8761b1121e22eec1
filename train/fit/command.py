"""What `pretrain` and `finetune` share on their command lines: arguments, data, resumption, errors."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import ipt_triton.cli
from ipt_triton.files import atomic_file
from ipt_triton.tasks import Task, find_task
from ipt_triton.train.data.feed import Feed, MemoryFeed, Sampler, Store, WorkerFeed, wide_side
from ipt_triton.train.data.pool import load_pairs, load_pool
from ipt_triton.train.data.shares import split_files
from ipt_triton.train.errors import StateError, TrainingError, needs
from ipt_triton.train.fit.loop import Cadence, Trainer, train
from ipt_triton.train.fit.recipe import Recipe, parse_duration
from ipt_triton.train.fit.runtime import Runtime, open_runtime
from ipt_triton.train.fit.state import STATE, read_state
from ipt_triton.train.fit.store import RECIPE, RunStore
from ipt_triton.train.fit.validation import load_set
from ipt_triton.train.model.ipt import IPT, Network

if TYPE_CHECKING:
    from ipt_triton.train.fit.board import Board

logger = logging.getLogger(__name__)

HELD_OUT = 12  # photographs that are never trained on


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """The arguments of a training run: those of its recipe, and where data comes from, results go and work is done."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="folders of clean photographs, tar shards of them, or packed pools (.npz)",
    )
    add("--workers", type=int, metavar="N", help="decode in N processes instead of keeping all photographs in memory")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoint and state")
    add(
        "--store",
        metavar="URL",
        help="copy the run there at each save, and --resume from there, such as s3://bucket/run",
    )
    Recipe.add_arguments(parser, command)
    add("--resume", action="store_true", help="continue the run in --output; what torchrun starts again does so anyway")
    add("--compile", action="store_true", help="torch.compile the body")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--devices", type=int, default=1, metavar="N", help="train on N devices (Lightning Fabric; or use torchrun)")
    add("--interval", type=parse_duration, default=Cadence.save, metavar="TIME", help="between saves (default 3m)")
    add("--report", type=parse_duration, default=Cadence.report, metavar="TIME", help="between lines (default 30s)")
    add(
        "--validate",
        type=parse_set,
        nargs="+",
        default=(),
        metavar="TASK=DIR",
        help="test sets to measure at each save, by the field's protocol; they decide which checkpoint is the best",
    )
    add("--keep", type=int, default=Cadence.keep, metavar="N", help="keep the last N checkpoints in OUTPUT/steps")
    add("--tensorboard", action="store_true", help="write curves and samples to OUTPUT/tensorboard")


def parse_set(text: str) -> tuple[str, Path]:
    """`sr_x2=Set5` as name or id of a task, and the folder of a test set."""
    name, equals, folder = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not a test set of a task; write sr_x2=Set5")
    return name, Path(folder)


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with status 2 on values that no run can have."""
    if not arguments.steps and not arguments.seconds:
        parser.error("how long? give --steps or --time-budget")
    counts = {name: getattr(arguments, name) for name in ("steps", "accumulate", "devices", "workers", "busiest")}
    for name, value in [*counts.items(), *(("batch", size) for size in arguments.batch or ())]:
        if value is not None and value < 1:
            parser.error(f"--{name} {value} is not allowed: it must be at least 1")
    if not 0 < arguments.data_fraction <= 1:
        parser.error(f"--data-fraction {arguments.data_fraction} is not allowed: it must be above 0 and at most 1")
    if not 0 <= arguments.ema < 1:
        parser.error(f"--ema {arguments.ema} is not allowed: it must be at least 0 and below 1")


def read_parent(folder: Path) -> tuple[IPT, dict[str, Any]]:
    """The model that a run starts from, and what the run's provenance says of it.

    Raises:
        CheckpointError: it cannot be read.
        MissingPackage: safetensors is not installed.
    """
    with needs("safetensors", "a checkpoint"):
        from ipt_triton.train.model.checkpoint import load_checkpoint
    parent = load_checkpoint(folder)
    return parent.model, {"parent": {"sha256": parent.sha256, "provenance": parent.provenance}}


def open_data(
    arguments: argparse.Namespace, sampler: Sampler, patch_size: int, runtime: Runtime
) -> tuple[Feed, Store, dict[str, Any]]:
    """The feed of a run, a store of the photographs held out from it, and a description for the provenance.

    Of several processes with workers each reads its own share of the files and its own shards, so that none is read by
    two of them.

    Raises:
        DataError: nothing to train on.
    """
    min_side = max(wide_side(t, patch_size) for t in sampler.tasks)
    feed: Feed
    if arguments.workers:
        own, photographs, held_out = split_files(arguments.data, HELD_OUT, min_side, arguments.data_fraction, runtime)
        feed = WorkerFeed(own, sampler, patch_size, arguments.workers, runtime.device)
        description: dict[str, Any] = {"photographs": photographs}
    else:
        paired, scale = getattr(arguments, "paired", None), sampler.tasks[0].scale
        pool = load_pairs(paired[0], paired[1], scale, min_side) if paired else load_pool(arguments.data, min_side)
        training, held_out = pool.split(HELD_OUT)
        training = training.share(arguments.data_fraction)
        feed = MemoryFeed(Store(training, runtime.device), sampler, patch_size)
        description = {"photographs": len(training.images), "megapixels": round(training.megapixels, 1)}
        if paired:
            description["paired"] = True
    return feed, Store(held_out, runtime.device), {**description, "held_out": HELD_OUT}


def run(
    arguments: argparse.Namespace,
    runtime: Runtime,
    model: Network,
    trained: Sequence[Task],
    provenance: dict[str, Any],
    **decided: Any,
) -> None:
    """Train a model as the arguments say, from its weights or from the state in --output.

    Args:
        decided: fields of the recipe that the arguments do not give.

    Raises:
        DataError, StateError, TrainingError: as they say.
    """
    if arguments.precision == "auto":
        decided["precision"] = runtime.precision
    recipe = Recipe.from_arguments(arguments, processes=runtime.processes, **decided)
    if recipe.precision == "bf16" and runtime.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # the contrastive loss is computed in float32
    state, told = arguments.output / STATE, arguments.output / RECIPE
    store = open_store(arguments, runtime)
    there, own = runtime.from_first(lambda: (state.exists(), was_begun_by(runtime.launch, told)))
    resume = arguments.resume or (there and own)
    if there and not resume:
        raise TrainingError(f"{state} exists; add --resume to continue that run, or choose another --output")
    saved = runtime.in_all(lambda: read_state(state, runtime.device)) if resume else None
    steps = sorted(set(runtime.gather(saved["step"] if saved else 0)))
    if len(steps) > 1:
        raise StateError(f"the processes would go on from steps {steps}: give them one folder, or the same state.pt")
    machine = {"git_commit": git_commit(), "device": runtime.device.type, "torch": str(torch.__version__)}
    trainer = Trainer(model, recipe, runtime, trained, {**provenance, **machine}, arguments.compile)
    if saved is not None:
        trainer.load_state(saved)
    feed, held_out, description = runtime.in_all(
        lambda: open_data(arguments, recipe.sampler(trained), model.config.patch_size, runtime)
    )
    trainer.provenance["data"] = description
    sets = runtime.in_all(lambda: [load_set(folder, find_task(trained, name)) for name, folder in arguments.validate])
    runtime.in_all(lambda: write_recipe(told, trainer, arguments) if runtime.rank == 0 else None)
    shown = arguments.output / "tensorboard" if arguments.tensorboard and runtime.rank == 0 else None
    board = runtime.in_all(lambda: shown and open_board(shown))
    cadence = Cadence(arguments.report, arguments.interval, arguments.keep)
    train(trainer, feed, held_out, arguments.output, cadence, board, sets, store)


def open_store(arguments: argparse.Namespace, runtime: Runtime) -> RunStore | None:
    """The store of a run; what is in --output then is what the store has of it, on each machine.

    Raises:
        StateError, TrainingError: see `RunStore`.
    """
    if arguments.store is None:
        return None
    store = runtime.in_all(lambda: RunStore(arguments.store))
    is_continued = lambda told: arguments.resume or is_of(runtime.launch, told)  # noqa: E731
    runtime.in_all(lambda: store.begin(arguments.output, is_continued) if runtime.rank == 0 else None)
    first_here = os.environ.get("LOCAL_RANK", "0") == "0"
    runtime.in_all(lambda: store.fetch(arguments.output) if first_here else None)
    return store


def open_board(folder: Path) -> Board:
    """Curves and samples in a folder. Raises MissingPackage: TensorBoard is not installed."""
    with needs("tensorboard", "--tensorboard"):
        from ipt_triton.train.fit.board import Board
    return Board(folder)


def write_recipe(path: Path, trainer: Trainer, arguments: argparse.Namespace) -> None:
    """What the run does, in one file for people: its recipe, tasks, data and arguments."""
    said = {name: value for name, value in vars(arguments).items() if name not in {f.name for f in fields(Recipe)}}
    content = {"recipe": asdict(trainer.recipe), "tasks": [t.name for t in trainer.trained], "arguments": said}
    content["launch"] = trainer.runtime.launch
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**content, **trainer.provenance}, indent=2, default=str) + "\n")


def was_begun_by(launch: str, recipe: Path) -> bool:
    """Whether the last part of the run that a recipe tells of was begun by this torchrun, which starts it again now."""
    return recipe.exists() and is_of(launch, json.loads(recipe.read_text()))


def is_of(launch: str, recipe: dict[str, Any]) -> bool:
    """Whether a recipe was written by a process of this torchrun."""
    return bool(launch) and recipe.get("launch") == launch


def git_commit() -> str:
    """Commit of the source that runs, or `unknown` outside a repository."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return "unknown"
    return result.stdout.strip() or "unknown"


def run_training(arguments: argparse.Namespace, work: Callable[[argparse.Namespace, Runtime], None]) -> int:
    """Run a training command; returns its status: 0 done or stopped and saved, 1 failed, 2 wrong arguments or data."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    return ipt_triton.cli.run_command(lambda: work(arguments, open_runtime(arguments.device, arguments.devices)))
