"""Importing official weights: what is inferred, what is refused, and the command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.official_reference import SCALES, OfficialIPT
from torch import Tensor

from ipt_triton.tasks import OFFICIAL_TASKS, TaskError
from ipt_triton.train.model.checkpoint import load_checkpoint
from ipt_triton.train.model.import_official import (
    LayoutError,
    TaskChoiceError,
    UnreadableFileError,
    convert,
    main,
    read_state_dict,
)
from ipt_triton.train.model.ipt import ConfigError, IPTConfig

NAMES = [t.name for t in OFFICIAL_TASKS]

pytestmark = pytest.mark.usefixtures("repeatable")


def official(*tasks: str) -> OfficialIPT:
    return OfficialIPT(4, 2, 1, 3, [SCALES[NAMES.index(t)] for t in tasks or NAMES])


def state(*tasks: str) -> dict[str, Tensor]:
    return dict(official(*tasks).state_dict())


@pytest.mark.parametrize(
    "tasks", [["sr_x4"], ["denoise_50"], ["denoise_50", "sr_x3"], ["sr_x2", "derain", "denoise_30"], NAMES]
)
@torch.no_grad()
def test_files_of_one_two_three_and_six_tasks_restore_as_the_official_code_does(tasks: list[str]) -> None:
    source = official(*tasks)
    model = convert(source.state_dict(), tasks, heads=3)
    table = tuple(sorted((OFFICIAL_TASKS[NAMES.index(t)] for t in tasks), key=lambda t: t.id))
    assert model.config == IPTConfig(features=4, encoder_layers=2, decoder_layers=1, heads=3, tasks=table)
    x = torch.rand(1, 3, 48, 48, dtype=torch.float64) * 255
    model.double(), source.double()
    for index, task in enumerate(tasks):
        torch.testing.assert_close(model(x, task), source(x, index), rtol=0, atol=1e-6)


def test_six_tasks_need_no_names_and_ids_serve_as_names() -> None:
    assert convert(state(), heads=3).config.tasks == OFFICIAL_TASKS
    assert [t.name for t in convert(state("sr_x3", "derain"), ["1", 3], heads=3).config.tasks] == ["sr_x3", "derain"]


def test_each_task_gets_its_own_query() -> None:
    tensors = state("derain", "denoise_50")
    model = convert(tensors, ["denoise_50", "derain"], heads=3)
    first, second = tensors["body.query_embed.weight"].view(2, 256, 36)
    assert torch.equal(model.heads["denoise_50"].embedding, first)
    assert torch.equal(model.heads["derain"].embedding, second)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "params"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_wrapping_dictionaries_and_prefixes_are_taken_off(key: str | None, prefix: str) -> None:
    tensors = {prefix + n: t for n, t in state("derain").items()}
    wrapped: dict[str, Any] = {key: tensors, "epoch": 3} if key else tensors
    expected = convert(state("derain"), ["derain"], heads=3).state_dict()
    for name, tensor in convert(wrapped, ["derain"], heads=3).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_half_precision_weights_are_imported() -> None:
    model = convert({n: t.half() for n, t in state("derain").items()}, ["derain"], heads=3)
    assert all(t.dtype == torch.float32 for t in model.state_dict().values())


def change(name: str, value: object) -> dict[str, Any]:
    tensors: dict[str, Any] = state("sr_x2")
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("body.decoder.layers.0.norm3.bias", None, r"missing: body\.decoder\.layers\.0\.norm3\.bias$"),
        ("body.encoder.layers.0.linear1.weight", None, r"missing: body\.encoder\.layers\.0\.linear1\.weight$"),
        ("body.position_encoding.pe.weight", None, r"missing: body\.position_encoding\.pe\.weight$"),
        ("tail.0.0.0.bias", None, r"missing: tail\.0\.0\.0\.bias$"),
        ("head.0.0.weight", None, r"head\.0\.0\.weight is missing"),
        ("tail.0.1.weight", None, r"tail\.0\.1\.weight is missing"),
        ("sub_mean.bias", None, r"sub_mean\.bias is missing"),
        ("body.decoder.norm.weight", torch.ones(36), r"unexpected: body\.decoder\.norm\.weight$"),
        ("tail.1.1.bias", torch.ones(3), r"unexpected: tail\.1\.1\.bias$"),
        ("body.encoder.layers.0.self_attn.in_proj_bias", torch.ones(108), r"unexpected: .*in_proj_bias$"),
        ("body.linear_encoding.bias", torch.ones(35), r"body\.linear_encoding\.bias is \[35\], not \[36\]$"),
        ("body.query_embed.weight", torch.ones(2, 9216), r"query_embed\.weight is \[2, 9216\], not \[1, 9216\]$"),
        ("body.query_embed.weight", torch.ones(1, 9217), r"9217 columns, not a square number of 36-wide tokens"),
        ("body.query_embed.weight", torch.ones(9216), r"query_embed\.weight is \[9216\]; it must have 2 dimensions"),
        ("body.linear_encoding.weight", torch.ones(40, 40), "width 40 is not 4 features times a square"),
        ("body.mlp_head.0.weight", torch.ones(100, 36), "hidden width 100 is not a multiple of the token width 36"),
        ("body.mlp_head.3.bias", torch.full((36,), float("nan")), r"NaN or Inf in: body\.mlp_head\.3\.bias$"),
        ("tail.0.0.0.weight", torch.ones(100, 4, 3, 3), "tail 0 enlarges by 5"),
        ("epoch", 3, "no tensor: epoch"),
    ],
)
def test_whatever_does_not_fit_is_named_as_the_file_names_it(name: str, value: object, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        convert(change(name, value), ["sr_x2"], heads=3)


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(LayoutError, match="empty"):
        convert({}, ["sr_x2"])


@pytest.mark.parametrize("layer", ["sub_mean", "add_mean"])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_frozen_means_that_are_not_the_constants_are_refused(layer: str, part: str) -> None:
    tensors = state("sr_x2")
    tensors[f"{layer}.{part}"] = tensors[f"{layer}.{part}"] / 255  # as for inputs in 0..1
    with pytest.raises(LayoutError, match=rf"{layer}\.{part} is \[.*not the official constant"):
        convert(tensors, ["sr_x2"], heads=3)


def test_frozen_means_may_differ_by_rounding_only() -> None:
    tensors = state("sr_x2")
    tensors["add_mean.bias"] = tensors["add_mean.bias"] + 1e-5
    convert(tensors, ["sr_x2"], heads=3)
    tensors["add_mean.bias"] = tensors["add_mean.bias"] + 0.01
    with pytest.raises(LayoutError, match="add_mean"):
        convert(tensors, ["sr_x2"], heads=3)


@pytest.mark.parametrize(
    ("in_file", "named", "message"),
    [
        (["sr_x2"], None, "1 of the 6 official tasks .*name 1 with --tasks: sr_x2, .*denoise_50"),
        (["sr_x2", "derain"], ["sr_x2"], r"1 tasks named \(sr_x2\), but the file has 2"),
        (["sr_x2"], ["sr_x2", "derain"], r"2 tasks named \(sr_x2, derain\), but the file has 1"),
        (["sr_x2"], ["sr_x3"], "task sr_x3 is x3, but tail 0 of the file is x2"),
        (["sr_x3"], ["sr_x2"], "task sr_x2 is x2, but tail 0 of the file is x3"),
        (["sr_x2"], ["sr_x4"], "task sr_x4 is x4, but tail 0 of the file is x2"),
        (["sr_x4"], ["derain"], "task derain is x1, but tail 0 of the file is x4"),
        (["derain"], ["sr_x2"], "task sr_x2 is x2, but tail 0 of the file is x1"),
        (["sr_x2", "derain"], ["derain", "sr_x2"], "task derain is x1, but tail 0 of the file is x2"),
        (NAMES, [*NAMES[1:], "sr_x2"], "task sr_x3 is x3, but tail 0 of the file is x2"),
        ([*NAMES, "derain"], None, "7 heads; there are 6"),
    ],
)
def test_tasks_that_do_not_fit_the_file_are_refused(in_file: list[str], named: list[str], message: str) -> None:
    with pytest.raises(TaskChoiceError, match=message):
        convert(state(*in_file), named, heads=3)


def test_unknown_and_repeated_tasks_and_impossible_heads_are_refused() -> None:
    with pytest.raises(TaskError, match="unknown task 'sharpen'"):
        convert(state("derain"), ["sharpen"], heads=3)
    with pytest.raises(TaskError, match="occurs twice"):
        convert(state("derain", "denoise_30"), ["derain", "derain"], heads=3)
    for heads in (5, 0):
        with pytest.raises(ConfigError, match=f"heads {heads}"):
            convert(state("derain"), ["derain"], heads=heads)


class Payload:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_holds_code_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save({**state("derain"), "code": Payload(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(UnreadableFileError, match="holds more than tensors"):
        read_state_dict(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_files_that_torch_cannot_read_are_named(tmp_path: Path) -> None:
    torch.save(state("derain"), tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    for wrong in (b"", b"text", content[: len(content) // 2]):
        (tmp_path / "x.pt").write_bytes(wrong)
        with pytest.raises(UnreadableFileError, match=r"x\.pt"):
            read_state_dict(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(UnreadableFileError, match=r"x\.pt holds a list"):
        read_state_dict(tmp_path / "x.pt")
    with pytest.raises(UnreadableFileError, match=r"absent\.pt is not a file"):
        read_state_dict(tmp_path / "absent.pt")


@pytest.mark.slow
@torch.no_grad()
def test_the_command_writes_a_checkpoint_that_tells_its_source(tmp_path: Path) -> None:
    source = official("sr_x3")
    file, output = tmp_path / "IPT_sr3.pt", tmp_path / "out"
    torch.save(source.state_dict(), file)
    command = [sys.executable, "-m", "ipt_triton.train", "import-official", str(file), "--output", str(output)]
    command += ["--tasks", "sr_x3", "--heads", "3"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert (run.returncode, run.stdout) == (0, f"{output}\n"), run.stderr
    checkpoint = load_checkpoint(output)
    assert checkpoint.provenance["source"] == {
        "file": "IPT_sr3.pt",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert json.loads((output / "config.json").read_text())["architecture"]["tasks"][0]["id"] == 1
    x = torch.rand(1, 3, 48, 48) * 255
    torch.testing.assert_close(checkpoint.model(x, 1), source(x, 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name 1 with --tasks"),
        (["--tasks", "derain", "sr_x2"], 2, "2 tasks named"),
        (["--tasks", "blur"], 2, "unknown task 'blur'"),
        (["--tasks", "sr_x2"], 2, "task sr_x2 is x2, but tail 0 of the file is x1"),
        (["--tasks", "derain", "--heads", "7"], 2, "heads 7"),
    ],
)
def test_the_command_tells_wrong_arguments_by_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    torch.save(state("derain"), tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), "--output", str(tmp_path / "out"), *arguments]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_tells_files_it_cannot_use_by_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "out"), "--tasks", "derain", "--heads", "3"]
    assert main([str(tmp_path / "absent.pt"), *arguments]) == 1
    assert "absent.pt is not a file" in capsys.readouterr().err
    tensors = state("derain")
    del tensors["body.mlp_head.3.bias"]
    torch.save(tensors, tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), *arguments]) == 1
    assert "missing: body.mlp_head.3.bias" in capsys.readouterr().err
    torch.save(state("derain"), tmp_path / "x.pt")
    assert main([str(tmp_path / "x.pt"), "--output", str(tmp_path), *arguments[2:]]) == 1
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "x.pt").is_file() and not (tmp_path / "out").exists()
