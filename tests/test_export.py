"""Exporting: parts, their parity gate, and the repository that is written from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from support import SMALL, Served, small_model
from tritonclient.grpc import model_config_pb2 as pb

from export.__main__ import main
from export.parity import ParityError, check_part, compare, real_tiles
from export.parts import ExportError, export_parts, plan_routes
from export.repository import RepositoryError, ServingOptions, write_repository
from export.surgery import GraphError, clean_graph
from train.checkpoint import Checkpoint, content_hash, load_checkpoint, save_checkpoint
from train.model import IPT, OFFICIAL_TASKS

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


def test_graphs_have_a_dynamic_batch_and_no_shape_arithmetic_in_the_body(served: Served):
    body = onnx.load(parts_of(served) / "body.onnx")
    assert [i.type.tensor_type.shape.dim[0].dim_param for i in body.graph.input] == ["batch", "batch"]
    operators = {node.op_type for node in body.graph.node}
    assert not operators & {"Shape", "Slice", "Gather", "Constant", "Cast", "Col2Im"}
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


def test_single_task_checkpoint_keeps_its_id(tmp_path: Path):
    manifest = export_parts([one_task(5)], tmp_path / "parts")
    write_repository(tmp_path / "parts", manifest, tmp_path / "models", ServingOptions())
    config = text_format.Parse((tmp_path / "models/restore/config.pbtxt").read_text(), pb.ModelConfig())
    assert [(t["id"], t["name"]) for t in json.loads(config.parameters["tasks"].string_value)] == [(5, "denoise_50")]


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
    assert sorted(names) == ["body", "head_sr_x2", "ipt_sr_x2", "restore", "tail_sr_x2"]
    assert sorted(p.name for p in models.iterdir()) == sorted([*names, "my_model", "notes.txt"])
    assert (mine / "config.pbtxt").read_text() == 'name: "my_model"\n'
    assert {p.name for p in (models / "restore" / "1").iterdir()} == {"model.py", "tiling.py"}


def test_folder_of_another_hand_with_a_needed_name_is_an_error(tmp_path: Path):
    models = tmp_path / "models"
    (models / "body").mkdir(parents=True)
    manifest = export_parts([one_task(3)], tmp_path / "parts")
    with pytest.raises(RepositoryError, match="body was not written by ipt-export; move it away"):
        write_repository(tmp_path / "parts", manifest, models, ServingOptions())
    assert [p.name for p in models.iterdir()] == ["body"]


def test_every_configuration_is_a_valid_protobuf_with_the_tensors_of_its_part(served: Served):
    for folder in served.repository.iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())
        assert config.name == folder.name
        if config.platform == "ensemble":
            task = folder.name.removeprefix("ipt_")
            assert [s.model_name for s in config.ensemble_scheduling.step] == [f"head_{task}", "body", f"tail_{task}"]
            assert [(i.name, list(i.dims)) for i in config.input] == [("IMAGE", [3, 48, 48])]
            assert not config.model_warmup
        elif folder.name != "restore":
            graph = onnx.load(folder / "1" / "model.onnx").graph
            assert [i.name for i in config.input] == [i.name for i in graph.input]
            assert [o.name for o in config.output] == [o.name for o in graph.output]


@pytest.mark.skipif(
    "avx512_bf16" not in Path("/proc/cpuinfo").read_text(),
    reason="this CPU computes no BF16, so its parity has no meaning",
)
def test_bf16_parts_pass_their_gate_and_say_so(tmp_path: Path):
    manifest = export_parts([one_task(4)], tmp_path / "parts", "bf16")
    assert manifest.precision == "bf16"
    assert all(45 < p.parity.psnr < 120 for p in manifest.parts)


def test_command_exports_and_reports_errors_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = tmp_path / "checkpoint"
    save_checkpoint(one_task(3).model, checkpoint)
    places = ["--repository", str(tmp_path / "models"), "--parts", str(tmp_path / "parts")]
    assert main([str(checkpoint), *places]) == 0
    assert "5 models, tasks derain" in capsys.readouterr().out
    assert main([str(tmp_path / "nothing"), *places]) == 1
    assert "is not a checkpoint: it has no config.json" in capsys.readouterr().err
    assert main([str(checkpoint), str(checkpoint), *places]) == 1
    assert "task 3 derain meets" in capsys.readouterr().err
    assert load_checkpoint(checkpoint).sha256 in (tmp_path / "models/restore/config.pbtxt").read_text()
