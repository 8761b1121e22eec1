"""What a failed request means: whether another server or a later time may help, how long to wait, and how to say it.

Failures come as tritonclient's errors with a status of gRPC, over HTTP too.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from enum import Enum, auto

from tritonclient.utils import InferenceServerException

from ipt_triton.board import wait_of
from ipt_triton.client.address import is_http
from ipt_triton.client.errors import (
    AccessRefused,
    InvalidRequest,
    RequestTimeout,
    RestorationError,
    ServerError,
    ServerUnavailable,
)
from ipt_triton.service import ROUTER

UNAVAILABLE, TIMED_OUT, NOT_FOUND = "StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED", "StatusCode.NOT_FOUND"
OVER_TIME = "Deadline Exceeded"
"""What gRPC says when it is the client's own time that is over."""

_REFUSED = ("StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED")
UNIMPLEMENTED = "StatusCode.UNIMPLEMENTED"
_HTTP_STATUSES = {
    400: "StatusCode.INVALID_ARGUMENT",
    401: _REFUSED[0],
    403: _REFUSED[1],
    404: NOT_FOUND,
    429: UNAVAILABLE,
    499: "StatusCode.CANCELLED",
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: TIMED_OUT,
}
_NO_MEMORY, _DEAD = "shared memory pool", "is not healthy"  # in Triton's own words
_CUT_OFF, _LOST = ("RST_STREAM", "Stream removed"), ("Connection reset", "Socket closed")
_ANSWER_OF_A_PROXY = re.compile(r"(?:Received http2 header with status|HTTP status): (\d{3})")
_TLS = re.compile(
    r"CERTIFICATE|WRONG_VERSION|PROTOCOL_FAILURE|verification check|\[SSL(?!: UNEXPECTED_EOF)", re.IGNORECASE
)
_TIME_LIMITS = "nginx: grpc_read_timeout or proxy_read_timeout, Envoy: the route's timeout, HAProxy: timeout server"
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 8.0


class Remedy(Enum):
    """What may help a request that failed."""

    NONE = auto()
    ELSEWHERE = auto()
    LATER = auto()
    """And elsewhere."""


def http_error(code: int, message: str | None) -> InferenceServerException:
    """The error for an HTTP answer.

    Args:
        message: Triton's own, None for a page of somebody else's, which is not repeated.
    """
    status = _HTTP_STATUSES.get(code, "StatusCode.INTERNAL" if message else "StatusCode.UNKNOWN")
    return InferenceServerException(message or f"HTTP status: {code}", status)


def remedy(error: InferenceServerException, was_there: bool = True) -> Remedy:
    """What may help after a failure.

    Passing are: too much to do, no connection, a server that is stopping, a dead process (of which Triton says
    INTERNAL; `ipt-serve` starts the server again within seconds), no shared memory for the restored picture.

    Args:
        was_there: whether the model was found before: then it is missing because the server is stopping or starting.
    """
    status, message = error.status(), error.message()
    if _is_proxys_timeout(error):
        return Remedy.NONE
    if status == UNAVAILABLE:
        return Remedy.ELSEWHERE if _TLS.search(message) else Remedy.LATER
    if status == NOT_FOUND:
        return Remedy.LATER if was_there else Remedy.ELSEWHERE
    if status in (*_REFUSED, UNIMPLEMENTED):
        return Remedy.ELSEWHERE
    return Remedy.LATER if any(words in message for words in (_DEAD, _NO_MEMORY, *_CUT_OFF, *_LOST)) else Remedy.NONE


def was_cut_off(error: InferenceServerException) -> bool:
    """Whether an answer had begun and was broken off while its connection stayed, as by an impatient proxy."""
    message = error.message()
    return any(words in message for words in _CUT_OFF) and not any(words in message for words in _LOST)


def retry_delays(retries: int) -> Iterator[float]:
    """Seconds to wait before each retry: doubling, and spread so that many clients do not come back at once."""
    for attempt in range(retries):
        yield min(_FIRST_DELAY * 2**attempt, _LONGEST_DELAY) * random.uniform(0.75, 1.25)


