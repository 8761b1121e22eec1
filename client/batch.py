"""Batches: which files are restored, and where each result goes, planned as the work goes on.

A million files are planned one after the other; of a folder no more than its names is in memory. The plan is the same
each time: files of a folder come in the order of their names, and a shard is chosen by name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

from ipt_triton.client.errors import PlanError
from ipt_triton.client.photo import READ_SUFFIXES, WRITTEN_SUFFIXES, recorded_action, same_format, unread_kind

Existing = Literal["refuse", "overwrite", "skip"]

STREAM = Path("-")
"""As a source standard input, as a target standard output."""

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"})
"""Of files that are restored as videos, where they are given by name."""

NO_FILE = "no file but a pipe, a socket, a device or a link to nothing"
_STREAM_NAME = "stdin"
_FIRST = 20
_COARSE_S = 2.0
"""So coarsely some file systems keep times: FAT."""


@dataclass(frozen=True)
class Job:
    """One file: where its result goes, whether that is there already and left alone, and what is wrong with the file.

    `problem` tells why the source cannot be restored: a folder that cannot be read, a pipe, a kind that is not known.
    """

    source: Path
    target: Path
    skipped: bool = False
    problem: str = ""


class _Found(NamedTuple):
    """A source and its target, the name by which its shard is chosen, and what is wrong with it."""

    source: Path
    target: Path
    name: str
    problem: str = ""


@dataclass
class PassedOver:
    """Files of folders that are no images: how many, and the first of them."""

    number: int = 0
    first: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        names = ", ".join(Path(path).name for path in self.first[:3])
        return names if self.number <= 3 else f"{names} and {self.number - 3} more"

    def add(self, path: Path) -> None:
        self.number += 1
        if len(self.first) < _FIRST:
            self.first.append(os.fspath(path))


@dataclass(frozen=True)
class Plan:
    """What to restore, and how results are named.

    Attributes:
        inputs: files, folders, patterns such as `*.jpg` and `**/*.png`, and `-` for standard input.
        output: folder for the results, made if it is not there; a file for a single input; `-` for standard output.
        listed: more files, one name after the other. Relative names keep their folders below `output`.
        suffix: added to each file's stem, may be empty.
        format: of the results, without a dot; `same` keeps that of each file where it can be written.
        existing: what to do about results that are there already. To skip is to leave what is up to date.
        made: tells how results are made, as their files will; one that tells otherwise, or has an older time than its
            photo, is out of date. Files that tell nothing are never.
        limit: restore no more than so many.
        shard: (i, n): only what falls to the i-th of n, from 1.
        kinds: suffixes of files that are taken from folders.
        passed_over: is told of the folders' other files.
    """

    inputs: tuple[str, ...]
    output: Path
    listed: Iterable[str] = ()
    suffix: str = ""
    format: str = "same"
    existing: Existing = "refuse"
    made: Callable[[], str] | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    kinds: frozenset[str] = READ_SUFFIXES
    passed_over: PassedOver = field(default_factory=PassedOver)

    def jobs(self) -> Iterator[Job]:
        """The jobs, in the order of the inputs; each is looked at when it is asked for.

        Raises:
            PlanError: a path that is not there, a folder without images, a result that would replace one of the
                inputs, or one that is there and may neither be replaced nor skipped. Jobs that were handed out before
                are not touched by it.
        """
        try:
            number, all_of_them = self.shard
            taken = 0
            for found in self._found():
                if zlib.crc32(os.fsencode(found.name)) % all_of_them != number - 1:
                    continue
                job = self._job(found)
                if taken == self.limit and not job.skipped and not job.problem:
                    return
                yield job
                taken += not job.skipped and not job.problem
        except OSError as error:  # names that are too long, folders on the way that are closed
            raise PlanError(
                f"{error.filename} cannot be used: {error.strerror}; choose another name or place"
            ) from error

    @property
    def target(self) -> Path | None:
        """The file that `output` names; None if it is a folder.

        Raises:
            PlanError: it cannot be one, because of what the inputs are.
        """
        is_file = self.output.suffix.lower() in self.kinds | VIDEO_SUFFIXES and not self.output.is_dir()
        if self.output != STREAM and not is_file:
            return None
        if self.listed or len(self.inputs) != 1 or glob.has_magic(self.inputs[0]) or Path(self.inputs[0]).is_dir():
            raise PlanError(f"--output {self.output} takes one photo; give a folder for several")
        return self.output

    def _found(self) -> Iterator[_Found]:
        single = self.target
        inputs = list(dict.fromkeys(self.inputs))
        folders = [name for name in inputs if name != "-" and Path(name).is_dir()]
        taken = _Taken()
        for name in inputs:
            if name == "-":
                kind = "png" if self.format == "same" else self.format
                yield _Found(STREAM, single or self.output / f"{_STREAM_NAME}{self.suffix}.{kind}", name)
            elif name in folders:
                below = self.output if len(folders) == 1 else self.output / taken.folder(Path(name))
                yield from self._folder(Path(name), below)
            else:
                for path in _expand(name):
                    yield _Found(path, single or taken.file(self.output / self._name(path.name), path), path.name)
        for line in self.listed:
            path = Path(line)
            place = self.output if path.is_absolute() or ".." in path.parts else self.output / path.parent
            target = taken.file(place / self._name(path.name), path)
            beside = not self.suffix and os.path.realpath(place) == os.path.realpath(path.parent)
            problem = f"{target} beside it exists and may be a photo too; give a --suffix or another --output"
            yield _Found(path, target, line, problem if beside and target.exists() else "")

    def _name(self, name: str, apart: bool = False) -> str:
        """Name of a result; `apart` from those of files with the same stem."""
        path = Path(name)
        stem = f"{path.stem}_{path.suffix[1:]}" if apart else path.stem
        return f"{stem}{self.suffix}{_result_suffix(path, self.format)}"

    def _job(self, found: _Found) -> Job:
        source, target, _, problem = found
        if problem:
            return Job(source, target, problem=problem)
        if source != STREAM and not source.is_file():
            missing = not os.path.lexists(source)
            return Job(source, target, problem="it is not there; give image files or folders" if missing else NO_FILE)
        if target == STREAM or not target.exists():
            return Job(source, target)
        if self._is_input(target):
            raise PlanError(f"{target} is one of the photos; choose another --output or a --suffix")
        if self.existing == "refuse":
            raise PlanError(f"{target} exists; give --overwrite, --skip-existing, a --suffix or another --output")
        return Job(source, target, skipped=self.existing == "skip" and not self._is_outdated(source, target))

    def _is_outdated(self, source: Path, target: Path) -> bool:
        """Whether a result tells that it was made otherwise or of an older photo; what cannot be read tells nothing."""
        if self.made is None or source == STREAM or not target.is_file():
            return False
        try:
            told, is_newer = recorded_action(target), source.stat().st_mtime > target.stat().st_mtime + _COARSE_S
        except OSError:
            return False
        return told is not None and (is_newer or told != self.made())

    def _is_input(self, target: Path) -> bool:
        """Whether a file that is there is one of the inputs, or lies in one and is no result."""
        real, (given, results) = Path(os.path.realpath(target)), self._real_places
        around = given.intersection(real.parents)
        if results in real.parents:
            around -= set(results.parents)
        return real in given or bool(around)

    @cached_property
    def _real_places(self) -> tuple[frozenset[Path], Path]:
        """The inputs and the output, without links on the way."""
        return frozenset(Path(os.path.realpath(name)) for name in self.inputs), Path(os.path.realpath(self.output))

    def _folder(self, folder: Path, below: Path) -> Iterator[_Found]:
        """A folder's images at any depth that do not lie below `output`."""
        found = False
        _, results = self._real_places
        closed: list[OSError] = []
        for place, folders, names in os.walk(folder, onerror=closed.append):
            here = Path(place)
            for error in closed:
                yield _closed(error, below)
            closed.clear()
            folders[:] = sorted(f for f in folders if Path(os.path.realpath(here / f)) != results)
            names.sort()
            if Path(os.path.realpath(here)) == results:
                continue
            target = below / here.relative_to(folder)
            for name, result, problem in self.images(here, names):
                found = True
                relative = os.fspath((here / name).relative_to(folder))
                yield _Found(here / name, target / result, relative, problem)
        for error in closed:
            found = True
            yield _closed(error, below)
        if not found:
            raise PlanError(f"{folder} holds no image; allowed are files ending in {', '.join(sorted(self.kinds))}")

    def images(self, folder: Path, names: list[str]) -> Iterator[tuple[str, str, str]]:
        """Images among sorted names of files, names of their results, each another one, and what is wrong with it."""
        for _, group in groupby(names, key=lambda name: name.partition(".")[0]):
            images: list[tuple[str, str, str]] = []
            for name in group:
                problem = _unread(name)
                if problem or Path(name).suffix.lower() in self.kinds:
                    images.append((name, self._name(name), problem))
                else:
                    self.passed_over.add(folder / name)
            results = Counter(result for _, result, _ in images)
            for name, result, problem in images:
                yield name, self._name(name, apart=True) if results[result] > 1 else result, problem


