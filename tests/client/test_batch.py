"""Plans: what is restored, in what order, and where results go."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipt_triton.client.batch import STREAM, Job, Plan, read_list
from ipt_triton.client.errors import PlanError

Touch = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Touch:
    """Makes empty files below the folder that is the current one, and returns it."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def plan(*inputs: str, output: str = "out", **options: Any) -> list[Job]:
    return list(Plan(inputs, Path(output), **options).jobs())


def targets(jobs: list[Job]) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in jobs}


def test_a_folder_keeps_its_tree_and_each_file_its_format(touch: Touch) -> None:
    touch("in/a.jpg", "in/b.JPEG", "in/deep/c.webp")
    assert targets(plan("in")) == {
        "in/a.jpg": "out/a.jpg",
        "in/b.JPEG": "out/b.JPEG",
        "in/deep/c.webp": "out/deep/c.webp",
    }
    assert set(targets(plan("in", format="png", suffix="_x2")).values()) == {
        "out/a_x2.png",
        "out/b_x2.png",
        "out/deep/c_x2.png",
    }


def test_several_folders_go_into_folders_of_their_names(touch: Touch) -> None:
    touch("in/a.png", "other/in/a.png", "b.png")
    assert targets(plan("in", "other/in", "b.png")) == {
        "in/a.png": "out/in/a.png",
        "other/in/a.png": "out/in_2/a.png",
        "b.png": "out/b.png",
    }


def test_results_of_the_same_stem_are_named_apart_whatever_else_is_there(touch: Touch) -> None:
    touch("in/p.jpg", "in/p.bmp", "in/p.b.jpg", "in/q.jpg", "one/p.tif", "two/p.tif", "three/p.tif")
    assert targets(plan("in", format="png")) == {
        "in/p.jpg": "out/p_jpg.png",
        "in/p.bmp": "out/p_bmp.png",
        "in/p.b.jpg": "out/p.b.png",
        "in/q.jpg": "out/q.png",
    }
    assert list(targets(plan("one/p.tif", "two/p.tif", "three/p.tif", format="png")).values()) == [
        "out/p.png",
        "out/p_tif.png",
        "out/p_2.png",
    ]


def test_a_single_photo_may_name_its_result_and_streams_are_dashes(touch: Touch) -> None:
    touch("a.png", "b.png")
    assert plan("a.png", output="large.jpg") == [Job(Path("a.png"), Path("large.jpg"))]
    assert plan("a.png", output="-") == [Job(Path("a.png"), STREAM)]
    assert plan("-", format="jpg") == [Job(STREAM, Path("out/stdin.jpg"))]
    assert plan("-", output="-") == [Job(STREAM, STREAM)]
    for inputs in (("a.png", "b.png"), ("*.png",), (".",)):
        for output in ("large.jpg", "-"):
            with pytest.raises(PlanError, match=f"--output {output} takes one photo; give a folder for several"):
                plan(*inputs, output=output)


def test_patterns_are_expanded_unless_a_file_has_that_name(touch: Touch) -> None:
    touch("a1.png", "a2.png", "deep/er/a3.png", "what?.png")
    assert [job.source.name for job in plan("a*.png")] == ["a1.png", "a2.png"]
    assert [job.source.name for job in plan("**/a*.png")] == ["a1.png", "a2.png", "a3.png"]
    assert [job.source.name for job in plan("what?.png")] == ["what?.png"]
    with pytest.raises(PlanError, match=r"b\*.png is not there; give image files, folders, or a pattern that fits"):
        plan("b*.png")


def test_listed_files_keep_their_folders_and_a_missing_one_does_not_stop_the_others(touch: Touch) -> None:
    root = touch("in/a.png", "in/deep/b.png", "c.png")
    jobs = plan(listed=["in/a.png", "in/deep/b.png", "in/none.png", str(root / "c.png"), "../c.png"])
    assert [str(job.target) for job in jobs] == [
        "out/in/a.png",
        "out/in/deep/b.png",
        "out/in/none.png",
        "out/c.png",
        "out/c_png.png",
    ]
    assert [bool(job.problem) for job in jobs] == [False, False, True, False, True]
    assert "it is not there" in jobs[2].problem


def test_a_listed_photo_is_not_replaced_by_the_result_of_one_beside_it(touch: Touch) -> None:
    touch("in/a.jpg", "in/a.png")
    jobs = plan(output=".", listed=["in/a.jpg", "in/a.png"], format="png", existing="overwrite")
    assert all("beside it exists and may be a photo too; give a --suffix" in job.problem for job in jobs[:1])


