"""Connections over gRPC, blocking and for asyncio: a message out, an answer or answers in.

`kserve.py` has those over HTTP. All of one kind have the same methods, so that a client need not know which it uses.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import grpc
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from ipt_triton.client.address import Access
from ipt_triton.client.errors import Cancelled
from ipt_triton.client.failures import UNAVAILABLE
from ipt_triton.client.protocol import GRPC_BYTES, parameters
from ipt_triton.client.tracing import trace_headers
from ipt_triton.service import ROUTER

CHANNEL_ARGS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", GRPC_BYTES),
    ("grpc.max_receive_message_length", GRPC_BYTES),
    # A channel waits before it connects anew, up to two minutes by default; the retries shall find it connecting.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in truth the longest time that connecting may take, TLS included
    # Finds a peer that vanished without a word; servers close connections that ping more often than every 5 minutes.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
]

CANCELLED = "the restoration was cancelled"
POLL_S = 0.1
"""So often a caller is asked whether the work is still wanted."""

AsyncAnswers = AsyncGenerator[triton.InferResult, None]
"""The answers to a request as they come; closing it ends the request."""

_STATUS_OF_STREAMS = ("triton_grpc_error", "true")  # without it Triton tells the text of a stream's error alone


class Connection(Protocol):
    """A way to one server. Failures are tritonclient's InferenceServerException with a status of gRPC."""

    def config(self, timeout: float | None) -> Any:
        """The router's configuration, a ModelConfig message."""

    def infer(
        self, message: pb.ModelInferRequest, timeout: float | None, unwanted: Callable[[], bool] | None = None
    ) -> triton.InferResult:
        """The answer to a request, within so many seconds.

        Args:
            unwanted: asked ten times a second whether to give up, which raises Cancelled. Over HTTP nobody is asked.
        """

    def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> Answers:
        """The answers to a request as they come. Over HTTP there are none: UNIMPLEMENTED, naming the model."""

    def close(self) -> None:
        """Give it back; requests under way fail."""


class AsyncConnection(Protocol):
    """`Connection` for asyncio. Cancelling a call cancels its request, and so does leaving a stream."""

    async def config(self, timeout: float | None) -> Any: ...

    async def infer(self, message: pb.ModelInferRequest, timeout: float | None) -> triton.InferResult: ...

    def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> AsyncAnswers: ...

    async def close(self) -> None: ...


def message_of(
    model: str,
    inputs: Sequence[triton.InferInput],
    outputs: Sequence[triton.InferRequestedOutput],
    timeout: float | None,
    request_id: str = "",
) -> pb.ModelInferRequest:
    """The message of a request, which tells how many seconds its caller waits."""
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    for tensor in inputs:  # tritonclient has no public way to their contents
        message.inputs.append(tensor._get_tensor())
        message.raw_input_contents.append(tensor._get_content())
    message.outputs.extend(pb.ModelInferRequest.InferRequestedOutputTensor(name=output.name()) for output in outputs)
    for name, value in (parameters(timeout) or {}).items():
        message.parameters[name].int64_param = value
    return message


class GrpcConnection:
    """`Connection` over gRPC. Threads may share it."""

    def __init__(self, address: str, access: Access) -> None:
        credentials = _credentials(access)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, CHANNEL_ARGS)
        else:
            self._channel = grpc.secure_channel(address, credentials, CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = access.headers

    def config(self, timeout: float | None) -> Any:
        request = pb.ModelConfigRequest(name=ROUTER)
        with _as_triton():
            return self._stub.ModelConfig(request, timeout=timeout, metadata=self._metadata).config

    def infer(
        self, message: pb.ModelInferRequest, timeout: float | None, unwanted: Callable[[], bool] | None = None
    ) -> triton.InferResult:
        with _as_triton():
            metadata = (*self._metadata, *trace_headers())
            if unwanted is None:
                return triton.InferResult(self._stub.ModelInfer(message, timeout=timeout, metadata=metadata))
            call = self._stub.ModelInfer.future(message, timeout=timeout, metadata=metadata)
            try:
                while not unwanted():
                    with suppress(grpc.FutureTimeoutError):
                        return triton.InferResult(call.result(POLL_S))
            finally:
                call.cancel()  # does nothing when it has ended
            raise Cancelled(CANCELLED)

    def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> Answers:
        metadata = (*self._metadata, *trace_headers(), _STATUS_OF_STREAMS)
        return Answers(self._stub.ModelStreamInfer(iter([message]), timeout=timeout, metadata=metadata))

    def close(self) -> None:
        self._channel.close()


class Answers:
    """The answers to one request, for a caller who does other things meanwhile. `cancel` ends the request."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._queue: queue.SimpleQueue[triton.InferResult | InferenceServerException] = queue.SimpleQueue()
        threading.Thread(target=self._take, name="answers", daemon=True).start()

    def _take(self) -> None:
        try:
            with _as_triton():
                for answer in self._call:
                    self._queue.put(_result(answer))
            self._queue.put(InferenceServerException("the stream has ended", UNAVAILABLE))
        except InferenceServerException as error:
            self._queue.put(error)

    def get(self, timeout: float | None = None) -> triton.InferResult | None:
        """The next answer; None if it does not come within so many seconds.

        Raises:
            InferenceServerException: the request failed, was cancelled, or there are no more answers.
        """
        try:
            answer = self._queue.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(answer, InferenceServerException):
            try:
                raise answer
            finally:
                del answer  # or its traceback holds it, and all that the callers have, until Python looks for cycles
        return answer

    def cancel(self) -> None:
        self._call.cancel()


class AsyncGrpcConnection:
    """`AsyncConnection` over gRPC."""

    def __init__(self, address: str, access: Access) -> None:
        credentials = _credentials(access)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, CHANNEL_ARGS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = access.headers

    async def config(self, timeout: float | None) -> Any:
        request = pb.ModelConfigRequest(name=ROUTER)
        with _as_triton():
            return (await self._stub.ModelConfig(request, timeout=timeout, metadata=self._metadata)).config

    async def infer(self, message: pb.ModelInferRequest, timeout: float | None) -> triton.InferResult:
        with _as_triton():
            metadata = (*self._metadata, *trace_headers())
            return triton.InferResult(await self._stub.ModelInfer(message, timeout=timeout, metadata=metadata))

    async def stream(self, message: pb.ModelInferRequest, timeout: float | None) -> AsyncAnswers:
        metadata = (*self._metadata, *trace_headers(), _STATUS_OF_STREAMS)
        call = self._stub.ModelStreamInfer(iter([message]), timeout=timeout, metadata=metadata)
        try:
            with _as_triton():
                async for answer in call:
                    yield _result(answer)
        finally:
            call.cancel()

    async def close(self) -> None:
        await self._channel.close()


def _credentials(access: Access) -> grpc.ChannelCredentials | None:
    if not access.tls:
        return None
    ca, key, cert = (None if file is None else Path(file).read_bytes() for file in (access.ca, access.key, access.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)


def _result(answer: Any) -> triton.InferResult:
    if answer.error_message:  # a Triton that does not know `triton_grpc_error`
        raise InferenceServerException(answer.error_message, "StatusCode.INTERNAL")
    return triton.InferResult(answer.infer_response)


@contextmanager
def _as_triton() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        details = error.details() or ""
        raise InferenceServerException(details, str(error.code())) from error
