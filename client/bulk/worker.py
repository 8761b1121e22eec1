"""What each process does: photos from the source through a server to the target; and what to do if it dies of one."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from ipt_triton.client.bulk.places import Named, Place
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.client.noise import denoising_warning
from ipt_triton.client.photo import check_frames, read_frames, write_frames
from ipt_triton.client.single import FAILURES, reason
from ipt_triton.tasks import Chain

DEATHS = 2
"""A photo of a lost lot that was in the works so often when its process died is set aside."""


class Attempts:
    """How often a lot of photos, or one of a lost lot, was begun and not ended."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, what: Hashable) -> int:
        """How often that happened before."""
        self._begun[what] += 1
        return self._begun[what] - 1

    def end(self, what: Hashable) -> None:
        self._begun.pop(what, None)


class Worker:
    """Restores one photo after the other; what is wrong with one is told in its outcome.

    A lot that was begun before and not ended was lost with its process, and nobody knows by which photo. So its photos
    are begun and ended each by itself then, and the one that is to blame is found.

    Args:
        source, target: addresses of the two places.
        server: arguments of a client.
        chain: tasks of the server.
        made: how, for the results' history; see `protocol.recipe`.
        args: of the command.
        attempts: shared by all processes.
    """

    def __init__(
        self,
        source: str,
        target: str,
        server: dict[str, Any],
        chain: Chain,
        made: str,
        args: argparse.Namespace,
        attempts: Attempts,
    ) -> None:
        self._source, self._target = Place(source), Place(target)
        self._client = RestorationClient(**server)
        self._chain, self._made, self._args, self._attempts = chain, made, args, attempts
        self._lost = ""  # why the others cannot be restored either

    def __call__(self, lot: pa.Table) -> pa.Table:
        """The outcomes of a lot of photos, see `restore`."""
        photos = lot.to_pylist()
        targets = tuple(photo["target"] for photo in photos)
        restore = self._suspect if self._attempts.begin(targets) else self.restore
        outcomes = [restore(photo) for photo in photos]
        self._attempts.end(targets)
        return pa.Table.from_pylist(outcomes)

    def _suspect(self, photo: dict[str, Any]) -> dict[str, Any]:
        """The outcome of a photo that may be what its process died of."""
        deaths = self._attempts.begin(photo["target"])
        outcome = self.restore(photo, deaths)
        self._attempts.end(photo["target"])
        return outcome

    def restore(self, photo: dict[str, Any], deaths: int = 0) -> dict[str, Any]:
        """The outcome of a `plan.Photo`: the fields of an `Outcome` that are not known before.

        Its status is "not reached" where the others cannot be restored either.

        Args:
            deaths: of processes that had it in the works.
        """
        name, started = self._source.name(photo["source"]), time.perf_counter()
        made: dict[str, Any] = {"status": "failed", "error": "", "warning": "", "width": 0, "height": 0}
        if self._lost:
            made |= {"status": "not reached", "error": self._lost}
        elif deaths >= DEATHS:
            made["error"] = f"{name}: the process that restored it died {DEATHS} times; is there enough memory?"
        else:
            try:
                made |= {**self._restore(name, photo), "status": "restored"}
            except ServerUnavailable as error:
                self._lost = str(error)
                made |= {"status": "not reached", "error": self._lost}
            except FAILURES as error:
                made["error"] = reason(name, error)
            except Exception as error:  # a mistake of ours: one photo is no reason to end all
                made["error"] = f"{name}: {type(error).__name__}: {error}"
        return {"number": photo["number"], **made, "seconds": round(time.perf_counter() - started, 3)}

    def _restore(self, name: str, photo: dict[str, Any]) -> dict[str, Any]:
        args, chain = self._args, self._chain
        options = asdict(args.options)
        result = Named(self._target.name(photo["target"]))
        frames = read_frames(self._source.read(photo["source"]))
        check_frames(frames, result, flatten=args.flatten, depth=args.depth)
        made = frames.restored(lambda plane: self._client.restore(plane, args.task, args.stride, args.keep, **options))
        write_frames(
            made,
            result,
            quality=args.quality,
            flatten=args.flatten,
            depth=args.depth,
            metadata=not args.strip_metadata,
            action=self._made,
        )
        mtime = None if args.strip_metadata else photo["mtime"]
        self._target.write(photo["target"], result.getvalue(), mtime)
        width, height = made.photos[0].size
        warning = denoising_warning(frames.photos[0].pixels, chain)
        return {"width": width, "height": height, "warning": f"{name}: {warning}" if warning else ""}
