"""The gateway's folder: private, bounded, and of one gateway alone."""

from __future__ import annotations

import fcntl
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.problems import BUSY_S, Problem


class FolderInUse(RestorationError):
    """The folder cannot be used, or another gateway uses it."""

    status = 2


class Room:
    """Bytes of the folder that somebody has, or may need; a context manager."""

    def __init__(self, spool: Spool, number: int) -> None:
        self._spool, self._number = spool, 0
        self.resize(number)

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resize(self, number: int, forced: bool = False) -> None:
        """Have more of them, or fewer.

        Args:
            forced: what is there already counts, even if it is too much.

        Raises:
            Problem: 503, there are not so many left.
        """
        more = number - self._number
        if more > 0 and self._spool.taken + more > self._spool.disk_bytes and not forced:
            raise Problem(503, "the gateway's disk is full of other photos; try again later", 12 * BUSY_S)
        self._spool.taken += more
        self._number = number

    def close(self) -> None:
        """Give all back."""
        self.resize(0)


class Spool:
    """Keeps account of the bytes below a folder.

    Attributes:
        taken: bytes that somebody has, or may need.

    Args:
        folder: made where it is not there, and closed to other users.
        disk_bytes: that all of it may take.

    Raises:
        FolderInUse: another gateway has it, or it cannot be written.
    """

    def __init__(self, folder: Path, disk_bytes: int) -> None:
        self._folder, self.disk_bytes = folder, disk_bytes
        self.taken = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._lock = (folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder / "work", ignore_errors=True)  # of requests that a gateway before us left
            (folder / "work").mkdir(mode=0o700)
            (folder / "jobs").mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError:
            raise FolderInUse(f"another gateway uses {folder}; give this one its own with --folder") from None
        except OSError as error:
            raise FolderInUse(f"{folder} cannot be used ({error.strerror}); give another with --folder") from None

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        """Let others have the folder."""
        self._lock.close()

    @property
    def jobs(self) -> Path:
        """The folder of the jobs' folders."""
        return self._folder / "jobs"

    @property
    def database(self) -> Path:
        """The file of the jobs' table."""
        return self._folder / "jobs.sqlite"

    def room(self, number: int) -> Room:
        """Take bytes, until the room is closed.

        Raises:
            Problem: 503, there are not so many left.
        """
        return Room(self, number)

    @contextmanager
    def work(self) -> Iterator[Path]:
        """A folder for one request, gone after the block with all that is in it."""
        folder = self._folder / "work" / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def bytes_below(folder: Path) -> int:
    """Of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
