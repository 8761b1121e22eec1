"""What several test files share: a small model, the sample photographs, and the description of a running server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ipt_triton.export.serving.server import TritonServer
from ipt_triton.images import PHOTOS
from ipt_triton.manifest import Manifest
from ipt_triton.train.model.checkpoint import Checkpoint
from ipt_triton.train.model.ipt import IPT, IPTConfig
from ipt_triton.train.model.start import identity_start

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
    return np.asarray(Image.open(PHOTOS / f"{name}.png").convert("RGB"))


@dataclass(frozen=True)
class Served:
    """A running server and what it serves."""

    checkpoint: Checkpoint
    manifest: Manifest
    repository: Path
    server: TritonServer
