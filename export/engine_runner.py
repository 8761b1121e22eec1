"""Runs a TensorRT plan with PyCUDA: buffers allocated once, one stream, CUDA graphs per batch size.

A plan `<part>.plan` lies beside its description `<part>.plan.json`, which `export/engine.py` writes; the description is
checked before TensorRT sees the plan, so a plan of another TensorRT or another GPU is refused with a sentence.

The file stands alone: numpy, tensorrt (8.6 to 11) and pycuda, the latter two imported when first needed; Python 3.9
syntax. `ipt-export` copies it beside `runner_tensorrt.py`, the Triton model that uses it.

What calls the GPU has not been run: it was checked against the Python bindings of TensorRT 8.6.0, 10.13.3 and 11.4
alone.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pycuda.driver as cuda
    import tensorrt as trt

OLDEST = (8, 6)
DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""TensorRT's names of what an input or output may be. `tensorrt.nptype` itself fails in 8.6 with numpy ≥ 1.24."""


class EngineError(RuntimeError):
    """Something that keeps an engine from being built or run; the message says what to do."""


class PlanMismatch(EngineError):
    """A plan that this TensorRT or this GPU cannot run, or that is not the one its description speaks of."""


class InputError(EngineError, ValueError):
    """Inputs of a wrong name, shape or type, or a batch that the plan was not built for."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine: name, shape of one sample, numpy's name of the type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class EngineParity:
    """An engine against reference tensors at one batch size: max |a - b| and PSNR (peak 255) of the worst output."""

    batch: int
    max_abs: float
    psnr: float


@dataclass(frozen=True)
class EngineMetadata:
    """What a plan is and where it runs: the content of `<part>.plan.json`.

    Attributes:
        part: name of the part, `head_<task>`, `body…` or `tail_<task>`.
        tensorrt: version that built the plan; only the same version loads it.
        gpu: name of the GPU that it was built on.
        compute_capability: of that GPU, such as `9.0`; plans run on no other.
        precision: `fp32`, `fp16` or `bf16`, of most of the arithmetic.
        evidence: how that is known, one of `export/engine.py`'s words.
        profile: smallest, optimal and largest batch.
        level: of the builder's optimisation, 0 to 5.
        onnx_sha256, plan_sha256: of the ONNX file it was built from, and of the plan.
        plan_bytes: size of the plan.
        weight_count: numbers among the ONNX graph's initialisers.
        layers: engine layers by the type they compute in, as TensorRT's inspector tells it.
        parity: per boundary batch; empty when the parts folder held no reference tensors.
        build_seconds: how long TensorRT took.
        flops: floating-point operations per patch (a multiply-add is two), if the parts' manifest gives them.
    """

    part: str
    tensorrt: str
    gpu: str
    compute_capability: str
    precision: str
    evidence: str
    profile: tuple[int, int, int]
    level: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    weight_count: int
    layers: dict[str, int]
    parity: tuple[EngineParity, ...]
    build_seconds: float
    flops: int | None = None

    @property
    def max_batch(self) -> int:
        return self.profile[2]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineMetadata:
        """Raises KeyError or TypeError when entries are missing or foreign."""
        entries = dict(values)
        for key in ("inputs", "outputs"):
            entries[key] = tuple(TensorInfo(x["name"], tuple(x["shape"]), x["dtype"]) for x in entries[key])
        entries["parity"] = tuple(EngineParity(**x) for x in entries["parity"])
        low, optimal, high = entries["profile"]
        entries["profile"] = (low, optimal, high)
        return cls(**entries)


@dataclass(frozen=True)
class Gpu:
    """A GPU: name, and compute capability such as `9.0`."""

    name: str
    compute_capability: str


def describe_path(plan: Path) -> Path:
    """Where the description of a plan lies: `<part>.plan.json`."""
    return plan.with_name(plan.name + ".json")


def read_metadata(plan: Path) -> EngineMetadata:
    """The description beside a plan.

    Raises:
        PlanMismatch: it is missing or cannot be read.
    """
    path = describe_path(plan)
    try:
        return EngineMetadata.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        reason = f"cannot be read ({' '.join(str(error).split())})"
    raise PlanMismatch(f"{path}, the description of a plan, {reason}: build the engine again (export/engine.py)")


def version_numbers(version: str) -> tuple[int, ...]:
    """`10.13.3.9` as (10, 13, 3, 9); what follows the numbers is dropped."""
    numbers = []
    for field in version.split("."):
        digits = "".join(c for c in field if c.isdigit())
        if digits != field:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_metadata(metadata: EngineMetadata, tensorrt_version: str, gpu: Gpu) -> None:
    """Compare a plan's description with the machine.

    Raises:
        PlanMismatch: built by another TensorRT, or for another GPU architecture.
    """
    if metadata.tensorrt != tensorrt_version:
        raise PlanMismatch(
            f"the plan of {metadata.part} was built by TensorRT {metadata.tensorrt} and this is {tensorrt_version}: "
            "build it again with this one (export/engine.py), or install the other"
        )
    if metadata.compute_capability != gpu.compute_capability:
        raise PlanMismatch(
            f"the plan of {metadata.part} was built for compute capability {metadata.compute_capability} "
            f"({metadata.gpu}) and this GPU, {gpu.name}, has {gpu.compute_capability}: "
            "build it again on this GPU (export/engine.py)"
        )


def check_plan(plan: bytes, metadata: EngineMetadata) -> None:
    """Compare a plan's bytes with its description; raises PlanMismatch."""
    if hashlib.sha256(plan).hexdigest() != metadata.plan_sha256:
        raise PlanMismatch(
            f"the plan of {metadata.part} is not the one its description speaks of ({len(plan)} bytes, "
            f"{metadata.plan_bytes} expected): copy both files again, or build the engine again (export/engine.py)"
        )


