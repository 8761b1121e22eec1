"""IPT, the Pre-Trained Image Processing Transformer (Chen et al., CVPR 2021), in one file.

Each task has a small convolutional head and tail; between them all tasks share one transformer encoder-decoder, the
body, told what to do by the task's embedding. The computation is that of the official PyTorch code
(huawei-noah/Pretrained-IPT, model/ipt.py); the tests check it against an independent restatement.

    model = IPT(preset("ipt-tiny"))
    restored = model(patches, "sr_x2")        # [B, 3, 48, 48] in 0..255  ->  [B, 3, 96, 96]
    restored = model.forward_mixed(patches, ["sr_x2", "denoise_30"])      # a task for each sample

`Head`, `Body` and `Tail` also work alone, as the exporter uses them:

    features, embedding = model.heads["sr_x2"](patches)
    restored = model.tails["sr_x2"](model.body(features, embedding))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.manifest import MAX_PATCH
from ipt_triton.reading import shown
from ipt_triton.tasks import OFFICIAL_TASKS, Task, TaskError, find_task, task_table
from ipt_triton.train.errors import ConfigError

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K in 0..1; 255 times it is subtracted before every head and added after every tail (`sub_mean`)."""

POSITIONS = ("learned", "learned_2d", "relative", "sincos", "none")
"""How a token's place is told: `learned` as published, a vector for each of the N places; the others for comparison.

`learned_2d`: a vector for each row plus one for each column. `relative`: a number for each attention head and each
distance in rows and columns between two tokens, added to their attention score. `sincos`: a fixed table.
"""

MAX_PATCH_NUMBERS = 2**22
"""Most numbers of a patch's features; the paper has 2**17."""


def check_whole(config: object, least: int, **most: int) -> None:
    """Raise ConfigError for an attribute that is not a whole number from `least` to what is given for its name."""
    for name, highest in most.items():
        value = getattr(config, name)
        if type(value) is not int or not least <= value <= highest:
            raise ConfigError(f"{name} {shown(value)} is not a whole number from {least} to {highest}")


@dataclass(frozen=True)
class IPTConfig:
    """Every hyper-parameter of an IPT.

    Attributes:
        features: channels between head, body and tail (n_feats; 64 in the paper).
        patch_size: side of the square input in pixels (48).
        token_size: side of a token in pixels (patch_dim; 3): a patch is (patch_size / token_size)² tokens.
        encoder_layers, decoder_layers: depth (12 + 12).
        heads: attention heads; must divide the token width, features · token_size².
        ffn_ratio: hidden width of feed-forward layers over the token width (4).
        position: how a token's place is told, one of `POSITIONS`; `learned` as published.
        task_embedding: False leaves the decoder without the task's embedding (ablation).
        tasks: the task table.
    """

    features: int = 64
    patch_size: int = 48
    token_size: int = 3
    encoder_layers: int = 12
    decoder_layers: int = 12
    heads: int = 12
    ffn_ratio: int = 4
    position: str = "learned"
    task_embedding: bool = True
    tasks: tuple[Task, ...] = OFFICIAL_TASKS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", task_table(self.tasks))
        check_whole(self, 1, features=1024, patch_size=MAX_PATCH, token_size=64, heads=1024, ffn_ratio=32)
        check_whole(self, 0, encoder_layers=128, decoder_layers=128)
        if self.features * self.patch_size**2 > MAX_PATCH_NUMBERS:
            raise ConfigError(
                f"features {self.features} of patch_size {self.patch_size} are more than {MAX_PATCH_NUMBERS} numbers "
                "a patch; choose smaller ones"
            )
        if self.patch_size % self.token_size:
            raise ConfigError(f"patch_size {self.patch_size} is not a multiple of token_size {self.token_size}")
        if self.width % self.heads:
            raise ConfigError(f"heads {self.heads} does not divide the token width {self.width}")
        if self.position not in POSITIONS:
            raise ConfigError(f"position {shown(self.position)} is not one of {', '.join(POSITIONS)}")
        if not isinstance(self.task_embedding, bool):
            raise ConfigError(f"task_embedding {shown(self.task_embedding)} is not true or false")

    @property
    def width(self) -> int:
        """Numbers in a token, D."""
        return self.features * self.token_size**2

    @property
    def grid(self) -> int:
        """Tokens along each side of a patch."""
        return self.patch_size // self.token_size

    @property
    def tokens(self) -> int:
        """Tokens in a patch, N."""
        return self.grid**2

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `IPTConfig.from_dict` reads them back."""
        return {**self.__dict__, "tasks": [t.to_dict() for t in self.tasks]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IPTConfig:
        """Raises ConfigError for an unknown field, TaskError for a bad task table."""
        if unknown := [str(name) for name in values if name not in cls.__dataclass_fields__]:
            raise ConfigError(f"unknown model fields: {shown(', '.join(sorted(unknown)))[1:-1]}")
        tasks = values.get("tasks", OFFICIAL_TASKS)
        if not isinstance(tasks, (list, tuple)):
            raise ConfigError(f"tasks {shown(tasks)} is not a list")
        return cls(**{**values, "tasks": tuple(tasks)})


PRESETS: dict[str, IPTConfig] = {
    "ipt": IPTConfig(),  # the paper: 115 M parameters with one task, 33 GMAC a patch
    "ipt-small": IPTConfig(features=32, encoder_layers=4, decoder_layers=4, heads=6),
    "ipt-tiny": IPTConfig(features=16, encoder_layers=2, decoder_layers=2, heads=3),
}


def preset(name: str, tasks: Sequence[Task] = OFFICIAL_TASKS) -> IPTConfig:
    """The configuration of a preset. Raises ConfigError naming the presets there are."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    return replace(PRESETS[name], tasks=tuple(tasks))


