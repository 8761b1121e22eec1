"""`POST /v1/restore`: a photo in, the restored photo out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ipt_triton.client.gateway.access import KnownCaller
from ipt_triton.client.gateway.files import MEDIA_TYPES, HeldFile, image_answers, result_name
from ipt_triton.client.gateway.options import Options
from ipt_triton.client.gateway.problems import Problem, documented
from ipt_triton.client.gateway.restoring import Timings
from ipt_triton.client.gateway.state import gateway_of
from ipt_triton.client.gateway.upload import FILE_FIELD, check_length, receive

T = TypeVar("T")

router = APIRouter(tags=["restore"])

UPLOAD_ERRORS = (400, 401, 403, 408, 413, 415, 422, 429, 500, 502, 503, 504)


_FILE = {"type": "string", "format": "binary"}

PHOTO_FORM: dict[str, Any] = {
    "type": "object",
    "title": "PhotoForm",
    "properties": {
        FILE_FIELD: {**_FILE, "description": "PNG, JPEG, WebP, TIFF, BMP, AVIF, PPM, GIF or HEIC."},
        **Options.model_json_schema()["properties"],
    },
    "required": [FILE_FIELD],
}
"""JSON schema of a form with a photo."""

PHOTO_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"$ref": "#/components/schemas/PhotoForm"}},
            "application/octet-stream": {"schema": _FILE},
        },
    }
}
"""The part of an OpenAPI description that tells of a photo as the body: in a form, or bare."""


@router.post(
    "/v1/restore",
    summary="Restore a photo",
    response_class=Response,
    responses={**image_answers("The restored photo."), **documented(*UPLOAD_ERRORS)},
    openapi_extra=PHOTO_BODY,
)
async def restore(request: Request, query: Annotated[Options, Query()], caller: KnownCaller) -> Response:
    """Send the photo as `image` of a form, or as the bare body with the options in the query.

    The answer keeps depth, alpha, profile and metadata. `Server-Timing` tells where the time went.
    """
    gateway = gateway_of(request)
    check_length(request, gateway.settings.max_upload_bytes)
    gateway.restorer.check_waiting()
    timings = Timings(gateway.measures)
    with gateway.ending.request(), ExitStack() as stack:
        charge = gateway.accounts.open(caller)
        stack.callback(charge.close)
        folder = stack.enter_context(gateway.spool.work())
        room = stack.enter_context(gateway.spool.room(gateway.settings.max_upload_bytes))
        upload = await receive(request, folder / "upload", gateway.settings)
        options = Options.of(query, upload.fields)
        described = await gateway.restorer.describe(upload.path, options)
        charge.photo(described.width * described.height)
        room.resize(await gateway.restorer.room_for(upload.path, described, options))
        with anyio.fail_after(gateway.settings.restore_s):
            written = await _unless_gone(
                request,
                gateway.restorer.restore(upload.path, folder, described, options, caller.owner, timings),
            )
        request.state.logged = {"task": options.task, "width": described.width, "height": described.height}
        return HeldFile(
            folder / "result",
            stack.pop_all(),
            media_type=MEDIA_TYPES[written.format],
            filename=result_name(upload.name, options.named_task, written.format),
            headers={
                "Server-Timing": timings.header(),
                "Ipt-Task": options.named_task,
                "Ipt-Size": f"{written.width}x{written.height}",
            },
        )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work as long as its caller is there: one who has left frees the compute.

    Raises:
        Problem: the caller has left, and nobody reads this.
    """

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(400, "the caller has left")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})
