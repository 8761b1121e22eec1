"""Evaluation: how well a checkpoint, or the server that serves it, restores a test set, by the field's protocol.

    ipt-train evaluate weights/ipt-tiny --data Set5 --task sr_x2 sr_x3 sr_x4
    ipt-train evaluate weights/ipt-tiny --data CBSD68 --task denoise_30 --json denoise.json --pictures pictures
    ipt-train evaluate weights/ipt-tiny --data Rain100L --task derain --url localhost:8001
    ipt-train evaluate weights/mine --data CBSD68 --task denoise --sigma 15

`--data` holds clean images, which are degraded here, or `rain/` and `norain/` with pairs of the same file name. What
is random in that is seeded by the file name, so that neither the order nor the other images of a set matter. Tasks
that know no strength of their degradation meet a random one, or that of `--sigma` (denoise) or `--quality` (dejpeg).
Super-resolution cuts the clean image to a multiple of the scale. Figures are means over the images (`metrics`).

Denoising is measured on the noisy image clipped and rounded to 8 bit, as a service sees it, and (columns `float ...`)
on the unclipped float values of the field's tables. A server takes 8 bit only.

Exit status: 0 evaluated; 1 the checkpoint, an image or the server failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from ipt_triton.benchmarks.errors import ArgumentError, EvaluationError
from ipt_triton.benchmarks.presentation import table
from ipt_triton.benchmarks.quality.classical import baseline
from ipt_triton.benchmarks.quality.pictures import side_by_side
from ipt_triton.cli import make_parser, run_command
from ipt_triton.client.options import views
from ipt_triton.files import atomic_file
from ipt_triton.metrics import border_of, figure_of, psnr, psnr_y, ssim_y, to_uint8
from ipt_triton.tasks import Task
from ipt_triton.tiling import KEEP, STRIDE, check_rule
from ipt_triton.train.data.sets import Sample, find_images, load_sample
from ipt_triton.train.model.checkpoint import Checkpoint, load_checkpoint
from ipt_triton.train.model.infer import restore_image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Score:
    """PSNR of luma and of RGB in dB, SSIM of luma."""

    psnr_y: float
    psnr_rgb: float
    ssim_y: float


@dataclass(frozen=True)
class Restorer:
    """Something that restores images.

    Attributes:
        restore: float32 [height, width, 3] on the 0..255 scale and a task -> [height * scale, width * scale, 3].
        takes_floats: whether the input may be unclipped and fractional.
        how: what a reader of the results must know about it.
    """

    restore: Callable[[np.ndarray, Task], np.ndarray]
    takes_floats: bool
    how: dict[str, Any]


def _how(sha256: str, runtime: str, precision: str, stride: int, keep: int) -> dict[str, Any]:
    rule = {"stride": stride, "keep": keep, "tta": False}
    return {"checkpoint_sha256": sha256, "runtime": runtime, "precision": precision, **rule}


def by_pytorch(
    checkpoint: Checkpoint, stride: int, keep: int, precision: str = "fp32", device: str = "cpu"
) -> Restorer:
    """Restore in plain PyTorch (`train.model.infer`)."""
    model = checkpoint.model.to(device)
    return Restorer(
        lambda image, task: restore_image(model, image, task.name, stride, keep, precision=precision),
        takes_floats=True,
        how=_how(checkpoint.sha256, "pytorch", precision, stride, keep),
    )


@contextmanager
def by_server(url: str, tasks: Sequence[Task], stride: int | None, keep: int | None) -> Iterator[Restorer]:
    """Restore through a server, which must offer the tasks; stride and keep None mean the server's own.

    Raises:
        EvaluationError: the server does not answer, fails, or does not know a task, or knows it otherwise.
    """
    from ipt_triton import RestorationClient, RestorationError  # PyTorch alone needs no tritonclient

    try:
        with RestorationClient(url) as client:
            info = client.info()
            for task in tasks:
                served = info.task(task.name)
                if any(getattr(task, name) != value for name, value in asdict(served).items()):
                    raise EvaluationError(f"{task.name} is {served} at {url}, but {task} in the checkpoint")
            chosen = info.rule(stride, keep)
            yield Restorer(
                lambda image, task: client.restore(to_uint8(image), task.name, *chosen),
                takes_floats=False,
                how=_how(info.checkpoint_sha256, info.runtime, info.precision, *chosen),
            )
    except RestorationError as error:
        raise EvaluationError(str(error)) from error


def self_ensemble(restorer: Restorer) -> Restorer:
    """Average over the image's 8 flips and rotations, in float (Timofte et al. 2016; EDSR+ in Lim et al. 2017)."""

    def restore(image: np.ndarray, task: Task) -> np.ndarray:
        restored = (view.undo(restorer.restore(np.ascontiguousarray(view.of(image)), task)) for view in views())
        return np.asarray(sum(each.astype(np.float64) for each in restored) / 8)

    return replace(restorer, restore=restore, how={**restorer.how, "tta": True})


