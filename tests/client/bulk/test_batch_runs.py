"""Runs of ipt-batch one after the other: what each of them does, without Ray and its processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as parquet
import pytest
import s3fs
from helpers.pretended import Pretended, Refusal, over_grpc
from helpers.store import object_store

from ipt_triton.client.bulk import command, flow
from ipt_triton.client.bulk.worker import Attempts, Worker
from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.client.options import Options
from ipt_triton.client.photo import Photo, read_photo, write_photo
from ipt_triton.tasks import OFFICIAL_TASKS, Chain


@pytest.fixture(scope="module")
def store() -> Iterator[s3fs.S3FileSystem]:
    with object_store() as found:
        yield found


@pytest.fixture
def pretended() -> Iterator[Pretended]:
    with over_grpc() as told:
        yield told


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker in this process."""

    def outcomes(photos: Any, *arguments: Any) -> Iterator[dict[str, Any]]:
        worker = Worker(*arguments, Attempts())
        for number, photo in enumerate(photos):
            yield worker.restore({"number": number, **asdict(photo)})

    monkeypatch.setattr(command, "cluster", lambda address: nullcontext())
    monkeypatch.setattr(command, "outcomes", outcomes)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.png", "b.jpg", "inner/c.png")):
        add(tmp_path / "in" / name, number)
    return tmp_path / "in"


def add(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_photo(Photo(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)), path)
    os.utime(path, (1e9 + seed, 1e9 + seed))


def run(pretended: Pretended, source: object, target: object, *words: str) -> tuple[int, dict[str, int], int]:
    """Exit status, counts of the report, and how many photos the server was asked for."""
    asked = pretended.asked
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["-t", "derain", "--url", pretended.address, "--json", str(report), *words]
        status = command.main([str(source), str(target), *options])
        return status, json.loads(report.read_text())["counts"], pretended.asked - asked


def names(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != "_manifest"}


def test_results_have_the_names_the_metadata_and_the_times_of_their_photos(
    pretended: Pretended, archive: Path, tmp_path: Path
) -> None:
    assert run(pretended, archive, tmp_path / "out") == (0, {"restored": 3}, 3)
    assert names(tmp_path / "out") == {"a.png", "b.jpg", "inner/c.png"}
    made = read_photo(tmp_path / "out" / "inner" / "c.png")
    np.testing.assert_array_equal(made.pixels, read_photo(archive / "inner" / "c.png").pixels)
    assert b"derain" in (made.xmp or b"") and (tmp_path / "out" / "b.jpg").stat().st_mtime == 1e9 + 1


