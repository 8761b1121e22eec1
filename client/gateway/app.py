"""The application: all parts put together, started and stopped in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.gateway import info_routes, job_routes, problems, restore_routes
from ipt_triton.client.gateway.access import mark_visitor
from ipt_triton.client.gateway.ending import Ending
from ipt_triton.client.gateway.examples import Examples
from ipt_triton.client.gateway.guard import Guard
from ipt_triton.client.gateway.jobs import Jobs
from ipt_triton.client.gateway.keys import Accounts, Keys
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.readiness import Readiness
from ipt_triton.client.gateway.reference import STYLE, reference_page
from ipt_triton.client.gateway.restoring import Restorer
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spool import Spool
from ipt_triton.client.gateway.state import Gateway
from ipt_triton.client.gateway.turns import Turns
from ipt_triton.client.gateway.workers import Workers
from ipt_triton.version import installed_version

PAGE = Path(__file__).with_name("page")

_DESCRIPTION = """Pictures in, pictures out.

    curl -F image=@a.jpg -F task=sr_x2 localhost:8080/v1/restore -o b.jpg
"""
_EXPOSED = ["Content-Disposition", "Ipt-Size", "Ipt-Task", "Location", "Retry-After", "Server-Timing", "X-Request-Id"]
_REVALIDATED = {"Cache-Control": "no-cache"}


class _Page(StaticFiles):
    """Files of the page; browsers ask whether theirs is still the newest."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type]
        response.headers.update(_REVALIDATED)
        return response


def build_app(settings: Settings, connect: Callable[[], AsyncRestorationClient], keys: Keys, spool: Spool) -> FastAPI:
    """A gateway as an ASGI application.

    Args:
        connect: makes the client of the server; called when the application starts.
        spool: the gateway's folder; whoever made it closes it.
    """
    measures = Measures()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect())
            workers = Workers(settings, measures)
            await workers.start()
            turns = Turns(settings.slots, settings.large_slots, settings.max_waiting)
            restorer = Restorer(client, workers, turns, settings, measures)
            examples = Examples(restorer, spool, measures)
            stack.callback(examples.close)
            readiness = Readiness(client, settings.probe_s, measures)
            accounts = Accounts()
            jobs = Jobs(settings, spool, accounts, workers, turns, restorer, measures)
            stack.push_async_callback(jobs.close)
            jobs.start()
            for endless in (readiness.watch(), jobs.sweep()):
                stack.push_async_callback(_ended, asyncio.create_task(endless))
            app.state.gateway = Gateway(
                settings=settings,
                client=client,
                keys=keys,
                accounts=accounts,
                spool=spool,
                workers=workers,
                turns=turns,
                restorer=restorer,
                jobs=jobs,
                ending=Ending(jobs),
                examples=examples,
                readiness=readiness,
                measures=measures,
            )
            yield

    app = FastAPI(
        title="ipt-triton",
        version=installed_version(),
        summary="Image restoration over HTTP",
        description=_DESCRIPTION,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    problems.describe(app, PhotoForm=restore_routes.PHOTO_FORM)
    app.include_router(restore_routes.router)
    app.include_router(job_routes.router)
    app.include_router(info_routes.router)
    _add_pages(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=_EXPOSED,
    )
    app.add_middleware(Guard, origins=settings.origins, measures=measures)
    return app


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        response = FileResponse(PAGE / "index.html", headers=_REVALIDATED)
        mark_visitor(request, response)
        return response

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))

    @app.get("/docs.css", include_in_schema=False)
    async def style() -> Response:
        return Response(STYLE, media_type="text/css")

    app.mount("/assets", _Page(directory=PAGE), name="assets")
