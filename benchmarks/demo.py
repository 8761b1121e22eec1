"""The demo: real photographs, degraded, restored through a real Triton server for every task it serves, and shown.

    make demo
    ipt-benchmark demo --repository triton_models --output build/demo

Starts a server on free ports, degrades the photographs with a fixed seed, restores them through the client, and one
through the gateway and curl, and stops the server. It prints a table (task, input size, seconds, PSNR of the classical
baseline, PSNR restored) and writes `report.html` with side-by-side pictures. PSNR is on RGB for denoising and on luma
for the others (`metrics`).
"""

from __future__ import annotations

import html
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.fronted import Fronted
from ipt_triton.benchmarks.presentation import grouped
from ipt_triton.benchmarks.quality.classical import baseline
from ipt_triton.benchmarks.quality.pictures import busiest_square, side_by_side
from ipt_triton.cli import make_parser, run_command
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.files import atomic_file
from ipt_triton.images import PHOTOS, read_rgb
from ipt_triton.metrics import task_psnr, to_uint8
from ipt_triton.tasks import Task
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.data.pictures import enlarged
from ipt_triton.train.data.sets import cut_to_scale

CROP = 144  # side of the detail that the report shows, in pixels of the original
SHOWN = ("sr_x2", "sr_x4", "derain", "denoise_50", "dejpeg", "real_x2", "auto")
"""Tasks of `--picture`, as far as the server has them."""


@dataclass(frozen=True)
class Result:
    """One photograph and task: images are uint8 RGB; clean, baseline and restored have the same shape."""

    photo: str
    task: Task
    clean: np.ndarray
    degraded: np.ndarray
    baseline_name: str
    baseline: np.ndarray
    restored: np.ndarray
    seconds: float

    def psnr(self, image: np.ndarray) -> float:
        """PSNR of an image against the clean photograph in dB, by the field's protocol for the task."""
        return task_psnr(image, self.clean, self.task)


def restore_photos(client: RestorationClient, photos: Sequence[Path]) -> list[Result]:
    """Every photograph through every task of the server, one after the other."""
    results = []
    for served in client.tasks():
        task = Task(**asdict(served))
        for path in photos:
            clean = cut_to_scale(read_rgb(path), task.scale)
            degraded = to_uint8(degrade_image(clean, task, seed_of(path.name)))
            name, classical = baseline(degraded, task)
            started = time.perf_counter()
            restored = client.restore(degraded, task.name)
            seconds = time.perf_counter() - started
            results.append(Result(path.stem, task, clean, degraded, name, classical, restored, seconds))
    return results


def restore_by_curl(url: str, photo: Path, folder: Path) -> str:
    """One photograph through a gateway in front of the server, sent by curl; returns a line about it.

    Raises:
        BenchmarkError: the gateway does not start, or refuses it.
    """
    if shutil.which("curl") is None:
        return "through the gateway: left out, curl is not installed"
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / f"curl-{photo.name}"
    with tempfile.TemporaryDirectory() as own, Fronted(Path(own), url) as gateway:
        sent = ["-F", f"image=@{photo}", "-F", "task=0", f"{gateway.address}/v1/restore", "-o", str(result)]
        run = subprocess.run(["curl", "-sS", "--fail-with-body", *sent], capture_output=True, text=True)
        if run.returncode:
            raise BenchmarkError(f"curl got no photo from the gateway: {run.stderr.strip()}")
    width, height = Image.open(result).size
    return f"through the gateway: {' '.join(['curl', *sent])}, {width}x{height}"


def table(results: Sequence[Result]) -> str:
    """Means over the photographs, a line per task."""
    lines = [f"{'task':<12} {'input':>9} {'seconds':>8}  {'baseline':<24} {'PSNR':>6} {'restored':>9}"]
    for group in by_task(results):
        mean = lambda values: float(np.mean(list(values)))  # noqa: E731
        height, width = group[0].degraded.shape[:2]
        lines.append(
            f"{group[0].task.name:<12} {f'{width}x{height}':>9} {mean(r.seconds for r in group):8.2f}  "
            f"{group[0].baseline_name:<24} {mean(r.psnr(r.baseline) for r in group):6.2f} "
            f"{mean(r.psnr(r.restored) for r in group):9.2f}"
        )
    return "\n".join(lines)


def by_task(results: Sequence[Result]) -> list[list[Result]]:
    return list(grouped(results, lambda result: result.task).values())


