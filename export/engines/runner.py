"""Runs a plan with PyCUDA: buffers allocated once, one stream, CUDA graphs per batch size.

The description beside the plan is checked before the library sees the plan, so a plan of another version or another GPU
is refused with a sentence.

This file, `cuda.py`, `library.py` and `metadata.py` need numpy, the plan's library (TensorRT 8.6 to 11, or TensorRT for
RTX) and pycuda, the latter two imported when first needed; Python 3.9 syntax. They import each other and what they need
of the kernel relatively, because `ipt-export` also copies them as a package of another name beside
`runner_tensorrt.py`, the Triton model that uses them.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import atomic_file
from ...manifest import Port
from ...service import graph_batches
from .cuda import CudaGraphs, GpuSession, GraphError
from .library import load_library
from .metadata import (
    BUILD_AGAIN,
    BuildFacts,
    EngineError,
    InputError,
    PlanMismatch,
    check_inputs,
    check_machine,
    check_plan,
    plan_path,
    plans_beside,
    read_metadata,
)

if TYPE_CHECKING:
    import pycuda.driver as cuda
    import tensorrt as trt

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


class EngineRunner:
    """One plan, ready to run.

    Attributes:
        facts: what the plan was built from, how and for what.
        inputs, outputs: as the engine itself has them.
        graph_error: why CUDA graphs are not used (any more), if so; without them each kernel is queued by itself.

    Not for several threads at once: the buffers are shared between calls.
    """

    def __init__(
        self, plan: bytes, facts: BuildFacts, device: int = 0, cuda_graphs: bool = True, kernels: Path | None = None
    ):
        """Load a plan and allocate everything a call needs.

        Args:
            kernels: file of the kernels that TensorRT for RTX has compiled for this plan, read here and written by
                `close`; None to compile them each time. TensorRT has its kernels in the plan.

        Raises:
            PlanMismatch: see `check_machine` and `check_plan`.
            EngineError: no library, PyCUDA or GPU; or not enough GPU memory.
        """
        self._library = load_library(facts.library)
        self.facts = facts
        self._session = GpuSession(device)
        check_machine(facts, self._library.version, self._session.gpu)
        check_plan(plan, facts)
        self._kernels = kernels
        self._cache: trt.IRuntimeCache | None = None
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
            try:
                self._load(plan)
                self._allocate()
            except BaseException:
                self._free()
                raise

    @classmethod
    def open(cls, stem: Path, device: int = 0, cuda_graphs: bool = True) -> EngineRunner:
        """The runner of the plan for this GPU.

        Args:
            stem: folder and name of the plans, see `metadata.plan_path`; their descriptions lie beside them.

        Raises:
            PlanMismatch, EngineError: as the constructor; or there is no plan for this GPU.
        """
        gpu = GpuSession(device).gpu
        plan, there = plan_path(stem, gpu.compute_capability), plans_beside(stem)
        if gpu.compute_capability not in there:
            raise PlanMismatch(
                f"{stem.parent} has plans for compute capability {', '.join(there) or 'none'} and this GPU, "
                f"{gpu.name}, has {gpu.compute_capability}: {BUILD_AGAIN} for it"
            )
        metadata = read_metadata(plan)
        try:
            content = plan.read_bytes()
        except OSError as error:
            raise PlanMismatch(f"{plan} cannot be read ({error.strerror}): {BUILD_AGAIN}") from error
        return cls(content, metadata, device, cuda_graphs, plan.with_suffix(".kernels"))

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
        batch = check_inputs(inputs, self.inputs, self.facts.profile)
        for info in self.inputs:
            np.copyto(self._host[info.name][:batch], inputs[info.name], casting="same_kind")
        import pycuda.driver as cuda

        with self._session:
            try:
                self._start(batch)
                self._stream.synchronize()
            except (cuda.Error, GraphError) as error:
                raise EngineError(f"the engine of {self.facts.part} failed at batch {batch}: {error}") from error
        return {info.name: self._host[info.name][:batch] for info in self.outputs}

    def device_seconds(self, batch: int, runs: int) -> list[float]:
        """GPU time of the engine alone, without copies, for each of `runs` runs on what the buffers hold, in s.

        A CUDA graph of the engine is timed, as `run` uses one; where there is none, the engine's kernels one by one.
        """
        import pycuda.driver as cuda

        with self._session:
            try:
                return self._timed(batch, runs)
            except (cuda.Error, GraphError) as error:
                raise EngineError(f"the engine of {self.facts.part} failed at batch {batch}: {error}") from error

    def _timed(self, batch: int, runs: int) -> list[float]:
        import pycuda.driver as cuda

        seconds = []
        started, stopped = cuda.Event(), cuda.Event()  # freed with this frame, while the context is current
        self._set_batch(batch)
        self._enqueue(batch)  # TensorRT's work after a change of shape cannot be captured
        self._stream.synchronize()
        graph = self._capture(batch, self._enqueue)
        try:
            for _ in range(runs):
                started.record(self._stream)
                if graph is None:
                    self._enqueue(batch)
                else:
                    self._launch(graph)
                stopped.record(self._stream)
                stopped.synchronize()
                seconds.append(stopped.time_since(started) / 1e3)
        finally:
            if graph is not None and self._graphs is not None:
                self._graphs.destroy(graph)
        return seconds

    def layer_report(self) -> str:
        """The inspector's JSON about the engine's layers."""
        lib = self._library.module
        with self._session:
            inspector: trt.EngineInspector = self._engine.create_engine_inspector()
            return str(inspector.get_engine_information(lib.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Keep the kernels that were compiled, and free the GPU's memory; the runner cannot be used afterwards."""
        with self._session:
            self._keep_kernels()
            self._free()

    def _free(self) -> None:
        """Let go of all that is the GPU's while its context is current: afterwards only one thread could free it."""
        if self._graphs is not None:
            for executable in self._captured.values():
                self._graphs.destroy(executable)
        self._captured.clear()
        self._cache = None
        for name in ("_device", "_host", "_stream", "_context", "_engine"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, plan: bytes) -> None:
        lib = self._library.module
        self._runtime: trt.Runtime = lib.Runtime(lib.Logger(lib.Logger.WARNING))
        engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{self._library} could not load the plan of {self.facts.part} ({len(plan)} bytes): "
                f"free GPU memory, or {BUILD_AGAIN}"
            )
        self._engine: trt.ICudaEngine = engine
        context: trt.IExecutionContext | None = self._make_context(engine)
        if context is None:
            raise EngineError(
                f"the GPU has not enough free memory to run {self.facts.part}: "
                "free some, or build the engine with a smaller --max-batch"
            )
        self._context: trt.IExecutionContext = context

    def _make_context(self, engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
        """An execution context; that of TensorRT for RTX starts with the kernels that were compiled before."""
        if not self._library.ahead_of_time:
            return engine.create_execution_context()
        lib = self._library.module
        config: trt.IRuntimeConfig = engine.create_runtime_config()
        # Kernels for each shape, before it first runs: a CUDA graph would keep slower ones that serve meanwhile.
        config.dynamic_shapes_kernel_specialization_strategy = lib.DynamicShapesKernelSpecializationStrategy.EAGER
        cache: trt.IRuntimeCache = config.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            cache.deserialize(self._kernels.read_bytes())  # refused if it is of another version or card
        config.set_runtime_cache(cache)
        self._cache = cache
        return engine.create_execution_context(config)

    def _keep_kernels(self) -> None:
        """Write what TensorRT for RTX has compiled; a folder that cannot be written only costs the next start time."""
        if self._cache is not None and self._kernels is not None:
            with contextlib.suppress(OSError), atomic_file(self._kernels) as temporary:
                temporary.write_bytes(bytes(self._cache.serialize()))

    def _allocate(self) -> None:
        """Pinned host and device memory for the largest batch, and the addresses that stay the same for ever."""
        import pycuda.driver as cuda

        lib = self._library.module
        self._stream: cuda.Stream = cuda.Stream()
        self._batch = 0
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, Any] = {}
        ports: dict[str, list[Port]] = {"input": [], "output": []}
        engine: trt.ICudaEngine = self._engine
        context: trt.IExecutionContext = self._context
        try:
            for index in range(engine.num_io_tensors):
                name = engine.get_tensor_name(index)
                kind = engine.get_tensor_dtype(name).name
                if kind not in DTYPES:
                    raise EngineError(
                        f"{self.facts.part}: {name} is {kind}, which numpy does not have: "
                        "export the part with FP32 or FP16 inputs and outputs"
                    )
                info = Port(name, tuple(engine.get_tensor_shape(name))[1:], DTYPES[kind].name)
                self._host[name] = cuda.pagelocked_empty((self.facts.max_batch, *info.shape), DTYPES[kind])
                self._host[name][:] = 0
                self._device[name] = cuda.mem_alloc(self._host[name].nbytes)
                context.set_tensor_address(name, int(self._device[name]))
                ports["input" if engine.get_tensor_mode(name) == lib.TensorIOMode.INPUT else "output"].append(info)
        except cuda.MemoryError as error:
            raise EngineError(
                f"the GPU or the host has not enough free memory for the buffers of {self.facts.part}: "
                "free some, or build the engine with a smaller --max-batch"
            ) from error
        self.inputs, self.outputs = tuple(ports["input"]), tuple(ports["output"])

    def _start(self, batch: int) -> None:
        """Queue copies and engine for a batch; the first time plainly, with a CUDA graph made for the next times."""
        if batch in self._captured:
            self._launch(self._captured[batch])
            return
        self._set_batch(batch)
        self._copy_and_enqueue(batch)  # TensorRT's work after a change of shape cannot be captured, so this comes first
        if batch not in graph_batches(self.facts.max_batch):
            return
        self._stream.synchronize()
        graph = self._capture(batch, self._copy_and_enqueue)
        if graph is not None:
            self._captured[batch] = graph

    def _capture(self, batch: int, work: Callable[[int], None]) -> ctypes.c_void_p | None:
        """A CUDA graph of what `work(batch)` queues; None where graphs cannot be had, see `graph_error`."""
        if self._graphs is None or not self._capturing:
            return None
        import pycuda.driver as cuda

        try:
            self._graphs.begin(self._stream.handle)
            try:
                work(batch)
            finally:
                graph = self._graphs.end(self._stream.handle)
        except (EngineError, cuda.Error) as error:  # an engine with work on the host; graphs made before stay in use
            self.graph_error = f"batch {batch}: {error}"
            self._capturing = False
            return None
        return graph

    def _launch(self, graph: ctypes.c_void_p) -> None:
        if self._graphs is not None:
            self._graphs.launch(graph, self._stream.handle)

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        context: trt.IExecutionContext = self._context
        self._batch = 0  # of no batch, should only some inputs take theirs
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
            raise EngineError(f"TensorRT could not run {self.facts.part} at batch {batch}")
