"""NVIDIA's own parser and builder on this CPU: TensorRT for RTX builds every part for cards that are not here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.quick_parts import quick_parts
from helpers.rtx import EngineLayer, computing, require_rtx
from onnx import TensorProto, helper

from ipt_triton.benchmarks.compute.engines import matmul_plan
from ipt_triton.benchmarks.served import checkpoint_of, random_checkpoint
from ipt_triton.export.__main__ import main as export
from ipt_triton.export.engines.builder import Built, build_engine
from ipt_triton.export.engines.checks import layer_precisions
from ipt_triton.export.engines.files import BuildOptions, Folders
from ipt_triton.export.engines.inputs import check_capability, plan_precision
from ipt_triton.export.engines.library import Library, known_capabilities
from ipt_triton.export.engines.metadata import EngineError, plan_path, read_metadata
from ipt_triton.manifest import SAMPLES, Layer, Manifest, Part, Port, read_manifest
from ipt_triton.tasks import OFFICIAL_TASKS
from ipt_triton.train.model.ipt import IPT, preset
from ipt_triton.train.model.start import identity_start

pytestmark = pytest.mark.slow

ADA, AMPERE = "8.9", "8.6"


@pytest.fixture(scope="module")
def rtx() -> Library:
    return require_rtx()


@pytest.fixture(scope="module")
def fp16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ipt-tiny with a task of each scale; the tasks of one scale differ in their weights alone."""
    folder = tmp_path_factory.mktemp("rtx") / "parts"
    quick_parts(random_checkpoint("ipt-tiny", OFFICIAL_TASKS[:4]), folder, "fp16")
    return folder


def built(library: Library, folder: Path, name: str, capability: str) -> tuple[Part, Built]:
    manifest = read_manifest(folder)
    part = manifest.part(name)
    model = (folder / f"{name}.onnx").read_bytes()
    how = plan_precision(library, None, manifest.graph_precision)
    batches = (1, manifest.max_batch, manifest.max_batch)
    return part, build_engine(library, part, model, how, BuildOptions(profile=batches), capability, lambda line: None)


def check_layers(part: Part, engine: Built, low: str) -> None:
    """What the builder tells: one fused attention for each softmax, and FP32 products where the graph keeps them."""
    layers = [EngineLayer.of(entry) for entry in json.loads(engine.layers)["Layers"]]
    nodes = {operator: {x.name for x in part.layers if x.operator == operator} for operator in ("Softmax", "MatMul")}
    attentions = computing(layers, nodes["Softmax"])
    if low != "Float":
        assert len(attentions) == len(nodes["Softmax"])
        for attention in attentions:  # both products and the softmax in one kernel
            assert "mha" in attention.name and len(nodes["MatMul"] & set(attention.nodes)) == 2
            assert attention.types == {low}
    products = computing(layers, {x.name for x in part.layers if x.operator in ("MatMul", "Conv")})
    assert products
    for product in products:
        kept = {x.name for x in part.layers if x.type == "fp32"} & set(product.nodes)
        assert low in product.types or kept, product


@pytest.mark.parametrize("capability", [AMPERE, ADA])
def test_the_command_builds_every_part_of_ipt_tiny_for_cards_that_are_not_here(
    rtx: Library, fp16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], capability: str
) -> None:
    command = ["engines", str(fp16), "--output", str(tmp_path), "--compute-capability", capability]
    assert export(command) == 0
    manifest = read_manifest(fp16)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{rtx}, no GPU"
    done = [line for line in told if f" for {capability}: " in line]  # the others tell the steps of a slow build
    assert len(done) == len(manifest.parts)
    for part in manifest.parts:
        plan = plan_path(tmp_path / part.name, capability)
        found = read_metadata(plan)
        assert hashlib.sha256(plan.read_bytes()).hexdigest() == found.plan_sha256
        assert (found.library, found.version, found.gpu) == ("tensorrt-rtx", rtx.version, "")
        assert (found.precision, found.ran, found.parity) == ("fp16", False, ())
        assert found.evidence == "inspector" and found.layers.get("fp16", 0) > found.layers.get("fp32", 0)
        assert ({*found.inputs}, {*found.outputs}) == ({*part.inputs}, {*part.outputs})
    assert export(command) == 0
    assert all("up to date" in line for line in capsys.readouterr().out.splitlines()[1:])


@pytest.mark.parametrize("capability", [AMPERE, ADA])
def test_every_attention_of_an_fp16_body_is_one_kernel_and_no_product_is_left_in_fp32(
    rtx: Library, fp16: Path, capability: str
) -> None:
    part, engine = built(rtx, fp16, "body", capability)
    assert part.layer_precision == "fp16" and set(layer_precisions(engine.layers)) <= {"fp16", "fp32", "other"}
    check_layers(part, engine, "Half")


@pytest.mark.parametrize(("precision", "low"), [("bf16", "BFloat16"), ("fp32", "Float")])
def test_bodies_in_bf16_and_in_fp32_are_built_as_the_graph_says(
    rtx: Library, tmp_path: Path, precision: str, low: str
) -> None:
    quick_parts(random_checkpoint("ipt-tiny", OFFICIAL_TASKS[:1]), tmp_path / "parts", precision, ["body"])
    for capability in (AMPERE, ADA):
        part, engine = built(rtx, tmp_path / "parts", "body", capability)
        check_layers(part, engine, low)
        with pytest.raises(AssertionError):  # and would see it if it were not so
            check_layers(part, engine, "Half")


