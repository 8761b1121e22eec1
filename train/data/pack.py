"""Photographs packed: into one file for a machine that cannot decode them, or into tar shards for many processes.

    ipt-train pack photos more-photos --output pool.npz --max-megapixels 20
    ipt-train pack photos --output shards/photos.tar --shards 64    # shards/photos-000.tar to shards/photos-063.tar

`--data` of the trainer takes both beside folders. Shards have the layout of webdataset, and hold the files as they are.
What cannot be read or is smaller than `--min-side` is left out; shards look at the sizes alone that files give of
themselves, and what is damaged behind that is left out by the trainer.
"""

from __future__ import annotations

import argparse
import glob
import io
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ipt_triton.cli import make_parser, run_command
from ipt_triton.files import atomic_file
from ipt_triton.train.data.pool import PACKED, Photograph, Pool, by_hash, find_photographs, load_pool
from ipt_triton.train.data.shards import SHARD, shard_paths, write_shard
from ipt_triton.train.errors import DataError, needs

logger = logging.getLogger(__name__)


def chosen_by_hash(names: Sequence[str], sizes: Sequence[tuple[int, int]], max_megapixels: float) -> list[int]:
    """Numbers of the photographs that fit, taken in the order of the hashes of their names.

    Raises:
        DataError: none fits.
    """
    order = by_hash(names)
    megapixels = np.cumsum([math.prod(sizes[i]) / 1e6 for i in order])
    chosen = sorted(order[: int((megapixels <= max_megapixels).sum())])
    if not chosen:
        raise DataError(f"no photograph fits into {max_megapixels} megapixels")
    return chosen


def write_packed(pool: Pool, path: Path) -> None:
    """Write photographs as one compressed `.npz`: `pixels` [P, 3], `sizes` [n, 2] (height, width) and `names`."""
    pixels = np.concatenate([i.reshape(-1, 3) for i in pool.images])
    sizes = np.array([i.shape[:2] for i in pool.images], np.int64)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, pixels=pixels, sizes=sizes, names=np.array(pool.names))


def size_of(photograph: Photograph) -> tuple[int, int] | None:
    """Width and height that an image file gives of itself; None if it cannot be read.

    Raises:
        MissingPackage: Pillow is not installed.
    """
    with needs("pillow", "ipt-train pack --shards"):
        from PIL import Image

    try:
        with Image.open(photograph.path if photograph.size is None else io.BytesIO(photograph.read())) as image:
            return image.size
    except Exception:  # Pillow's decoders raise nearly anything on broken files
        return None


def write_shards(photographs: Sequence[Photograph], paths: Sequence[Path]) -> None:
    """Deal the files of photographs to shards one by one, so that all hold as many.

    Raises:
        DataError: there are fewer photographs than shards.
    """
    if len(photographs) < len(paths):
        raise DataError(f"{len(photographs)} photographs are too few for {len(paths)} shards")
    for number, path in enumerate(paths):
        write_shard(path, ((p.name, p.read()) for p in photographs[number :: len(paths)]))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("ipt-train pack", __doc__ or "")
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="folders of photographs, or shards")
    add("--output", type=Path, required=True, metavar="FILE", help=f"ends in {PACKED}, or with --shards in {SHARD}")
    add("--shards", type=int, metavar="N", help="write N shards, numbered, in place of one file")
    add("--max-megapixels", type=float, default=math.inf, metavar="N", help="take no more than these")
    add("--min-side", type=int, default=192, metavar="PX", help="leave out smaller (default %(default)s)")
    arguments = parser.parse_args(argv)
    suffix = PACKED if arguments.shards is None else SHARD
    if arguments.output.suffix != suffix:
        parser.error(f"--output {arguments.output} must end in {suffix}")
    if arguments.shards is not None and arguments.shards < 1:
        parser.error(f"--shards {arguments.shards} is not allowed: it must be at least 1")
    return arguments


def pack_pool(arguments: argparse.Namespace) -> None:
    """One `.npz`."""
    pool = load_pool(arguments.folders, arguments.min_side)
    sizes = [(image.shape[0], image.shape[1]) for image in pool.images]
    chosen = pool.take(chosen_by_hash(pool.names, sizes, arguments.max_megapixels))
    write_packed(chosen, arguments.output)
    print(f"{arguments.output}: {len(chosen.names)} photographs, {chosen.megapixels:.1f} megapixels")


def pack_shards(arguments: argparse.Namespace) -> None:
    """Tar shards. Raises DataError if shards of that name are there already."""
    output: Path = arguments.output
    if there := sorted(output.parent.glob(f"{glob.escape(output.stem)}-[0-9]*{SHARD}")):
        raise DataError(f"{there[0]} is there already; delete it, or choose another --output")
    found = find_photographs(arguments.folders)
    sizes = {p: size for p in found if (size := size_of(p))}
    usable = [p for p in found if p in sizes and min(sizes[p]) >= arguments.min_side]
    small = len(sizes) - len(usable)
    unreadable = len(found) - len(sizes)
    logger.info("%d photographs, %d unreadable, %d below %d px", len(usable), unreadable, small, arguments.min_side)
    rows = chosen_by_hash([p.name for p in usable], [sizes[p] for p in usable], arguments.max_megapixels)
    paths = shard_paths(output, arguments.shards)
    write_shards([usable[row] for row in rows], paths)
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    print(f"{paths[0]} to {paths[-1].name}: {len(rows)} photographs, {megabytes:.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments or data."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(lambda: pack_pool(arguments) if arguments.shards is None else pack_shards(arguments))
