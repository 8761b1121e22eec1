"""IGNN (Zhou et al., "Cross-Scale Internal Graph Neural Network for Image Super-Resolution", NeurIPS 2020), many tasks.

An EDSR with a graph in its middle. What is small at one place of an image often stands larger at another. So each 3x3
patch q of the features looks for its k most similar patches n in the features at half scale. Where n was reduced from,
there is a patch of 6x6: an example of how q may look at twice its resolution.

With E the features in which patches are compared, E↓ the same at half scale, F those of the middle of the body, and F_n
the 6x6 patch of F that n of E↓ covers:

    n₁..n_k = the n with the smallest |E_q - E↓_n|²          retrieval, without gradient
    D_r     = sum over the 3x3 places of |E_q - E↓_n_r|      [C], what the edge's network θ sees
    w_r     = exp θ(D_r) / sum over s of exp θ(D_s)
    N(z)    = (z - μ(z)) / σ(z)                              mean and deviation of each channel of a patch
    F↑_q    = σ(F_q) · (sum over r of w_r · N(F_n_r)) + μ(F_q)      [C, 6, 6]; equation 3 and AdaPN of the paper
    F↑      = the F↑_q of all q in their places, averaged where they overlap        [C, 2H, 2W]
    F'      = fuse([F, down(F↑)])                            down halves it again, fuse is two convolutions

What differs from the paper and its code (sczhou/IGNN), so that it is small and serves tasks of any scale:

- E is the output of the head, and E↓ its averages over 2x2, where the paper takes VGG19's features of the image and of
  the reduced image. They are not trained for likeness, and noise in the input is noise in them.
- Candidates are all patches of a training crop or tile, where the paper searches a window of 30x30 in a whole image.
- The graph's scale is 2 for all tasks. F↑ does not reach the tail, which the paper fuses it into after upsampling.
- Neighbours are weighted before their patches are put together, as the equation says; the code does it after, for each
  pixel, and halves each neighbour on its own, by one convolution more.

    model = IGNN(IGNNConfig(features=32, blocks=8))
    restored = model(patches, "sr_x2")        # [B, 3, H, W] in 0..255  ->  [B, 3, 2H, 2W]
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.train.model.ipt import check_whole
from ipt_triton.train.rivals.network import Block, Rival, RivalConfig, conv3x3

SIDE, STRIDE = 3, 2
"""Side of the patches that are compared, and their distance, at both scales, in pixels."""


@dataclass(frozen=True)
class IGNNConfig(RivalConfig):
    """Every hyper-parameter of an IGNN; the published model has 256 features.

    Attributes:
        blocks: residual blocks of the body, half of them (rounded down) before the graph (32).
        residual_scale: factor on each block's branch (0.1).
        neighbours: examples of each patch, k (5); fewer where there are fewer patches.
    """

    blocks: int = 32
    residual_scale: float = 1.0
    neighbours: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, 0, blocks=128)
        check_whole(self, 1, neighbours=1024)


def to_patches(x: Tensor) -> Tensor:
    """Patches of SIDE every STRIDE pixels, the edge repeated around: [B, C, H, W] -> [B, patches, C, SIDE²]."""
    padded = F.pad(x, (SIDE // 2,) * 4, mode="replicate")
    return F.unfold(padded, SIDE, stride=STRIDE).transpose(1, 2).unflatten(2, (x.shape[1], SIDE**2))


def from_patches(patches: Tensor, height: int, width: int) -> Tensor:
    """Put patches of twice the SIDE in their places at twice the scale, averaged where they overlap.

    [B, patches, C, (2·SIDE)²], those of `to_patches` of a [height, width] in order -> [B, C, 2·height, 2·width]
    """
    place = {"kernel_size": 2 * SIDE, "padding": 2 * (SIDE // 2), "stride": 2 * STRIDE}
    columns = patches.flatten(2).transpose(1, 2)
    size = 2 * height, 2 * width
    return F.fold(columns, size, **place) / F.fold(torch.ones_like(columns[:1]), size, **place)


@torch.no_grad()
def retrieve(shallow: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """The nearest patches at half scale of each patch: features [B, C, H, W], height and width even.

    Computed in float32 at least, under autocast too: in BF16 the terms of a distance hide what near patches differ in.

    Returns:
        Their numbers, nearest first, [B, patches, k], and the differences |E_q - E↓_n| summed over a patch,
        [B, patches, k, C].
    """
    shallow = shallow.to(torch.promote_types(shallow.dtype, torch.float32))
    queries, candidates = to_patches(shallow), to_patches(F.avg_pool2d(shallow, 2))
    q, n = queries.flatten(2), candidates.flatten(2)
    with nullcontext() if shallow.is_meta else torch.autocast(shallow.device.type, enabled=False):  # meta has none
        distances = n.square().sum(2)[:, None] - 2 * q @ n.transpose(1, 2)  # |q|² is the same for all n
    chosen = distances.topk(min(neighbours, n.shape[1]), dim=2, largest=False).indices
    return chosen, (queries[:, :, None] - gather(candidates, chosen)).abs().sum(-1)


def gather(patches: Tensor, chosen: Tensor) -> Tensor:
    """The patches [B, n, ...] that are chosen [B, q, k] -> [B, q, k, ...]."""
    first = torch.arange(len(patches), device=patches.device) * patches.shape[1]
    rows = (chosen + first[:, None, None]).flatten()
    return patches.flatten(0, 1).index_select(0, rows).view(*chosen.shape, *patches.shape[2:])


def deviation_and_mean(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of patches [..., C, pixels] -> [..., C, 1].

    One squared grey level is added to each variance, so that what is flat stays flat.
    """
    variance, mean = torch.var_mean(patches, -1, keepdim=True)
    return (variance + 1).sqrt(), mean


