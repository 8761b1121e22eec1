"""A copy of a run in an object store, from which any machine goes on. By fsspec, which comes with PyTorch.

ipt-train pretrain --data photos --output run --store s3://bucket/runs/mine --steps 100000
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ipt_triton.reading import excerpt
from ipt_triton.train.errors import StateError, TrainingError
from ipt_triton.train.fit.recipe import CHANGEABLE
from ipt_triton.train.fit.state import STATE, read_state

logger = logging.getLogger(__name__)

RECIPE = "recipe.json"
COPIED = ("checkpoint", "best")
"""Folders of a run that are copied beside its state and its recipe."""


def _identity(recipe: dict[str, Any]) -> object:
    """What a run keeps when it is resumed."""
    kept = {name: value for name, value in recipe.get("recipe", {}).items() if name not in CHANGEABLE}
    return recipe.get("tasks"), kept


class RunStore:
    """A prefix of a store that holds one run.

    Args:
        url: of an object store that fsspec knows, such as s3://bucket/runs/mine.

    Raises:
        StateError: fsspec does not know it, or lacks the package for it, or it is a folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._explained("cannot be used"):
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        if isinstance(self._fs, LocalFileSystem):
            raise StateError(
                f"--store {url} is a folder; give a store such as s3://bucket/run, or a folder as --output"
            )

    def begin(self, output: Path, is_continued: Callable[[dict[str, Any]], bool]) -> None:
        """See that the store can be written, and copy there what a folder has more of the run: a copy may have failed.

        Args:
            is_continued: told the recipe of the run in the store, whether it may be continued.

        Raises:
            TrainingError: it may not, or it is another run than the folder's.
            StateError: the store cannot be read or written.
        """
        with self._explained("cannot be written"):
            self._fs.pipe_file(f"{self._root}/.probe", b"")
            self._fs.rm_file(f"{self._root}/.probe")
        told = self._recipe()
        if told is not None and not is_continued(told):
            raise TrainingError(f"{self.url} holds a run; add --resume to continue it, or choose another --store")
        if not (output / STATE).exists() or not (output / RECIPE).exists():
            return
        own = json.loads((output / RECIPE).read_text())
        if not is_continued(own):
            return
        there = -1
        if told is not None:
            if _identity(own) != _identity(told):
                raise TrainingError(f"{output} holds another run than {self.url}; choose another --output")
            with tempfile.TemporaryDirectory() as folder, self._explained("cannot be read"):
                self._fs.get_file(f"{self._root}/{STATE}", f"{folder}/{STATE}")
                there = read_state(Path(folder) / STATE)["step"]
        here = read_state(output / STATE)["step"]
        if here > there:
            logger.warning("%s is at step %d and %s at step %d: it is copied there", output, here, self.url, there)
            self.put(output, may_fail=False)

    def fetch(self, output: Path) -> None:
        """Put the run in the place of that of a folder, if the store has one.

        Raises:
            StateError: it cannot be read.
        """
        told = self._recipe()
        if told is None:
            return
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".fetched-") as folder:
            with self._explained("cannot be read"):
                for key in self._fs.find(self._root):
                    path = key[len(self._root.lstrip("/")) :].strip("/")
                    if path in (STATE, RECIPE) or path.startswith(tuple(f"{name}/" for name in COPIED)):
                        (Path(folder) / path).parent.mkdir(exist_ok=True)
                        self._fs.get_file(key, str(Path(folder) / path))
            for name in COPIED:
                shutil.rmtree(output / name, ignore_errors=True)
            for name in (*COPIED, RECIPE, STATE):
                if (Path(folder) / name).exists():
                    (Path(folder) / name).replace(output / name)

    def _recipe(self) -> dict[str, Any] | None:
        """That of the run in the store; None where there is no run."""
        with self._explained("cannot be read"):
            try:
                self._fs.info(f"{self._root}/{STATE}")
            except FileNotFoundError:
                return None
            return dict(json.loads(self._fs.cat_file(f"{self._root}/{RECIPE}")))

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
        except (MemoryError, StateError, TrainingError):
            raise
        except Exception as error:
            raise StateError(f"{self.url} {what}: {excerpt(error)}") from error
