"""Fixtures: a small model with random weights, and one real server that serves it to the whole test run.

Tests that use a server's fixture get the marker `server`. No test connects to other machines.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.collector import Collector, collecting
from helpers.support import Served, small_model

from ipt_triton import RestorationClient
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.train.model.checkpoint import load_checkpoint, save_checkpoint

pytest_plugins = ["stand_in.fixtures"]

# A shell starts what runs in the background with SIGINT ignored, and processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def refuse_to_end(number: int, frame: Any) -> None:
    pytest.fail("SIGTERM came to this process, which runs tests, and not to the one that it was meant for")


if "PYTEST_XDIST_WORKER" in os.environ:  # which would end without a word
    signal.signal(signal.SIGTERM, refuse_to_end)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
SERVERS = {"served", "server", "slow_server"}
"""Fixtures that are real servers."""


def refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: Python's sockets of this process reach loopback addresses and files alone."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
        if not host.startswith(LOOPBACK):
            raise RuntimeError(f"a test connects to {host}; tests stay on this machine")


sys.addaudithook(refuse_other_machines)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(small_model(), folder, provenance={"made_by": "tests"})
    return folder


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with collecting() as started:
        yield started


@pytest.fixture(scope="session")
def served(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    checkpoint = load_checkpoint(small_checkpoint)
    manifest = export_parts([checkpoint], folder / "parts")
    options = ServingOptions(max_input_pixels=1_000_000, max_output_pixels=2_000_000)
    write_repository(folder / "parts", manifest, folder / "models", options)
    with TritonServer(folder / "models", http_port=0, trace_url=collector.url) as server:
        yield Served(checkpoint, manifest, folder / "models", server)


@pytest.fixture
def client(served: Served) -> Iterator[RestorationClient]:
    with RestorationClient(served.server.grpc_url) as connection:
        yield connection
