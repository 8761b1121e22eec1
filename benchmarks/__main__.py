"""`ipt-benchmark`: every measurement that we publish, each with its own arguments.

    ipt-benchmark throughput --checkpoint weights/ipt-tiny --precision bf16
    ipt-benchmark engines --preset ipt --only body --precision fp32 bf16
    ipt-benchmark demo --repository triton_models --output build/demo
    ipt-benchmark report

`ipt-benchmark NAME --help` explains its arguments. From a checkout: `PYTHONPATH=src python -m ipt_triton.benchmarks`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipt_triton.benchmarks import BENCHMARKS
from ipt_triton.cli import run_subcommand


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments to the benchmark; returns its exit status, 2 for an unknown one."""
    modules = {name: f"ipt_triton.benchmarks.{module}" for name, module in BENCHMARKS.items()}
    return run_subcommand("ipt-benchmark", __doc__ or "", modules, argv)


if __name__ == "__main__":
    sys.exit(main())
