"""One photo of a batch: read, restored through a client, written, and compared if that is asked for."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from ipt_triton.client.batch import STREAM, Job
from ipt_triton.client.compare import figures, reference_of, side_by_side
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import ImageError, RestorationError, ServerUnavailable
from ipt_triton.client.noise import denoising_warning
from ipt_triton.client.photo import Photo, check_format, read_photo, write_photo
from ipt_triton.client.protocol import Task
from ipt_triton.client.work import Outcome
from ipt_triton.metrics import border_of


class Restorer:
    """Restores single photos as the command was asked to.

    Args:
        task: of the server.
        args: of the command, see `arguments`.
    """

    def __init__(self, client: RestorationClient, task: Task, args: argparse.Namespace) -> None:
        self._client, self._task, self._args = client, task, args

    def restore(self, job: Job) -> Outcome:
        """Restore one photo; what is wrong with it is told in the outcome.

        Raises:
            ServerUnavailable: the others cannot be restored either.
        """
        started = time.perf_counter()
        try:
            details = self._restore(job)
        except (ServerUnavailable, BrokenPipeError):
            raise
        except ImageError as error:  # names the file
            return Outcome.of(job, "failed", error=str(error))
        except (RestorationError, OSError) as error:
            return Outcome.of(job, "failed", error=f"{job.source}: {error}")
        except MemoryError:
            return Outcome.of(job, "failed", error=f"{job.source} does not fit into memory; use fewer --workers")
        return Outcome.of(job, "restored", seconds=round(time.perf_counter() - started, 3), **details)

    def _restore(self, job: Job) -> dict[str, Any]:
        args, task = self._args, self._task
        photo = read_photo(sys.stdin.buffer if job.source == STREAM else job.source)
        form = args.format if job.target == STREAM else None  # else the target's suffix tells
        check_format(photo, job.target, form, flatten=args.flatten, depth=args.depth)
        reference = reference_of(job.source, args.reference) if args.reference else None
        planes = [self._client.restore(plane, args.task, args.stride, args.keep) for plane in photo.planes()]
        restored = photo.with_planes(planes)
        self._write(restored, job, form)
        if args.compare and job.target != STREAM:
            write_photo(side_by_side(photo, restored), job.target.with_name(f"{job.target.stem}_compare.png"))
        width, height = restored.size
        warning = denoising_warning(photo.pixels, task)
        return {
            "width": width,
            "height": height,
            "warning": f"{job.source}: {warning}" if warning else "",
            "figures": figures(restored, reference, border_of(task)) if reference else {},
        }

    def _write(self, photo: Photo, job: Job, form: str | None) -> None:
        args, kept = self._args, not self._args.strip_metadata
        if job.target != STREAM:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        write_photo(
            photo,
            sys.stdout.buffer if job.target == STREAM else job.target,
            format=form,
            quality=args.quality,
            flatten=args.flatten,
            depth=args.depth,
            metadata=kept,
            action=self._task.name,
            mtime=job.source.stat().st_mtime if kept and job.source != STREAM else None,
        )
