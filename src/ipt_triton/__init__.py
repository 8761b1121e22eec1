"""Restore photographs through a running server.

    from ipt_triton import RestorationClient

    with RestorationClient("localhost:8001") as client:
        restored = client.restore(image, "sr_x2")  # uint8 or uint16, [height, width, 3] -> [2 · height, 2 · width, 3]

Names are imported when they are first asked for, so that machines without the client's packages can use the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipt_triton.client import AsyncRestorationClient as AsyncRestorationClient
    from ipt_triton.client import ImageError as ImageError
    from ipt_triton.client import InvalidRequest as InvalidRequest
    from ipt_triton.client import Photo as Photo
    from ipt_triton.client import RequestTimeout as RequestTimeout
    from ipt_triton.client import RestorationClient as RestorationClient
    from ipt_triton.client import RestorationError as RestorationError
    from ipt_triton.client import ServerError as ServerError
    from ipt_triton.client import ServerInfo as ServerInfo
    from ipt_triton.client import ServerUnavailable as ServerUnavailable
    from ipt_triton.client import Task as Task
    from ipt_triton.client import UnknownTask as UnknownTask
    from ipt_triton.client import read_photo as read_photo
    from ipt_triton.client import write_photo as write_photo

__all__ = [
    "AsyncRestorationClient",
    "ImageError",
    "InvalidRequest",
    "Photo",
    "RequestTimeout",
    "RestorationClient",
    "RestorationError",
    "ServerError",
    "ServerInfo",
    "ServerUnavailable",
    "Task",
    "UnknownTask",
    "read_photo",
    "write_photo",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("ipt_triton.client"), name)
    raise AttributeError(f"module 'ipt_triton' has no attribute {name!r}")