def score(image: np.ndarray, sample: Sample, task: Task) -> Score:
    """Measure uint8 [height, width, 3] against the clean image.

    Raises:
        ValueError: the images are equal (their PSNR is infinite) or too small for SSIM.
    """
    return Score(*(measure(image, sample.clean, border_of(task)) for measure in (psnr_y, psnr, ssim_y)))


def evaluate_image(sample: Sample, task: Task, restorer: Restorer) -> tuple[dict[str, Any], Image.Image]:
    """Restore and measure one image.

    Returns:
        `name`, `baseline`, and the fields of `Score` for the restored image and, with `baseline_` before, for the
        baseline; for denoising where the restorer takes floats, once more with `float_` before. And the picture of
        input, baseline, restored and original.

    Raises:
        EvaluationError: naming the image, whose score or restoration is not a number.
    """
    quantised = to_uint8(sample.degraded)
    inputs = {"": quantised.astype(np.float32)}
    if task.kind == "denoise" and restorer.takes_floats:
        inputs["float_"] = sample.degraded
    values: dict[str, Any] = {"name": sample.name}
    results: dict[str, np.ndarray] = {}
    for prefix, given in inputs.items():
        values["baseline"], results[f"{prefix}baseline_"] = baseline(given, task)
        try:
            results[prefix] = to_uint8(restorer.restore(given, task))
            for kind in (prefix, f"{prefix}baseline_"):
                measured = asdict(score(results[kind], sample, task))
                values |= {f"{kind}{name}": value for name, value in measured.items()}
        except (ValueError, FloatingPointError) as error:
            raise EvaluationError(f"{sample.name} cannot be measured for {task.name}: {error}") from error
    figure = figure_of(task)
    versions = [] if values["baseline"] == "input" else [("input", quantised)]
    versions.append((f"{values['baseline']} {values[f'baseline_{figure}']:.2f} dB", results["baseline_"]))
    versions.append((f"restored {values[figure]:.2f} dB", results[""]))
    return values, side_by_side([*versions, ("original", sample.clean)])


def evaluate(
    paths: Sequence[tuple[Path, Path | None]], set_name: str, task: Task, restorer: Restorer, pictures: Path | None
) -> dict[str, Any]:
    """One row of results: means over the images of a set, how they were restored, and each image's own values.

    Args:
        paths: as `find_images` returns them.
        pictures: folder that receives `<task>-<image>.png`, or None.
    """
    images = []
    for number, (clean, degraded) in enumerate(paths, 1):
        values, picture = evaluate_image(load_sample(clean, degraded, task), task, restorer)
        images.append(values)
        if pictures:
            with atomic_file(pictures / f"{task.name}-{clean.stem}.png") as temporary:
                picture.save(temporary, format="PNG")
        logger.info(
            "%s %d/%d %s: PSNR-Y %.2f dB, %s %.2f dB",
            *(task.name, number, len(paths), clean.name),
            *(values["psnr_y"], values["baseline"], values["baseline_psnr_y"]),
        )
    method = images[0]["baseline"]
    means = {key: fmean(i[key] for i in images) for key in images[0] if key not in ("name", "baseline")}
    row = {"task": task.name, "set": set_name, "images": len(images), "baseline": method, **means, **restorer.how}
    return {**row, "per_image": [{k: v for k, v in i.items() if k != "baseline"} for i in images]}


