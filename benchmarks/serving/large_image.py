"""A 64-megapixel job: what memory it takes, and whether small photographs still get through.

    ipt-benchmark large_image --checkpoint weights/ipt-tiny --precision bf16
    ipt-benchmark large_image --preset ipt-small --only latency --json build/large.json

Memory: peak resident size of the router that holds the job, of tritonserver and of the client, above what they had
before; a throw-away network does the work, since memory depends on the picture alone. Latency: 128x128 photographs, one
after the other, alone and while the large job runs with the model given (the job is cancelled when they are done); and
how many patches a second that job gets, alone and beside them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as triton

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.presentation import Figure, figure, table
from ipt_triton.benchmarks.record import Record, command_line, run_benchmark, seconds_of
from ipt_triton.benchmarks.served import add_precision, add_source, checkpoint_of, photograph, serving, source_of
from ipt_triton.benchmarks.serving.memory import MIB, Watch
from ipt_triton.service import ROUTER
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.tiling import count_patches
from ipt_triton.train.model.checkpoint import Checkpoint
from ipt_triton.train.model.ipt import IPT, IPTConfig
from ipt_triton.train.model.start import identity_start

SIDE, SMALL_SIDE = 8000, 128
DERAIN = OFFICIAL_TASKS[3]
UNDER_WAY_S = 3  # until the large job keeps the cores busy


def random_photograph(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)


def measure_memory(side: int) -> dict[str, Any]:
    """Peak memory of one side x side photograph through `restore`, by role, in MiB above its level before."""
    torch.manual_seed(0)
    config = IPTConfig(features=3, encoder_layers=0, decoder_layers=0, heads=1, ffn_ratio=1, tasks=(DERAIN,))
    photo = random_photograph(side)
    checkpoint = checkpoint_of(identity_start(IPT(config)))
    with serving([checkpoint], "fp32") as served, RestorationClient(served.server.grpc_url) as client:
        watch = Watch(served.server.pids)
        started = time.perf_counter()
        with watch:
            restored = client.restore(photo, DERAIN.name)
        seconds = time.perf_counter() - started
    return {
        "megapixels": side * side / 1e6,
        "image_mib": round(photo.nbytes / MIB),
        "seconds": round(seconds, 1),
        "identical": bool((restored == photo).all()),
        "growth_mib": watch.growth(),
    }


def measure_latency(checkpoint: Checkpoint, precision: str, side: int, requests: int) -> dict[str, Any]:
    """Percentiles in seconds of small photographs, alone and under a large job; and the job's patches a second."""
    task = checkpoint.model.config.tasks[-1].name
    small, large = photograph(SMALL_SIDE, SMALL_SIDE), random_photograph(side)
    with serving([checkpoint], precision) as served, RestorationClient(served.server.grpc_url) as client:
        patches = count_patches(SMALL_SIDE, SMALL_SIDE)

        def percentiles() -> tuple[dict[str, float], float]:
            done, started = served.server.board.done(), time.perf_counter()
            times = [seconds_of(lambda: client.restore(small, task)) for _ in range(requests)]
            others = served.server.board.done() - done - requests * patches
            rate = others / (time.perf_counter() - started)
            return {f"p{q}": float(np.percentile(times, q)) for q in (25, 50, 75, 95)}, rate

        percentiles()
        alone, _ = percentiles()
        with triton.InferenceServerClient(served.server.grpc_url) as connection:
            image = triton.InferInput("IMAGE", list(large.shape), "UINT8").set_data_from_numpy(large)
            name = triton.InferInput("TASK", [1], "BYTES").set_data_from_numpy(np.array([task.encode()], object))
            output = triton.InferRequestedOutput("RESTORED")
            job = connection.async_infer(ROUTER, [image, name], lambda result, error: None, outputs=[output])
            time.sleep(UNDER_WAY_S)
            done = served.server.board.done()
            time.sleep(UNDER_WAY_S)
            undisturbed = (served.server.board.done() - done) / UNDER_WAY_S
            under, disturbed = percentiles()
            job.cancel()
    return {
        "task": task,
        "side": SMALL_SIDE,
        "requests": requests,
        "large_megapixels": side * side / 1e6,
        "alone_s": alone,
        "under_s": under,
        "job_patches_per_s": {"alone": round(undisturbed), "beside": round(disturbed)},
    }


