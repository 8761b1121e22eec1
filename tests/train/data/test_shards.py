"""Shards: what is in them, how they are packed, and that a photograph in one is as good as one in a folder."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import photograph, write_photographs
from PIL import Image

from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.data.degrade import main as degrade
from ipt_triton.train.data.feed import Part, Sampler, WorkerFeed
from ipt_triton.train.data.pack import main as pack
from ipt_triton.train.data.pool import find_photographs, load_pool
from ipt_triton.train.data.shards import read_index, write_shard
from ipt_triton.train.errors import DataError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photographs of 100 pixels in two folders, one of 30, one broken, and a text."""
    folder = tmp_path_factory.mktemp("photos")
    write_photographs(folder / "a", 4, side=100)
    write_photographs(folder / "b", 3, side=100)
    Image.fromarray(photograph(9, 30)).save(folder / "b" / "small.png")
    (folder / "b" / "broken.png").write_bytes(b"no picture")
    (folder / "b" / "notes.txt").write_text("no picture either")
    return folder


def test_the_index_finds_the_bytes_of_images_in_what_tar_wrote(folder: Path, tmp_path: Path) -> None:
    long = tmp_path / "in" / ("n" * 120) / ("m" * 120 + ".JPG")
    long.parent.mkdir(parents=True)
    long.write_bytes(b"x" * 1000)
    (tmp_path / "in" / "link.png").symlink_to("nothing")
    for form in ("gnu", "pax"):
        shard = tmp_path / f"{form}.tar"
        folders = ["-C", folder, ".", "-C", tmp_path / "in", "."]
        subprocess.run(["tar", f"--format={form}", "-cf", shard, *folders], check=True)
        found = {p.name: p.read() for p in find_photographs([shard])}
        files = {p.name: p.path.read_bytes() for p in find_photographs([folder, tmp_path / "in"])}
        assert found == files and len(found) == 10


def test_names_that_are_no_utf8_are_read_and_chosen_like_others(folder: Path, tmp_path: Path) -> None:
    files = find_photographs([folder])
    names = [f"\udce9{number}.png" for number in range(len(files))]  # Latin-1 é, as Python reads it
    write_shard(tmp_path / "photos.tar", ((name, file.read()) for name, file in zip(names, files, strict=True)))
    training, held_out = load_pool([tmp_path / "photos.tar"], 48).split(3)
    assert len(training.names) == 4 and {*training.names, *held_out.names} < set(names)