SCORES = {"psnr_y": "PSNR Y", "psnr_rgb": "PSNR RGB", "ssim_y": "SSIM Y"}
HEADERS = {
    **{name: name for name in ("task", "level", "set", "images")},
    **SCORES,
    "baseline": "baseline",
    **{
        f"{prefix}_{name}": f"{prefix.replace('_', ' ')} {header}"
        for prefix in ("baseline", "float", "float_baseline")
        for name, header in SCORES.items()
    },
}
"""Columns of the table, by the key of a row."""


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, with the columns that any of them fills; PSNR in dB."""
    columns = [key for key in HEADERS if any(key in row for row in rows)]

    def cell(key: str, value: object) -> object:
        return f"{value:.{4 if 'ssim' in key else 2}f}" if isinstance(value, float) else value

    return table([HEADERS[key] for key in columns], ([cell(key, row.get(key, "–")) for key in columns] for row in rows))


def at_level(task: Task, sigma: float | None, quality: int | None) -> tuple[dict[str, str], Task]:
    """A task with the strength that its degradation shall have, and what a row says of it if it is not the task's own.

    Raises:
        ArgumentError: a strength for a task of another kind, or for one that has its own.
        TaskError: one that cannot be.
    """
    for kind, option, given in (("denoise", "sigma", sigma), ("dejpeg", "quality", quality)):
        if given is not None and (task.kind != kind or getattr(task, option)):
            raise ArgumentError(f"--{option} is for tasks of kind {kind} without one of their own, not {task.name}")
    if sigma is not None:
        return {"level": f"sigma {sigma:g}"}, replace(task, sigma=sigma)
    if quality is not None:
        return {"level": f"quality {quality}"}, replace(task, quality=quality)
    return {}, task


def run(arguments: argparse.Namespace) -> None:
    """Evaluate as the arguments say, and write and print the rows."""
    checkpoint = load_checkpoint(arguments.checkpoint)
    tasks = [checkpoint.model.task(key) for key in arguments.task]
    stride = STRIDE if arguments.stride is None else arguments.stride
    keep = KEEP if arguments.keep is None else arguments.keep
    try:
        check_rule(stride, keep, checkpoint.model.config.patch_size)
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    degraded = [at_level(task, arguments.sigma, arguments.quality) for task in tasks]
    found = [find_images(arguments.data, task)[: arguments.limit] for task in tasks]
    with ExitStack() as stack:
        if arguments.url:
            restorer = stack.enter_context(by_server(arguments.url, tasks, arguments.stride, arguments.keep))
        else:
            device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
            restorer = by_pytorch(checkpoint, stride, keep, arguments.precision or "fp32", device)
        if restorer.how["checkpoint_sha256"] != checkpoint.sha256:
            logger.warning("note: the server serves other weights than %s", arguments.checkpoint)
        if arguments.tta:
            restorer = self_ensemble(restorer)
        name = arguments.data.resolve().name
        rows = [
            {**level, **evaluate(paths, name, task, restorer, arguments.pictures)}
            for (level, task), paths in zip(degraded, found, strict=True)
        ]
    if arguments.json:
        with atomic_file(arguments.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")
    print(markdown(rows))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status, see the module's docstring."""
    parser = make_parser("ipt-train evaluate", __doc__ or "")
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the test set")
    parser.add_argument("--task", nargs="+", required=True, help="names or ids")
    parser.add_argument("--sigma", type=float, help="of the noise, for a task without a σ of its own")
    parser.add_argument("--quality", type=int, help="of JPEG, for a task without a quality of its own")
    parser.add_argument("--url", metavar="HOST:PORT", help="restore through the server with this gRPC port")
    parser.add_argument("--stride", type=int, help=f"distance of tiles (default {STRIDE}, or the server's)")
    parser.add_argument(
        "--keep", type=int, help=f"side of a tile's centre that is used (default {KEEP}, or the server's)"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of PyTorch (default fp32)")
    parser.add_argument("--device", help="of PyTorch (default cuda where there is one)")
    parser.add_argument("--tta", action="store_true", help="average over 8 flips and rotations (8 times the work)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a list of rows with per-image values")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write side-by-side details as PNG")
    arguments = parser.parse_args(argv)
    if arguments.limit is not None and arguments.limit < 1:
        parser.error(f"--limit {arguments.limit} is not allowed: it must be at least 1")
    if arguments.url and (arguments.precision or arguments.device):
        parser.error("--precision and --device are PyTorch's; a server has chosen its own")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(lambda: run(arguments))
