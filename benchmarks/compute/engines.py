"""Latency and throughput of each part by batch size and precision, against the machine's own matrix-multiply rate.

    ipt-benchmark engines --parts build/parts --only body --precision fp32 bf16
    ipt-benchmark engines --preset ipt --only body --precision fp32 bf16 --through openvino pytorch torch.compile
    ipt-benchmark engines --plans build/engines --json build/engines.json
    ipt-benchmark engines --preset ipt --precision fp16 --through pytorch torch.compile     # also on a GPU

`--parts` runs ONNX parts with OpenVINO on the CPU, `--preset` those of an architecture with the weights that training
starts from and one task. `--plans` runs plans of TensorRT, or of TensorRT for RTX, on a GPU; from source it needs no
more than numpy, the library and pycuda (Python 3.9 syntax). `--through` runs the parts of a preset through PyTorch as
well, or instead, eager or compiled (on a GPU with max-autotune), on the GPU where there is one, and needs no more than
torch and numpy for it. Random patches: speed does not depend on them, nor on the weights.

Latency is a whole call, on a GPU with the copies to it and from it; compute is the engine alone. The achieved rate is
the FLOPs of the part (convolutions and matrix multiplications, a multiply-add is two) over the compute time; the last
column sets it against one large matrix multiplication of the same precision in the same run, measured before and after
the parts. Medians, and in brackets the quartiles.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ipt_triton.benchmarks.compute.measurement import FEWEST_RUNS, OPENVINO, WARM_UP, WAYS, Measurement, repeat, runs_in
from ipt_triton.benchmarks.presentation import Figure, figure, powers_of_two, quartiles, table
from ipt_triton.benchmarks.record import Record, Session, Spread, command_line, publish
from ipt_triton.cli import run_command
from ipt_triton.export.engines.builder import aim_at, apply_precision, network_flags
from ipt_triton.export.engines.cuda import GpuSession
from ipt_triton.export.engines.inputs import choose_parts, plan_precision, random_inputs
from ipt_triton.export.engines.library import Library, load_library
from ipt_triton.export.engines.messages import explain_failure, make_logger
from ipt_triton.export.engines.metadata import BuildFacts, EngineError, read_metadata
from ipt_triton.export.engines.runner import EngineRunner
from ipt_triton.manifest import read_manifest

if TYPE_CHECKING:
    import tensorrt as trt

BATCHES = (1, 2, 4, 8, 16)
MATMUL_SIZE = {"cpu": 1024, "gpu": 8192}
"""Side of the square matrices: large enough for the processor's best rate, and still quick."""


def measure_cpu(
    folder: Path, only: Sequence[str], precisions: Sequence[str], batches: Sequence[int], seconds: float, size: int
) -> list[Measurement]:
    """Parts through OpenVINO on this CPU, all cores for one call at a time.

    Args:
        seconds: per part, precision and batch.
        size: side of the matrices of the bare multiplication.

    Raises:
        EngineError: a precision that this CPU does not compute, or a part that is not there.
    """
    import openvino as ov

    from ipt_triton.export.parts.one_core import core

    hints = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16, "fp16": ov.Type.f16}
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    parts = choose_parts(read_manifest(folder).parts, only)
    done = []
    for precision in precisions:
        if precision.upper() not in able:
            raise EngineError(f"this CPU does not compute {precision.upper()}: leave it out of --precision")
        options = {"INFERENCE_PRECISION_HINT": hints[precision], "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        matmul = _cpu_matmul(options, size)
        matmul_times = repeat(matmul, seconds)
        found = []
        for part in parts:
            compiled = core().compile_model(folder / f"{part.name}.onnx", "CPU", options)
            kinds = {port.any_name: port.get_element_type().to_dtype() for port in compiled.inputs}
            request = compiled.create_infer_request()
            for batch in batches:
                inputs = {name: x.astype(kinds[name]) for name, x in random_inputs(part, batch).items()}
                call = partial(request.infer, inputs, share_inputs=True, share_outputs=True)
                spread = Spread.of(repeat(call, seconds))
                found.append(Measurement(part.name, precision, batch, spread, spread, part.flops))
        matmul_times += repeat(matmul, seconds)
        rate = 2 * size**3 / statistics.median(matmul_times)
        done += [replace(measurement, matmul_rate=rate) for measurement in found]
    return done


def _cpu_matmul(options: dict[str, object], size: int) -> Callable[[], object]:
    """A square matrix times a constant one, as the parts multiply with their weights."""
    import openvino as ov
    from openvino import opset13

    from ipt_triton.export.parts.one_core import core

    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal((size, size)).astype(np.float32) for _ in range(2))
    parameter = opset13.parameter([size, size], np.float32)
    product = opset13.matmul(parameter, opset13.constant(b), transpose_a=False, transpose_b=False)
    request = core().compile_model(ov.Model([product], [parameter]), "CPU", options).create_infer_request()
    return lambda: request.infer([a], share_inputs=True, share_outputs=True)


