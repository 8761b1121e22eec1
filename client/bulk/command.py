"""The command: an archive of photos through restoration servers, on one machine or a cluster of Ray."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from ipt_triton.cli import escape_output, make_parser, mute_libraries
from ipt_triton.client.arguments import add_files, add_making, add_server, check_shared
from ipt_triton.client.batch import Plan
from ipt_triton.client.bulk.flow import cluster, outcomes
from ipt_triton.client.bulk.manifest import Manifest
from ipt_triton.client.bulk.places import Place
from ipt_triton.client.bulk.plan import Photo, photos
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.local import chosen_server
from ipt_triton.client.restore import DONE, INTERRUPTED, NOT_POSSIBLE, PHOTOS_FAILED, exit_code
from ipt_triton.client.work import Asked, Ended, Outcome, Progress, Record, complain, deliver
from ipt_triton.reading import excerpt
from ipt_triton.version import installed_version

_DESCRIPTION = """Restore an archive of photos: a folder or an object store, on one machine or many.

examples:
  a folder:                   ipt-batch archive/ restored/ -t derain
  from store to store:        ipt-batch s3://photos/2024 s3://restored/2024 -t derain,sr_x2 --workers 16
  by several servers:         ipt-batch archive/ restored/ -t denoise_30 --url gpu-1:8001,gpu-2:8001
  for scripts:                ipt-batch archive/ restored/ -t 0 --url gpu-box:8001 --json report.json
  on a cluster of Ray:        ipt-batch s3://photos s3://restored -t sr_x2 --url gpu-box:8001 --ray ray-head:6379

The same command again goes on where the last one ended, however it ended: by the manifest, Parquet files in
TARGET/_manifest. A photo that was changed, or is asked for with other options, is done again. Without --url the server
is found as by ipt-restore.

exit codes:
  0  every photo is restored, now or before
  1  some photos are set aside; each is named, with the reason in the manifest; also when the report is not written
  2  nothing could be done: wrong arguments, no server, no source; also when the server goes away
  130  interrupted; finished photos are whole, no half file is left
"""

say = partial(complain, command="ipt-batch")


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser("ipt-batch", _DESCRIPTION)
    parser.add_argument("source", metavar="SOURCE", help="folder of photos: a path, s3://…, gs://…, what fsspec knows")
    parser.add_argument("target", metavar="TARGET", help="folder for the results, under the same names; empty at first")
    parser.add_argument("-t", "--task", required=True, help="name or id of a task; several: derain,sr_x2")
    parser.add_argument("--version", action="version", version=f"ipt-batch {installed_version()}")
    group = parser.add_argument_group("work")
    group.add_argument(
        "-j", "--workers", type=int, default=4, metavar="N", help="processes, each with a photo in flight (%(default)s)"
    )
    group.add_argument("--ray", metavar="ADDRESS", help="of a cluster of Ray (one of our own on this machine)")
    group.add_argument("--retry-failed", action="store_true", help="try photos again that were set aside")
    group.add_argument(
        "--every", type=float, default=10.0, metavar="S", help="seconds between writes of the manifest (%(default)g)"
    )
    add_server(parser)
    add_making(parser)
    add_files(parser.add_argument_group("results"))
    return parser


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command with a sentence if arguments are wrong or do not fit together."""
    check_shared(parser, args)
    if not args.every >= 0:
        parser.error(f"--every {args.every:g} is not allowed; give seconds, 0 or more")
    if args.ray and not args.url:
        parser.error("--ray needs --url: machines of a cluster have no server of our own")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    escape_output()
    parser = make_arguments()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    mute_libraries()

    def work() -> int:
        with chosen_server(args, say) as server, RestorationClient(**server) as client:
            return _run(args, server, client)

    return exit_code(work, say)


def _run(args: argparse.Namespace, server: dict[str, Any], client: RestorationClient) -> int:
    asked = Asked.of(client.url, client.info(), args)
    settings = _settings(args, asked.report)
    naming = Plan((), Path(), suffix=args.suffix, format=args.format)
    with Path(os.devnull).open("w") as nowhere:
        batch = _Batch(Place(args.source), Place(args.target), args, settings, Record(True, nowhere, False, say))
        left = batch.look(naming)
        with Progress(lambda: len(left)) as progress:
            ended = batch.restore(left, server, asked, progress)
    seconds = time.perf_counter() - batch.started
    rates = {"photos_per_s": batch.restored / seconds, "megapixels_per_s": batch.pixels / 1e6 / seconds}
    counts = batch.record.counts
    report = {
        "source": args.source,
        "target": args.target,
        **asked.report,
        "seconds": round(seconds, 3),
        **{name: round(rate, 3) for name, rate in rates.items()},
        "counts": counts,
        "passed_over": asdict(naming.passed_over),
    }
    written = not args.json or deliver(args.json, report, say)
    if naming.passed_over.number:
        say(f"{naming.passed_over}: no images")
    say(batch.summary())
    if ended.reason:
        say(ended.reason)
    if ended.interrupted:
        return INTERRUPTED
    return NOT_POSSIBLE if ended.reason else PHOTOS_FAILED if counts["failed"] or not written else DONE


