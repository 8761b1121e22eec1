"""Export checkpoints: split them into ONNX parts, check the parts, and write a Triton model repository.

    ipt-export weights/ipt-tiny
    ipt-export weights/ipt-small my/denoiser --precision bf16 --repository triton_models

Several checkpoints are served side by side; those with the same body share it. A task may come from one of them only.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export.parity import ParityError
from export.parts import ExportError, export_parts
from export.repository import RepositoryError, ServingOptions, write_repository
from export.surgery import GraphError
from train.checkpoint import CheckpointError, load_checkpoint


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="ipt-export", description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = ServingOptions()
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="checkpoint folders")
    parser.add_argument("--runtime", choices=("openvino",), default="openvino", help="what runs the parts")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic (default fp32)"
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
    return parser.parse_args(argv)


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
        checkpoints = [load_checkpoint(folder) for folder in arguments.checkpoints]
        manifest = export_parts(checkpoints, arguments.parts, arguments.precision)
        models = write_repository(arguments.parts, manifest, arguments.repository, options)
    except (CheckpointError, ExportError, GraphError, ParityError, RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(manifest.to_dict(), indent=2))
    else:
        print(f"{arguments.repository}: {len(models)} models, tasks {', '.join(r.task.name for r in manifest.routes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