class Graph(nn.Module):
    """Enriches features [B, C, H, W] by examples from within them, chosen by shallow features of the same shape."""

    def __init__(self, config: IGNNConfig):
        super().__init__()
        features, self.neighbours = config.features, config.neighbours
        self.edge = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 1))
        self.down = nn.Sequential(
            nn.Conv2d(features, features, 5, stride=2, padding=2), nn.ReLU(), conv3x3(features, features)
        )
        self.fuse = nn.Sequential(conv3x3(2 * features, features), nn.ReLU(), conv3x3(features, features))

    def forward(self, features: Tensor, shallow: Tensor) -> Tensor:
        height, width = features.shape[-2:]
        even = (0, width % 2, 0, height % 2)
        larger = self.aggregate(F.pad(features, even, mode="replicate"), F.pad(shallow, even, mode="replicate"))
        return self.fuse(torch.cat([features, self.down(larger)[..., :height, :width]], dim=1))

    def aggregate(self, features: Tensor, shallow: Tensor) -> Tensor:
        """F↑ from F and E, [B, C, H, W] both, height and width even -> [B, C, 2H, 2W]."""
        chosen, differences = retrieve(shallow, self.neighbours)
        weights = self.edge(differences).softmax(2).transpose(2, 3)  # [B, q, 1, k]
        larger = to_patches(F.pixel_unshuffle(features, 2))  # [B, n, C·2·2, 3·3]
        larger = larger.view(*larger.shape[:2], -1, 2, 2, SIDE, SIDE).permute(0, 1, 2, 5, 3, 6, 4).flatten(3)
        deviation, mean = deviation_and_mean(larger)
        normalised = ((larger - mean) / deviation).flatten(2)
        mixed = (weights @ gather(normalised, chosen)).view(*chosen.shape[:2], *larger.shape[2:])  # [B, q, C, 6·6]
        deviation, mean = deviation_and_mean(to_patches(features))
        return from_patches(mixed * deviation + mean, *features.shape[-2:])


class BodyWithGraph(nn.Module):
    """Residual blocks, the graph, residual blocks: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, config: IGNNConfig):
        super().__init__()
        blocks = [Block(config.features, config.residual_scale) for _ in range(config.blocks)]
        before = config.blocks // 2
        self.before, self.graph = nn.Sequential(*blocks[:before]), Graph(config)
        self.after = nn.Sequential(*blocks[before:])

    def forward(self, shallow: Tensor) -> Tensor:
        return self.after(self.graph(self.before(shallow), shallow))


class IGNN(Rival):
    """IGNN's network."""

    config: IGNNConfig

    def __init__(self, config: IGNNConfig):
        super().__init__(config, BodyWithGraph(config))
