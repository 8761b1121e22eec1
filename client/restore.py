"""The command: photos, through a restoration server, into files.

python client/restore.py photo.jpg --task sr_x2 --output restored
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO, Any

if not __package__:  # run as a file: the packages beside this folder are meant, not the modules in it
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an import

from ipt_triton.cli import CLOSED_PIPE, drop_output, escape_output, mute_libraries
from ipt_triton.client.arguments import check_arguments, make_arguments
from ipt_triton.client.batch import Plan, read_list
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import PlanError, RestorationError
from ipt_triton.client.local import chosen_server
from ipt_triton.client.protocol import ServerInfo
from ipt_triton.client.servers import SILENCE_S
from ipt_triton.client.single import Restorer
from ipt_triton.client.work import (
    Ahead,
    Asked,
    Progress,
    Record,
    complain,
    deliver,
    is_plain_file,
    run_batch,
    write_report,
)

DONE, PHOTOS_FAILED, NOT_POSSIBLE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    escape_output()
    parser = make_arguments()
    args = parser.parse_args(argv)
    try:
        check_arguments(parser, args)
    except OSError as error:
        parser.error(f"{error.filename} cannot be used: {error.strerror}")
    mute_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # what makes a photo unusable is an error
    logging.basicConfig(handlers=[_Complaints(logging.WARNING)])

    def work() -> int:
        with chosen_server(args, complain) as server, RestorationClient(**server) as client:
            status = _run(args, client)
        sys.stdout.flush()
        return status

    try:
        return exit_code(work, complain)
    except OSError as error:
        drop_output()
        complain(f"standard output cannot be written: {error.strerror}")
        return NOT_POSSIBLE


def exit_code(work: Callable[[], int], say: Callable[[str], None]) -> int:
    """What a command ends with: what its work returns, or what stands for the error that ended it."""
    try:
        return work()
    except RestorationError as error:
        say(str(error))
        return NOT_POSSIBLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return CLOSED_PIPE


class _Complaints(logging.Handler):
    """What the library logs, on standard error between the lines of the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def _run(args: argparse.Namespace, client: RestorationClient) -> int:
    if args.list_tasks:
        return _list_tasks(_ask(client), args.json)

    @cache
    def asked() -> Asked:
        return Asked.of(client.url, _ask(client), args)

    plan = Plan(
        inputs=tuple(args.photos),
        output=args.output,
        listed=read_list(args.files_from) if args.files_from else (),
        suffix=args.suffix,
        format=args.format,
        existing="overwrite" if args.overwrite else "skip" if args.skip_existing else "refuse",
        made=lambda: asked().recipe,
        limit=args.limit,
        shard=args.shard,
    )
    jobs = Ahead(plan.jobs())
    asked()
    with contextlib.closing(_open_log(args.log)) as log:
        return _restore_all(client, asked(), plan, jobs, args, log)


def _ask(client: RestorationClient) -> ServerInfo:
    """The server's description; who waits for it is told so."""
    timer = threading.Timer(SILENCE_S, lambda: complain(f"waiting for the server at {client.url}"))
    timer.start()
    try:
        return client.info()
    finally:
        timer.cancel()


def _list_tasks(info: ServerInfo, report: str | None) -> int:
    written = not report or deliver(report, [asdict(task) for task in info.tasks])
    if report != "-":
        for task in info.tasks:
            noise = f", sigma {task.sigma:g}" if task.sigma else ""
            print(f"{task.id}  {task.name:<16} {task.kind}, scale {task.scale}{noise}")
    return DONE if written else PHOTOS_FAILED


def _restore_all(
    client: RestorationClient, asked: Asked, plan: Plan, jobs: Ahead, args: argparse.Namespace, log: IO[str]
) -> int:
    """Restore the jobs, `args.workers` at a time; print, report and summarise what became of them."""
    giving_up = threading.Event()
    started = time.perf_counter()
    quiet = "-" in (args.json, str(args.output), args.log)
    record = Record(quiet, log, keep=bool(args.json))

    def report() -> dict[str, Any]:
        return {
            **asked.report,
            "seconds": round(time.perf_counter() - started, 3),
            "counts": record.counts,
            "photos": [asdict(outcome) for outcome in record.kept or ()],
            "passed_over": asdict(plan.passed_over),
        }

    if args.json and is_plain_file(args.json):
        try:
            write_report(args.json, report())  # what cannot be written is known before the work
        except OSError as error:
            raise PlanError(f"--json {args.json} cannot be written: {error.strerror}") from error

    def close() -> None:
        giving_up.set()
        client.close()

    with Progress(lambda: jobs.total) as progress:
        restorer = Restorer(client, asked.chain, asked.recipe, args, progress, giving_up.is_set)
        ended = run_batch(jobs, restorer.restore, record, progress, args.workers, close)
    written = not args.json or (args.json == "-" and ended.lost is not None) or deliver(args.json, report())
    if ended.lost is not None:
        raise ended.lost
    if plan.passed_over.number:
        complain(f"{plan.passed_over}: no images")
    failed = record.counts["failed"]
    if ended.reason or failed:
        complain("; ".join(filter(None, (record.summary(), ended.reason))))
    if ended.interrupted:
        return INTERRUPTED
    return NOT_POSSIBLE if ended.reason else PHOTOS_FAILED if failed or not written else DONE


def _open_log(place: str | None) -> IO[str]:
    """The file that takes a line for each photo; what nobody reads if none is asked for.

    Raises:
        PlanError: it cannot be written.
    """
    if place == "-":
        return open(sys.stdout.fileno(), "w", closefd=False, encoding="utf-8")
    try:
        return Path(place or os.devnull).open("a", encoding="utf-8")
    except OSError as error:
        raise PlanError(f"--log {place} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