def check_inputs(
    inputs: Mapping[str, np.ndarray], expected: Sequence[TensorInfo], profile: tuple[int, int, int]
) -> int:
    """The batch size of inputs that an engine takes.

    Raises:
        InputError: wrong names, shapes or types, batches that differ, or a batch outside the profile.
    """
    names = sorted(info.name for info in expected)
    if sorted(inputs) != names:
        raise InputError(f"the engine takes the inputs {', '.join(names)}, not {', '.join(sorted(inputs)) or 'none'}")
    batches = set()
    for info in expected:
        array = inputs[info.name]
        if array.ndim == 0 or array.shape[1:] != info.shape:
            wanted = ", ".join(("n", *(str(side) for side in info.shape)))
            raise InputError(f"{info.name} has shape {list(array.shape)}; the engine takes [{wanted}]")
        if not np.can_cast(array.dtype, np.dtype(info.dtype), casting="same_kind"):
            raise InputError(f"{info.name} is {array.dtype}; the engine takes {info.dtype}")
        batches.add(len(array))
    if len(batches) != 1:
        raise InputError(f"the inputs have different batch sizes: {sorted(batches)}")
    batch = batches.pop()
    if not profile[0] <= batch <= profile[2]:
        raise InputError(
            f"a batch of {batch} is outside the engine's profile, {profile[0]} to {profile[2]}: "
            "send another, or build the engine with other --min-batch and --max-batch"
        )
    return batch


def require_tensorrt() -> str:
    """Import TensorRT and return its version.

    Raises:
        EngineError: it is not installed, does not load, or is older than 8.6.
    """
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise EngineError(f"TensorRT lacks the module {error.name}: install it") from error
        raise EngineError("TensorRT is not installed: pip install tensorrt, or use an NGC container") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"TensorRT is installed and does not load ({' '.join(str(error).split())}): "
            "install the libraries of the same version"
        ) from error
    version = str(trt.__version__)
    if version_numbers(version)[:2] < OLDEST:
        raise EngineError(f"TensorRT {version} is too old; 8.6 or newer is needed: pip install --upgrade tensorrt")
    return version


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
    """The primary CUDA context of a GPU, which TensorRT uses too; `with session:` makes it current."""

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
        handle = cuda.Device(device)
        major, minor = handle.compute_capability()
        self.gpu = Gpu(handle.name(), f"{major}.{minor}")
        self._primary = _primary_context(device)

    def __enter__(self) -> GpuSession:
        self._primary.push()
        return self

    def __exit__(self, *_: object) -> None:
        self._primary.pop()


