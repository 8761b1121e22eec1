"""The command: photos, through a restoration server, into a folder.

python client/restore.py photo.jpg --task sr_x2 --output restored
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import stat
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a file: the packages beside this folder are meant, not the modules in it
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of an import

from tqdm import tqdm

from ipt_triton.cli import CLOSED_PIPE, drop_output, escape_output, make_parser, mute_libraries
from ipt_triton.client.batch import Existing, Job, plan_jobs
from ipt_triton.client.connection import RestorationClient
from ipt_triton.client.errors import ImageError, PlanError, RestorationError, ServerUnavailable
from ipt_triton.client.photo import FORMATS, check_format, read_photo, write_photo
from ipt_triton.client.protocol import ServerInfo, Task
from ipt_triton.files import atomic_file
from ipt_triton.reading import printable

Status = Literal["restored", "skipped", "failed", "not reached"]
DONE, PHOTOS_FAILED, NOT_POSSIBLE, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """Restore photos through a running server (ipt-serve): super-resolution, denoising, deraining.

examples:
  one photo, twice the size:      ipt-restore photo.jpg --task sr_x2 --output restored
  what the server offers:         ipt-restore --list-tasks --url gpu-box:8001
  a folder with its sub-folders:  ipt-restore holiday/ --task denoise_30 --output restored --skip-existing
  as JPEG, with a name of its own:  ipt-restore *.jpg --task derain --output . --format jpg --suffix _dry
  official tiling, slower:        ipt-restore photo.png --task sr_x4 --output restored --stride 12 --keep 24
  for scripts:                    ipt-restore a.png b.png --task 0 --output out --json - --workers 4

exit codes:
  0  every photo is restored (or was there already, with --skip-existing)
  1  some photos failed; each is named, the others are done; also when the report could not be written
  2  nothing could be done: wrong arguments, outputs in the way, or no server; also when the server goes away
  130  interrupted; finished photos are whole, no half file is left
  141  nobody reads the output any more; the same holds
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one photo. `width` and `height` are the result's."""

    input: str
    output: str
    status: Status
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    escape_output()
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        _check_arguments(parser, args)
    except OSError as error:
        parser.error(f"{error.filename} cannot be used: {error.strerror}")
    mute_libraries()
    warnings.filterwarnings("ignore", module="PIL")  # what makes a photo unusable is an error
    logging.basicConfig(handlers=[_Told(logging.WARNING)])
    try:
        status = _run(args)
        sys.stdout.flush()
        return status
    except RestorationError as error:
        _complain(str(error))
        return NOT_POSSIBLE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return CLOSED_PIPE
    except OSError as error:
        drop_output()
        _complain(f"standard output cannot be written: {error.strerror}")
        return NOT_POSSIBLE


def _run(args: argparse.Namespace) -> int:
    with RestorationClient(args.url, args.timeout, args.retries) as client:
        if args.list_tasks:
            return _list_tasks(client.info(), args.json)
        existing: Existing = "overwrite" if args.overwrite else "skip" if args.skip_existing else "refuse"
        jobs = plan_jobs(args.photos, args.output, args.suffix, args.format, existing)
        info = client.info()
        return _restore_all(client, info, info.task(args.task), jobs, args)


class _Told(logging.Handler):
    """What the library logs, on standard error between the lines of the progress."""

    def emit(self, record: logging.LogRecord) -> None:
        _complain(record.getMessage())


