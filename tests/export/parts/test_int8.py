"""INT8 bodies: what is quantised, what it costs, what is left out and how it is named."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from helpers.support import SMALL, small_model

from ipt_triton.cpu import cpu_flags, has_vnni, int8_instructions
from ipt_triton.export.__main__ import main
from ipt_triton.export.parts.calibration import CalibrationError, HeldOut, calibration_samples, held_out, read_photos
from ipt_triton.export.parts.flops import flops_of_nodes
from ipt_triton.export.parts.int8 import (
    MAX_LOSS,
    MIN_SHARE,
    ROUNDING,
    ParityTiles,
    QuantizationError,
    choose_kept,
    exact,
    kernel_distance,
    post_training,
    quantize_body,
    quantized_layers,
    served,
    with_fp32,
)
from ipt_triton.export.parts.layer_names import groups_of, layer_names, named, source_of
from ipt_triton.export.parts.tracing import TRACER
from ipt_triton.images import PHOTOS
from ipt_triton.manifest import IR_VERSION, OPSET, read_manifest
from ipt_triton.parity import TOLERANCES, measure
from ipt_triton.tasks import Task
from ipt_triton.train.model.checkpoint import save_checkpoint
from ipt_triton.train.model.ipt import IPT
from ipt_triton.train.model.start import identity_start

pytestmark = pytest.mark.slow  # the calibration that most need

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="INT8 needs NNCF: pip install 'ipt-triton[int8]'")
ONE_PHOTO = read_photos(PHOTOS)[:1]
TASKS = (SMALL.tasks[0], SMALL.tasks[4])
NEVER_INT8 = tuple(
    f"{attention}.{product}"
    for attention in ("decoder.attention", "decoder.cross_attention", "encoder.attention")
    for product in ("scores", "values")
)
MODEL = small_model(config=replace(SMALL, tasks=TASKS))


def body_of(model: IPT, samples: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    two = {name: np.concatenate([s[name] for s in samples[:2]]) for name in samples[0]}
    return TRACER.graph(model.body, two, ["BODY_FEATURES"], "body")


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return served(model, ov.Type.f32)(inputs)


def parity_of(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> ParityTiles:
    return ParityTiles(inputs, {"BODY_FEATURES": run(model, inputs)})


@dataclass(frozen=True)
class Setting:
    """A small body, its calibration tiles and held-out ones, and all of it in INT8."""

    body: onnx.ModelProto
    samples: list[dict[str, np.ndarray]]
    unseen: list[HeldOut]
    int8: onnx.ModelProto


@pytest.fixture(scope="module")
def setting() -> Setting:
    samples = calibration_samples(MODEL, TASKS, ONE_PHOTO, tiles=4)
    body = body_of(MODEL, samples)
    return Setting(body, samples, [held_out(MODEL, t, ONE_PHOTO) for t in TASKS], post_training(body, samples))


@pytest.fixture
def calibrated(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body is calibrated once for all tests that choose layers of it."""
    monkeypatch.setattr("ipt_triton.export.parts.int8.post_training", lambda model, samples: setting.int8)


@needs_nncf
def test_int8_stays_within_the_bound_and_is_smaller(setting: Setting, calibrated: None):
    tiles = setting.unseen[1]
    quantized = quantize_body(setting.body, setting.samples, setting.unseen, parity_of(setting.body, tiles.inputs))
    assert set(quantized.loss) == {t.name for t in TASKS}
    assert all(loss <= 0.1 for loss in quantized.loss.values())
    assert quantized.kept == NEVER_INT8
    linear = sum(flops_of_layers(setting.body, lambda name: name.rpartition(".")[2] not in ("scores", "values")))
    assert quantized.share == linear / sum(flops_of_nodes(setting.body)) > MIN_SHARE
    assert quantized.model.ByteSize() < 0.5 * setting.body.ByteSize()
    assert quantized.confirmed_with == int8_instructions(cpu_flags())
    exactly, rounded = run(setting.body, tiles.inputs), run(quantized.model, tiles.inputs)
    assert 0 < np.abs(exactly - rounded).max() < 0.1 * np.abs(exactly).max()
    assert tiles.psnr(exactly) - tiles.psnr(rounded) == pytest.approx(quantized.loss[tiles.task.name], abs=0.02)


def flops_of_layers(body: onnx.ModelProto, wanted: Callable[[str], bool]) -> list[int]:
    names = layer_names(body)
    flops = zip(body.graph.node, flops_of_nodes(body), strict=True)
    return [count for node, count in flops if node.name in names and wanted(names[node.name])]


