"""`ipt-train`: one command for training and for what comes before and after it.

    ipt-train pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h
    ipt-train finetune weights/ipt-tiny --task dejpeg --freeze-body --data photos --output runs/jpeg --steps 5000
    ipt-train evaluate runs/tiny/checkpoint --data Set5 --task sr_x2
    ipt-train infer runs/tiny/checkpoint photo.png restored.png --task sr_x2
    ipt-train import-official IPT_pretrain.pt --output weights/ipt
    ipt-train release runs/tiny/checkpoint weights/tiny --evaluation set5.json
    ipt-train pack photos --output pool.npz
    ipt-train pack photos --output shards/photos.tar --shards 64
    ipt-train degrade photos --task derain dejpeg --output degraded
    ipt-train checkpoint runs/tiny/state.pt runs/tiny/checkpoint

`ipt-train COMMAND --help` explains its arguments. From a checkout, with torch and numpy alone and without `evaluate`:
`PYTHONPATH=src python -m ipt_triton.train`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ipt_triton.cli import run_subcommand

COMMANDS = {
    "pretrain": "ipt_triton.train.fit.pretrain",
    "finetune": "ipt_triton.train.fit.finetune",
    "infer": "ipt_triton.train.model.infer",
    "import-official": "ipt_triton.train.model.import_official",
    "release": "ipt_triton.train.model.release",
    "pack": "ipt_triton.train.data.pack",
    "degrade": "ipt_triton.train.data.degrade",
    "checkpoint": "ipt_triton.train.fit.state",
}


def main(argv: Sequence[str] | None = None, others: Mapping[str, str] = MappingProxyType({})) -> int:
    """Hand the arguments to the sub-command's module; returns its exit status, 2 for an unknown sub-command.

    Args:
        others: sub-commands that live in other rooms; an installation adds `evaluate`.
    """
    return run_subcommand("ipt-train", __doc__ or "", {**COMMANDS, **others}, argv)


if __name__ == "__main__":
    sys.exit(main())
