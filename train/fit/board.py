"""TensorBoard: curves of a run and restored samples. Imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.tensorboard import SummaryWriter

from ipt_triton.train.data.feed import Store
from ipt_triton.train.fit.loop import Figures, Trainer
from ipt_triton.train.fit.validation import validation_groups

SAMPLES = 4  # crops of each task


class Board:
    """Writes event files into a folder; `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, folder: Path):
        self.writer = SummaryWriter(str(folder))

    def steps(self, steps: Sequence[Figures], rate: float, learning_rate: float) -> None:
        """Losses, PSNR and gradient of every step, patches per second and learning rate of the last."""
        for one in steps:
            self.writer.add_scalar(f"loss/{one.series}", one.pixel, one.step)
            self.writer.add_scalar(f"contrastive/{one.series}", one.contrastive, one.step)
            self.writer.add_scalar(f"psnr/{one.series}", one.psnr, one.step)
            self.writer.add_scalar("gradient", one.gradient, one.step)
        self.writer.add_scalar("patches_per_s", rate, steps[-1].step)
        self.writer.add_scalar("learning_rate", learning_rate, steps[-1].step)
        self.writer.flush()

    @torch.no_grad()
    def held_out(self, trainer: Trainer, psnr: dict[str, float], store: Store) -> None:
        """Held-out PSNR, and for each task a picture: rows of degraded, restored and clean crops."""
        for task in trainer.trained:
            self.writer.add_scalar(f"held_out_psnr/{task.name}", psnr[task.name], trainer.step)
            _, degraded, clean = next(validation_groups(store, task, trainer.model.config.patch_size, SAMPLES))
            restored = trainer.average(degraded, task.name)
            rows = [F.interpolate(degraded, scale_factor=float(task.scale)), restored, clean]  # [n, 3, S, S] each
            picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
            self.writer.add_image(f"samples/{task.name}", picture.clamp(0, 255).round().byte().cpu(), trainer.step)
        self.writer.flush()
