"""Several servers: which one takes the next request, which are left alone for a while, and when to give up.

    errand = servers.errand(retries, timeout)
    while True:
        with errand.ask() as connection:
            return connection.infer(...)
        if errand.pause: time.sleep(errand.pause)

Nothing here waits or sends, so it serves the blocking client and the one for asyncio.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

from tritonclient.utils import InferenceServerException

from ipt_triton.board import wait_of
from ipt_triton.client.errors import InvalidRequest, RestorationError
from ipt_triton.client.failures import Remedy, explain, pause, remedy, retry_delays, was_cut_off

logger = logging.getLogger(__name__)

FIRST_REST_S, LONGEST_REST_S = 1.0, 30.0
"""A server that failed is left alone so long, after each failure in a row for twice as long."""

MOST_CUT_OFF = 3
"""A request whose answer was cut off so often is given up: a proxy's time limit would cut it off each time."""

SILENCE_S = 1.0
"""Whoever waits longer for a server is told."""

C = TypeVar("C")


@dataclass(eq=False)
class Server(Generic[C]):
    """One server and what is known of it."""

    address: str
    connection: C
    under_way: int = 0
    turn: int = 0
    failures: int = 0
    rests_until: float = 0.0
    busy_until: float = 0.0
    has_answered: bool = False


class Servers(Generic[C]):
    """Servers that give the same answers. Threads may share them.

    Args:
        addresses: see `address.parse_addresses`.
        connect: makes the connection to one of them.
    """

    def __init__(self, addresses: Sequence[str], connect: Callable[[str], C]) -> None:
        self.url = ",".join(addresses)
        self._servers = [Server(address, connect(address)) for address in addresses]
        self._lock = threading.Lock()
        self._turns = count(1)
        self._told = False

    @property
    def connections(self) -> list[C]:
        return [server.connection for server in self._servers]

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._servers)

    def errand(self, retries: int, timeout: float | None) -> Errand[C]:
        """A request that is about to be sent; see `Errand`."""
        return Errand(self, retries, timeout)

    def take(self, failed: set[Server[C]]) -> Server[C]:
        """The server for the next request: the one with the least under way, in turns, of those that work.

        A server that failed and has rested gets one request, and more when it has answered. Those that rest are taken
        only if none works, the one whose rest ends first before the others.

        Args:
            failed: those that have failed at this request.
        """
        with self._lock:
            left = [server for server in self._servers if server not in failed]
            working = [server for server in left if _works(server)]
            if working:
                server = min(working, key=lambda each: (each.under_way, each.turn))
            else:
                server = min(left, key=lambda each: (max(each.rests_until, each.busy_until), each.turn))
            server.under_way += 1
            server.turn = next(self._turns)
            return server

    def release(self, server: Server[C]) -> None:
        """A request is over, whatever became of it."""
        with self._lock:
            server.under_way -= 1

    def answered(self, server: Server[C]) -> None:
        """A server works."""
        with self._lock:
            server.failures, server.rests_until, server.busy_until, server.has_answered = 0, 0.0, 0.0, True
            self._told = False

    def rest(self, server: Server[C], error: InferenceServerException) -> None:
        """Leave a server alone, for as long as it asks, or longer each time."""
        asked = wait_of(error.message())
        with self._lock:
            if asked is not None:
                server.busy_until = time.monotonic() + asked
                return
            server.failures += 1
            rest = min(FIRST_REST_S * 2 ** (server.failures - 1), LONGEST_REST_S)
            server.rests_until = time.monotonic() + rest

    def others(self, failed: set[Server[C]], busy: bool) -> bool:
        """Whether there are servers that have not failed at this request; counting those that asked to wait, or not."""
        with self._lock:
            now = time.monotonic()
            return any(server not in failed and (busy or now >= server.busy_until) for server in self._servers)

    def has_answered(self) -> bool:
        """Whether any has ever answered."""
        return any(server.has_answered for server in self._servers)

    def tell(self, error: RestorationError) -> None:
        """Log that a request waits, once until a server answers; as a warning if one has answered before."""
        if not self._told:
            self._told = True
            logger.log(logging.WARNING if self.has_answered() else logging.INFO, "waiting: %s", error)

    def last_words(self, trouble: RestorationError) -> RestorationError:
        """What is told when none could answer a request, from the trouble with the last one that was asked."""
        return trouble if len(self._servers) == 1 else type(trouble)(f"none of {self.url} answers: {trouble}")


def _works(server: Server[C]) -> bool:
    rested = time.monotonic() >= max(server.rests_until, server.busy_until)
    return rested and (server.failures == 0 or server.under_way == 0)


class Errand(Generic[C]):
    """One request on its way: who is asked, who after a failure, and after which pause.

    A request that failed goes to another server at once. When all have failed it waits, and goes round again.

    Attributes:
        pause: seconds to wait before `ask` is called again.
    """

    def __init__(self, servers: Servers[C], retries: int, timeout: float | None) -> None:
        self.pause = 0.0
        self._servers, self._timeout = servers, timeout
        self._delays = retry_delays(retries)
        self._failed: set[Server[C]] = set()
        self._passing: list[InferenceServerException] = []
        self._since: float | None = None
        self._cut_off = 0

    @contextmanager
    def ask(self) -> Iterator[C]:
        """Ask the next server. If it fails the block ends without an error, and the request is to be sent again.

        Raises:
            RestorationError: neither another server nor a later time may help, or there were enough retries.
        """
        server = self._servers.take(self._failed)
        try:
            yield server.connection
        except InferenceServerException as error:
            self.pause = self._after(server, error)
        else:
            self._servers.answered(server)
        finally:
            self._servers.release(server)

    def _after(self, server: Server[C], error: InferenceServerException) -> float:
        trouble, what_helps = explain(error, server.address, self._timeout), remedy(error, self._servers.has_answered())
        if isinstance(trouble, InvalidRequest):
            self._servers.answered(server)
        else:
            self._servers.rest(server, error)
        self._cut_off += was_cut_off(error)
        if what_helps is Remedy.NONE or self._cut_off == MOST_CUT_OFF:
            raise trouble from error
        self._since = self._since or time.monotonic()
        self._failed.add(server)
        if what_helps is Remedy.LATER:
            self._passing.append(error)
        if self._servers.others(self._failed, busy=not self._passing):
            return 0.0
        delay = None
        if self._passing:
            delay = pause(self._delays, min(self._passing, key=lambda each: wait_of(each.message()) or 0.0))
        if delay is None:
            raise self._servers.last_words(trouble) from error
        self._failed.clear()
        self._passing.clear()
        if time.monotonic() + delay > self._since + SILENCE_S:
            self._servers.tell(self._servers.last_words(trouble))
        return delay
