"""Tar shards of photographs, in the layout of webdataset: what is in them, and how they are written.

A shard is a tar without compression whose members are image files; members of other kinds are passed over. Its headers
are read once. From then on a photograph is read where it lies, so that any can be drawn at any time, as from a folder.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ipt_triton.files import atomic_file
from ipt_triton.images import SUFFIXES
from ipt_triton.reading import excerpt
from ipt_triton.train.errors import DataError

SHARD = ".tar"


class Member(NamedTuple):
    """An image file in a shard: its name, where in the shard its bytes begin, and how many there are."""

    name: str
    offset: int
    size: int


def read_index(path: Path) -> list[Member]:
    """The image files of a shard, in their order.

    Raises:
        DataError: it is not there, is no tar, is compressed, or is not whole.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [Member(PurePosixPath(m.name).as_posix(), m.offset_data, m.size) for m in tar if _is_image(m)]
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any other one for the end, too
                raise tarfile.ReadError(f"neither a header nor the end at byte {end}")
    except (OSError, tarfile.TarError, ValueError) as error:  # ValueError: a damaged list of a sparse file's parts
        raise DataError(f"{path} is not a whole, uncompressed tar file ({excerpt(error)}); write it again") from None
    return members


def _is_image(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and PurePosixPath(member.name).suffix.lower() in SUFFIXES


def shard_paths(pattern: Path, count: int) -> list[Path]:
    """`photos.tar` and 64 -> `photos-000.tar` to `photos-063.tar`."""
    digits = max(3, len(str(count - 1)))
    return [pattern.with_name(f"{pattern.stem}-{number:0{digits}d}{SHARD}") for number in range(count)]


def write_shard(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write files by name as one shard; the same files give the same bytes."""
    with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
