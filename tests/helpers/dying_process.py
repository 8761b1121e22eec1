"""`ipt-train pretrain` whose second process dies before its third step, the first time that torchrun starts it."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from typing import Any

from ipt_triton.train.fit import command, pretrain, validation
from ipt_triton.train.fit.loop import Trainer
from ipt_triton.train.fit.runtime import Runtime

open_runtime, train_step = command.open_runtime, Trainer.train_step


def hasty_runtime(*arguments: Any) -> Runtime:
    """One whose processes save after each step, if they are told to."""
    return replace(open_runtime(*arguments), agree_every=1)


def mortal_step(self: Trainer, *arguments: Any) -> Any:
    first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_time and os.environ["RANK"] == "1" and self.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, *arguments)


if __name__ == "__main__":
    validation.VALIDATION_CROPS = 4  # as `few_held_out_crops` does
    command.open_runtime, Trainer.train_step = hasty_runtime, mortal_step  # type: ignore[method-assign]
    sys.exit(pretrain.main())
