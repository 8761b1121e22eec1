"""Where photos lie and where results go: a folder or an object store, by fsspec; files are read and written whole."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ipt_triton.client.batch import NO_FILE
from ipt_triton.client.errors import ImageError, PlanError
from ipt_triton.client.photo import MAX_BYTES
from ipt_triton.client.photo.writing import store
from ipt_triton.reading import excerpt


class Named(io.BytesIO):
    """A file in memory, with the name that messages give it."""

    def __init__(self, name: str, data: bytes = b"") -> None:
        super().__init__(data)
        self.name = name


@dataclass(frozen=True)
class Found:
    """A file of a listing.

    Attributes:
        version: changes when the contents do: the store's ETag, or size and time.
        mtime: the time of a local file, seconds since 1970; None elsewhere, where it is that of the upload.
        problem: why it cannot be read; empty if it may be.
    """

    version: str
    mtime: float | None
    problem: str


class Place:
    """A folder or a prefix of a store. Files are named by their paths below it, with slashes.

    Args:
        url: a path, or what fsspec knows, such as s3://bucket/photos.

    Raises:
        PlanError: fsspec does not know it, or lacks the package for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise PlanError(f"{url} cannot be used: {excerpt(error)}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._root = (os.path.realpath(root) if self._is_local else root).rstrip("/")

    def name(self, path: str) -> str:
        """The whole name of a file, for people."""
        whole = f"{self._root}/{path}"
        return whole if self._is_local else str(self._fs.unstrip_protocol(whole))

    def holds(self, other: Place) -> bool:
        """Whether another place is this one or lies below it."""
        return other.name("").startswith(self.name(""))

    def folders(self, leaving_out: Place | None = None) -> Iterator[tuple[str, dict[str, Found]]]:
        """Each folder and its files by their names, both in order; links to folders are not followed.

        Raises:
            PlanError: it cannot be listed.
        """
        left_out = leaving_out.name("").rstrip("/") if leaving_out else None
        with _explained(PlanError, f"{self.url} cannot be listed"):
            for folder, inner, files in self._fs.walk(self._root, detail=True, on_error="raise"):
                below = folder[len(self._root) :].strip("/")
                for name in [name for name in inner if self.name(f"{below}/{name}".lstrip("/")) == left_out]:
                    del inner[name]
                found = {name: self._found(info) for name, info in sorted(files.items()) if name}
                yield below, {name: file for name, file in found.items() if file}

    def _found(self, info: dict[str, Any]) -> Found | None:
        """What a listing says of a file; None of a link to a folder."""
        problem = ""
        if info.get("islink"):
            try:
                info = self._fs.info(info["name"])
            except OSError:
                problem = NO_FILE
        if info["type"] == "directory":
            return None
        if self._is_local and info["type"] != "file":
            problem = NO_FILE
        elif info["size"] > MAX_BYTES:
            problem = f"it holds {info['size']} bytes; {MAX_BYTES} are allowed: make it smaller"
        tag = info.get("ETag") or info.get("etag")
        version = str(tag).strip('"') if tag else f"{info['size']} {info.get('mtime', info.get('created'))}"
        return Found(version, info.get("mtime") if self._is_local else None, problem)

    def list(self, folder: str = "") -> list[str]:
        """Names of files and folders in one that need not be there.

        Raises:
            PlanError: it cannot be listed.
        """
        with _explained(PlanError, f"{self.name(folder)} cannot be listed"):
            try:
                names = self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=False)
            except FileNotFoundError:
                return []
            return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def read(self, path: str) -> Named:
        """A file's bytes.

        Raises:
            ImageError: it cannot be read.
        """
        name = self.name(path)
        with _explained(ImageError, f"{name} cannot be read"):
            return Named(name, self._fs.cat_file(f"{self._root}/{path}"))

    def write(self, path: str, data: bytes, mtime: float | None = None) -> None:
        """Put a file there, as a whole: under another name first in a folder, by a single put in a store.

        Args:
            mtime: of a local file, seconds since 1970; now if it is None.

        Raises:
            ImageError: it cannot be written.
        """
        name, whole = self.name(path), f"{self._root}/{path}"
        with _explained(ImageError, f"{name} cannot be written"):
            if self._is_local:
                Path(whole).parent.mkdir(parents=True, exist_ok=True)
                store(data, whole, name, mtime)
            else:
                self._fs.pipe_file(whole, data)

    def remove(self, path: str) -> None:
        """Remove a file.

        Raises:
            PlanError: it cannot be removed.
        """
        with _explained(PlanError, f"{self.name(path)} cannot be removed"):
            self._fs.rm_file(f"{self._root}/{path}")

    def sweep(self) -> None:
        """Remove what writers that were killed have left of files in a folder; a store keeps nothing of them."""
        if self._is_local:
            for left in Path(self._root).rglob(".*.part"):
                left.unlink(missing_ok=True)


@contextmanager
def _explained(kind: type[ImageError] | type[PlanError], what: str) -> Iterator[None]:
    """What the packages behind fsspec raise, which is nearly anything, as an error of ours."""
    try:
        yield
    except (ImageError, PlanError, MemoryError):
        raise
    except Exception as error:
        said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else excerpt(error)
        raise kind(f"{what}: {said}") from error
