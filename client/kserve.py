"""Connections over HTTP, for servers that are reached by it alone: KServe's protocol, version 2, with binary tensors.

Triton's HTTP port is closed unless it was opened, and SECURITY.md says why; gRPC does everything that this does, and
can call off what was asked for. Requests carry their length, never `Transfer-Encoding: chunked`, of which Triton 2.51
dies, and nothing is compressed.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tritonclient.grpc as triton
from google.protobuf.json_format import ParseDict, ParseError
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from ipt_triton.client.address import Access
from ipt_triton.client.errors import InvalidAddress
from ipt_triton.client.failures import OVER_TIME, TIMED_OUT, UNAVAILABLE, UNIMPLEMENTED, http_error
from ipt_triton.client.tracing import trace_headers
from ipt_triton.client.transport import Answers, AsyncAnswers
from ipt_triton.service import ROUTER

try:
    import httpx
except ImportError as error:
    raise InvalidAddress("http:// and https:// need httpx: pip install 'ipt-triton[http]'") from error

_HEADER_LENGTH = "Inference-Header-Content-Length"
_CONNECT_S = 5.0
_IDLE_S = 60  # a connection that waits for an answer must not look dead to routers on the way
_NOT_TRITONS = "the answer is none of Triton's"


class HttpConnection:
    """`transport.Connection` over HTTP. Threads may share it."""

    def __init__(self, address: str, access: Access) -> None:
        transport = httpx.HTTPTransport(**_transport(access))
        self._http = httpx.Client(base_url=address, headers=_headers(access), transport=transport)

    def config(self, timeout: float | None) -> Any:
        with _as_triton():
            answer = self._http.get(f"{_model(ROUTER)}/config", timeout=_limits(timeout))
        return _config(answer)

    def infer(
        self, message: pb.ModelInferRequest, timeout: float | None, unwanted: Callable[[], bool] | None = None
    ) -> triton.InferResult:
        body, headers = _body(message)
        url = f"{_model(message.model_name)}/infer"
        with _as_triton():
            answer = self._http.post(url, content=body, headers=headers, timeout=_limits(timeout))
        return _result(answer)

    def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> Answers:
        raise _no_streams(message)

    def close(self) -> None:
        self._http.close()


class AsyncHttpConnection:
    """`transport.AsyncConnection` over HTTP."""

    def __init__(self, address: str, access: Access) -> None:
        transport = httpx.AsyncHTTPTransport(**_transport(access))
        self._http = httpx.AsyncClient(base_url=address, headers=_headers(access), transport=transport)

    async def config(self, timeout: float | None) -> Any:
        with _as_triton():
            answer = await self._http.get(f"{_model(ROUTER)}/config", timeout=_limits(timeout))
        return _config(answer)

    async def infer(self, message: pb.ModelInferRequest, timeout: float | None) -> triton.InferResult:
        body, headers = _body(message)
        url = f"{_model(message.model_name)}/infer"
        with _as_triton():
            answer = await self._http.post(url, content=body, headers=headers, timeout=_limits(timeout))
        return _result(answer)

    def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> AsyncAnswers:
        raise _no_streams(message)

    async def close(self) -> None:
        await self._http.aclose()


def _model(name: str) -> str:
    return f"v2/models/{name}"


def _no_streams(message: pb.ModelInferRequest) -> InferenceServerException:
    return InferenceServerException(f"no streams of model '{message.model_name}' over HTTP", UNIMPLEMENTED)


def _transport(access: Access) -> dict[str, Any]:
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if hasattr(socket, "TCP_KEEPIDLE"):  # not on every system
        options.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return {"verify": access.context or True, "limits": limits, "socket_options": options}


def _headers(access: Access) -> dict[str, str]:
    return {"Accept-Encoding": "identity", **dict(access.headers)}


def _limits(timeout: float | None) -> httpx.Timeout:
    return httpx.Timeout(timeout, connect=_CONNECT_S if timeout is None else min(_CONNECT_S, timeout))


def _body(message: pb.ModelInferRequest) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request: what it holds as JSON, then the tensors' contents one after the other."""
    header: dict[str, Any] = {"id": message.id} if message.id else {}
    header |= {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(content)},
            }
            for tensor, content in zip(message.inputs, message.raw_input_contents, strict=True)
        ],
        "outputs": [{"name": output.name, "parameters": {"binary_data": True}} for output in message.outputs],
        "parameters": {name: value.int64_param for name, value in message.parameters.items()},
    }
    words = json.dumps(header).encode()
    headers = {_HEADER_LENGTH: str(len(words)), "Content-Type": "application/octet-stream", **dict(trace_headers())}
    return b"".join((words, *message.raw_input_contents)), headers


def _config(answer: httpx.Response) -> Any:
    _check(answer)
    with _readable():
        return ParseDict(answer.json(), model_config_pb2.ModelConfig(), ignore_unknown_fields=True)


def _result(answer: httpx.Response) -> triton.InferResult:
    """Triton's answer as if it had come over gRPC."""
    _check(answer)
    found = pb.ModelInferResponse()
    with _readable():
        start = int(answer.headers[_HEADER_LENGTH])
        for output in json.loads(answer.content[:start])["outputs"]:
            end = start + output["parameters"]["binary_data_size"]
            found.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            found.raw_output_contents.append(answer.content[start:end])
            start = end
    return triton.InferResult(found)


def _check(answer: httpx.Response) -> None:
    if answer.status_code == 200:
        return
    try:
        message = answer.json()["error"]
    except (ValueError, LookupError, TypeError):
        message = None
    raise http_error(answer.status_code, message if isinstance(message, str) else None)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, ParseError) as error:
        raise InferenceServerException(_NOT_TRITONS, "StatusCode.UNKNOWN") from error


@contextmanager
def _as_triton() -> Iterator[None]:
    try:
        yield
    except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
        raise InferenceServerException(OVER_TIME, TIMED_OUT) from error
    except httpx.TransportError as error:
        raise InferenceServerException(str(error) or type(error).__name__, UNAVAILABLE) from error
