"""Generated requests, over gRPC to a real server and over HTTP to the launcher's port: answered or refused, no harm.

Each seed is a request; `HOSTILE_VARIANTS` says how many hundred there are over gRPC, and how many times four over HTTP.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from random import Random

import grpc
import numpy as np
import psutil
import pytest
from helpers.hostile_requests import MODELS, hostile_http, hostile_infer
from helpers.support import Served, read_image
from tritonclient.grpc import service_pb2 as pb

from ipt_triton import RestorationClient
from ipt_triton.export.serving.health import Health

VARIANTS = int(os.environ.get("HOSTILE_VARIANTS", "4"))
SERVICE = "/inference.GRPCInferenceService/"
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"}
OTHERS = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
MOST_MEMORY = 200 * 2**20


def memory(pids: list[int]) -> int:
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids)


def test_generated_requests_over_grpc_are_answered_or_refused_and_no_process_dies(
    served: Served, client: RestorationClient
) -> None:
    photo = read_image("parrot")[:60, :70]
    expected = client.restore(photo, "derain")
    processes = served.server.model_processes()
    statuses: Counter[str] = Counter()
    levels = []

    def ask(seed: int) -> None:
        random = Random(seed)
        method, message = "ModelInfer", hostile_infer(random)
        if random.random() < 0.1:
            method, name = random.choice(OTHERS), random.choice(MODELS)
            message = pb.ModelConfigRequest(name=name).SerializeToString()
        try:
            channel.unary_unary(SERVICE + method)(message, timeout=20)
            statuses["OK"] += 1
        except grpc.RpcError as error:
            statuses[error.code().name] += 1
            words = error.details() or ""
            assert len(words) < 30_000 and "Traceback" not in words, (seed, words)
            if error.code().name == "INTERNAL":
                statuses["INTERNAL " + words[:60]] += 1

    with grpc.insecure_channel(served.server.grpc_url) as channel, ThreadPoolExecutor(8) as pool:
        for part in range(4):
            list(pool.map(ask, range(part * 25 * VARIANTS, (part + 1) * 25 * VARIANTS)))
            levels.append(memory(list(processes)))
    print(statuses, [level // 2**20 for level in levels])
    assert served.server.model_processes() == processes
    assert {name for name in statuses if " " not in name} <= REFUSALS | {"OK"}
    assert statuses["OK"] and statuses["INVALID_ARGUMENT"]
    assert levels[-1] - levels[0] < MOST_MEMORY, levels
    np.testing.assert_array_equal(client.restore(photo, "derain"), expected)


@pytest.fixture
def health() -> Iterator[Health]:
    with closing(Health("127.0.0.1", 0, lambda: None, lambda: b"nv_inference_count 1\n")) as health:
        yield health


def test_generated_requests_over_http_are_answered_or_cut_off(health: Health) -> None:
    raised = []
    health._loop.set_exception_handler(lambda loop, context: raised.append(context))
    threads, before = threading.active_count(), psutil.Process().num_fds()
    for seed in range(4 * VARIANTS):
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", health.port), 5) as connection:
            connection.sendall(hostile_http(Random(seed)))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), (seed, answer)
    with urllib.request.urlopen(f"http://127.0.0.1:{health.port}/readyz") as page:
        assert page.read() == b"ready\n"
    assert raised == []
    assert threading.active_count() <= threads + 8 and psutil.Process().num_fds() <= before + 4
