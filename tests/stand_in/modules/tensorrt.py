"""A module `tensorrt` for a machine without a GPU: NVIDIA's parser and builder, and engines that ONNX Runtime computes.

Parser and builder are those of TensorRT for RTX, which build ahead of time for a compute capability and need no GPU.
Of the plan that they make it only matters that there is one: the plan that comes out holds the ONNX graph behind a
header. ONNX Runtime runs it, in the order of the stream and in the memory of the stand-in driver (`libcuda.c`). All
other names are those of TensorRT for RTX. The environment sets what it says of itself:

    STAND_IN_TENSORRT  version, such as 10.13.3.9 (the default); from 11 on the inspector has other keys
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorrt_rtx_bindings as rtx
from tensorrt_rtx_bindings import *  # noqa: F403

__version__ = os.environ.get("STAND_IN_TENSORRT", "10.13.3.9")

fault = ""
"""What goes wrong in engines, for tests: `enqueue` refuses all work, `capture` has the host wait for the GPU amid its
work, `silent capture` does the same and says that all went well, and `compute` fails on the GPU."""

_MAGIC = b"stand-in plan\n"
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_TYPES = {"tensor(float)": rtx.DataType.FLOAT, "tensor(float16)": rtx.DataType.HALF}

_driver = ctypes.CDLL("libcuda.so.1")
_driver.stand_in_enqueue.argtypes = [ctypes.c_void_p] * 3
_driver.stand_in_reserve.argtypes = [ctypes.c_long]
for _name in ("cuStreamIsCapturing", "cuStreamSynchronize"):
    getattr(_driver, _name).argtypes = [ctypes.c_void_p] * (2 if _name == "cuStreamIsCapturing" else 1)


def _capability() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    if _driver.cuDeviceComputeCapability(ctypes.byref(major), ctypes.byref(minor), 0):
        raise RuntimeError("the stand-in driver has no device")
    return f"{major.value}.{minor.value}"


# --- building ---------------------------------------------------------------------------------------------------------


_graphs: dict[int, bytes] = {}  # by network
_profiles: dict[int, Any] = {}  # by builder; one that held its profile would never end, nor would its logger


class _Subclass:
    """What NVIDIA's classes need so that Python's subclasses of them end in silence."""

    def __del__(self) -> None:
        pass


class OnnxParser(_Subclass, rtx.OnnxParser):
    """NVIDIA's; remembers the graph, for the plan."""

    def __init__(self, network: Any, logger: Any) -> None:
        super().__init__(network, logger)
        self._network = id(network)

    def parse(self, model: bytes) -> bool:
        _graphs[self._network] = bytes(model)
        return super().parse(model)


class Builder(_Subclass, rtx.Builder):
    """NVIDIA's, for the compute capability of the stand-in driver."""

    def create_builder_config(self) -> Any:
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(rtx.ComputeCapability, "SM" + _capability().replace(".", "")), 0)
        return config

    def create_optimization_profile(self) -> Any:
        profile = _profiles[id(self)] = super().create_optimization_profile()
        return profile

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        graph, profile = _graphs.pop(id(network), None) or _product(network), _profiles.pop(id(self))
        plan = super().build_serialized_network(network, config)
        if plan is None:
            return None
        names = [network.get_input(index).name for index in range(network.num_inputs)]
        shapes = {name: [list(shape) for shape in profile.get_shape(name)] for name in names}
        capability = "{}.{}".format(*re.fullmatch(r"SM(\d+)(\d)", config.get_compute_capability(0).name).groups())
        header = {"tensorrt": __version__, "capability": capability, "profile": shapes, "bytes": len(graph)}
        return _MAGIC + json.dumps(header).encode() + b"\n" + graph


def _product(network: Any) -> bytes:
    """The ONNX graph of a network that was not parsed: an input times a constant matrix, which benchmarks build."""
    from onnx import helper, numpy_helper

    (constant,) = (layer for layer in map(network.get_layer, range(2)) if layer.type == rtx.LayerType.CONSTANT)
    constant.__class__ = rtx.IConstantLayer
    matrix = np.array(constant.weights).reshape(tuple(constant.shape))
    kind = helper.np_dtype_to_tensor_dtype(matrix.dtype)
    tensors = (network.get_input(0), network.get_output(0))
    ends = [helper.make_tensor_value_info(tensor.name, kind, ["n", tensor.shape[1]]) for tensor in tensors]
    node = helper.make_node("MatMul", [ends[0].name, "matrix"], [ends[1].name])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(matrix, "matrix")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


# --- running ----------------------------------------------------------------------------------------------------------


class _Reservation:
    """Memory of the GPU that is counted as taken for as long as this object lives."""

    def __init__(self, size: int) -> None:
        self._size = 0
        if _driver.stand_in_reserve(size):
            raise MemoryError(size)
        self._size = size

    def __del__(self) -> None:
        _driver.stand_in_reserve(-self._size)


