"""TensorBoard: curves of a run and restored samples. Imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter

from ipt_triton.train.data.feed import Store
from ipt_triton.train.fit.figures import Figures
from ipt_triton.train.fit.validation import validation_groups
from ipt_triton.train.model.ipt import Network

SAMPLES = 4  # crops of each task


class Board:
    """Writes event files into a folder; `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path):
        self.writer = SummaryWriter(str(folder))

    def show_steps(self, steps: Sequence[Figures], rate: float, learning_rate: float) -> None:
        """Losses, PSNR and gradient of every step, patches per second and learning rate of the last."""
        for figures in steps:
            self.writer.add_scalar(f"loss/{figures.series}", figures.pixel, figures.step)
            self.writer.add_scalar(f"contrastive/{figures.series}", figures.contrastive, figures.step)
            self.writer.add_scalar(f"psnr/{figures.series}", figures.psnr, figures.step)
            self.writer.add_scalar("gradient", figures.gradient, figures.step)
        self.writer.add_scalar("patches_per_s", rate, steps[-1].step)
        self.writer.add_scalar("learning_rate", learning_rate, steps[-1].step)
        self.writer.flush()

    @torch.no_grad()
    def show_held_out(self, step: int, psnr: dict[str, float], model: Network, store: Store) -> None:
        """Held-out PSNR, and for each task a picture: rows of degraded, restored and clean crops."""
        for name, value in psnr.items():
            self.writer.add_scalar(f"held_out_psnr/{name}", value, step)
            task = model.task(name)
            _, degraded, clean = next(validation_groups(store, task, model.config.patch_size, SAMPLES))
            rows = [F.interpolate(degraded, scale_factor=float(task.scale)), model(degraded, name), clean]
            picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)  # [3, 3 · S, n · S]
            self.writer.add_image(f"samples/{name}", picture.clamp(0, 255).round().byte().cpu(), step)
        self.writer.flush()
