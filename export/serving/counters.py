"""What Triton's page of metrics says of the work: how much each model has computed, what waits, what is under way."""

from __future__ import annotations

import http.client
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r'^(\w+)\{(?:.*?,)?(?:model|instance)="([^"]*)".*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True)
class Counters:
    """One look at a server.

    Attributes:
        computed: inferences of each model since its start.
        answered: requests of each model answered with success since its start.
        waiting: requests of each model that no instance has taken yet.
        under_way: photographs that each instance of the router has begun and not yet answered.
    """

    computed: Mapping[str, float]
    answered: Mapping[str, float]
    waiting: Mapping[str, float]
    under_way: Mapping[str, float]


def read_counters(page: str) -> Counters:
    """Read a page of metrics; what it does not tell is 0."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for family, name, value in _LINE.findall(page):
        found[family][name] += float(value)
    return Counters(
        found["nv_inference_count"],
        found["nv_inference_request_success"],
        found["nv_inference_pending_request_count"],
        found["ipt_photographs_under_way"],
    )


def fetch_page(host: str, port: int, timeout: float = 0.5) -> bytes:
    """Fetch the page of metrics; raises OSError, of which TimeoutError means a busy server."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"no page of metrics: {error!r}") from error
    finally:
        connection.close()
