"""What each of several processes reads: files and shards of its own, and nothing that is held out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pytest
from helpers.training import write_photographs

from ipt_triton.train.data import shares
from ipt_triton.train.data.pack import main as pack
from ipt_triton.train.data.pool import load_pool
from ipt_triton.train.data.shards import read_index
from ipt_triton.train.data.shares import Split, split_files
from ipt_triton.train.errors import DataError

T = TypeVar("T")


@dataclass(frozen=True)
class Thread:
    """A process of a run as a thread of this one; `values` are those under way."""

    rank: int
    processes: int
    barrier: Barrier
    values: list[Any]

    def gather(self, value: T) -> list[T]:
        self.values[self.rank] = value
        self.barrier.wait(10)
        all_of_them = list(self.values)
        self.barrier.wait(10)
        return all_of_them


def together(processes: int, work: Callable[[Thread], T]) -> list[T]:
    """What each of so many processes makes of it."""
    barrier, values = Barrier(processes), [None] * processes
    with ThreadPoolExecutor(processes) as executor:
        return list(executor.map(work, [Thread(rank, processes, barrier, values) for rank in range(processes)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder, 20, side=64)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same photographs in five shards, but for the broken one."""
    output = tmp_path_factory.mktemp("shards")
    assert pack([str(folder), "--output", str(output / "photos.tar"), "--shards", "5", "--min-side", "48"]) == 0
    return sorted(output.iterdir())


def names(split: Split) -> set[str]:
    return {p.name for p in split.own}


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_each_shard_is_read_by_one_process_and_the_same_is_held_out_as_from_a_folder(
    folder: Path, packed: list[Path], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed: list[Path] = []
    monkeypatch.setattr(shares, "read_index", lambda shard: (indexed.append(shard), read_index(shard))[1])
    splits = together(processes, lambda team: split_files(packed, 6, 48, 1.0, team))
    assert sorted(indexed) == packed
    for rank, split in enumerate(splits):
        assert {p.path for p in split.own} == set(packed[rank::processes])
    training, held_out = load_pool([folder], 48).split(6)
    assert sum(len(s.own) for s in splits) == splits[0].photographs == len(training.names)
    assert set().union(*map(names, splits)) == set(training.names)
    for split in splits:
        images = dict(zip(split.held_out.names, split.held_out.images, strict=True))
        assert images.keys() == set(held_out.names)
        for name, image in zip(held_out.names, held_out.images, strict=True):
            assert np.array_equal(images[name], image)


def test_a_share_is_chosen_by_name_from_folders_and_shards_together(folder: Path, packed: list[Path]) -> None:
    sources = [folder, *packed[:2]]
    alone = split_files(sources, 6, 48, 0.5, together(1, lambda team: team)[0])
    splits = together(2, lambda team: split_files(sources, 6, 48, 0.5, team))
    chosen = sorted(p.name for split in splits for p in split.own)
    assert chosen == sorted(p.name for p in alone.own) and len(chosen) == splits[0].photographs
    files = [{p.name for p in s.own if p.size is None} for s in splits]
    assert files[0] and files[1] and not files[0] & files[1]
    for rank, split in enumerate(splits):
        assert {p.path for p in split.own if p.size is not None} <= {packed[rank]}


def test_fewer_shards_than_processes_are_refused(packed: list[Path]) -> None:
    with pytest.raises(DataError, match="14 photographs in 5 shards are too few for 6 processes"):
        together(6, lambda team: split_files(packed, 6, 48, 1.0, team))


def test_a_shard_that_is_not_whole_ends_all_processes(packed: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(packed[0].read_bytes()[:2000])

    def split(team: Thread) -> str:
        with pytest.raises(DataError) as error:
            split_files([packed[0], tmp_path / "cut.tar"], 2, 48, 1.0, team)
        return str(error.value)

    messages = together(2, split)
    assert messages[0] == messages[1] and "cut.tar is not a whole, uncompressed tar file" in messages[0]
