"""How cost grows: with the photograph's side, with requests under way, with tasks served, and with body instances.

    ipt-benchmark scaling --preset ipt-tiny --precision bf16
    ipt-benchmark scaling --preset ipt-small --only side --points 64 256 1024 --json build/scaling.json

side: one photograph at a time; seconds per megapixel, and the peak memory of the router that holds it, of tritonserver
and of the client above what they had before. concurrency: photographs of 128x128, so many under way at all times.
tasks: so many tasks of denoising on one body; seconds to ready and the memory of all of the server's processes, in
which a page that several share counts once. instances: bodies side by side times threads of each, a photograph of
512x512. The weights are random: cost does not depend on them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.record import Spread, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import add_precision, photograph, random_checkpoint, serving_parts
from ipt_triton.benchmarks.serving.load import ClosedLoop, latency_ms, restore_request
from ipt_triton.benchmarks.serving.memory import MIB, Watch, proportional
from ipt_triton.benchmarks.serving.scaling_report import draw, markdown
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.write import ServingOptions
from ipt_triton.manifest import Manifest
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.tiling import Tiler
from ipt_triton.train.model.ipt import PRESETS

TASK = OFFICIAL_TASKS[4]
CONCURRENCY_SIDE, WINDOWS = 128, 3
INSTANCES_SIDE = 512
MOST_RUNS = 25


@dataclass(frozen=True)
class Deployment:
    """The exported parts of one task, ready to be served, and how long to measure each point in seconds."""

    parts: Path
    manifest: Manifest
    seconds: float


def restore_times(client: RestorationClient, side: int, seconds: float) -> list[float]:
    """Seconds of each restored photograph of side x side: for `seconds` in all, once at least, `MOST_RUNS` at most."""
    photo = photograph(side, side)
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < MOST_RUNS):
        times.append(seconds_of(lambda: client.restore(photo, TASK.name)))
    return times


def measure_sides(deployment: Deployment, sides: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds, and peak memory above idle by role in MiB, for each side; from the smallest on, because a
    process keeps memory that it had."""
    rows = []
    with (
        serving_parts(deployment.parts, deployment.manifest) as served,
        RestorationClient(served.server.grpc_url) as client,
    ):
        restore_times(client, sides[0], 0)
        watch = Watch(served.server.pids)
        for side in sides:
            with watch:
                times = restore_times(client, side, deployment.seconds)
            grown = {role: growth["resident"] for role, growth in watch.growth().items()}
            patches = Tiler(photograph(side, side), TASK.scale).count
            rows.append({"side": side, "patches": patches, "seconds": asdict(Spread.of(times)), "growth_mib": grown})
            _progress("side", rows[-1])
    return rows


def measure_concurrency(deployment: Deployment, levels: Sequence[int]) -> list[dict[str, Any]]:
    """Photographs a second, and latencies in ms, with so many requests always under way."""
    rows = []
    with serving_parts(deployment.parts, deployment.manifest) as served:
        url = served.server.grpc_url
        with RestorationClient(url) as client:
            info = client.info()
        request = restore_request(info, info.task(TASK.name), photograph(CONCURRENCY_SIDE, CONCURRENCY_SIDE))
        for level in levels:
            with ClosedLoop(url, [request], level) as loop:
                loop.warm_up(deployment.seconds / 4)
                windows = [loop.window(deployment.seconds / WINDOWS) for _ in range(WINDOWS)]
            rate = Spread.of([window.rate for window in windows])
            row = {"concurrency": level, "side": CONCURRENCY_SIDE, "photos_per_s": asdict(rate)}
            rows.append({**row, "latency_ms": latency_ms(windows)})
            _progress("concurrency", rows[-1])
    return rows