def _complain(text: str) -> None:
    tqdm.write(f"ipt-restore: {printable(text)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("ipt-restore", _DESCRIPTION)
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="image files, and folders of them")
    parser.add_argument("--task", help="name or id of a task (see --list-tasks)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the results, made if it is not there")
    parser.add_argument("--list-tasks", action="store_true", help="print the server's tasks and stop")
    parser.add_argument("--url", default="localhost:8001", help="HOST:PORT of the server's gRPC port (%(default)s)")
    parser.add_argument("--timeout", type=float, metavar="S", help="seconds a request may take (no limit)")
    parser.add_argument(
        "--retries", type=int, default=6, metavar="N", help="tries again while the server is busy or away (%(default)s)"
    )
    tiling = parser.add_argument_group("tiling (the server's own rule if not given)")
    tiling.add_argument("--stride", type=int, metavar="N", help="pixels between neighbouring tiles, 1 to KEEP")
    tiling.add_argument("--keep", type=int, metavar="N", help="side of each tile's centre that is used, even, 2 to 48")
    results = parser.add_argument_group("results")
    results.add_argument("--format", choices=FORMATS, default="png", help="file format (%(default)s)")
    results.add_argument("--suffix", default="", help="added to each file's stem: --suffix _x2 writes photo_x2.png")
    there = results.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace results that exist")
    there.add_argument("--skip-existing", action="store_true", help="leave results that exist, restore the others")
    results.add_argument("--json", metavar="FILE", help="write a report as JSON, - for standard output")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="photos in flight (%(default)s)")
    return parser


def _check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.list_tasks:
        missing = [name for name in ("photos", "task", "output") if not getattr(args, name)]
        if missing:
            names = ", ".join("PHOTO" if name == "photos" else f"--{name}" for name in missing)
            parser.error(f"{names} missing; for example: ipt-restore photo.jpg --task sr_x2 --output restored")
    if args.output and args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output} is a file; give a folder")
    if "/" in args.suffix or "\\" in args.suffix:
        parser.error(f"--suffix {args.suffix!r} is part of a file's name and must not hold a slash")
    if args.workers < 1:
        parser.error(f"--workers {args.workers} is not allowed; give 1 or more")
    if args.retries < 0:
        parser.error(f"--retries {args.retries} is not allowed; give 0 or more")
    if args.timeout is not None and args.timeout <= 0:
        parser.error(f"--timeout {args.timeout:g} is not allowed; give seconds above 0, or leave it out")
    if args.json not in (None, "-"):
        if not Path(args.json).parent.is_dir():
            parser.error(f"--json {args.json}: there is no folder {Path(args.json).parent}")
        if Path(args.json).is_dir():
            parser.error(f"--json {args.json} is a folder; give a file")


def _list_tasks(info: ServerInfo, report: str | None) -> int:
    written = not report or _deliver(report, [asdict(task) for task in info.tasks])
    if report != "-":
        for task in info.tasks:
            noise = f", sigma {task.sigma:g}" if task.sigma else ""
            print(f"{task.id}  {task.name:<16} {task.kind}, scale {task.scale}{noise}")
    return DONE if written else PHOTOS_FAILED


def _restore_all(
    client: RestorationClient, info: ServerInfo, task: Task, jobs: list[Job], args: argparse.Namespace
) -> int:
    """Restore the jobs, `args.workers` at a time; print, report and summarise what became of them."""
    stride, keep = info.rule(args.stride, args.keep)
    started = time.perf_counter()
    outcomes = {job: _first_outcome(job) for job in jobs}
    todo = [job for job in jobs if outcomes[job].status == "not reached"]

    def report() -> dict[str, Any]:
        return {
            "url": args.url,
            "task": asdict(task),
            "stride": stride,
            "keep": keep,
            "checkpoint_sha256": info.checkpoint_sha256,
            "runtime": info.runtime,
            "precision": info.precision,
            "seconds": round(time.perf_counter() - started, 3),
            "counts": Counter(outcome.status for outcome in outcomes.values()),
            "photos": [asdict(outcome) for outcome in outcomes.values()],
        }

    if args.json and _is_plain_file(args.json):
        try:
            _write_report(args.json, report())  # what cannot be written is known before the work
        except OSError as error:
            raise PlanError(f"--json {args.json} cannot be written: {error.strerror}") from error
    for outcome in outcomes.values():
        if outcome.status == "failed":
            _complain(outcome.error)
    stopping = threading.Event()
    reason = ""
    lost: OSError | None = None

    with (
        ThreadPoolExecutor(args.workers, thread_name_prefix="photo") as pool,
        tqdm(total=len(todo), unit="photo", disable=None) as bar,
    ):

        def work(job: Job) -> None:
            outcome = _restore_one(client, job, args)
            if outcome.status == "failed" and stopping.is_set():
                return  # the interruption's doing
            outcomes[job] = outcome
            _tell(outcome, quiet=args.json == "-")
            bar.update()

        futures = [pool.submit(work, job) for job in todo]
        try:
            for future in as_completed(futures):
                future.result()
        except ServerUnavailable as error:
            reason = str(error)
        except (KeyboardInterrupt, OSError) as error:  # the latter: nobody takes what is told
            reason, lost = ("interrupted", None) if isinstance(error, KeyboardInterrupt) else ("", error)
            stopping.set()
            client.close()
        finally:
            pool.shutdown(cancel_futures=True)

    written = not args.json or (args.json == "-" and lost is not None) or _deliver(args.json, report())
    if lost is not None:
        raise lost
    count = Counter(outcome.status for outcome in outcomes.values())
    if reason or count["failed"]:
        numbers = ", ".join(f"{number} {status}" for status, number in count.items())
        _complain("; ".join(filter(None, (numbers, reason))))
    if stopping.is_set():
        return INTERRUPTED
    return NOT_POSSIBLE if reason else PHOTOS_FAILED if count["failed"] or not written else DONE


