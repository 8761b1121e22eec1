"""RDN: its computation and its size are the published ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.ipt import RGB_MEAN
from ipt_triton.train.rivals.rdn import RDN, DenseBlock, RDNConfig

SMALL = RDNConfig(features=6, blocks=3, layers=2, growth=4)


def test_a_dense_block_computes_what_the_paper_writes():
    """Pixel by pixel in the middle of a picture, in float64: equations 5 to 8 with two layers."""
    torch.manual_seed(0)
    block, x = DenseBlock(3, 2, 4).double(), torch.randn(1, 3, 7, 7, dtype=torch.float64)
    first, second = block.layers

    def layer(conv: nn.Module, maps: list[Tensor], row: int, column: int) -> Tensor:
        window = torch.cat(maps)[:, row - 1 : row + 2, column - 1 : column + 2]
        return (conv.weight * window).sum((1, 2, 3)) + conv.bias

    one = torch.zeros(4, 7, 7, dtype=torch.float64)
    for row in range(2, 5):
        for column in range(2, 5):
            one[:, row, column] = layer(first, [x[0]], row, column).clamp(min=0)
    two = layer(second, [x[0], one], 3, 3).clamp(min=0)
    everything = torch.cat([x[0, :, 3, 3], one[:, 3, 3], two])
    expected = block.fusion.weight[:, :, 0, 0] @ everything + block.fusion.bias + x[0, :, 3, 3]
    torch.testing.assert_close(block(x)[0, :, 3, 3], expected)


def published_rdn(weights: dict[str, Tensor], task: str, x: Tensor) -> Tensor:
    """RDN x2 by the paper's figures 2 and 3, for any number of blocks and layers."""

    def conv(name: str, y: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(y, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    mean = torch.tensor(RGB_MEAN).view(3, 1, 1) * 255
    shallow = conv(f"heads.{task}", x - mean)
    outputs = [conv("body.0", shallow)]
    for d in range(SMALL.blocks):
        maps = [outputs[-1]]
        for c in range(SMALL.layers):
            maps.append(conv(f"body.1.blocks.{d}.layers.{c}", torch.cat(maps, 1)).relu())
        outputs.append(conv(f"body.1.blocks.{d}.fusion", torch.cat(maps, 1)) + outputs[-1])
    dense = conv("body.2", conv("body.1.fusion", torch.cat(outputs[1:], 1))) + shallow
    return conv(f"tails.{task}.conv", nn.PixelShuffle(2)(conv(f"tails.{task}.steps.0", dense))) + mean


def test_it_computes_what_rdn_computes():
    torch.manual_seed(0)
    model, patches = RDN(SMALL).eval(), torch.rand(2, 3, 20, 24) * 255
    with torch.no_grad():
        torch.testing.assert_close(model(patches, "sr_x2"), published_rdn(model.state_dict(), "sr_x2", patches))


def test_the_default_has_the_published_number_of_parameters():
    with torch.device("meta"):
        one = RDN(RDNConfig(tasks=OFFICIAL_TASKS[:1]))
    assert sum(p.numel() for p in one.parameters()) == 22_123_395  # 22.1 M, as RDN x2 with D 16, C 8, G 64
