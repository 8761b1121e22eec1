"""Image files as answers: their types, their names, and that they are gone when they are sent."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

MEDIA_TYPES = {
    "png": "image/png",
    "tiff": "image/tiff",
    "jpg": "image/jpeg",
    "webp": "image/webp",
    "avif": "image/avif",
    "bmp": "image/bmp",
    "ppm": "image/x-portable-pixmap",
}
"""By names in `FORMATS`."""

_MOST_CHARACTERS = 100


def result_name(uploaded: str, task: str, format: str) -> str:
    """What a browser may call a result: the photo's name without what systems do not allow, and the task."""
    stem = PurePosixPath(PureWindowsPath(uploaded).name).stem
    plain = re.sub(r"[^\w .()+-]", "_", stem).strip(" .")[:_MOST_CHARACTERS] or "photo"
    return f"{plain}_{task.replace(',', '_')}.{format}"


class HeldFile(FileResponse):
    """A file as an answer, and what is to be let go of when it is sent, or when nobody takes it."""

    def __init__(self, path: Path, held: ExitStack, **options: Any) -> None:
        super().__init__(path, **options)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def image_answers(what: str) -> dict[int | str, dict[str, Any]]:
    """The part of an OpenAPI description that tells of an image as the answer."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"description": what, "content": dict.fromkeys(MEDIA_TYPES.values(), binary)}}