class ResBlock(nn.Module):
    """x + conv5x5(ReLU(conv5x5(x)))."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 5, padding=2)
        self.conv2 = nn.Conv2d(features, features, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class Head(nn.Module):
    """A task's way in: patches [B, 3, P, P] in 0..255 -> features [B, C, P, P] and the task's embedding [B, N, D].

    The embedding lives here so that a body is never paired with the wrong one.
    """

    mean: Tensor

    def __init__(self, config: IPTConfig):
        super().__init__()
        self.conv = nn.Conv2d(3, config.features, 3, padding=1)
        self.blocks = nn.Sequential(ResBlock(config.features), ResBlock(config.features))
        shape = (config.tokens, config.width)
        if config.task_embedding:
            self.embedding = nn.Parameter(torch.randn(shape))
        else:
            self.register_buffer("embedding", torch.zeros(shape), persistent=False)
        self.register_buffer("mean", 255 * torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        features = self.blocks(self.conv(patches - self.mean))
        return features, self.embedding.expand(patches.shape[0], -1, -1)


class Tail(nn.Module):
    """A task's way out: body features [B, C, P, P] -> restored patches [B, 3, P·scale, P·scale] around 0..255.

    x2 and x3 are one convolution and pixel shuffle, x4 is two x2 stages, x1 has none; then a 3x3 convolution to RGB.
    """

    mean: Tensor

    def __init__(self, features: int, scale: int):
        super().__init__()
        steps = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[scale]
        self.steps = nn.ModuleList(nn.Conv2d(features, features * s * s, 3, padding=1) for s in steps)
        self.conv = nn.Conv2d(features, 3, 3, padding=1)
        self.factors = steps
        self.register_buffer("mean", 255 * torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for conv, factor in zip(self.steps, self.factors, strict=True):
            x = F.pixel_shuffle(conv(x), factor)
        return self.conv(x) + self.mean


class Attention(nn.Module):
    """Multi-head attention without biases. query [B, N, D], key and value [B, M, D] -> [B, N, D].

    One [3D, D] matrix holds the three projections, as in torch's MultiheadAttention.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.projection = nn.Parameter(torch.empty(3 * width, width))
        self.out = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.projection)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        projected = self.project(query, key, value)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in projected)  # [B, heads, N, D / heads]
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2))

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Q, K and V; inputs that are the same tensor share one product."""
        width = query.shape[-1]
        if query is key and key is value:
            return F.linear(query, self.projection).chunk(3, dim=-1)
        if query is key:
            q, k = F.linear(query, self.projection[: 2 * width]).chunk(2, dim=-1)
            return q, k, F.linear(value, self.projection[2 * width :])
        q = F.linear(query, self.projection[:width])
        return q, *F.linear(key, self.projection[width:]).chunk(2, dim=-1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d) V, all [B, heads, N, d]."""
        return F.scaled_dot_product_attention(q, k, v)


