"""Two servers for many minutes, under load, while their processes are killed, stopped and started at random.

    ipt-benchmark soak --repository triton_models --minutes 20
    ipt-benchmark soak --repository triton_models --minutes 1 --seed 7 --json build/soak.json

Clients ask for photographs of all tasks and several sizes and types, each at one of two `ipt-serve` on loopback, at the
other one when it is refused; some leave before the answer. Meanwhile, every few seconds and by a seed: a process of a
model or tritonserver is killed, or stopped for up to three seconds, the launcher is killed, or a server is told to
stop; what has ended is started again.

At the end each answer must have been the undisturbed one, byte by byte; no call may have ended in anything but an
answer or a refusal that says "unavailable"; both servers must serve, on as much memory as at the start; and once they
are stopped, no process, no shared memory, no file and no descriptor may be left.

Exit codes: 0 all held; 1 something did not, or a server could not be started; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ipt_triton import RequestTimeout, RestorationClient, RestorationError, ServerUnavailable
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.presentation import Figure, figure, table
from ipt_triton.benchmarks.record import Record, Session, command_line, publish
from ipt_triton.benchmarks.served import photograph
from ipt_triton.benchmarks.serving.memory import MIB, proportional
from ipt_triton.benchmarks.serving.replica import Replica
from ipt_triton.benchmarks.serving.throughput import positive
from ipt_triton.cli import run_command

SIZES = ((40, 30), (128, 128), (170, 200), (320, 240))
DEPARTING = 0.1
"""Share of photographs whose client leaves after less than a second."""
PAUSE_S = (2.0, 10.0)
"""Between two faults."""
PATIENCE_S = 180.0
"""A photograph that neither server takes in this time is counted as refused."""

Job = tuple[np.ndarray, str]


class Faults:
    """What befalls the servers, by a seed; `log` keeps what it was, when, and how long it took until it was ready."""

    STUB, SERVER = "triton_python", "tritonserver"

    def __init__(self, replicas: Sequence[Replica], seed: int) -> None:
        self._replicas, self._random = replicas, random.Random(seed)
        self.log: list[dict[str, Any]] = []
        self._kinds: dict[str, Callable[[Replica], object]] = {
            "a model's process killed": lambda replica: self._hit(replica, self.STUB, signal.SIGKILL),
            "tritonserver killed": lambda replica: self._hit(replica, self.SERVER, signal.SIGKILL),
            "a model's process stopped for a while": lambda replica: self._freeze(replica, self.STUB),
            "tritonserver stopped for a while": lambda replica: self._freeze(replica, self.SERVER),
            "launcher killed, started again": self._kill_launcher,
            "told to stop, started again": self._stop,
        }

    def run(self, over: threading.Event, started: float) -> None:
        """One fault after the other until it is over; each server is healed before it is hit again."""
        deck: list[str] = []
        while not over.wait(self._random.uniform(*PAUSE_S)):
            deck = deck or self._random.sample(list(self._kinds), len(self._kinds))
            replica, kind = self._random.choice(self._replicas), deck.pop()
            began = time.monotonic()
            self._kinds[kind](replica)
            time.sleep(1.5)  # a fault is noticed within 1 s
            replica.await_ready()
            seconds = time.monotonic() - began
            self.log.append({"at_s": round(began - started, 1), "kind": kind, "healed_s": round(seconds, 1)})

    def _hit(self, replica: Replica, name: str, number: signal.Signals) -> int | None:
        pids = replica.pids(name)
        if not pids:
            return None
        pid = self._random.choice(sorted(pids))
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    def _freeze(self, replica: Replica, name: str) -> None:
        pid = self._hit(replica, name, signal.SIGSTOP)
        time.sleep(self._random.uniform(0.1, 3))
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _kill_launcher(self, replica: Replica) -> None:
        replica.process.kill()
        replica.process.wait()
        replica.start()

    def _stop(self, replica: Replica) -> None:
        replica.end()
        replica.start()


class Crowd:
    """Clients of both servers, and what became of their photographs."""

    def __init__(self, replicas: Sequence[Replica], jobs: Sequence[Job], expected: Sequence[np.ndarray]) -> None:
        self._urls = [replica.url for replica in replicas]
        self._jobs, self._expected = jobs, expected
        self.outcomes: Counter[str] = Counter()
        self.restored_at: list[float] = []
        self.failures: list[str] = []

    def client(self, seed: int, over: threading.Event, started: float) -> None:
        """Ask until it is over."""
        chance = random.Random(seed)
        with ExitStack() as stack:
            patient = [stack.enter_context(RestorationClient(url, timeout=60, retries=2)) for url in self._urls]
            while not over.is_set():
                number = chance.randrange(len(self._jobs))
                if chance.random() < DEPARTING:
                    self._depart(chance, number)
                else:
                    self._ask(chance.sample(patient, len(patient)), number, started)

    def _ask(self, clients: Sequence[RestorationClient], number: int, started: float) -> None:
        deadline = time.monotonic() + PATIENCE_S
        turn = 0
        while time.monotonic() < deadline:
            try:
                restored = clients[turn % len(clients)].restore(*self._jobs[number])
            except ServerUnavailable:
                turn += 1
                continue
            except RequestTimeout:
                break
            except RestorationError as error:
                self._fail("unclear", f"{self._jobs[number][1]}: {error!r}")
                return
            self._check(restored, number)
            self.restored_at.append(round(time.monotonic() - started, 1))
            return
        self.outcomes["refused"] += 1

    def _depart(self, chance: random.Random, number: int) -> None:
        with RestorationClient(chance.choice(self._urls), timeout=chance.uniform(0.02, 0.8), retries=0) as client:
            try:
                self._check(client.restore(*self._jobs[number]), number)
            except (RequestTimeout, ServerUnavailable):
                self.outcomes["departed"] += 1
            except RestorationError as error:
                self._fail("unclear", f"{self._jobs[number][1]}: {error!r}")

    def _check(self, restored: np.ndarray, number: int) -> None:
        if np.array_equal(restored, self._expected[number]):
            self.outcomes["right"] += 1
        else:
            differs = (
                (restored != self._expected[number]).mean() if restored.shape == self._expected[number].shape else 1
            )
            self._fail("wrong", f"job {number}, {self._jobs[number][1]}: {differs:.1%} of the samples differ")

    def _fail(self, outcome: str, words: str) -> None:
        self.outcomes[outcome] += 1
        self.failures.append(f"{outcome}: {words}")


def jobs_of(tasks: Sequence[str]) -> list[Job]:
    """Each task with photographs of all sizes, one of them in 16 bit."""
    photos = [photograph(width, height) for width, height in SIZES]
    photos.append(photos[1].astype(np.uint16) * 257 + 11)
    return [(photo, task) for task in tasks for photo in photos]


def restore_all(replica: Replica, jobs: Sequence[Job]) -> list[np.ndarray]:
    """All jobs, one after the other."""
    with RestorationClient(replica.url) as client:
        return [client.restore(*job) for job in jobs]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The soak; the record's figures. Raises LoadError if a server could not be started or did not heal."""
    descriptors = psutil.Process().num_fds()
    with tempfile.TemporaryDirectory() as name:
        replicas = [Replica(arguments.repository, Path(name, str(number))) for number in range(2)]
        try:
            for replica in replicas:
                replica.await_ready()
            with RestorationClient(replicas[0].url) as client:
                info = client.info()
            jobs = jobs_of([task.name for task in info.tasks])
            expected = restore_all(replicas[0], jobs)
            before = _memory(replicas)
            crowd, faults = Crowd(replicas, jobs, expected), Faults(replicas, arguments.seed)
            _soak(crowd, faults, arguments)
            for replica in replicas:
                replica.await_ready()
            differing = sum(
                not np.array_equal(*pair)
                for replica in replicas
                for pair in zip(restore_all(replica, jobs), expected, strict=True)
            )
            after = _memory(replicas)
            for replica in replicas:
                replica.end()
        finally:
            for replica in replicas:
                replica.process.kill()
                replica.process.wait()
        left = [thing for replica in replicas for thing in replica.left()]
    left += ["descriptors"] * (psutil.Process().num_fds() > descriptors)
    return {
        "checkpoint": info.checkpoint_sha256[:8],
        "runtime": info.runtime,
        "precision": info.precision,
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "clients": arguments.clients,
        "photographs": {key: crowd.outcomes[key] for key in ("right", "refused", "departed", "wrong", "unclear")},
        "failures": crowd.failures[:20],
        "differing_afterwards": differing,
        "faults": faults.log,
        "restored_at_s": sorted(crowd.restored_at),
        "memory_mib": {"before": before, "after": after},
        "left": left,
    }


