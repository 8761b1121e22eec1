"""The GPU as PyCUDA reaches it: the CUDA context, CUDA graphs.

PyCUDA is imported when first needed; Python 3.9 syntax.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from .metadata import EngineError, Gpu  # relative: see runner.py


def require_pycuda() -> None:
    """Import PyCUDA; raises EngineError when it is not installed or finds no driver."""
    try:
        import pycuda.driver  # noqa: F401
    except ModuleNotFoundError as error:
        raise EngineError("PyCUDA is not installed: pip install pycuda (it needs CUDA's headers)") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"PyCUDA does not load ({' '.join(str(error).split())}): install an NVIDIA driver, or run on a GPU machine"
        ) from error


@functools.cache
def _primary_context(device: int) -> Any:
    """A GPU's primary context, held until the process ends.

    PyCUDA leaves a primary context that it gives back on CUDA's stack of contexts (cuda.hpp, `context::detach`), so
    giving it back and taking it again within a process could leave a dead one current.
    """
    import pycuda.driver as cuda

    return cuda.Device(device).retain_primary_context()


class GpuSession:
    """The primary CUDA context of a GPU, which TensorRT uses too; `with session:` makes it current.

    Attributes:
        gpu: its name and compute capability.
        device: its number.
    """

    def __init__(self, device: int = 0):
        """Raises EngineError: no PyCUDA, no driver, no such GPU."""
        require_pycuda()
        import pycuda.driver as cuda

        try:
            cuda.init()
            count = cuda.Device.count()
        except cuda.Error as error:
            raise EngineError(
                f"no GPU can be used ({error}): run on a machine with an NVIDIA GPU and driver, or export for OpenVINO"
            ) from error
        if not 0 <= device < count:
            raise EngineError(f"there is no GPU {device}; this machine has {count}: choose one from 0 to {count - 1}")
        self.device = device
        handle = cuda.Device(device)
        major, minor = handle.compute_capability()
        self.gpu = Gpu(handle.name(), f"{major}.{minor}")
        self._primary = _primary_context(device)

    def __enter__(self) -> GpuSession:
        self._primary.push()
        return self

    def __exit__(self, *_: object) -> None:
        self._primary.pop()


class GraphError(EngineError):
    """A call about CUDA graphs that the driver refused."""


class CudaGraphs:
    """Capture and launch of CUDA graphs through the driver library: PyCUDA (2026.1) has no call for either."""

    THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile

    def __init__(self) -> None:
        """Raises EngineError: the driver library is missing, or too old to have graphs."""
        try:
            self._driver = ctypes.CDLL("libcuda.so.1")
            pointer, handle = ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p
            for name, arguments in (
                ("cuStreamBeginCapture_v2", [handle, ctypes.c_int]),
                ("cuStreamEndCapture", [handle, pointer]),
                ("cuGraphInstantiateWithFlags", [pointer, handle, ctypes.c_ulonglong]),
                ("cuGraphLaunch", [handle, handle]),
                ("cuGraphDestroy", [handle]),
                ("cuGraphExecDestroy", [handle]),
                ("cuGetErrorString", [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)]),
            ):
                getattr(self._driver, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise EngineError(f"CUDA graphs are not available: {error}") from error

    def begin(self, stream: int) -> None:
        self._check("cuStreamBeginCapture_v2", self._driver.cuStreamBeginCapture_v2(stream, self.THREAD_LOCAL))

    def end(self, stream: int) -> ctypes.c_void_p:
        """End a capture and return the executable graph; raises GraphError when the work cannot be captured."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._check("cuStreamEndCapture", self._driver.cuStreamEndCapture(stream, ctypes.byref(graph)))
        try:
            status = self._driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0)
            self._check("cuGraphInstantiateWithFlags", status)
        finally:
            self._driver.cuGraphDestroy(graph)
        return executable

    def launch(self, executable: ctypes.c_void_p, stream: int) -> None:
        self._check("cuGraphLaunch", self._driver.cuGraphLaunch(executable, stream))

    def destroy(self, executable: ctypes.c_void_p) -> None:
        self._driver.cuGraphExecDestroy(executable)

    def _check(self, call: str, status: int) -> None:
        if status != 0:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            raise GraphError(f"{call} failed: {(text.value or b'unknown error').decode()} ({status})")