@needs_nncf
def test_this_cpu_computes_int8_as_every_other_one(setting: Setting):
    """Without VNNI, sums of two products are cut at 16 bits: weights in their full range are far off there."""
    assert kernel_distance(setting.int8, parity_of(setting.body, setting.unseen[1].inputs)) < ROUNDING
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in setting.int8.graph.initializer}
    matrices = [w for w in weights.values() if w.dtype == np.int8 and w.ndim == 2]
    assert matrices and all(55 < np.abs(w.astype(int)).max() <= 64 for w in matrices)
    written = {output: node for node in setting.int8.graph.node for output in node.output}
    for node in setting.int8.graph.node:
        if node.name in quantized_layers(setting.int8):
            assert written[source_of(node.input[1], written)].input[0] in weights


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_half_of_the_range_is_what_sums_of_two_products_take(dtype: str):
    """One product at the end of both ranges, against integers; weights of the full range need VNNI."""
    highest = 255.0 if dtype == "uint8" else 127.0
    inputs = np.full((1, 8, 64), highest, np.float32)
    for weight in (64, -64, 127):
        weights = np.full((64, 16), weight, np.int8)
        arrays = {"one": np.ones((), np.float32), "zero": np.zeros((), dtype), "weights": weights}
        make = onnx.helper.make_node
        nodes = [
            make("QuantizeLinear", ["FEATURES", "one", "zero"], ["q"]),
            make("DequantizeLinear", ["q", "one", "zero"], ["a"]),
            make("DequantizeLinear", ["weights", "one"], ["w"]),
            make("MatMul", ["a", "w"], ["BODY_FEATURES"]),
        ]
        ports = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 8, size])
            for name, size in (("FEATURES", 64), ("BODY_FEATURES", 16))
        ]
        constants = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        graph = onnx.helper.make_graph(nodes, "product", ports[:1], ports[1:], constants)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        right = np.full((1, 8, 16), 64 * highest * weight)
        assert np.array_equal(exact(model)({"FEATURES": inputs}), right)
        if abs(weight) <= 64 or (has_vnni(cpu_flags()) and "ONEDNN_MAX_CPU_ISA" not in os.environ):
            assert np.array_equal(run(model, {"FEATURES": inputs}), right)


@needs_nncf
def test_kernels_that_cut_sums_are_reported(
    setting: Setting, calibrated: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("ipt_triton.export.parts.int8.ROUNDING", 0.0)
    tiles = setting.unseen[1]
    quantize_body(setting.body, setting.samples, [tiles], parity_of(setting.body, tiles.inputs))
    assert "away from exact arithmetic" in caplog.text and "restore otherwise on other CPUs" in caplog.text


@needs_nncf
def test_a_body_that_this_cpu_computes_too_badly_is_refused(
    setting: Setting, calibrated: None, monkeypatch: pytest.MonkeyPatch
):
    tiles = setting.unseen[1]
    parity_tiles = parity_of(setting.body, tiles.inputs)
    body = exact(setting.int8)
    monkeypatch.setattr(
        "ipt_triton.export.parts.int8.served", lambda model, precision: lambda inputs: body(inputs) + 100
    )
    with pytest.raises(QuantizationError, match=r"as this CPU \(.+\) computes it .*, though not in exact arithmetic"):
        quantize_body(setting.body, setting.samples, [tiles], parity_tiles)


@needs_nncf
def test_products_of_two_activations_stay_as_they_are_and_are_named(setting: Setting):
    layers = layer_names(setting.body)
    assert named(frozenset(layers) - quantized_layers(setting.int8), groups_of(layers), layers) == NEVER_INT8


@needs_nncf
def test_layers_are_named_after_the_modules_they_come_from(setting: Setting):
    names = layer_names(setting.body)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in setting.body.graph.initializer}
    modules = dict(MODEL.body.named_modules())
    checked = 0
    for node in setting.body.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            continue
        name, weight = names[node.name], weights[node.input[1]].T
        if name.endswith(".projection"):
            whole = modules[name.removesuffix(".projection")].projection.detach().numpy()
            assert any(np.array_equal(whole[i : i + len(weight)], weight) for i in range(0, len(whole), 72))
        else:
            assert np.array_equal(modules[name].weight.detach().numpy(), weight)
        checked += 1
    assert checked == 1 + 2 * 6 + 2 * 10 + 2  # linear encoding, encoder, decoder, output layers
    assert sum(name.endswith(".scores") for name in names.values()) == 2 + 2 * 2
    fresh = identity_start(IPT(MODEL.config)).eval()  # its norms are all equal, and so are its last layers
    assert list(layer_names(body_of(fresh, setting.samples)).values()) == list(names.values())


