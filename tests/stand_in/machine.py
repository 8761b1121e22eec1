"""A machine with a stand-in for a GPU: what child processes need so that PyCUDA and TensorRT find one.

Three pieces are needed, or the tests are skipped: PyCUDA compiled from source (`build/pycuda`) and TensorRT for RTX,
which `make test` gets, and a C compiler for the driver (`libcuda.c`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.small_engines import TypedParts
from stand_in.build_pycuda import extension

from ipt_triton.export.engines.metadata import plan_path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYCUDA = ROOT / "build" / "pycuda"
BUILDER = ROOT / "export" / "engines" / "build.py"
CAPABILITY = "8.9"
TIMEOUT_S = 120


class Missing(Exception):
    """A piece that the stand-in needs is not there; the message says which."""


@dataclass(frozen=True)
class StandIn:
    """The stand-in GPU.

    Attributes:
        driver: the library libcuda.so.1, in a folder of its own.
        packages: folders for Python's path: the project, the tests, what plays TensorRT, and PyCUDA.
    """

    driver: Path
    packages: tuple[Path, ...]

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a process that sees the GPU."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(self.driver.parent), os.getenv("LD_LIBRARY_PATH")])),
            "PYTHONPATH": os.pathsep.join(map(str, self.packages)),
            "OMP_NUM_THREADS": "1",
            **variables,
        }

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments on the machine."""
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def play(self, scene: str, *arguments: object, **variables: str) -> Any:
        """What a function of `scenes.py` returns, called in a process of its own."""
        done = self.run("-m", "stand_in.scenes", scene, *arguments, **variables)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    def environment_for_triton(self, folder: Path) -> Path:
        """A virtual environment whose Python, and no other program, sees the GPU; returns that Python.

        Triton's Python models look at no PYTHONPATH, and Triton itself must not find the driver: it would ask for more.
        """
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        lines = [*self.packages, *(path for path in map(Path, sys.path) if path.name == "site-packages")]
        load = f"import ctypes; ctypes.CDLL({str(self.driver)!r}, mode=ctypes.RTLD_GLOBAL)"
        (packages / "stand_in.pth").write_text("\n".join([load, *map(str, lines)]) + "\n")
        return folder / "bin" / "python"


@dataclass(frozen=True)
class BuiltEngines:
    """Engines that `ipt-export engines` built on the stand-in.

    Attributes:
        build: the run of the command.
    """

    parts: TypedParts
    folder: Path
    build: subprocess.CompletedProcess[str]

    def plan(self, part: str) -> Path:
        return plan_path(self.folder / part, CAPABILITY)

    @property
    def descriptions(self) -> list[dict[str, Any]]:
        """What the command printed of each."""
        return json.loads(self.build.stdout)


def make_stand_in(folder: Path) -> StandIn:
    """Compile the driver into `folder`; raises Missing."""
    pycuda = extension(PYCUDA, "_driver")
    if not pycuda.is_file():
        raise Missing(f"{pycuda.relative_to(ROOT)} is missing: make build/pycuda")
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        raise Missing("TensorRT for RTX is not installed: pip install 'ipt-triton[rtx]'")
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            raise Missing(f"there is no C compiler ({tool})")
    return StandIn(
        _compile_driver(folder, pycuda),
        (ROOT / "src", ROOT / "tests", HERE / "modules", PYCUDA),
    )


def _compile_driver(folder: Path, pycuda: Path) -> Path:
    """The driver; functions of CUDA's that PyCUDA wants and `libcuda.c` lacks are there and refuse."""
    library, rest = folder / "libcuda.so.1", folder / "rest.c"
    command = ["cc", "-std=c11", "-O1", "-shared", "-fPIC", "-pthread", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    source = str(HERE / "libcuda.c")
    subprocess.run([*command, "-Wall", "-Wextra", "-Werror", source], check=True)
    played = _functions(library, "--defined-only")
    wanted = _functions(pycuda, "--undefined-only")
    # 801 is CUDA_ERROR_NOT_SUPPORTED.
    rest.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in sorted(wanted - played)))
    subprocess.run([*command, source, str(rest)], check=True)
    return library


def _functions(library: Path, which: str) -> set[str]:
    listed = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=True).stdout
    return {name for name in (line.split()[-1] for line in listed.splitlines()) if name.startswith("cu")}
