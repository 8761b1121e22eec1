"""`/v1/jobs`: photos that are restored while their callers do something else."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ipt_triton.client.gateway import codec
from ipt_triton.client.gateway.access import KnownCaller
from ipt_triton.client.gateway.files import MEDIA_TYPES, HeldFile, image_answers, result_name
from ipt_triton.client.gateway.job import Job, JobDetails
from ipt_triton.client.gateway.jobs import Jobs
from ipt_triton.client.gateway.journal import request_id
from ipt_triton.client.gateway.options import Options, check_format
from ipt_triton.client.gateway.problems import documented
from ipt_triton.client.gateway.restore_routes import PHOTO_BODY, UPLOAD_ERRORS
from ipt_triton.client.gateway.state import gateway_of
from ipt_triton.client.gateway.upload import check_length, receive

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_LOOK_S, _PAUSE_S, _SILENCE_S = 1.0, 0.1, 15.0
_PNG = b"\x89PNG"


class Download(BaseModel):
    """How a result is wanted, where not as the job was told."""

    model_config = ConfigDict(extra="forbid")

    format: str | None = Field(default=None, description="Another file format.")
    quality: int | None = Field(default=None, ge=1, le=100, description="Of JPEG, WebP and AVIF.")


@router.post(
    "",
    status_code=202,
    summary="Make a job",
    response_model=JobDetails,
    responses=documented(*UPLOAD_ERRORS),
    openapi_extra=PHOTO_BODY,
)
async def make_job(
    request: Request, response: Response, query: Annotated[Options, Query()], caller: KnownCaller
) -> JobDetails:
    """Takes what `/v1/restore` takes, and answers at once; `Location` is the job's address."""
    gateway = gateway_of(request)
    check_length(request, gateway.settings.max_upload_bytes)
    gateway.restorer.check_waiting()
    id, now = secrets.token_urlsafe(16), time.time()
    folder = gateway.spool.jobs / id
    with gateway.ending.request(), ExitStack() as undo:
        charge = gateway.accounts.open(caller)
        undo.callback(charge.close)
        room = undo.enter_context(gateway.spool.room(gateway.settings.max_upload_bytes))
        folder.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        upload = await receive(request, folder / "upload", gateway.settings)
        options = Options.of(query, upload.fields)
        described = await gateway.restorer.describe(upload.path, options)
        charge.photo(described.width * described.height)
        needs = await gateway.restorer.room_for(upload.path, described, options)
        room.resize(needs)
        job = Job(
            id=id,
            owner=caller.owner,
            account=caller.account,
            request_id=request_id.get(),
            uploaded=upload.name,
            options=options,
            described=described,
            folder=folder,
            needs=needs,
            created=now,
            expires=now + gateway.settings.retention_s,
        )
        gateway.jobs.add(job, charge, room)
        undo.pop_all()
    response.headers["Location"] = f"/v1/jobs/{id}"
    return gateway.jobs.details(job)


def _job(request: Request, id: str, caller: KnownCaller) -> Job:
    gateway = gateway_of(request)
    return gateway.jobs.find(id, caller, gateway.keys.required)


@router.get("/{id}", summary="A job", responses=documented(401, 404, 410))
async def show_job(request: Request, id: str, caller: KnownCaller) -> JobDetails:
    """Its state, its place in the queue, and its progress in tiles."""
    return gateway_of(request).jobs.details(_job(request, id, caller))


@router.delete("/{id}", status_code=204, summary="Cancel or remove a job", responses=documented(401, 403, 404, 410))
async def cancel_job(request: Request, id: str, caller: KnownCaller) -> None:
    """Stops the work within one chunk of tiles, and deletes the photo and all that was made of it."""
    await gateway_of(request).jobs.cancel(_job(request, id, caller))


@router.get(
    "/{id}/events",
    summary="A job's progress",
    response_class=StreamingResponse,
    responses={
        200: {"description": "A stream that ends with the job.", "content": {"text/event-stream": {}}},
        **documented(401, 404, 410),
    },
)
async def job_events(request: Request, id: str, caller: KnownCaller) -> StreamingResponse:
    """Server-sent events `job`, whose data is the job: one at once, and one whenever something has changed."""
    job = _job(request, id, caller)
    headers = {"X-Accel-Buffering": "no"}  # for nginx
    return StreamingResponse(_events(gateway_of(request).jobs, job), media_type="text/event-stream", headers=headers)


async def _events(jobs: Jobs, job: Job) -> AsyncIterator[str]:
    told, last = "", time.monotonic()
    while True:
        changed, ended = job.changed, bool(job.ended)
        data = jobs.details(job).model_dump_json()
        if data != told:
            told, last = data, time.monotonic()
            yield f"event: job\ndata: {data}\n\n"
        elif time.monotonic() - last > _SILENCE_S:
            last = time.monotonic()
            yield ": still there\n\n"
        if ended or jobs.stopping:
            return
        await asyncio.sleep(_PAUSE_S)
        with anyio.move_on_after(_LOOK_S):
            await changed.wait()


@router.get(
    "/{id}/result",
    summary="A job's result",
    response_class=Response,
    responses={**image_answers("The restored photo."), **documented(401, 404, 409, 410, 413, 422)},
)
async def job_result(request: Request, id: str, query: Annotated[Download, Query()], caller: KnownCaller) -> Response:
    """The restored photo, in the format of the job or in another one, which is made from the same pixels."""
    gateway = gateway_of(request)
    job = _job(request, id, caller)
    output = gateway.jobs.output_of(job)
    job.fetched = True
    format = output.format if query.format is None else check_format(query.format)
    name = result_name(job.uploaded, job.options.named_task, format)
    options = {"media_type": MEDIA_TYPES[format], "filename": name}
    if query.quality is None and format == output.format:
        return FileResponse(job.folder / "result", **options)  # type: ignore[arg-type]
    with ExitStack() as stack:
        target = stack.enter_context(gateway.spool.work()) / "result"
        await gateway.workers.run(
            output.width * output.height,
            codec.encode,
            *(job.folder, target, format, query.quality, job.options.keeps_metadata, job.options.named_task),
        )
        return HeldFile(target, stack.pop_all(), **options)


@router.get(
    "/{id}/before",
    summary="The photo, for browsers",
    response_class=Response,
    responses={
        **image_answers("PNG or JPEG of 8 bits, upright, at most 8192 pixels long."),
        **documented(401, 404, 410, 422),
    },
)
async def job_before(request: Request, id: str, caller: KnownCaller) -> Response:
    """The photo as it was sent, as a picture that every browser shows."""
    return await _picture(request, _job(request, id, caller), "before")


@router.get(
    "/{id}/after",
    summary="The result, for browsers",
    response_class=Response,
    responses={
        **image_answers("PNG or JPEG of 8 bits, upright, at most 8192 pixels long."),
        **documented(401, 404, 409, 410),
    },
)
async def job_after(request: Request, id: str, caller: KnownCaller) -> Response:
    """The restored photo, as a picture that every browser shows."""
    return await _picture(request, _job(request, id, caller), "after")


async def _picture(request: Request, job: Job, which: str) -> Response:
    path = await gateway_of(request).jobs.picture(job, which)
    with path.open("rb") as file:
        is_png = file.read(len(_PNG)) == _PNG
    return FileResponse(path, media_type=MEDIA_TYPES["png" if is_png else "jpg"])