@needs_nncf
def test_a_layer_goes_back_to_fp32_exactly(setting: Setting):
    layers = layer_names(setting.body)
    everything = with_fp32(setting.int8, setting.body, frozenset(layers))
    assert list(everything.graph.node) == list(setting.body.graph.node)
    inputs = setting.unseen[0].inputs
    assert np.array_equal(run(everything, inputs), run(setting.body, inputs))
    second = frozenset(n for n, name in layers.items() if name.endswith(".linear2"))
    assert quantized_layers(with_fp32(setting.int8, setting.body, second)) == quantized_layers(setting.int8) - second
    assert len(second & quantized_layers(setting.int8)) == 4


@needs_nncf
def test_a_layer_that_int8_spoils_is_found_named_and_left_out():
    """One hidden value before the last layer is far larger than the others and goes nowhere."""
    model = small_model(config=replace(SMALL, encoder_layers=1, decoder_layers=1, tasks=TASKS[1:]))
    with torch.no_grad():
        model.body.out1.weight[0] = 0
        model.body.out1.bias[0] = 1e6
        model.body.out2.weight[:, 0] = 0
    samples = calibration_samples(model, TASKS[1:], ONE_PHOTO, tiles=2)
    body = body_of(model, samples)
    tiles = held_out(model, TASKS[1], ONE_PHOTO)
    restored = torch.from_numpy(run(body, tiles.inputs))
    clean = tiles.tail(restored).detach().clamp(0, 255)  # what the model makes of the tiles, give or take 5 levels
    clean += 5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    quantized = quantize_body(body, samples, [replace(tiles, clean=clean)], parity_of(body, tiles.inputs))
    assert set(quantized.kept) == {"out2", *NEVER_INT8}
    assert quantized.loss["denoise_30"] <= 0.1


@needs_nncf
def test_a_layer_is_left_out_for_a_single_value_that_the_parity_gate_would_refuse(setting: Setting, calibrated: None):
    """One tile of the gate's is far brighter in one feature than what calibration has seen."""
    tiles = setting.unseen[1]
    inputs = {name: x[:8].copy() for name, x in tiles.inputs.items()}
    inputs["FEATURES"][3, 0, 20, -1] = 8 * np.abs(tiles.inputs["FEATURES"]).max()
    parity_tiles = parity_of(setting.body, inputs)
    refused = measure("body", {"BODY_FEATURES": run(setting.int8, inputs)}, parity_tiles.expected, "int8")
    assert TOLERANCES["int8"].used_by(refused) > 1 and refused.max_abs > TOLERANCES["int8"].max_abs
    quantized = quantize_body(setting.body, setting.samples, [tiles], parity_tiles)
    taken = measure("body", {"BODY_FEATURES": run(quantized.model, inputs)}, parity_tiles.expected, "int8")
    assert TOLERANCES["int8"].used_by(taken) <= 1 and set(quantized.kept) > set(NEVER_INT8)


@needs_nncf
def test_a_bound_that_cannot_be_met_is_an_error_that_says_so(setting: Setting, calibrated: None):
    parity_tiles = parity_of(setting.body, setting.unseen[0].inputs)
    wrong = replace(parity_tiles, expected={"BODY_FEATURES": parity_tiles.expected["BODY_FEATURES"] + 100})
    with pytest.raises(
        QuantizationError, match=r"80% of the 0\.1 dB .*, whatever .* int8 max .*; use --precision bf16 or fp32"
    ):
        quantize_body(setting.body, setting.samples, setting.unseen, wrong)