def _soak(crowd: Crowd, faults: Faults, arguments: argparse.Namespace) -> None:
    over, started = threading.Event(), time.monotonic()
    with ThreadPoolExecutor(arguments.clients + 1) as pool:
        work = [pool.submit(faults.run, over, started)]
        work += [pool.submit(crowd.client, 1000 * arguments.seed + i, over, started) for i in range(arguments.clients)]
        try:
            while time.monotonic() < started + 60 * arguments.minutes and not work[0].done():
                time.sleep(0.5)
        finally:
            over.set()
        for each in work:
            each.result()


def _memory(replicas: Sequence[Replica]) -> list[int]:
    return [round(proportional(replica.pids()) / MIB) for replica in replicas]


def broken(figures: dict[str, Any]) -> list[str]:
    """What did not hold, in words."""
    found = list(figures["failures"])
    if figures["differing_afterwards"]:
        found.append(f"{figures['differing_afterwards']} pictures are others than before")
    if not figures["photographs"]["right"] or not figures["faults"]:
        found.append("nothing was restored, or nothing befell the servers")
    memory = figures["memory_mib"]
    # A server that was started again has not restored as much yet; one that was not keeps its pools.
    found += [f"memory grew from {a} to {b} MiB" for a, b in zip(*memory.values(), strict=True) if b > 1.5 * a + 64]
    return found + [f"left: {thing}" for thing in figures["left"]]


