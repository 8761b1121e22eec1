"""Training images: found in folders and shards, decoded, held out and selected by the hash of their names."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ipt_triton.images import SUFFIXES, UnreadableImage, read_rgb
from ipt_triton.reading import excerpt
from ipt_triton.train.data.shards import SHARD, Member, read_index
from ipt_triton.train.errors import DataError

try:
    import cv2
except ImportError:  # a machine with Pillow alone, or one that gets packed pools
    cv2 = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PACKED = ".npz"


@dataclass(frozen=True)
class Photograph:
    """A file, or a member of a shard, that may be trained on.

    Attributes:
        path: of the file or shard.
        name: its path inside the folder or shard, which the hashes go by.
        offset, size: where it lies in the shard, in bytes; of a file `size` is None.
    """

    path: Path
    name: str
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        text = str(self.path) if self.size is None else f"{self.path}: {self.name}"
        return text.encode("utf-8", "backslashreplace").decode()  # not every name is text

    def read(self) -> bytes:
        """The image file as it is. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)


@dataclass(frozen=True)
class Pool:
    """Decoded photographs.

    Attributes:
        images: clean, RGB uint8 [height, width, 3].
        names: of the files, relative to their folder.
        degraded: for pairs, the degraded version of each, 1 / scale as large; None if degradations are synthetic.
    """

    images: list[np.ndarray]
    names: list[str]
    degraded: list[np.ndarray] | None = None

    @property
    def megapixels(self) -> float:
        return sum(i.shape[0] * i.shape[1] for i in self.images) / 1e6

    def take(self, rows: Sequence[int]) -> Pool:
        """The photographs of these numbers."""
        degraded = None if self.degraded is None else [self.degraded[i] for i in rows]
        return Pool([self.images[i] for i in rows], [self.names[i] for i in rows], degraded)

    def split(self, held_out: int) -> tuple[Pool, Pool]:
        """(training, held-out): `held_out` photographs chosen by the hash of their names, whatever else is there.

        Raises:
            DataError: fewer than `held_out` + 1 photographs.
        """
        check_enough(len(self.images), held_out)
        order = by_hash(self.names)
        return self.take(sorted(order[held_out:])), self.take(sorted(order[:held_out]))

    def share(self, fraction: float) -> Pool:
        """A fraction of the photographs; a smaller one is contained in a larger one."""
        return self.take(share(self.names, fraction))


def check_enough(usable: int, held_out: int) -> None:
    """Raises DataError where nothing is left to train on."""
    if held_out >= usable:
        raise DataError(f"{usable} usable photographs are too few to hold {held_out} out; add photographs")


def by_hash(names: Sequence[str], salt: str = "") -> list[int]:
    """Numbers of the names in an order that looks random and is the same everywhere."""
    encoded = [(salt + name).encode(errors="surrogateescape") for name in names]
    return sorted(range(len(names)), key=lambda i: hashlib.sha256(encoded[i]).digest())


def share(names: Sequence[str], fraction: float) -> list[int]:
    """Numbers of a fraction (0 to 1, at least one) of the names, chosen by hash: 20 % are contained in 40 %."""
    return sorted(by_hash(names, "fraction ")[: max(1, math.ceil(fraction * len(names)))])


def find_photographs(sources: Sequence[Path]) -> list[Photograph]:
    """Every image file below the folders and in the shards, in the order of the sources and of their names or places.

    Raises:
        DataError: a folder that is not there, or a shard that cannot be read.
    """
    found: list[Photograph] = []
    for source in sources:
        found += photographs_of(source, read_index(source)) if source.suffix == SHARD else photographs_below(source)
    return found


def photographs_of(shard: Path, members: Sequence[Member]) -> list[Photograph]:
    """The members of a shard as photographs."""
    return [Photograph(shard, *member) for member in members]


