"""Builds TensorRT engines from a parts folder, checks them on the GPU, and describes them.

    python export/engines/build.py build/parts --output build/engines
    python export/engines/build.py build/parts --output build/engines --only body --timing-cache build/timing

Alone on a GPU machine with numpy, tensorrt and pycuda (Python 3.9 syntax; a checkout, nothing installed); one
code for TensorRT 8.6, 10 and 11. From TensorRT 10 on networks are strongly typed: the ONNX graph alone says what is
computed in FP16, and `--precision` must agree with it. TensorRT 8.6 is told by flags, and the types of an FP16 graph
are pinned layer by layer.

The parts folder holds `<part>.onnx` and `manifest.json`, and may hold `samples.npz`: reference tensors that PyTorch
computed in FP32 on real tiles, per task and tensor (`sr_x2/IMAGE` [n, 3, 48, 48], `sr_x2/FEATURES`,
`sr_x2/TASK_EMBEDDING` with n or 1 rows, `sr_x2/BODY_FEATURES`, `sr_x2/RESTORED`; float32). After a build the engine
runs at the profile's smallest, optimal and largest batch; NaN, Inf or results too far from the reference tensors refuse
it. A plan appears only after that, whole, with its description beside it (`metadata.EngineMetadata`). A plan that
is up to date is kept, so a build that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run by its path: Python looks beside this file, and the room is one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[2] / "src")

from ipt_triton.cli import make_parser, run_command
from ipt_triton.export.engines.checks import check_engine
from ipt_triton.export.engines.cuda import GpuSession, require_tensorrt
from ipt_triton.export.engines.files import BuildOptions, summarise, up_to_date, write_plan
from ipt_triton.export.engines.inputs import (
    ENGINE_PRECISIONS,
    PrecisionPlan,
    choose_parts,
    plan_precision,
    profile_shapes,
    reference_tensors,
)
from ipt_triton.export.engines.metadata import BuildFacts, EngineError, EngineMetadata, read_metadata, version_numbers
from ipt_triton.files import atomic_file
from ipt_triton.manifest import SAMPLES, Layer, Part, read_manifest, tasks_of_parts

if TYPE_CHECKING:
    import tensorrt as trt

logger = logging.getLogger("ipt_triton.export.engines.build")


def explain_failure(part: str, messages: Sequence[str], workspace: float | None) -> str:
    """One sentence for a build that TensorRT gave up, from what it logged."""
    text = " ".join(" ".join(messages).split())
    if re.search(r"out ?of ?memory|insufficient memory|cudaErrorMemoryAllocation|bad_alloc", text, re.IGNORECASE):
        limit = f"--workspace is {workspace:g} GiB" if workspace else "no --workspace was given"
        return (
            f"{part}: not enough GPU memory to build ({limit}): "
            "stop what else uses the GPU, or build with a smaller --max-batch or another --workspace"
        )
    return f"{part}: TensorRT could not build the engine: {text or 'it gave no reason'}"


def build_engines(
    folder: Path,
    output: Path,
    options: BuildOptions,
    only: Sequence[str] = (),
    device: int = 0,
    report: Callable[[str], None] = logger.info,
) -> list[EngineMetadata]:
    """Build, check and write the engine of each part; untested on a GPU.

    Args:
        folder: parts folder.
        output: where `<part>.plan` and `<part>.plan.json` go.
        only: names of parts; none for all.
        report: gets lines about the progress.

    Raises:
        EngineError, ManifestError, ParityError: one sentence; the plans that were written before stay.
    """
    version = require_tensorrt()
    manifest = read_manifest(folder)
    parts, tasks = choose_parts(manifest.parts, only), tasks_of_parts(manifest.routes)
    session = GpuSession(device)
    report(f"TensorRT {version}, {session.gpu.name}, compute capability {session.gpu.compute_capability}")
    if not (folder / SAMPLES).is_file():
        report(f"{folder / SAMPLES} is missing: engines are checked for NaN and Inf alone, not against PyTorch")
    done = []
    with session:
        for part in parts:
            path = folder / f"{part.name}.onnx"
            try:
                model = path.read_bytes()
            except OSError as error:
                raise EngineError(f"{path} cannot be read ({error.strerror}): run ipt-export again") from error
            how = plan_precision(version_numbers(version), options.precision, manifest.graph_precision)
            # TensorRT 8.6 may be told to compute an FP32 graph in FP16.
            layer_precision = how.precision if how.precision != manifest.graph_precision else part.layer_precision
            sha256 = hashlib.sha256(model).hexdigest()
            plan_path = output / f"{part.name}.plan"
            if up_to_date(plan_path, sha256, version, session.gpu, how.precision, options):
                report(f"{part.name}: up to date")
                done.append(read_metadata(plan_path))
                continue
            started = time.perf_counter()
            plan = _build(part, model, how, options, report)
            facts = BuildFacts(
                part=part.name,
                tensorrt=version,
                gpu=session.gpu.name,
                compute_capability=session.gpu.compute_capability,
                precision=how.precision,
                profile=options.profile,
                level=options.level,
                onnx_sha256=sha256,
                plan_sha256=hashlib.sha256(plan).hexdigest(),
                plan_bytes=len(plan),
                weight_count=part.weight_count,
                build_seconds=round(time.perf_counter() - started, 3),
                flops=part.flops,
            )
            _, (task, *_) = tasks[part.name]
            reference = reference_tensors(folder, part, task)
            results = check_engine(plan, facts, part, layer_precision, reference, device)
            metadata = EngineMetadata(**vars(facts), **vars(results))
            write_plan(output, plan, metadata)
            report(summarise(metadata))
            done.append(metadata)
    return done


def _build(
    part: Part,
    model: bytes,
    how: PrecisionPlan,
    options: BuildOptions,
    report: Callable[[str], None],
) -> bytes:
    """The serialised engine of a part."""
    import tensorrt as trt

    log = make_logger()
    builder: trt.Builder = trt.Builder(log)
    network: trt.INetworkDefinition = builder.create_network(network_flags(how))
    parser: trt.OnnxParser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = [parser_error(parser.get_error(i), part.layers) for i in range(parser.num_errors)]
        raise EngineError(f"{part.name}: TensorRT's parser refuses the graph: {'; '.join(errors)}")
    config: trt.IBuilderConfig = builder.create_builder_config()
    apply_precision(config, how)
    if how.pin_types:
        _pin_types(network)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    samples = {port.name: port.shape for port in part.inputs}
    for index in range(network.num_inputs):
        tensor: trt.ITensor = network.get_input(index)
        if tensor.name not in samples:
            raise EngineError(f"{part.name}: the manifest has no input {tensor.name}: run ipt-export again")
        shapes = profile_shapes(tensor.name, tuple(tensor.shape), samples[tensor.name], options.profile)
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache, report)
    if hasattr(trt.IBuilderConfig, "progress_monitor"):
        config.progress_monitor = make_monitor(part.name, report)
    else:
        report(f"{part.name}: building")
    plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(explain_failure(part.name, log.errors, options.workspace))
    if options.timing_cache is not None:
        cache: trt.ITimingCache = config.get_timing_cache()
        with atomic_file(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return bytes(plan)


def network_flags(how: PrecisionPlan) -> int:
    """The network flags of a precision plan as TensorRT's bit mask."""
    import tensorrt as trt

    return sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in how.network_flags)


