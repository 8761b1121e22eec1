"""First weights: an untrained IPT returns its input, upsampled bicubically, so that training starts from there.

    model = identity_start(IPT(preset("ipt-tiny")))

or has the weights of another one, and for tasks that are new those of the most similar task:

    model = with_tasks(trained, KNOWN_TASKS)

`pass_colours` and `interpolate` set the first and last layers of other networks alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ipt_triton.tasks import Task
from ipt_triton.train.model.ipt import IPT, Network, Tail

# Bicubic interpolation (a = -0.5) as a chain of 3-tap filters along one axis: per upsampling step the taps of the first
# output phase of a convolution + pixel shuffle (the last phase mirrors it), then a smoothing filter [w, 1, w] at the
# output's resolution. x2 and x3 are exact; x4 was fitted by least squares (largest tap error 0.001).
_BICUBIC: dict[int, tuple[list[list[list[float]]], float]] = {
    1: ([], 0.0),
    2: ([[[-3 / 64, 38 / 64, -3 / 64]]], 0.5),
    3: ([[[2 / 27, 8 / 27, -1 / 27], [-1 / 27, 11 / 27, -1 / 27]]], 1.0),
    4: ([[[0.05262522, 0.44678546, -0.05734737]], [[0.17826874, 0.68528237, -0.01625579]]], 0.83528197),
}


@torch.no_grad()
def identity_start(model: IPT) -> IPT:
    """Set weights so that the untrained model returns its input, upsampled bicubically; the rest stays random.

    RGB passes through the first three channels; the last layer of every residual branch and the position table are
    zero; the tail's convolutions hold the interpolation (and halve, because body and skip both bring the features).
    With `sincos` positions the output is off by at most one grey level. Needs at least 3 features.
    """
    body = model.body
    heads: list[Any] = list(model.heads.values())
    for head in heads:
        pass_colours(head.conv)
        for block in head.blocks:
            zero(block.conv2)
        if isinstance(head.embedding, nn.Parameter):
            nn.init.normal_(head.embedding, std=0.02)
    if isinstance(body.position, nn.Parameter):
        nn.init.zeros_(body.position)
    last_layers = [body.linear_encoding, body.out2]
    for layer in [*body.encoder, *body.decoder]:
        last_layers += [m for n, m in layer.named_modules() if n.endswith(("linear2", "attention.out"))]
    for linear in last_layers:
        zero(linear)
    interpolate(model, gain=0.5)
    return model


def with_tasks(model: IPT, tasks: Sequence[Task]) -> IPT:
    """A copy of a model with this task table; the weights that it has for it are kept bit for bit.

    A new task starts from the head and embedding of the most similar task, of the same kind and scale if there is one,
    else from those of the weakest denoising; and from its tail if it has the same scale.
    """
    known = model.config.tasks
    extended = identity_start(IPT(replace(model.config, tasks=tuple(tasks))))
    weights = model.state_dict()
    wanted = extended.state_dict()
    wanted.update({name: tensor for name, tensor in weights.items() if name in wanted})
    for task in extended.config.tasks:
        if task in known:
            continue
        donor = min(
            known,
            key=lambda t: (t.kind != task.kind, t.scale != task.scale, t.kind != "denoise", abs(t.sigma - task.sigma)),
        )
        for part in ("heads", "tails") if donor.scale == task.scale else ("heads",):
            old, new = f"{part}.{donor.name}.", f"{part}.{task.name}."
            wanted.update({new + n.removeprefix(old): t for n, t in weights.items() if n.startswith(old)})
    extended.load_state_dict(wanted)
    return extended


def zero(layer: nn.Module) -> None:
    """Set the weights and biases of a layer to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


@torch.no_grad()
def pass_colours(conv: nn.Conv2d) -> None:
    """Set a head's 3x3 convolution so that RGB comes through unchanged in its first three channels."""
    assert conv.bias is not None
    conv.weight[:3] = 0
    conv.weight[:3, :, 1, 1] = torch.eye(3)
    conv.bias[:3] = 0


@torch.no_grad()
def interpolate(model: Network, gain: float) -> None:
    """Set all tails so that they return the first three channels, upsampled bicubically, `gain` times."""
    for task in model.config.tasks:
        tail: Any = model.tails[task.name]
        _interpolate(tail, task.scale, gain)


def _interpolate(tail: Tail, scale: int, gain: float) -> None:
    halves, smooth = _BICUBIC[scale]
    steps: list[Any] = list(tail.steps)
    for conv, factor, half in zip(steps, tail.factors, halves, strict=True):
        phases = torch.tensor(half + [p[::-1] for p in half[: factor // 2][::-1]])  # [factor, 3]
        taps = torch.einsum("pk,ql->pqkl", phases, phases).reshape(factor**2, 3, 3)
        weight = conv.weight.view(-1, factor**2, *conv.weight.shape[1:])  # [C, factor², C, 3, 3]
        weight[:3] = 0
        for c in range(3):
            weight[c, :, c] = taps
        conv.bias.view(-1, factor**2)[:3] = 0
    smoothing = torch.tensor([smooth, 1.0, smooth])
    zero(tail.conv)
    for c in range(3):
        tail.conv.weight[c, c] = gain * torch.outer(smoothing, smoothing)