def test_the_next_run_does_what_is_new_or_changed_or_asked_for_otherwise(
    pretended: Pretended, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(pretended, archive, out)
    assert run(pretended, archive, out) == (0, {"skipped": 3}, 0)
    add(archive / "a.png", 7)
    add(archive / "d.png", 8)
    assert run(pretended, archive, out) == (0, {"restored": 2, "skipped": 2}, 2)
    np.testing.assert_array_equal(read_photo(out / "a.png").pixels, read_photo(archive / "a.png").pixels)
    assert run(pretended, archive, out, "--strength", "0.5") == (0, {"restored": 4}, 4)
    assert run(pretended, archive, out, "--strength", "0.5", "--task", "3") == (0, {"skipped": 4}, 0)
    assert run(pretended, archive, out) == (0, {"restored": 4}, 4), "results of other options are no results of these"
    rows = parquet.read_table(out / "_manifest").to_pylist()
    assert len(rows) >= 4 and {row["status"] for row in rows} == {"restored"}


def test_what_cannot_be_restored_is_set_aside_with_its_reason_until_it_is_changed_or_tried_again(
    pretended: Pretended, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (archive / "bad.png").write_bytes(b"no image")
    (archive / "raw.cr2").touch()
    (archive / "cut.jpg").write_bytes((archive / "b.jpg").read_bytes()[:200])
    (archive / "link.png").symlink_to("nothing")
    (archive / "notes.txt").touch()
    (archive / "two\nlines.png").touch()
    assert run(pretended, archive, out) == (1, {"restored": 3, "failed": 5}, 3)
    told = capsys.readouterr().err
    assert "bad.png is not an image" in told and "raw.cr2: it cannot be read" in told and "notes.txt: no images" in told
    assert "two\\nlines.png: its name holds what is no printable text" in told
    rows = {Path(row["source"]).name: row for row in parquet.read_table(out / "_manifest").to_pylist()}
    assert {name for name, row in rows.items() if row["status"] == "failed" and row["error"]} == {
        "bad.png", "raw.cr2", "cut.jpg", "link.png", "two\\nlines.png"
    }  # fmt: skip
    assert names(out) == {"a.png", "b.jpg", "inner/c.png"}
    add(archive / "bad.png", 9)
    assert run(pretended, archive, out) == (1, {"restored": 1, "skipped": 3, "failed": 4}, 1)
    assert "cut.jpg" in capsys.readouterr().err, "it is named each time"
    assert run(pretended, archive, out, "--retry-failed") == (1, {"skipped": 4, "failed": 4}, 0)


def test_a_server_that_goes_away_ends_the_run_and_the_next_one_does_the_rest(
    pretended: Pretended, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretended.before = lambda *_: pretended.failures.append(Refusal(grpc.StatusCode.UNAVAILABLE, "stopping"))
    assert run(pretended, archive, tmp_path / "out", "--retries", "0") == (2, {}, 1)
    assert "stopping" in capsys.readouterr().err
    pretended.before = lambda *_: None
    assert run(pretended, archive, tmp_path / "out") == (0, {"restored": 3}, 3)


def test_a_process_asks_a_server_that_is_away_once_for_all_photos_that_it_was_given(
    pretended: Pretended, archive: Path, tmp_path: Path
) -> None:
    args = command.make_arguments().parse_args([str(archive), str(tmp_path / "out"), "-t", "derain"])
    args.options = Options()
    pretended.before = lambda *_: pretended.failures.append(Refusal(grpc.StatusCode.UNAVAILABLE, "stopping"))
    arguments = {"url": pretended.address, "retries": 0}
    worker = Worker(args.source, args.target, arguments, Chain(OFFICIAL_TASKS[:1]), "sr_x2", args, Attempts())
    row = {"number": 0, "source": "a.png", "target": "a.png", "mtime": None}
    assert [worker.restore(row)["status"] for _ in range(3)] == ["not reached"] * 3 and pretended.asked == 1


def test_from_store_to_store_an_etag_tells_what_was_changed(
    pretended: Pretended, store: s3fs.S3FileSystem, archive: Path
) -> None:
    source, target = "s3://archive/photos", "s3://archive/restored"
    store.put(str(archive), "archive/photos", recursive=True)
    assert run(pretended, source, target) == (0, {"restored": 3}, 3)
    assert {key for key in store.find("archive/restored") if "_manifest" not in key} == {
        f"archive/restored/{name}" for name in names(archive)
    }
    np.testing.assert_array_equal(
        read_photo(store.cat_file("archive/restored/a.png")).pixels, read_photo(archive / "a.png").pixels
    )
    store.put(str(archive / "b.jpg"), "archive/photos/b.jpg")  # later, with the same contents
    assert run(pretended, source, target) == (0, {"skipped": 3}, 0)
    store.put(str(archive / "a.png"), "archive/photos/inner/c.png")
    assert run(pretended, source, target) == (0, {"restored": 1, "skipped": 2}, 1)


def test_names_of_a_store_do_not_lead_out_of_the_target(
    pretended: Pretended, store: s3fs.S3FileSystem, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.put_file(str(archive / "a.png"), "archive/evil/../../escaped.png")
    store.put_file(str(archive / "a.png"), "archive/evil/good.png")
    assert run(pretended, "s3://archive/evil", tmp_path / "deep" / "out") == (1, {"restored": 1, "failed": 1}, 1)
    assert "escaped.png: its name leads out of the target" in capsys.readouterr().err
    assert not list(tmp_path.rglob("escaped.png"))


def test_targets_that_would_lose_something_are_refused(
    pretended: Pretended, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").write_text("mine")
    for source, target, words in (
        (archive, archive, "where results would replace photos"),
        (archive / "inner", archive, "where results would replace photos"),
        (archive, tmp_path / "full", "holds files and no manifest"),
        (tmp_path / "missing", tmp_path / "out", "cannot be listed: No such file"),
        ("s3://nowhere/a", tmp_path / "out", "cannot be listed"),
        ("what://is/this", tmp_path / "out", "cannot be used"),
    ):
        assert command.main([str(source), str(target), "-t", "derain", "--url", pretended.address]) == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "full" / "a.png").read_text() == "mine" and pretended.asked == 0


def test_a_target_below_the_source_is_not_restored_again_and_what_a_killed_writer_left_is_removed(
    pretended: Pretended, archive: Path
) -> None:
    assert run(pretended, archive, archive / "out") == (0, {"restored": 3}, 3)
    left = archive / "out" / "inner" / ".c.png.0a1b2c3d.part"
    left.write_bytes(b"half")
    assert run(pretended, archive, archive / "out") == (0, {"skipped": 3}, 0)
    assert not left.exists()


def test_results_of_the_same_name_are_named_apart_and_a_format_may_be_asked_for(
    pretended: Pretended, archive: Path, tmp_path: Path
) -> None:
    add(archive / "a.bmp", 5)
    status, counts, _ = run(pretended, archive, tmp_path / "out", "--format", "png", "--suffix", "_dry")
    assert (status, counts) == (0, {"restored": 4})
    assert names(tmp_path / "out") == {"a_png_dry.png", "a_bmp_dry.png", "b_dry.png", "inner/c_dry.png"}


def test_a_ray_of_our_own_tells_nobody_of_its_use_and_has_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(flow.ray, "init", lambda address, **options: asked.update(options, address=address))
    monkeypatch.setattr(flow.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with flow.cluster(None):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert asked["address"] == "local" and asked["include_dashboard"] is False


@pytest.mark.parametrize(("address", "place", "tries"), [(None, "this machine", 2), ("head:6379", "head:6379", 1)])
def test_a_ray_that_starts_too_slowly_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, address: str | None, place: str, tries: int
) -> None:
    tried = []

    def init(address: str, **_: object) -> None:
        tried.append(address)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(flow.ray, "init", init)
    with (
        pytest.raises(ServerUnavailable, match=f"Ray at {place} cannot be used: The current node timed out"),
        flow.cluster(address),
    ):
        pass
    assert len(tried) == tries


def test_a_ray_of_our_own_that_does_not_start_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [Exception("The current node timed out during startup.")]

    def init(address: str, **_: object) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(flow.ray, "init", init)
    with flow.cluster(None):
        assert not failures


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray", "head:6379"], "--ray needs --url"),
        (["--every", "-1"], "--every -1 is not allowed"),
        (["--workers", "0"], "--workers 0 is not allowed"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IPT_URL", raising=False)
    with pytest.raises(SystemExit) as end:
        command.main(["in", "out", "-t", "derain", *words])
    assert end.value.code == 2 and told in capsys.readouterr().err
