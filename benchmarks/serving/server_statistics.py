"""Where a server's time goes between two moments: Triton's statistics of each model, and the CPU time of processes."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import psutil
import tritonclient.grpc as triton

from ipt_triton import service
from ipt_triton.benchmarks.serving.load import ClosedLoop, Request, Window
from ipt_triton.benchmarks.serving.memory import process_name

PARTS = ("head", "body", "tail")
ROUTER, SERVER, LOAD = "router", "tritonserver", "load"
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Times:
    """What a model, or several of one role, did; durations in nanoseconds.

    Attributes:
        requests: answered.
        samples: in them; for a part patches, for the router images.
        executions: batches that the model ran.
        queue, compute: sums over requests, as Triton counts them: each request of a batch waits for all of the batch.
        busy: sum over executions, so at most the time that passed times the model's instances.
    """

    requests: int = 0
    samples: int = 0
    executions: int = 0
    queue: int = 0
    compute: int = 0
    busy: int = 0

    def __add__(self, other: Times) -> Times:
        return Times(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Times) -> Times:
        return Times(*map(operator.sub, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Moment:
    """The server's counts at one time: by model, and CPU seconds by role (empty if its processes are not known)."""

    models: Mapping[str, Times]
    cpu: Mapping[str, float]


class ObservedServer:
    """A server under load, and its models by role: head, body, tail, router. A context manager, for its connection.

    A model that runs head, body and tail counts as a body.

    Args:
        url: HOST:PORT of its gRPC port.
        tasks: names of the tasks whose ensembles tell which models are heads, bodies and tails.
        pids: its processes, if they run on this machine and are known; CPU time then includes that of this process, the
            load generator.
    """

    def __init__(self, url: str, tasks: Iterable[str], pids: Iterable[int] = ()) -> None:
        self.url = url
        self.pids = tuple(pids)
        self._connection = triton.InferenceServerClient(url)
        self._roles = {service.ROUTER: ROUTER}
        for task in tasks:
            steps = self._connection.get_model_config(service.ensemble_name(task)).config.ensemble_scheduling.step
            models = [step.model_name for step in steps]
            self._roles.update(zip(models, PARTS if len(models) > 1 else ("body",), strict=True))
        self._processes = {pid: self._roles.get(process_name(pid), SERVER) for pid in self.pids}
        if self._processes:
            self._processes[os.getpid()] = LOAD

    def __enter__(self) -> ObservedServer:
        return self

    def __exit__(self, *ended: object) -> None:
        self._connection.close()

    def measure(
        self, requests: Sequence[Request], concurrency: int, seconds: float, windows: int
    ) -> tuple[list[Window], dict[str, Any]]:
        """A closed loop of requests, warmed up; its windows, and what the server did in them (see `between`).

        Raises:
            RestorationError: as `ClosedLoop`.
        """
        with ClosedLoop(self.url, requests, concurrency) as loop:
            loop.warm_up(min(WARM_UP_S, seconds))
            before = self.look()
            measured = [loop.window(seconds) for _ in range(windows)]
            after = self.look()
        return measured, self.between(before, after)

    def look(self) -> Moment:
        """The counts now."""
        models = {stats.name: _times(stats) for stats in self._connection.get_inference_statistics().model_stats}
        cpu = dict.fromkeys(self._processes.values(), 0.0)
        for pid, role in self._processes.items():
            cpu[role] += _cpu_seconds(pid)
        return Moment(models, cpu)

    def between(self, before: Moment, after: Moment) -> dict[str, Any]:
        """What happened in between, as JSON values.

        `body_batch`: mean patches of a body's execution. For each role that had work: `queue_ms` and `compute_ms`, the
        mean of a request to it (the router's computing includes its waiting for the parts), and for the parts `busy`,
        the share in the time that they executed, all instances summed. `cpu`: shares in the CPU time, or None.
        """
        totals = dict.fromkeys((*PARTS, ROUTER), Times())
        for model, role in self._roles.items():
            totals[role] += after.models[model] - before.models[model]
        busy = sum(totals[part].busy for part in PARTS)
        figures: dict[str, Any] = {"body_batch": round(totals["body"].samples / max(1, totals["body"].executions), 2)}
        for role, times in totals.items():
            if times.requests:
                figures[role] = {
                    "queue_ms": round(times.queue / times.requests / 1e6, 3),
                    "compute_ms": round(times.compute / times.requests / 1e6, 3),
                }
                if role in PARTS:
                    figures[role]["busy"] = round(times.busy / busy, 4)
        cpu = {role: seconds - before.cpu[role] for role, seconds in after.cpu.items()}
        total = sum(cpu.values())
        figures["cpu"] = {role: round(seconds / total, 4) for role, seconds in cpu.items()} if total else None
        return figures


def _times(stats: Any) -> Times:
    """Of a ModelStatistics message."""
    sums = stats.inference_stats
    return Times(
        requests=sums.success.count,
        samples=stats.inference_count,
        executions=stats.execution_count,
        queue=sums.queue.ns,
        compute=sums.compute_input.ns + sums.compute_infer.ns + sums.compute_output.ns,
        busy=sum(b.compute_input.ns + b.compute_infer.ns + b.compute_output.ns for b in stats.batch_stats),
    )


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process and all its threads so far; 0 when it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
