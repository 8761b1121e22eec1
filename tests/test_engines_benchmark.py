"""The benchmark of the parts: its CPU side for real on a small model, and its arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from small_parts import small_parts

from benchmarks import engines
from benchmarks.engines import Measurement, Spread
from export.engine_parts import read_manifest
from export.engine_runner import EngineError
from export.flops import count_flops


@pytest.fixture(scope="module")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_parts(tmp_path_factory)


def test_the_command_measures_parts_on_the_cpu(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "engines.json"
    arguments = ["--parts", str(parts_folder), "--only", "body", "--batch", "1", "3", "--seconds", "0.05"]
    assert engines.main([*arguments, "--matmul-size", "256", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["command"][-2:] == ["--json", str(path)] and result["machine"]["openvino"]
    flops = count_flops(onnx.load(parts_folder / "body.onnx"))
    assert [(f["part"], f["batch"], f["flops"]) for f in result["figures"]] == [("body", 1, flops), ("body", 3, flops)]
    for figure in result["figures"]:
        latency = figure["latency"]
        assert 0 < latency["low"] <= latency["median"] <= latency["high"] and latency["runs"] >= engines.FEWEST_RUNS
        assert figure["share"] == pytest.approx(figure["flops_per_second"] / figure["matmul_rate"])
    table = capsys.readouterr().out
    assert "| body | fp32 | 3 |" in table and "Matrix multiplication in fp32:" in table


def test_the_manifests_flops_come_before_counting(parts_folder: Path) -> None:
    body = next(part for part in read_manifest(parts_folder) if part.name == "body")
    counted = engines.part_flops(parts_folder, body)
    assert counted == count_flops(onnx.load(parts_folder / "body.onnx"))
    assert engines.part_flops(parts_folder, replace(body, flops=7)) == 7


def test_rates_follow_from_times_and_operations() -> None:
    compute, latency = Spread(0.01, 0.01, 0.01, 5), Spread(0.02, 0.02, 0.02, 5)
    figure = Measurement("body", "fp16", 4, latency, compute, flops=10**9, matmul_rate=8e11)
    assert (figure.patches_per_second, figure.rate, figure.share) == (200, 4e11, 0.5)
    assert "| 200 | 400.0 | 50 % |" in engines.markdown([figure])


def test_what_is_not_known_is_a_question_mark() -> None:
    spread = Spread.of([0.25])
    assert spread == Spread(0.25, 0.25, 0.25, 1)
    table = engines.markdown([Measurement("body", "bf16", 1, spread, spread, None)])
    assert table.splitlines()[-1].endswith("| 4 | ? | ? |")


def test_the_spread_is_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_calls_repeat_at_least_the_fewest_times() -> None:
    calls: list[int] = []
    assert len(engines.repeat(lambda: calls.append(1), 0)) == engines.FEWEST_RUNS
    assert len(calls) == engines.WARM_UP + engines.FEWEST_RUNS


def test_a_folder_without_plans_and_an_unknown_part_are_refused(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError, match=r"holds no plan; it holds nothing: run export/engine.py"):
        engines.measure_gpu(tmp_path, [], [1], 0.1, 64, 0)
    (tmp_path / "body.plan").write_bytes(b"")
    with pytest.raises(EngineError, match=r"holds no bodi; it holds body: run"):
        engines.measure_gpu(tmp_path, ["bodi"], [1], 0.1, 64, 0)
    assert engines.main(["--parts", str(parts_folder), "--only", "bodi"]) == 1
    assert capsys.readouterr().err.startswith("error: there is no part bodi")
