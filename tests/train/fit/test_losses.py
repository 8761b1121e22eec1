"""Losses: the contrastive loss is the paper's sum, in bounded memory, and both losses reach the body."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.training import CONFIG
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ipt_triton.train.fit.losses import Group, Objective, contrastive_loss
from ipt_triton.train.model.ipt import IPT


def equation_6(tokens: Tensor, temperature: float) -> float:
    """The paper's sum, term by term."""
    b, n, _ = tokens.shape

    def similarity(one: Tensor, other: Tensor) -> float:
        return float(one @ other / (one.norm() * other.norm())) / temperature

    total = 0.0
    for i in range(b):
        for j in range(n):
            for k in range(n):
                others = sum(math.exp(similarity(tokens[i, j], tokens[m, k])) for m in range(b) if m != i)
                total -= math.log(math.exp(similarity(tokens[i, j], tokens[i, k])) / others)
    return total / (b * n * n)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_contrastive_loss_is_the_double_sum_of_the_paper(temperature: float) -> None:
    tokens = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7
    assert contrastive_loss(tokens, temperature).item() == pytest.approx(equation_6(tokens, temperature), rel=1e-5)


def test_the_gradient_is_that_of_the_sum_computed_at_once() -> None:
    tokens = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    contrastive_loss(tokens).backward()
    again = tokens.detach().double().requires_grad_()
    unit = F.normalize(again, dim=-1)
    similarity = torch.einsum("ijd,mkd->ijmk", unit, unit) / 0.07
    own = torch.eye(5, dtype=torch.bool)[:, None, :, None]
    repulsion = similarity.masked_fill(own, -torch.inf).logsumexp(2)
    (repulsion - torch.einsum("ijik->ijk", similarity)).mean().backward()
    assert tokens.grad is not None and again.grad is not None
    torch.testing.assert_close(tokens.grad.double(), again.grad, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """Watches the sizes of all tensors that come into being."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_memory_grows_with_the_batch_and_not_with_its_square() -> None:
    for batch in (4, 16):
        tokens = torch.randn(batch, 32, 4, requires_grad=True)
        with Largest() as largest:
            contrastive_loss(tokens).backward()
        assert largest.numbers == batch * 32 * 32


def test_extreme_tokens_give_a_finite_loss_and_gradient() -> None:
    tokens = torch.zeros(2, 3, 4)
    tokens[1] = 1e30
    tokens[1, 0] = -1e30
    tokens.requires_grad_()
    loss = contrastive_loss(tokens)
    loss.backward()
    assert torch.isfinite(loss) and tokens.grad is not None and torch.isfinite(tokens.grad).all()


def test_images_that_differ_lose_less_than_images_that_are_mixed() -> None:
    own = torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(2))
    apart = own + 0.1 * torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(3))
    mixed = apart.flatten(0, 1)[torch.randperm(32, generator=torch.Generator().manual_seed(4))].view(4, 8, 16)
    assert contrastive_loss(apart) < 0 < contrastive_loss(mixed)


def test_one_image_alone_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ValueError, match="at least 2, not 1"):
        contrastive_loss(torch.randn(1, 4, 8))


def groups(*tasks: str, count: int = 2) -> list[Group]:
    random = torch.Generator().manual_seed(5)
    crops = [torch.rand(count, 3, 48, 48, generator=random) * 255 for _ in range(2 * len(tasks))]
    return [Group(task, *crops[2 * i : 2 * i + 2]) for i, task in enumerate(tasks)]


@pytest.mark.parametrize("which", ["pixel", "contrastive"])
def test_each_loss_alone_reaches_every_layer_of_encoder_and_decoder(which: str) -> None:
    torch.manual_seed(0)
    model = IPT(CONFIG)
    batch = groups("denoise_30")
    if which == "pixel":
        loss, _ = Objective(model, 0.0, "fp32")(batch)
    else:
        with_both, _ = Objective(model, 1.0, "fp32")(batch)
        loss = with_both - Objective(model, 0.0, "fp32")(batch)[0]
    loss.backward()
    after = ("out1", "out2")  # these follow the tokens that are contrasted
    for name, parameter in model.body.named_parameters():
        if which == "pixel" or not name.startswith(after):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-7, name
    head = model.heads["denoise_30"].get_parameter("conv.weight").grad
    assert head is not None and head.abs().max() > 0


def test_the_objective_restores_as_the_model_does_and_weighs_the_terms() -> None:
    torch.manual_seed(0)
    model = IPT(CONFIG)
    batch = groups("derain", "denoise_50")
    loss, (pixel, contrastive, psnr) = Objective(model, 0.25, "fp32")(batch)
    assert loss.item() == pytest.approx(pixel.item() + 0.25 * contrastive.item(), rel=1e-5)
    with torch.no_grad():
        errors = [model(g.degraded, g.task) - g.clean for g in batch]
        assert pixel.item() == pytest.approx(torch.cat(errors).abs().mean().item(), rel=1e-5)
        each = 10 * torch.log10(255**2 / torch.cat(errors).square().flatten(1).mean(1))
        assert psnr.item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_in_a_mixed_batch_every_sample_counts_the_same() -> None:
    torch.manual_seed(0)
    objective = Objective(IPT(CONFIG), 0.0, "fp32")
    one, two = groups("derain", "denoise_50")
    two = Group(two.task, two.degraded[:1], two.clean[:1])
    apart = [objective([g])[0].item() for g in (one, two)]
    assert objective([one, two])[0].item() == pytest.approx((2 * apart[0] + apart[1]) / 3, rel=1e-5)


def test_bf16_changes_the_loss_a_little_only() -> None:
    torch.manual_seed(0)
    model = IPT(CONFIG)
    exact, rounded = (Objective(model, 0.1, p)(groups("derain"))[0].item() for p in ("fp32", "bf16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
