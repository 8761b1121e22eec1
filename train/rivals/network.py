"""What the convolutional rivals share: tasks, heads, tails, mean shift, one long skip, and the start as interpolation.

A rival is a body between the heads and tails that each task has, as in IPT. With features F = head(x - mean):

    restored = tail(body(F) + F)        # the tail adds the mean

Nothing tells the body which task it works for. The body's last layer is a convolution, which is zero at first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.manifest import MAX_PATCH
from ipt_triton.tasks import OFFICIAL_TASKS, Task, task_table
from ipt_triton.train.model.ipt import RGB_MEAN, Network, Tail, check_whole
from ipt_triton.train.model.start import interpolate, pass_colours, zero


@dataclass(frozen=True)
class RivalConfig:
    """The hyper-parameters that every rival has.

    Attributes:
        features: channels between head, body and tail.
        patch_size: side of training crops and tiles in pixels; the network itself takes any.
        tasks: the task table.
    """

    features: int = 64
    patch_size: int = 48
    tasks: tuple[Task, ...] = OFFICIAL_TASKS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", task_table(self.tasks))
        check_whole(self, 1, features=1024, patch_size=MAX_PATCH)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "tasks": [t.to_dict() for t in self.tasks]}


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Block(nn.Module):
    """EDSR's residual block, without normalisation: x + residual_scale · conv3x3(ReLU(conv3x3(x)))."""

    def __init__(self, features: int, residual_scale: float):
        super().__init__()
        self.conv1, self.conv2 = conv3x3(features, features), conv3x3(features, features)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.conv2(F.relu(self.conv1(x)))


class Rival(Network):
    """A convolutional network for patches of any size, random weights as torch initialises them.

    Args:
        body: what stands before the body's last convolution; takes and returns [B, C, H, W].
    """

    config: RivalConfig
    body: nn.Sequential
    mean: Tensor

    def __init__(self, config: RivalConfig, *body: nn.Module):
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict({t.name: conv3x3(3, config.features) for t in config.tasks})
        self.body = nn.Sequential(*body, conv3x3(config.features, config.features))
        self.tails = nn.ModuleDict({t.name: Tail(config.features, t.scale) for t in config.tasks})
        self.register_buffer("mean", 255 * torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor, task: int | str) -> Tensor:
        name = self.task(task).name
        features = self.heads[name](patches - self.mean)
        return self.tails[name](self.body(features) + features)


R = TypeVar("R", bound=Rival)


def bicubic_start(model: R) -> R:
    """Set weights so that the untrained model is bicubic upsampling, as `identity_start` does for IPT.

    RGB passes through the first three channels, the body's last layer is zero, and the tails hold the interpolation;
    the rest stays random. Needs at least 3 features.
    """
    heads: list[Any] = list(model.heads.values())
    for head in heads:
        pass_colours(head)
    zero(model.body[-1])
    interpolate(model, gain=1.0)
    return model
