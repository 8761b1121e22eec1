"""Compiles PyCUDA for the tests that run on a stand-in for a GPU, without CUDA and without installing anything.

    python tests/stand_in/build_pycuda.py build/pycuda

In the folder lie PyCUDA's source distribution and a wheel of CUDA's headers (see the Makefile). The package `pycuda`
appears beside them, whole or not at all. The compiler alone makes it and not PyCUDA's own setup, which optimises and
compiles one file after the other.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

DEFINES = {  # as PyCUDA's setup has them
    "BOOST_ALL_NO_LIB": 1,
    "BOOST_MULTI_INDEX_DISABLE_SERIALIZATION": 1,
    "BOOST_PYTHON_SOURCE": 1,
    "BOOST_THREAD_BUILD_DLL": 1,
    "BOOST_THREAD_DONT_USE_CHRONO": 1,
    "PYGPU_PACKAGE": "pycuda",
    "PYGPU_PYCUDA": 1,
    "boost": "pycudaboost",
}
PROFILER = """\
#include <cuda.h>
typedef enum { CU_OUT_KEY_VALUE_PAIR, CU_OUT_CSV } CUoutput_mode;
extern "C" CUresult cuProfilerInitialize(const char *, const char *, CUoutput_mode);
extern "C" CUresult cuProfilerStart(void);
extern "C" CUresult cuProfilerStop(void);
"""
"""The header cudaProfiler.h, which the wheel of CUDA's headers lacks."""


def extension(folder: Path, name: str) -> Path:
    """Where a compiled module of PyCUDA lies, for this Python."""
    return folder / "pycuda" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(folder: Path) -> None:
    """Compile what `folder` holds into `folder`/pycuda; raises FileNotFoundError or subprocess.CalledProcessError."""
    sdist, headers = (next(folder.glob(pattern), None) for pattern in ("pycuda-*.tar.gz", "nvidia_cuda_runtime*.whl"))
    if sdist is None or headers is None:
        raise FileNotFoundError(f"{folder} lacks PyCUDA's source distribution or the wheel of CUDA's headers")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name).resolve()
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        source = next(work.glob("pycuda-*"))
        with zipfile.ZipFile(headers) as archive:
            archive.extractall(work, [member for member in archive.namelist() if member.endswith(".h")])
        (work / "cudaProfiler.h").write_text(PROFILER)
        boost = source / "bpl-subset" / "bpl_subset"
        (boost / "pycudaboost").symlink_to("boost")
        system = [sysconfig.get_path("include"), np.get_include(), next(work.glob("nvidia/*/include"))]
        includes = [f"-I{path}" for path in (*system, work, source / "src" / "cpp", boost)]
        flags = [*includes, *(f"-D{key}={value}" for key, value in DEFINES.items())]

        wrapper, cpp = source / "src" / "wrapper", source / "src" / "cpp"
        # Boost as one file: nearly all the time goes into its headers.
        whole_boost = work / "boost.cpp"
        whole_boost.write_text("".join(f'#include "{path}"\n' for path in sorted(_boost_sources(boost / "libs"))))
        driver = [
            wrapper / "wrap_cudadrv.cpp",
            whole_boost,
            wrapper / "mempool.cpp",
            cpp / "cuda.cpp",
            cpp / "bitlog.cpp",
        ]
        struct = wrapper / "_pvt_struct_v3.cpp"
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # what takes longest comes first
            *driver_objects, struct_object = pool.map(lambda path: _compile(path, flags), [*driver, struct])
        # The driver's library that PyCUDA names is found when it is imported; here it is an empty one.
        stub = work / "libcuda.so"
        (work / "empty.c").touch()
        _run("cc", "-shared", "-Wl,-soname,libcuda.so.1", work / "empty.c", "-o", stub)
        _link(driver_objects, extension(source, "_driver"), "-Wl,--no-as-needed", str(stub))
        _link([struct_object], extension(source, "_pvt_struct"))
        shutil.rmtree(folder / "pycuda", ignore_errors=True)
        (source / "pycuda").rename(folder / "pycuda")


def _boost_sources(libraries: Path) -> Iterator[Path]:
    """Those that PyCUDA's setup compiles."""
    for path in libraries.glob("*/src/**/*.cpp"):
        if path.parts[-3:-1] != ("thread", "src") and "win32" not in path.parts and path.name != "once_atomic.cpp":
            yield path


def _compile(path: Path, flags: Sequence[str]) -> Path:
    target = path.with_suffix(".o")
    _run("c++", "-std=c++14", "-O0", "-w", "-fPIC", *flags, "-c", path, "-o", target)
    return target


def _link(objects: Sequence[Path], target: Path, *flags: str) -> None:
    _run("c++", "-shared", *objects, *flags, "-o", target)


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]))
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"PyCUDA was not compiled: {error}")
