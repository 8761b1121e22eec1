"""Client room: restore photos through a running server.

from client import RestorationClient

with RestorationClient("localhost:8001") as client:
    restored = client.restore(image, "sr_x2")
"""

from client.connection import AsyncRestorationClient, RestorationClient
from client.errors import (
    ImageError,
    InvalidRequest,
    RequestTimeout,
    RestorationError,
    ServerError,
    ServerUnavailable,
    UnknownTask,
)
from client.images import Photo, read_photo, write_photo
from client.protocol import ServerInfo, Task

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
