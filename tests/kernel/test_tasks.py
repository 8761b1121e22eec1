"""The task table: official ids and names, checks, and how a task is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipt_triton.tasks import KNOWN_TASKS, OFFICIAL_TASKS, Task, TaskError, find_task, task_table


def test_the_official_tasks_have_the_ids_and_names_of_the_six_task_checkpoint() -> None:
    assert [(t.id, t.name, t.kind, t.scale, t.sigma) for t in OFFICIAL_TASKS] == [
        (0, "sr_x2", "sr", 2, 0),
        (1, "sr_x3", "sr", 3, 0),
        (2, "sr_x4", "sr", 4, 0),
        (3, "derain", "derain", 1, 0),
        (4, "denoise_30", "denoise", 1, 30),
        (5, "denoise_50", "denoise", 1, 50),
    ]


@given(st.permutations(OFFICIAL_TASKS), st.integers(1, 6))
def test_a_table_is_sorted_by_id_and_keeps_the_ids_it_was_given(order: list[Task], count: int) -> None:
    table = task_table(order[:count])
    assert [t.id for t in table] == sorted(t.id for t in order[:count])
    assert set(table) == set(order[:count])


def test_a_table_of_plain_dictionaries_is_read() -> None:
    assert task_table(t.to_dict() for t in KNOWN_TASKS) == KNOWN_TASKS


def test_a_table_with_the_tasks_of_earlier_versions_is_read() -> None:
    old = [Task(6, "dejpeg_40", "dejpeg", quality=40), Task(7, "deblur", "deblur", sigma=1.6)]
    assert task_table(t.to_dict() for t in old) == tuple(old)


def test_a_table_from_before_there_was_jpeg_is_read() -> None:
    old = [{k: v for k, v in t.to_dict().items() if k != "quality"} for t in OFFICIAL_TASKS]
    assert task_table(old) == OFFICIAL_TASKS


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "at least one task"),
        ([OFFICIAL_TASKS[0], Task(0, "other", "sr", 3)], "id 0 occurs twice"),
        ([OFFICIAL_TASKS[0], Task(9, "sr_x2", "sr", 2)], "name 'sr_x2' occurs twice"),
        ([{"id": 1, "name": "a", "kind": "sr", "colour": "red"}], "colour"),
        ([{"id": 1, "kind": "sr"}], "name"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(entries: list[Task], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_table(entries)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": -1}, "-1"),
        ({"id": True}, "True"),
        ({"id": "3"}, "'3'"),
        ({"name": "Sr_x2"}, "'Sr_x2'"),
        ({"name": "2x"}, "'2x'"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": ""}, "''"),
        ({"kind": "blur"}, "'blur'.*sr, derain, denoise"),
        ({"scale": 5}, r"scale 5 .*\(1, 2, 3, 4\)"),
        ({"scale": 0}, "scale 0"),
        ({"sigma": -1.0}, "sigma -1.0"),
        ({"kind": "deblur"}, "sigma above 0"),
        ({"kind": "dejpeg", "quality": -1}, "quality -1 .* 0 to 100"),
        ({"kind": "dejpeg", "quality": 101}, "quality 101"),
        ({"quality": 40}, "quality 40 .* 0 otherwise"),
    ],
)
def test_a_task_that_cannot_be_is_refused_naming_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task(**{"id": 0, "name": "sr_x2", "kind": "sr", "scale": 2, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("task", OFFICIAL_TASKS, ids=lambda t: t.name)
def test_a_task_is_found_by_id_by_digits_and_by_name(task: Task) -> None:
    assert all(find_task(OFFICIAL_TASKS, key) is task for key in (task.id, str(task.id), task.name))


def test_an_id_is_not_a_place_in_the_table() -> None:
    assert find_task(OFFICIAL_TASKS[5:], 5).name == "denoise_50"
    with pytest.raises(TaskError, match="unknown task 0; there are: 5 denoise_50"):
        find_task(OFFICIAL_TASKS[5:], 0)


@pytest.mark.parametrize("key", [6, -1, "6", "sr_x5", "", "SR_X2"])
def test_an_unknown_task_is_refused_with_those_there_are(key: int | str) -> None:
    with pytest.raises(TaskError, match=r"unknown task .*0 sr_x2, .*5 denoise_50"):
        find_task(OFFICIAL_TASKS, key)
