"""Servers as queues, in simulated time: what photographs wait for when several share some servers.

A server does so many patches a second, a chunk at a time, of the photograph with the fewest left; one that has waited
for long gets a chunk in between. What it takes on is decided by the rule of its own board. Needs simpy.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from ipt_triton.board import reserved_routers, wait_for
from ipt_triton.client.failures import retry_delays
from ipt_triton.export.repository.configs import ServingOptions
from ipt_triton.service import MAX_BATCH

PATIENCE_S = 5.0
"""A photograph that others go before gets a chunk after so long, as in the router."""
_OPTIONS = ServingOptions()

Process = Generator[simpy.Event, Any, Any]


class Refused(Exception):
    """A server has too much to do; `wait` are the seconds that it asks for."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


@dataclass(eq=False)
class Photo:
    """A photograph in a server: patches left, when it came, when it last got a chunk, and its end."""

    left: int
    began: float
    served: float
    done: simpy.Event


class Server:
    """One server in simulated time.

    Args:
        rate: patches a second when it has enough to do.
        overhead: seconds of each photograph that nobody waits for but its caller: it is cut, joined and sent.
    """

    def __init__(self, env: simpy.Environment, rate: float, overhead: float = 0.0) -> None:
        self._env, self._rate, self._overhead = env, rate, overhead
        self._photos: list[Photo] = []
        self._waiting: list[simpy.Event] = []
        self._work = env.event()
        env.process(self._serve())

    @property
    def photographs(self) -> int:
        """Under way, and waiting for a router."""
        return len(self._photos) + len(self._waiting)

    def restore(self, patches: int, within: float = math.inf) -> Process:
        """The process of one photograph; what it raises is Refused.

        Args:
            within: seconds after which its caller leaves.
        """
        until = self._env.now + within
        if len(self._photos) >= _OPTIONS.router_instances:
            yield from self._await_router()
        before = sum(photo.left for photo in self._photos if photo.left <= patches)
        free = _OPTIONS.router_instances - 1 - len(self._photos)
        reserved = reserved_routers(_OPTIONS.router_instances)
        soonest = min((photo.left for photo in self._photos), default=0)
        patience = max(0.0, until - self._env.now)
        if patches > MAX_BATCH and (
            wait := wait_for(patches, before, len(self._waiting), free, reserved, soonest, self._rate, patience)
        ):
            raise Refused(wait)
        photo = Photo(patches, self._env.now, self._env.now, self._env.event())
        self._photos.append(photo)
        if not self._work.triggered:
            self._work.succeed()
        left = self._env.timeout(max(0.0, until - self._env.now)) if until < math.inf else self._env.event()
        yield photo.done | left
        if photo in self._photos:  # its caller has left
            self._photos.remove(photo)
            self._let_in()
        if self._overhead:
            yield self._env.timeout(self._overhead)

    def _await_router(self) -> Process:
        if len(self._waiting) >= _OPTIONS.max_waiting:
            raise Refused(0.0)
        turn = self._env.event()
        self._waiting.append(turn)
        yield turn | self._env.timeout(_OPTIONS.max_wait_ms / 1000)
        if not turn.triggered:
            self._waiting.remove(turn)
            raise Refused(0.0)

    def _let_in(self) -> None:
        if self._waiting and len(self._photos) < _OPTIONS.router_instances:
            self._waiting.pop(0).succeed()

    def _serve(self) -> Process:
        while True:
            if not self._photos:
                self._work = self._env.event()
                yield self._work
            now = self._env.now
            photo = min(self._photos, key=lambda p: (now - p.served < PATIENCE_S, p.left, p.began))
            number = min(photo.left, MAX_BATCH)
            photo.served = now
            yield self._env.timeout(number / self._rate)
            photo.left -= number
            if photo.left <= 0 and photo in self._photos:
                self._photos.remove(photo)
                photo.done.succeed()
                self._let_in()


@dataclass
class Count:
    """What callers got: seconds of each photograph, those given up, refusals."""

    seconds: list[float] = field(default_factory=list)
    slowdowns: list[tuple[int, float]] = field(default_factory=list)
    """Of each photograph: its patches, and how many times as long it took as alone."""
    given_up: int = 0
    refusals: int = 0


def ask(
    env: simpy.Environment, servers: Sequence[Server], patches: int, patience: float, count: Count, retries: int = 0
) -> Process:
    """One photograph as a client brings it through a balancer: True if it came in time.

    Args:
        patience: seconds after which it is given up.
        retries: how many other servers the balancer asks when one refuses.
    """
    delays, until = retry_delays(6), env.now + patience
    while env.now < until:
        tried: list[Server] = []
        refused = Refused(0.0)
        for _ in range(1 + retries):
            open_servers = [server for server in servers if server not in tried]
            if not open_servers:
                break
            choice = min(random.sample(open_servers, min(2, len(open_servers))), key=lambda s: s.photographs)
            tried.append(choice)
            try:
                yield from choice.restore(patches, until - env.now)
                return env.now < until or math.isinf(until)
            except Refused as error:
                count.refusals += 1
                refused = error
        delay = next(delays, None)
        if delay is None:  # it is a new try for the client
            delays = retry_delays(6)
            delay = next(delays)
        yield env.timeout(min(max(delay, refused.wait * random.uniform(1, 1.5)), max(0.0, until - env.now)))
    return False