def with_tasks(deployment: Deployment, count: int) -> Manifest:
    """A manifest with so many copies of the one task, each with files and models of its own for head and tail."""
    (route,) = deployment.manifest.routes
    parts, routes = [deployment.manifest.part(route.body)], []
    for number in range(count):
        task = replace(route.task, id=number, name=f"{route.task.name}_{number}")
        names = {old: f"{kind}_{task.name}" for kind, old in (("head", route.head), ("tail", route.tail))}
        for old, new in names.items():
            copy = deployment.parts / f"{new}.onnx"
            if not copy.exists():
                os.link(deployment.parts / f"{old}.onnx", copy)
            parts.append(replace(deployment.manifest.part(old), name=new))
        routes.append(replace(route, task=task, head=names[route.head], tail=names[route.tail]))
    return replace(deployment.manifest, parts=tuple(parts), routes=tuple(routes))


def measure_tasks(deployment: Deployment, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds to ready, processes and their memory in MiB, by the number of tasks; one start each."""
    rows = []
    for count in counts:
        with serving_parts(deployment.parts, with_tasks(deployment, count)) as served:
            pids = served.server.pids
            row = {"tasks": count, "processes": len(pids), "memory_mib": round(proportional(pids) / MIB)}
            rows.append({**row, "seconds_to_ready": round(served.seconds_to_ready, 2)})
        _progress("tasks", rows[-1])
    return rows


def measure_instances(deployment: Deployment, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of a photograph and memory of the server in MiB, by bodies side by side and threads of each."""
    cores = len(os.sched_getaffinity(0))
    rows = []
    for count in counts:
        for threads in sorted({1, max(1, cores // 2), cores}):
            options = ServingOptions(body_instances=count, threads=threads)
            with (
                serving_parts(deployment.parts, deployment.manifest, options) as served,
                RestorationClient(served.server.grpc_url) as client,
            ):
                restore_times(client, INSTANCES_SIDE, 0)
                times = restore_times(client, INSTANCES_SIDE, deployment.seconds)
                memory = round(proportional(served.server.pids) / MIB)
            row = {"instances": count, "threads": threads, "side": INSTANCES_SIDE}
            rows.append({**row, "seconds": asdict(Spread.of(times)), "memory_mib": memory})
            _progress("instances", rows[-1])
    return rows


def _progress(part: str, row: dict[str, Any]) -> None:
    print(f"{part}: {row}", file=sys.stderr)


PARTS: dict[str, tuple[Callable[[Deployment, Sequence[int]], list[dict[str, Any]]], tuple[int, ...]]] = {
    "side": (measure_sides, (64, 128, 256, 512, 1024, 2048, 4096)),
    "concurrency": (measure_concurrency, (1, 2, 4, 8, 16, 32)),
    "tasks": (measure_tasks, (1, 2, 4, 8, 12)),
    "instances": (measure_instances, (1, 2)),
}
"""Ways in which cost grows: how each is measured, and at which points unless others are asked for."""


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: the rows of each part."""
    parts = [arguments.only] if arguments.only else list(PARTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "parts"
        manifest = export_parts([random_checkpoint(arguments.preset, [TASK])], folder, arguments.precision)
        deployment = Deployment(folder, manifest, arguments.seconds)
        rows = {}
        for part in parts:
            measure_part, points = PARTS[part]
            rows[part] = measure_part(deployment, sorted(arguments.points or points))
    return {"preset": arguments.preset, "precision": arguments.precision, "task": TASK.name, "parts": rows}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("scaling", __doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="ipt-tiny", help="(default %(default)s)")
    add_precision(parser)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--points", type=int, nargs="+", metavar="N", help="with --only: where to measure it")
    once = "for each point (default %(default)s); what takes longer is measured once"
    parser.add_argument("--seconds", type=float, default=8.0, help=once)
    arguments = parser.parse_args(argv)
    if arguments.points and not arguments.only:
        parser.error("--points belongs to a part: name it with --only")
    if arguments.points and min(arguments.points) < 1:
        parser.error(f"--points {min(arguments.points)} is not allowed; give whole numbers above 0")
    packages = ("openvino", "nvidia-pytriton", "tritonclient")
    return run_benchmark("scaling", argv, arguments, measure, markdown, draw, packages)