class RelativeAttention(Attention):
    """`Attention` among the g² tokens of a grid, with a learned number for each distance added to the scores.

    Each head has one for each of the (2g - 1)² distances in rows and columns, zero at first (Liu et al., "Swin
    Transformer", ICCV 2021, equation 4).
    """

    def __init__(self, width: int, heads: int, grid: int):
        super().__init__(width, heads)
        self.grid = grid
        self.distances = nn.Parameter(torch.zeros(heads, 2 * grid - 1, 2 * grid - 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias().to(q.dtype))

    def bias(self) -> Tensor:
        """What is added to the scores, [heads, N, N], query by key."""
        place = torch.arange(self.grid, device=self.distances.device)
        apart = place[:, None] - place + self.grid - 1
        rows, columns = apart[:, None, :, None], apart[None, :, None, :]
        return self.distances[:, rows, columns].flatten(3).flatten(1, 2)


def make_attention(config: IPTConfig) -> Attention:
    """The attention of a layer."""
    if config.position == "relative":
        return RelativeAttention(config.width, config.heads, config.grid)
    return Attention(config.width, config.heads)


class EncoderLayer(nn.Module):
    """Pre-norm: self-attention, then a ReLU feed-forward layer, each on a residual branch. [B, N, D] -> [B, N, D]."""

    def __init__(self, config: IPTConfig):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = make_attention(config)
        self.linear1 = nn.Linear(config.width, config.width * config.ffn_ratio)
        self.linear2 = nn.Linear(config.width * config.ffn_ratio, config.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y)
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(nn.Module):
    """Pre-norm with the task embedding added to queries (and self-attention keys); memory enters as it is."""

    def __init__(self, config: IPTConfig):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))
        self.attention, self.cross_attention = make_attention(config), make_attention(config)
        self.linear1 = nn.Linear(config.width, config.width * config.ffn_ratio)
        self.linear2 = nn.Linear(config.width * config.ffn_ratio, config.width)

    def forward(self, x: Tensor, memory: Tensor, embedding: Tensor) -> Tensor:
        y = self.norm1(x)
        query = y + embedding
        x = x + self.attention(query, query, y)
        x = x + self.cross_attention(self.norm2(x) + embedding, memory, memory)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


def run_layer(layer: nn.Module, *inputs: Tensor) -> Tensor:
    """What a layer makes of its inputs."""
    output: Tensor = layer(*inputs)
    return output


