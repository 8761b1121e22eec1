"""The loss of a step: L1 on pixels, and the paper's contrastive loss on the tokens of the decoder (Chen et al. 2021).

objective = Objective(model, contrastive=0.1, precision="bf16")
loss, figures = objective([Group("sr_x2", degraded, clean)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ipt_triton.train.model.ipt import IPT, Body, Network, run_layer

TEMPERATURE = 0.07


class Group(NamedTuple):
    """Crops of one task: degraded [n, 3, P, P] and clean [n, 3, P·scale, P·scale], floats on the 0..255 scale."""

    task: str
    degraded: Tensor
    clean: Tensor


def psnr_of_error(error: Tensor) -> Tensor:
    """PSNR in dB, peak 255, of each mean square error; at most 78 dB."""
    return 10 * torch.log10(255**2 / error.clamp(min=1e-3))


def contrastive_loss(tokens: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Tokens of one image attract each other and repel those of other images (equation 6 of the paper).

    With f_i^j the token j of image i, and d the cosine similarity over the temperature:

        l(f_i^j, f_i^k) = -log( exp d(f_i^j, f_i^k) / sum over m ≠ i of exp d(f_i^j, f_m^k) )
        loss = 1 / (B N²) · sum over i, j, k of l(f_i^j, f_i^k)

    The negatives of a pair are the tokens k of the other images, one of each. Where j = k the attraction is constant,
    and the repulsion acts as for any other pair. Of several processes each compares the images of its own micro-batch.
    The paper has no temperature; 0.07 is that of the authors' MindSpore release, whose loss (Khosla et al. 2020,
    "SupCon") is another one: there every token of the batch but the anchor is in the denominator, and j = k is left
    out.

    Args:
        tokens: [B, N, D], any scale and any float type; computed in float32.

    Raises:
        ValueError: fewer than two images, which leaves nothing to repel.
    """
    b, n, _ = tokens.shape
    if b < 2:
        raise ValueError(f"the contrastive loss compares images: it needs a batch of at least 2, not {b}")
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        attraction = unit.sum(1).square().sum() / (temperature * b * n * n)  # of all pairs, by their sums
        repulsion: Tensor = _Repulsion.apply(unit, temperature)
    return repulsion - attraction


class _Repulsion(torch.autograd.Function):
    """Mean over i, j, k of log sum over m ≠ i of exp(u_ij · u_mk / temperature), u of length 1: [B, N, D] -> scalar.

    The anchors are taken image by image, and their part of the gradient (a softmax) is computed on the spot, so that no
    more than N · B · N similarities exist at a time and none is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, unit: Tensor, temperature: float) -> Tensor:
        b, n, d = unit.shape
        flat = unit.view(b * n, d)
        gradient = torch.zeros_like(flat)
        mean = unit.new_zeros(())
        for i, anchors in enumerate(unit):
            weights = (anchors @ flat.T).sub_(1).div_(temperature).exp_().view(n, b, n)  # at most 1: no overflow
            weights[:, i] = 0
            sums = weights.sum(1, keepdim=True)
            mean += sums.log().mean() / b
            share = weights.div_(sums).view(n, b * n)
            gradient[i * n : (i + 1) * n] += share @ flat
            gradient.addmm_(share.T, anchors)
        ctx.save_for_backward(gradient.view(b, n, d) / (temperature * b * n * n))
        return mean + 1 / temperature

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None


class Objective(nn.Module):
    """A model with its loss: what is differentiated, and what is wrapped for several devices.

    Args:
        model: IPT, or a CNN, which has no tokens to contrast.
        contrastive: weight λ of the contrastive loss; 0 leaves it out.
        precision: `fp32`, or `bf16` for BF16 autocast.
        compiled: run the body through torch.compile; it is the same graph for every task, heads and tails stay eager.
        recompute: keep of the layers of an IPT's encoder and decoder their inputs alone, see `recompute_layer`.
    """

    def __init__(
        self, model: Network, contrastive: float, precision: str, compiled: bool = False, recompute: bool = False
    ):
        super().__init__()
        self.model, self.contrastive, self.precision = model, contrastive, precision
        self.run_body = torch.compile(run_body) if compiled else run_body
        self.run_layer = recompute_layer if recompute else run_layer

    def forward(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
        """The loss of a batch, a scalar, and without gradient its pixel loss, contrastive loss and PSNR (dB), [3].

        Every sample counts the same, whichever its task and scale.
        """
        with torch.autocast(groups[0].degraded.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            restored, tokens = self._restore(groups)
        differences = [r.float() - g.clean for r, g in zip(restored, groups, strict=True)]
        pixel = torch.cat([d.abs().flatten(1).mean(1) for d in differences]).mean()
        contrastive = contrastive_loss(tokens) if tokens is not None and self.contrastive else torch.zeros_like(pixel)
        with torch.no_grad():
            error = torch.cat([d.square().flatten(1).mean(1) for d in differences])
            figures = torch.stack([pixel, contrastive, psnr_of_error(error).mean()])
        return pixel + self.contrastive * contrastive, figures

    def _restore(self, groups: Sequence[Group]) -> tuple[list[Tensor], Tensor | None]:
        """Restored crops by group and, from IPT, the decoder's output; all groups pass the body together."""
        model = self.model
        if not isinstance(model, IPT):
            return [model(g.degraded, g.task) for g in groups], None
        parts = [model.heads[g.task](g.degraded) for g in groups]
        features, embedding = (torch.cat(x) if len(x) > 1 else x[0] for x in zip(*parts, strict=True))
        mixed, tokens = self.run_body(model.body, features, embedding, self.run_layer)
        pieces = mixed.split([len(g.degraded) for g in groups])
        return [model.tails[g.task](x) for g, x in zip(groups, pieces, strict=True)], tokens


def run_body(
    body: Body, features: Tensor, embedding: Tensor, run: Callable[..., Tensor] = run_layer
) -> tuple[Tensor, Tensor]:
    """`Body.forward` [B, C, P, P], and the tokens of its decoder [B, N, D]; `run` as for `Body.decode`."""
    tokens = body.decode(body.unfold(features), embedding, run)
    return body.fold(body.project(tokens)) + features, tokens


def recompute_layer(layer: nn.Module, *inputs: Tensor) -> Tensor:
    """`run_layer` with activation checkpointing (Chen et al. 2016): the backward pass computes the layer once more.

    So its inputs alone are kept, and the activations of one layer at a time exist.
    """
    # Nothing is random in a layer, so no random state need be kept.
    output: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    return output
