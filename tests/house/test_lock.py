"""requirements.lock names what a machine installs to serve, each file by its hash, and no machine and no index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "requirements.lock").read_text().replace("\\\n", "").splitlines()
LOCKED = [line for line in LINES if not line.startswith("#")]


def test_each_line_is_one_version_with_its_hashes() -> None:
    for line in LOCKED:
        words = re.match(r"[a-z0-9-]+==[^ ;]+( ; [^#]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)$", line)
        assert words, line


def test_it_fulfils_what_the_package_and_its_server_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = [Requirement(re.sub(r"\s--hash=\S+", "", line).strip()) for line in LOCKED]
    for wanted in map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["serve"])):
        found = [p for p in pinned if p.name == wanted.name]
        assert found, wanted.name
        assert all(next(iter(p.specifier)).version in wanted.specifier for p in found), wanted