def _settings(args: argparse.Namespace, asked: dict[str, Any]) -> str:
    """All that decides what a result is, beside its source."""
    chosen = {name: asked[name] for name in ("options", "stride", "keep", "checkpoint_sha256")}
    stored = {name: getattr(args, name) for name in ("format", "quality", "flatten", "depth", "strip_metadata")}
    return json.dumps({"task": asked["task"]["name"], **chosen, **stored, "suffix": args.suffix}, sort_keys=True)


class _Batch:
    """One run: what is to do, and what became of it in the manifest, in the counts and on standard error."""

    def __init__(self, source: Place, target: Place, args: argparse.Namespace, settings: str, record: Record) -> None:
        self.record = record
        self.started = time.perf_counter()
        self.restored, self.pixels = 0, 0
        self._source, self._target, self._args, self._settings = source, target, args, settings
        self._manifest = Manifest(target, args.every)

    def look(self, naming: Plan) -> list[Photo]:
        """The photos that are to be restored; the others are recorded."""
        found = list(photos(self._source, self._target, self._settings, naming))
        known = self._manifest.read()
        self._target.sweep()
        left = []
        for photo in found:
            before = known.get(photo.target)
            error = f"{self._source.name(photo.source)}: {photo.problem}" if photo.problem else ""
            if before and before.key == photo.key and not (before.error and self._args.retry_failed):
                self._record(photo, {"status": "failed" if before.error else "skipped", "error": before.error})
            elif error:
                self._take(photo, {"status": "failed", "error": error})
            else:
                left.append(photo)
        say(f"{len(left)} of {len(found)} photos to restore; the others are done or set aside")
        return left

    def restore(self, left: list[Photo], server: dict[str, Any], asked: Asked, progress: Progress) -> Ended:
        """Restore photos, and record them."""
        self.started = time.perf_counter()
        try:
            with cluster(self._args.ray) if left else contextlib.nullcontext():
                for outcome in self._outcomes(left, server, asked):
                    if outcome["status"] == "not reached":
                        return Ended(outcome["error"])
                    written, told = self._take(left[outcome.pop("number")], outcome)
                    progress.photo(told)
                    if written and not progress.is_drawn:
                        say(f"of {len(left)} {self.summary()}")
        except KeyboardInterrupt:
            return Ended("interrupted", interrupted=True)
        except RayError as error:
            return Ended(f"Ray failed: {excerpt(error)}")
        finally:
            self._manifest.flush()
        return Ended()

    def _outcomes(self, left: list[Photo], server: dict[str, Any], asked: Asked) -> Iterable[dict[str, Any]]:
        places = self._args.source, self._args.target
        return outcomes(left, *places, server, asked.chain, asked.recipe, self._args) if left else ()

    def summary(self) -> str:
        """What has been done, and how fast."""
        seconds = time.perf_counter() - self.started
        rates = f"{self.restored / seconds:.2f} photos/s, {self.pixels / 1e6 / seconds:.2f} MP/s"
        return f"{self.record.summary()} after {seconds:.0f} s, {rates}"

    def _take(self, photo: Photo, made: dict[str, Any]) -> tuple[bool, Outcome]:
        """Write an outcome into the manifest, sooner or later, and record it; True if it was written."""
        outcome = self._record(photo, made)
        row = {name: getattr(outcome, name) for name in ("status", "error", "warning", "width", "height", "seconds")}
        self.restored += outcome.status == "restored"
        self.pixels += outcome.width * outcome.height
        row |= {"source": outcome.input, "target": photo.target, "version": photo.version, "key": photo.key}
        return self._manifest.add({**row, "settings": self._settings}), outcome

    def _record(self, photo: Photo, made: dict[str, Any]) -> Outcome:
        outcome = Outcome(self._source.name(photo.source), self._target.name(photo.target), **made)
        self.record.add(outcome)
        return outcome
