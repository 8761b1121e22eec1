"""Export checkpoints: split them into ONNX parts, check the parts, and write a Triton model repository.

    ipt-export weights/ipt-tiny
    ipt-export weights/ipt-small my/denoiser --precision bf16 --repository triton_models
    ipt-export weights/ipt-tiny --precision int8 --calibration photos
    ipt-export weights/ipt-tiny --runtime tensorrt --precision fp16
    ipt-export --parts build/parts --engines build/engines

Several checkpoints are served side by side; those with the same body share it. A task may come from one of them only.

OpenVINO (the default) needs no GPU. For TensorRT the first command writes the parts and says how engines are built from
them on the GPU machine; the second takes no checkpoints but the parts and their engines, and writes the repository.
`tensorrt` is Triton's TensorRT backend, `tensorrt-python` runs the same engines in Triton's Python backend.

Exit status: 0 done; 1 refused, and what missed its tolerance is not written; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ipt_triton.export.parts.calibration import CalibrationError, read_photos
from ipt_triton.export.parts.graph import GraphError
from ipt_triton.export.parts.int8 import QuantizationError
from ipt_triton.export.parts.split import PRECISIONS, RESIDUALS, ExportError, check_combination, export_parts
from ipt_triton.export.repository.write import RepositoryError, ServingOptions, write_repository
from ipt_triton.images import PHOTOS
from ipt_triton.manifest import ManifestError, read_manifest
from ipt_triton.parity import ParityError
from ipt_triton.train.model.checkpoint import CheckpointError, load_checkpoint

REFUSALS = (
    CalibrationError,
    CheckpointError,
    ExportError,
    GraphError,
    ManifestError,
    ParityError,
    QuantizationError,
    RepositoryError,
)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="ipt-export", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = ServingOptions()
    parser.add_argument(
        "checkpoints", type=Path, nargs="*", metavar="CHECKPOINT", help="checkpoint folders; none: the parts there are"
    )
    parser.add_argument("--runtime", choices=tuple(PRECISIONS), help="what runs the parts (default openvino)")
    parser.add_argument(
        "--precision",
        choices=tuple(dict.fromkeys(p for precisions in PRECISIONS.values() for p in precisions)),
        help="of the arithmetic (default fp32); int8 for openvino alone, fp16 for the tensorrt runtimes alone",
    )
    parser.add_argument("--residual", choices=RESIDUALS, help="residual stream of fp16 parts (default float32)")
    parser.add_argument(
        "--fp32-io",
        action="store_true",
        help="tensors between fp16 or bf16 parts in FP32 (default: FP16, unless their values do not fit)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="clean photographs that int8 is calibrated and judged on (default: the project's own)",
    )
    parser.add_argument(
        "--engines",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="TensorRT engines made by export/engines/build.py, one folder per GPU architecture",
    )
    parser.add_argument(
        "--repository", type=Path, default=Path("triton_models"), help="model repository (default %(default)s)"
    )
    parser.add_argument(
        "--parts", type=Path, default=Path("build/parts"), help="ONNX parts and manifest (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=defaults.threads, help="of each part; 0: half of the cores")
    parser.add_argument(
        "--body-instances", type=int, default=defaults.body_instances, help="bodies side by side (default %(default)s)"
    )
    parser.add_argument("--router-instances", type=int, default=defaults.router_instances, help="(default %(default)s)")
    parser.add_argument(
        "--queue-delay-us",
        type=int,
        default=defaults.queue_delay_us,
        help="wait for a fuller batch (default %(default)s)",
    )
    parser.add_argument("--max-input-pixels", type=int, default=defaults.max_input_pixels, help="(default %(default)s)")
    parser.add_argument(
        "--max-output-pixels", type=int, default=defaults.max_output_pixels, help="(default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest instead of a summary")
    arguments = parser.parse_args(argv)
    for folder in arguments.engines:
        if not folder.is_dir():
            parser.error(f"--engines {folder} is no folder; {_engine_command(arguments.parts)} makes one")
    if not arguments.checkpoints:
        if arguments.runtime or arguments.precision or arguments.residual or arguments.fp32_io:
            parser.error("--runtime, --precision, --residual and --fp32-io are settled in parts; name a CHECKPOINT")
        return arguments
    if arguments.engines:
        parser.error("engines belong to parts that were exported before; leave CHECKPOINT out and name --parts")
    arguments.runtime = arguments.runtime or "openvino"
    arguments.precision = arguments.precision or "fp32"
    arguments.residual = arguments.residual or "float32"
    if arguments.calibration and arguments.precision != "int8":
        parser.error(f"--calibration is for --precision int8, not {arguments.precision}")
    try:
        check_combination(arguments.runtime, arguments.precision, arguments.residual, arguments.fp32_io)
    except ExportError as error:
        parser.error(str(error))
    return arguments


def _engine_command(parts: Path) -> str:
    return f"python export/engines/build.py {shlex.quote(str(parts))} --output build/engines"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 refused, 2 wrong arguments."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("export").setLevel(logging.INFO)  # not the ONNX exporter's own reports
    options = ServingOptions(
        threads=arguments.threads,
        body_instances=arguments.body_instances,
        router_instances=arguments.router_instances,
        queue_delay_us=arguments.queue_delay_us,
        max_input_pixels=arguments.max_input_pixels,
        max_output_pixels=arguments.max_output_pixels,
    )
    try:
        if arguments.checkpoints:
            checkpoints = [load_checkpoint(folder) for folder in arguments.checkpoints]
            photos = read_photos(arguments.calibration or PHOTOS) if arguments.precision == "int8" else []
            manifest = export_parts(
                checkpoints,
                arguments.parts,
                arguments.precision,
                arguments.runtime,
                arguments.residual,
                arguments.fp32_io,
                photos,
            )
        else:
            manifest = read_manifest(arguments.parts)
        models = []
        if manifest.runtime == "openvino" or not arguments.checkpoints:
            models = write_repository(
                arguments.parts,
                manifest,
                arguments.repository,
                options,
                arguments.engines,
            )
    except (*REFUSALS, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    tasks = ", ".join(route.task.name for route in manifest.routes)
    if arguments.json:
        print(json.dumps(manifest.to_dict(), indent=2))
    elif models:
        print(f"{arguments.repository}: {len(models)} models, tasks {tasks}")
    else:
        print(f"{arguments.parts}: {len(manifest.parts)} parts in {manifest.precision}, tasks {tasks}")
    if not models:
        print(
            f"no repository yet: run  {_engine_command(arguments.parts)}  on the GPU machine, then  "
            f"ipt-export --parts {shlex.quote(str(arguments.parts))} --engines build/engines",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
