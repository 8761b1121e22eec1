"""The benchmark of engines on a stand-in for a GPU: whether it runs to its end, not how fast."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_in.machine import BuiltEngines, StandIn

from ipt_triton.benchmarks.compute import engines
from ipt_triton.benchmarks.record import Record


@pytest.mark.slow
def test_the_command_measures_plans_and_leaves_out_batches_that_they_do_not_take(
    built: BuiltEngines, stand_in: StandIn, tmp_path: Path
) -> None:
    path = tmp_path / "engines.json"
    arguments = ["--plans", built.folder, "--only", "tail_sr_x2", "--batch", 1, 3, 32, "--seconds", 0.05]
    benchmark = ["-m", "ipt_triton.benchmarks", "engines"]
    done = stand_in.run(*benchmark, *arguments, "--matmul-size", 64, "--json", path)
    assert done.returncode == 0, done.stderr
    record = Record.load(path)
    assert record.machine["gpu"] == "stand-in GPU (compute capability 8.9)"
    assert record.machine["library"] == "tensorrt 10.13.3.9"
    found = engines.measurements(record)
    assert [(m.part, m.through, m.precision, m.batch) for m in found] == [
        ("tail_sr_x2", "tensorrt", "fp16", batch) for batch in (1, 3)
    ]
    for m in found:
        assert m.compute.low > 0 and m.latency.low > 0 and m.matmul_rate
        assert m.compute.runs >= engines.FEWEST_RUNS
