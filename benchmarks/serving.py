"""What serving costs: a photograph through `restore` against the same OpenVINO parts called in one process.

    python -m benchmarks.serving --checkpoint weights/ipt-tiny --precision bf16
    python -m benchmarks.serving --preset ipt --precision bf16 --runs 3 --json build/serving.json

The rival does no tiling, no joining and no copying between processes: it gets all patches ready-made in the router's
batches and runs head, body and tail on them in as many threads as there are cores, each a stream of its own, so that
the cores never wait for one another. Both are measured in one run, in turns; the figure is the ratio of the medians.
`--preset` takes random weights: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from PIL import Image

from client import RestorationClient
from export.parts import export_parts
from export.repository import ServingOptions, write_repository
from export.server import TritonServer
from train.checkpoint import Checkpoint, content_hash, load_checkpoint
from train.model import IPT, PRESETS, identity_start, preset
from train.tiling import Tiler

CHUNK = 8  # patches in one request of the router
PHOTO = Path(__file__).parent.parent / "tests" / "images" / "dog.png"


class DirectPipeline:
    """Head, body and tail of a task in this process: a thread and a stream per core, `CHUNK` patches at a time."""

    def __init__(self, parts: Path, task: str, precision: str):
        cores = os.cpu_count() or 1
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}[precision],
            "NUM_STREAMS": cores,
            "INFERENCE_NUM_THREADS": cores,
        }
        core = ov.Core()
        head, body, tail = (
            core.compile_model(parts / f"{name}.onnx", "CPU", options)
            for name in (f"head_{task}", "body", f"tail_{task}")
        )
        self._requests = [[model.create_infer_request() for model in (head, body, tail)] for _ in range(cores)]

    def run(self, batches: Sequence[np.ndarray]) -> None:
        """All batches, handed out to the threads as they come free."""
        queue = iter(batches)

        def work(requests: list[ov.InferRequest]) -> None:
            head, body, tail = requests
            for batch in queue:  # the iterator hands each batch to one thread only
                a = head.infer({"IMAGE": batch}, share_inputs=True, share_outputs=True)
                both = {"FEATURES": a["FEATURES"], "TASK_EMBEDDING": a["TASK_EMBEDDING"]}
                b = body.infer(both, share_inputs=True, share_outputs=True)
                tail.infer({"BODY_FEATURES": b["BODY_FEATURES"]}, share_inputs=True)

        with ThreadPoolExecutor(len(self._requests)) as pool:
            list(pool.map(work, self._requests))


def compare(
    checkpoint: Checkpoint, task: str, precision: str, side: int, runs: int, options: ServingOptions
) -> dict[str, object]:
    """Seconds for one photograph of side x side, served and direct, in turns; medians and their ratio."""
    photo = np.asarray(Image.open(PHOTO).convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
    tiler = Tiler(photo, checkpoint.model.task(task).scale)
    batches = [tiler.patches(first, last) for first, last in tiler.batches(CHUNK)]
    times: dict[str, list[float]] = {"served": [], "direct": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = export_parts([checkpoint], folder / "parts", precision)
        write_repository(folder / "parts", manifest, folder / "models", options)
        direct = DirectPipeline(folder / "parts", task, precision)
        with TritonServer(folder / "models") as server, RestorationClient(server.grpc_url) as client:
            client.restore(photo, task)
            direct.run(batches)
            for _ in range(runs):
                started = time.perf_counter()
                client.restore(photo, task)
                between = time.perf_counter()
                direct.run(batches)
                times["served"].append(between - started)
                times["direct"].append(time.perf_counter() - between)
    served, rival = (statistics.median(times[k]) for k in ("served", "direct"))
    return {
        "task": task,
        "precision": precision,
        "side": side,
        "patches": tiler.count,
        "runs": runs,
        "served_s": round(served, 4),
        "direct_s": round(rival, 4),
        "served_range_s": [round(f(times["served"]), 4) for f in (min, max)],
        "direct_range_s": [round(f(times["direct"]), 4) for f in (min, max)],
        "served_patches_per_s": round(tiler.count / served, 2),
        "direct_patches_per_s": round(tiler.count / rival, 2),
        "ratio": round(rival / served, 3),
        "cores": os.cpu_count(),
        "openvino": ov.__version__,
        "python": platform.python_version(),
    }


def random_checkpoint(name: str) -> Checkpoint:
    """A preset with the weights that training starts from."""
    torch.manual_seed(0)
    model = identity_start(IPT(preset(name))).eval()
    return Checkpoint(model, content_hash(dict(model.state_dict())))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path)
    source.add_argument("--preset", choices=sorted(PRESETS))
    parser.add_argument("--task", default="denoise_30", help="(default %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--side", type=int, default=512, help="of the photograph in pixels (default %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--threads", type=int, default=ServingOptions.threads)
    parser.add_argument("--queue-delay-us", type=int, default=ServingOptions.queue_delay_us)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args(argv)
    checkpoint = load_checkpoint(arguments.checkpoint) if arguments.checkpoint else random_checkpoint(arguments.preset)
    options = ServingOptions(threads=arguments.threads, queue_delay_us=arguments.queue_delay_us)
    figures = compare(checkpoint, arguments.task, arguments.precision, arguments.side, arguments.runs, options)
    figures["model"] = str(arguments.checkpoint or arguments.preset)
    for key, value in figures.items():
        print(f"{key:<22} {value}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