class Body(nn.Module):
    """The shared transformer: features [B, C, P, P], embedding [B, N, D] -> body features [B, C, P, P].

    A sample's task enters by its embedding alone, so one batch may mix tasks. The head's features are added at the
    end, as the official code does.
    """

    def __init__(self, config: IPTConfig):
        super().__init__()
        width, hidden = config.width, config.width * config.ffn_ratio
        self.token_size, self.grid = config.token_size, config.grid
        self.linear_encoding = nn.Linear(width, width)
        if config.position == "learned":
            self.position = nn.Parameter(torch.randn(config.tokens, width))
        elif config.position == "learned_2d":
            self.position = nn.Parameter(torch.randn(2, config.grid, width))
        else:
            table = sincos_positions(config.tokens, width) if config.position == "sincos" else torch.zeros(())
            self.register_buffer("position", table, persistent=False)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.out1, self.out2 = nn.Linear(width, hidden), nn.Linear(hidden, width)  # official `mlp_head`

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        return self.fold(self.transform(self.unfold(features), embedding)) + features

    def transform(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Encoder, decoder and output layers on tokens [B, N, D] -> [B, N, D]."""
        return self.project(self.decode(tokens, embedding))

    def decode(self, tokens: Tensor, embedding: Tensor, run: Callable[..., Tensor] = run_layer) -> Tensor:
        """Encoder and decoder on tokens [B, N, D] -> the decoder's output [B, N, D], what the contrastive loss sees.

        Args:
            run: `run_layer`, or what does the same and keeps less for the backward pass.
        """
        x = self.linear_encoding(tokens) + tokens + self.places()
        for layer in self.encoder:
            x = run(layer, x)
        memory = x
        for layer in self.decoder:
            x = run(layer, x, memory, embedding)
        return x

    def places(self) -> Tensor:
        """What is added to the tokens for their places, [N, D], or nothing, []."""
        if self.position.ndim < 3:
            return self.position
        rows, columns = self.position
        return (rows[:, None] + columns).flatten(0, 1)

    def project(self, x: Tensor) -> Tensor:
        """Output layers on the decoder's output [B, N, D] -> [B, N, D]."""
        return self.out2(F.relu(self.out1(x))) + x

    def unfold(self, x: Tensor) -> Tensor:
        """[B, C, P, P] -> [B, N, C·t·t]: torch's unfold with stride = kernel, in operators every runtime has."""
        b, c, g, t = x.shape[0], x.shape[1], self.grid, self.token_size
        return x.view(b, c, g, t, g, t).permute(0, 2, 4, 1, 3, 5).reshape(b, g * g, c * t * t)

    def fold(self, x: Tensor) -> Tensor:
        """The inverse of `unfold`."""
        b, g, t = x.shape[0], self.grid, self.token_size
        c = x.shape[-1] // (t * t)
        return x.view(b, g, g, c, t, t).permute(0, 3, 1, 4, 2, 5).reshape(b, c, g * t, g * t)


class Network(nn.Module):
    """What is trained and restores: heads and tails by task name around one body, which all tasks share.

    `forward(patches, task)` restores patches [B, 3, P, P] in 0..255 for one task -> [B, 3, P·scale, P·scale], not
    clipped. `config` has at least `patch_size`, `tasks` and `to_dict`.
    """

    config: Any
    heads: nn.ModuleDict
    body: nn.Module
    tails: nn.ModuleDict

    def task(self, key: int | str) -> Task:
        """The task with this id or name. Raises TaskError naming those there are."""
        return find_task(self.config.tasks, key)


class IPT(Network):
    """The network of the paper, random weights as torch initialises them; `start.identity_start` sets first ones."""

    config: IPTConfig
    body: Body

    def __init__(self, config: IPTConfig):
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict({t.name: Head(config) for t in config.tasks})
        self.body = Body(config)
        self.tails = nn.ModuleDict({t.name: Tail(config.features, t.scale) for t in config.tasks})

    def forward(self, patches: Tensor, task: int | str) -> Tensor:
        name = self.task(task).name
        return self.tails[name](self.body(*self.heads[name](patches)))

    def forward_mixed(self, patches: Tensor, tasks: Sequence[int | str]) -> list[Tensor]:
        """Restore each sample for its own task in one pass of the body -> B tensors [3, P·scale, P·scale]."""
        if len(tasks) != len(patches):
            raise TaskError(f"{len(tasks)} tasks for {len(patches)} patches; each patch needs one")
        names = [self.task(t).name for t in tasks]
        groups = {name: [i for i, n in enumerate(names) if n == name] for name in names}
        parts = [self.heads[name](patches[rows]) for name, rows in groups.items()]
        mixed = self.body(*(torch.cat(x) for x in zip(*parts, strict=True)))
        restored: list[Tensor] = [torch.empty(0)] * len(names)
        for (name, rows), x in zip(groups.items(), mixed.split([len(r) for r in groups.values()]), strict=True):
            for row, patch in zip(rows, self.tails[name](x), strict=True):
                restored[row] = patch
        return restored


def sincos_positions(tokens: int, width: int) -> Tensor:
    """Fixed sine-cosine table [tokens, width] (Vaswani et al. 2017, section 3.5) over the row-major token index."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(tokens)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
