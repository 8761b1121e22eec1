"""What a running gateway consists of."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.gateway.ending import Ending
from ipt_triton.client.gateway.examples import Examples
from ipt_triton.client.gateway.jobs import Jobs
from ipt_triton.client.gateway.keys import Accounts, Keys
from ipt_triton.client.gateway.measures import Measures
from ipt_triton.client.gateway.readiness import Readiness
from ipt_triton.client.gateway.restoring import Restorer
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spool import Spool
from ipt_triton.client.gateway.turns import Turns
from ipt_triton.client.gateway.workers import Workers


@dataclass(frozen=True)
class Gateway:
    """The parts of a gateway, for its routes."""

    settings: Settings
    client: AsyncRestorationClient
    keys: Keys
    accounts: Accounts
    spool: Spool
    workers: Workers
    turns: Turns
    restorer: Restorer
    jobs: Jobs
    ending: Ending
    examples: Examples
    readiness: Readiness
    measures: Measures


def gateway_of(request: Request) -> Gateway:
    """The gateway that a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway
