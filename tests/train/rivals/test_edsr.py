"""EDSR: its computation and its size are the published ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.ipt import RGB_MEAN
from ipt_triton.train.rivals.edsr import EDSR, EDSRConfig

SMALL = EDSRConfig(features=6, blocks=2, residual_scale=0.5)


def official_edsr(weights: dict[str, Tensor], task: str, x: Tensor) -> Tensor:
    """EDSR x2 in the words of its repository (model/edsr.py, model/common.py): sub_mean, head, body, tail, add_mean."""

    def conv(name: str, y: Tensor) -> Tensor:
        return F.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    mean = torch.tensor(RGB_MEAN).view(3, 1, 1) * 255
    x = conv(f"heads.{task}", x - mean)
    res = x
    for i in range(SMALL.blocks):
        res = res + conv(f"body.{i}.conv2", conv(f"body.{i}.conv1", res).relu()) * SMALL.residual_scale
    res = conv(f"body.{SMALL.blocks}", res) + x
    res = nn.PixelShuffle(2)(conv(f"tails.{task}.steps.0", res))
    return conv(f"tails.{task}.conv", res) + mean


def test_it_computes_what_edsr_computes():
    torch.manual_seed(0)
    model, patches = EDSR(SMALL).eval(), torch.rand(2, 3, 20, 24) * 255
    with torch.no_grad():
        torch.testing.assert_close(model(patches, "sr_x2"), official_edsr(model.state_dict(), "sr_x2", patches))


def test_edsr_baseline_has_the_published_number_of_parameters():
    one = EDSR(EDSRConfig(tasks=OFFICIAL_TASKS[:1]))
    assert sum(p.numel() for p in one.parameters()) == 1_369_859  # 1.37 M; the two mean shifts hold 24 numbers more
