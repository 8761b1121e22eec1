"""Writing folders and files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import filecmp
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    """Says in an error of the disk which file or folder was written, where the error itself does not."""
    try:
        yield
    except OSError as error:
        if error.errno in _OF_DISKS and error.filename is None:
            error.filename = str(target)
        raise


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    What stood at `target` is replaced as a whole. It is untouched after an error, and if it holds the same already:
    then its times stay as well, by which Triton sees what has changed. The temporary folder is gone in any case.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        temporary.chmod(0o755)
        with _named(target):
            yield temporary
        if target.is_dir() and _same(temporary, target):
            return
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files and folders, Python's caches aside."""

    def names(folder: Path) -> list[Path]:
        found = (p.relative_to(folder) for p in folder.rglob("*"))
        return sorted(p for p in found if "__pycache__" not in p.parts)

    return names(one) == names(other) and all(
        (other / name).is_dir() if (one / name).is_dir() else filecmp.cmp(one / name, other / name, shallow=False)
        for name in names(one)
    )


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file name beside `target` that takes its place when the block ends without an error.

    No two blocks have the same one, so that of several writers of one file the last to end wins.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with _named(target):
            yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