def measure_gpu(
    plans: Path, only: Sequence[str], batches: Sequence[int], seconds: float, size: int, device: int
) -> list[Measurement]:
    """Plans of a folder that are for this GPU. Batches outside a plan's profile are left out.

    Raises:
        EngineError: as `EngineRunner`; or the folder holds no plans for this GPU, or none of a name asked for.
    """
    there = {path: read_metadata(path) for path in sorted(plans.glob("*.plan"))}
    names = sorted({metadata.part for metadata in there.values()})
    if not names or set(only) - set(names):
        wanted = ", ".join(sorted(set(only) - set(names))) or "plan"
        raise EngineError(
            f"{plans} holds no {wanted}; it holds {', '.join(names) or 'nothing'}: run ipt-export engines"
        )
    capability = GpuSession(device).gpu.compute_capability
    chosen = {
        path: metadata
        for path, metadata in there.items()
        if metadata.compute_capability == capability and (not only or metadata.part in only)
    }
    if not chosen:
        raise EngineError(
            f"{plans} holds no plan for compute capability {capability}, this GPU's: run ipt-export engines"
        )
    done = []
    for library, precision in sorted({(m.library, m.precision) for m in chosen.values()}):
        matmul = None if precision == "bf16" else gpu_matmul(library, size, precision, device)  # numpy has no BF16
        rates = [] if matmul is None else _gpu_seconds(matmul, size, seconds)
        found = []
        for path, metadata in chosen.items():
            if (metadata.library, metadata.precision) != (library, precision):
                continue
            with EngineRunner(path.read_bytes(), metadata, device) as runner:
                for batch in batches:
                    if not metadata.profile[0] <= batch <= metadata.profile[2]:
                        continue
                    inputs = {
                        x.name: np.random.default_rng(0).uniform(0, 1, (batch, *x.shape)).astype(x.dtype)
                        for x in runner.inputs
                    }
                    latency = repeat(partial(runner.run, inputs), seconds)
                    compute = _gpu_seconds(runner, batch, seconds)
                    spreads = Spread.of(latency), Spread.of(compute)
                    flops = metadata.flops
                    found.append(Measurement(metadata.part, precision, batch, *spreads, flops, None, library))
        if matmul is not None:
            rates += _gpu_seconds(matmul, size, seconds)
            matmul.close()
        rate = 2 * size**3 / statistics.median(rates) if rates else None
        done += [replace(measurement, matmul_rate=rate) for measurement in found]
    return done


def _gpu_seconds(runner: EngineRunner, batch: int, seconds: float) -> list[float]:
    """Compute times for about `seconds`."""
    once = statistics.median(runner.device_seconds(batch, WARM_UP + FEWEST_RUNS))
    return runner.device_seconds(batch, runs_in(seconds, once))


def gpu_matmul(name: str, size: int, precision: str, device: int) -> EngineRunner:
    """An engine that multiplies [size, size] with a constant matrix, in `fp32` or `fp16`, in and out.

    Args:
        name: of the library that builds it.
    """
    library = load_library(name)
    session = GpuSession(device)
    capability = session.gpu.compute_capability
    with session:
        plan = matmul_plan(library, size, precision, capability)
    facts = BuildFacts(
        part="matrix multiplication",
        library=library.name,
        version=library.version,
        gpu=session.gpu.name,
        compute_capability=capability,
        precision=precision,
        profile=(size, size, size),
        level=3,
        onnx_sha256="",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        weight_count=size * size,
        build_seconds=0.0,
        flops=2 * size * size,
    )
    return EngineRunner(plan, facts, device)


