"""The rivals by name, each in the sizes of IPT's presets.

model = untrained(RIVAL_PRESETS["rdn-tiny"])      # interpolates bicubically
"""

from __future__ import annotations

from ipt_triton.train.rivals.edsr import EDSR, EDSRConfig
from ipt_triton.train.rivals.ignn import IGNN, IGNNConfig
from ipt_triton.train.rivals.network import Rival, RivalConfig, bicubic_start
from ipt_triton.train.rivals.rdn import RDN, RDNConfig

NETWORKS: dict[type[RivalConfig], type[Rival]] = {EDSRConfig: EDSR, RDNConfig: RDN, IGNNConfig: IGNN}

RIVAL_PRESETS: dict[str, RivalConfig] = {
    # Multiply-adds of a 48x48 patch, tasks of scale 1, attention and retrieval included; within 4 % of IPT's preset.
    # The tails of super-resolution are wider here: sr_x4 costs 1.4 to 1.5 times as much as with IPT.
    "edsr": EDSRConfig(features=192, blocks=21, residual_scale=0.1),  # 32.9 G, ipt 33.0 G
    "edsr-small": EDSRConfig(features=64, blocks=19),  # 3.32 G, ipt-small 3.26 G; EDSR-baseline has 16 blocks
    "edsr-tiny": EDSRConfig(features=32, blocks=12),  # 0.53 G, ipt-tiny 0.52 G
    "rdn": RDNConfig(features=64, blocks=18, layers=6, growth=64),  # 33.6 G
    "rdn-small": RDNConfig(features=64, blocks=5, layers=6, growth=32),  # 3.28 G
    "rdn-tiny": RDNConfig(features=32, blocks=4, layers=5, growth=16),  # 0.51 G
    "ignn": IGNNConfig(features=192, blocks=18, residual_scale=0.1),  # 33.7 G
    "ignn-small": IGNNConfig(features=64, blocks=15),  # 3.28 G
    "ignn-tiny": IGNNConfig(features=32, blocks=8),  # 0.54 G
}


def untrained(config: RivalConfig) -> Rival:
    """The network of a configuration, which interpolates bicubically."""
    return bicubic_start(NETWORKS[type(config)](config))
