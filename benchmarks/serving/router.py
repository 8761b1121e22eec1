"""What the path around the network costs: a network that only enlarges its patches, through a real server.

    ipt-benchmark router
    ipt-benchmark router --scales 1 4 --sides 256 1024 4096 --concurrency 1 2 8 --json build/router.json
    ipt-benchmark router --chunks 8 --scales 1 --sides 1024

Whole photographs go to `restore`, which cuts them, sends the patches on and joins the answers; instead of head, body
and tail one model in Triton's Python backend repeats each pixel. It takes chunks as a repository for CPUs (8) and one
of `ipt` for GPUs (64) has them. That the right image comes back is looked at first.
CPU time is counted by process: `router` cuts and joins, `tritonserver` carries tensors, `network` is the model that
stands in for the network, and `load` sends the requests. Patches a second of a core leave `network` and `load` out.
MB/s: images and results; beside it the share in what one core reads and writes, copying a large array.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

import ipt_triton.seal
from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.presentation import Figure, figure, grouped, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import checkpoint_of, photograph
from ipt_triton.benchmarks.serving.load import ClosedLoop, restore_request
from ipt_triton.benchmarks.serving.memory import process_name
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.configs import models_of
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.service import MAX_BATCH, ROUTER, ensemble_name
from ipt_triton.tasks import OFFICIAL_TASKS, Task
from ipt_triton.tiling import DTYPES
from ipt_triton.train.model.ipt import IPT, IPTConfig
from ipt_triton.train.model.start import identity_start

TASKS = {task.scale: task for task in reversed(OFFICIAL_TASKS)}
NETWORK = Path(__file__).parent / "null_network.py"
WINDOWS, COPY_BYTES = 3, 1 << 28
ROLES = ("router", "tritonserver", "network", "load")


@contextmanager
def null_server(
    tasks: Sequence[Task], chunk: int, options: ServingOptions | None = None, marks: bool = False
) -> Iterator[TritonServer]:
    """A server of the real router, and a stand-in for each task's ensemble that takes `chunk` patches at once.

    Args:
        marks: the stand-in adds to each pixel what depends on its place in the patch.
    """
    torch.manual_seed(0)
    config = IPTConfig(features=3, encoder_layers=0, decoder_layers=0, heads=1, ffn_ratio=1, tasks=tuple(tasks))
    with tempfile.TemporaryDirectory() as name:
        parts, repository = Path(name) / "parts", Path(name) / "models"
        manifest = export_parts([checkpoint_of(identity_start(IPT(config)))], parts, "fp32", max_batch=chunk)
        write_repository(parts, manifest, repository, options or ServingOptions())
        for model in models_of(manifest):
            shutil.rmtree(repository / model.name)
        for task in tasks:
            stand_in(repository / ensemble_name(task.name), marks)
        with TritonServer(repository) as server:
            yield server


def stand_in(folder: Path, marks: bool) -> None:
    """Put the model that costs nothing in an ensemble's place."""
    ensemble = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig())
    config = pb.ModelConfig(
        name=ensemble.name,
        backend="python",
        max_batch_size=ensemble.max_batch_size,
        input=ensemble.input,
        output=ensemble.output,
        instance_group=[
            pb.ModelInstanceGroup(count=ServingOptions().body_instances, kind=pb.ModelInstanceGroup.KIND_CPU)
        ],
        parameters={"marks": pb.ModelParameter(string_value=str(int(marks)))},
    )
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    (folder / "1").mkdir(exist_ok=True)
    shutil.copyfile(NETWORK, folder / "1" / "model.py")
    shutil.copyfile(ipt_triton.seal.__file__, folder / "1" / "seal.py")


def cpu_seconds(pids: Sequence[int]) -> dict[str, float]:
    """CPU time so far by role."""
    seconds = dict.fromkeys(ROLES, 0.0)
    for process in [*map(psutil.Process, pids), psutil.Process()]:
        name = "load" if process == psutil.Process() else process_name(process.pid)
        role = {ROUTER: "router"}.get(name, "network" if name.startswith("ipt_") else name)
        if role in seconds:
            times = process.cpu_times()
            seconds[role] += times.user + times.system
    return seconds