def test_few_and_cheap_layers_are_left_out():
    groups = {"a": frozenset({"a0", "a1"}), "b": frozenset({"b0", "b1"}), "c": frozenset({"c0"})}
    costs = {"a0": 1.0, "a1": 1.0, "b0": 5.0, "b1": 5.0, "c0": 3.0}

    def cost_share_of(**losses: float) -> Callable[[frozenset[str]], float]:
        return lambda kept: sum(loss for node, loss in losses.items() if node not in kept) / 0.1

    def chosen(**losses: float) -> set[str]:
        found = choose_kept(groups, costs, cost_share_of(**losses))
        assert found is not None
        return set(found)

    assert chosen(a0=0.03, b0=0.03, c0=0.03) == set()
    assert chosen(a0=0.05, a1=0.03, b0=0.3, c0=0.01) == {"b0"}
    assert chosen(a0=0.05, b0=0.06) == {"a0"}  # either would do, and this one costs less
    assert chosen(a0=0.2, a1=0.01, b1=0.3, c0=0.02) == {"a0", "b1"}
    assert chosen(a0=1, a1=1, b0=1, b1=1, c0=1) == {"a0", "a1", "b0", "b1", "c0"}
    assert choose_kept(groups, costs, lambda kept: 2.0) is None


@needs_nncf
def test_names_are_those_of_groups_where_they_are_complete(setting: Setting):
    layers = layer_names(setting.body)
    groups = groups_of(layers)
    one = next(n for n, name in layers.items() if name == "encoder.1.linear2")
    assert named({*groups["out1"], one}, groups, layers) == ("encoder.1.linear2", "out1")
    assert named(groups["encoder.linear2"], groups, layers) == ("encoder.linear2",)
    assert len(flops_of_nodes(setting.body)) == len(setting.body.graph.node)


def test_without_nncf_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    samples = calibration_samples(MODEL, TASKS, ONE_PHOTO, tiles=2)
    with pytest.raises(QuantizationError, match=r"pip install 'ipt-triton\[int8\]'"):
        post_training(onnx.ModelProto(), samples)


def test_calibration_and_judging_use_different_halves_of_the_photographs():
    halves = [np.zeros((96, 192, 3), np.uint8), np.zeros((96, 192, 3), np.uint8)]
    for photo in halves:
        photo[:, 96:] = 255
    (task,) = SMALL.tasks[:1]
    unseen = held_out(MODEL, task, halves)
    assert unseen.clean.min() == unseen.clean.max() == 255
    tiles = calibration_samples(MODEL, [task], halves, tiles=3)
    assert len(tiles) == 3
    black, _ = MODEL.heads[task.name](unseen.clean[:1, :, :48, :48] * 0)
    assert all(np.allclose(t["FEATURES"], black.detach().numpy(), atol=1e-4) for t in tiles)


def test_photographs_and_tasks_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(CalibrationError, match="at least 192x96"):
        held_out(MODEL, TASKS[0], [np.zeros((95, 400, 3), np.uint8)])
    with pytest.raises(CalibrationError, match="holds no photographs"):
        read_photos(tmp_path)
    with pytest.raises(CalibrationError, match="no photographs to calibrate INT8 on"):
        calibration_samples(MODEL, TASKS, [])
    paired = Task(9, "dehaze", "paired")
    model = small_model(config=replace(SMALL, tasks=(paired,)))
    with pytest.raises(CalibrationError, match=r"dehaze.*--precision bf16"):
        calibration_samples(model, [paired], ONE_PHOTO)


@needs_nncf
def test_command_exports_int8_and_the_manifest_says_what_it_is(tmp_path: Path):
    save_checkpoint(MODEL, tmp_path / "checkpoint", provenance={"made_by": "tests"})
    (tmp_path / "photos").mkdir()
    shutil.copy(PHOTOS / "dog.png", tmp_path / "photos")
    options = ["--precision", "int8", "--calibration", str(tmp_path / "photos")]
    places = ["--parts", str(tmp_path / "parts"), "--repository", str(tmp_path / "models")]
    assert main([str(tmp_path / "checkpoint"), *options, *places]) == 0
    manifest = read_manifest(tmp_path / "parts")
    body = manifest.part("body")
    assert manifest.precision == "int8" and body.int8 is not None
    assert body.int8.share >= MIN_SHARE and max(body.int8.loss.values()) <= MAX_LOSS
    assert body.int8.confirmed_with == int8_instructions(cpu_flags())
    assert set(body.int8.loss) == {task.name for task in TASKS} and set(NEVER_INT8) <= set(body.keep)
    graph = onnx.load(tmp_path / "models" / "body" / "1" / "body.onnx")
    assert quantized_layers(graph)
    assert all(part.int8 is None for part in manifest.parts if part.name != "body")


def test_photographs_to_calibrate_on_are_for_int8_alone(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["checkpoint", "--precision", "bf16", "--calibration", "photos"])
    assert ended.value.code == 2
    assert "--calibration is for --precision int8, not bf16" in capsys.readouterr().err
