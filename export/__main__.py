"""Export checkpoints: split them into ONNX parts, check the parts, and write a Triton model repository.

    ipt-export weights/ipt-tiny
    ipt-export weights/ipt-small my/denoiser --precision bf16 --repository triton_models
    ipt-export weights/ipt-tiny --precision int8 --calibration photos

    ipt-export weights/ipt-tiny --runtime tensorrt-python --precision fp16 --repository build/gpu_models

    ipt-export parts weights/ipt-tiny --runtime tensorrt-rtx --precision fp16
    ipt-export engines build/parts --output build/engines --compute-capability 8.6 8.9
    ipt-export repository --parts build/parts --engines build/engines --repository build/gpu_models

Several checkpoints are served side by side; those with the same body share it. A task may come from one of them only.

Runtimes: `openvino` (the default) runs on CPUs. `tensorrt` is Triton's TensorRT backend. `tensorrt-python` runs the
same engines in Triton's Python backend, `tensorrt-rtx` those of TensorRT for RTX. A repository for a GPU works without
engines: `ipt-serve` builds them at its first start. `ipt-export engines` builds them beforehand, see its --help.

    ipt-export parts weights/ipt-tiny --parts weights/ipt-tiny/parts.zip
    ipt-export repository --parts weights/ipt-tiny/parts.zip --precision bf16

A ZIP file beside the weights holds all of the parts for OpenVINO but the weights. With it a repository is written in a
second, and without PyTorch.

Exit status: 0 done; 1 refused, and what missed its tolerance is not written; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

from ipt_triton.cli import make_parser, run_command
from ipt_triton.cpu import cpu_flags, cpu_notes
from ipt_triton.export.engines import build
from ipt_triton.export.engines.metadata import plans_beside
from ipt_triton.export.errors import ExportError
from ipt_triton.export.repository import packed
from ipt_triton.export.repository.write import PLAN_STEM, ServingOptions, write_repository
from ipt_triton.images import PHOTOS
from ipt_triton.manifest import PRECISIONS, RESIDUALS, Manifest, read_manifest

logger = logging.getLogger(__name__)

PARTS, REPOSITORY = STEPS = ("parts", "repository")
ENGINES = "engines"
ALIKE = ("fp32", "bf16")
"""Precisions of OpenVINO whose graphs are the same."""
USAGE = """\
ipt-export CHECKPOINT [CHECKPOINT ...] [options of both steps, but --engines]
       ipt-export parts CHECKPOINT [CHECKPOINT ...] [--parts DIR] [options]
       ipt-export engines PARTS_DIR --output DIR [options]
       ipt-export repository [--parts DIR] [--engines DIR ...] [--repository DIR] [options]"""


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The arguments; `steps` holds those of `STEPS` that are asked for."""
    steps = (words.pop(0),) if words and words[0] in STEPS else STEPS
    parser = make_parser(f"ipt-export {steps[0]}", __doc__ or "")
    if steps == STEPS:
        parser.prog, parser.usage = "ipt-export", USAGE
    parser.set_defaults(steps=steps, engines=())
    parser.add_argument(
        "--parts", type=Path, default=Path("build/parts"), help="ONNX parts and manifest (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a summary")
    if PARTS in steps:
        _add_parts_arguments(parser)
    if REPOSITORY in steps:
        _add_repository_arguments(parser)
    if steps == (REPOSITORY,):
        help = "engines made by ipt-export engines"
        parser.add_argument("--engines", type=Path, nargs="+", metavar="DIR", help=help)
        help = "of the arithmetic of parts for openvino in fp32 or bf16 (default: that in which they were checked)"
        parser.add_argument("--precision", choices=ALIKE, help=help)
    arguments = parser.parse_args(words)
    for folder in arguments.engines:
        if not folder.is_dir():
            make = f"ipt-export engines {shlex.quote(str(arguments.parts))} --output {shlex.quote(str(folder))}"
            parser.error(f"--engines {folder} is not a folder; {make} makes one")
    if PARTS in steps:
        from ipt_triton.export.parts.split import check_batch, check_combination  # with PyTorch, which others need not

        if arguments.parts.suffix == packed.SUFFIX and arguments.checkpoints != [arguments.parts.parent]:
            parser.error(
                f"{arguments.parts} is packed beside its weights: give CHECKPOINT --parts CHECKPOINT/parts.zip"
            )
        if arguments.calibration and arguments.precision != "int8":
            parser.error(f"--calibration is for --precision int8, not {arguments.precision}")
        try:
            check_combination(
                arguments.runtime,
                arguments.precision,
                arguments.residual,
                arguments.fp32_io,
                arguments.fp16_restored,
            )
            check_batch(arguments.max_batch)
        except ExportError as error:
            parser.error(str(error))
    return arguments


