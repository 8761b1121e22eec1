"""The commands that an installation has: where each lives, and what to install where its packages are missing.

The only place above all rooms: it knows them by name and imports one when its command is run.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable


def _command(name: str, module: str, extra: str) -> Callable[[], int]:
    def run() -> int:
        try:
            main: Callable[[], int] = importlib.import_module(f"ipt_triton.{module}").main
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("ipt_triton"):
                raise
            print(f"{name} needs the package {error.name}: pip install 'ipt-triton[{extra}]'", file=sys.stderr)
            return 2
        return main()

    return run


restore = _command("ipt-restore", "client.restore", "")
web = _command("ipt-web", "client.web", "web")
serve = _command("ipt-serve", "export.serving.command", "serve")
export = _command("ipt-export", "export.__main__", "export")
train = _command("ipt-train", "train.__main__", "train")
benchmark = _command("ipt-benchmark", "benchmarks.__main__", "benchmarks")
