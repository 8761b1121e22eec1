"""What an installation holds, and what its parts load: the wheel, the client alone, the manifest alone."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "train", "export", "client", "benchmarks", "triton_models")


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_everything_that_it_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files beside its sources
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "."]
    run = subprocess.run([*build, "--wheel-dir", str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    [wheel] = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        files = archive.infolist()
    names = {file.filename for file in files}
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {"ipt_triton", f"ipt_triton-{version}.dist-info"}
    assert not [file.filename for file in files if stat.S_ISLNK(file.external_attr >> 16)]
    wanted = ["py.typed", "export/parts/tiles.png", "export/repository/router.py", "photos/dog.png"]
    wanted += [f"{room}/__init__.py" for room in ("train", "export", "client", "benchmarks")]
    assert {f"ipt_triton/{name}" for name in wanted} <= names
    photos = {path.name for path in (ROOT / "src" / "ipt_triton" / "photos").iterdir()}
    assert photos == {Path(name).name for name in names if name.startswith("ipt_triton/photos/")}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("from ipt_triton import RestorationClient", ["torch", "openvino", "onnx", "onnxruntime", "pytriton"]),
        ("import ipt_triton.manifest", ["numpy", "torch", "openvino", "onnx", "onnxruntime"]),
    ],
)
def test_the_client_and_the_manifest_load_nothing_heavy(statement: str, heavy: list[str]) -> None:
    code = f"{statement}; import sys; print(*sorted(set({heavy}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