@pytest.mark.parametrize(
    ("inputs", "output", "options"),
    [
        (("a.png",), ".", {}),
        (("in/b.png",), "in", {}),
        (("in/b.jpg", "in/b.png"), "in", {"format": "png"}),
        (("in/b.jpg", "in"), "in", {"format": "png"}),
    ],
)
def test_no_result_replaces_one_of_the_photos(
    touch: Touch, inputs: tuple[str, ...], output: str, options: dict[str, Any]
) -> None:
    touch("a.png", "in/b.png", "in/b.jpg")
    with pytest.raises(PlanError, match="is one of the photos; choose another --output or a --suffix"):
        plan(*inputs, output=output, existing="overwrite", **options)


def test_results_inside_the_folder_are_no_photos_and_may_be_replaced(touch: Touch) -> None:
    touch("in/a.png", "in/out/a.png", "in/out/old.png", "in/output/b.png")
    jobs = plan("in", output="in/out", existing="overwrite")
    assert targets(jobs) == {"in/a.png": "in/out/a.png", "in/output/b.png": "in/out/output/b.png"}


def test_what_is_there_is_refused_skipped_or_replaced(touch: Touch) -> None:
    touch("in/a.png", "in/b.png", "out/b.png")
    with pytest.raises(PlanError, match=r"out/b.png exists; give --overwrite, --skip-existing"):
        plan("in")
    assert [job.skipped for job in plan("in", existing="skip")] == [False, True]
    assert [job.skipped for job in plan("in", existing="overwrite")] == [False, False]


def test_kinds_that_cannot_be_read_are_named_and_what_is_no_image_is_counted(touch: Touch) -> None:
    touch("in/a.png", "in/raw.cr2", "in/notes.txt", "in/b.xmp", "in/c", "in/d.mp3", "in/.hidden")
    given = Plan(("in",), Path("out"))
    problems = {job.source.name: job.problem for job in given.jobs()}
    assert problems["a.png"] == "" and problems["raw.cr2"]
    assert given.passed_over.number == 5
    assert str(given.passed_over) == ".hidden, b.xmp, c and 2 more"


def test_a_folder_without_images_is_an_error(touch: Touch) -> None:
    touch("in/notes.txt")
    with pytest.raises(PlanError, match=r"in holds no image; allowed are files ending in .avif"):
        plan("in")


@given(st.integers(1, 7))
def test_shards_are_disjoint_and_cover_all_whatever_is_there_already(number: int) -> None:
    names = [f"folder/{i}.png" for i in range(40)]
    shards = [plan(listed=names, shard=(i + 1, number)) for i in range(number)]
    assert sorted(str(job.source) for shard in shards for job in shard) == sorted(names)


def test_another_shards_results_are_in_nobodys_way(touch: Touch) -> None:
    touch(*(f"in/{i}.png" for i in range(20)))
    first = plan("in", shard=(1, 2))
    touch(*(str(job.target) for job in first))
    second = plan("in", shard=(2, 2))
    assert 0 < len(first) < 20 and len(first) + len(second) == 20


def test_the_limit_counts_what_is_to_be_restored(touch: Touch) -> None:
    touch(*(f"in/{i}.png" for i in range(6)), "out/0.png", "in/1.cr2")
    jobs = plan("in", limit=2, existing="skip")
    assert [job.source.name for job in jobs] == ["0.png", "1.cr2", "1.png", "2.png"]


def test_a_plan_of_endless_files_begins_at_once() -> None:
    def endless() -> Any:
        number = 0
        while True:
            number += 1
            yield f"{number}.png"

    jobs = islice(Plan((), Path("out"), listed=endless()).jobs(), 3)
    assert [str(job.target) for job in jobs] == ["out/1.png", "out/2.png", "out/3.png"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_of_names_is_read_by_lines_or_by_nul(tmp_path: Path, end: bytes) -> None:
    names = ["a b.png", "é.png", os.fsdecode(b"\xff.png"), "x" * 200_000 + ".png"]
    for last in (b"", end):
        (tmp_path / "list").write_bytes(end.join(map(os.fsencode, names)) + last)
        assert list(read_list(str(tmp_path / "list"))) == names
    (tmp_path / "empty").touch()
    assert list(read_list(str(tmp_path / "empty"))) == []
    with pytest.raises(PlanError, match=r"--files-from .*none cannot be read: No such file"):
        list(read_list(str(tmp_path / "none")))


def test_a_list_may_be_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.png\nb.png")))
    assert list(read_list("-")) == ["a.png", "b.png"]
