"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017), many tasks.

The convolutional rival of IPT for the paper's ablation on the share of data: a head and a tail for each
task as IPT has them, and a shared body of residual blocks without normalisation (EDSR, figure 2c) inside one long skip.
Nothing tells the body which task it works for. `CNN_PRESETS` cost as much as the IPT preset of the same size.

    model = EDSR(CNN_PRESETS["edsr-tiny"])
    restored = model(patches, "sr_x2")        # [B, 3, H, W] in 0..255  ->  [B, 3, 2H, 2W]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.manifest import MAX_PATCH
from ipt_triton.tasks import OFFICIAL_TASKS, Task, task_table
from ipt_triton.train.model.ipt import RGB_MEAN, Network, Tail, check_whole
from ipt_triton.train.model.start import interpolate, pass_colours, zero


@dataclass(frozen=True)
class EDSRConfig:
    """Every hyper-parameter of an EDSR.

    Attributes:
        features: channels (64 in the baseline, 256 in the large model).
        blocks: residual blocks of the body (16, 32).
        residual_scale: factor on each block's branch (1, and 0.1 in the large model, section 3.2).
        patch_size: side of training crops and tiles in pixels; the network itself takes any.
        tasks: the task table.
    """

    features: int = 64
    blocks: int = 16
    residual_scale: float = 1.0
    patch_size: int = 48
    tasks: tuple[Task, ...] = OFFICIAL_TASKS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", task_table(self.tasks))
        check_whole(self, 1, features=1024, patch_size=MAX_PATCH)
        check_whole(self, 0, blocks=128)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "tasks": [t.to_dict() for t in self.tasks]}


CNN_PRESETS: dict[str, EDSRConfig] = {
    # Multiply-adds of a 48x48 patch, tasks of scale 1, attention included, beside those of the IPT preset.
    # The tails of super-resolution are wider here: sr_x4 costs 1.4 to 1.5 times as much as with IPT.
    "edsr": EDSRConfig(features=192, blocks=21, residual_scale=0.1),  # 32.9 G, ipt 33.0 G
    "edsr-small": EDSRConfig(features=64, blocks=19),  # 3.32 G, ipt-small 3.26 G; EDSR-baseline has 16 blocks
    "edsr-tiny": EDSRConfig(features=32, blocks=12),  # 0.53 G, ipt-tiny 0.52 G
}


class Block(nn.Module):
    """x + residual_scale · conv3x3(ReLU(conv3x3(x)))."""

    def __init__(self, features: int, residual_scale: float):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual_scale * self.conv2(F.relu(self.conv1(x)))


class EDSR(Network):
    """EDSR's network for patches of any size, random weights as torch initialises them."""

    config: EDSRConfig
    body: nn.Sequential
    mean: Tensor

    def __init__(self, config: EDSRConfig):
        super().__init__()
        self.config = config
        features = config.features
        self.heads = nn.ModuleDict({t.name: nn.Conv2d(3, features, 3, padding=1) for t in config.tasks})
        self.body = nn.Sequential(
            *(Block(features, config.residual_scale) for _ in range(config.blocks)),
            nn.Conv2d(features, features, 3, padding=1),
        )
        self.tails = nn.ModuleDict({t.name: Tail(features, t.scale) for t in config.tasks})
        self.register_buffer("mean", 255 * torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor, task: int | str) -> Tensor:
        name = self.task(task).name
        features = self.heads[name](patches - self.mean)
        return self.tails[name](self.body(features) + features)


def bicubic_start(model: EDSR) -> EDSR:
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