class CudaGraphs:
    """Capture and launch of CUDA graphs through the driver library: PyCUDA (2025.1) has no call for either."""

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
            ):
                getattr(self._driver, name).argtypes = arguments
        except (OSError, AttributeError) as error:
            raise EngineError(f"CUDA graphs are not available: {error}") from error

    def begin(self, stream: int) -> None:
        self._check("cuStreamBeginCapture_v2", self._driver.cuStreamBeginCapture_v2(stream, self.THREAD_LOCAL))

    def end(self, stream: int) -> ctypes.c_void_p:
        """End a capture and return the executable graph; raises EngineError when the work cannot be captured."""
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

    @staticmethod
    def _check(call: str, status: int) -> None:
        if status != 0:
            raise EngineError(f"{call} answered with CUDA error {status}")


class EngineRunner:
    """One plan, ready to run; untested on a GPU.

    Attributes:
        metadata: the plan's description.
        inputs, outputs: as the engine itself has them.
        graph_error: why CUDA graphs are not used (any more), if so; without them each kernel is queued by itself.

    Not for several threads at once: the buffers are shared between calls.
    """

    def __init__(self, plan: bytes, metadata: EngineMetadata, device: int = 0, cuda_graphs: bool = True):
        """Load a plan and allocate everything a call needs.

        Raises:
            PlanMismatch: see `check_metadata` and `check_plan`.
            EngineError: no TensorRT, PyCUDA or GPU; or not enough GPU memory.
        """
        version = require_tensorrt()
        self.metadata = metadata
        self._session = GpuSession(device)
        check_metadata(metadata, version, self._session.gpu)
        check_plan(plan, metadata)
        self.graph_error = "" if cuda_graphs else "not asked for"
        self._graphs: CudaGraphs | None = None
        self._captured: dict[int, ctypes.c_void_p] = {}
        self._capturing = True
        if cuda_graphs:
            try:
                self._graphs = CudaGraphs()
            except EngineError as error:
                self.graph_error = str(error)
        with self._session:
            self._load(plan)
            self._allocate()

    @classmethod
    def open(cls, plan: Path, device: int = 0, cuda_graphs: bool = True) -> EngineRunner:
        """The runner of a plan file, whose description lies beside it; raises as the constructor does."""
        metadata = read_metadata(plan)
        try:
            content = plan.read_bytes()
        except OSError as error:
            raise PlanMismatch(f"{plan} cannot be read ({error.strerror}): build it (export/engine.py)") from error
        return cls(content, metadata, device, cuda_graphs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of a batch.

        Args:
            inputs: per name [n, ...] of a type that casts to the engine's within its kind; n within the profile.

        Returns:
            per name [n, ...]: views of the runner's own buffers, valid until the next call.

        Raises:
            InputError: see `check_inputs`.
            EngineError: the GPU reported an error.
        """
        batch = check_inputs(inputs, self.inputs, self.metadata.profile)
        for info in self.inputs:
            np.copyto(self._host[info.name][:batch], inputs[info.name], casting="same_kind")
        import pycuda.driver as cuda

        with self._session:
            try:
                self._start(batch)
                self._stream.synchronize()
            except cuda.Error as error:
                raise EngineError(f"the engine of {self.metadata.part} failed at batch {batch}: {error}") from error
        return {info.name: self._host[info.name][:batch] for info in self.outputs}

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """GPU time of the engine alone, without copies, for each of `runs` runs on what the buffers hold, in s."""
        import pycuda.driver as cuda

        started, stopped = cuda.Event(), cuda.Event()
        seconds = []
        with self._session:
            self._set_batch(batch)
            for _ in range(runs):
                started.record(self._stream)
                self._enqueue(batch)
                stopped.record(self._stream)
                stopped.synchronize()
                seconds.append(stopped.time_since(started) / 1e3)
        return seconds

    def layer_report(self) -> str:
        """The inspector's JSON about the engine's layers."""
        import tensorrt as trt

        with self._session:
            inspector: trt.EngineInspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the GPU's memory; the runner cannot be used afterwards."""
        with self._session:
            if self._graphs is not None:
                for executable in self._captured.values():
                    self._graphs.destroy(executable)
            self._captured.clear()
            self._device.clear()
            self._host.clear()
            del self._context, self._engine

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, plan: bytes) -> None:
        import tensorrt as trt

        self._runtime: trt.Runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"TensorRT could not load the plan of {self.metadata.part} ({len(plan)} bytes): "
                "free GPU memory, or build the engine again (export/engine.py)"
            )
        self._engine: trt.ICudaEngine = engine
        context: trt.IExecutionContext | None = engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"the GPU has not enough free memory to run {self.metadata.part}: "
                "free some, or build the engine with a smaller --max-batch"
            )
        self._context: trt.IExecutionContext = context

    def _allocate(self) -> None:
        """Pinned host and device memory for the largest batch, and the addresses that stay the same for ever."""
        import pycuda.driver as cuda
        import tensorrt as trt

        self._stream: cuda.Stream = cuda.Stream()
        self._batch = 0
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, Any] = {}
        ports: dict[str, list[TensorInfo]] = {"input": [], "output": []}
        engine: trt.ICudaEngine = self._engine
        context: trt.IExecutionContext = self._context
        try:
            for index in range(engine.num_io_tensors):
                name = engine.get_tensor_name(index)
                kind = engine.get_tensor_dtype(name).name
                if kind not in DTYPES:
                    raise EngineError(
                        f"{self.metadata.part}: {name} is {kind}, which numpy does not have: "
                        "export the part with FP32 or FP16 inputs and outputs"
                    )
                info = TensorInfo(name, tuple(engine.get_tensor_shape(name))[1:], DTYPES[kind].name)
                self._host[name] = cuda.pagelocked_empty((self.metadata.max_batch, *info.shape), DTYPES[kind])
                self._host[name][:] = 0
                self._device[name] = cuda.mem_alloc(self._host[name].nbytes)
                context.set_tensor_address(name, int(self._device[name]))
                ports["input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"].append(info)
        except cuda.MemoryError as error:
            raise EngineError(
                f"the GPU or the host has not enough free memory for the buffers of {self.metadata.part}: "
                "free some, or build the engine with a smaller --max-batch"
            ) from error
        self.inputs, self.outputs = tuple(ports["input"]), tuple(ports["output"])

    def _start(self, batch: int) -> None:
        """Queue copies and engine for a batch; the first time plainly, with a CUDA graph made for the next times."""
        stream: int = self._stream.handle
        if self._graphs is not None and batch in self._captured:
            self._graphs.launch(self._captured[batch], stream)
            return
        self._set_batch(batch)
        self._copy_and_enqueue(batch)  # TensorRT's work after a change of shape cannot be captured, so this comes first
        if self._graphs is None or not self._capturing:
            return
        self._stream.synchronize()
        try:
            self._graphs.begin(stream)
            try:
                self._copy_and_enqueue(batch)
            finally:
                executable = self._graphs.end(stream)
            self._captured[batch] = executable
        except EngineError as error:  # an engine with work on the host; graphs made before stay in use
            self.graph_error = f"batch {batch}: {error}"
            self._capturing = False

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        context: trt.IExecutionContext = self._context
        for info in self.inputs:
            if not context.set_input_shape(info.name, (batch, *info.shape)):
                raise InputError(f"TensorRT refused a batch of {batch} for {info.name}: it is outside the profile")
        self._batch = batch

    def _copy_and_enqueue(self, batch: int) -> None:
        import pycuda.driver as cuda

        for info in self.inputs:
            cuda.memcpy_htod_async(self._device[info.name], self._host[info.name][:batch], self._stream)
        self._enqueue(batch)
        for info in self.outputs:
            cuda.memcpy_dtoh_async(self._host[info.name][:batch], self._device[info.name], self._stream)

    def _enqueue(self, batch: int) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT could not run {self.metadata.part} at batch {batch}")
