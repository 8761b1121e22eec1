"""Exporting: parts, their parity gate, and the repository that is written from them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from helpers.small_engines import TypedParts, write_engines
from helpers.support import SMALL, Served, small_model
from onnx import numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.__main__ import main
from ipt_triton.export.engines import inputs as engine_inputs
from ipt_triton.export.parts.flops import count_flops
from ipt_triton.export.parts.graph import GraphError, clean_graph
from ipt_triton.export.parts.parity import ParityError, check_part, compare, real_tiles
from ipt_triton.export.parts.split import ExportError, check_combination, export_parts, plan_routes
from ipt_triton.export.parts.typed import fp16_ports
from ipt_triton.export.repository.write import RepositoryError, ServingOptions, write_repository
from ipt_triton.manifest import SAMPLES, Manifest, read_manifest
from ipt_triton.seal import SEAL
from ipt_triton.service import ROUTERS
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash, load_checkpoint, save_checkpoint
from ipt_triton.train.model.ipt import IPT, OFFICIAL_TASKS

TINY = replace(SMALL, encoder_layers=1, decoder_layers=1)


def checkpoint_of(model: IPT) -> Checkpoint:
    return Checkpoint(model, content_hash(dict(model.state_dict())))


def one_task(task: int, seed: int = 0, body: IPT | None = None) -> Checkpoint:
    """A checkpoint with one task, with its own body or that of another model."""
    model = small_model(seed, replace(TINY, tasks=(OFFICIAL_TASKS[task],)))
    if body is not None:
        model.body.load_state_dict(body.body.state_dict())
    return checkpoint_of(model)


def parts_of(served: Served) -> Path:
    return served.repository.parent / "parts"


@pytest.mark.server
def test_manifest_describes_every_part_with_shapes_hash_and_parity(served: Served):
    manifest = json.loads((parts_of(served) / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(served.manifest.to_dict()))
    names = {p["name"] for p in manifest["parts"]}
    assert names == {f"{kind}_{t.name}" for kind in ("head", "tail") for t in OFFICIAL_TASKS} | {"body"}
    assert {p.stem for p in parts_of(served).glob("*.onnx")} == names
    for part in manifest["parts"]:
        assert len(part["sha256"]) == 64
        assert part["parity"]["precision"] == "fp32"
        assert part["parity"]["max_abs"] < 0.01
        assert part["parity"]["psnr"] > 90
    tail = served.manifest.part("tail_sr_x3")
    assert (tail.inputs[0].shape, tail.outputs[0].shape) == ((8, 48, 48), (3, 144, 144))


@pytest.mark.server
def test_onnx_runtime_agrees_with_pytorch_at_other_batch_sizes(served: Served):
    def run(name: str, *inputs: np.ndarray) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(parts_of(served) / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip([i.name for i in session.get_inputs()], inputs, strict=True)))

    for batch in (1, 3, 11):
        tiles = real_tiles(48)[:batch]
        (restored,) = run("tail_derain", *run("body", *run("head_derain", tiles)))
        with torch.inference_mode():
            expected = served.checkpoint.model(torch.from_numpy(tiles), "derain").numpy()
        np.testing.assert_allclose(restored, expected, atol=1e-2)


@pytest.mark.server
def test_graphs_have_a_dynamic_batch_and_no_shape_arithmetic_in_the_body(served: Served):
    body = onnx.load(parts_of(served) / "body.onnx")
    assert [i.type.tensor_type.shape.dim[0].dim_param for i in body.graph.input] == ["batch", "batch"]
    operators = {node.op_type for node in body.graph.node}
    assert not operators & {"Shape", "Slice", "Gather", "Split", "Constant", "Cast", "Col2Im"}
    assert "LayerNormalization" in operators
    assert [(o.domain, o.version) for o in body.opset_import] == [("", 18)]


def test_foreign_operator_is_refused_by_name():
    node = onnx.helper.make_node("Col2Im", ["x", "s", "b"], ["y"])
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("x", 1, ["n", 12, 4]), value("s", 7, [2]), value("b", 7, [2])],
        [value("y", 1, ["n", 3, 4, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    with pytest.raises(GraphError, match="part body holds operators outside the allowed set: Col2Im"):
        clean_graph(model, "body")


@pytest.mark.server
def test_part_that_differs_from_pytorch_is_refused_with_its_figures(served: Served):
    tiles = real_tiles(48)
    with torch.inference_mode():
        features, embedding = served.checkpoint.model.heads["derain"](torch.from_numpy(tiles))
    expected = {"FEATURES": features.numpy(), "TASK_EMBEDDING": embedding.detach().numpy()}
    path = parts_of(served) / "head_derain.onnx"
    assert check_part(path, {"IMAGE": tiles}, expected, "fp32").tiles == len(tiles)
    expected["FEATURES"] = expected["FEATURES"] + 0.2
    with pytest.raises(ParityError, match=r"part head_derain: fp32 max .* 0\.2, .* not published"):
        check_part(path, {"IMAGE": tiles}, expected, "fp32")


def test_part_with_nan_is_refused():
    wanted = {"RESTORED": np.zeros((1, 3, 4, 4), np.float32)}
    with pytest.raises(ParityError, match="tail_derain in fp32: RESTORED holds NaN or Inf"):
        compare("tail_derain", {"RESTORED": np.full((1, 3, 4, 4), np.nan, np.float32)}, wanted, "fp32")


@pytest.mark.slow
def test_refused_export_leaves_the_old_parts(tmp_path: Path):
    model = one_task(3)
    folder = tmp_path / "parts"
    export_parts([model], folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with torch.no_grad():
        model.model.body.out2.weight[0, 0] = float("nan")
    with pytest.raises(ParityError):
        export_parts([model], folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["parts"]


def test_checkpoints_with_the_same_body_share_it_and_others_get_their_own(tmp_path: Path):
    first = one_task(0)
    shared = [first, one_task(4, seed=1, body=first.model)]
    routes, modules = plan_routes(shared)
    assert {r.body for r in routes} == {"body"}
    assert sorted(modules) == ["body", "head_denoise_30", "head_sr_x2", "tail_denoise_30", "tail_sr_x2"]

    routes, modules = plan_routes([*shared, one_task(5, seed=2)])
    bodies = {r.task.name: r.body for r in routes}
    assert bodies["sr_x2"] == bodies["denoise_30"] != bodies["denoise_50"]
    for name in bodies.values():
        assert name == f"body_{modules[name][0][:8]}"


def test_task_given_twice_is_an_error():
    with pytest.raises(ExportError, match="task 3 derain meets task 3 derain of another checkpoint; export only one"):
        plan_routes([one_task(3), one_task(3, seed=1)])


def test_relative_positions_are_for_comparison_alone(tmp_path: Path):
    checkpoint = checkpoint_of(small_model(config=replace(TINY, tasks=OFFICIAL_TASKS[3:4], position="relative")))
    with pytest.raises(ExportError, match=r"'relative' is for comparison .* learned, learned_2d, sincos, none can"):
        export_parts([checkpoint], tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned_2d", "sincos", "none"])
def test_other_positions_are_exported_and_agree_with_pytorch(tmp_path: Path, position: str):
    config = replace(TINY, tasks=OFFICIAL_TASKS[3:4], position=position)
    first, second = (checkpoint_of(small_model(seed, config)) for seed in (0, 1))
    for folder, checkpoint in (("first", first), ("second", second)):  # the second takes the graph of the first
        manifest = export_parts([checkpoint], tmp_path / folder)
        assert manifest.part("body").parity.max_abs < 0.01


@pytest.mark.slow
def test_single_task_checkpoint_keeps_its_id(tmp_path: Path):
    manifest = export_parts([one_task(5)], tmp_path / "parts")
    write_repository(tmp_path / "parts", manifest, tmp_path / "models", ServingOptions())
    config = text_format.Parse((tmp_path / "models/restore/config.pbtxt").read_text(), pb.ModelConfig())
    assert [(t["id"], t["name"]) for t in json.loads(config.parameters["tasks"].string_value)] == [(5, "denoise_50")]


@pytest.mark.slow
def test_repository_replaces_its_own_folders_and_never_touches_others(tmp_path: Path):
    models = tmp_path / "models"
    first = export_parts([one_task(3)], tmp_path / "first")
    write_repository(tmp_path / "first", first, models, ServingOptions())
    mine = models / "my_model"
    mine.mkdir()
    (mine / "config.pbtxt").write_text('name: "my_model"\n')
    (models / "notes.txt").write_text("mine")

    second = export_parts([one_task(0)], tmp_path / "second")
    names = write_repository(tmp_path / "second", second, models, ServingOptions())
    assert sorted(names) == ["body", "ipt_sr_x2", "restore", "restore_stream"]
    assert sorted(p.name for p in models.iterdir()) == sorted([*names, "my_model", "notes.txt"])
    assert (mine / "config.pbtxt").read_text() == 'name: "my_model"\n'
    assert {p.name for p in (models / "restore" / "1").iterdir()} == {"model.py", "tiling.py", "board.py", "seal.py"}


@pytest.mark.slow
def test_folder_of_another_hand_with_a_needed_name_is_an_error(tmp_path: Path):
    models = tmp_path / "models"
    (models / "body").mkdir(parents=True)
    manifest = export_parts([one_task(3)], tmp_path / "parts")
    with pytest.raises(RepositoryError, match="body was not written by ipt-export; move it away"):
        write_repository(tmp_path / "parts", manifest, models, ServingOptions())
    assert [p.name for p in models.iterdir()] == ["body"]


@pytest.mark.server
def test_every_configuration_is_a_valid_protobuf_with_the_tensors_of_its_part(served: Served):
    for folder in served.repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
        assert config.name == folder.name
        if config.platform == "ensemble":
            task = folder.name.removeprefix("ipt_")
            assert [s.model_name for s in config.ensemble_scheduling.step] == ["body"]
            assert {f"IMAGE_{task}", f"RESTORED_{task}"} <= {
                name for step in config.ensemble_scheduling.step for name in (*step.input_map, *step.output_map)
            }
            assert [(i.name, list(i.dims)) for i in config.input] == [("IMAGE", [3, 48, 48])]
            assert not config.model_warmup
        elif folder.name not in ROUTERS:
            inputs, outputs = [], [SEAL]
            for ending, way in json.loads(config.parameters["ways"].string_value).items():
                head, _, tail = (onnx.load(folder / "1" / f"{part}.onnx").graph for part in way)
                inputs += [port.name + ending for port in head.input]
                outputs += [port.name + ending for port in tail.output]
            assert sorted(i.name for i in config.input) == sorted(inputs)
            assert sorted(o.name for o in config.output) == sorted(outputs)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    """FP16 parts of two tasks, whose body has a hidden layer with values a million times larger than they were."""
    model = small_model(config=replace(TINY, tasks=(OFFICIAL_TASKS[0], OFFICIAL_TASKS[4])))
    with torch.no_grad():
        layer = model.body.decoder[0]
        layer.linear1.weight *= 2.0**20
        layer.linear1.bias *= 2.0**20
        layer.linear2.weight /= 2.0**20
    folder = tmp_path_factory.mktemp("typed") / "parts"
    save_checkpoint(model, folder.parent / "checkpoint")
    return export_parts([checkpoint_of(model)], folder, "fp16", "tensorrt"), folder


@pytest.mark.slow
def test_typed_parts_pass_their_gates_alone_and_in_a_row(typed: tuple[Manifest, Path]):
    manifest, folder = typed
    assert json.loads((folder / "manifest.json").read_text()) == json.loads(json.dumps(manifest.to_dict()))
    assert (manifest.runtime, manifest.precision) == ("tensorrt", "fp16")
    for part in manifest.parts:
        assert part.parity.precision == "fp16"
        assert part.parity.tiles == len(real_tiles(48))
        assert 60 < part.parity.psnr < 100  # a higher figure would mean that nothing was rounded
    for route in manifest.routes:
        assert route.image is not None and route.image.loss is not None
        assert 60 < route.image.psnr < 100
        assert abs(route.image.loss) <= 0.02


@pytest.mark.slow
def test_manifest_tells_the_types_that_the_graphs_have(typed: tuple[Manifest, Path]):
    manifest, folder = typed
    assert {p.stem for p in folder.glob("*.onnx")} == {p.name for p in manifest.parts}
    for part in manifest.parts:
        model = onnx.load(folder / f"{part.name}.onnx")
        for ports, values in ((part.inputs, model.graph.input), (part.outputs, model.graph.output)):
            kinds = [onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type).name for v in values]
            assert [(p.name, p.dtype) for p in ports] == [(v.name, k) for v, k in zip(values, kinds, strict=True)]
        for port in (*part.inputs, *part.outputs):
            assert port.dtype == ("float32" if port.name in ("IMAGE", "RESTORED") else "float16")
        assert onnx.TensorProto.FLOAT16 in {w.data_type for w in model.graph.initializer}
        assert part.flops == count_flops(model) > 0
        assert part.residual == "float32"
        names = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.INT64: "int64"}
        values = (*model.graph.value_info, *model.graph.output)
        written = {value.name: names[value.type.tensor_type.elem_type] for value in values}
        assert part.layers == tuple((node.name, node.op_type, written[node.output[0]]) for node in model.graph.node)
        assert part.weight_count == sum(
            numpy_helper.to_array(w).size for w in model.graph.initializer if w.data_type != onnx.TensorProto.INT64
        )
        assert part.layer_precision == "fp16"


@pytest.mark.slow
def test_layers_that_overflow_are_named_in_the_manifest(typed: tuple[Manifest, Path]):
    manifest, folder = typed
    body = manifest.part("body")
    operators = {node.name: node.op_type for node in onnx.load(folder / "body.onnx").graph.node}
    assert sorted(operators[name] for name in body.keep) == ["Add", "MatMul", "MatMul", "Relu"]
    assert body.largest_activation is not None and body.largest_activation > 65504
    for part in manifest.parts:
        if part is not body:
            assert part.keep == ()
            assert part.largest_activation is not None and part.largest_activation >= 100


@pytest.mark.slow
def test_samples_hold_what_pytorch_computed_for_each_task(typed: tuple[Manifest, Path]):
    manifest, folder = typed
    tiles = real_tiles(48)
    tensors = ("IMAGE", "FEATURES", "TASK_EMBEDDING", "BODY_FEATURES", "RESTORED")
    with np.load(folder / "samples.npz") as samples:
        assert set(samples) == {f"{r.task.name}/{t}" for r in manifest.routes for t in tensors}
        assert {samples[name].dtype.name for name in samples} == {"float32"}
        np.testing.assert_array_equal(samples["denoise_30/IMAGE"], tiles)
    # The engine builder reads them by part; the graphs that it compiles agree with them (here with CUDA's stand-in).
    for part in manifest.parts:
        task = part.name.removeprefix("head_").removeprefix("tail_")
        reference = engine_inputs.reference_tensors(folder / SAMPLES, part, "sr_x2" if task == "body" else task)
        assert reference is not None
        session = onnxruntime.InferenceSession(folder / f"{part.name}.onnx", providers=["CPUExecutionProvider"])
        rows = {p.name: engine_inputs.repeat_rows(reference[0][p.name], 3).astype(p.dtype) for p in part.inputs}
        for output, result in zip(session.get_outputs(), session.run(None, rows), strict=True):
            expected = engine_inputs.repeat_rows(reference[1][output.name], 3)
            assert np.abs(result.astype(np.float32) - expected).max() < 1
            assert expected.shape == result.shape


def test_tensors_between_parts_are_fp16_where_every_task_fits():
    quiet = {"IMAGE": np.float32([255]), "FEATURES": np.float32([-32752]), "BODY_FEATURES": np.float32([1])}
    loud = {"IMAGE": np.float32([255]), "FEATURES": np.float32([1]), "BODY_FEATURES": np.float32([-40000])}
    assert fp16_ports([quiet]) == {"FEATURES", "BODY_FEATURES"}
    assert fp16_ports([quiet, loud]) == {"FEATURES"}


@pytest.mark.slow
def test_bf16_parts_may_keep_every_tensor_of_the_ensemble_fp32(tmp_path: Path):
    manifest = export_parts([one_task(4)], tmp_path / "parts", "bf16", "tensorrt", fp32_io=True)
    assert {port.dtype for part in manifest.parts for port in (*part.inputs, *part.outputs)} == {"float32"}
    body = onnx.load(tmp_path / "parts" / "body.onnx")
    assert onnx.TensorProto.BFLOAT16 in {w.data_type for w in body.graph.initializer}
    assert 45 < manifest.part("body").parity.psnr < 80
    assert manifest.routes[0].image is not None and 45 < manifest.routes[0].image.psnr < 90


def test_combinations_that_do_not_exist_are_refused():
    for arguments, message in (
        (
            ("openvino", "fp16"),
            "runtime openvino has no precision 'fp16'; it has fp32, bf16, int8; fp16 is for the tensorrt",
        ),
        (("tensorrt", "int4"), "runtime tensorrt has no precision 'int4'; it has fp32, fp16, bf16"),
        (("onnx", "fp32"), "runtime 'onnx' is not one of openvino, tensorrt, tensorrt-python"),
        (("tensorrt", "bf16", "float16"), "a residual stream in float16 needs precision fp16, not bf16"),
        (("tensorrt", "fp16", "low"), "residual 'low' is not one of float32, float16"),
        (("tensorrt", "fp32", "float32", True), "leave --fp32-io out"),
    ):
        with pytest.raises(ExportError, match=message):
            check_combination(*arguments)


@pytest.mark.slow
@pytest.mark.skipif(
    "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="this CPU computes no BF16, so its parity has no meaning",
)
def test_bf16_parts_pass_their_gate_and_say_so(tmp_path: Path):
    manifest = export_parts([one_task(4)], tmp_path / "parts", "bf16")
    assert manifest.precision == "bf16"
    assert all(45 < p.parity.psnr < 120 for p in manifest.parts)


@pytest.mark.slow
def test_command_exports_and_reports_errors_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(one_task(3).model, checkpoint)
    places = ["--repository", str(tmp_path / "models"), "--parts", str(tmp_path / "parts")]
    assert main([str(checkpoint), *places]) == 0
    assert "4 models, tasks derain" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing"), *places]) == 1
    assert "is not a checkpoint: it has no config.json" in capsys.readouterr().err
    assert main([str(checkpoint), str(checkpoint), *places]) == 1
    assert "task 3 derain meets" in capsys.readouterr().err
    assert load_checkpoint(checkpoint).sha256 in (tmp_path / "models/restore/config.pbtxt").read_text()


@pytest.mark.slow
def test_command_for_a_gpu_writes_a_repository_that_has_no_engines_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint, parts = tmp_path / "checkpoint", tmp_path / "parts"
    save_checkpoint(one_task(3).model, checkpoint)
    command = [str(checkpoint), "--repository", str(tmp_path / "models"), "--parts", str(parts), "--runtime"]
    assert main([*command, "tensorrt-python", "--precision", "fp16", "--residual", "float16", "--fp16-restored"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'models'}: 6 models, tasks derain, no engines yet\n"
    for name in ("tail_derain", "ipt_derain"):
        config = text_format.Parse((tmp_path / "models" / name / "config.pbtxt").read_text(), pb.ModelConfig())
        assert {o.name: o.data_type for o in config.output}["RESTORED"] == pb.TYPE_FP16
    assert (tmp_path / "models" / "manifest.json").read_text() == (parts / "manifest.json").read_text()
    manifest = json.loads((parts / "manifest.json").read_text())
    assert {part["residual"] for part in manifest["parts"]} == {"float16"}
    assert {kind for _, operator, kind in read_manifest(parts).part("body").layers if operator == "Add"} == {"fp16"}


@pytest.mark.slow
def test_command_writes_parts_and_a_repository_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint, parts, models = (str(tmp_path / name) for name in ("checkpoint", "parts", "models"))
    save_checkpoint(one_task(3).model, tmp_path / "checkpoint")
    assert main(["parts", checkpoint, "--parts", parts]) == 0
    told = capsys.readouterr()
    assert f"{parts}: 3 parts in fp32, tasks derain" in told.out
    assert told.err.endswith(f"no repository yet: run  ipt-export repository --parts {parts}\n")
    assert main(["repository", "--parts", parts, "--repository", models, "--body-instances", "3"]) == 0
    assert "4 models, tasks derain" in capsys.readouterr().out
    config = text_format.Parse(Path(models, "body", "config.pbtxt").read_text(), pb.ModelConfig())
    assert config.instance_group[0].count == 3


@pytest.mark.slow
def test_command_with_parts_and_their_engines_writes_the_repository(
    typed: tuple[Manifest, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    manifest, folder = typed
    assert read_manifest(folder) == manifest
    checkpoint = load_checkpoint(folder.parent / "checkpoint")
    engines = write_engines(tmp_path / "engines", TypedParts(checkpoint, folder, manifest))
    models = tmp_path / "models"
    assert main(["repository", "--parts", str(folder), "--engines", str(engines), "--repository", str(models)]) == 0
    told = f"{models}: 9 models, tasks sr_x2, denoise_30, engines for compute capability 9.0\n"
    assert capsys.readouterr().out == told
    for name in (part.name for part in manifest.parts):
        assert list((models / name / "1").glob("*.plan"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is not a folder of parts"), ("{}", "is not of this version"), ("[", "is not of this version")],
)
def test_command_refuses_a_folder_that_holds_no_parts(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert main(["repository", "--parts", str(tmp_path), "--repository", str(tmp_path / "models")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["checkpoint", "--precision", "fp16"], "runtime openvino has no precision 'fp16'"),
        (["checkpoint", "--engines", "."], "ipt-export repository [--parts DIR] [--engines DIR ...]"),
        (["--parts", "a", "--engines", "b"], "ipt-export repository [--parts DIR] [--engines DIR ...]"),
        (
            ["repository", "--engines", "nowhere"],
            "--engines nowhere is not a folder; ipt-export engines build/parts --output nowhere makes one",
        ),
        (["checkpoint", "--runtime", "tensorrt", "--residual", "float16"], "float16 needs precision fp16, not fp32"),
        (["repository", "--precision", "fp16"], "argument --precision: invalid choice: 'fp16'"),
        (["checkpoint", "--fp16-restored"], "openvino in fp32 gives FP32 alone; leave --fp16-restored out"),
        (["checkpoint", "--max-batch", "0"], "--max-batch 0 is not within 1 to 1024"),
        (["parts", "checkpoint", "--threads", "2"], "unrecognized arguments: --threads 2"),
    ],
)
def test_wrong_combination_ends_the_command_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_part_that_fp16_cannot_hold_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = one_task(3).model
    with torch.no_grad():  # 10000 grey levels beside the picture: FP32 has the digits for both, FP16 has steps of 8
        model.heads["derain"].conv.bias[0] += 10_000
    save_checkpoint(model, tmp_path / "checkpoint")
    command = [str(tmp_path / "checkpoint"), "--repository", str(tmp_path / "models"), "--parts", str(tmp_path / "p")]
    assert main([*command, "--runtime", "tensorrt", "--precision", "fp16"]) == 1
    error = capsys.readouterr().err
    assert re.search(r"error: part head_derain: fp16 max \|Δ\| \S+, PSNR 4\d\.\d dB; allowed are max", error)
    assert "PSNR 50.0 dB; not published" in error
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