def pause(delays: Iterator[float], error: InferenceServerException) -> float | None:
    """Seconds to wait before the request is sent again, at least as long as the server asks for; None: not at all."""
    delay = next(delays, None) if remedy(error) is Remedy.LATER else None
    asked = wait_of(error.message())
    return delay if delay is None or asked is None else max(delay, asked * random.uniform(1, 1.5))


def explain(error: InferenceServerException, url: str, timeout: float | None) -> RestorationError:
    """The client's error for one of tritonclient's."""
    status, message = error.status(), error.message()
    line = (message.splitlines() or [""])[0]
    if _NO_MEMORY in message:
        return ServerUnavailable(
            f"the server at {url} has no shared memory left; enlarge its /dev/shm (docker: --shm-size), or send less "
            "at a time"
        )
    if _is_proxys_timeout(error):
        return RequestTimeout(
            f"a proxy before the server at {url} did not wait for the answer; raise its time limit for reading "
            f"({_TIME_LIMITS})"
        )
    if answer := _ANSWER_OF_A_PROXY.search(message):
        return _explain_answer(int(answer[1]), url)
    if was_cut_off(error):
        return RequestTimeout(
            f"the answer of the server at {url} was cut off ({line}); look at its log, and raise the time limits of a "
            f"proxy before it ({_TIME_LIMITS})"
        )
    if status in _REFUSED:
        return AccessRefused(f"the server at {url} refuses access ({line}); check the token and the headers")
    if status == UNAVAILABLE and _TLS.search(message):
        return AccessRefused(
            f"no trusted connection to the server at {url} ({_reason(line)}); check the address, whether it speaks "
            "TLS, and ca, cert and key"
        )
    if status == UNAVAILABLE:
        return ServerUnavailable(
            f"the server at {url} is away or too busy ({message}); start it with ipt-serve or check the address, "
            f"which is {'that of its HTTP port' if is_http(url) else 'HOST:PORT of its gRPC port'}"
        )
    if status == "StatusCode.INVALID_ARGUMENT":
        return InvalidRequest(message)
    if status == TIMED_OUT:
        return RequestTimeout(f"the server at {url} did not answer within {timeout} s; allow more or send less")
    if status == NOT_FOUND:
        return ServerError(f"the server at {url} does not serve the model {ROUTER!r}; serve a repository of ipt-export")
    return ServerError(f"the server at {url} failed ({status}: {line}); look at its log")


def _is_proxys_timeout(error: InferenceServerException) -> bool:
    message = error.message()
    if answer := _ANSWER_OF_A_PROXY.search(message):
        return answer[1] == "504"
    return "upstream request timeout" in message or (error.status() == TIMED_OUT and message != OVER_TIME)


def _explain_answer(code: int, url: str) -> RestorationError:
    """The error for an HTTP status of a proxy, or of whatever else answers at the address."""
    said = f"a proxy at {url} answered with HTTP status {code}"
    if code == 413:
        return InvalidRequest(f"{said}: the image is too large for it; raise its limit (nginx: client_max_body_size)")
    if code == 408:
        return RequestTimeout(f"{said}: the image came too slowly for it; raise its limit (nginx: client_body_timeout)")
    if code in (401, 403, 407):
        return AccessRefused(f"{said}: it refuses access; check the token, the headers and the client's certificate")
    if code == 400:
        return AccessRefused(f"{said}: it does not take the request; it may want TLS, or a certificate: cert and key")
    if code in (429, 502, 503):
        return ServerUnavailable(f"{said}: the servers behind it are away or too busy; look at its log")
    if code >= 500:
        return ServerError(f"{said}; look at its log")
    return ServerError(f"{said}, so no Triton is there; check the address and the proxy's routes")


def _reason(line: str) -> str:
    """The end of what gRPC says of a failed connection, where the cause is."""
    return line.rpartition("OPENSSL_internal:")[2] or line
