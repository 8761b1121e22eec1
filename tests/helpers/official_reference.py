"""The official IPT, restated independently of `train/`: its forward pass and its whole-image rule.

Written from the description of huawei-noah/Pretrained-IPT (model/ipt.py, model/common.py, model/__init__.py) with
torch's own unfold, fold and MultiheadAttention and sequence-first tokens [N, B, D], so that an error of ours is not
made twice. `OfficialIPT(...).state_dict()` has the official names, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH, TOKEN = 48, 3
SCALES = (2, 3, 4, 1, 1, 1)
"""Of the six-task checkpoint, in its order."""


class Residual(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 5, padding=2), nn.ReLU(), nn.Conv2d(features, features, 5, padding=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class Layer(nn.Module):
    """A pre-norm layer; with `decoder` it has cross-attention and takes the task embedding."""

    def __init__(self, width: int, heads: int, decoder: bool):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, bias=False)
        if decoder:
            self.multihead_attn = nn.MultiheadAttention(width, heads, bias=False)
            self.norm3 = nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(torch.relu(self.linear1(x)))

    def encode(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed, normed)[0]
        return x + self.feed_forward(self.norm2(x))

    def decode(self, x: Tensor, memory: Tensor, embedding: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed + embedding, normed + embedding, normed)[0]
        x = x + self.multihead_attn(self.norm2(x) + embedding, memory, memory)[0]
        return x + self.feed_forward(self.norm3(x))


class Stack(nn.Module):
    def __init__(self, layers: list[Layer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Position(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.pe = nn.Embedding(tokens, width)
        self.register_buffer("position_ids", torch.arange(tokens)[None])


class OfficialBody(nn.Module):
    def __init__(self, features: int, encoder: int, decoder: int, heads: int, tasks: int):
        super().__init__()
        width, tokens = features * TOKEN**2, (PATCH // TOKEN) ** 2
        self.linear_encoding = nn.Linear(width, width)
        self.mlp_head = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Dropout(0), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(0)
        )
        self.query_embed = nn.Embedding(tasks, tokens * width)
        self.encoder = Stack([Layer(width, heads, decoder=False) for _ in range(encoder)])
        self.decoder = Stack([Layer(width, heads, decoder=True) for _ in range(decoder)])
        self.position_encoding = Position(tokens, width)

    def forward(self, features: Tensor, task: int) -> Tensor:
        tokens = F.unfold(features, TOKEN, stride=TOKEN).permute(2, 0, 1)  # [N, B, D]
        embedding = self.query_embed(torch.tensor(task)).view(tokens.shape[0], 1, -1)
        x = tokens + self.linear_encoding(tokens)
        x = x + self.position_encoding.pe(self.position_encoding.position_ids).transpose(0, 1)
        for layer in self.encoder.layers:
            x = layer.encode(x)
        memory = x.clone()
        for layer in self.decoder.layers:
            x = layer.decode(x, memory, embedding)
        x = x + self.mlp_head(x)
        return F.fold(x.permute(1, 2, 0), PATCH, TOKEN, stride=TOKEN)


def mean_shift(sign: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, 3, 1).requires_grad_(False)
    conv.weight.copy_(torch.eye(3)[..., None, None])
    conv.bias.copy_(sign * 255 * torch.tensor([0.4488, 0.4371, 0.4040]))  # type: ignore[union-attr]
    return conv


def upsampler(features: int, scale: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for factor in {1: [], 2: [2], 3: [3], 4: [2, 2]}[scale]:
        layers += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)


class OfficialIPT(nn.Module):
    """Heads, tails and queries for the tails' scales; every weight is random, also those of the norms."""

    def __init__(
        self, features: int, encoder: int, decoder: int, heads: int, scales: Sequence[int] = SCALES, seed: int = 0
    ):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.head = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, features, 3, padding=1), Residual(features), Residual(features))
                for _ in scales
            )
            self.body = OfficialBody(features, encoder, decoder, heads, len(scales))
            self.tail = nn.ModuleList(
                nn.Sequential(upsampler(features, s), nn.Conv2d(features, 3, 3, padding=1)) for s in scales
            )
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    nn.init.normal_(module.weight, mean=1.0, std=0.2)
                    nn.init.normal_(module.bias, std=0.2)
        self.sub_mean, self.add_mean = mean_shift(-1), mean_shift(1)
        self.eval()

    def forward(self, patches: Tensor, task: int) -> Tensor:
        features = self.head[task](self.sub_mean(patches))
        return self.add_mean(self.tail[task](self.body(features, task) + features))


def official_whole_image(image: Tensor, network: Callable[[Tensor], Tensor], scale: int) -> Tensor:
    """The official whole-image rule for sides with (side - 48) % 12 == 0: [1, 3, h, w] -> [1, 3, h·scale, w·scale].

    Tiles of 48 with stride 12, the 24x24 centres averaged; the four border strips are run as strips of their own whose
    tiles keep all of the short side, and are pasted in the official order.
    """
    frame, half = 12 * scale, 24 * scale

    def answers(x: Tensor) -> Tensor:
        columns = F.unfold(x, PATCH, stride=12)  # [1, 3·48·48, tiles]
        return network(columns[0].t().reshape(-1, 3, PATCH, PATCH))

    def mean_of_overlaps(tiles: Tensor, size: tuple[int, int]) -> Tensor:
        columns = tiles.flatten(1).t()[None]
        kernel = (tiles.shape[-2], tiles.shape[-1])
        total, ones = (F.fold(x, size, kernel, stride=12 * scale) for x in (columns, torch.ones_like(columns)))
        return total / ones

    def strip(x: Tensor) -> Tensor:
        """A strip one patch high or wide: along it the centres are averaged, its two ends come from one tile."""
        tiles = answers(x)
        height, width = x.shape[-2] * scale, x.shape[-1] * scale
        result = torch.empty(1, 3, height, width, dtype=tiles.dtype)
        if height == PATCH * scale and width > height:
            result[..., :frame], result[..., -frame:] = tiles[:1, ..., :frame], tiles[-1:, ..., -frame:]
            result[..., frame:-frame] = mean_of_overlaps(tiles[..., frame:-frame], (height, width - half))
        else:
            result[..., :frame, :], result[..., -frame:, :] = tiles[:1, ..., :frame, :], tiles[-1:, ..., -frame:, :]
            result[..., frame:-frame, :] = mean_of_overlaps(tiles[..., frame:-frame, :], (height - half, width))
        return result

    height, width = image.shape[-2] * scale, image.shape[-1] * scale
    top, bottom = strip(image[..., :PATCH, :]), strip(image[..., -PATCH:, :])
    left, right = strip(image[..., :PATCH]), strip(image[..., -PATCH:])
    corner = answers(image[..., -PATCH:, -PATCH:])
    centres = answers(image)[..., frame:-frame, frame:-frame]

    result = torch.full((1, 3, height, width), float("nan"), dtype=centres.dtype)
    result[..., : PATCH * scale, :] = top
    result[..., : PATCH * scale] = left
    result[..., frame:-frame, frame:-frame] = mean_of_overlaps(centres, (height - half, width - half))
    result[..., -half:, :] = bottom[..., -half:, :]
    result[..., -half:] = right[..., -half:]
    result[..., -half:, -half:] = corner[..., -half:, -half:]
    return result
