"""The GPU model repository: configurations of TensorRT parts, and plans that are not those of the parts."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from helpers.small_engines import TypedParts, metadata, typed_parts, write_engines
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.engines.files import Folders, write_plan
from ipt_triton.export.engines.metadata import describe_path, plans_beside, read_metadata
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.plans import RepositoryError
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.manifest import SAMPLES, Port, read_manifest
from ipt_triton.seal import SEAL

pytestmark = pytest.mark.slow

PARTS = ("body", "head_derain", "tail_derain")
WAY = ["head_derain", "body", "tail_derain"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TypedParts:
    return typed_parts(tmp_path_factory)


@pytest.fixture(scope="module")
def for_cpus(parts: TypedParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the same checkpoint for CPUs."""
    folder = tmp_path_factory.mktemp("cpu")
    manifest = export_parts([parts.checkpoint], folder / "parts")
    write_repository(folder / "parts", manifest, folder / "models", ServingOptions())
    return folder / "models"


def write(parts: TypedParts, repository: Path, runtime: str, *engines: Path) -> dict[str, pb.ModelConfig]:
    """Write a repository; its configurations by model."""
    manifest = replace(parts.manifest, runtime=runtime)
    names = write_repository(parts.folder, manifest, repository, ServingOptions(), engines)
    return {name: read(repository / name) for name in names}


def read(folder: Path) -> pb.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def test_parts_are_tensorrt_plans_on_every_gpu_with_a_cuda_graph_for_each_batch(parts: TypedParts, tmp_path: Path):
    configs = write(parts, tmp_path / "models", "tensorrt", write_engines(tmp_path / "engines", parts))
    for name in PARTS:
        config, folder = configs[name], tmp_path / "models" / name / "1"
        assert (config.platform, config.backend, config.max_batch_size) == ("tensorrt_plan", "", 16)
        (group,) = config.instance_group
        assert group.kind == pb.ModelInstanceGroup.KIND_GPU and not group.gpus  # none named: all there are
        assert group.count == (2 if name == "body" else 1)
        assert config.optimization.cuda.graphs
        graphs = [spec.batch_size for spec in config.optimization.cuda.graph_spec]
        assert graphs == [1, 2, 3, 4, 5, 6, 7, 8, 16]
        assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 16]
        assert config.HasField("dynamic_batching") and config.cc_model_filenames["9.0"] == "model_9.0.plan"
        assert (folder / "model_9.0.plan").read_bytes() == f"plan of {name} for engines".encode()
        assert read_metadata(folder / "model_9.0.plan").part == name
        assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model_9.0.plan", "model_9.0.plan.json"]
    router = configs["restore"]
    assert (router.backend, router.instance_group[0].kind) == ("python", pb.ModelInstanceGroup.KIND_CPU)
    assert router.parameters["runtime"].string_value == "tensorrt"
    assert router.parameters["precision"].string_value == "fp16"
    assert [router.parameters[key].string_value for key in ("chunk", "requests_in_flight")] == ["16", "4"]


def test_tensors_have_the_types_of_the_graphs(parts: TypedParts, tmp_path: Path):
    configs = write(parts, tmp_path / "models", "tensorrt", write_engines(tmp_path / "engines", parts))
    types = {TensorProto.FLOAT: pb.TYPE_FP32, TensorProto.FLOAT16: pb.TYPE_FP16}
    seen = set()
    for name in PARTS:
        graph = onnx.load(parts.folder / f"{name}.onnx").graph
        for ports, values in ((configs[name].input, graph.input), (configs[name].output, graph.output)):
            declared = [(port.name, port.data_type) for port in ports]
            assert declared == [(value.name, types[value.type.tensor_type.elem_type]) for value in values]
        for warm_up in configs[name].model_warmup:
            assert {n: x.data_type for n, x in warm_up.inputs.items()} == {
                port.name: port.data_type for port in configs[name].input
            }
        seen |= {port.data_type for port in (*configs[name].input, *configs[name].output)}
    assert seen == {pb.TYPE_FP32, pb.TYPE_FP16}


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-python", "tensorrt-rtx"])
def test_what_clients_see_is_the_same_on_gpus_and_on_cpus(
    parts: TypedParts, for_cpus: Path, tmp_path: Path, runtime: str
):
    gpu = write(parts, tmp_path / "gpu", runtime)
    cpu = {folder.name: read(folder) for folder in for_cpus.iterdir()}
    for name in ("restore", "ipt_derain"):
        sealed = runtime != "tensorrt"  # whose parts do not run in the Python backend
        assert gpu[name].input == cpu[name].input
        assert [p for p in cpu[name].output if sealed or p.name != SEAL] == list(gpu[name].output)
        for key in cpu[name].parameters.keys() - {"runtime", "precision", "chunk", "sealed"}:
            assert gpu[name].parameters[key] == cpu[name].parameters[key]
    assert [step.model_name for step in gpu["ipt_derain"].ensemble_scheduling.step] == ["head_derain", *PARTS[::2]]


