"""The page that compares us names tests that exist, sources for what it says of others, and our own figures."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rivals.md").read_text()
NAMED = re.compile(r"`([^`\s]+\.py)(?:::([^`\s]+))?`")
RIVALS = ("Real-ESRGAN", "Upscayl", "waifu2x", "chaiNNer", "Topaz")
NOTHING_TO_SHOW = ("no", "not found", "—")
TASKS = {
    "enlarging": "sr_x2 sr_x3 sr_x4",
    "noise of unknown strength": "denoise denoise_30 denoise_50",
    "traces of JPEG": "dejpeg",
}
TASKS |= {"rain": "derain", "several faults of unknown cameras": "real real_x2 real_x4 auto"}


@cache
def names_in(path: Path) -> set[str]:
    """Names of the tests of a file; none where there is no file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text()).body if path.is_file() else []
    return {node.name for node in body if isinstance(node, functions) and node.name.startswith("test_")}


def unknown_tests(text: str) -> list[str]:
    """Tests that a text names and that there are not; a file that is named alone must have some."""
    return [
        f"{name}::{test}"
        for name, test in NAMED.findall(text)
        if not (found := names_in(ROOT / name)) or (test and test not in found)
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows() -> dict[int, list[str]]:
    """What the table says: the number of a row, and its cells from the question on."""
    found = [cells(line) for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    return {int(first): rest for first, *rest in found}


def notes() -> dict[int, str]:
    section = PAGE.split("\n## Notes\n")[1].split("\n[sw]:")[0]
    return {int(number): text for number, text in re.findall(r"^(\d+)\. (.*(?:\n +.*)*)", section, re.MULTILINE)}


def test_every_test_that_the_page_names_exists() -> None:
    assert not unknown_tests(PAGE)
    assert len(NAMED.findall(PAGE)) > 60


@pytest.mark.parametrize(
    "name",
    [
        "tests/house/test_rivals.py::test_every_test_that_the_page_names_exist",
        "tests/house/test_rival.py::test_every_test_that_the_page_names_exists",
        "tests/house/test_rivals.py::unknown_tests",
        "tests/helpers/support.py",
    ],
)
def test_a_misspelt_name_is_noticed(name: str) -> None:
    known = "`tests/house/test_rivals.py::test_every_test_that_the_page_names_exists`"
    assert unknown_tests(f"{known} `{name}`") == [name if "::" in name else f"{name}::"]


def test_each_row_has_a_note_with_tests_of_ours_and_sources_for_the_others() -> None:
    table, explained = rows(), notes()
    assert list(table) == list(explained) == list(range(1, len(table) + 1)) and len(table) > 30
    for number, (question, ours, *others) in table.items():
        note = explained[number]
        assert "::test_" in note, f"{question}: no test for {ours}"
        for rival, cell in zip(RIVALS, others, strict=True):
            assert cell in NOTHING_TO_SHOW or f"{rival}:" in note, f"{question}: no source for {rival}"


def test_every_source_is_defined_once_and_used() -> None:
    defined = re.findall(r"^\[([\w-]+)\]: https://", PAGE, re.MULTILINE)
    assert len(defined) == len(set(defined))
    assert set(defined) == set(re.findall(r"\]\[([\w-]+)\]", PAGE))


def test_the_figures_are_those_of_the_results() -> None:
    lines = [cells(line.replace("**", "")) for line in (ROOT / "docs" / "results.md").read_text().splitlines()]
    head = next(line for line in lines if "PSNR-Y" in line)
    results = {(line[0], line[1].split(",")[0]): dict(zip(head, line, strict=True)) for line in lines if len(line) == 6}
    compared = re.findall(r"^\| (\w+) \| (\w+), (PSNR-\w+) \| ([\d.]+) \| \*\*([\d.]+)\*\* \|", PAGE, re.MULTILINE)
    assert len(compared) == 4
    for task, photographs, measure, classical, ours in compared:
        assert results[task, photographs][measure] == f"{ours} ({classical})"


def test_the_tasks_of_the_page_are_those_of_the_weights_of_the_package_and_there_is_no_other() -> None:
    config = json.loads((ROOT / "weights" / "ipt-tiny" / "config.json").read_text())
    served = {task["name"] for task in config["architecture"]["tasks"]}
    assert served == set(" ".join(TASKS.values()).split())
    assert TASKS.keys() <= {question for question, *_ in rows().values()}


def test_licence_and_platform_are_those_of_the_package() -> None:
    said = {question: ours for question, ours, *_ in rows().values()}
    project = (ROOT / "pyproject.toml").read_text()
    assert f'license = "{said["licence"]}"' in project
    assert said["where it runs"].startswith("Linux on x86-64")
    assert re.search(r'"nvidia-pytriton==.*; platform_machine == \'x86_64\' and sys_platform == \'linux\'"', project)
