"""The libraries that build and run engines: TensorRT 8.6 to 11, and TensorRT for RTX.

Both have nearly the same Python module. TensorRT builds for the GPU that it runs on; TensorRT for RTX builds ahead of
time for any card it knows, without a GPU, and compiles the kernels when they are first used. They are imported when
first needed; Python 3.9 syntax.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from types import ModuleType

from .metadata import EngineError, version_numbers  # relative: see runner.py

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"


@dataclass(frozen=True)
class _Package:
    title: str
    modules: tuple[str, ...]
    oldest: tuple[int, ...]
    remedy: str


LIBRARIES = {
    TENSORRT: _Package("TensorRT", ("tensorrt",), (8, 6), "pip install tensorrt, or use an NGC container"),
    RTX: _Package(
        "TensorRT for RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),  # of NVIDIA's archive, and of the wheels
        (1, 4),
        "pip install tensorrt-rtx-cu12-libs tensorrt-rtx-cu12-bindings",
    ),
}
"""By the name that `--library` takes and that descriptions of plans carry."""


def library_of(runtime: str) -> str:
    """The library that builds and runs the engines of a runtime, as `ipt-export` calls them."""
    return RTX if runtime == RTX else TENSORRT


@dataclass(frozen=True)
class Library:
    """A library that was found.

    Attributes:
        name: a key of `LIBRARIES`.
        version: its own, such as `10.13.3.9`.
        module: its Python module.
    """

    name: str
    version: str
    module: ModuleType

    def __str__(self) -> str:
        return f"{LIBRARIES[self.name].title} {self.version}"

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for cards that are not here."""
        return self.name == RTX

    @property
    def strongly_typed(self) -> bool:
        """Whether the types of the graph alone say what is computed how; TensorRT 8.6 is told by flags."""
        return self.name == RTX or version_numbers(self.version) >= (10,)


def load_library(name: str = TENSORRT) -> Library:
    """Import a library.

    Raises:
        EngineError: it is not installed, does not load, or is too old.
    """
    package = LIBRARIES[name]
    for module in package.modules:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name not in package.modules:
                raise EngineError(f"{package.title} lacks the module {error.name}: install it") from error
            continue
        except (ImportError, OSError) as error:
            raise EngineError(
                f"{package.title} is installed and does not load ({' '.join(str(error).split())}): "
                "install the libraries of the same version"
            ) from error
        version = str(found.__version__)
        if version_numbers(version)[:2] < package.oldest:
            oldest = ".".join(map(str, package.oldest))
            raise EngineError(f"{package.title} {version} is too old; {oldest} or newer is needed: {package.remedy}")
        return Library(name, version, found)
    raise EngineError(f"{package.title} is not installed: {package.remedy}")


def known_capabilities(library: Library) -> list[str]:
    """Compute capabilities that a library builds for ahead of time, such as `8.9`, in rising order."""
    lib = library.module
    found = [re.fullmatch(r"SM(\d+)(\d)", name) for name in lib.ComputeCapability.__members__]
    return sorted((f"{m[1]}.{m[2]}" for m in found if m), key=version_numbers)


def capability_member(library: Library, capability: str) -> object:
    """The library's own value for a compute capability.

    Raises:
        EngineError: it does not build for this one.
    """
    known = known_capabilities(library)
    if capability not in known:
        raise EngineError(
            f"{library} does not build for compute capability {capability}; it builds for {', '.join(known)}"
        )
    lib = library.module
    return getattr(lib.ComputeCapability, "SM" + capability.replace(".", ""))