class _Taken:
    """Names of results that are taken by files given one by one, as 64-bit hashes."""

    def __init__(self) -> None:
        self._files: set[int] = set()
        self._folders: Counter[str] = Counter()

    def file(self, target: Path, source: Path) -> Path:
        """A target that no other file has: with the source's kind, then a number, behind its stem if need be."""
        kind, number = source.suffix[1:], 1
        wanted = target
        while hash(wanted) in self._files:
            stem = f"{target.stem}_{kind}" if number == 1 else f"{target.stem}_{number}"
            wanted, number = target.with_name(f"{stem}{target.suffix}"), number + 1
        self._files.add(hash(wanted))
        return wanted

    def folder(self, folder: Path) -> str:
        """A folder's name for its results among those of other folders."""
        name = folder.resolve().name or "root"
        self._folders[name] += 1
        return name if self._folders[name] == 1 else f"{name}_{self._folders[name]}"


def _result_suffix(source: Path, format: str) -> str:
    """Suffix of a result; where the format stays, and of a video, the source's own."""
    if source.suffix.lower() in VIDEO_SUFFIXES:
        return source.suffix
    if format != "same":
        return f".{format}"
    kept = source.suffix.lower() in WRITTEN_SUFFIXES
    return source.suffix if kept else f".{same_format(source)}"