def closed_loop(
    rate: float, overhead: float, clients: int, patches: int, seconds: float, patience: float = math.inf
) -> Count:
    """Clients that ask one server for one photograph after the other, as `ipt-benchmark` does; the first
    `min(patience, 5)` seconds do not count."""
    env, count = simpy.Environment(), Count()
    server, warm_up = Server(env, rate, overhead), min(patience, 5.0)

    def client() -> Process:
        while True:
            began = env.now
            in_time = yield from ask(env, [server], patches, patience, count)
            if env.now > warm_up and in_time:
                count.seconds.append(env.now - began)
            elif env.now > warm_up:
                count.given_up += 1

    for _ in range(clients):
        env.process(client())
    env.run(warm_up)
    count.refusals = 0
    env.run(warm_up + seconds)
    return count


@dataclass(frozen=True)
class Load:
    """Photographs that come by chance, as many a second as `arrivals` says of the time.

    Attributes:
        patches, shares: of each kind of photograph, and how often it comes.
        rate, overhead: of each server.
    """

    patches: tuple[int, ...]
    shares: tuple[float, ...]
    rate: float
    overhead: float

    @property
    def mean_patches(self) -> float:
        return sum(n * share for n, share in zip(self.patches, self.shares, strict=True)) / sum(self.shares)

    def alone(self, patches: int) -> float:
        """Seconds that a photograph takes alone."""
        return patches / self.rate + self.overhead

    def come(
        self,
        env: simpy.Environment,
        servers: list[Server],
        count: Count,
        utilisation: Callable[[float], float],
        since: float = 0.0,
    ) -> Process:
        """The process of all photographs.

        Args:
            servers: may change meanwhile.
            utilisation: servers that the photographs keep busy, by the time.
            since: what ends before does not count.
        """

        def photograph(patches: int) -> Process:
            began = env.now
            yield from ask(env, servers, patches, math.inf, count, retries=2)
            if env.now > since:
                count.seconds.append(env.now - began)
                count.slowdowns.append((patches, (env.now - began) / self.alone(patches)))

        while True:
            yield env.timeout(random.expovariate(utilisation(env.now) * self.rate / self.mean_patches))
            env.process(photograph(random.choices(self.patches, self.shares)[0]))


def steady(load: Load, replicas: int, utilisation: float, seconds: float) -> tuple[Count, float]:
    """A number of servers under a load that stays; returns also the mean number of photographs in a server.

    Args:
        utilisation: of the servers, 0 to 1.
    """
    env, count = simpy.Environment(), Count()
    servers = [Server(env, load.rate, load.overhead) for _ in range(replicas)]
    levels: list[int] = []

    def look() -> Process:
        while True:
            yield env.timeout(1)
            levels.append(sum(server.photographs for server in servers))

    env.process(load.come(env, servers, count, lambda _: utilisation * replicas, since=seconds / 10))
    env.process(look())
    env.run(seconds)
    return count, sum(levels) / len(levels) / replicas


@dataclass(frozen=True)
class Scaler:
    """What adds and removes servers, as the chart has it: `target` photographs a server, looked at every 15 seconds.

    Attributes:
        least, most: servers.
        start_s: seconds of a server's start.
        down_s: seconds of fewer photographs before one goes, and one a minute then.
    """

    target: float
    least: int = 2
    most: int = 8
    start_s: float = 60.0
    down_s: float = 300.0

    def run(self, load: Load, utilisation: Callable[[float], float], seconds: float) -> tuple[Count, float]:
        """The load over the time; returns also the mean number of servers."""
        env, count = simpy.Environment(), Count()
        servers = [Server(env, load.rate, load.overhead) for _ in range(self.least)]
        total: list[int] = []

        def start(number: int) -> Process:
            yield env.timeout(self.start_s)
            servers.extend(Server(env, load.rate, load.overhead) for _ in range(number))

        def look() -> Process:
            wanted, wishes, shrunk, grown = self.least, [(0.0, self.least)], 0.0, -60.0
            while True:
                yield env.timeout(15)
                total.append(wanted)
                level = sum(server.photographs for server in servers)
                wish = min(max(math.ceil(level / self.target), self.least), self.most)
                wishes = [(at, n) for at, n in wishes if at > env.now - self.down_s] + [(env.now, wish)]
                if wish > wanted and env.now - grown >= 60:
                    grown, more = env.now, min(wish, 2 * wanted) - wanted
                    wanted += more
                    env.process(start(more))
                elif max(n for _, n in wishes) < wanted == len(servers) and env.now - shrunk >= 60:
                    shrunk, wanted = env.now, wanted - 1
                    servers.pop()  # it answers what it has

        env.process(load.come(env, servers, count, utilisation))
        env.process(look())
        env.run(seconds)
        return count, sum(total) / len(total)
