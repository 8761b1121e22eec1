"""Restore photographs through a running server.

    from ipt_triton import RestorationClient

    with RestorationClient("localhost:8001") as client:
        restored = client.restore(image, "sr_x2")  # uint8 or uint16, [height, width, 3] -> [2 · height, 2 · width, 3]

A name is imported when it is first asked for: reading a manifest needs none of the client's packages, and a client that
sends arrays none of those that read files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.asynchronous import AsyncRestorationClient
    from .client.connection import RestorationClient
    from .client.errors import (
        AccessRefused,
        Cancelled,
        ImageError,
        InvalidAddress,
        InvalidRequest,
        RequestTimeout,
        RestorationError,
        ServerError,
        ServerUnavailable,
        UnknownTask,
    )
    from .client.photo import Photo, as_image, read_photo, write_photo
    from .client.protocol import ServerInfo
    from .tasks import Task

__all__ = [
    "AccessRefused",
    "AsyncRestorationClient",
    "Cancelled",
    "ImageError",
    "InvalidAddress",
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
    "as_image",
    "read_photo",
    "write_photo",
]

_MODULES = {
    "AsyncRestorationClient": "client.asynchronous",
    "Photo": "client.photo",
    "RestorationClient": "client.connection",
    "ServerInfo": "client.protocol",
    "Task": "tasks",
    "as_image": "client.photo",
    "read_photo": "client.photo",
    "write_photo": "client.photo",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ipt_triton' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ipt_triton.{_MODULES.get(name, 'client.errors')}"), name)
