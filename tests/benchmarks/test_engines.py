"""The benchmark of the parts: its CPU side for real on a small model, and its arithmetic."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.small_engines import metadata
from helpers.small_parts import small_parts
from helpers.support import SMALL

from ipt_triton.benchmarks.compute import engines
from ipt_triton.benchmarks.compute.engines_pytorch import measure_pytorch
from ipt_triton.benchmarks.compute.measurement import Measurement
from ipt_triton.benchmarks.record import Record, Spread
from ipt_triton.export.engines.files import write_plan
from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.parts.flops import count_flops
from ipt_triton.train.model.ipt import PRESETS


@pytest.fixture(scope="module")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_parts(tmp_path_factory)


@pytest.mark.slow
def test_the_command_measures_parts_on_the_cpu(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "engines.json"
    arguments = ["--parts", str(parts_folder), "--only", "body", "--batch", "1", "3", "--seconds", "0.05"]
    assert engines.main([*arguments, "--matmul-size", "256", "--json", str(path)]) == 0
    record = Record.load(path)
    assert record.command[-2:] == ["--json", str(path)] and record.machine["versions"]["openvino"]
    flops = count_flops(onnx.load(parts_folder / "body.onnx"))
    found = engines.measurements(record)
    assert [(m.part, m.batch, m.flops) for m in found] == [("body", 1, flops), ("body", 3, flops)]
    for m in found:
        assert 0 < m.latency.low <= m.latency.median <= m.latency.high and m.latency.runs >= engines.FEWEST_RUNS
        assert m.matmul_rate is not None and m.matmul_rate > 0
    table = capsys.readouterr().out
    assert "| body | openvino | fp32 | 3 |" in table and "GFLOP/s in fp32." in table
    assert engines.markdown(record) in table
    (plot,) = engines.draw(record).axes
    assert [line.get_label() for line in plot.lines] == ["body, openvino", "matrix rate"]
    assert list(plot.lines[0].get_ydata()) == [pytest.approx(m.rate / 1e9) for m in found if m.rate]


def record_of(*found: Measurement) -> Record:
    return Record("engines", [], {}, {"measurements": [asdict(m) for m in found]})


def test_rates_follow_from_times_and_operations() -> None:
    compute, latency = Spread(0.01, 0.01, 0.01, 5), Spread(0.02, 0.02, 0.02, 5)
    figure = Measurement("body", "fp16", 4, latency, compute, flops=10**9, matmul_rate=8e11)
    assert (figure.patches_per_second, figure.rate) == (200, 4e11)
    assert "| 200 | 400.0 | 50 % |" in engines.markdown(record_of(figure))
    faster = replace(figure, through="pytorch", matmul_rate=1e12)  # what the machine can, whatever reached it
    assert engines.markdown(record_of(figure, faster)).count("| 200 | 400.0 | 40 % |") == 2


@pytest.mark.slow
def test_pytorch_runs_the_same_work_beside_openvino(
    parts_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "ipt-tiny", SMALL)
    path = tmp_path / "engines.json"
    arguments = ["--preset", "ipt-tiny", "--batch", "2", "--seconds", "0.05", "--matmul-size", "256"]
    assert engines.main([*arguments, "--through", "openvino", "pytorch", "--json", str(path)]) == 0
    record = Record.load(path)
    assert {"openvino", "torch"} <= set(record.machine["versions"])
    found = {(m.part, m.through): m.flops for m in engines.measurements(record)}
    names = ["head_denoise_50", "body", "tail_denoise_50"]
    assert list(found) == [(part, way) for way in ("openvino", "pytorch") for part in names]
    for part in names:  # counted in the graph, and by PyTorch as it runs
        assert found[part, "openvino"] == found[part, "pytorch"]
    assert [line.get_label() for line in engines.draw(record).axes[0].lines][-2:] == [
        "tail_denoise_50, pytorch",
        "matrix rate",
    ]


@pytest.mark.slow
def test_compiled_modules_are_measured_too() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "ipt-tiny", SMALL)
        cpu = torch.device("cpu")
        (one,) = measure_pytorch("ipt-tiny", ["tail_denoise_50"], ["torch.compile"], ["bf16"], [1], 0.01, 64, cpu)
    assert (one.through, one.precision, one.batch) == ("torch.compile", "bf16", 1)
    assert one.matmul_rate is not None and one.latency.median > 0
    with pytest.raises(EngineError, match="there is no part neck; there are: head_denoise_50, body, tail_denoise_50"):
        measure_pytorch("ipt-tiny", ["neck"], ["pytorch"], ["fp32"], [1], 0.01, 64, cpu)
    with pytest.raises(EngineError, match="--preset huge is not one of ipt, ipt-small, ipt-tiny"):
        measure_pytorch("huge", [], ["pytorch"], ["fp32"], [1], 0.01, 64, cpu)


def test_pytorch_needs_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        engines.main(["--parts", str(tmp_path), "--through", "pytorch"])
    assert ended.value.code == 2
    assert "--through pytorch needs --preset" in capsys.readouterr().err


def test_the_plot_holds_the_rates_of_every_precision() -> None:
    spread = Spread(0.01, 0.01, 0.01, 5)
    rates = {"fp32": 5e11, "bf16": 2e12}
    found = [Measurement("body", name, 4, spread, spread, 10**9, rate) for name, rate in rates.items()]
    for plot in engines.draw(record_of(*found)).axes:
        assert plot.get_ylim()[0] == 0 and plot.get_ylim()[1] > 2000


def test_what_is_not_known_is_a_dash_and_has_no_line() -> None:
    spread = Spread.of([0.25])
    record = record_of(Measurement("body", "bf16", 1, spread, spread, None))
    assert engines.markdown(record).splitlines()[-1].endswith("| 4 | – | – |")
    (plot,) = engines.draw(record).axes
    assert len(plot.lines[0].get_xdata()) == 0 and len(plot.lines) == 1


def test_calls_repeat_at_least_the_fewest_times() -> None:
    calls: list[int] = []
    assert len(engines.repeat(lambda: calls.append(1), 0)) == engines.FEWEST_RUNS
    assert len(calls) == engines.WARM_UP + engines.FEWEST_RUNS


@pytest.mark.slow
def test_a_folder_without_plans_and_an_unknown_part_are_refused(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=r"holds no plan; it holds nothing: run ipt-export engines"):
        engines.measure_gpu(tmp_path, [], [1], 0.1, 64, 0)
    write_plan(tmp_path / "body_9.0.plan", b"plan", metadata())
    with pytest.raises(EngineError, match=r"holds no bodi; it holds body: run"):
        engines.measure_gpu(tmp_path, ["bodi"], [1], 0.1, 64, 0)
    assert engines.main(["--parts", str(parts_folder), "--only", "bodi"]) == 1
    assert "error: there is no part bodi" in capsys.readouterr().err
