"""Errors as callers see them: RFC 9457 problem JSON, whose detail is one sentence."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ipt_triton.board import wait_of
from ipt_triton.client import errors
from ipt_triton.reading import printable, shown

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
BUSY_S = 5.0
"""Seconds after which to try again, where nobody knows better."""

_STATUS: tuple[tuple[type[errors.RestorationError], int], ...] = (
    (errors.NotAnImage, 415),
    (errors.UnsupportedImage, 415),
    (errors.ImageTooLarge, 413),
    (errors.ImageError, 422),
    (errors.InvalidRequest, 422),
    (errors.ServerUnavailable, 503),
    (errors.RequestTimeout, 504),
)
_SERVER_SENTENCES = {
    502: "the restoration server failed at this photo; its operator finds the reason in the gateway's log",
    503: "the restoration server is away or too busy; try again later",
    504: "the restoration server did not answer in time; try again later or send a smaller photo",
}
"""Of the server callers hear no addresses and no messages of its parts."""


class ProblemDetails(BaseModel):
    """The body of every error (RFC 9457)."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Payload Too Large"])
    status: int = Field(examples=[413])
    detail: str = Field(description="One sentence: what is wrong, what is allowed, what to do.")
    retry_after_s: float | None = Field(None, description="Seconds after which to try again, where that may help.")


class Problem(Exception):
    """An error for the caller.

    Args:
        status: of HTTP.
        detail: one sentence.
        retry_after_s: seconds after which it may work.
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, detail: str, retry_after_s: float | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s
        self.headers = dict(headers or {})

    def to_dict(self) -> dict[str, Any]:
        """The body of the answer."""
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return body if self.retry_after_s is None else {**body, "retry_after_s": self.retry_after_s}

    def response(self) -> Response:
        """The answer."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after_s))
        return JSONResponse(self.to_dict(), self.status, headers, media_type=MEDIA_TYPE)


def status_of(error: Exception) -> int:
    """The status of HTTP for any error."""
    if isinstance(error, Problem):
        return error.status
    if isinstance(error, errors.RestorationError):
        return next((status for kind, status in _STATUS if isinstance(error, kind)), 502)
    return 504 if isinstance(error, TimeoutError) else 500


def problem_of(error: errors.RestorationError) -> Problem:
    """What callers are told of an error of the client."""
    status = status_of(error)
    if status not in _SERVER_SENTENCES:
        return Problem(status, printable(str(error)))
    log.warning("%s", error)
    wait = wait_of(str(error)) or BUSY_S
    return Problem(status, _SERVER_SENTENCES[status], wait if status == 503 else None)


def problem_of_anything(error: Exception) -> Problem:
    """What callers are told of any error; what nobody expected is logged with its traceback."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, errors.RestorationError):
        return problem_of(error)
    status = status_of(error)
    if status == 504:
        return Problem(status, "the photo took longer than the gateway allows; send a smaller one, or make a job of it")
    log.error("a request failed", exc_info=error)
    return Problem(status, "the gateway failed; its operator finds the reason in the log under this X-Request-Id")


def sentence_of(failures: list[Any]) -> str:
    """The first of pydantic's complaints as a sentence."""
    first = failures[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path")) or "the request"
    if first["type"] == "extra_forbidden":
        return f"there is no option {shown(name)}; /docs names them all"
    if first["type"] == "missing":
        return f"{name} is missing; /docs names what a request needs"
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input ").strip()
    return f"{name} is {shown(first.get('input'))}, which is not allowed: it {message}"


def install(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""

    async def known(_: Request, error: Exception) -> Response:
        return problem_of_anything(error).response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return Problem(422, sentence_of(list(error.errors()))).response()

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = {
            404: f"there is nothing at {shown(request.url.path)}; /docs names what there is",
            405: f"{request.method} is not allowed at {shown(request.url.path)}; /docs names what is",
        }.get(error.status_code, str(error.detail))
        return Problem(error.status_code, detail, headers=error.headers).response()

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)
    for kind in (Problem, errors.RestorationError, TimeoutError, Exception):
        app.add_exception_handler(kind, known)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The part of an OpenAPI description that names a route's errors."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}},
        }
        for status in statuses
    }


def describe(app: FastAPI, **schemas_of_ours: dict[str, Any]) -> None:
    """Let an application's OpenAPI description know problems, and not the errors that FastAPI would answer itself.

    Args:
        schemas_of_ours: JSON schemas by name that routes refer to.
    """
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = build()
            schemas = description["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            schemas.update(ProblemDetails=ProblemDetails.model_json_schema(), **schemas_of_ours)
            for methods in description["paths"].values():
                for operation in methods.values():
                    if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                        del operation["responses"]["422"]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
