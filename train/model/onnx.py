"""IPT for ONNX: attention written out, operator by operator, in the pattern that the runtimes fuse."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipt_triton.train.model.ipt import Attention

Module = TypeVar("Module", bound=nn.Module)


class ExplicitAttention(Attention):
    """`Attention`, computed as Q scaled, MatMul, Softmax, MatMul, with a product for each of Q, K and V (no Split)."""

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        pairs = zip((query, key, value), self.projection.split(query.shape[-1]), strict=True)
        return tuple(F.linear(x, weight) for x, weight in pairs)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1) @ v


def for_onnx(module: Module) -> Module:
    """A copy for `torch.onnx.export`, with `ExplicitAttention` for `Attention`; both share their weights."""
    copied = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    for layer in copied.modules():
        if type(layer) is Attention:
            layer.__class__ = ExplicitAttention
    return copied.eval()
