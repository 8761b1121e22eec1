"""Malformed image files: each is read or refused with a sentence, in bounded memory, and libraries keep quiet.

Each seed is a variant of a valid file of one format; `HOSTILE_VARIANTS` says how many of each there are.
"""

from __future__ import annotations

import os
import resource
import struct
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from helpers.hostile_photos import chunk, valid_files, variant

from ipt_triton.client.errors import ImageError, ImageTooLarge
from ipt_triton.client.photo import check_format, read_photo, write_photo
from ipt_triton.images import UnreadableImage, read_rgb

VARIANTS = int(os.environ.get("HOSTILE_VARIANTS", "25"))
MOST_MEMORY = 2**30


@pytest.mark.parametrize("name", list(valid_files()))
def test_a_malformed_file_is_read_or_refused_with_a_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path, read = tmp_path / f"photo.{name}", 0
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module="PIL")  # as the command does
        for seed in range(VARIANTS):
            random = Random(f"{name} {seed}")
            path.write_bytes(variant(name, random))
            with suppress(UnreadableImage):
                read_rgb(path)
            try:
                photo = read_photo(path)
                if photo.pixels.size < 2**20:
                    target = tmp_path / f"copy.{random.choice(('png', 'tiff', 'jpg', 'webp', 'avif', 'bmp', 'ppm'))}"
                    check_format(photo, target)
                    write_photo(photo, target)
                read += 1
            except ImageError as error:
                text = str(error)
                assert text.isprintable() and len(text) < 1000, f"{seed}: {text[:500]!r}"
            except Exception as error:
                raise AssertionError(f"variant {seed} of {name}: {type(error).__name__}: {str(error)[:300]}") from error
            assert capsys.readouterr() == ("", ""), f"variant {seed} of {name}"
    assert 0 < read < VARIANTS
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) < MOST_MEMORY


def test_what_a_file_declares_is_refused_before_there_is_memory_for_it(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLarge, match="pixels that are allowed"):
        read_photo(tmp_path / "bomb.png")
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 2**26


def test_a_file_of_more_bytes_than_its_pixels_could_have_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "endless.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ImageTooLarge, match=f"{2**40} bytes; {2**31} are allowed"):
        read_photo(tmp_path / "endless.png")