def markdown(record: Record) -> str:
    """What each process grew by, and the small photographs' latencies."""
    memory, latency = record.figures.get("memory"), record.figures.get("latency")
    parts = []
    if memory:
        growth = [(role, grown["resident"], grown["own"]) for role, grown in memory["growth_mib"].items()]
        result = "the same image came back" if memory["identical"] else "ANOTHER IMAGE CAME BACK"
        parts.append(
            f"One photograph of {memory['megapixels']:g} megapixels ({memory['image_mib']} MiB, and as much for the "
            f"result) through a network that does nothing: {memory['seconds']} s, {result}.\n\n"
            + table(("process", "growth, MiB", "of it not shared, MiB"), growth)
        )
    if latency:
        alone, under = latency["alone_s"], latency["under_s"]
        rows = [(q, f"{alone[q]:.3f}", f"{under[q]:.3f}", f"{under[q] / alone[q]:.2f}") for q in alone]
        parts.append(
            f"{record.figures['model']} in {record.figures['precision']}, {latency['task']}: photographs of "
            f"{latency['side']}x{latency['side']}, one after the other ({latency['requests']} each way), alone and "
            f"while one of {latency['large_megapixels']:g} megapixels is restored.\n\n"
            + table(("latency", "alone, s", "under the large job, s", "ratio"), rows)
            + "\n\nThe large job gets {alone} patches a second alone and {beside} beside them.".format(
                **latency["job_patches_per_s"]
            )
        )
    return "\n\n".join(parts)


def draw(record: Record) -> Figure:
    """Growth by process, own and shared; and latencies alone and under the job."""
    memory, latency = record.figures.get("memory"), record.figures.get("latency")
    present = [part for part in (memory, latency) if part]
    drawn, grid = figure(4.5 * len(present), 3.6, ncols=len(present), squeeze=False)
    axes = iter(grid.flat)
    if memory:
        ax, grown = next(axes), memory["growth_mib"]
        own = [g["own"] for g in grown.values()]
        ax.bar(list(grown), own, 0.6, label="its own")
        shared = [g["resident"] - g["own"] for g in grown.values()]
        ax.bar(list(grown), shared, 0.6, bottom=own, alpha=0.5, label="shared with another process")
        ax.axhline(2 * memory["image_mib"], color="0.3", linestyle="--", label="image and result")
        ax.set(ylabel="peak above idle, MiB", title=f"One photograph of {memory['megapixels']:g} megapixels")
        ax.set_ylim(0, 1.35 * max(g["resident"] for g in grown.values()))  # room for the legend
        ax.legend(fontsize="small", loc="upper right")
    if latency:
        ax = next(axes)
        for shift, (name, label) in enumerate((("alone_s", "alone"), ("under_s", "under the large job"))):
            values = latency[name]
            ax.bar([i + 0.38 * shift for i in range(len(values))], values.values(), 0.36, label=label)
        ax.set_xticks([i + 0.19 for i in range(len(values))], list(values))
        side = latency["side"]
        ax.set(ylabel="latency, s", title=f"Photographs of {side}x{side}, {record.figures['model']}")
        ax.legend(fontsize="small")
    return drawn


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: memory, latency, or both."""
    name, checkpoint = source_of(arguments)
    figures: dict[str, Any] = {"precision": arguments.precision, "model": name}
    if arguments.only != "latency":
        figures["memory"] = measure_memory(arguments.side)
    if arguments.only != "memory":
        figures["latency"] = measure_latency(checkpoint, arguments.precision, arguments.side, arguments.requests)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("large_image", __doc__)
    add_source(parser)
    add_precision(parser)
    parser.add_argument(
        "--side", type=int, default=SIDE, help="of the large photograph in pixels (default %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=200, help="small photographs (default %(default)s)")
    parser.add_argument("--only", choices=("memory", "latency"))
    arguments = parser.parse_args(argv)
    packages = ("openvino", "nvidia-pytriton", "tritonclient")
    return run_benchmark("large_image", argv, arguments, measure, markdown, draw, packages)
