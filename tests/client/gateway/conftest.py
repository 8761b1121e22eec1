"""One gateway without limits for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from helpers.gateway import Repeating, gateway


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Repeating]]:
    with gateway(tmp_path_factory.mktemp("gateway")) as started:
        yield started


@pytest.fixture
def http(running: tuple[TestClient, Repeating]) -> TestClient:
    return running[0]


@pytest.fixture
def server(running: tuple[TestClient, Repeating]) -> Repeating:
    running[1].__init__()  # type: ignore[misc]
    return running[1]
