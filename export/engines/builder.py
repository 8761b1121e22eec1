"""One graph becomes one engine: the parser, the network's types, the profile, the builder.

Nothing here needs a GPU by itself. TensorRT does; TensorRT for RTX is told the compute capability instead.
Python 3.9 syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ipt_triton.export.engines.files import BuildOptions
from ipt_triton.export.engines.inputs import PrecisionPlan, profile_shapes
from ipt_triton.export.engines.library import Library, capability_member
from ipt_triton.export.engines.messages import (
    explain_failure,
    explain_refusal,
    layer_report,
    make_logger,
    make_monitor,
    parser_error,
)
from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.engines.runner import DTYPES
from ipt_triton.export.engines.tensorrt8 import pin_types
from ipt_triton.files import atomic_file
from ipt_triton.manifest import Part, Port

if TYPE_CHECKING:
    import tensorrt as trt


@dataclass(frozen=True)
class Built:
    """What a builder gave.

    Attributes:
        plan: the serialised engine.
        inputs, outputs: of the network.
        layers: what the builder told of the engine's layers, see `messages.layer_report`; TensorRT for RTX alone.
    """

    plan: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: str


def build_engine(
    library: Library,
    part: Part,
    model: bytes,
    how: PrecisionPlan,
    options: BuildOptions,
    capability: str,
    report: Callable[[str], None],
) -> Built:
    """The engine of a part.

    Args:
        model: the ONNX file.
        capability: compute capability, told to a library that builds ahead of time.
        report: gets lines about the progress.

    Raises:
        EngineError: one sentence from what parser and builder say.
    """
    lib = library.module
    log = make_logger(lib)
    builder: trt.Builder = lib.Builder(log)
    network: trt.INetworkDefinition = builder.create_network(network_flags(lib, how))
    parser: trt.OnnxParser = lib.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser_error(parser.get_error(i), part.layers) for i in range(parser.num_errors)]
        raise EngineError(explain_refusal(part.name, errors, log.errors))
    config: trt.IBuilderConfig = builder.create_builder_config()
    if library.ahead_of_time:
        aim_at(config, library, capability)
    apply_precision(lib, config, how)
    if how.pin_types:
        pin_types(lib, network, part.layers)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    samples = {port.name: port.shape for port in part.inputs}
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for tensor in inputs:
        if tensor.name not in samples:
            raise EngineError(f"{part.name}: the manifest has no input {tensor.name}: run ipt-export again")
        shapes = profile_shapes(tensor.name, tuple(tensor.shape), samples[tensor.name], options.profile)
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = lib.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(lib.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    times = None if library.ahead_of_time else options.timing_cache
    if times is not None:
        _load_timing_cache(config, times, report)
    if hasattr(lib.IBuilderConfig, "progress_monitor"):
        config.progress_monitor = make_monitor(lib, part.name, report)
    else:
        report(f"{part.name}: building")
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(explain_failure(part.name, log.errors, options.workspace))
    if times is not None:
        cache: trt.ITimingCache = config.get_timing_cache()
        with atomic_file(times) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return Built(bytes(plan), _ports(inputs), _ports(outputs), layer_report(log.layers))


def network_flags(lib: ModuleType, how: PrecisionPlan) -> int:
    """The network flags of a precision plan as the library's bit mask."""
    return sum(1 << int(getattr(lib.NetworkDefinitionCreationFlag, name)) for name in how.network_flags)


def apply_precision(lib: ModuleType, config: trt.IBuilderConfig, how: PrecisionPlan) -> None:
    """Set and clear the builder flags of a precision plan."""
    for name in how.builder_flags:
        config.set_flag(getattr(lib.BuilderFlag, name))
    for name in how.cleared_flags:
        config.clear_flag(getattr(lib.BuilderFlag, name))


def aim_at(config: trt.IBuilderConfig, library: Library, capability: str) -> None:
    """Build for a compute capability, whether there is a GPU or not; raises EngineError for an unknown one."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability_member(library, capability), 0)


def _ports(tensors: list[trt.ITensor]) -> tuple[Port, ...]:
    return tuple(Port(t.name, tuple(t.shape)[1:], DTYPES[t.dtype.name].name) for t in tensors)


def _load_timing_cache(config: trt.IBuilderConfig, path: Path, report: Callable[[str], None]) -> None:
    """Attach what a file holds, or an empty cache when it is missing or of another TensorRT or GPU."""
    content = path.read_bytes() if path.is_file() else b""
    if content:
        there: trt.ITimingCache | None = config.create_timing_cache(content)
        if there is not None and config.set_timing_cache(there, False):
            return
        report(f"{path} is of another TensorRT or GPU: starting an empty timing cache")
    config.set_timing_cache(config.create_timing_cache(b""), False)
