"""Batches: which files are restored, and where each result goes, decided before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ipt_triton.client.errors import PlanError
from ipt_triton.client.photo import READ_SUFFIXES

Existing = Literal["refuse", "overwrite", "skip"]


@dataclass(frozen=True)
class Job:
    """One photo: its file, the file to write, and whether that is there already and left alone."""

    source: Path
    target: Path
    skipped: bool = False


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
    places: list[tuple[Path, Path]] = []
    for photo in photos:
        if photo.is_dir():
            places += [(source, output / source.relative_to(photo).parent) for source in _images_below(photo, output)]
        elif photo.exists():
            places.append((photo, output))
        else:
            raise PlanError(f"{photo} is not there; give image files or folders")
    jobs: dict[Path, Job] = {}
    sources = {source.resolve() for source, _ in places}
    for source, folder in places:
        target = folder / f"{source.stem}{suffix}.{extension}"
        if target in jobs:
            raise PlanError(
                f"{jobs[target].source} and {source} would both be written to {target}; "
                "rename one or restore them apart"
            )
        if target.resolve() in sources:
            raise PlanError(f"{target} is one of the photos; choose another --output or a --suffix")
        if target.exists() and existing == "refuse":
            raise PlanError(f"{target} exists; give --overwrite, --skip-existing, a --suffix or another --output")
        jobs[target] = Job(source, target, skipped=existing == "skip" and target.exists())
    return list(jobs.values())


def _images_below(folder: Path, output: Path) -> list[Path]:
    results = output.resolve()
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READ_SUFFIXES and path.is_file() and results not in path.resolve().parents
    )
    if not images:
        raise PlanError(f"{folder} holds no image; allowed are files ending in {', '.join(sorted(READ_SUFFIXES))}")
    return images
