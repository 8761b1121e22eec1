"""Build engines from ONNX parts, check them, and describe them.

    ipt-export engines build/parts --output build/engines
    ipt-export engines build/parts --output build/engines --only body --timing-cache build/timing
    ipt-export engines build/parts --output build/engines --library tensorrt-rtx --compute-capability 8.6 8.9 12.0
    ipt-export engines --repository build/tensorrt_models

TensorRT (8.6, 10 or 11) builds for the GPU at hand. TensorRT for RTX builds ahead of time, with or without a GPU, for
the GeForce and RTX cards of the compute capabilities that are named, or for the GPU at hand. With --repository the
plans that a model repository lacks for this GPU are built in place, with the library of its runtime.

The command also runs by its path, `python export/engines/build.py`, where there is nothing but a checkout, numpy, the
library and, for a GPU, pycuda (Python 3.9 syntax). Networks are strongly typed: the ONNX graph alone says what is
computed in FP16, and `--precision` must agree with it. TensorRT 8.6 is told by flags, and the types of an FP16 graph
are pinned layer by layer.

Beside `<part>.onnx` and `manifest.json` there may be `samples.npz`: reference tensors that PyTorch computed in FP32 on
real tiles. After a build the engine runs at the profile's smallest, optimal and largest batch; NaN, Inf or results too
far from the reference tensors refuse it. An engine for a card that is not here cannot be run: what its builder tells of
its layers is checked. A plan appears only after that, whole, with its description beside it. A plan that is up to date
is kept, so a build that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

if not __package__:  # run by its path: Python looks beside this file, and the room is one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[2] / "src")

from ipt_triton.cli import make_parser, run_command
from ipt_triton.export.engines.builder import build_engine
from ipt_triton.export.engines.checks import check_engine, check_unrun
from ipt_triton.export.engines.cuda import GpuSession
from ipt_triton.export.engines.files import BuildOptions, Folders, summarise, up_to_date, write_plan
from ipt_triton.export.engines.inputs import (
    ENGINE_PRECISIONS,
    PrecisionPlan,
    check_capability,
    choose_parts,
    plan_precision,
    reference_tensors,
)
from ipt_triton.export.engines.library import LIBRARIES, RTX, Library, capability_member, library_of, load_library
from ipt_triton.export.engines.metadata import BuildFacts, EngineError, EngineMetadata, read_metadata
from ipt_triton.manifest import SAMPLES, Manifest, Part, read_manifest, tasks_of_parts

logger = logging.getLogger("ipt_triton.export.engines.build")


def build_engines(
    folders: Folders,
    library: Library,
    options: BuildOptions,
    capabilities: Sequence[str] = (),
    only: Sequence[str] = (),
    device: int = 0,
    report: Callable[[str], None] = logger.info,
) -> list[EngineMetadata]:
    """Build, check and write the engine of each part.

    Args:
        capabilities: compute capabilities; none for that of the GPU. TensorRT builds for no other.
        only: names of parts; none for all.
        device: number of the GPU.
        report: gets lines about the progress.

    Raises:
        EngineError, ManifestError, ParityError: one sentence; the plans that were written before stay.
    """
    manifest = read_manifest(folders.parts)
    parts = choose_parts(manifest.parts, only)
    session = _session(library, device, capabilities)
    here = session.gpu.compute_capability if session else ""
    report(f"{library}, " + (f"{session.gpu.name}, compute capability {here}" if session else "no GPU"))
    wanted = tuple(dict.fromkeys(capabilities)) or (here,)
    how = plan_precision(library, options.precision, manifest.graph_precision)
    _check_capabilities(library, how, wanted, here)
    if session and here in wanted and not (folders.parts / SAMPLES).is_file():
        report(f"{folders.parts / SAMPLES} is missing: engines are checked for NaN and Inf alone, not against PyTorch")
    with session or nullcontext():
        return [
            _build_one(folders, library, how, options, manifest, part, capability, session, report)
            for capability in wanted
            for part in parts
        ]


def _session(library: Library, device: int, capabilities: Sequence[str]) -> GpuSession | None:
    """The GPU at hand; None where there is none and the library needs none."""
    try:
        return GpuSession(device)
    except EngineError as error:
        if not library.ahead_of_time:
            raise
        if not capabilities:
            raise EngineError(
                f"{error}; or name the cards to build for with --compute-capability, such as 8.9 (RTX 40 series)"
            ) from error
        return None


def _check_capabilities(library: Library, how: PrecisionPlan, wanted: Sequence[str], here: str) -> None:
    for capability in wanted:
        if library.ahead_of_time:
            capability_member(library, capability)
        elif capability != here:
            raise EngineError(
                f"{library} builds for the GPU that it runs on, of compute capability {here}, not for {capability}: "
                f"build there, or for GeForce and RTX cards with --library {RTX}"
            )
        check_capability(how.precision, capability)


def _build_one(
    folders: Folders,
    library: Library,
    how: PrecisionPlan,
    options: BuildOptions,
    manifest: Manifest,
    part: Part,
    capability: str,
    session: GpuSession | None,
    report: Callable[[str], None],
) -> EngineMetadata:
    path = folders.onnx(part.name)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}): run ipt-export again") from error
    served = tasks_of_parts(manifest.routes)
    if manifest.routes and part.name not in served:
        raise EngineError(f"{part.name} serves no task of the manifest: run ipt-export again")
    # TensorRT 8.6 may be told to compute an FP32 graph in FP16.
    layer_precision = how.precision if how.precision != manifest.graph_precision else part.layer_precision
    sha256 = hashlib.sha256(model).hexdigest()
    plan_file = folders.plan(part.name, capability)
    gpu = session.gpu if session and session.gpu.compute_capability == capability else None
    if up_to_date(plan_file, sha256, library, capability, how.precision, options, run=gpu is not None):
        report(f"{part.name} for {capability}: up to date")
        return read_metadata(plan_file)
    started = time.perf_counter()
    built = build_engine(library, part, model, how, options, capability, report)
    facts = BuildFacts(
        part=part.name,
        library=library.name,
        version=library.version,
        gpu=gpu.name if gpu else "",
        compute_capability=capability,
        precision=how.precision,
        profile=options.profile,
        level=options.level,
        onnx_sha256=sha256,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        weight_count=part.weight_count,
        build_seconds=round(time.perf_counter() - started, 3),
        flops=part.flops,
    )
    if session and gpu:
        _, (task, *_) = served[part.name]
        reference = reference_tensors(folders.parts / SAMPLES, part, task)
        results = check_engine(built.plan, facts, part, layer_precision, reference, session.device)
    else:
        results = check_unrun(built, facts, part, layer_precision)
    metadata = EngineMetadata(**vars(facts), **vars(results))
    write_plan(plan_file, built.plan, metadata)
    report(summarise(metadata))
    return metadata


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("ipt-export engines", __doc__ or "")
    parser.add_argument("parts", type=Path, nargs="?", metavar="PARTS_DIR", help="ONNX parts and manifest.json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where plans go")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="build in place in this model repository")
    parser.add_argument("--library", choices=tuple(LIBRARIES), help="what builds (default: that of the parts' runtime)")
    parser.add_argument(
        *("--compute-capability",), nargs="+", default=[], metavar="N.N", help=f"cards to build for; {RTX} alone"
    )
    parser.add_argument(
        "--precision", choices=ENGINE_PRECISIONS, help="of the arithmetic (default: what the graphs are)"
    )
    parser.add_argument("--min-batch", type=int, default=1, help="(default %(default)s)")
    parser.add_argument("--opt-batch", type=int, metavar="N", help="batch to optimise for (default: the manifest's)")
    parser.add_argument("--max-batch", type=int, metavar="N", help="(default: the manifest's, which is what is served)")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="kernel times, read and written")
    parser.add_argument("--workspace", type=float, metavar="GIB", help="scratch memory (default: all there is)")
    parser.add_argument("--level", type=int, default=3, help="builder level, 0 to 5 (default %(default)s)")
    parser.add_argument("--device", type=int, default=0, help="GPU (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these parts alone")
    parser.add_argument("--json", action="store_true", help="print the descriptions instead of a summary")
    arguments = parser.parse_args(argv)
    if arguments.repository and (arguments.parts or arguments.output):
        parser.error("--repository builds in place: leave out PARTS_DIR and --output")
    if not arguments.repository and not (arguments.parts and arguments.output):
        parser.error("PARTS_DIR and --output are needed, or --repository")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)

    def report(line: str) -> None:
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    def build() -> None:
        folders = Folders(arguments.repository or arguments.parts, arguments.output)
        manifest = read_manifest(folders.parts)
        library = load_library(arguments.library or library_of(manifest.runtime))
        largest = arguments.max_batch or manifest.max_batch
        options = BuildOptions(
            precision=arguments.precision,
            profile=(arguments.min_batch, arguments.opt_batch or largest, largest),
            workspace=arguments.workspace,
            level=arguments.level,
            timing_cache=arguments.timing_cache,
        )
        capabilities, only = arguments.compute_capability, arguments.only
        done = build_engines(folders, library, options, capabilities, only, arguments.device, report)
        if arguments.json:
            print(json.dumps([metadata.to_dict() for metadata in done], indent=2))

    return run_command(build)


if __name__ == "__main__":
    sys.exit(main())
