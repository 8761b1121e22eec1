"""`ipt-train pretrain` that writes down which shards its processes and their workers open: `RANK PATH` a line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ipt_triton.train.fit import pretrain, validation


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; what is forked has it too."""
    if event == "open" and str(arguments[0]).endswith(".tar"):
        line = f"{os.environ['RANK']} {arguments[0]}\n".encode()
        os.write(OPENED, line)


if __name__ == "__main__":
    validation.VALIDATION_CROPS = 4  # as `few_held_out_crops` does
    OPENED = os.open(Path(sys.argv.pop(1)), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(watch)
    sys.exit(pretrain.main())
