"""What the benchmarks of serving share: the checkpoint to measure, a photograph, and a server for it."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from export.parts import Manifest, export_parts
from export.repository import ServingOptions, write_repository
from export.server import TritonServer
from train.checkpoint import Checkpoint, content_hash, load_checkpoint
from train.model import IPT, PRESETS, identity_start, preset

PHOTO = Path(__file__).parent.parent / "tests" / "images" / "dog.png"


@dataclass(frozen=True)
class Serving:
    """A running server and the parts that it serves."""

    server: TritonServer
    manifest: Manifest
    parts: Path


def add_source(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """`--checkpoint FOLDER` or `--preset NAME`, one of the two."""
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="trained weights")
    source.add_argument(
        "--preset", choices=sorted(PRESETS), help="an architecture with the weights that training starts from"
    )


def source_of(arguments: argparse.Namespace) -> tuple[str, Checkpoint]:
    """The name and the checkpoint that `add_source`'s options ask for.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    if arguments.checkpoint:
        return arguments.checkpoint.name, load_checkpoint(arguments.checkpoint)
    return arguments.preset, random_checkpoint(arguments.preset)


def random_checkpoint(name: str) -> Checkpoint:
    """A preset with the weights that training starts from: speed does not depend on them."""
    torch.manual_seed(0)
    return checkpoint_of(identity_start(IPT(preset(name))))


def checkpoint_of(model: IPT) -> Checkpoint:
    """A model as a checkpoint that was never saved."""
    return Checkpoint(model.eval(), content_hash(dict(model.state_dict())))


def photograph(width: int, height: int) -> np.ndarray:
    """The same photograph at any size, uint8 [height, width, 3]."""
    return np.asarray(Image.open(PHOTO).convert("RGB").resize((width, height), Image.Resampling.LANCZOS))


@contextmanager
def serving(
    checkpoints: Sequence[Checkpoint], precision: str, options: ServingOptions | None = None
) -> Iterator[Serving]:
    """A server for checkpoints, from a repository that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = export_parts(checkpoints, folder / "parts", precision)
        write_repository(folder / "parts", manifest, folder / "models", options or ServingOptions())
        with TritonServer(folder / "models") as server:
            yield Serving(server, manifest, folder / "parts")