def _unread(name: str) -> str:
    kind = unread_kind(name)
    return f"it cannot be read, being {kind}" if kind else ""


def _closed(error: OSError, below: Path) -> _Found:
    problem = f"the folder cannot be read: {error.strerror}"
    return _Found(Path(error.filename), below, os.fspath(error.filename), problem)


def _expand(name: str) -> Iterator[Path]:
    """The file of this name, or those that fit a pattern."""
    path = Path(name)
    if os.path.lexists(path):
        yield path
        return
    found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []  # noqa: PTH207 (any root)
    files = [Path(match) for match in found if not Path(match).is_dir()]
    if not files:
        raise PlanError(f"{name} is not there; give image files, folders, or a pattern that fits some")
    yield from files


def read_list(name: str) -> Iterator[str]:
    """Names of files from a list, one a line; `-` is standard input. A NUL ends names instead if the list holds one.

    Raises:
        PlanError: it cannot be read.
    """
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as source:
            rest = b""
            end = b""
            while block := source.read(1 << 16):
                end = end or (b"\0" if b"\0" in block else b"\n")
                *lines, rest = (rest + block).split(end)
                yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip())
            if rest.strip():
                yield os.fsdecode(rest.rstrip(b"\r\n"))
    except OSError as error:
        raise PlanError(f"--files-from {name} cannot be read: {error.strerror}") from error
