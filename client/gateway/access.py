"""Who calls a route: the key of the header `Authorization`, or where none is needed the address and the browser."""

from __future__ import annotations

import re
import secrets
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ipt_triton.client.gateway.keys import Caller
from ipt_triton.client.gateway.state import gateway_of

_COOKIE = "ipt_visitor"
_bearer = HTTPBearer(auto_error=False, description="A key of `ipt-gateway new-key`, where the gateway wants one.")


async def _caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    secret = credentials.credentials if credentials else None
    visitor = request.cookies.get(_COOKIE, "")
    address = request.client.host if request.client else "nowhere"
    caller = gateway_of(request).keys.caller(secret, address, visitor if re.fullmatch(r"[\w-]{22}", visitor) else "")
    request.state.caller = caller.name
    return caller


KnownCaller = Annotated[Caller, Depends(_caller)]
"""A route's parameter; without a key that is needed the answer is 401."""


def mark_visitor(request: Request, response: Response) -> None:
    """Tell two browsers of one address apart, by a cookie that lives as long as the browser's session."""
    if _COOKIE not in request.cookies:
        response.set_cookie(_COOKIE, secrets.token_urlsafe(16), httponly=True, samesite="strict")
