"""A 64-megapixel job: what memory it takes, and whether small photographs still get through.

    python -m benchmarks.large_image --checkpoint weights/ipt-tiny
    python -m benchmarks.large_image --checkpoint weights/ipt-tiny --only latency --json build/large.json

Memory: peak resident size of the router that holds the job, of tritonserver and of the client, above what they had
before; a throw-away network does the work, since memory depends on the picture alone. Latency: 128x128 photographs, one
after the other, alone and while the large job runs with the checkpoint given (the job is cancelled when they are done).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from PIL import Image

from client import RestorationClient
from export.parts import export_parts
from export.repository import ServingOptions, write_repository
from export.server import TritonServer
from train.checkpoint import Checkpoint, content_hash, load_checkpoint
from train.model import IPT, IPTConfig, identity_start
from train.tasks import OFFICIAL_TASKS

SIDE = 8000
PHOTO = Path(__file__).parent.parent / "tests" / "images" / "dog.png"


@contextmanager
def serving(checkpoint: Checkpoint, precision: str) -> Iterator[TritonServer]:
    """A server for one checkpoint from a temporary repository."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = export_parts([checkpoint], folder / "parts", precision)
        write_repository(folder / "parts", manifest, folder / "models", ServingOptions())
        with TritonServer(folder / "models") as server:
            yield server


def resident(pid: int) -> tuple[int, int]:
    """(resident, of it anonymous) memory of a process in bytes; zeros when it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


def process_name(pid: int) -> str:
    """`router`, a part's name, or the program's."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return "gone"
    for argument in arguments:
        if argument.endswith("/model.py"):
            return Path(argument).parent.parent.name
    return Path(arguments[0]).name


def measure_memory(side: int) -> dict[str, object]:
    """Peak memory of one side x side photograph through `restore`, per process, in MiB above its level before."""
    torch.manual_seed(0)
    config = IPTConfig(features=3, encoder_layers=0, decoder_layers=0, heads=1, ffn_ratio=1, tasks=(OFFICIAL_TASKS[3],))
    model = identity_start(IPT(config)).eval()
    photo = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    checkpoint = Checkpoint(model, content_hash(dict(model.state_dict())))
    with serving(checkpoint, "fp32") as server, RestorationClient(server.grpc_url) as client:
        pids = {pid: process_name(pid) for pid in server.pids} | {os.getpid(): "client"}
        before = {pid: resident(pid) for pid in pids}
        peak = dict(before)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                for pid in pids:
                    now = resident(pid)
                    peak[pid] = max(peak[pid][0], now[0]), max(peak[pid][1], now[1])

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        restored = client.restore(photo, "derain")
        seconds = time.perf_counter() - started
        done.set()
        watcher.join()
    growth = {pid: [(peak[pid][i] - before[pid][i]) / 2**20 for i in (0, 1)] for pid in pids}
    busiest = sorted(growth, key=lambda pid: -growth[pid][0])[:4]
    return {
        "megapixels": side * side / 1e6,
        "image_mib": round(photo.nbytes / 2**20),
        "seconds": round(seconds, 1),
        "identical": bool((restored == photo).all()),
        "growth_mib": {
            f"{pids[pid]} ({pid})": {"resident": round(growth[pid][0]), "own": round(growth[pid][1])} for pid in busiest
        },
    }


def measure_latency(checkpoint: Checkpoint, precision: str, side: int, requests: int) -> dict[str, object]:
    """p50 and p95 in seconds of 128x128 photographs, alone and under a running large job, and their ratios."""
    task = checkpoint.model.config.tasks[-1].name
    small = np.asarray(Image.open(PHOTO).convert("RGB"))[:128, :128]
    large = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    with serving(checkpoint, precision) as server, RestorationClient(server.grpc_url) as client:

        def latencies() -> np.ndarray:
            times = []
            for _ in range(requests):
                started = time.perf_counter()
                client.restore(small, task)
                times.append(time.perf_counter() - started)
            return np.array(times)

        latencies()
        alone = latencies()
        with triton.InferenceServerClient(server.grpc_url) as connection:
            image = triton.InferInput("IMAGE", list(large.shape), "UINT8").set_data_from_numpy(large)
            name = triton.InferInput("TASK", [1], "BYTES").set_data_from_numpy(np.array([task.encode()], object))
            output = triton.InferRequestedOutput("RESTORED")
            job = connection.async_infer("restore", [image, name], lambda result, error: None, outputs=[output])
            time.sleep(3)
            under = latencies()
            job.cancel()
    figures: dict[str, object] = {"task": task, "precision": precision, "requests": requests}
    for quantile in (50, 95):
        a, b = (float(np.percentile(x, quantile)) for x in (alone, under))
        figures[f"p{quantile}"] = {"alone_s": round(a, 4), "under_s": round(b, 4), "ratio": round(b / a, 2)}
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_image",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="for the latency of small photographs")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--side", type=int, default=SIDE, help="of the large photograph in pixels (default %(default)s)"
    )
    parser.add_argument("--requests", type=int, default=40, help="small photographs (default %(default)s)")
    parser.add_argument("--only", choices=("memory", "latency"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    figures: dict[str, object] = {}
    if arguments.only != "latency":
        figures["memory"] = measure_memory(arguments.side)
    if arguments.only != "memory":
        checkpoint = load_checkpoint(arguments.checkpoint)
        figures["latency"] = measure_latency(checkpoint, arguments.precision, arguments.side, arguments.requests)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
