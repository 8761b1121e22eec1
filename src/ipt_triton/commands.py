"""The commands that an installation has: where each lives, and what to install where its packages are missing.

The only place above all rooms: it knows them by name and imports one when its command is run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from .cli import interrupts_end_it


def _command(name: str, module: str, extra: str, **arguments: object) -> Callable[[], int]:
    def run() -> int:
        try:
            with interrupts_end_it():
                main: Callable[..., int] = importlib.import_module(f"ipt_triton.{module}").main
            return main(**arguments)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ipt_triton"):
                raise
            wanted = f"'ipt-triton[{extra}]'" if extra else "ipt-triton"
            print(f"{name} needs the package {error.name}: pip install {wanted}", file=sys.stderr)
            return 2

    return run


restore = _command("ipt-restore", "client.restore", "")
batch = _command("ipt-batch", "client.bulk.command", "batch")
gateway = _command("ipt-gateway", "client.gateway.command", "gateway")
serve = _command("ipt-serve", "export.serving.command", "serve")
export = _command("ipt-export", "export.__main__", "export")
train = _command("ipt-train", "train.__main__", "train", others={"evaluate": "ipt_triton.benchmarks.quality.evaluate"})
benchmark = _command("ipt-benchmark", "benchmarks.__main__", "export,serve,benchmarks")
