"""Batches: which files are restored, and where each result goes, decided before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipt_triton.client.errors import PlanError
from ipt_triton.client.photo import READ_SUFFIXES

Existing = Literal["refuse", "overwrite", "skip"]

NO_FILE = "no file but a pipe, a socket, a device or a link to nothing"


@dataclass(frozen=True)
class Job:
    """One photo: its file, the file to write, whether that is there already and left alone, and what is wrong with it.

    `problem` tells why the source cannot be restored: a folder that cannot be read, a pipe, a device.
    """

    source: Path
    target: Path
    skipped: bool = False
    problem: str = ""


def plan_jobs(photos: Sequence[Path], output: Path, suffix: str, extension: str, existing: Existing) -> list[Job]:
    """Jobs for files, written to `output`, and folders, whose images at any depth keep their tree below `output`.

    Args:
        photos: files and folders. Of a folder, files with an image's suffix that do not lie below `output` are taken.
        output: folder for the results; need not be there.
        suffix: added to each file's stem, may be empty.
        extension: of the results, without a dot.
        existing: what to do about results that are there already.

    Raises:
        PlanError: a path that is not there, a folder without images, two photos with one output, an output that is
            one of the photos, or an existing output that may neither be overwritten nor skipped.
    """
    try:
        return _plan(photos, output, suffix, extension, existing)
    except OSError as error:  # names that are too long, folders on the way that are closed
        raise PlanError(f"{error.filename} cannot be used: {error.strerror}; choose another name or place") from error


def _plan(photos: Sequence[Path], output: Path, suffix: str, extension: str, existing: Existing) -> list[Job]:
    places: list[tuple[Path, Path, str]] = []
    for photo in photos:
        if photo.is_dir():
            found = _images_below(photo, output)
            if not found:
                allowed = ", ".join(sorted(READ_SUFFIXES))
                raise PlanError(f"{photo} holds no image; allowed are files ending in {allowed}")
            places += [(source, output / source.relative_to(photo).parent, problem) for source, problem in found]
        elif photo.exists():
            places.append((photo, output, "" if photo.is_file() else NO_FILE))
        else:
            raise PlanError(f"{photo} is not there; give image files or folders")
    jobs: dict[Path, Job] = {}
    sources = {os.path.realpath(source) for source, *_ in places}
    for source, folder, problem in places:
        target = folder / f"{source.stem}{suffix}.{extension}"
        if problem:
            jobs[source] = Job(source, target, problem=problem)
            continue
        if target in jobs:
            raise PlanError(
                f"{jobs[target].source} and {source} would both be written to {target}; "
                "rename one or restore them apart"
            )
        if os.path.realpath(target) in sources:
            raise PlanError(f"{target} is one of the photos; choose another --output or a --suffix")
        if target.exists() and existing == "refuse":
            raise PlanError(f"{target} exists; give --overwrite, --skip-existing, a --suffix or another --output")
        jobs[target] = Job(source, target, skipped=existing == "skip" and target.exists())
    return list(jobs.values())


def _images_below(folder: Path, output: Path) -> list[tuple[Path, str]]:
    """Files with an image's suffix that do not lie below `output`, in order, and what is wrong with one or a folder."""
    found: list[tuple[Path, str]] = []
    results = Path(os.path.realpath(output))

    def closed(error: OSError) -> None:
        found.append((Path(error.filename), f"the folder cannot be read: {error.strerror}"))

    for place, _, names in os.walk(folder, onerror=closed):
        for path in (Path(place, name) for name in names):
            if path.suffix.lower() in READ_SUFFIXES and results not in Path(os.path.realpath(path)).parents:
                found.append((path, "" if path.is_file() else NO_FILE))
    return sorted(found)
