"""The direction of imports: the contracts of pyproject.toml, and no circle of files."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def test_imports_run_in_one_direction() -> None:
    run = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_file_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("ipt_triton", cache_dir=None)  # imports for type checking count
    assert {"ipt_triton.train.model.ipt", "ipt_triton.client.photo"} <= graph.modules  # links were followed
    TopologicalSorter({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}).prepare()
