"""Hooks for schemathesis (`SCHEMATHESIS_HOOKS`): many of its requests hold photos, tasks and jobs that there are.

What it makes of the description alone is refused at the door nearly always.
"""

from __future__ import annotations

import zlib
from typing import Any

import httpx2
import schemathesis
from helpers.gateway import picture
from hypothesis import strategies as st

TASKS = ("derain", "sr_x2", "0", "denoise_30,sr_x2")
PHOTOS = (
    *(picture(name, mode=mode) for name in ("PNG", "WEBP", "TIFF") for mode in ("RGB", "L", "RGBA")),
    *(picture("JPEG", mode=mode) for mode in ("RGB", "L", "CMYK")),
    picture(width=1, height=1),
    picture("BMP", 47, 49),
    picture("GIF"),
)
FILES = st.sampled_from(PHOTOS) | st.sampled_from(PHOTOS) | st.binary()

schemathesis.openapi.format("binary", FILES)
schemathesis.openapi.media_type("application/octet-stream", FILES)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Two of three ids become those of jobs, and two of three photos get a task of the server and few options."""
    if "id" in (case.path_parameters or {}) and (number := _number(case.path_parameters["id"])) % 3:
        case.path_parameters["id"] = made_job(case.operation.schema.get_base_url().rstrip("/"), number % 3 == 1)
    for options in (case.query, case.body):
        if isinstance(options, dict) and (number := _number(options)) % 3:
            for name in [name for name, value in options.items() if name != "image" and _number(value) % 4]:
                del options[name]
            if case.operation.method == "post":
                options["task"] = TASKS[number % len(TASKS)]


def made_job(address: str, ends: bool) -> str:
    """The id of a new job.

    Args:
        ends: wait for its end.
    """
    answer = httpx2.post(f"{address}/v1/jobs?task=sr_x2", content=PHOTOS[0], timeout=60)
    id: str = answer.raise_for_status().json()["id"]
    if ends:
        httpx2.get(f"{address}/v1/jobs/{id}/events", timeout=60).raise_for_status()
    return id


def _number(value: object) -> int:
    """The same for the same value, so that a seed makes the same requests again."""
    return zlib.crc32(repr(value).encode(errors="replace"))