def test_on_cpus_a_body_with_the_heads_and_tails_of_its_tasks_is_one_model(parts: TypedParts, for_cpus: Path):
    configs = {folder.name: read(folder) for folder in for_cpus.iterdir()}
    assert sorted(configs) == ["body", "ipt_derain", "restore", "restore_stream"]
    (step,) = configs["ipt_derain"].ensemble_scheduling.step
    assert step.model_name == "body"
    assert dict(step.input_map) == {"IMAGE_derain": "IMAGE"}
    assert dict(step.output_map) == {"RESTORED_derain": "RESTORED", "SEAL": "SEAL"}
    assert json.loads(configs["body"].parameters["ways"].string_value) == {"_derain": WAY}
    assert configs["body"].instance_group[0].count == 2
    assert {path.stem for path in (for_cpus / "body" / "1").glob("*.onnx")} == set(WAY)


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-python"])
def test_plans_for_two_gpus_lie_side_by_side_whether_of_one_folder_or_two(
    parts: TypedParts, tmp_path: Path, runtime: str
):
    one = write_engines(tmp_path / "one", parts)
    l4 = {"compute_capability": "8.9", "gpu": "NVIDIA L4"}
    engines = [one, write_engines(tmp_path / "two", parts, **l4)] if runtime == "tensorrt" else [one]
    if runtime == "tensorrt-python":
        write_engines(one, parts, **l4)
    write(parts, tmp_path / "models", runtime, *engines)
    for name in PARTS:
        plans = plans_beside(tmp_path / "models" / name / "1" / "model")
        assert {key: read_metadata(plan).compute_capability for key, plan in plans.items()} == {
            "8.9": "8.9",
            "9.0": "9.0",
        }


def test_a_repository_without_plans_holds_all_that_they_are_built_from(parts: TypedParts, tmp_path: Path):
    write(parts, tmp_path / "models", "tensorrt-rtx")
    assert read_manifest(tmp_path / "models") == parts.manifest
    assert (tmp_path / "models" / SAMPLES).read_bytes() == (parts.folder / SAMPLES).read_bytes()
    for name in PARTS:
        graph = Folders(tmp_path / "models", None).onnx(name)
        assert graph.read_bytes() == (parts.folder / f"{name}.onnx").read_bytes()


def test_plans_that_were_built_in_place_stay_as_long_as_the_graph_does(parts: TypedParts, tmp_path: Path):
    models = tmp_path / "models"
    write(parts, models, "tensorrt")
    for name in PARTS:
        plan = Folders(models, None).plan(name, "8.9")
        onnx_sha256 = hashlib.sha256(Folders(models, None).onnx(name).read_bytes()).hexdigest()
        own = {"onnx_sha256": onnx_sha256 if name != "body" else "of another graph"}
        write_plan(plan, b"built in place", metadata(b"built in place", compute_capability="8.9", part=name, **own))
    write(parts, models, "tensorrt", write_engines(tmp_path / "engines", parts))
    kept = {name: list(plans_beside(models / name / "1" / "model")) for name in PARTS}
    assert kept == {"body": ["9.0"], "head_derain": ["8.9", "9.0"], "tail_derain": ["8.9", "9.0"]}


def test_an_export_for_cpus_leaves_nothing_of_one_for_gpus(parts: TypedParts, tmp_path: Path):
    write(parts, tmp_path / "models", "tensorrt")
    manifest = export_parts([parts.checkpoint], tmp_path / "parts")
    write_repository(tmp_path / "parts", manifest, tmp_path / "models", ServingOptions())
    assert not [path.name for path in (tmp_path / "models").iterdir() if path.is_file()]