def _add_parts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="checkpoint folders")
    parser.add_argument(
        "--runtime", choices=tuple(PRECISIONS), default="openvino", help="what runs the parts (default %(default)s)"
    )
    parser.add_argument(
        "--precision",
        choices=tuple(dict.fromkeys(p for precisions in PRECISIONS.values() for p in precisions)),
        default="fp32",
        help="of the arithmetic (default %(default)s); int8 for openvino alone, fp16 for the tensorrt runtimes alone",
    )
    parser.add_argument(
        "--residual", choices=RESIDUALS, default="float32", help="residual stream of fp16 parts (default %(default)s)"
    )
    help = "tensors between fp16 or bf16 parts in FP32 (default: FP16, unless their values do not fit)"
    parser.add_argument("--fp32-io", action="store_true", help=help)
    help = "restored patches in FP16: half the bytes, for 8-bit images (default: FP32)"
    parser.add_argument("--fp16-restored", action="store_true", help=help)
    help = "most patches of one request to the network (default: 8, on a GPU by memory)"
    parser.add_argument("--max-batch", type=int, metavar="N", help=help)
    help = "clean photographs that int8 is calibrated and measured on (default: the project's own)"
    parser.add_argument("--calibration", type=Path, metavar="DIR", help=help)


def _add_repository_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository", type=Path, default=Path("triton_models"), help="model repository (default %(default)s)"
    )
    for option in fields(ServingOptions):
        flag, help = f"--{option.name.replace('_', '-')}", f"{option.metadata['help']} (default %(default)s)"
        parser.add_argument(flag, type=int, default=option.default, metavar="N", help=help)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [ENGINES]:
        return build.main(words[1:])
    arguments = parse_arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ipt_triton.export").setLevel(logging.INFO)  # not the ONNX exporter's own reports
    return run_command(lambda: export(arguments))


def parts_of(arguments: argparse.Namespace, folder: Path) -> Manifest:
    """Make the parts that are asked for in this folder, or find them there."""
    pack = arguments.parts.suffix == packed.SUFFIX
    if PARTS not in arguments.steps:
        manifest = packed.unpack(arguments.parts, folder) if pack else read_manifest(folder)
        if arguments.precision is None:
            return manifest
        if manifest.runtime != "openvino" or manifest.precision not in ALIKE:
            raise ExportError(
                f"--precision is for parts for openvino in {' or '.join(ALIKE)}; these are for {manifest.runtime} in "
                f"{manifest.precision}: leave it out"
            )
        return replace(manifest, precision=arguments.precision)
    from ipt_triton.export.parts.calibration import read_photos
    from ipt_triton.export.parts.split import export_parts
    from ipt_triton.train.model.checkpoint import load_checkpoint

    manifest = export_parts(
        [load_checkpoint(checkpoint) for checkpoint in arguments.checkpoints],
        folder,
        arguments.precision,
        arguments.runtime,
        arguments.residual,
        arguments.fp32_io,
        read_photos(arguments.calibration or PHOTOS) if arguments.precision == "int8" else [],
        arguments.max_batch,
        arguments.fp16_restored,
    )
    if pack:
        packed.pack(folder, arguments.parts)
    return manifest


def export(arguments: argparse.Namespace) -> None:
    """Take the steps that are asked for."""
    with ExitStack() as stack:
        folder = arguments.parts
        if folder.suffix == packed.SUFFIX:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), "parts")
        manifest = parts_of(arguments, folder)
        models = []
        if REPOSITORY in arguments.steps:
            names = [option.name for option in fields(ServingOptions)]
            options = ServingOptions(**{name: getattr(arguments, name) for name in names})
            models = write_repository(folder, manifest, arguments.repository, options, arguments.engines)
    for note in cpu_notes(manifest.precision, cpu_flags()) if manifest.runtime == "openvino" else ():
        logger.warning("note: %s", note)
    engines = ""
    if models and manifest.runtime != "openvino":
        cards = plans_beside(arguments.repository / manifest.parts[0].name / "1" / PLAN_STEM)
        engines = f", engines for compute capability {', '.join(cards)}" if cards else ", no engines yet"
    tasks = ", ".join(route.task.name for route in manifest.routes)
    if arguments.json:
        print(json.dumps(manifest.to_dict(), indent=2))
    elif models:
        print(f"{arguments.repository}: {len(models)} models, tasks {tasks}{engines}")
    else:
        print(f"{arguments.parts}: {len(manifest.parts)} parts in {manifest.precision}, tasks {tasks}")
    if not models:
        write = f"ipt-export repository --parts {shlex.quote(str(arguments.parts))}"
        print(f"no repository yet: run  {write}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