def photographs_below(folder: Path) -> list[Photograph]:
    """Every image file below a folder, in the order of their names. Raises DataError if it is not there."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [Photograph(p, p.relative_to(folder).as_posix()) for p in paths]


def read_photograph(photograph: Photograph) -> np.ndarray:
    """RGB uint8 [height, width, 3], read by Pillow. Raises UnreadableImage and ImportError as `read_rgb`, OSError."""
    if photograph.size is None:
        return read_rgb(photograph.path)
    return read_rgb(io.BytesIO(photograph.read()), str(photograph))


def decode(photograph: Photograph) -> np.ndarray | None:
    """RGB uint8 [height, width, 3], or None (and a warning) for one that cannot be read.

    OpenCV decodes JPEG in half the time of Pillow, but passes off a truncated file as a picture: it gets whole ones.

    Raises:
        DataError: Pillow is not installed.
    """
    try:
        if cv2 is not None:
            data = photograph.read()
            if data[:2] == b"\xff\xd8" and data.endswith(b"\xff\xd9"):
                flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
                if (image := cv2.imdecode(np.frombuffer(data, np.uint8), flags)) is not None:
                    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return read_photograph(photograph)
    except ImportError:
        raise DataError(
            "photographs are read with Pillow: pip install pillow, or pack them elsewhere with ipt-train pack"
        ) from None
    except (OSError, UnreadableImage) as error:
        logger.warning("left out: %s", error)
        return None


def load_pool(sources: Sequence[Path], min_side: int) -> Pool:
    """Decode every photograph below the folders and in the shards, and read every packed file.

    Files that cannot be read, and photographs with a side below `min_side` pixels, are left out and counted in the log.

    Raises:
        DataError: a source that is not there, or no usable photograph, with the counts.
    """
    found = find_photographs([s for s in sources if s.suffix != PACKED])
    decoded = list(zip(_decode_all(found), (p.name for p in found), strict=True))
    for source in sources:
        if source.suffix == PACKED:
            packed = read_packed(source)
            decoded += zip(packed.images, packed.names, strict=True)
    usable = [(i, name) for i, name in decoded if i is not None and min(i.shape[:2]) >= min_side]
    unreadable = sum(i is None for i, _ in decoded)
    small = len(decoded) - unreadable - len(usable)
    logger.info("%d photographs read, %d unreadable, %d below %d px", len(usable), unreadable, small, min_side)
    if not usable:
        raise DataError(
            f"no usable photograph in {', '.join(map(str, sources))}: {len(decoded)} files of a known kind, "
            f"{unreadable} unreadable, {small} with a side below {min_side} px"
        )
    return Pool([i for i, _ in usable], [n for _, n in usable])


def load_pairs(degraded_folder: Path, clean_folder: Path, scale: int, min_side: int) -> Pool:
    """Decode pairs: the same name (its ending aside) in both folders, the clean one `scale` times as large.

    Pairs of which a file cannot be read, or whose clean side is below `min_side`, are left out and counted in the log.

    Raises:
        DataError: a folder that is not there, a name in one folder only, sizes that do not fit, or no usable pair.
    """
    sides = [
        {str(Path(p.name).with_suffix("")): p for p in find_photographs([f])} for f in (degraded_folder, clean_folder)
    ]
    if alone := sorted(sides[0].keys() ^ sides[1].keys()):
        raise DataError(
            f"{len(alone)} names are in {degraded_folder} or {clean_folder} alone, {alone[0]} for instance; every "
            "degraded photograph needs a clean one of the same name"
        )
    names = sorted(sides[0])
    degraded, clean = (_decode_all([side[n] for n in names]) for side in sides)
    pool = Pool([], [], [])
    assert pool.degraded is not None
    for name, low, high in zip(names, degraded, clean, strict=True):
        if low is None or high is None or min(high.shape[:2]) < min_side:
            continue
        if high.shape[:2] != (low.shape[0] * scale, low.shape[1] * scale):
            raise DataError(
                f"pair {name}: the clean photograph has {high.shape[1]}x{high.shape[0]} px, which is not {scale} times "
                f"the {low.shape[1]}x{low.shape[0]} px of the degraded one"
            )
        pool.images.append(high)
        pool.names.append(name)
        pool.degraded.append(low)
    logger.info("%d pairs read, %d unreadable or below %d px", len(pool.names), len(names) - len(pool.names), min_side)
    if not pool.names:
        raise DataError(f"no usable pair in {degraded_folder} and {clean_folder}: {len(names)} names, none usable")
    return pool


def _decode_all(photographs: Sequence[Photograph]) -> list[np.ndarray | None]:
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        return list(executor.map(decode, photographs))


def read_packed(path: Path) -> Pool:
    """Read what `pack.write_packed` wrote. Raises DataError for another file, or none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pixels, sizes, names = file["pixels"], file["sizes"], [str(n) for n in file["names"]]
        pieces = np.split(pixels, np.cumsum(sizes.prod(1))[:-1])
        images = [p.reshape(h, w, 3) for p, (h, w) in zip(pieces, sizes.tolist(), strict=True)]
    except Exception as error:  # zipfile and numpy meet damaged files with errors of many kinds
        raise DataError(f"{path} is not a packed pool ({excerpt(error)}); write one with ipt-train pack") from None
    return Pool(images, names)
