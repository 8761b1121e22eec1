"""Client room: restore photos through a running server.

from ipt_triton.client import RestorationClient

with RestorationClient("localhost:8001") as client:
    restored = client.restore(image, "sr_x2")
"""

from ipt_triton.client.connection import AsyncRestorationClient, RestorationClient
from ipt_triton.client.errors import (
    ImageError,
    InvalidRequest,
    RequestTimeout,
    RestorationError,
    ServerError,
    ServerUnavailable,
    UnknownTask,
)
from ipt_triton.client.photo import Photo, read_photo, write_photo
from ipt_triton.client.protocol import ServerInfo, Task

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