def apply_precision(config: trt.IBuilderConfig, how: PrecisionPlan) -> None:
    """Set and clear the builder flags of a precision plan."""
    import tensorrt as trt

    for name in how.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    for name in how.cleared_flags:
        config.clear_flag(getattr(trt.BuilderFlag, name))


def make_logger() -> Any:
    """A `tensorrt.ILogger` that keeps errors (`errors`) and hands the rest to Python's logging."""
    import tensorrt as trt

    class Log(trt.ILogger):  # type: ignore[misc]  # tensorrt has no types here
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
                logger.error("%s", message)
            elif severity == trt.ILogger.WARNING:
                logger.warning("%s", message)

    return Log()


def make_monitor(part: str, report: Callable[[str], None]) -> Any:
    """A `tensorrt.IProgressMonitor` that reports a build's phases, and their steps by tenths; TensorRT 10 and newer."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # tensorrt has no types here
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if parent_phase is None:
                report(f"{part}: {phase_name}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name, 0)
            if steps >= 10 and (step + 1) % (steps // 10) == 0:
                report(f"{part}: {phase_name} {step + 1}/{steps}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def parser_error(error: trt.ParserError, layers: Sequence[Layer]) -> str:
    """A parser's error with the node's name and operator, which TensorRT 8.6 gives by its index alone."""
    index = error.node()
    where = "the graph"
    if 0 <= index < len(layers):
        where = f"node {layers[index].name or index} ({layers[index].operator})"
    return f"{where}: {' '.join(str(error.desc()).split())}"


def _pin_types(network: trt.INetworkDefinition) -> None:
    """Tell TensorRT 8.6 to compute each layer of a typed graph in the type that the graph gives its result."""
    import tensorrt as trt

    moving = (trt.LayerType.CONSTANT, trt.LayerType.SHUFFLE, trt.LayerType.CONCATENATION, trt.LayerType.SLICE)
    other = (trt.LayerType.SHAPE, trt.LayerType.CAST, trt.LayerType.IDENTITY)
    for index in range(network.num_layers):
        layer: trt.ILayer = network.get_layer(index)
        if layer.type in (*moving, *other) or layer.num_outputs == 0:
            continue
        output: trt.ITensor = layer.get_output(0)
        if output.dtype in (trt.DataType.FLOAT, trt.DataType.HALF) and not output.is_shape_tensor:
            layer.precision = output.dtype
            layer.set_output_type(0, output.dtype)


def _load_timing_cache(config: trt.IBuilderConfig, path: Path, report: Callable[[str], None]) -> None:
    """Attach what a file holds, or an empty cache when it is missing or of another TensorRT or GPU."""
    content = path.read_bytes() if path.is_file() else b""
    if content:
        there: trt.ITimingCache | None = config.create_timing_cache(content)
        if there is not None and config.set_timing_cache(there, False):
            return
        report(f"{path} is of another TensorRT or GPU: starting an empty timing cache")
    config.set_timing_cache(config.create_timing_cache(b""), False)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("build.py", __doc__ or "")
    parser.add_argument("parts", type=Path, metavar="PARTS_DIR", help="ONNX parts and manifest.json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where plans go")
    parser.add_argument(
        "--precision", choices=ENGINE_PRECISIONS, help="of the arithmetic (default: what the graphs are)"
    )
    parser.add_argument("--min-batch", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--opt-batch", type=int, default=8, help="batch to optimise for (default %(default)s)")
    parser.add_argument("--max-batch", type=int, default=16, help="(default %(default)s)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel times, read and written")
    parser.add_argument("--workspace", type=float, metavar="GIB", help="scratch memory (default: all there is)")
    parser.add_argument("--level", type=int, default=3, help="builder level, 0 to 5 (default %(default)s)")
    parser.add_argument("--device", type=int, default=0, help="GPU (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these parts alone")
    parser.add_argument("--json", action="store_true", help="print the descriptions of the plans")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def build() -> None:
        batches = (arguments.min_batch, arguments.opt_batch, arguments.max_batch)
        options = BuildOptions(
            arguments.precision, batches, arguments.workspace, arguments.level, arguments.timing_cache
        )
        done = build_engines(arguments.parts, arguments.output, options, arguments.only, arguments.device)
        if arguments.json:
            print(json.dumps([metadata.to_dict() for metadata in done], indent=2))
        else:
            for metadata in done:
                print(summarise(metadata))

    return run_command(build)


if __name__ == "__main__":
    sys.exit(main())