def test_packed_shards_hold_the_files_as_they_are_and_are_the_same_each_time(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = [str(folder), "--shards", "3", "--min-side", "48"]
    assert pack([*command, "--output", str(tmp_path / "one" / "photos.tar")]) == 0
    assert "photos-000.tar to photos-002.tar: 7 photographs" in capsys.readouterr().out
    assert "7 photographs, 1 unreadable, 1 below 48 px" in caplog.text
    shards = sorted((tmp_path / "one").iterdir())
    assert [len(read_index(shard)) for shard in shards] == [3, 2, 2]
    members = find_photographs(shards)
    files = {p.name: p.path.read_bytes() for p in find_photographs([folder])}
    assert all(p.read() == files[p.name] for p in members) and len({p.name for p in members}) == 7
    listed = subprocess.run(["tar", "-tf", shards[0]], check=True, capture_output=True, text=True).stdout.split()
    assert listed == [p.name for p in find_photographs(shards[:1])]
    assert pack([*command, "--output", str(tmp_path / "two" / "photos.tar")]) == 0
    assert all(shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes() for shard in shards)


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--shards", "2", "--output", "photos.npz"], 2, "must end in .tar"),
        (["--output", "photos.tar"], 2, "must end in .npz"),
        (["--shards", "0", "--output", "photos.tar"], 2, "--shards 0 is not allowed"),
        (["--shards", "8", "--output", "photos.tar"], 2, "7 photographs are too few for 8 shards"),
        (["--shards", "2", "--output", "there.tar"], 2, "there-7.tar is there already; delete it"),
        (["--shards", "2", "--output", "photos.tar", "--max-megapixels", "0.001"], 2, "no photograph fits"),
    ],
)
def test_shards_that_cannot_be_written_are_refused(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there-7.tar").touch()
    Path("photos-of-mine.tar").touch()
    try:
        ended = pack([str(folder), "--min-side", "48", *more])
    except SystemExit as error:  # argparse's
        ended = int(error.code or 0)
    assert ended == status and message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos-of-mine.tar", "there-7.tar"]


def test_packing_shards_without_pillow_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if not installed
    assert pack([str(folder), "--shards", "1", "--output", str(tmp_path / "photos.tar")]) == 1
    assert "pip install pillow" in capsys.readouterr().err


def test_a_pool_from_shards_is_the_one_from_the_folder_and_bad_members_are_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = find_photographs([folder])
    write_shard(tmp_path / "photos.tar", ((p.name, p.read()) for p in files))
    one, other = load_pool([folder], 48), load_pool([tmp_path / "photos.tar"], 48)
    assert one.names == other.names and len(one.names) == 7
    assert all(np.array_equal(*pair) for pair in zip(one.images, other.images, strict=True))
    assert caplog.text.count("7 photographs read, 1 unreadable, 1 below 48 px") == 2
    assert f"left out: {tmp_path / 'photos.tar'}: b/broken.png cannot be read" in caplog.text
    assert [set(p.names) for p in one.split(3)] == [set(p.names) for p in other.split(3)]


def test_workers_cut_the_same_crops_from_a_shard_as_from_a_folder_and_name_bad_members(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = find_photographs([folder])
    write_shard(tmp_path / "photos.tar", ((p.name, p.read()) for p in files))
    parts = [Part(step, 0, 4) for step in range(6)]
    feeds = [
        WorkerFeed(photographs, Sampler(OFFICIAL_TASKS[4:]), 48, workers, CPU)
        for photographs, workers in ((files, 0), (find_photographs([tmp_path / "photos.tar"]), 2))
    ]
    for (one,), (other,) in zip(*(feed.batches(parts) for feed in feeds), strict=True):
        assert one.task == other.task and torch.equal(one.clean, other.clean)
    assert feeds[1].unusable == {f"{tmp_path / 'photos.tar'}: b/{name}.png" for name in ("small", "broken")}
    assert f"left out {tmp_path / 'photos.tar'}: b/" in caplog.text


def test_photographs_of_a_shard_are_degraded_as_those_of_a_folder(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photos", 2, side=64)
    files = find_photographs([tmp_path / "photos"])
    write_shard(tmp_path / "photos.tar", ((p.name, p.read()) for p in files))
    for source, output in (("photos", "one"), ("photos.tar", "two")):
        assert degrade([str(tmp_path / source), "--task", "denoise_50", "--output", str(tmp_path / output)]) == 0
    pictures = [sorted((tmp_path / output / "denoise_50").iterdir()) for output in ("one", "two")]
    assert len(pictures[0]) == 2
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


@pytest.mark.parametrize("damage", ["none", "text", "empty", "cut", "end", "compressed", "header", "sparse", "folder"])
def test_a_shard_that_is_not_whole_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    shard = tmp_path / "photos.tar"
    write_shard(shard, ((p.name, p.read()) for p in find_photographs([folder])))
    whole = bytearray(shard.read_bytes())
    shard.unlink()
    if damage == "folder":
        shard.mkdir()
    elif damage in ("header", "end"):
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            third = tar.getmembers()[2].offset
        whole[third : third + 100] = b"?" * 100
        shard.write_bytes(whole if damage == "header" else whole[:third])
    elif damage == "sparse":  # a member that says it has a list of parts, and has none
        with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo("a.png")
            member.size, member.pax_headers = 600, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            tar.addfile(member, io.BytesIO(b"5" * 600))
    elif damage != "none":
        damaged = {"text": b"no tar" * 200, "empty": b"", "cut": whole[: len(whole) // 2]}
        shard.write_bytes(gzip.compress(whole) if damage == "compressed" else damaged[damage])
    with pytest.raises(DataError, match=r"photos\.tar is not a whole, uncompressed tar file"):
        read_index(shard)
