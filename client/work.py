"""The work of a batch: several photos at a time, what became of each, how far it is, and a report."""

from __future__ import annotations

import argparse
import json
import stat
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, get_args

from tqdm import tqdm

from ipt_triton.client.arguments import STORED
from ipt_triton.client.batch import Job
from ipt_triton.client.errors import PlanError, ServerUnavailable
from ipt_triton.client.protocol import ServerInfo, recipe
from ipt_triton.files import atomic_file
from ipt_triton.reading import printable
from ipt_triton.tasks import Chain

Status = Literal["restored", "skipped", "failed", "not reached"]

AHEAD = 10_000
"""So many photos are planned before the first one is restored: what contradicts itself is told before any work."""
_LOOK_S = 0.2
"""So often the main thread looks whether Ctrl-C was pressed: a signal that another thread gets, or that comes just
before Python blocks, does not wake it."""


def complain(text: str, command: str = "ipt-restore") -> None:
    """A line on standard error, between the lines of the progress."""
    tqdm.write(f"{command}: {printable(text)}", file=sys.stderr)


@dataclass(frozen=True)
class Outcome:
    """What became of one photo. `width` and `height` are the result's; `figures` compare it with a reference."""

    input: str
    output: str
    status: Status
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""
    warning: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, status: Status, **details: Any) -> Outcome:
        return cls(str(job.source), str(job.target), status, **details)

    @classmethod
    def before(cls, job: Job) -> Outcome:
        """What is known of a photo before the work."""
        if job.problem:
            return cls.of(job, "failed", error=f"{job.source}: {job.problem}")
        return cls.of(job, "skipped" if job.skipped else "not reached")


class Ahead:
    """Jobs, of which so many as `number` are looked at before the first one is handed out.

    Raises:
        PlanError: see `Plan.jobs`.
    """

    def __init__(self, jobs: Iterator[Job], number: int = AHEAD) -> None:
        self._jobs = jobs
        self._waiting = deque(islice(jobs, number))
        self._seen = len(self._waiting)
        self.ended = self._seen < number

    @property
    def total(self) -> int | None:
        """How many there are; None as long as that is not known."""
        return self._seen if self.ended else None

    def __iter__(self) -> Iterator[Job]:
        while self._waiting:
            yield self._waiting.popleft()
            following = list(islice(self._jobs, 1))
            self._waiting.extend(following)
            self._seen += len(following)
            self.ended = self.ended or not following

    def rest(self) -> list[Job]:
        """Those that were looked at and not handed out."""
        return list(self._waiting)


class Progress:
    """A line on a terminal: photos done and under way, pixels a second, and the time that is left."""

    def __init__(self, total: Callable[[], int | None]) -> None:
        self._total, self._lock = total, threading.Lock()
        self._done, self._pixels, self._started = 0, 0, time.monotonic()
        self._under_way: dict[str, tuple[float, int]] = {}
        self._bar: Any = tqdm(total=total(), unit="photo", disable=None)

    @property
    def is_drawn(self) -> bool:
        """Whether anybody sees it."""
        return not self._bar.disable

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def within(self, job: Job, share: float, pixels: int) -> None:
        """A share of a photo is done, 0 to 1, whose result will have so many pixels."""
        with self._lock:
            self._under_way[str(job.source)] = share, pixels
            self._draw()

    def photo(self, outcome: Outcome) -> None:
        """A photo is done or given up."""
        with self._lock:
            self._under_way.pop(outcome.input, None)
            self._done += outcome.status != "not reached"
            self._pixels += outcome.width * outcome.height
            self._draw()

    def _draw(self) -> None:
        shares = sum(share for share, _ in self._under_way.values())
        pixels = self._pixels + sum(share * pixels for share, pixels in self._under_way.values())
        self._bar.total = self._total()
        if pixels:
            names = [f"{Path(source).name} {share:.0%}" for source, (share, _) in self._under_way.items()]
            rate = f"{pixels / 1e6 / (time.monotonic() - self._started):.2f} MP/s"
            self._bar.set_postfix_str(", ".join([rate, *names]), refresh=False)
        self._bar.n = self._done + round(shares, 2) if shares else self._done
        self._bar.update(0)  # drawn as often as tqdm likes


class Record:
    """What became of the photos: counted, printed, logged a line each and, for a report, kept.

    Args:
        quiet: print nothing to standard output.
        log: takes a line of JSON for each photo, as soon as it is done.
        keep: keep all outcomes for `report`; a million take half a gigabyte.
        say: takes warnings and errors.
    """

    def __init__(self, quiet: bool, log: IO[str], keep: bool, say: Callable[[str], None] = complain) -> None:
        self._quiet, self._log, self._say = quiet, log, say
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.kept: list[Outcome] | None = [] if keep else None

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.counts[outcome.status] += 1
            if self.kept is not None:
                self.kept.append(outcome)
            if outcome.status != "not reached":
                self._log.write(json.dumps(asdict(outcome)) + "\n")
                self._log.flush()
        if outcome.warning:
            self._say(outcome.warning)
        if outcome.status == "failed":
            self._say(outcome.error)
        elif outcome.status == "restored" and not self._quiet:
            figures = "".join(f"  {name} {value:.4g}" for name, value in outcome.figures.items())
            line = f"{outcome.output}  {outcome.width}x{outcome.height}  {outcome.seconds:.2f} s{figures}"
            tqdm.write(printable(line), file=sys.stdout)

    def summary(self) -> str:
        return ", ".join(f"{self.counts[status]} {status}" for status in get_args(Status) if self.counts[status])


