"""Load on a server: requests made ready beforehand, and a closed loop that always keeps n of them under way.

It is what perf_analyzer's concurrency mode does: a thread for each request under way sends the next one when its answer
has come. Requests are serialised once and answers are not parsed, so the load leaves the cores to a server on the same
machine.

    with ClosedLoop(url, [restore_request(info, info.task("sr_x2"), photo)], concurrency=4) as loop:
        loop.warm_up(1)
        window = loop.window(5)
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.client.failures import explain
from ipt_triton.client.protocol import ServerInfo, Task
from ipt_triton.client.transport import CHANNEL_ARGS
from ipt_triton.service import ROUTER, ensemble_name
from ipt_triton.tiling import Tiler, plan_axis

INFER = "/inference.GRPCInferenceService/ModelInfer"
"""The method that every request goes to."""


@dataclass(frozen=True)
class Request:
    """A request that can be sent any number of times.

    Attributes:
        task: name of its task.
        patches: network evaluations that it takes.
        input_pixels, output_pixels: that it carries, and that its answer does.
        answer: shape of the restored image or patches.
        message: the serialised ModelInferRequest.
    """

    task: str
    patches: int
    input_pixels: int
    output_pixels: int
    answer: tuple[int, ...]
    message: bytes


def restore_request(info: ServerInfo, task: Task, image: np.ndarray) -> Request:
    """A whole image, uint8 or uint16 [height, width, 3], for the router and its default tiling rule."""
    height, width = image.shape[:2]
    rule = (info.patch_size, info.stride, info.keep)
    patches = len(plan_axis(height, *rule)) * len(plan_axis(width, *rule))
    pixels = height * width
    bits = "16" if image.dtype == np.uint16 else ""
    tensors = {f"IMAGE{bits}": image, "TASK_ID": np.array([task.id], np.int32)}
    message = _serialised(ROUTER, f"RESTORED{bits}", tensors)
    answer = (height * task.scale, width * task.scale, 3)
    return Request(task.name, patches, pixels, pixels * task.scale**2, answer, message)


def patch_request(info: ServerInfo, task: Task, image: np.ndarray, patches: int) -> Request:
    """The first patches of an image, uint8 [height, width, 3], for its ensemble; over again if there are too few."""
    side = info.patch_size
    tiler = Tiler(image, task.scale, side, info.stride, info.keep)
    tiles = np.resize(tiler.patches(0, min(patches, tiler.count)), (patches, 3, side, side))
    pixels = patches * side * side
    answer = (patches, 3, side * task.scale, side * task.scale)
    message = _serialised(ensemble_name(task.name), "RESTORED", {"IMAGE": tiles})
    return Request(task.name, patches, pixels, pixels * task.scale**2, answer, message)


def _serialised(model: str, answer: str, tensors: Mapping[str, np.ndarray]) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
    request.outputs.add(name=answer)
    return request.SerializeToString()


@dataclass(frozen=True)
class Window:
    """The requests that were answered in a stretch of time: its seconds, and the latency of each in seconds."""

    seconds: float
    latencies: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


def latency_ms(windows: Sequence[Window]) -> dict[str, float]:
    """Mean and percentiles of the latencies in all windows, in milliseconds."""
    values = np.concatenate([window.latencies for window in windows]) * 1e3
    figures = {"mean": values.mean(), **{f"p{q}": np.percentile(values, q) for q in (50, 95, 99)}}
    return {name: round(float(value), 3) for name, value in figures.items()}


def open_channel(url: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A connection with TLS where there are credentials for it."""
    if credentials is None:
        return grpc.insecure_channel(url, options=CHANNEL_ARGS)
    return grpc.secure_channel(url, credentials, options=CHANNEL_ARGS)


class ClosedLoop:
    """A context manager: the load runs inside it; on leaving, what is under way is waited for.

    Windows are counted in whole rounds: as many answers as it takes for each place under way, and each request, to have
    had the same number of turns. Requests that started together come back together, so a window that ended in the
    middle of such a burst would show a wrong rate.

    Args:
        requests: sent in turns.
        concurrency: how many are always under way.
        credentials: for TLS; without them there is none.

    Raises:
        RestorationError: no server, or the server refuses one of the requests; each is tried once before the load.
    """

    def __init__(
        self,
        url: str,
        requests: Sequence[Request],
        concurrency: int,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.answered = 0
        """Requests answered so far, in and out of windows, trials included."""
        self._url, self._credentials = url, credentials
        self._requests = requests
        self._turns = itertools.cycle(requests)
        self._round = math.lcm(concurrency, len(requests))
        self._changed = threading.Condition()
        self._ends: list[float] = []
        self._latencies: list[float] = []
        self._edge = 0
        self._failure: grpc.RpcError | None = None
        self._stopping = False
        self._threads = [threading.Thread(target=self._work, name=f"load-{i}") for i in range(concurrency)]

    def __enter__(self) -> ClosedLoop:
        self._channel = open_channel(self._url, self._credentials)
        self._infer = self._channel.unary_unary(INFER)  # bytes in, bytes out
        try:
            for request in self._requests:
                self._try(request)
        except BaseException:
            self._channel.close()
            raise
        self._started = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._stopping = True
        if error is not None:
            self._channel.close()  # cancels what is under way
        for thread in self._threads:
            thread.join()
        self._channel.close()
        if error is None and self._failure is not None:
            raise self._explained(self._failure)

    def warm_up(self, seconds: float) -> None:
        """Let the load run for at least this long and one round."""
        self._advance(seconds)

    def window(self, seconds: float) -> Window:
        """Measure from the last warm-up or window on, for at least this long and one round.

        Raises:
            LoadError: a request failed.
        """
        first = self._edge
        began, ended = self._advance(seconds)
        return Window(ended - began, tuple(self._latencies[first : self._edge]))

    def _advance(self, seconds: float) -> tuple[float, float]:
        """Move the edge to the end of the first whole round after `seconds`; both edges in seconds."""
        began = self._ends[self._edge - 1] if self._edge else self._started
        edge = self._edge

        def reached() -> bool:
            nonlocal edge
            while edge + self._round <= len(self._ends):
                edge += self._round
                if self._ends[edge - 1] - began >= seconds:
                    return True
            return self._failure is not None

        with self._changed:
            self._changed.wait_for(reached)
        if self._failure is not None:
            raise self._explained(self._failure)
        self._edge = edge
        return began, self._ends[edge - 1]

    def _work(self) -> None:
        while not self._stopping:
            message = next(self._turns).message
            started = time.perf_counter()
            try:
                self._infer(message)
            except grpc.RpcError as error:
                with self._changed:
                    if not self._stopping:
                        self._failure, self._stopping = error, True
                    self._changed.notify()
                return
            with self._changed:
                ended = time.perf_counter()
                self._ends.append(ended)
                self._latencies.append(ended - started)
                self.answered += 1
                self._changed.notify()

    def _try(self, request: Request) -> None:
        try:
            answer = pb.ModelInferResponse.FromString(self._infer(request.message))
        except grpc.RpcError as error:
            raise explain(as_triton(error), self._url, None) from None
        shapes = [tuple(output.shape) for output in answer.outputs]
        if shapes != [request.answer]:
            raise LoadError(f"{answer.model_name} answered {shapes} for {request.task} where {request.answer} was due")
        self.answered += 1

    def _explained(self, error: grpc.RpcError) -> LoadError:
        return LoadError(f"under load: {explain(as_triton(error), self._url, None)}")


def as_triton(error: grpc.RpcError) -> InferenceServerException:
    """tritonclient's error for gRPC's."""
    return InferenceServerException(error.details() or "", str(error.code()))
