"""One photo of a batch: read, restored through a client, written, and compared if that is asked for."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any

from ipt_triton.client.batch import STREAM, VIDEO_SUFFIXES, Job
from ipt_triton.client.compare import figures, reference_of, side_by_side
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import Cancelled, ImageError, InvalidRequest, RestorationError, ServerUnavailable
from ipt_triton.client.noise import denoising_warning
from ipt_triton.client.photo import Frames, check_frames, read_frames, write_frames, write_photo
from ipt_triton.client.photo.samples import Samples
from ipt_triton.client.work import Outcome, Progress
from ipt_triton.metrics import border_of
from ipt_triton.tasks import Chain

WATCHED = 2
"""Photos whose progress is asked for at a time: a server takes more photos at once than it tells the progress of."""

FAILURES = (RestorationError, OSError, MemoryError)
"""What may be wrong with one photo; of these `ServerUnavailable` and `BrokenPipeError` concern the others as well."""


def reason(source: object, error: BaseException) -> str:
    """One of `FAILURES` as a sentence that names the photo."""
    if isinstance(error, ImageError):  # names it
        return str(error)
    if isinstance(error, MemoryError):
        return f"{source} does not fit into memory; use fewer --workers"
    return f"{source}: {error}"


class Restorer:
    """Restores single photos as the command was asked to.

    Args:
        chain: tasks of the server.
        made: how, for the results' history; see `protocol.recipe`.
        args: of the command, see `arguments`.
        progress: is told how far each photo is.
        cancelled: whether nobody wants the rest.
    """

    def __init__(
        self,
        client: RestorationClient,
        chain: Chain,
        made: str,
        args: argparse.Namespace,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self._client, self._chain, self._made, self._args = client, chain, made, args
        self._progress, self._cancelled = progress, cancelled
        self._watched = threading.Semaphore(WATCHED)

    def restore(self, job: Job) -> Outcome:
        """Restore one photo; what is wrong with it is told in the outcome.

        Raises:
            ServerUnavailable: the others cannot be restored either.
        """
        started = time.perf_counter()
        try:
            is_video = job.source.suffix.lower() in VIDEO_SUFFIXES
            details = self._restore_video(job) if is_video else self._restore(job)
        except (ServerUnavailable, BrokenPipeError):
            raise
        except FAILURES as error:
            return Outcome.of(job, "failed", error=reason(job.source, error))
        return Outcome.of(job, "restored", seconds=round(time.perf_counter() - started, 3), **details)

    def _restore(self, job: Job) -> dict[str, Any]:
        args, chain = self._args, self._chain
        # Before it is read: of a photo that is changed meanwhile the result is older.
        mtime = None if job.source == STREAM else job.source.stat().st_mtime
        frames = read_frames(sys.stdin.buffer if job.source == STREAM else job.source)
        photo = frames.photos[0]
        form = args.format if job.target == STREAM else None  # else the target's suffix tells
        check_frames(frames, job.target, form, flatten=args.flatten, depth=args.depth)
        reference = reference_of(job.source, args.reference) if args.reference else None
        made = self._restored(frames, job)
        restored = made.photos[0]
        self._write(made, job, form, mtime)
        if args.compare and job.target != STREAM:
            write_photo(side_by_side(photo, restored), job.target.with_name(f"{job.target.stem}_compare.png"))
        width, height = restored.size
        warning = denoising_warning(photo.pixels, chain)
        return {
            "width": width,
            "height": height,
            "warning": f"{job.source}: {warning}" if warning else "",
            "figures": figures(restored, reference, border_of(chain)) if reference else {},
        }

    def _restore_video(self, job: Job) -> dict[str, Any]:
        from ipt_triton.client.video import restore_video  # PyAV, of an extra, and heavy

        args = self._args
        if job.target == STREAM:
            raise InvalidRequest("a video is written to a file, not to standard output; give --output FILE")
        if args.strip_metadata or args.compare or args.reference:
            raise InvalidRequest(
                "--strip-metadata, --compare and --reference are for photos; leave them out for a video"
            )

        def tell(done: int, total: int | None, _: float) -> None:
            if self._cancelled():
                raise Cancelled("the rest was not restored; the same command goes on from there")
            self._progress.within(job, min(1.0, done / total) if total else 0.0, 0)

        job.target.parent.mkdir(parents=True, exist_ok=True)
        report = restore_video(
            self._client,
            job.source,
            job.target,
            args.task,
            stride=args.stride,
            keep=args.keep,
            **asdict(args.options),
            workers=args.workers,
            progress=tell,
        )
        return {"width": report.width, "height": report.height}

    def _restored(self, frames: Frames, job: Job) -> Frames:
        """All frames with all their planes restored; if there is somebody to see it, with progress."""
        watch = self._progress.is_drawn and self._watched.acquire(blocking=False)
        try:
            due = sum(1 + photo.has_alpha for photo in frames.photos)
            numbers = count()

            def restore(plane: Samples) -> Samples:
                done = next(numbers)
                return self._restore_plane(plane, job, (done / due, (done + 1) / due) if watch else None)

            return frames.restored(restore)
        finally:
            if watch:
                self._watched.release()

    def _restore_plane(self, plane: Samples, job: Job, shares: tuple[float, float] | None) -> Samples:
        """One plane; with progress from the one share of the whole to the other."""
        args = self._args
        options = asdict(args.options)
        if shares is None:
            return self._client.restore(plane, args.task, args.stride, args.keep, **options)
        low, high = shares
        width, height = args.options.size(plane.shape[1], plane.shape[0], self._chain)

        def tell(done: int, due: int) -> None:
            self._progress.within(job, low + (high - low) * done / due, width * height)

        return self._client.restore(
            plane, args.task, args.stride, args.keep, **options, progress=tell, cancelled=self._cancelled
        )

    def _write(self, frames: Frames, job: Job, form: str | None, mtime: float | None) -> None:
        args, kept = self._args, not self._args.strip_metadata
        if job.target != STREAM:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        write_frames(
            frames,
            sys.stdout.buffer if job.target == STREAM else job.target,
            format=form,
            quality=args.quality,
            flatten=args.flatten,
            depth=args.depth,
            metadata=kept,
            action=self._made,
            mtime=mtime if kept else None,
        )
