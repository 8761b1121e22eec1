"""The pages and examples say what is true: commands, flags, names, links; and those that need only a server are run."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.support import Served, read_image
from PIL import Image

from ipt_triton import RestorationClient, commands

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4,}.*)?\n)+", re.MULTILINE)
FILES = {"client/restore.py": "ipt-restore", "export/engines/build.py": "ipt-export engines"}
WITH_SUBCOMMANDS = {"ipt-train", "ipt-benchmark"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[tuple[str, str]]:
    """Code blocks of a page as (language, text); the language of an indented one is empty."""
    text = path.read_text()
    if path.suffix == ".py":
        return [("", found) for found in INDENTED.findall(ast.get_docstring(ast.parse(text)) or "")]
    return [*FENCED.findall(text), *(("", found) for found in INDENTED.findall(FENCED.sub("", text)))]


def command_lines(path: Path) -> list[str]:
    """The project's commands in a page's blocks, each from its name on, without what follows it on the line."""
    lines = "\n".join(text for language, text in blocks(path) if language in ("", "bash"))
    found = []
    for line in lines.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\s\|\s", re.sub(r"(^|\s)#.*", "", line)):
            command = re.sub(r"^\s*(PYTHONPATH=src |\.venv/bin/)*", "", command)
            command = re.sub(r"^(torchrun .*?|python3? )-m ipt_triton\.(train|export)\b", r"ipt-\2", command)
            command = re.sub(
                r"^python (client/restore|export/engines/build)\.py", lambda m: FILES[m[1] + ".py"], command
            )
            if command.startswith("ipt-"):
                found.append(command.strip())
    return found


COMMANDS = [
    pytest.param(line, id=f"{name_of(path)}: {line}") for path in [*PAGES, *EXAMPLES] for line in command_lines(path)
]


@cache
def help_of(*words: str) -> str:
    """What a command, or a sub-command of it, prints for `--help`."""
    main = getattr(commands, words[0].removeprefix("ipt-"))
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [*words, "--help"])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0, f"{' '.join(words)} is not a command"
    return output.getvalue()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_exists_and_knows_its_flags(line: str) -> None:
    words = shlex.split(line)
    words = words[: words.index("--")] if "--" in words else words  # what follows is for tritonserver
    exporting = words[0] == "ipt-export" and words[1] in ("parts", "engines", "repository")
    text = help_of(*words[: 2 if words[0] in WITH_SUBCOMMANDS or exporting else 1])
    known = set(
        re.findall(r"^ +(?:-\w(?: \S+)?, )?(--[a-z][a-z0-9-]*)", text, re.MULTILINE)
    )  # not what its examples show
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert flags <= known, f"{flags - known} unknown"


def test_enough_commands_are_found_for_the_test_above_to_mean_something() -> None:
    lines = [str(parameter.values[0]) for parameter in COMMANDS]
    assert {line.split()[0] for line in lines} >= {"ipt-restore", "ipt-serve", "ipt-train", "ipt-export"}
    assert len(lines) > 50


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [text for _, text in blocks(path)] + re.findall(r"`([^`\n]+)`", path.read_text())
    assert {name for text in code for name in re.findall(r"\bmake ([a-z]+)", text)} <= targets


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_and_pictures_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", path.read_text())):
        if re.match(r"https?:", target):
            continue
        name, _, heading = target.partition("#")
        there = path.parent / name if name else path
        assert there.is_file(), f"{target} leads nowhere"
        titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in titles}


def python_of(path: Path) -> list[str]:
    return [path.read_text()] if path.suffix == ".py" else [text for kind, text in blocks(path) if kind == "python"]


SNIPPETS = [pytest.param(text, id=name_of(path)) for path in [*PAGES, *EXAMPLES] for text in python_of(path)]


@pytest.mark.parametrize("text", SNIPPETS)
def test_python_compiles_and_imports_names_that_exist(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert all(importlib.import_module(alias.name) for alias in node.names)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(read_image("kitten")[:90, :120]).save(path)
    return path


@pytest.mark.server
@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "clients.md"], ids=name_of)
def test_the_snippets_of_the_client_run(served: Served, photo: Path, path: Path) -> None:
    snippets = [text.replace("localhost:8001", served.server.grpc_url) for text in python_of(path)]
    assert snippets
    for text in snippets:
        subprocess.run([sys.executable, "-c", text], cwd=photo.parent, check=True, timeout=120)
    assert "README" not in path.name or Image.open(photo.parent / "restored.png").size == (240, 180)


@pytest.mark.server
def test_the_example_of_a_client_restores_a_photograph(served: Served, photo: Path) -> None:
    script = ROOT / "examples" / "restore.py"
    words = [photo, "sr_x3", photo.parent / "restored.png", "--url", served.server.grpc_url]
    subprocess.run([sys.executable, script, *map(str, words)], check=True, timeout=120)
    assert Image.open(photo.parent / "restored.png").size == (360, 270)


@pytest.mark.server
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_request_with_curl_restores_a_photograph(served: Served, photo: Path) -> None:
    folder = photo.parent
    Image.open(photo).save(folder / "photo.ppm")
    (script,) = [text for kind, text in blocks(ROOT / "docs" / "clients.md") if kind == "bash"]
    script = script.replace("localhost:8000", served.server.http_url)
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, check=True, timeout=120)
    with RestorationClient(served.server.grpc_url) as client:
        expected = client.restore(np.asarray(Image.open(folder / "photo.ppm")), "sr_x2")
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "restored.ppm")), expected)