class Runtime:
    """Loads plans; refuses those that TensorRT would refuse, with a logged error and None."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            magic, header, graph = bytes(plan).split(b"\n", 2)
            facts = json.loads(header)
            if magic + b"\n" != _MAGIC or len(graph) != facts["bytes"]:
                raise ValueError("the plan is damaged")
            for key, here in (("tensorrt", __version__), ("capability", _capability())):
                if facts[key] != here:
                    raise ValueError(f"the plan is for {key} {facts[key]}, not {here}")
            return Engine(graph, facts["profile"])
        except (ValueError, MemoryError) as error:
            self._logger.log(rtx.ILogger.ERROR, f"deserialisation failed: {error or 'out of memory'}")
            return None


class Engine:
    """A part's ONNX graph; `ICudaEngine`."""

    def __init__(self, graph: bytes, profile: dict[str, list[list[int]]]) -> None:
        import onnxruntime

        self._weights = _Reservation(len(graph))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.graph = graph
        self.profile = profile
        self.session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        self.inputs = {port.name: port for port in self.session.get_inputs()}
        self.outputs = {port.name: port for port in self.session.get_outputs()}
        self.ports = {**self.inputs, **self.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self.ports)

    def get_tensor_name(self, index: int) -> str:
        return list(self.ports)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return rtx.TensorIOMode.INPUT if name in self.inputs else rtx.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[self.ports[name].type]

    def get_tensor_shape(self, name: str) -> Any:
        return rtx.Dims([-1, *self.ports[name].shape[1:]])

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig | None = None) -> ExecutionContext | None:
        try:
            return ExecutionContext(self, config.cache if config else None)
        except MemoryError:
            return None

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class RuntimeCache:
    """Of TensorRT for RTX: kernels that were compiled, here the shapes that ran; `IRuntimeCache`."""

    def __init__(self) -> None:
        self.shapes: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([_capability(), *sorted(self.shapes)]).encode()

    def deserialize(self, content: bytes) -> bool:
        capability, *shapes = json.loads(content)
        self.shapes.update(shapes if capability == _capability() else ())
        return capability == _capability()


class RuntimeConfig:
    """Of TensorRT for RTX: `IRuntimeConfig`."""

    dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.LAZY
    cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


class ExecutionContext:
    """What an engine needs to run; `IExecutionContext`."""

    def __init__(self, engine: Engine, cache: RuntimeCache | None) -> None:
        self._engine = engine
        self._cache = cache
        largest = (shapes[2] for shapes in engine.profile.values())
        self._scratch = _Reservation(sum(4 * int(np.prod(shape)) for shape in largest))
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._reshaped = False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.ports

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self._engine.profile[name]
        if len(shape) != len(low) or any(not a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        self._reshaped = True
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if fault == "enqueue" or set(self._shapes) != set(self._engine.inputs):
            return False
        if fault in ("capture", "silent capture") or self._reshaped:  # work on the host, which cannot be captured
            capturing = ctypes.c_int()
            _driver.cuStreamIsCapturing(stream, ctypes.byref(capturing))
            if capturing.value:
                _driver.cuStreamSynchronize(stream)
                return fault == "silent capture"
        self._reshaped = False
        if self._cache:
            self._cache.shapes.add(str(self._shapes))
        return _enqueue(stream, self._work(dict(self._addresses), dict(self._shapes)))

    def _work(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> Callable[[], None]:
        engine = self._engine

        def view(name: str, shape: Sequence[int]) -> np.ndarray:
            kind = np.dtype(_NUMPY[engine.ports[name].type])
            size = int(np.prod(shape)) * kind.itemsize
            return np.frombuffer((ctypes.c_ubyte * size).from_address(addresses[name]), kind).reshape(shape)

        def work() -> None:
            if fault == "compute":
                raise RuntimeError("this engine was told to fail")
            results = engine.session.run(None, {name: view(name, shape) for name, shape in shapes.items()})
            for name, result in zip(engine.outputs, results, strict=True):
                view(name, result.shape)[...] = result

        return work


_queued: dict[int, Callable[[], None]] = {}
"""Work that the driver still holds, in a stream or in a graph."""
_numbers = itertools.count(1)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
def _called_by_the_driver(number: int, release: int) -> int:
    if release:
        del _queued[number]
        return 0
    try:
        _queued[number]()
    except Exception as error:
        print(f"stand-in engine: {error}", flush=True)
        return 1
    return 0


def _enqueue(stream: int, work: Callable[[], None]) -> bool:
    number = next(_numbers)
    _queued[number] = work
    if _driver.stand_in_enqueue(stream, _called_by_the_driver, number):
        del _queued[number]
        return False
    return True


# --- inspecting -------------------------------------------------------------------------------------------------------


class EngineInspector:
    """The layers of an engine, here the nodes of its graph, in the keys of the version."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get_engine_information(self, form: Any) -> str:
        import onnx

        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(self._engine.graph))
        graph = model.graph
        known = {
            value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)
        }
        known.update({tensor.name: tensor.data_type for tensor in graph.initializer})

        def port(name: str) -> dict[str, Any]:
            kind = onnx.TensorProto.DataType.Name(known.get(name, 0))
            text = {"FLOAT": "Float", "FLOAT16": "Half", "INT64": "Int64", "INT32": "Int32", "BOOL": "Bool"}[kind]
            if __version__.startswith("10."):
                return {"Name": name, "Dimensions": [], "Format/Datatype": text}
            return {"Name": name, "Dimensions": [], "Datatype": text, "Format": "(Linear) Row major linear format"}

        layers = [
            {
                "Name": node.name,
                "LayerType": node.op_type,
                "Inputs": [port(name) for name in node.input if name],
                "Outputs": [port(name) for name in node.output],
            }
            for node in graph.node
        ]
        return json.dumps({"Layers": layers, "Bindings": list(self._engine.ports)})
