"""What the benchmarks of serving share: the checkpoint to measure, a photograph, and a server for it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ipt_triton.export.parts.calibration import read_photos
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.images import PHOTOS, read_rgb
from ipt_triton.manifest import Manifest
from ipt_triton.tasks import OFFICIAL_TASKS, Task
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash, load_checkpoint
from ipt_triton.train.model.ipt import IPT, PRESETS, preset
from ipt_triton.train.model.start import identity_start


@dataclass(frozen=True)
class Serving:
    """A running server, the parts that it serves, and the seconds that it took to become ready."""

    server: TritonServer
    manifest: Manifest
    parts: Path
    seconds_to_ready: float


def add_source(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--checkpoint FOLDER` or `--preset NAME`, one of the two."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="trained weights")
    source.add_argument(
        "--preset", choices=sorted(PRESETS), help="an architecture with the weights that training starts from"
    )


def add_precision(parser: argparse.ArgumentParser, default: str = "fp32") -> None:
    """`--precision`, of the floating types that a CPU computes."""
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=default, help="(default %(default)s)")


def source_of(arguments: argparse.Namespace) -> tuple[str, Checkpoint]:
    """The name and the checkpoint that `add_source`'s options ask for.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    if arguments.checkpoint:
        return arguments.checkpoint.name, load_checkpoint(arguments.checkpoint)
    return arguments.preset, random_checkpoint(arguments.preset)


def random_checkpoint(name: str, tasks: Sequence[Task] = OFFICIAL_TASKS) -> Checkpoint:
    """A preset with the weights that training starts from: speed does not depend on them."""
    torch.manual_seed(0)
    return checkpoint_of(identity_start(IPT(preset(name, tasks))))


def checkpoint_of(model: IPT) -> Checkpoint:
    """A model as a checkpoint that was never saved."""
    return Checkpoint(model.eval(), content_hash(dict(model.state_dict())))


def of_one_task(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """The same weights without the other tasks. Raises TaskError for an unknown task."""
    model = IPT(replace(checkpoint.model.config, tasks=(checkpoint.model.task(name),)))
    model.load_state_dict({n: v for n, v in checkpoint.model.state_dict().items() if n in model.state_dict()})
    return checkpoint_of(model)


def photograph(width: int, height: int) -> np.ndarray:
    """The same photograph at any size, uint8 [height, width, 3]."""
    dog = Image.fromarray(read_rgb(PHOTOS / "dog.png"))
    return np.asarray(dog.resize((width, height), Image.Resampling.LANCZOS))


@contextmanager
def serving(
    checkpoints: Sequence[Checkpoint], precision: str, options: ServingOptions | None = None
) -> Iterator[Serving]:
    """A server for checkpoints, from a repository that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        parts = Path(name) / "parts"
        photos = read_photos(PHOTOS) if precision == "int8" else ()
        with serving_parts(parts, export_parts(checkpoints, parts, precision, photos=photos), options) as served:
            yield served


@contextmanager
def serving_parts(parts: Path, manifest: Manifest, options: ServingOptions | None = None) -> Iterator[Serving]:
    """A server for parts that were exported before."""
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name)
        write_repository(parts, manifest, repository, options or ServingOptions())
        started = time.perf_counter()
        with TritonServer(repository) as server:
            yield Serving(server, manifest, parts, time.perf_counter() - started)
