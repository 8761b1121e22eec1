"""What is compared: the experiments, each with its settings and the one that the others are set against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from ipt_triton.train.fit.recipe import PAPER_LAMBDA
from ipt_triton.train.model.ipt import POSITIONS

LAMBDAS = (0.0, 0.05, PAPER_LAMBDA, 0.2, 0.5)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Variant:
    """One setting of one seed.

    Attributes:
        network: `ipt`, `edsr`, `rdn` or `ignn`.
        contrastive: weight λ of the contrastive loss; 0 for a rival, which has no tokens.
        position: how IPT is told a token's place; empty for a rival.
        share: of the small pool; 0 for the whole pool.
        seed: of weights, crops and degradations.
    """

    network: str = "ipt"
    contrastive: float = PAPER_LAMBDA
    position: str = "learned"
    share: float = 0.0
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the run's folder."""
        parts = [self.network]
        if self.network == "ipt":
            parts += [f"lambda{self.contrastive:g}", self.position]
        if self.share:
            parts.append(f"share{self.share:g}")
        return "-".join([*parts, f"seed{self.seed}"])


NETWORKS = (Variant(), *(Variant(rival, 0.0, "") for rival in ("edsr", "rdn", "ignn")))
"""IPT as published, and the rivals."""


class Experiment(NamedTuple):
    """One comparison.

    Attributes:
        title: of its table.
        settings: what is compared, with seed 0.
        label: of a setting, as a reader sees it.
        reference: the setting that another one is set against.
    """

    title: str
    settings: tuple[Variant, ...]
    label: Callable[[Variant], str]
    reference: Callable[[Variant], Variant] = lambda _: Variant()


EXPERIMENTS = {
    "position": Experiment(
        "How a token's place is told",
        tuple(Variant(position=position) for position in POSITIONS),
        lambda v: v.position,
    ),
    "rivals": Experiment(
        "IPT beside convolutional networks of equal cost",
        NETWORKS,
        lambda v: v.network.upper(),
    ),
    "contrastive": Experiment(
        "Weight λ of the contrastive loss",
        tuple(Variant(contrastive=weight) for weight in LAMBDAS),
        lambda v: f"λ {v.contrastive:g}",
    ),
    "data": Experiment(
        "Share of a small pool, IPT beside convolutional networks of equal cost",
        tuple(replace(network, share=share) for network in NETWORKS for share in SHARES),
        lambda v: f"{v.network.upper()} {100 * v.share:.0f} %",
        lambda v: Variant(share=v.share),
    ),
}
"""In the order in which they are run and reported."""


def variants(experiments: Iterable[str], seeds: int) -> Iterator[Variant]:
    """Every run of the experiments once, one experiment after the other, all of a seed before those of the next."""
    runs = (
        replace(setting, seed=seed)
        for name in experiments
        for seed in range(seeds)
        for setting in EXPERIMENTS[name].settings
    )
    yield from dict.fromkeys(runs)
