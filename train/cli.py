"""`ipt-train`: one command for everything in this room. Each sub-command is also `python -m train.<module>`.

    ipt-train pretrain --data photos --output runs/tiny --preset ipt-tiny --time-budget 2h
    ipt-train finetune weights/ipt-tiny --task dejpeg_40 --freeze-body --data photos --output runs/jpeg --steps 5000
    ipt-train evaluate runs/tiny/checkpoint --data Set5 --task sr_x2
    ipt-train infer runs/tiny/checkpoint photo.png restored.png --task sr_x2
    ipt-train import-official IPT_pretrain.pt --output weights/ipt
    ipt-train release runs/tiny/checkpoint weights/tiny --evaluation set5.json

`ipt-train SUB-COMMAND --help` explains its arguments.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from train.parser import make_parser

COMMANDS = {
    "pretrain": "train.pretrain",
    "finetune": "train.finetune",
    "evaluate": "train.evaluate",
    "infer": "train.infer",
    "import-official": "train.import_official",
    "release": "train.release",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments to the sub-command's module; returns its exit status, 2 for an unknown sub-command."""
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser("ipt-train", __doc__ or "")
    parser.add_argument("command", choices=COMMANDS, help="what to do")
    arguments = parser.parse_args(words[:1])  # the rest is the sub-command's
    status: int = importlib.import_module(COMMANDS[arguments.command]).main(words[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
