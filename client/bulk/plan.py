"""What is to do: each image of the source, the name of its result, and the key by which that is known to be there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ipt_triton.client.batch import Plan
from ipt_triton.client.bulk.places import Found, Place
from ipt_triton.client.errors import PlanError
from ipt_triton.client.photo import READ_SUFFIXES
from ipt_triton.reading import printable


@dataclass(frozen=True)
class Photo:
    """An image of the source.

    Attributes:
        source, target: paths below the two places.
        version, mtime: see `Found`.
        key: of source, version and settings; another one means that the result is to be made again.
        problem: why it cannot be restored; empty if it may be.
    """

    source: str
    target: str
    version: str
    mtime: float | None
    key: str
    problem: str


def photos(source: Place, target: Place, settings: str, naming: Plan) -> Iterator[Photo]:
    """The images of a place, at any depth; those below the target are results.

    Args:
        settings: all that decides what a result is, as text.
        naming: has `suffix` and `format` of the results, and is told of files that are no images.

    Raises:
        PlanError: the source lies in the target or cannot be listed, or holds no image.
    """
    if target.holds(source):
        raise PlanError(f"{source.url} lies in {target.url}, where results would replace photos; give another target")
    any_of_them = False
    for folder, files in source.folders(leaving_out=target):
        for name, result, problem in naming.images(Path(folder), list(files)):
            any_of_them = True
            yield _photo(source, folder, name, result, files[name], problem, settings)
    if not any_of_them:
        allowed = ", ".join(sorted(READ_SUFFIXES))
        raise PlanError(f"{source.url} holds no image; allowed are files ending in {allowed}")


def _photo(source: Place, folder: str, name: str, result: str, found: Found, problem: str, settings: str) -> Photo:
    path, made = (f"{folder}/{each}".lstrip("/") for each in (name, result))
    problem = problem or found.problem
    if ".." in PurePosixPath(path).parts:
        problem = "its name leads out of the target; rename it"
    elif not path.isprintable():
        problem = "its name holds what is no printable text; rename it"
        path, made = printable(path), printable(made)
    key = hashlib.sha256(json.dumps([source.name(path), found.version, settings]).encode()).hexdigest()
    return Photo(path, made, found.version, found.mtime, key, problem)