def _restore_one(client: RestorationClient, job: Job, args: argparse.Namespace) -> Outcome:
    """Restore one photo; what is wrong with it is told in the outcome.

    Raises:
        ServerUnavailable: the others cannot be restored either.
    """
    started = time.perf_counter()
    try:
        photo = read_photo(job.source)
        check_format(photo, job.target)
        planes = [client.restore(plane, args.task, args.stride, args.keep) for plane in photo.planes()]
        photo = photo.with_planes(planes)
        job.target.parent.mkdir(parents=True, exist_ok=True)
        write_photo(photo, job.target)
    except ServerUnavailable:
        raise
    except ImageError as error:  # names the file
        return _outcome(job, "failed", error=str(error))
    except (RestorationError, OSError) as error:
        return _outcome(job, "failed", error=f"{job.source}: {error}")
    except MemoryError:
        return _outcome(job, "failed", error=f"{job.source} does not fit into memory; use fewer --workers")
    width, height = photo.size
    seconds = round(time.perf_counter() - started, 3)
    return _outcome(job, "restored", width=width, height=height, seconds=seconds)


def _first_outcome(job: Job) -> Outcome:
    """What is known of a photo before the work."""
    if job.problem:
        return _outcome(job, "failed", error=f"{job.source}: {job.problem}")
    return _outcome(job, "skipped" if job.skipped else "not reached")


def _outcome(job: Job, status: Status, **details: Any) -> Outcome:
    return Outcome(str(job.source), str(job.target), status, **details)


def _tell(outcome: Outcome, quiet: bool) -> None:
    if outcome.status == "failed":
        _complain(outcome.error)
    elif not quiet:
        line = f"{outcome.output}  {outcome.width}x{outcome.height}  {outcome.seconds:.2f} s"
        tqdm.write(printable(line), file=sys.stdout)


def _is_plain_file(destination: str) -> bool:
    """Whether a report is a file that can be written twice: no pipe and no device."""
    path = Path(destination)
    return destination != "-" and (not path.exists() or stat.S_ISREG(path.stat().st_mode))


def _write_report(destination: str, report: Any) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    elif _is_plain_file(destination):
        with atomic_file(Path(destination)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        Path(destination).write_text(text, encoding="utf-8")


def _deliver(destination: str, report: Any) -> bool:
    """Write a report after the work, to standard error where its place takes none; False then."""
    try:
        _write_report(destination, report)
    except BrokenPipeError:
        raise
    except OSError as error:
        _complain(f"--json {destination} cannot be written ({error.strerror}); this is the report:")
        print(json.dumps(report, indent=2), file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