def markdown(record: Record) -> str:
    """What became of the photographs, and how the servers healed by fault."""
    figures = record.figures
    photographs, memory = figures["photographs"], figures["memory_mib"]
    rows = []
    for kind in sorted({fault["kind"] for fault in figures["faults"]}):
        healed = [fault["healed_s"] for fault in figures["faults"] if fault["kind"] == kind]
        rows.append((kind, len(healed), f"{statistics.median(healed):.1f}", f"{max(healed):.1f}"))
    servers = "; ".join(f"{a} MiB before, {b} after" for a, b in zip(memory["before"], memory["after"], strict=True))
    return (
        f"Two servers of checkpoint `{figures['checkpoint']}` ({figures['runtime']} {figures['precision']}), "
        f"{figures['clients']} clients, {figures['minutes']:g} minutes, seed {figures['seed']}. Photographs: "
        + ", ".join(f"{count} {outcome}" for outcome, count in photographs.items())
        + f". Memory of the servers: {servers}. Did not hold: {'; '.join(broken(figures)) or 'nothing'}.\n\n"
        + table(("what befell a server", "times", "ready again after, s (median)", "at most"), rows)
    )


def draw(record: Record) -> Figure:
    """Photographs restored over time, and when what befell a server."""
    drawn, ax = figure(8, 3.6)
    seconds = record.figures["restored_at_s"]
    ax.plot([s / 60 for s in seconds], range(1, len(seconds) + 1))
    for fault in record.figures["faults"]:
        ax.axvline(fault["at_s"] / 60, color="0.8", zorder=0, linewidth=0.7)
    ax.set(xlabel="minutes; a line for each fault", ylabel="photographs restored", title="Soak")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("soak", __doc__)
    parser.add_argument(
        "--repository", type=Path, default=Path("triton_models"), metavar="DIR", help="model repository (%(default)s)"
    )
    parser.add_argument("--minutes", type=positive(float), default=20.0, help="(%(default)s)")
    parser.add_argument("--clients", type=positive(int), default=4, help="at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what befalls the servers (%(default)s)")
    arguments = parser.parse_args(argv)

    def work() -> None:
        session = Session.start("soak", argv, ("openvino", "nvidia-pytriton", "tritonclient"))
        figures = measure(arguments)
        publish(session.record(figures), arguments, markdown, draw)
        if found := broken(figures):
            raise LoadError("; ".join(found))

    return run_command(work)
