"""RDN (Zhang et al., "Residual Dense Network for Image Super-Resolution", CVPR 2018), many tasks.

With F₋₁ the features of the head and [ ] concatenation along channels, the body is (equations 2 to 9 of the paper)

    F₀  = conv3x3(F₋₁)
    F_d = RDB_d(F_d₋₁)                                       d = 1..D, residual dense blocks
    body = conv3x3(conv1x1([F₁, ..., F_D]))                  global feature fusion; the long skip adds F₋₁

and a residual dense block of an input F is

    x_c = ReLU(conv3x3([F, x₁, ..., x_c₋₁]))                 c = 1..L, of G channels each
    RDB = conv1x1([F, x₁, ..., x_L]) + F                     local feature fusion and local residual

    model = RDN(RDNConfig(features=32, blocks=4, layers=5, growth=16))
    restored = model(patches, "sr_x2")        # [B, 3, H, W] in 0..255  ->  [B, 3, 2H, 2W]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.train.model.ipt import check_whole
from ipt_triton.train.rivals.network import Rival, RivalConfig, conv3x3


@dataclass(frozen=True)
class RDNConfig(RivalConfig):
    """Every hyper-parameter of an RDN; the published model has 64 features (G₀).

    Attributes:
        blocks: residual dense blocks (D; 16).
        layers: densely connected convolutions of a block (L, the paper's C; 8).
        growth: channels that each of them adds (G; 64).
    """

    blocks: int = 16
    layers: int = 8
    growth: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 1, blocks=128, layers=64, growth=1024)


class DenseBlock(nn.Module):
    """A residual dense block, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, features: int, layers: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(conv3x3(features + i * growth, growth) for i in range(layers))
        self.fusion = nn.Conv2d(features + layers * growth, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for layer in self.layers:
            dense = torch.cat([dense, F.relu(layer(dense))], dim=1)
        return self.fusion(dense) + x


class GlobalFusion(nn.Module):
    """Dense blocks one after the other, the outputs of all fused by a 1x1 convolution, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, config: RDNConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            DenseBlock(config.features, config.layers, config.growth) for _ in range(config.blocks)
        )
        self.fusion = nn.Conv2d(config.blocks * config.features, config.features, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.fusion(torch.cat(outputs, dim=1))


class RDN(Rival):
    """RDN's network."""

    config: RDNConfig

    def __init__(self, config: RDNConfig):
        super().__init__(config, conv3x3(config.features, config.features), GlobalFusion(config))
