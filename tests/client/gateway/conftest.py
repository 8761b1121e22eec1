"""One gateway without limits for the tests of a file, and a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from helpers.browser import Visitor, chromium
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """Open a page; whatever the test does, the page has nothing to complain of and asks nobody else."""
    visitors: list[Visitor] = []

    def visit(url: str, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.page.context.close()
        assert visitor.complaints == []
        assert not [url for url in visitor.requests if not url.startswith(("http://127.0.0.1:", "blob:"))]