def matmul_plan(library: Library, size: int, precision: str, capability: str) -> bytes:
    """The plan of that engine, see `gpu_matmul`; raises EngineError when it cannot be built."""
    lib = library.module
    kind, dtype = {"fp32": (lib.DataType.FLOAT, np.float32), "fp16": (lib.DataType.HALF, np.float16)}[precision]
    how = plan_precision(library, precision, precision)
    weights = (np.random.default_rng(0).standard_normal((size, size)) / size**0.5).astype(dtype)
    log = make_logger(lib)
    builder: trt.Builder = lib.Builder(log)
    network: trt.INetworkDefinition = builder.create_network(network_flags(lib, how))
    tensor: trt.ITensor = network.add_input("A", kind, (-1, size))
    constant: trt.ILayer = network.add_constant((size, size), weights)
    plain = lib.MatrixOperation.NONE
    layer: trt.ILayer = network.add_matrix_multiply(tensor, plain, constant.get_output(0), plain)
    product: trt.ITensor = layer.get_output(0)
    product.name = "PRODUCT"
    if not library.strongly_typed:
        product.dtype = kind
    network.mark_output(product)
    config: trt.IBuilderConfig = builder.create_builder_config()
    if library.ahead_of_time:
        aim_at(config, library, capability)
    apply_precision(lib, config, how)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    profile.set_shape("A", (size, size), (size, size), (size, size))
    config.add_optimization_profile(profile)
    serialised: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if serialised is None:
        raise EngineError(explain_failure("matrix multiplication", log.errors, None))
    return bytes(serialised)


def measurements(record: Record) -> list[Measurement]:
    return [Measurement.of(entry) for entry in record.figures["measurements"]]


def matmul_rates(found: Sequence[Measurement]) -> dict[str, float]:
    """FLOP/s of the matrix multiplication by precision, where it was measured; the fastest of what ran it."""
    rates: dict[str, float] = {}
    for m in found:
        if m.matmul_rate is not None:
            rates[m.precision] = max(rates.get(m.precision, 0.0), m.matmul_rate)
    return rates


def markdown(record: Record) -> str:
    """A table of all measurements, and the rates of the bare matrix multiplication."""
    rows = []
    found = measurements(record)
    fastest = matmul_rates(found)
    for m in found:
        latency, compute = (quartiles(asdict(spread), scale=1e3) for spread in (m.latency, m.compute))
        rate = "–" if m.rate is None else f"{m.rate / 1e9:.1f}"
        share = "–" if m.rate is None or m.precision not in fastest else f"{100 * m.rate / fastest[m.precision]:.0f} %"
        speed = f"{m.patches_per_second:.3g}" if m.patches_per_second < 1000 else f"{m.patches_per_second:.0f}"
        rows.append((m.part, m.through, m.precision, m.batch, latency, compute, speed, rate, share))
    header = (
        *("part", "through", "precision", "batch", "latency, ms", "compute, ms", "patches/s", "GFLOP/s"),
        "of the matrix rate",
    )
    rates = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in fastest.items())
    matrix = f"\n\nThe matrix rate, of one large matrix multiplication: {rates}." if rates else ""
    return table(header, rows) + matrix


