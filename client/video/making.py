"""Making: what a client is asked for, a frame or a part of one, and what becomes of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.client.options import Options, large_enough
from ipt_triton.client.video.encoding import Plan
from ipt_triton.tasks import TaskKey, stage_keys
from ipt_triton.tiling import KEEP, PATCH, STRIDE, check_rule


class Restorer(Protocol):
    """What restores pictures: a `RestorationClient`, or anything with its `restore`. Several threads call it."""

    def restore(
        self,
        image: NDArray[Any],
        task: TaskKey,
        stride: int | None = None,
        keep: int | None = None,
        *,
        tta: bool = False,
    ) -> NDArray[Any]:
        """See `RestorationClient.restore`."""


class Rule(NamedTuple):
    """The tiling rule: side of a tile, distance of neighbours, and side of the centre that is used."""

    patch: int
    stride: int
    keep: int


@dataclass(frozen=True)
class Making:
    """How frames are made: each as a photo with the same options, but for sides that the encoder does not take.

    The client gives rounded pictures, so the mean of views is rounded before it is resized or mixed.

    Attributes:
        client: restores.
        tasks: that a frame goes through.
        rule: the tiling rule that holds.
        options: as of photos.
        size: width and height of what is written; None for that of what the client gives.
        model: what restores, as far as that is known.
    """

    client: Restorer
    tasks: list[int | str]
    rule: Rule
    options: Options
    size: tuple[int, int] | None = None
    model: str = ""

    @property
    def in_parts(self) -> bool:
        """Whether a part of a frame comes out as it does of the whole: not of a chain, and not as the mean of views."""
        return len(self.tasks) == 1 and not self.options.tta

    def restore(self, picture: NDArray[Any]) -> NDArray[Any]:
        """A frame, or a part of one, restored. Several threads may call this."""
        return self.client.restore(picture, self.tasks, self.rule.stride, self.rule.keep, tta=self.options.tta)

    def finish(self, picture: NDArray[Any], restored: NDArray[Any]) -> NDArray[Any]:
        """What is written of a whole frame."""
        height, width = restored.shape[:2]
        return self.options.finished(picture, restored, self.size or (width, height))


def plan_making(
    client: Restorer,
    task: TaskKey,
    stride: int | None,
    keep: int | None,
    options: Options,
    size: tuple[int, int],
    plan: Plan,
) -> Making:
    """How frames of this width and height are made.

    Args:
        client, task, stride, keep: see `restore_video`.
        options: as of photos.
        plan: of what is written.

    Raises:
        UnknownTask: the client has no such task.
        InvalidRequest: a rule that no tiling can follow, or a size that is not reached.
    """
    factor = options.factor(*size)
    if hasattr(client, "info"):
        info = client.info()
        chain = large_enough(info.tasks, info.chain(task), factor)
        wanted = options.size(*size, chain)
        return Making(
            client,
            [stage.id for stage in chain.tasks],
            Rule(info.patch_size, *info.rule(stride, keep)),
            options,
            wanted if factor is None else plan.size_within(*wanted),
            f"{info.checkpoint_sha256} {info.runtime} {info.precision}",
        )
    if factor is not None:
        raise InvalidRequest("scale, width and height need a client whose `info` tells its tasks; this one has none")
    rule = Rule(PATCH, STRIDE if stride is None else stride, KEEP if keep is None else keep)
    try:
        check_rule(rule.stride, rule.keep)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return Making(client, stage_keys(task), rule, options)