def copy_rate() -> float:
    """MB/s that one core reads and writes, copying one large array to another."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    return 2 * COPY_BYTES / min(seconds_of(lambda: np.copyto(target, source)) for _ in range(5)) / 1e6


def measure_case(
    server: TritonServer, task: Task, image: np.ndarray, concurrency: int, seconds: float
) -> dict[str, Any]:
    """Patches a second, MB/s, and CPU microseconds a patch by role.

    Raises:
        LoadError: another image came back.
    """
    with RestorationClient(server.grpc_url) as client:
        info = client.info()
        expected = image.repeat(task.scale, axis=0).repeat(task.scale, axis=1)
        if not np.array_equal(client.restore(image, task.name), expected):
            raise LoadError(f"{task.name} changed an image of {image.shape[1]}x{image.shape[0]}, {image.dtype}")
    request = restore_request(info, task, image)
    with ClosedLoop(server.grpc_url, [request], concurrency) as loop:
        loop.warm_up(seconds / 2)
        answered, before = loop.answered, cpu_seconds(server.pids)
        windows = [loop.window(seconds) for _ in range(WINDOWS)]
        answered, after = loop.answered - answered, cpu_seconds(server.pids)
    megabytes = (request.input_pixels + request.output_pixels) * 3 * image.itemsize / 1e6
    return {
        "scale": task.scale,
        "image": image.dtype.name,
        "side": image.shape[0],
        "concurrency": concurrency,
        "patches_per_s": asdict(Spread.of([window.rate * request.patches for window in windows])),
        "mb_per_s": asdict(Spread.of([window.rate * megabytes for window in windows])),
        "cpu_us": {role: (after[role] - before[role]) / answered / request.patches * 1e6 for role in ROLES},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: the copy rate, and a row for each case."""
    tasks, rows = [TASKS[scale] for scale in arguments.scales], []
    for chunk in arguments.chunks:
        with null_server(tasks, chunk) as server:
            for task, side, kind, concurrency in product(tasks, arguments.sides, DTYPES, arguments.concurrency):
                image = photograph(side, side) * np.dtype(kind).type(DTYPES[kind])
                rows.append({"chunk": chunk, **measure_case(server, task, image, concurrency, arguments.seconds)})
                print(f"x{task.scale} {image.dtype} {side}: {rows[-1]}", file=sys.stderr)
    return {"copy_mb_per_s": copy_rate(), "rows": rows}


def per_core(row: dict[str, Any]) -> float:
    """Patches a second of one core that cuts, carries and joins."""
    return 1e6 / max(row["cpu_us"]["router"] + row["cpu_us"]["tritonserver"], 1e-9)


def markdown(record: Record) -> str:
    """A table of rates, and of where the CPU time goes."""
    rate = record.figures["copy_mb_per_s"]
    rows = [
        (
            row["chunk"],
            f"x{row['scale']}",
            row["image"],
            row["side"],
            row["concurrency"],
            quartiles(row["patches_per_s"], ".0f"),
            f"{per_core(row):.0f}",
            f"{row['mb_per_s']['median']:.1f}",
            f"{100 * row['mb_per_s']['median'] / rate:.1f}",
            *(f"{row['cpu_us'][role]:.0f}" for role in ROLES),
        )
        for row in record.figures["rows"]
    ]
    header = ("chunk", "scale", "image", "side", "under way", "patches/s", "patches/s a core", "MB/s", "% of a copy")
    return f"A network that only repeats pixels. One core copies {rate:.0f} MB/s.\n\n" + table(
        (*header, *(f"{role}, µs a patch" for role in ROLES)), rows
    )


def draw(record: Record) -> Figure:
    """CPU time a patch by role, for each case."""
    drawn, ax = figure(8, 4)
    cases = grouped(
        record.figures["rows"], lambda r: f"x{r['scale']} {r['image']}\n{r['side']}, {r['concurrency']}, {r['chunk']}"
    )
    below = np.zeros(len(cases))
    for role in ROLES:
        values = np.array([rows[0]["cpu_us"][role] for rows in cases.values()])
        ax.bar(range(len(cases)), values, 0.7, bottom=below, label=role)
        below += values
    ax.set_xticks(range(len(cases)), list(cases), fontsize="x-small", rotation=90)
    ax.set(ylabel="CPU, µs a patch", title="Around the network (scale, image, side, under way, chunk)")
    ax.legend(fontsize="small")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("router", __doc__)
    default = "(default %(default)s)"
    parser.add_argument("--scales", type=int, nargs="+", choices=sorted(TASKS), default=sorted(TASKS), help=default)
    sides = f"of the square photographs in pixels {default}"
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024], metavar="N", help=sides)
    under_way = f"requests under way {default}"
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4], metavar="N", help=under_way)
    chunks = f"patches that the network takes at once {default}"
    parser.add_argument("--chunks", type=int, nargs="+", default=[MAX_BATCH, 64], metavar="N", help=chunks)
    parser.add_argument("--seconds", type=float, default=2.0, help=f"of each of {WINDOWS} windows {default}")
    arguments = parser.parse_args(argv)
    if min(*arguments.sides, *arguments.concurrency, *arguments.chunks, arguments.seconds) <= 0:
        parser.error("--sides, --concurrency, --chunks and --seconds take numbers above 0")
    packages = ("numpy", "nvidia-pytriton", "tritonclient")
    return run_benchmark("router", argv, arguments, measure, markdown, draw, packages)