def draw(record: Record) -> Figure:
    """Achieved rate by batch, a line per part and way, below the rate of the matrix multiplication; by precision."""
    found = measurements(record)
    precisions = list(dict.fromkeys(m.precision for m in found))
    drawn, grid = figure(2.5 + 4 * len(precisions), 4, ncols=len(precisions), squeeze=False, sharey=True)
    lines = list(dict.fromkeys((m.part, m.through) for m in found))
    for precision, ax in zip(precisions, grid.flat):
        for number, (part, through) in enumerate(lines):
            chosen = [m for m in found if (m.part, m.through, m.precision) == (part, through, precision) and m.rate]
            rates = [(m.rate or 0) / 1e9 for m in chosen]
            ax.plot([m.batch for m in chosen], rates, "o-", label=f"{part}, {through}", color=f"C{number % 10}")
        if precision in matmul_rates(found):
            ax.axhline(matmul_rates(found)[precision] / 1e9, color="0.3", linestyle="--", label="matrix rate")
        batches = sorted({m.batch for m in found})
        powers_of_two(ax, batches)
        ax.set(title=precision, xlabel="batch, patches")
    grid.flat[0].set(ylabel="achieved rate, GFLOP/s", ylim=(0, None))  # last, or the shared axis stops growing
    grid.flat[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


@contextmanager
def parts_of(preset: str) -> Iterator[Path]:
    """A folder with the parts of one task of an architecture, gone afterwards.

    Raises:
        EngineError: there is no such architecture.
    """
    from ipt_triton.benchmarks.compute.engines_pytorch import check_preset
    from ipt_triton.benchmarks.served import random_checkpoint
    from ipt_triton.export.parts.split import export_parts
    from ipt_triton.tasks import OFFICIAL_TASKS

    check_preset(preset)
    with tempfile.TemporaryDirectory() as name:
        parts = Path(name) / "parts"
        export_parts([random_checkpoint(preset, OFFICIAL_TASKS[-1:])], parts)
        yield parts


def _measure_parts(arguments: argparse.Namespace, argv: Sequence[str] | None) -> tuple[Session, list[Measurement]]:
    """Exported parts through OpenVINO, and modules through PyTorch, as the arguments say."""
    through_openvino = OPENVINO in arguments.through
    ways = [way for way in arguments.through if way != OPENVINO]
    packages, facts, where = ["numpy"], {}, "cpu"
    if through_openvino:
        packages.append("openvino")
    if ways:
        import torch

        from ipt_triton.benchmarks.compute.engines_pytorch import measure_pytorch

        packages.append("torch")
        device = torch.device("cpu")
        if torch.cuda.is_available():
            if through_openvino:
                raise EngineError("OpenVINO would run on the CPU and PyTorch on the GPU: measure them one at a time")
            where, device = "gpu", torch.device("cuda", arguments.device)
            facts["gpu"] = torch.cuda.get_device_name(device)
    session = Session.start("engines", argv, packages, **facts)
    size = arguments.matmul_size or MATMUL_SIZE[where]
    common = (arguments.precision, arguments.batch, arguments.seconds, size)
    found: list[Measurement] = []
    if through_openvino:
        with parts_of(arguments.preset) if arguments.preset else nullcontext(arguments.parts) as parts:
            found += measure_cpu(parts, arguments.only, *common)
    if ways:
        found += measure_pytorch(arguments.preset, arguments.only, ways, *common, device)
    return session, found


def _measure_plans(arguments: argparse.Namespace, argv: Sequence[str] | None) -> tuple[Session, list[Measurement]]:
    """Plans on a GPU, as the arguments say."""
    size = arguments.matmul_size or MATMUL_SIZE["gpu"]
    gpu = GpuSession(arguments.device).gpu
    name = f"{gpu.name} (compute capability {gpu.compute_capability})"
    built = sorted({f"{m.library} {m.version}" for m in map(read_metadata, arguments.plans.glob("*.plan"))})
    session = Session.start("engines", argv, ("numpy",), gpu=name, library=", ".join(built))
    found = measure_gpu(arguments.plans, arguments.only, arguments.batch, arguments.seconds, size, arguments.device)
    return session, found


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    parser = command_line("engines", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parts", type=Path, metavar="DIR", help="ONNX parts, through OpenVINO on the CPU")
    source.add_argument("--preset", metavar="NAME", help="parts of ipt, ipt-small or ipt-tiny, exported for this")
    source.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans, on a GPU")
    parser.add_argument("--through", nargs="+", choices=WAYS, default=[OPENVINO], help="(default openvino)")
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32"], help="not of plans (default fp32)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES), help="(default 1 2 4 8 16)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these parts alone")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure (default %(default)s)")
    parser.add_argument("--matmul-size", type=int, metavar="N", help="side of the matrices (default 1024; GPU 8192)")
    parser.add_argument("--device", type=int, default=0, help="GPU (default %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.through != [OPENVINO] and not arguments.preset:
        parser.error(
            f"--through {' '.join(arguments.through)} needs --preset: PyTorch runs modules, not exported parts"
        )

    def work() -> None:
        session, found = (_measure_plans if arguments.plans else _measure_parts)(arguments, argv)
        publish(session.record({"measurements": [asdict(m) for m in found]}), arguments, markdown, draw)

    return run_command(work)