def test_the_python_runtime_carries_plan_and_runner_and_the_runner_imports_alone(parts: TypedParts, tmp_path: Path):
    configs = write(parts, tmp_path / "models", "tensorrt-rtx")
    body = configs["body"]
    assert (body.backend, body.platform) == ("python", "")
    assert body.instance_group[0].kind == pb.ModelInstanceGroup.KIND_GPU
    assert not body.HasField("optimization")
    version = tmp_path / "models" / "body" / "1"
    code = f"""
import sys, numpy
sys.path = [{str(version)!r}, *(p for p in sys.path if "site-packages" not in p)]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
from ipt_engine.export.engines import runner
from pathlib import Path
try:
    runner.EngineRunner.open(Path({str(version)!r}, "model"))
except runner.EngineError as error:
    print(error)
print("ipt_triton" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    told, imported = result.stdout.splitlines()
    assert told.startswith("PyCUDA is not installed: pip install pycuda") and imported == "False", result.stderr


def spoil_the_plan(engines: Path) -> None:
    (engines / "body_9.0.plan").write_bytes(b"cut off")


def drop_the_plan(engines: Path) -> None:
    (engines / "body_9.0.plan").unlink()


def drop_a_description(engines: Path) -> None:
    describe_path(engines / "tail_derain_9.0.plan").unlink()


def drop_a_part(engines: Path) -> None:
    drop_a_description(engines)
    (engines / "tail_derain_9.0.plan").unlink()


def drop_everything(engines: Path) -> None:
    shutil.rmtree(engines)
    engines.mkdir()


def swap_two_plans(engines: Path) -> None:
    for suffix in ("plan", "plan.json"):
        (engines / f"body_9.0.{suffix}").write_bytes((engines / f"head_derain_9.0.{suffix}").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_the_plan, r"body_9.0.plan: the plan of body is not the one .* copy both files again"),
        (drop_the_plan, r"body_9.0.plan cannot be read \(No such file or directory\): copy it again"),
        (
            drop_a_description,
            r"derain_9.0.plan.json, the description of a plan, is missing: build the engine again",
        ),
        (
            drop_a_part,
            r"engines has no tail_derain_9.0.plan: build them \(ipt-export engines .*parts --output",
        ),
        (drop_everything, r"engines has no head_derain_N.N.plan, body_N.N.plan, tail_derain_N.N.plan: build them"),
        (swap_two_plans, r"body_9.0.plan: the description is that of head_derain: build the engines again"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(
    parts: TypedParts, tmp_path: Path, spoil: Callable[[Path], None], sentence: str
):
    engines = write_engines(tmp_path / "engines", parts)
    spoil(engines)
    with pytest.raises(RepositoryError, match=sentence):
        write(parts, tmp_path / "models", "tensorrt", engines)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"onnx_sha256": "ab"}, r"built from another \w+.onnx: build the engines again"),
        (
            {"precision": "fp32"},
            "built in FP32 and the parts are FP16: build it without --precision, or export the parts with "
            "--precision fp32",
        ),
        (
            {"inputs": (Port("IMAGE", (3, 64, 64)),)},
            "its tensors are not those of the manifest: build the engines again",
        ),
        (
            {"profile": (1, 2, 4)},
            "for batches of 1 to 4 and the server sends 1 to 16: build it with .* --max-batch of at least 16",
        ),
        (
            {"profile": (2, 8, 20)},
            "for batches of 2 to 20 and the server sends 1 to 16: build it with --min-batch 1",
        ),
        (
            {"library": "tensorrt-rtx"},
            "by tensorrt-rtx and the runtime tensorrt runs plans of tensorrt: build it",
        ),
    ],
)
def test_plans_of_other_parts_or_batches_are_refused(
    parts: TypedParts, tmp_path: Path, changes: dict[str, object], sentence: str
):
    with pytest.raises(RepositoryError, match=sentence):
        write(parts, tmp_path / "models", "tensorrt", write_engines(tmp_path / "engines", parts, **changes))
    assert not (tmp_path / "models").exists()


def test_plans_that_one_server_cannot_load_together_are_refused(parts: TypedParts, tmp_path: Path):
    h200 = write_engines(tmp_path / "h200", parts)
    newer = write_engines(tmp_path / "newer", parts, compute_capability="8.9", version="11.4.0.106")
    with pytest.raises(RepositoryError, match=r"versions 10.13.3.9 and 11.4.0.106 and a server has one"):
        write(parts, tmp_path / "models", "tensorrt", h200, newer)
    with pytest.raises(RepositoryError, match=r"h100 both have plans for compute capability 9.0: name one of them"):
        write(parts, tmp_path / "models", "tensorrt", h200, write_engines(tmp_path / "h100", parts))


def test_runtimes_and_engines_that_do_not_go_together_are_refused(parts: TypedParts, tmp_path: Path):
    h200 = write_engines(tmp_path / "h200", parts)
    for runtime, sentence in (
        ("openvino", "openvino runs no engines: leave out --engines"),
        ("abacus", "runtime 'abacus' is not one of openvino, tensorrt, tensorrt-python, tensorrt-rtx"),
    ):
        with pytest.raises(RepositoryError, match=sentence):
            write(parts, tmp_path / "models", runtime, h200)
