"""What a gateway tells of itself: tasks, samples, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ipt_triton.client.errors import UnknownTask
from ipt_triton.client.gateway.access import KnownCaller
from ipt_triton.client.gateway.catalogue import TaskInWords, example_of, in_words
from ipt_triton.client.gateway.options import FORMAT_NAMES
from ipt_triton.client.gateway.problems import BUSY_S, Problem, documented
from ipt_triton.client.gateway.state import Gateway, gateway_of
from ipt_triton.images import PHOTOS
from ipt_triton.reading import shown
from ipt_triton.tasks import Task

router = APIRouter()

_DAY = {"Cache-Control": "public, max-age=86400"}


def _answers(kind: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": "As it is.", "content": {kind: {"schema": {"type": "string"}}}}}


class Catalogue(BaseModel):
    """The tasks, and the limits that hold for everybody."""

    tasks: list[TaskInWords]
    formats: list[str]
    max_upload_bytes: int
    max_pixels: int
    retention_s: float


class Sample(BaseModel):
    """A photo to try."""

    name: str
    url: str


class Samples(BaseModel):
    """Photos to try."""

    samples: list[Sample]


class Ready(BaseModel):
    """Every task has worked lately; seconds since each did."""

    ready: bool
    tasks: dict[str, float]


@router.get("/v1/tasks", summary="The tasks, in words", tags=["restore"], responses=documented(502, 503, 504))
async def tasks(request: Request) -> Catalogue:
    """What the server can do, in groups, and the formats and limits of photos."""
    gateway = gateway_of(request)
    return Catalogue(
        tasks=[in_words(task) for task in (await gateway.restorer.info()).tasks],
        formats=list(FORMAT_NAMES),
        max_upload_bytes=gateway.settings.max_upload_bytes,
        max_pixels=gateway.settings.max_pixels,
        retention_s=gateway.settings.retention_s,
    )


async def _served(gateway: Gateway, name: str) -> Task:
    """A task by its name.

    Raises:
        Problem: 404, the server has none.
    """
    try:
        return (await gateway.restorer.info()).task(name)
    except UnknownTask as error:
        raise Problem(404, str(error)) from None


@router.get(
    "/v1/tasks/{name}/before.jpg",
    summary="A task's example, before",
    tags=["restore"],
    response_class=Response,
    responses={**_answers("image/jpeg"), **documented(404, 502, 503, 504)},
)
async def example_before(request: Request, name: str) -> Response:
    """A photo as the task expects it."""
    task = await _served(gateway_of(request), name)
    path = example_of(task)
    if path is None:
        raise Problem(404, f"the task {task.name} has no example")
    return FileResponse(path, media_type="image/jpeg", headers=_DAY)


@router.get(
    "/v1/tasks/{name}/after.jpg",
    summary="A task's example, after",
    tags=["restore"],
    response_class=Response,
    responses={**_answers("image/jpeg"), **documented(404, 502, 503, 504)},
)
async def example_after(request: Request, name: str) -> Response:
    """The example, restored by this server."""
    gateway = gateway_of(request)
    task = await _served(gateway, name)
    return FileResponse(await gateway.examples.restored(task), media_type="image/jpeg", headers=_DAY)


@router.get("/v1/samples", summary="Photos to try", tags=["restore"])
async def samples() -> Samples:
    """Free photos that come with the package."""
    names = sorted(path.stem for path in PHOTOS.glob("*.png"))
    return Samples(samples=[Sample(name=name, url=f"/v1/samples/{name}.png") for name in names])


@router.get(
    "/v1/samples/{name}.png",
    summary="A photo to try",
    tags=["restore"],
    response_class=Response,
    responses={**_answers("image/png"), **documented(404)},
)
async def sample(name: str) -> Response:
    """One of `/v1/samples`."""
    path = next((path for path in PHOTOS.glob("*.png") if path.stem == name), None)
    if path is None:
        raise Problem(404, f"there is no sample {shown(name)}; /v1/samples names them all")
    return FileResponse(path, media_type="image/png", headers=_DAY)


@router.get(
    "/healthz", summary="Alive", tags=["operation"], response_class=PlainTextResponse, responses=_answers("text/plain")
)
async def healthz() -> str:
    """Answers as long as the gateway runs."""
    return "alive\n"


@router.get("/readyz", summary="Ready", tags=["operation"], responses=documented(503))
async def readyz(request: Request) -> Ready:
    """Whether a real restore of every task has worked lately, and the gateway takes work."""
    gateway = gateway_of(request)
    if reason := "the gateway is stopping" if gateway.ending.begun else gateway.readiness.reason:
        raise Problem(503, f"not ready: {reason}", BUSY_S)
    return Ready(ready=True, tasks={name: round(age, 1) for name, age in gateway.readiness.ages().items()})


@router.get(
    "/metrics",
    summary="Metrics",
    tags=["operation"],
    response_class=Response,
    responses={**_answers("text/plain"), **documented(401)},
)
async def metrics(request: Request, caller: KnownCaller) -> Response:
    """For Prometheus."""
    gateway = gateway_of(request)
    gateway.measures.waiting.set(gateway.turns.waiting)
    gateway.measures.under_way.set(gateway.turns.under_way)
    for state, number in gateway.jobs.count().items():
        gateway.measures.jobs.labels(state).set(number)
    gateway.measures.disk.set(gateway.spool.taken)
    return Response(gateway.measures.page(), media_type=CONTENT_TYPE_LATEST)