def versions(result: Result) -> list[tuple[str, np.ndarray]]:
    """Captions and pictures: input, baseline (where it is not the input), restored, original."""
    classical = f"{result.baseline_name} {result.psnr(result.baseline):.2f} dB"
    restored = f"restored {result.psnr(result.restored):.2f} dB", result.restored
    if result.baseline is result.degraded:
        return [(classical, result.degraded), restored, ("original", result.clean)]
    return [("input", result.degraded), (classical, result.baseline), restored, ("original", result.clean)]


def write_report(results: Sequence[Result], folder: Path) -> Path:
    """Write `report.html` and its pictures; returns the report's path."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    body = []
    for group in by_task(results):
        body.append(f"<h2>{group[0].task.name}</h2>")
        for r in group:
            stem = f"{r.task.name}-{r.photo}"
            links = []
            for what, image in {"input": r.degraded, "restored": r.restored, "original": r.clean}.items():
                Image.fromarray(image).save(pictures / f"{stem}-{what}.png")
                links.append(f'<a href="pictures/{stem}-{what}.png">{what}</a>')
            cells = []
            y, x = busiest_square(r.clean, CROP)
            for number, (caption, image) in enumerate(versions(r)):
                name = f"{stem}-detail{number}.png"
                detail = enlarged(image, r.clean.shape[0] // image.shape[0])[y : y + CROP, x : x + CROP]
                Image.fromarray(detail).save(pictures / name)
                cells.append(
                    f'<figure><img src="pictures/{name}" alt="{html.escape(caption)}">'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
                )
            height, width = r.degraded.shape[:2]
            body.append(
                f"<section><p><b>{html.escape(r.photo)}</b>, {width}×{height}, {r.seconds:.2f} s; "
                f'whole pictures: {", ".join(links)}</p><div class="row">{"".join(cells)}</div></section>'
            )
    report = folder / "report.html"
    with atomic_file(report) as temporary:
        temporary.write_text(PAGE.format(table=html.escape(table(results)), body="\n".join(body)))
    return report


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>ipt-triton: restored photographs</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
pre {{ background: #f3f3f3; padding: 1rem; overflow-x: auto; }}
.row {{ display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }}
figure {{ margin: 0; }}
img {{ width: 100%; image-rendering: pixelated; display: block; }}
figcaption {{ font-size: .85rem; color: #555; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
</style>
<h1>Photographs restored through Triton</h1>
<p>Degraded with a fixed seed, sent to model <code>restore</code> through the Python client. Each row shows the busiest
square of a photograph. PSNR is on RGB for denoising and on luma for the other tasks; the table's figures are means over
the photographs.</p>
<pre>{table}</pre>
{body}
</html>
"""


def write_picture(results: Sequence[Result], path: Path) -> None:
    """One sheet for the README: a row for each of some tasks, another photograph in each."""
    groups = by_task(results)
    rows = []
    for number, group in enumerate([g for g in groups if g[0].task.name in SHOWN] or groups):
        result = group[number % len(group)]
        (caption, image), *others = versions(result)
        rows.append(side_by_side([(f"{result.task.name}: {caption}", image), *others], CROP))
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed."""
    parser = make_parser("ipt-benchmark demo", __doc__ or "")
    parser.add_argument("--repository", type=Path, default=Path("triton_models"), help="(default %(default)s)")
    parser.add_argument(
        "--photos", type=Path, default=PHOTOS, help="folder of PNG photographs (default: the project's)"
    )
    parser.add_argument("--output", type=Path, default=Path("build/demo"), help="(default %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also write one sheet of some tasks")
    arguments = parser.parse_args(argv)

    def work() -> None:
        photos = sorted(arguments.photos.glob("*.png"))
        if not photos:
            raise BenchmarkError(f"{arguments.photos} holds no PNG photographs")
        print("starting the server ...", file=sys.stderr)
        with TritonServer(arguments.repository) as server, RestorationClient(server.grpc_url) as client:
            print("restoring ...", file=sys.stderr)
            results = restore_photos(client, photos)
            through = restore_by_curl(server.grpc_url, photos[0], arguments.output)
        report = write_report(results, arguments.output)
        if arguments.picture:
            write_picture(results, arguments.picture)
        print(f"{table(results)}\n\npictures: {report}\n{through}")

    return run_command(work)
