"""What a gateway may be told: where it keeps files, and the limits of photos, callers, time and space."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def default_folder() -> Path:
    """Where jobs are kept unless the command is told otherwise: in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipt-triton" / "gateway"


@dataclass(frozen=True)
class Settings:
    """The limits of a gateway.

    Attributes:
        folder: jobs and files under way; made, and closed to other users.
        max_upload_bytes: of one request's body.
        max_pixels, max_output_pixels: of a photo and of its result.
        upload_s: seconds that a body may take, and `idle_s` between two pieces of it.
        restore_s: seconds that `/v1/restore` may take, waiting included.
        workers: processes that decode and encode, and `worker_bytes` of memory for each.
        slots: photos that are restored at the same time, of which `large_slots` are large.
        max_waiting: requests and jobs that may wait for a slot.
        retention_s: seconds that a job and its files are kept after it was made, and again after it has ended.
        disk_bytes: of the folder.
        requests, megapixels: of one caller under way at the same time, unless its key says otherwise.
        keys_file: hashes of the keys that callers need; None for none but those of `IPT_GATEWAY_KEYS`.
        origins: of pages elsewhere that may call from a browser (CORS).
        probe_s: seconds between two restores of a small picture for each task, by which `/readyz` judges.
    """

    folder: Path = field(default_factory=default_folder)
    max_upload_bytes: int = 256 * 2**20
    max_pixels: int = 100_000_000
    max_output_pixels: int = 400_000_000
    upload_s: float = 300.0
    idle_s: float = 20.0
    restore_s: float = 600.0
    workers: int = 2
    worker_bytes: int = 4 * 2**30
    slots: int = 16
    large_slots: int = 2
    max_waiting: int = 256
    retention_s: float = 3600.0
    disk_bytes: int = 20 * 2**30
    requests: int = 32
    megapixels: float = 400.0
    keys_file: Path | None = None
    origins: tuple[str, ...] = ()
    probe_s: float = 20.0
