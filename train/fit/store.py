"""A copy of a run in an object store, from which any machine goes on. By fsspec, which comes with PyTorch.

ipt-train pretrain --data photos --output run --store s3://bucket/runs/mine --steps 100000
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ipt_triton.files import atomic_file
from ipt_triton.reading import excerpt
from ipt_triton.train.errors import StateError, TrainingError
from ipt_triton.train.fit.state import STATE, read_state

logger = logging.getLogger(__name__)

RECIPE = "recipe.json"
COPIED = ("checkpoint", "best")
"""Folders of a run that are copied beside its state and its recipe."""


class RunStore:
    """A prefix of a store that holds one run.

    Args:
        url: what fsspec knows, such as s3://bucket/runs/mine.

    Raises:
        StateError: fsspec does not know it, or lacks the package for it, or it is a folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise StateError(f"--store {url} cannot be used: {excerpt(error)}") from error
        if isinstance(self._fs, LocalFileSystem):
            raise StateError(
                f"--store {url} is a folder; give a store such as s3://bucket/run, or a folder as --output"
            )

    def fetch(self, output: Path, is_continued: Callable[[dict[str, Any]], bool]) -> None:
        """Put the run's state and recipe in the place of those of a folder, if the store has a run.

        Args:
            is_continued: told the recipe of the run in the store, whether it may be continued.

        Raises:
            TrainingError: it may not.
            StateError: it cannot be read, or the folder holds a later state.
        """
        with self._explained("cannot be read"):
            if not self._fs.exists(f"{self._root}/{STATE}"):
                return
            recipe = self._fs.cat_file(f"{self._root}/{RECIPE}")
            told = json.loads(recipe)
        if not is_continued(told):
            raise TrainingError(f"{self.url} holds a run; add --resume to continue it, or choose another --store")
        with atomic_file(output / STATE) as temporary:
            with self._explained("cannot be read"):
                self._fs.get_file(f"{self._root}/{STATE}", str(temporary))
            if (output / STATE).exists():
                here, there = read_state(output / STATE)["step"], read_state(temporary)["step"]
                if here > there:
                    raise StateError(
                        f"{output / STATE} is at step {here} and {self.url} at step {there}; copy the one to go on "
                        "from over the other"
                    )
        with atomic_file(output / RECIPE) as temporary:
            temporary.write_bytes(recipe)

    def put(self, output: Path, *, may_fail: bool) -> None:
        """Copy the run that a folder holds, its state last; each file is replaced as a whole.

        Args:
            may_fail: a failure is logged only, since the next save tries again.

        Raises:
            StateError: it could not be copied.
        """
        files = [path for name in COPIED for path in sorted((output / name).rglob("*")) if path.is_file()]
        try:
            with self._explained("cannot be written"):
                for path in (*files, output / RECIPE, output / STATE):
                    self._fs.put_file(str(path), f"{self._root}/{path.relative_to(output).as_posix()}")
        except StateError as error:
            if not may_fail:
                raise
            logger.warning("%s; the next save tries again", error)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """What the packages behind fsspec raise, which is nearly anything, as an error of ours."""
        try:
            yield
        except (MemoryError, StateError):
            raise
        except Exception as error:
            raise StateError(f"{self.url} {what}: {excerpt(error)}") from error
