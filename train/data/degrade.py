"""Degraded photographs: what the inputs of a task look like, as a test set or on a sheet to look at.

    ipt-train degrade photos --task derain dejpeg --output degraded              # degraded/derain/NAME.png, ...
    ipt-train degrade src/ipt_triton/photos --task derain denoise real --sheet sheet.png

The degradation of a photograph is decided by its file name, as in `ipt-train evaluate`; `--seed` takes other ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ipt_triton.cli import make_parser, run_command
from ipt_triton.metrics import to_uint8
from ipt_triton.tasks import KNOWN_TASKS, Task, find_task
from ipt_triton.train.data.degradations import degrade_image, seed_of
from ipt_triton.train.data.pictures import enlarged, format_of, write_picture
from ipt_triton.train.data.pool import Photograph, find_photographs, read_photograph
from ipt_triton.train.data.sets import cut_to_scale
from ipt_triton.train.errors import DataError

DETAIL, SHOWN = 160, 4  # pixels of a detail on the sheet, and how many photographs are shown
SMALLEST = 32
"""Pixels of a side: what blurs a photograph mirrors its borders, and needs some that it can mirror."""
_MARGIN, _CAPTION = 6, 16


def degraded(clean: np.ndarray, name: str, task: Task, seed: int = 0) -> np.ndarray:
    """What an 8-bit file of a task's input holds: uint8 [height, width, 3] -> [height / scale, width / scale, 3].

    Args:
        name: file name of the photograph, which decides its degradation together with `seed`.

    Raises:
        DataError: it is too small.
    """
    height, width = clean.shape[:2]
    if min(height, width) < SMALLEST:
        raise DataError(f"{name} is {width}x{height}; a side must have {SMALLEST} pixels or more")
    return to_uint8(degrade_image(cut_to_scale(clean, task.scale), task, seed_of(name) ^ seed))


def write_set(folder: Path, tasks: Sequence[Task], output: Path, seed: int) -> int:
    """Each photograph below a folder as PNG, for each task in a folder of its name; returns how many were written.

    Raises:
        DataError: no photographs, one that is too small, or a file that is there already.
        UnreadableImage: a file that is no image.
    """
    photographs = _photographs(folder)
    targets = [output / task.name / Path(p.name).with_suffix(".png") for p in photographs for task in tasks]
    if len(set(targets)) < len(targets):
        raise DataError(f"{folder} has photographs whose names differ in their endings alone, or a task is named twice")
    if there := next(filter(Path.exists, targets), None):
        raise DataError(f"{there} is there already; choose another --output")
    waiting = iter(targets)
    for photograph in photographs:
        clean = read_photograph(photograph)
        for task in tasks:
            target = next(waiting)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_picture(Image.fromarray(degraded(clean, Path(photograph.name).name, task, seed)), target)
    return len(targets)


def draw_sheet(folder: Path, tasks: Sequence[Task], seed: int) -> Image.Image:
    """A row for each task: the middle of the first photographs, reduced ones enlarged by repeating their pixels."""
    photographs = _photographs(folder)[:SHOWN]
    cleans = [read_photograph(p) for p in photographs]
    cell = DETAIL + _MARGIN
    sheet = Image.new("RGB", (len(cleans) * cell + _MARGIN, len(tasks) * (cell + _CAPTION) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, task in enumerate(tasks):
        top = _MARGIN + row * (cell + _CAPTION)
        draw.text((_MARGIN, top), task.name, fill="black")
        for column, (photograph, clean) in enumerate(zip(photographs, cleans, strict=True)):
            image = enlarged(degraded(clean, Path(photograph.name).name, task, seed), task.scale)
            y, x = (max(0, (size - DETAIL) // 2) for size in image.shape[:2])
            detail = Image.fromarray(image[y : y + DETAIL, x : x + DETAIL])
            sheet.paste(detail, (_MARGIN + column * cell, top + _CAPTION))
    return sheet


def _photographs(folder: Path) -> list[Photograph]:
    photographs = find_photographs([folder])
    if not photographs:
        raise DataError(f"{folder} holds no photographs")
    return photographs


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 an image that cannot be read, 2 wrong arguments or data."""
    parser = make_parser("ipt-train degrade", __doc__ or "")
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of clean photographs")
    add("--task", nargs="+", required=True, metavar="TASK", help="names or ids")
    add("--output", type=Path, metavar="DIR", help="gets a folder of PNG files for each task")
    add("--sheet", type=Path, metavar="FILE", help=f"one picture with details of the first {SHOWN} photographs")
    add("--seed", type=int, default=0, metavar="N", help="other degradations, from 0 up (default %(default)s)")
    arguments = parser.parse_args(argv)
    if not arguments.output and not arguments.sheet:
        parser.error("where to? give --output or --sheet")
    if not 0 <= arguments.seed < 1 << 63:
        parser.error(f"--seed {arguments.seed} is not allowed: it must be at least 0 and below 2^63")

    def work() -> None:
        tasks = [find_task(KNOWN_TASKS, name) for name in arguments.task]
        if arguments.sheet:
            format_of(arguments.sheet)  # what it refuses is known before the work
        if arguments.output:
            written = write_set(arguments.folder, tasks, arguments.output, arguments.seed)
            print(f"{arguments.output}: {written} images")
        if arguments.sheet:
            arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
            write_picture(draw_sheet(arguments.folder, tasks, arguments.seed), arguments.sheet)
            print(arguments.sheet)

    return run_command(work)
