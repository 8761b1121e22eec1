"""What `pretrain` and `finetune` share on their command lines: arguments, data, resumption, errors."""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ipt_triton.tasks import Task, TaskError
from ipt_triton.train.data.feed import Feed, MemoryFeed, Sampler, Store, WorkerFeed
from ipt_triton.train.data.pool import (
    PACKED,
    DataError,
    Pool,
    by_hash,
    check_enough,
    decode,
    find_photographs,
    load_pairs,
    load_pool,
    share,
)
from ipt_triton.train.fit.loop import Cadence, Trainer, TrainingError, train
from ipt_triton.train.fit.recipe import SCHEDULES, Recipe
from ipt_triton.train.fit.runtime import Runtime, RuntimeUnavailable, start
from ipt_triton.train.fit.state import StateError, read_state
from ipt_triton.train.model.ipt import IPT, ConfigError
from ipt_triton.train.rivals.edsr import EDSR

if TYPE_CHECKING:
    from ipt_triton.train.model.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

HELD_OUT = 12  # photographs that are never trained on


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `45m` or `2h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 45m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every training run."""
    defaults, cadence = Recipe(), Cadence()
    add = parser.add_argument
    add("--data", type=Path, nargs="+", metavar="DIR", help="folders of clean photographs, or packed pools (.npz)")
    add("--data-fraction", type=float, default=1.0, metavar="F", help="train on this share of them (default all)")
    add("--workers", type=int, metavar="N", help="decode in N processes instead of keeping all photographs in memory")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoint and state")
    add("--steps", type=int, help="optimiser steps")
    add("--time-budget", type=parse_duration, metavar="TIME", help="wall-clock time: 90s, 45m, 2h")
    add("--resume", action="store_true", help="continue the run in --output")
    add("--seed", type=int, default=defaults.seed)
    add("--batch", type=int, default=defaults.batch, help="crops at a time on each device (default %(default)s)")
    add("--accumulate", type=int, default=1, metavar="N", help="times these in a step (default %(default)s)")
    add("--schedule", choices=SCHEDULES, default="cosine", help="of the learning rate (default %(default)s)")
    add("--lr", type=float, help="peak learning rate")
    add("--warmup", type=int, default=defaults.warmup, help="steps (default %(default)s)")
    add("--ema", type=float, default=defaults.ema, help="decay of the averaged weights (default %(default)s)")
    add("--clip", type=float, default=defaults.clip, help="largest norm of the gradient (default %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default=defaults.precision)
    add("--compile", action="store_true", help="torch.compile the body")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--devices", type=int, default=1, metavar="N", help="train on N devices (Lightning Fabric; or use torchrun)")
    add("--interval", type=parse_duration, default=cadence.save, metavar="TIME", help="between saves (default 3m)")
    add("--report", type=parse_duration, default=cadence.report, metavar="TIME", help="between lines (default 30s)")
    add("--tensorboard", action="store_true", help="write curves and samples to OUTPUT/tensorboard")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with status 2 on values that no run can have."""
    if not arguments.steps and not arguments.time_budget:
        parser.error("how long? give --steps or --time-budget")
    for name in ("steps", "batch", "accumulate", "devices", "workers"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is not allowed: it must be at least 1")
    if not 0 < arguments.data_fraction <= 1:
        parser.error(f"--data-fraction {arguments.data_fraction} is not allowed: it must be above 0 and at most 1")
    if not 0 <= arguments.ema < 1:
        parser.error(f"--ema {arguments.ema} is not allowed: it must be at least 0 and below 1")


def read_start(folder: Path) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint that a run starts from, and what the run's provenance says of it.

    Raises:
        TrainingError: it cannot be read, or safetensors is not installed.
    """
    try:
        from ipt_triton.train.model.checkpoint import CheckpointError, load_checkpoint
    except ImportError as error:
        raise TrainingError(f"a checkpoint cannot be read ({error}): pip install safetensors") from None
    try:
        start = load_checkpoint(folder)
    except CheckpointError as error:
        raise TrainingError(str(error)) from None
    return start, {"parent": {"sha256": start.sha256, "provenance": start.provenance}}


def make_recipe(arguments: argparse.Namespace, runtime: Runtime, lr: float, **more: Any) -> Recipe:
    """The recipe that the arguments describe; `lr` where --lr is not given."""
    return Recipe(
        steps=arguments.steps,
        seconds=arguments.time_budget,
        batch=arguments.batch,
        accumulate=arguments.accumulate,
        processes=runtime.processes,
        lr=lr if arguments.lr is None else arguments.lr,
        schedule=arguments.schedule,
        warmup=arguments.warmup,
        ema=arguments.ema,
        clip=arguments.clip,
        seed=arguments.seed,
        precision=arguments.precision,
        data_fraction=arguments.data_fraction,
        **more,
    )


def open_data(
    arguments: argparse.Namespace, sampler: Sampler, patch_size: int, device: torch.device
) -> tuple[Feed, Store, dict[str, Any]]:
    """The feed of a run, a store of the photographs held out from it, and a description for the provenance.

    Raises:
        DataError: nothing to train on.
    """
    min_side = max(t.scale for t in sampler.tasks) * patch_size
    if arguments.workers:
        return _open_files(arguments, sampler, patch_size, min_side, device)
    if getattr(arguments, "paired", None):
        pool = load_pairs(arguments.paired[0], arguments.paired[1], sampler.tasks[0].scale, min_side)
    else:
        pool = load_pool(arguments.data, min_side)
    training, held_out = pool.split(HELD_OUT)
    training = training.share(arguments.data_fraction)
    told = {
        "photographs": len(training.images),
        "megapixels": round(training.megapixels, 1),
        "held_out": HELD_OUT,
    }
    return MemoryFeed(Store(training, device), sampler, patch_size), Store(held_out, device), told


def _open_files(
    arguments: argparse.Namespace, sampler: Sampler, patch_size: int, min_side: int, device: torch.device
) -> tuple[Feed, Store, dict[str, Any]]:
    """As `open_data`, without decoding more than the photographs held out."""
    if packed := [p for p in arguments.data if p.suffix == PACKED]:
        raise DataError(f"{packed[0]} is for the memory; leave out --workers")
    photographs = find_photographs(arguments.data)
    order = by_hash([p.name for p in photographs])
    held_out = Pool([], [])
    while order and len(held_out.names) < HELD_OUT:
        photograph = photographs[order.pop(0)]
        image = decode(photograph.path)
        if image is not None and min(image.shape[:2]) >= min_side:
            held_out.images.append(image)
            held_out.names.append(photograph.name)
    check_enough(len(held_out.names) + len(order), HELD_OUT)
    rest = [photographs[i] for i in sorted(order)]
    training = [rest[i] for i in share([p.name for p in rest], arguments.data_fraction)]
    feed = WorkerFeed(training, sampler, patch_size, arguments.workers, device)
    return feed, Store(held_out, device), {"photographs": len(training), "held_out": HELD_OUT}


def run(
    arguments: argparse.Namespace,
    runtime: Runtime,
    model: IPT | EDSR,
    trained: Sequence[Task],
    recipe: Recipe,
    provenance: dict[str, Any],
) -> None:
    """Train a model as the arguments say, from its weights or from the state in --output.

    Raises:
        DataError, StateError, TrainingError: as they say.
    """
    if recipe.precision == "bf16" and runtime.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # the contrastive loss is computed in float32
    state = arguments.output / "state.pt"
    if not arguments.resume and state.exists():
        raise TrainingError(f"{state} exists; add --resume to continue that run, or choose another --output")
    saved = read_state(state, runtime.device) if arguments.resume else None
    provenance = {
        **provenance,
        "git_commit": git_commit(),
        "device": runtime.device.type,
        "torch": str(torch.__version__),
    }
    trainer = Trainer(model, recipe, runtime, trained, provenance, arguments.compile)
    if saved is not None:
        trainer.load_state(saved)
    feed, held_out, told = open_data(arguments, recipe.sampler(trained), model.config.patch_size, runtime.device)
    trainer.provenance["data"] = told
    board = None
    if arguments.tensorboard and runtime.rank == 0:
        try:
            from ipt_triton.train.fit.board import Board
        except ImportError as error:
            raise TrainingError(f"--tensorboard needs a package ({error}): pip install tensorboard") from None
        board = Board(arguments.output / "tensorboard")
    train(trainer, feed, held_out, arguments.output, Cadence(arguments.report, arguments.interval), board)


def git_commit() -> str:
    """Commit of the source that runs, or `unknown` outside a repository."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return "unknown"
    return result.stdout.strip() or "unknown"


def run_command(arguments: argparse.Namespace, work: Callable[[argparse.Namespace, Runtime], None]) -> int:
    """Run a training command; returns its status: 0 done or stopped and saved, 1 failed, 2 wrong arguments or data."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        work(arguments, start(arguments.device, arguments.devices))
    except (ConfigError, DataError, TaskError, RuntimeUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StateError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
