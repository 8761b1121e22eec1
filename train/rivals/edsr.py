"""EDSR (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017), many tasks.

The body is residual blocks without normalisation (figure 2c) and a convolution.

    model = EDSR(EDSRConfig(features=32, blocks=12))
    restored = model(patches, "sr_x2")        # [B, 3, H, W] in 0..255  ->  [B, 3, 2H, 2W]
"""

from __future__ import annotations

from dataclasses import dataclass

from ipt_triton.train.model.ipt import check_whole
from ipt_triton.train.rivals.network import Block, Rival, RivalConfig


@dataclass(frozen=True)
class EDSRConfig(RivalConfig):
    """Every hyper-parameter of an EDSR; the published models have 64 and 256 features.

    Attributes:
        blocks: residual blocks of the body (16, 32).
        residual_scale: factor on each block's branch (1, and 0.1 in the large model, section 3.2).
    """

    blocks: int = 16
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, blocks=128)


class EDSR(Rival):
    """EDSR's network."""

    config: EDSRConfig

    def __init__(self, config: EDSRConfig):
        super().__init__(config, *(Block(config.features, config.residual_scale) for _ in range(config.blocks)))
