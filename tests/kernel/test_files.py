"""Files and folders appear whole or not at all; plain reading names what cannot be read."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_triton.files import atomic_directory, atomic_file
from ipt_triton.images import PHOTOS, SUFFIXES, UnreadableImage, read_rgb


def test_a_file_is_the_old_one_until_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("first")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
def test_an_error_of_the_disk_names_what_was_written(tmp_path: Path, atomic: Callable) -> None:
    target = tmp_path / "x"
    named = re.escape(f"No space left on device: '{target}'")
    with pytest.raises(OSError, match=named), atomic(target), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    with pytest.raises(ConnectionResetError) as caught, atomic(target):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert caught.value.filename is None and not target.exists()


def test_several_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "x"

    def write(number: int) -> None:
        with atomic_file(target) as temporary:
            temporary.write_text(str(number) * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(10)))
    text = target.read_text()
    assert text == text[0] * 10_000 and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole_and_left_alone_if_it_is_the_same(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def write(**files: str) -> float:
        with atomic_directory(target) as folder:
            for name, text in files.items():
                (folder / name).write_text(text)
        return target.stat().st_ctime_ns

    first = write(a="1", b="2")
    assert write(a="1", b="2") == first
    assert write(a="1", c="3") != first
    assert {path.name: path.read_text() for path in target.iterdir()} == {"a": "1", "c": "3"}
    with pytest.raises(ValueError), atomic_directory(target) as folder:
        (folder / "a").write_text("half")
        raise ValueError
    assert (target / "a").read_text() == "1" and list(tmp_path.iterdir()) == [target]


def test_the_sample_photographs_are_read_and_what_is_no_image_is_named(tmp_path: Path) -> None:
    photos = [path for path in sorted(PHOTOS.iterdir()) if path.suffix in SUFFIXES]
    assert len(photos) == 6 and all(read_rgb(path).dtype == np.uint8 for path in photos)
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.full((2, 3, 3), 7))
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(UnreadableImage, match=name):
            read_rgb(tmp_path / name)
