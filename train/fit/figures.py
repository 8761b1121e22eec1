"""Figures: what a training step measured, and what shows them beside the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ipt_triton.train.data.feed import Store
from ipt_triton.train.model.ipt import Network


class Figures(NamedTuple):
    """What a step measured.

    Attributes:
        tasks: names of its tasks, with spaces between.
        pixel, contrastive: losses.
        psnr: of the restored crops, in dB.
        gradient: norm before clipping.
    """

    step: int
    tasks: str
    pixel: float
    contrastive: float
    psnr: float
    gradient: float

    @property
    def series(self) -> str:
        """The task, or `mixed` for a step of several: what progress lines and curves call it."""
        return "mixed" if " " in self.tasks else self.tasks


class Display(Protocol):
    """What shows a run while it goes on, as `board.Board` does."""

    def show_steps(self, steps: Sequence[Figures], rate: float, learning_rate: float) -> None:
        """Figures of the steps since the last call, patches per second, and the learning rate of the last step."""
        ...

    def show_held_out(self, step: int, psnr: dict[str, float], model: Network, store: Store) -> None:
        """PSNR (dB) by task over photographs held out, the model that reached it, and those photographs."""
        ...
