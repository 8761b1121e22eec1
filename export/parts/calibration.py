"""Tiles for INT8: photographs, degraded for each task, as the task's head hands them to the body.

The left half of each photograph calibrates and the right half measures, so that no pixel does both.

    photos = read_photos(PHOTOS)
    samples = calibration_samples(model, model.config.tasks, photos)
    unseen = [held_out(model, task, photos) for task in model.config.tasks]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ipt_triton.export.errors import ExportError
from ipt_triton.images import SUFFIXES, UnreadableImage, read_rgb
from ipt_triton.metrics import psnr_of_error
from ipt_triton.tasks import Task, TaskError
from ipt_triton.train.data.degradations import degrade
from ipt_triton.train.model.ipt import IPT, Tail

TILES = 48  # of each task, to calibrate
HELD_OUT_TILES = 4  # of each photograph and task


class CalibrationError(ExportError):
    """Photographs that cannot calibrate a task."""


@dataclass(frozen=True)
class HeldOut:
    """Tiles of a task that calibration has not seen, and what they should become.

    Attributes:
        inputs: FEATURES [n, C, P, P] and TASK_EMBEDDING [n, N, D], float32.
        clean: float32 [n, 3, P·scale, P·scale]; the tiles of a photograph stand together, `HELD_OUT_TILES` of each.
    """

    task: Task
    inputs: dict[str, np.ndarray]
    clean: Tensor
    tail: Tail

    @torch.inference_mode()
    def psnr(self, body_features: np.ndarray) -> float:
        """PSNR of the restored tiles in dB, RGB: the mean over the photographs."""
        restored = self.tail(torch.from_numpy(body_features)).clamp(0, 255)
        errors = (restored - self.clean).square().reshape(-1, HELD_OUT_TILES * self.clean[0].numel()).mean(1)
        return float(np.mean([psnr_of_error(error) for error in errors.tolist()]))


def read_photos(folder: Path) -> list[np.ndarray]:
    """All photographs of a folder, uint8 RGB [height, width, 3], in the order of their names.

    Raises:
        CalibrationError: there is none, or one cannot be read.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise CalibrationError(f"{folder} holds no photographs; INT8 is calibrated on some, clean ones")
    try:
        return [read_rgb(path) for path in paths]
    except UnreadableImage as error:
        raise CalibrationError(str(error)) from error


@torch.inference_mode()
def calibration_samples(
    model: IPT, tasks: Iterable[Task], photos: Sequence[np.ndarray], tiles: int = TILES
) -> list[dict[str, np.ndarray]]:
    """Inputs of the body, one tile each, tasks mixed as in a server's batches.

    Raises:
        CalibrationError: no photographs, one too small, or a task that is known by pairs of photographs alone.
    """
    if not photos:
        raise CalibrationError("there are no photographs to calibrate INT8 on; give clean ones with --calibration")
    samples = []
    per_photo = -(-tiles // len(photos))
    for task in tasks:
        _, degraded = _pairs(model, task, [p[:, : p.shape[1] // 2] for p in photos], per_photo, seed=1)
        features, embedding = model.heads[task.name](degraded[:tiles])
        row = embedding[:1].numpy()  # the same for every tile
        samples.append([{"FEATURES": f[None], "TASK_EMBEDDING": row} for f in features.numpy()])
    return [sample for in_turn in zip(*samples, strict=True) for sample in in_turn]


@torch.inference_mode()
def held_out(model: IPT, task: Task, photos: Sequence[np.ndarray]) -> HeldOut:
    """Tiles to measure a task on. Raises CalibrationError as `calibration_samples` does."""
    clean, degraded = _pairs(model, task, [p[:, p.shape[1] // 2 :] for p in photos], HELD_OUT_TILES, seed=2)
    features, embedding = model.heads[task.name](degraded)
    tensors = {"FEATURES": features.numpy(), "TASK_EMBEDDING": embedding.contiguous().numpy()}
    return HeldOut(task, tensors, clean, model.tails[task.name])  # type: ignore[arg-type]  # ModuleDict forgets


def _pairs(model: IPT, task: Task, photos: Sequence[np.ndarray], per_photo: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clean crops [n, 3, P·scale, P·scale], those of a photograph together, and their degraded ones [n, 3, P, P]."""
    side = model.config.patch_size * task.scale
    draws = np.random.default_rng(seed)
    crops = []
    for photo in photos:
        height, width = photo.shape[:2]
        if min(height, width) < side:
            raise CalibrationError(
                f"half a photograph of {width}x{height} pixels is too small to calibrate {task.name}; "
                f"photographs of at least {2 * side}x{side} are needed"
            )
        for _ in range(per_photo):
            y, x = draws.integers(height - side + 1), draws.integers(width - side + 1)
            crops.append(photo[y : y + side, x : x + side].transpose(2, 0, 1))
    clean = torch.from_numpy(np.stack(crops)).float()
    try:
        return clean, degrade(clean, task, torch.Generator().manual_seed(seed))
    except TaskError as error:
        raise CalibrationError(f"INT8 cannot be calibrated here ({error}); use --precision bf16") from error
