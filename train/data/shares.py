"""What each process of a run reads where workers decode: its share of the files, and shards of its own.

All processes decide by one list of names, so that the same photographs are held out whatever their number. A shard is
opened by one process alone, which tells the others what is in it, and sends them what is held out of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from ipt_triton.train.data.pool import (
    PACKED,
    Photograph,
    Pool,
    by_hash,
    check_enough,
    decode,
    photographs_below,
    photographs_of,
    share,
)
from ipt_triton.train.data.shards import SHARD, Member, read_index
from ipt_triton.train.errors import DataError

T = TypeVar("T")


class Team(Protocol):
    """The processes of a run; `train.fit.runtime.Runtime` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def processes(self) -> int: ...

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        ...


class Split(NamedTuple):
    """What a process trains on, how many photographs all of them train on, and what is held out from all."""

    own: list[Photograph]
    photographs: int
    held_out: Pool


def split_files(sources: Sequence[Path], held_out: int, min_side: int, fraction: float, team: Team) -> Split:
    """As `load_pool`, `Pool.split` and `Pool.share`, but only what is held out is decoded, and each process has a part.

    Files of folders are dealt to the processes one by one, and shards as a whole.

    Raises:
        DataError: in all processes; a packed file, a source that is not there, or too few photographs or shards.
    """
    if packed := [s for s in sources if s.suffix == PACKED]:
        raise DataError(f"{packed[0]} is for the memory; leave out --workers")
    owners = {s: number % team.processes for number, s in enumerate(s for s in sources if s.suffix == SHARD)}
    photographs = _find(sources, owners, team)
    order = by_hash([p.name for p in photographs])
    pool = Pool([], [])
    while order and (missing := held_out - len(pool.names)):
        candidates, order = [photographs[i] for i in order[:missing]], order[missing:]
        for photograph, image in zip(candidates, _decode(candidates, owners, team), strict=True):
            if image is not None and min(image.shape[:2]) >= min_side:
                pool.images.append(image)
                pool.names.append(photograph.name)
    check_enough(len(pool.names) + len(order), held_out)
    training = [photographs[i] for i in sorted(order)]
    training = [training[i] for i in share([p.name for p in training], fraction)]
    dealt = itertools.count()
    readers = [owners[p.path] if p.path in owners else next(dealt) % team.processes for p in training]
    if len(set(readers)) < team.processes:
        shards = f" in {len(owners)} shards" if owners else ""
        raise DataError(f"{len(training)} photographs{shards} are too few for {team.processes} processes")
    own = [p for p, reader in zip(training, readers, strict=True) if reader == team.rank]
    return Split(own, len(training), pool)


def _find(sources: Sequence[Path], owners: Mapping[Path, int], team: Team) -> list[Photograph]:
    """As `find_photographs`, with each shard read by its owner alone."""
    own: dict[Path, list[Member]] | DataError
    folders: dict[Path, list[Photograph]] = {}
    try:
        folders = {source: photographs_below(source) for source in sources if source not in owners}
        own = {shard: read_index(shard) for shard, owner in owners.items() if owner == team.rank}
    except DataError as error:  # told to all, so that no process waits for one that has ended
        own = error
    found: dict[Path, list[Member]] = {}
    for part in team.gather(own):
        if isinstance(part, DataError):
            raise part
        found |= part
    of_all: list[Photograph] = []
    for source in sources:
        of_all += photographs_of(source, found[source]) if source in found else folders[source]
    return of_all


def _decode(photographs: Sequence[Photograph], owners: Mapping[Path, int], team: Team) -> list[np.ndarray | None]:
    """Photographs, or None for those that cannot be read: of a shard its owner decodes them, of a folder everyone."""
    rows = [row for row, p in enumerate(photographs) if owners.get(p.path, team.rank) == team.rank]
    decoded: dict[int, np.ndarray | None] = {row: decode(photographs[row]) for row in rows}
    if owners:
        sent = {row: image for row, image in decoded.items() if photographs[row].path in owners}
        for part in team.gather(sent):
            decoded |= part
    return [decoded[row] for row in range(len(photographs))]
