"""The command with a server that is one object of this process and gives every image back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ipt_triton.client import restore
from ipt_triton.client.protocol import ServerInfo
from ipt_triton.tasks import OFFICIAL_TASKS

INFO = ServerInfo(OFFICIAL_TASKS, 48, 40, 46, 10**6, 10**6, 10**4, "0" * 64, "openvino", "fp32")


class Here:
    """A client whose server gives every image back."""

    def __init__(self, *_: object, **__: object) -> None:
        self.url = "here"

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def info(self) -> ServerInfo:
        return INFO

    def restore(self, image: NDArray[Any], *_: object, **__: object) -> NDArray[Any]:
        return image


def run(*arguments: object) -> int:
    return restore.main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