@dataclass(frozen=True)
class Asked:
    """What a server is asked for: its tasks, how results are made as their files tell it, and as a report begins."""

    chain: Chain
    recipe: str
    report: dict[str, Any]

    @classmethod
    def of(cls, url: str, info: ServerInfo, args: argparse.Namespace) -> Asked:
        """What a command's arguments ask of the server at `url`.

        Raises:
            UnknownTask, InvalidRequest: the server cannot do that.
        """
        chain = info.chain(args.task)
        stride, keep = info.rule(args.stride, args.keep)
        report = {
            "url": url,
            "task": {"name": chain.name, "scale": chain.scale},
            "tasks": [asdict(task) for task in chain.tasks],
            "options": asdict(args.options),
            "stride": stride,
            "keep": keep,
            "checkpoint_sha256": info.checkpoint_sha256,
            "runtime": info.runtime,
            "precision": info.precision,
        }
        stored = {name: getattr(args, name) for name in STORED}
        return cls(chain, recipe(info, chain, args.options, args.stride, args.keep, **stored), report)


@dataclass
class Ended:
    """How a batch ended: why it did before its time, whether by Ctrl-C, and the error of who takes no output more."""

    reason: str = ""
    interrupted: bool = False
    lost: OSError | None = None


def run_batch(
    jobs: Ahead,
    restore: Callable[[Job], Outcome],
    record: Record,
    progress: Progress,
    workers: int,
    close: Callable[[], None],
) -> Ended:
    """Restore jobs, so many at a time; those that were not reached are recorded as such.

    Args:
        restore: does one; raises ServerUnavailable where the others cannot be done either.
        close: makes those under way fail soon, after an interruption.
    """
    ended = Ended()
    begun, stopping, finished = threading.Event(), threading.Event(), threading.Event()
    room = threading.Semaphore(2 * workers)
    errors: deque[BaseException] = deque()
    waiting: list[Job] = []

    def work(job: Job) -> None:
        outcome = Outcome.of(job, "not reached")
        try:
            try:
                if not stopping.is_set():
                    outcome = restore(job)
                    if outcome.status == "failed" and ended.interrupted:
                        outcome = Outcome.of(job, "not reached")  # the interruption's doing
            finally:
                record.add(outcome)
                progress.photo(outcome)
        except BaseException as error:
            stopping.set()
            errors.append(error)
        finally:
            room.release()

    def give_up(error: BaseException) -> None:
        errors.append(error)
        stopping.set()
        close()

    def hand_out() -> None:
        begun.set()
        try:
            if stopping.is_set():
                return  # interrupted before `begun` was seen
            with ThreadPoolExecutor(workers, thread_name_prefix="photo") as pool:
                try:
                    for job in jobs:
                        without_work = bool(job.problem or job.skipped)
                        if not without_work:
                            room.acquire()
                        if stopping.is_set():
                            waiting.append(job)
                            break
                        if without_work:
                            outcome = Outcome.before(job)
                            record.add(outcome)
                            progress.photo(outcome)
                        else:
                            pool.submit(work, job)
                except PlanError as error:
                    ended.reason = str(error)
                    stopping.set()
                except BaseException as error:
                    give_up(error)
        finally:
            finished.set()

    # In a thread, where no KeyboardInterrupt comes between the steps of a photo's handing out.
    try:
        threading.Thread(target=hand_out, name="photos").start()
        _wait(finished)
    except KeyboardInterrupt as error:
        ended.interrupted = True
        give_up(error)
        if begun.is_set():
            _wait(finished)
    for trouble in errors:
        if isinstance(trouble, ServerUnavailable):
            ended.reason = ended.reason or str(trouble)
        elif isinstance(trouble, KeyboardInterrupt):
            ended.reason = "interrupted"
        elif isinstance(trouble, OSError):
            ended.lost = trouble
        elif not ended.interrupted:  # then calls through the closed connection raise what they will
            raise trouble
    for job in (*waiting, *jobs.rest()):
        record.add(Outcome.before(job))
    return ended


def _wait(event: threading.Event) -> None:
    while not event.wait(_LOOK_S):
        pass


def is_plain_file(destination: str) -> bool:
    """Whether a report is a file that can be written twice: no pipe and no device."""
    path = Path(destination)
    return destination != "-" and (not path.exists() or stat.S_ISREG(path.stat().st_mode))


def deliver(destination: str, report: Any, say: Callable[[str], None] = complain) -> bool:
    """Write a report after the work, to standard error where its place takes none; False then."""
    try:
        write_report(destination, report)
    except BrokenPipeError:
        raise
    except OSError as error:
        say(f"--json {destination} cannot be written ({error.strerror}); this is the report:")
        print(json.dumps(report, indent=2), file=sys.stderr)
        return False
    return True


def write_report(destination: str, report: Any) -> None:
    """Write a report as JSON; `-` is standard output."""
    text = json.dumps(report, indent=2) + "\n"
    if destination == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    elif is_plain_file(destination):
        with atomic_file(Path(destination)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    else:
        Path(destination).write_text(text, encoding="utf-8")
