"""Fixtures: a small model with random weights, and one real server that serves it to the whole test run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client import RestorationClient
from export.parts import Manifest, export_parts
from export.repository import ServingOptions, write_repository
from export.server import TritonServer
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.model import IPT, IPTConfig, identity_start

IMAGES = Path(__file__).parent / "images"
SMALL = IPTConfig(features=8, encoder_layers=2, decoder_layers=2, heads=3)


def small_model(seed: int = 0, config: IPTConfig = SMALL) -> IPT:
    """A model that still shows the picture, with every weight moved away from the identity at random."""
    torch.manual_seed(seed)
    model = identity_start(IPT(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


def read_image(name: str) -> np.ndarray:
    """A sample photograph, uint8 RGB."""
    return np.asarray(Image.open(IMAGES / f"{name}.png").convert("RGB"))


@dataclass(frozen=True)
class Served:
    """A running server and what it serves."""

    checkpoint: Checkpoint
    manifest: Manifest
    repository: Path
    server: TritonServer


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(small_model(), folder, provenance={"made_by": "tests"})
    return folder


@pytest.fixture(scope="session")
def served(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = load_checkpoint(small_checkpoint)
    manifest = export_parts([checkpoint], folder / "parts")
    options = ServingOptions(max_input_pixels=1_000_000, max_output_pixels=2_000_000)
    write_repository(folder / "parts", manifest, folder / "models", options)
    with TritonServer(folder / "models") as server:
        yield Served(checkpoint, manifest, folder / "models", server)


@pytest.fixture
def client(served: Served) -> Iterator[RestorationClient]:
    with RestorationClient(served.server.grpc_url) as connection:
        yield connection