def test_a_body_as_wide_as_the_papers_is_built_with_every_attention_fused(rtx: Library, tmp_path: Path) -> None:
    config = replace(preset("ipt", OFFICIAL_TASKS[:1]), encoder_layers=2, decoder_layers=2)  # 12 and 12 take minutes
    quick_parts(checkpoint_of(identity_start(IPT(config))), tmp_path / "parts", "fp16", ["body"])
    part, engine = built(rtx, tmp_path / "parts", "body", ADA)
    assert sum(layer.operator == "Softmax" for layer in part.layers) == 6  # 2 layers with one, 2 with two
    check_layers(part, engine, "Half")


def test_a_model_repository_gets_its_plans_in_place(rtx: Library, fp16: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (fp16 / SAMPLES).touch()  # reference tensors are only for engines that are run
    assert export(["repository", "--parts", str(fp16), "--repository", str(models)]) == 0
    command = ["engines", "--repository", str(models), "--compute-capability", ADA, "--only", "body", "tail_derain"]
    assert export(command) == 0
    folders = Folders(models, None)
    assert read_metadata(folders.plan("body", ADA)).part == "body"
    assert folders.plan("tail_derain", ADA).parent == folders.onnx("tail_derain").parent
    assert not folders.plan("head_derain", ADA).exists()


def test_the_benchmarks_matrix_product_is_built_too(rtx: Library) -> None:
    assert len(matmul_plan(rtx, 128, "fp16", ADA)) > 128 * 128 * 2


def test_without_a_gpu_the_cards_have_to_be_named_and_known(
    rtx: Library, fp16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["engines", str(fp16), "--output", str(tmp_path)]
    assert export(command) == 1
    assert "name the cards to build for with --compute-capability, such as 8.9" in capsys.readouterr().err
    assert export([*command, "--compute-capability", "9.0"]) == 1
    told = capsys.readouterr().err
    assert told == (
        f"error: {rtx} does not build for compute capability 9.0; it builds for {', '.join(known_capabilities(rtx))}\n"
    )
    assert known_capabilities(rtx) == sorted(known_capabilities(rtx), key=float) and not list(tmp_path.iterdir())


def test_bf16_for_a_card_that_has_none_is_refused_before_anything_is_built(
    rtx: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Manifest(48, "tensorrt-rtx", "bf16", (), ()).save(tmp_path)
    command = ["engines", str(tmp_path), "--output", str(tmp_path / "plans"), "--compute-capability", "7.5"]
    assert export(command) == 1
    assert "compute capability 7.5 computes no BF16, which starts with 8.0: export" in capsys.readouterr().err
    check_capability("fp16", "7.5")
    check_capability("bf16", "8.0")


def one_node(operator: str, *shapes: list[int | str], **attributes: object) -> tuple[Part, bytes]:
    """A part of one node over float16 tensors, the last of the shapes its output."""
    kind = TensorProto.FLOAT16
    *inputs, output = (helper.make_tensor_value_info(f"t{i}", kind, shape) for i, shape in enumerate(shapes))
    names = [value.name for value in inputs]
    constants = [helper.make_tensor(f"c{i}", TensorProto.INT64, [2], [48, 3][i : i + 1] * 2) for i in range(2)]
    node = helper.make_node(operator, [*names, "c0", "c1"], [output.name], name="the_node", **attributes)
    graph = helper.make_graph([node], "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ports = tuple(Port(v.name, tuple(shape[1:]), "float16") for v, shape in zip(inputs, shapes, strict=False))  # type: ignore[arg-type]
    values = {"sha256": "", "parity": None, "flops": 0, "weight_count": 0, "layer_precision": "fp16"}
    layers = (Layer("the_node", operator, "fp16"),)
    return Part("odd", ports, (), layers=layers, **values), model.SerializeToString()  # type: ignore[arg-type]


def test_an_operator_that_the_parser_refuses_is_one_sentence_with_its_code(rtx: Library) -> None:
    part, model = one_node("Col2Im", ["n", 27, 256], ["n", 3, 48, 48], strides=[3, 3])
    how = plan_precision(rtx, "fp16", "fp16")
    with pytest.raises(EngineError) as refused:
        build_engine(rtx, part, model, how, BuildOptions(), ADA, lambda line: None)
    told = str(refused.value)
    assert told.startswith("odd: TensorRT's parser refuses the graph: node the_node (Col2Im): ") and "\n" not in told
    assert "(UNSUPPORTED_NODE" in told and "it logged: " in told


def test_progress_is_a_line_now_and_then_and_not_one_for_each_phase(rtx: Library, fp16: Path) -> None:
    lines: list[str] = []
    manifest = read_manifest(fp16)
    model = (fp16 / "tail_derain.onnx").read_bytes()
    how = plan_precision(rtx, None, "fp16")
    options = BuildOptions(profile=(1, 2, 4))
    build_engine(rtx, manifest.part("tail_derain"), model, how, options, ADA, lines.append)
    assert len(lines) <= 2
