"""Segments: encoded frames in finished pieces beside the target, so that a killed run goes on where it stopped.

A segment's file begins with a line of JSON (the picture's size, the encoder's header) and holds one record for each
frame: its time, duration, key flag, and bytes. Times are whole numbers in the stream's own unit, as no container keeps
them all. A file under its final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from ipt_triton.client.video.errors import VideoError
from ipt_triton.files import atomic_file

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_RECORD = struct.Struct("<qqBI")
_HEAD_BYTES = 1 << 20
_JOURNAL, _LOCK = "journal.json", "lock"


class Packet(NamedTuple):
    """One encoded frame: presentation time and duration in units of the stream's time base, and its bytes."""

    pts: int
    duration: int
    is_key: bool
    data: bytes


@dataclass(frozen=True)
class SegmentHeader:
    """What all segments of a video have in common: the restored size, and the encoder's header (may be empty)."""

    width: int
    height: int
    extradata: str


class SegmentWriter:
    """Writes packets into one segment's file."""

    def __init__(self, file: BinaryIO, header: SegmentHeader) -> None:
        self._file = file
        file.write(json.dumps(asdict(header)).encode() + b"\n")

    def write(self, packet: Packet) -> None:
        """Append a packet."""
        self._file.write(_RECORD.pack(packet.pts, packet.duration, packet.is_key, len(packet.data)) + packet.data)


def read_header(path: Path) -> SegmentHeader:
    """The header of a finished segment."""
    with path.open("rb") as file:
        return SegmentHeader(**json.loads(file.readline()))


def read_packets(path: Path, with_data: bool = True) -> Iterator[Packet]:
    """The packets of a finished segment, in the encoder's order; without their bytes if not `with_data`."""
    with path.open("rb") as file:
        file.readline()
        while record := file.read(_RECORD.size):
            pts, duration, is_key, size = _RECORD.unpack(record)
            data = file.read(size) if with_data else b""
            if not with_data:
                file.seek(size, os.SEEK_CUR)
            yield Packet(pts, duration, bool(is_key), data)


def fingerprint(source: Path) -> dict[str, Any]:
    """What tells a source from another: size, time of change, hash of its first MiB."""
    status = source.stat()
    with source.open("rb") as file:
        head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "head_sha256": head}


class WorkFolder:
    """The folder of a target's segments, beside it; gone once the target is whole.

    Args:
        target: the file to be.
        journal: all that decides about the frames: the source's fingerprint and the options, as JSON can hold it.
            Segments of another journal are deleted.

    Raises:
        VideoError: another run is at work on this target.
    """

    def __init__(self, target: Path, journal: dict[str, Any]) -> None:
        self.path = target.with_name(f".{target.name}.segments")
        self.path.mkdir(exist_ok=True)
        self._lock = (self.path / _LOCK).open("w")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise VideoError(
                    f"{target} is being written by another run; wait for its end or choose another target"
                ) from None
        same = self._written_journal() == journal
        for path in self.path.iterdir():
            if path.suffix == ".part" or not (same or path.name == _LOCK):
                path.unlink()
        if not same:
            with atomic_file(self.path / _JOURNAL) as temporary:
                temporary.write_text(json.dumps(journal, indent=2) + "\n", encoding="utf-8")

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not self.finished():
            self.remove()
        self._lock.close()

    def finished(self) -> list[Path]:
        """Finished segments, in order, without a gap."""
        paths: list[Path] = []
        while (path := self._segment(len(paths))).exists():
            paths.append(path)
        return paths

    @contextlib.contextmanager
    def segment(self, number: int, header: SegmentHeader) -> Iterator[SegmentWriter]:
        """Write a segment; its file is there whole, on the disk, after the block, or not at all after an error."""
        with atomic_file(self._segment(number)) as temporary, temporary.open("wb") as file:
            yield SegmentWriter(file, header)
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def _segment(self, number: int) -> Path:
        return self.path / f"{number:06d}.segment"

    def _written_journal(self) -> Any:
        try:
            return json.loads((self.path / _JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
