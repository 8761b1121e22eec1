"""The benchmark of the rivals: all of them compute the same, slow ones are cut and scaled, and the command runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
from helpers.official_reference import official_whole_image
from helpers.small_parts import MODEL, small_parts
from helpers.support import read_image

from ipt_triton.benchmarks.compute import baselines
from ipt_triton.benchmarks.compute.baselines import Contender
from ipt_triton.benchmarks.record import Record
from ipt_triton.benchmarks.served import checkpoint_of
from ipt_triton.tiling import KEEP, STRIDE, Tiler
from ipt_triton.train.model.checkpoint import save_checkpoint

TASK = "sr_x2"
RULE = f"{STRIDE}/{KEEP}"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_parts(tmp_path_factory)


@pytest.mark.parametrize("way", ["openvino", "onnxruntime", "pytorch"])
@pytest.mark.slow
def test_every_rival_restores_the_patches_and_keeps_their_order(parts: Path, way: str) -> None:
    tiler = Tiler(read_image("dog")[:130, :100], 2)
    batches = [tiler.patches(*bounds) for bounds in tiler.batches(5)]
    run = {
        "openvino": lambda: baselines.DirectPipeline(parts, TASK, "fp32"),
        "onnxruntime": lambda: baselines.by_onnxruntime(parts, TASK),
        "pytorch": lambda: baselines.by_pytorch(checkpoint_of(MODEL), TASK),
    }[way]()
    answers = run(batches)
    with torch.inference_mode():
        for batch, answer in zip(batches, answers, strict=True):
            expected = MODEL(torch.from_numpy(batch), TASK).numpy()
            assert answer.shape == (len(batch), 3, 96, 96) and np.abs(answer - expected).max() < 0.1


@pytest.mark.parametrize(
    ("seconds_a_batch", "step", "measured"),
    [
        (1.0, 1, 24),  # 24 s for the photograph
        (1.6, 1, 24),  # 38 s
        (2.5, 1, 4),  # 60 s: 10 s are 4 batches
        (1.8, 2, 6),  # 43 s: 10 s are 5.6 batches, and two cores get the same number
        (30.0, 2, 2),
    ],
)
def test_what_takes_long_is_measured_in_part(
    monkeypatch: pytest.MonkeyPatch, seconds_a_batch: float, step: int, measured: int
) -> None:
    now = 0.0

    def run(count: int) -> None:
        nonlocal now
        now += seconds_a_batch * count

    contender = Contender("any", (36, 36), 24 * 8, 24 * (8,), step, lambda: None, run)
    monkeypatch.setattr(baselines.time, "perf_counter", lambda: now)
    assert baselines.batches_to_measure(contender, part=10) == measured


@pytest.mark.server
def test_the_command_measures_in_turns_and_scales_parts_to_the_photograph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(MODEL, tmp_path / "small")
    path, plot = tmp_path / "results" / "baselines.json", tmp_path / "results" / "baselines.png"
    arguments = ["--checkpoint", str(tmp_path / "small"), "--task", TASK, "--side", "100", "--rounds", "2"]
    names = ["served-fp32", "official", "openvino-fp32", "onnxruntime"]
    files = ["--json", str(path), "--plot", str(plot)]
    assert baselines.main([*arguments, "--part", "0", "--only", *names, *files]) == 0
    record = Record.load(path)
    assert baselines.markdown(record) in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    rows = {row["name"]: row for row in record.figures["contenders"]}
    assert list(rows) == ["official", "onnxruntime", "openvino-fp32", "served-fp32"]
    patches = {name: (row["rule"], row["measured"], row["patches"]) for name, row in rows.items()}
    assert patches == {
        "official": ("12/24", 16, 46),
        "onnxruntime": (RULE, 8, 9),
        "openvino-fp32": (RULE, 9, 9),
        "served-fp32": (RULE, 9, 9),
    }
    for row in rows.values():
        spread = row["seconds"]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"] and spread["runs"] == 2
    assert rows["official"]["times_first"]["median"] == 1 and rows["onnxruntime"]["times_first"]["median"] > 1
    assert list(record.figures["served_over_direct"]) == ["fp32"] and not record.figures["failures"]


@pytest.mark.parametrize(("height", "width"), [(96, 72), (48, 48), (60, 132)])
def test_the_official_code_runs_the_borders_again(height: int, width: int) -> None:
    evaluated = 0

    def network(patches: torch.Tensor) -> torch.Tensor:
        nonlocal evaluated
        evaluated += len(patches)
        return patches

    official_whole_image(torch.rand(1, 3, height, width), network, 1)
    assert baselines.official_count(height, width, 48) == evaluated


def test_ratios_are_taken_round_by_round() -> None:
    spread = baselines.ratio([8.0, 6.0, 10.0], [2.0, 3.0, 1.0])
    assert (spread["median"], spread["low"], spread["high"]) == (4, 3, 7)


@pytest.mark.slow
def test_a_rival_that_cannot_run_is_named_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(MODEL, tmp_path / "small")
    arguments = ["--checkpoint", str(tmp_path / "small"), "--task", TASK, "--side", "48", "--rounds", "1"]
    # Not by monkeypatch, which leaves torch without the setting when it takes its change back.
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        assert baselines.main([*arguments, "--only", "eager", "compile"]) == 0
    output = capsys.readouterr().out
    assert f"| eager | {RULE} | 1 of 1 |" in output and "Not measured: compile: " in output


def test_an_unknown_task_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(MODEL, tmp_path / "small")
    assert baselines.main(["--checkpoint", str(tmp_path / "small"), "--task", "paint", "--only", "eager"]) == 1
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_a_precision_that_export_refuses_is_named_with_the_reason() -> None:
    failures: dict[str, str] = {}
    names = ["openvino-fp8", "served-fp8"]
    with ExitStack() as stack:
        assert not list(baselines.contenders(checkpoint_of(MODEL), TASK, 48, names, stack, failures))
    assert list(failures) == names and all("no precision 'fp8'" in reason for reason in failures.values())
