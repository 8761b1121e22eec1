"""Training images: what is found, read, left out, held out, shared and packed."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipt_triton.train.data.pack import main, write_packed
from ipt_triton.train.data.pool import (
    DataError,
    Photograph,
    Pool,
    decode,
    find_photographs,
    load_pairs,
    load_pool,
    read_packed,
    share,
)


def picture(number: int, height: int = 60, width: int = 70) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def pool(count: int) -> Pool:
    return Pool([picture(i) for i in range(count)], [f"{i}.png" for i in range(count)])


def test_several_nested_folders_are_read_and_bad_files_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a/n01440764/one.png", picture(1))
    write(tmp_path / "a/n01443537/two.JPEG", picture(2), quality=95)
    write(tmp_path / "b/three.webp", picture(3))
    write(tmp_path / "b/four.avif", picture(4))
    write(tmp_path / "b/small.png", picture(5, 40, 90))
    (tmp_path / "a/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken \xff\xd9")
    (tmp_path / "a/notes.txt").write_text("no picture")
    whole = write(tmp_path / "c.jpg", picture(6)).read_bytes()
    (tmp_path / "b/cut.jpg").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level("INFO"):
        found = load_pool([tmp_path / "a", tmp_path / "b"], 48)
    assert found.names == ["n01440764/one.png", "n01443537/two.JPEG", "four.avif", "three.webp"]
    assert np.array_equal(found.images[0], picture(1))
    assert "4 photographs read, 2 unreadable, 1 below 48 px" in caplog.text


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_every_mode_of_a_file_gives_rgb(tmp_path: Path, mode: str) -> None:
    for suffix in (".png", ".jpg") if mode in ("RGB", "L") else (".jpg",) if mode == "CMYK" else (".png",):
        path = tmp_path / f"one{suffix}"
        Image.fromarray(picture(0)).convert(mode).save(path)
        image = decode(Photograph(path, path.name))
        with Image.open(path) as expected:
            difference = np.abs(image.astype(int) - np.asarray(expected.convert("RGB")))  # type: ignore[union-attr]
        assert difference.max() <= (0 if suffix == ".png" else 6)


def test_held_out_photographs_stay_the_same_whatever_else_is_there() -> None:
    all_of_them = pool(30)
    training, held_out = all_of_them.split(5)
    assert len(held_out.names) == 5 and sorted(training.names + held_out.names) == sorted(all_of_them.names)
    for name, image in zip(held_out.names, held_out.images, strict=True):
        assert np.array_equal(image, picture(int(name.removesuffix(".png"))))
    assert set(all_of_them.take(range(30)[::-1]).split(5)[1].names) == set(held_out.names)
    with pytest.raises(DataError, match="5 usable photographs are too few to hold 5 out"):
        all_of_them.take(range(5)).split(5)


def test_a_smaller_share_is_contained_in_a_larger_one() -> None:
    names = [f"{i}.jpg" for i in range(100)]
    shares = [set(share(names, f)) for f in (0.001, 0.2, 0.4, 0.6, 1.0)]
    assert [len(s) for s in shares] == [1, 20, 40, 60, 100]
    assert all(small < large for small, large in pairwise(shares))
    assert shares[1] != set(range(20))
    assert pool(10).share(0.3).names == [f"{i}.png" for i in share([f"{i}.png" for i in range(10)], 0.3)]


def test_a_packed_pool_holds_the_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(6):
        write(tmp_path / f"photos/{number}.png", picture(number, 50 + number, 60))
    packed = tmp_path / "pool.npz"
    assert main([str(tmp_path / "photos"), "--output", str(packed), "--min-side", "48"]) == 0
    assert "6 photographs, 0.0 megapixels" in capsys.readouterr().out
    again = load_pool([packed], 48)
    assert again.names == [f"{i}.png" for i in range(6)]
    assert all(np.array_equal(image, picture(i, 50 + i, 60)) for i, image in enumerate(again.images))
    command = [str(tmp_path / "photos"), "--output", str(packed), "--min-side", "48", "--max-megapixels"]
    assert main([*command, "0.01"]) == 0
    assert read_packed(packed).megapixels <= 0.01 and 2 <= len(read_packed(packed).names) <= 3
    assert main([*command, "0.001"]) == 2
    assert "no photograph fits" in capsys.readouterr().err


def test_a_file_that_is_no_packed_pool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.npz"
    with pytest.raises(DataError, match="is not a packed pool"):
        load_pool([path], 48)
    write_packed(pool(3), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a packed pool"):
        load_pool([path], 48)


def test_pairs_are_found_by_name(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"low/x/{number}.png", picture(number, 30, 40))
        write(tmp_path / f"high/x/{number}.bmp", picture(number + 10, 60, 80))
    (tmp_path / "low/broken.png").write_bytes(b"no picture")
    write(tmp_path / "high/broken.png", picture(0, 60, 80))
    pairs = load_pairs(tmp_path / "low", tmp_path / "high", 2, 48)
    assert pairs.names == [os.path.join("x", str(i)) for i in range(3)] and pairs.degraded is not None  # noqa: PTH118
    for number in range(3):
        assert np.array_equal(pairs.degraded[number], picture(number, 30, 40))
        assert np.array_equal(pairs.images[number], picture(number + 10, 60, 80))


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "low/one.png", picture(0))
    write(tmp_path / "high/one.png", picture(1))
    write(tmp_path / "high/two.png", picture(1))
    with pytest.raises(DataError, match=r"1 names are in .*two for instance"):
        load_pairs(tmp_path / "low", tmp_path / "high", 1, 48)
    (tmp_path / "high/two.png").unlink()
    with pytest.raises(DataError, match="pair one: the clean photograph has 70x60 px, which is not 2 times the 70x60"):
        load_pairs(tmp_path / "low", tmp_path / "high", 2, 48)
    with pytest.raises(DataError, match="no usable pair"):
        load_pairs(tmp_path / "low", tmp_path / "high", 1, 100)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        find_photographs([tmp_path / "nowhere"])
