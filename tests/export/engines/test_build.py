"""Engine builder and runner: everything that needs no GPU, and their use of the real bindings of three TensorRTs.

The names that the bindings of each version have are kept in `tests/helpers/tensorrt_*_api.txt`. The bindings of
TensorRT 10.13.3 and 11.4 themselves are wheels of about 1 MB. Where they lie in `build/tensorrt-bindings`, they are
imported in a process of their own against stub libraries (every entry point returns NULL):

    pip download --no-deps --dest build/tensorrt-bindings tensorrt-cu13-bindings==10.13.3.9    # and 11.4.0.106
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import small_engines
from helpers.small_engines import metadata
from helpers.small_parts import MODEL, small_parts
from helpers.support import SMALL, small_model
from onnx import TensorProto, helper

from ipt_triton.export.engines import build, checks, files, messages
from ipt_triton.export.engines import inputs as engine_inputs
from ipt_triton.export.engines import metadata as plan_metadata
from ipt_triton.export.engines.builder import Built
from ipt_triton.export.engines.files import BuildOptions, Folders
from ipt_triton.export.engines.library import Library, load_library
from ipt_triton.export.engines.metadata import EngineError, Gpu, InputError, PlanMismatch
from ipt_triton.export.parts.flops import count_flops
from ipt_triton.export.parts.parity import real_tiles
from ipt_triton.export.parts.split import export_parts
from ipt_triton.manifest import (
    MANIFEST,
    SAMPLES,
    Layer,
    Manifest,
    ManifestError,
    Part,
    Port,
    read_manifest,
    tasks_of_parts,
)
from ipt_triton.parity import ParityError, check_finite, compare
from ipt_triton.train.model.checkpoint import Checkpoint, content_hash

ROOT = Path(__file__).parents[3]
BUILDER = ROOT / "export" / "engines" / "build.py"
HOUSE = ROOT / "src" / "ipt_triton"
SOURCES = [*(HOUSE / "export" / "engines").glob("[a-z]*.py"), HOUSE / "benchmarks" / "compute" / "engines.py"]
API_FILES = sorted((ROOT / "tests" / "helpers").glob("tensorrt_*_api.txt"))
WHEELS = {"10.13.3.9": 10, "11.4.0.106": 11}
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
H200 = Gpu("NVIDIA H200", "9.0")


# --- the bindings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """`owner.name` in a function of a source file; guarded if `hasattr` has just shown that it is there."""

    owner: str
    name: str
    guarded: bool
    function: str
    place: str


class Uses(ast.NodeVisitor):
    """Every `lib.X`, `lib.X.Y`, and attribute of a variable annotated as `trt.X`."""

    def __init__(self, path: Path):
        self.file = path.name
        self.found: list[Use] = []
        self.kinds: dict[str, str] = {}
        self.guards: set[str] = set()
        self.function = ""
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):  # attributes of `self` hold for the whole file
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                self._learn(ast.unparse(node.target), node.annotation)
        self.visit(tree)

    def _learn(self, name: str, annotation: ast.expr | None) -> None:
        text = ast.unparse(annotation).removesuffix(" | None") if annotation else ""
        if text.startswith("trt."):
            self.kinds[name] = text.removeprefix("trt.")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outside, outer = dict(self.kinds), self.function
        self.function = outer or node.name
        for argument in node.args.args:
            self._learn(argument.arg, argument.annotation)
        self.generic_visit(node)
        self.kinds, self.function = outside, outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._learn(ast.unparse(node.target), node.annotation)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self.visit(node.test)
        test = node.test
        guard = ""
        if (
            isinstance(test, ast.Call)
            and ast.unparse(test.func) == "hasattr"
            and isinstance(test.args[1], ast.Constant)
        ):
            guard = f"{ast.unparse(test.args[0])}.{test.args[1].value}".removeprefix("lib.")
        self.guards.add(guard)
        for child in node.body:
            self.visit(child)
        self.guards.discard(guard)
        for child in node.orelse:
            self.visit(child)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner, name = ast.unparse(node.value), node.attr
        kind = self.kinds.get(owner, "" if owner == "lib" else owner.removeprefix("lib."))
        if (owner in self.kinds or owner.split(".")[0] == "lib") and not (kind and name.startswith("__")):
            guarded = f"{kind}.{name}".removeprefix(".") in self.guards
            self.found.append(Use(kind, name, guarded, self.function, f"{self.file}:{node.lineno}"))
        self.generic_visit(node)


def parse_api(lines: list[str]) -> dict[str, set[str]]:
    """Names by class; the key "" holds the module's own."""
    api: dict[str, set[str]] = {"": {"__version__"}}
    for line in lines:
        if line.startswith("#"):
            continue
        name, _, attributes = line.partition(":")
        api[""].add(name)
        api[name] = set(attributes.split())
    return api


ONLY_SINCE_10 = "make_monitor"
"""Called where `IBuilderConfig.progress_monitor` is there."""
ONLY_BEFORE_10 = "pin_types"
"""Called where `plan_precision` says so, which it does for no TensorRT from 10 on (tested below)."""
ONLY_RTX = ("aim_at", "known_capabilities", "capability_member", "_make_context", "_keep_kernels")
"""Called for TensorRT for RTX alone, of which test_rtx.py uses the real module."""


def missing(uses: list[Use], api: dict[str, set[str]], skipped: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{u.place}: {u.owner or 'tensorrt'}.{u.name}"
        for u in uses
        if not u.guarded and u.function not in skipped and u.name not in api.get(u.owner, set())
    ]


@dataclass(frozen=True)
class Bindings:
    """TensorRT's real Python bindings of one version, on stub libraries."""

    version: str
    site: Path
    libraries: Path

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(map(str, (self.site, HOUSE.parent)))
        environment = {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(self.libraries)}
        arguments = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="session", params=sorted(WHEELS))
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    version, major = request.param, WHEELS[request.param]
    pattern = f"tensorrt_cu13_bindings-{version}-cp3{sys.version_info[1]}-*.whl"
    wheels = list((ROOT / "build" / "tensorrt-bindings").glob(pattern))
    if not wheels:
        pytest.skip(f"the bindings of TensorRT {version} are not in build/tensorrt-bindings")
    folder = tmp_path_factory.mktemp(f"tensorrt{major}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    # What the package `tensorrt` itself does: hand on its bindings.
    (folder / "tensorrt.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        name = f"lib{library}.so.{major}"
        command = ["cc", "-shared", "-fPIC", str(source), "-o", str(folder / name), f"-Wl,-soname,{name}"]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("no C compiler (cc) to build the stub libraries with")
    return Bindings(version, folder, folder)


@pytest.fixture(scope="session")
def uses() -> list[Use]:
    return [use for path in SOURCES for use in Uses(path).found]


def test_the_walk_sees_modules_enums_and_methods(uses: list[Use]) -> None:
    seen = {(use.owner, use.name) for use in uses}
    assert {
        ("", "Builder"),
        ("TensorIOMode", "INPUT"),
        ("ProfilingVerbosity", "DETAILED"),
        ("Builder", "build_serialized_network"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "create_engine_inspector"),
        ("ParserError", "node"),
        ("INetworkDefinition", "add_matrix_multiply"),
    } <= seen
    assert {use.function for use in uses} >= {ONLY_SINCE_10, ONLY_BEFORE_10, *ONLY_RTX}


def test_an_attribute_that_is_gone_would_be_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        textwrap.dedent("""
        def build(builder: trt.Builder):
            if hasattr(lib.BuilderFlag, "FP16"):
                lib.BuilderFlag.FP16
            builder.platform_has_fast_fp16
            lib.BuilderFlag.BF16
        """)
    )
    api = parse_api(["Builder: build_serialized_network", "BuilderFlag: TF32"])
    assert missing(Uses(source).found, api) == [
        "source.py:5: Builder.platform_has_fast_fp16",
        "source.py:6: BuilderFlag.BF16",
    ]


@pytest.mark.parametrize("path", API_FILES, ids=lambda path: path.stem)
def test_all_that_we_use_is_in_every_tensorrt(path: Path, uses: list[Use]) -> None:
    old = path.name.startswith("tensorrt_8")
    skipped = ONLY_SINCE_10 if old else ONLY_BEFORE_10
    assert missing(uses, parse_api(path.read_text().splitlines()), (skipped, *ONLY_RTX)) == []


def test_the_flags_of_tensorrt_8_6_are_in_it() -> None:
    api = parse_api((ROOT / "tests" / "helpers" / "tensorrt_8.6.0_api.txt").read_text().splitlines())
    for graph, asked in (("fp32", "fp32"), ("fp32", "fp16"), ("fp16", "fp16")):
        how = engine_inputs.plan_precision(tensorrt("8.6.0"), asked, graph)
        assert set(how.network_flags) <= api["NetworkDefinitionCreationFlag"]
        assert {*how.builder_flags, *how.cleared_flags} <= api["BuilderFlag"]


def test_flags_logger_and_monitor_work_with_the_real_bindings(bindings: Bindings) -> None:
    result = bindings.run("""
        import tensorrt as trt
        from ipt_triton.export.engines import builder, messages
        from ipt_triton.export.engines import inputs as engine_inputs
        from ipt_triton.export.engines.library import load_library
        library = load_library()
        for precision in ("fp32", "fp16", "bf16"):
            how = engine_inputs.plan_precision(library, precision, precision)
            print(builder.network_flags(trt, how) == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            [getattr(trt.BuilderFlag, name) for name in (*how.builder_flags, *how.cleared_flags)]
        log = messages.make_logger(trt)
        log.log(trt.ILogger.ERROR, "broken")
        log.log(trt.ILogger.VERBOSE, "chatter")
        print(isinstance(log, trt.ILogger), log.errors)
        lines, times = [], iter(range(1000))
        monitor = messages.make_monitor(trt, "body", lines.append, lambda: next(times) / 4)
        monitor.phase_start("Building Engine", None, 20)
        print([monitor.step_complete("Building Engine", step) for step in range(20)] == 20 * [True])
        monitor.phase_finish("Building Engine")
        print(isinstance(monitor, trt.IProgressMonitor), *lines, sep="; ")
        kinds = {kind.name for kind in (trt.float32, trt.float16, trt.int32, trt.int64, trt.int8, trt.uint8, trt.bool)}
        from ipt_triton.export.engines.runner import DTYPES
        print(kinds == set(DTYPES))
    """)
    assert result.stdout.splitlines() == [
        *3 * ["True"],
        "True ['broken']",
        "True",
        "True; body: Building Engine, step 7 of 20, 2 s; body: Building Engine, step 15 of 20, 4 s",
        "True",
    ], result.stderr


def test_the_builder_alone_says_what_the_machine_lacks(bindings: Bindings, tmp_path: Path) -> None:
    """The real command with the real bindings, on a machine without PyCUDA or GPU."""
    Manifest(48, "tensorrt", "fp16", (), ()).save(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(bindings.site), "LD_LIBRARY_PATH": str(bindings.libraries)}
    command = [sys.executable, str(BUILDER), str(tmp_path), "--output", str(tmp_path / "plans")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(("error: PyCUDA is not installed", "error: no GPU can be used")), result.stderr
    assert result.stderr.count("\n") == 1 and not (tmp_path / "plans").exists()


@pytest.mark.parametrize(
    "path", [*SOURCES, HOUSE / "export" / "repository" / "runner_tensorrt.py"], ids=lambda path: path.name
)
def test_the_files_parse_as_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


ONLY_NUMPY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"numpy", "ipt_triton", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv.pop(1))
"""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_more_than_numpy_is_imported_at_once(path: Path) -> None:
    module = ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts)
    command = [sys.executable, "-c", f"{ONLY_NUMPY}import {module}", str(HOUSE.parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_builder_runs_where_there_is_nothing_but_numpy(parts_folder: Path, tmp_path: Path) -> None:
    code = ONLY_NUMPY + "from ipt_triton.export.engines import build\nsys.exit(build.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(HOUSE.parent), str(parts_folder), "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: TensorRT is not installed: pip install tensorrt, or use an NGC container\n"


@pytest.mark.slow
def test_parts_and_reference_tensors_are_read_with_nothing_but_numpy(typed_parts: Path) -> None:
    code = ONLY_NUMPY + textwrap.dedent("""
        from pathlib import Path
        from ipt_triton.export.engines import inputs as engine_inputs
        from ipt_triton.manifest import read_manifest
        folder = Path(sys.argv[1])
        for part in read_manifest(folder).parts:
            inputs, outputs = engine_inputs.reference_tensors(folder / "samples.npz", part, "denoise_30")
            print(part.name, part.layer_precision, *[x.dtype for x in (*inputs.values(), *outputs.values())])
    """)
    command = [sys.executable, "-c", code, str(HOUSE.parent), str(typed_parts)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == [
        "head_denoise_30 fp32 float32 float32 float32",
        "body bf16 float32 float32 float32",
        "tail_denoise_30 fp32 float32 float32",
    ], result.stderr


def test_the_builder_alone_without_tensorrt_says_so(tmp_path: Path) -> None:
    if engine_is_here():
        pytest.skip("TensorRT is installed here")
    Manifest(48, "tensorrt", "fp16", (), ()).save(tmp_path)
    command = [sys.executable, str(BUILDER), str(tmp_path), "--output", str(tmp_path / "plans")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: TensorRT is not installed: pip install tensorrt, or use an NGC container\n"


def engine_is_here() -> bool:
    try:
        load_library()
    except EngineError:
        return False
    return True


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("__version__ = '8.5.3'", "TensorRT 8.5.3 is too old; 8.6 or newer is needed"),
        ("import ctypes; ctypes.CDLL('libnvinfer.so.99')", "does not load (libnvinfer.so.99"),
    ],
)
def test_an_old_or_broken_tensorrt_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    Manifest(48, "tensorrt", "fp16", (), ()).save(tmp_path)
    command = [sys.executable, str(BUILDER), str(tmp_path), "--output", str(tmp_path / "plans")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1 and sentence in result.stderr and result.stderr.count("\n") == 1


# --- what to build --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_parts(tmp_path_factory)


@pytest.fixture(scope="module")
def typed_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BF16 parts of one task: their head and tail have BF16 weights and convolutions in FP32."""
    config = replace(SMALL, encoder_layers=1, decoder_layers=1, tasks=(SMALL.tasks[4],))
    model = small_model(config=config)
    folder = tmp_path_factory.mktemp("typed") / "parts"
    checkpoint = Checkpoint(model, content_hash(dict(model.state_dict())))
    export_parts([checkpoint], folder, "bf16", "tensorrt")
    return folder


@pytest.mark.slow
def test_the_manifest_of_a_real_export_gives_parts_shapes_and_tasks(parts_folder: Path) -> None:
    manifest = read_manifest(parts_folder)
    parts = {part.name: part for part in manifest.parts}
    served = tasks_of_parts(manifest.routes)
    tasks = [name.removeprefix("head_") for name in parts if name.startswith("head_")]
    assert len(parts) == 2 * len(tasks) + 1
    body = parts["body"]
    assert body.inputs == (Port("FEATURES", (8, 48, 48), "float32"), Port("TASK_EMBEDDING", (256, 72), "float32"))
    assert body.outputs == (Port("BODY_FEATURES", (8, 48, 48), "float32"),)
    assert manifest.graph_precision == body.layer_precision == "fp32"
    assert body.flops == 2 * body_macs(256, 72, 2, 2)
    assert served["body"] == ("body", tasks) and all(served[f"tail_{task}"] == ("tail", [task]) for task in tasks)
    # OpenVINO is told the precision as it compiles the graphs, so theirs is FP32 and nobody asks for their layers.
    assert replace(manifest, precision="bf16").graph_precision == "fp32" and body.layers == ()
    floats = [w for w in onnx.load(parts_folder / "body.onnx").graph.initializer if w.data_type == TensorProto.FLOAT]
    assert body.weight_count == sum(onnx.numpy_helper.to_array(w).size for w in floats)


@pytest.mark.slow
def test_a_missing_or_foreign_manifest_and_an_unknown_part_are_refused(parts_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"not a folder of parts \(.*manifest.json'\): run ipt-export CHECKPOINT"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text('{"runtime": "tensorrt", "precision": "fp16", "parts": [{"name": "body"}]}')
    with pytest.raises(ManifestError, match=r"manifest.json is not of this version \(.*\): run ipt-export CHECKPOINT"):
        read_manifest(tmp_path)
    with pytest.raises(EngineError, match=r"there is no part bodi; there are .*body"):
        engine_inputs.choose_parts(read_manifest(parts_folder).parts, ["bodi"])


def tensorrt(version: str, name: str = "tensorrt") -> Library:
    """A library of which only name and version are asked."""
    return Library(name, version, ModuleType(name))


@pytest.mark.parametrize(
    "library", [tensorrt("10.13.3"), tensorrt("11.4.0"), tensorrt("1.7.1", "tensorrt-rtx")], ids=str
)
def test_new_tensorrts_take_the_precision_from_the_graph_alone(library: Library) -> None:
    how = engine_inputs.plan_precision(library, None, "fp16")
    assert (how.precision, how.network_flags, how.builder_flags, how.pin_types) == (
        "fp16",
        ("STRONGLY_TYPED",),
        (),
        False,
    )
    assert engine_inputs.plan_precision(library, "fp32", "fp32").cleared_flags == ("TF32",)
    with pytest.raises(EngineError, match=r"the parts are FP32: export them with --precision fp16, or ask for fp32"):
        engine_inputs.plan_precision(library, "fp16", "fp32")


def test_tensorrt_8_6_takes_it_from_flags() -> None:
    plain, typed = (engine_inputs.plan_precision(tensorrt("8.6.1"), "fp16", graph) for graph in ("fp32", "fp16"))
    assert plain.network_flags == typed.network_flags == ("EXPLICIT_BATCH",)
    assert (plain.builder_flags, plain.pin_types) == (("FP16",), False)
    assert (typed.builder_flags, typed.pin_types) == (("FP16", "PREFER_PRECISION_CONSTRAINTS"), True)
    with pytest.raises(EngineError, match=r"TensorRT 8.6 computes no BF16: use TensorRT 10"):
        engine_inputs.plan_precision(tensorrt("8.6.1"), None, "bf16")
    with pytest.raises(EngineError, match="FP32 was asked for"):
        engine_inputs.plan_precision(tensorrt("8.6.1"), "fp32", "fp16")


def test_the_profile_is_the_manifests_shape_at_three_batches() -> None:
    shapes = engine_inputs.profile_shapes("FEATURES", (-1, 8, 48, 48), (8, 48, 48), (1, 4, 16))
    assert shapes == ((1, 8, 48, 48), (4, 8, 48, 48), (16, 8, 48, 48))
    with pytest.raises(EngineError, match="a dynamic batch is needed"):
        engine_inputs.profile_shapes("FEATURES", (1, 8, 48, 48), (8, 48, 48), (1, 4, 16))
    with pytest.raises(EngineError, match=r"\[-1, 16, 48, 48\] in the graph and \[n, 8, 48, 48\] in the manifest"):
        engine_inputs.profile_shapes("FEATURES", (-1, 16, 48, 48), (8, 48, 48), (1, 4, 16))


@pytest.mark.parametrize("profile", [(0, 1, 2), (4, 2, 8), (1, 16, 8)])
def test_a_profile_that_does_not_rise_is_refused(profile: tuple[int, int, int]) -> None:
    with pytest.raises(EngineError, match="1 ≤ --min-batch ≤ --opt-batch ≤ --max-batch"):
        BuildOptions(profile=profile)


def test_out_of_memory_and_other_failures_are_one_sentence() -> None:
    log = ["[defaultAllocator.cpp::allocate::62] Error Code 1: Cuda Runtime (out of memory)\n", "Could not build"]
    sentence = messages.explain_failure("body", log, 2.0)
    assert sentence.startswith("body: not enough GPU memory to build (--workspace is 2 GiB): stop what")
    other = messages.explain_failure("body", ["Internal Error\n  (no kernel)"], None)
    assert other == "body: TensorRT could not build the engine: Internal Error (no kernel)"


# --- what was built -------------------------------------------------------------------------------------------------


def layer(kind: str, types: list[str], name: str = "layer", **more: object) -> dict[str, object]:
    """A layer as TensorRT 8.6 and 10 tell it."""
    ports = [{"Name": f"t{i}", "Dimensions": [8, 256, 72], "Format/Datatype": text} for i, text in enumerate(types)]
    return {"Name": name, "LayerType": kind, "Inputs": ports[:1], "Outputs": ports[1:], **more}


def layer_11(kind: str, types: list[str], name: str = "layer") -> dict[str, object]:
    """A layer as TensorRT 11 tells it: type and format apart."""
    entry = layer(kind, types, name)
    for port in (*entry["Inputs"], *entry["Outputs"]):  # type: ignore[misc]
        port["Datatype"], port["Format"] = port.pop("Format/Datatype"), "(Linear) Row major linear format"
    return entry


REPORT_8_6 = {
    "Layers": [
        layer("Reformat", ["Row major linear FP32", "Channel major FP16 format where channel % 8 == 0"]),
        layer(
            "CaskConvolution",
            ["Channel major FP16 format where channel % 8 == 0", "Channel major FP16 format where channel % 8 == 0"],
            Weights={"Type": "Half", "Count": 1728},
        ),
        layer("CaskConvolution", ["Row major linear FP32", "Row major linear FP32"], Weights={"Type": "Float"}),
        layer("Myelin", ["Row major linear FP32", "Row major linear FP32"], "{ForeignNode[a...b]}", TacticName=""),
        layer("NoOp", ["Row major linear FP32", "Row major linear FP32"]),
    ],
    "Bindings": ["FEATURES", "TASK_EMBEDDING", "BODY_FEATURES"],
}
REPORT_11 = {
    "Layers": [
        layer_11("gemm", ["Half", "Half"]),
        layer_11("kgen", ["Half", "Float"], "__myl_CastMulMeaSubMul"),
        layer_11("kgen", ["Float", "Float"], "__myl_Add"),
        layer_11("kgen", ["Int64", "Int64"]),
        layer_11("gemm", ["BFloat16", "BFloat16"]),
        layer_11("shape_call", ["Int64"]),
    ],
    "I/O Tensors": [{"Name": name} for name in ("FEATURES", "TASK_EMBEDDING", "BODY_FEATURES")],
}


@pytest.mark.parametrize(
    ("report", "counts"),
    [(REPORT_8_6, {"fp16": 1, "fp32": 1, "opaque": 1}), (REPORT_11, {"fp16": 2, "fp32": 1, "other": 1, "bf16": 1})],
    ids=["8.6", "11"],
)
def test_layers_are_read_from_both_layouts_of_the_inspector(report: dict[str, object], counts: dict[str, int]) -> None:
    assert checks.layer_precisions(json.dumps(report)) == counts


@pytest.mark.slow
def test_an_engine_with_other_tensors_than_the_manifests_is_refused(typed_parts: Path) -> None:
    tail = read_manifest(typed_parts).part("tail_denoise_30")
    given, made = (Port("BODY_FEATURES", (8, 48, 48), "float16"),), (Port("RESTORED", (3, 48, 48), "float32"),)
    checks.check_tensors(tail, given, made)
    with pytest.raises(EngineError, match=r"has RESTORED float16 \[3, 48, 48\], the manifest RESTORED float32"):
        checks.check_tensors(tail, given, (replace(made[0], dtype="float16"),))


def test_a_report_without_a_type_that_is_known_is_called_unreadable() -> None:
    entry = layer_11("gemm", ["Half", "Half"])
    for port in (*entry["Inputs"], *entry["Outputs"]):  # type: ignore[misc]
        port["Kind"] = port.pop("Datatype")
    with pytest.raises(EngineError, match="cannot be read: tensors have Dimensions, Format, Kind, Name, and none is"):
        checks.layer_precisions(json.dumps({"Layers": [entry]}))


def test_a_report_of_names_alone_is_refused() -> None:
    with pytest.raises(EngineError, match="without detailed verbosity"):
        checks.layer_precisions('{"Layers": ["conv1", "relu1"], "Bindings": ["x"]}')


def test_an_engine_that_fell_back_to_fp32_is_refused() -> None:
    with pytest.raises(EngineError, match="was to compute in FP16 and 1 of 40 layers do"):
        checks.precision_evidence("fp16", {"fp16": 1, "fp32": 39}, 400, 100)
    assert checks.precision_evidence("fp16", {"fp16": 30, "fp32": 10}, 200, 100) == "inspector"
    assert checks.precision_evidence("fp32", {"fp32": 10}, 400, 100) == "inspector"
    assert checks.precision_evidence("fp32", {"fp16": 1}, 400, 100) == "none"  # a BF16 tail, fused with its cast


def test_an_engine_that_the_inspector_cannot_see_into_is_judged_by_its_size() -> None:
    assert checks.precision_evidence("fp16", {"opaque": 1, "fp32": 1}, 210, 100) == "size"
    assert checks.precision_evidence("fp16", {"opaque": 1}, 410, 100) == "none"
    assert "cannot tell" in files.summarise(metadata(evidence="none"))


@pytest.mark.slow
def test_reference_tensors_are_the_parts_own_and_repeat_to_any_batch(parts_folder: Path, tmp_path: Path) -> None:
    part, task = read_manifest(parts_folder).part("body"), MODEL.config.tasks[1].name
    assert engine_inputs.reference_tensors(tmp_path / SAMPLES, part, task) is None
    tiles = torch.from_numpy(real_tiles(48)[:3])
    with torch.inference_mode():
        features, embedding = MODEL.heads[task](tiles)
        body = MODEL.body(features, embedding)
    tensors = {"FEATURES": features, "TASK_EMBEDDING": embedding[:1], "BODY_FEATURES": body}
    np.savez(tmp_path / SAMPLES, **{f"{task}/{n}": t.detach().numpy() for n, t in tensors.items()})
    found = engine_inputs.reference_tensors(tmp_path / SAMPLES, part, task)
    assert found is not None
    inputs, expected = ({n: engine_inputs.repeat_rows(t, 7) for n, t in group.items()} for group in found)
    assert inputs["TASK_EMBEDDING"].shape == (7, 256, 72)
    np.testing.assert_array_equal(inputs["FEATURES"][6], features[0].numpy())
    # The part's own ONNX graph, run on those rows, is what the reference says.
    session = onnxruntime.InferenceSession(parts_folder / "body.onnx")
    (result,) = session.run(["BODY_FEATURES"], inputs)
    parity = compare("body at batch 7", {"BODY_FEATURES": result}, expected, "fp32")
    assert parity.tiles == 7 and parity.max_abs < 0.01 and expected["BODY_FEATURES"].shape == result.shape
    with pytest.raises(ParityError, match=r"part body at batch 7: fp32 max \|Δ\| 1, PSNR .* dB; not published"):
        compare("body at batch 7", {"BODY_FEATURES": result + 1}, expected, "fp32")
    with pytest.raises(EngineError, match="lacks tensors of tail"):
        engine_inputs.reference_tensors(tmp_path / SAMPLES, read_manifest(parts_folder).part(f"tail_{task}"), task)


class OnnxRuntimeEngine:
    """Stands in for `EngineRunner`: the part's graph, run by ONNX Runtime."""

    graph = Path()

    def __init__(self, plan: bytes, facts: plan_metadata.BuildFacts, device: int) -> None:
        self.session = onnxruntime.InferenceSession(self.graph / f"{facts.part}.onnx")
        part = read_manifest(self.graph).part(facts.part)
        self.inputs, self.outputs = part.inputs, part.outputs

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = {port.name: inputs[port.name].astype(port.dtype) for port in self.inputs}
        return dict(zip([port.name for port in self.outputs], self.session.run(None, rows), strict=True))

    def layer_report(self) -> str:
        return json.dumps({"Layers": [layer("gemm", ["Half", "Half"])]})


@pytest.mark.slow
def test_a_build_describes_each_plan_and_keeps_those_that_are_up_to_date(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = small_engines.typed_parts(tmp_path_factory)

    @contextmanager
    def current() -> Iterator[None]:
        yield

    def session(device: int) -> object:
        context = current()
        context.gpu, context.device = H200, device  # type: ignore[attr-defined]
        return context

    def built(library: Library, part: Part, *_: object) -> Built:
        return Built(f"plan of {part.name}".encode(), part.inputs, part.outputs, "")

    monkeypatch.setattr(build, "GpuSession", session)
    monkeypatch.setattr(build, "build_engine", built)
    monkeypatch.setattr(checks, "EngineRunner", OnnxRuntimeEngine)
    monkeypatch.setattr(OnnxRuntimeEngine, "graph", parts.folder)
    lines: list[str] = []
    options = BuildOptions(profile=(1, 2, 3))
    folders, library = Folders(parts.folder, tmp_path), tensorrt("10.13.3.9")
    done = build.build_engines(folders, library, options, report=lines.append)
    for part, found in zip(parts.manifest.parts, done, strict=True):
        assert found == plan_metadata.read_metadata(tmp_path / f"{part.name}_9.0.plan")
        assert (found.part, found.gpu, found.profile) == (part.name, H200.name, (1, 2, 3))
        assert (found.inputs, found.outputs, found.flops) == (part.inputs, part.outputs, part.flops)
        assert (found.layers, found.evidence, found.weight_count) == ({"fp16": 1}, "inspector", part.weight_count)
        assert found.ran and (found.library, found.version) == ("tensorrt", "10.13.3.9")
        assert [(p.precision, p.tiles) for p in found.parity] == [("fp16", batch) for batch in (1, 2, 3)]
        assert all(p.psnr > 60 for p in found.parity)
    again = build.build_engines(folders, library, options, only=["body"], report=lines.append)
    assert again == [done[0] if done[0].part == "body" else done[1]] and lines[-1] == "body for 9.0: up to date"
    with pytest.raises(EngineError, match=r"builds for the GPU that it runs on, of .* 9.0, not for 8.9: build"):
        build.build_engines(folders, library, options, ["8.9"], report=lines.append)


def test_a_node_that_the_parser_refuses_is_named() -> None:
    error = SimpleNamespace(node=lambda: 1, desc=lambda: "no kernel\n for it", code=lambda: "ErrorCode.INVALID_NODE")
    layers = (Layer("first", "Add", "fp16"), Layer("node_conv2d", "Conv", "fp16"))
    assert messages.parser_error(error, layers) == "node node_conv2d (Conv): no kernel for it (INVALID_NODE)"
    assert (
        messages.parser_error(error, (layers[0], Layer("", "Conv", "fp16")))
        == "node 1 (Conv): no kernel for it (INVALID_NODE)"
    )
    assert messages.parser_error(error, ()) == "the graph: no kernel for it (INVALID_NODE)"  # of parts for OpenVINO


def test_nan_and_inf_are_refused() -> None:
    check_finite("body at batch 1", {"y": np.zeros(3, np.float16)}, "fp16")
    for bad in (np.nan, np.inf):
        with pytest.raises(ParityError, match="body at batch 4 in fp16: y holds NaN or Inf"):
            check_finite("body at batch 4", {"x": np.zeros(3), "y": np.array([1, bad], np.float16)}, "fp16")


# --- plans and their descriptions -----------------------------------------------------------------------------------


def test_a_plan_and_its_description_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "body_9.0.plan"
    files.write_plan(path, b"plan", metadata())
    assert path.read_bytes() == b"plan" and plan_metadata.read_metadata(path) == metadata()
    assert sorted(p.name for p in path.parent.iterdir()) == ["body_9.0.plan", "body_9.0.plan.json"]


def test_nothing_half_written_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "body_9.0.plan"
    files.write_plan(path, b"old", metadata(b"old"))
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        real(self, content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_plan(path, b"new plan", metadata(b"new plan"))
    assert [p.name for p in tmp_path.iterdir()] == ["body_9.0.plan"] and path.read_bytes() == b"old"
    with pytest.raises(PlanMismatch, match="is missing: build the engine again"):
        plan_metadata.read_metadata(path)


def test_a_plan_is_kept_only_if_a_build_would_make_it_again(tmp_path: Path) -> None:
    path = tmp_path / "body_9.0.plan"
    files.write_plan(path, b"plan", metadata())
    options = BuildOptions(profile=(1, 8, 16))
    library = tensorrt("10.13.3.9")

    def kept(onnx: str = "ab", library: Library = library, capability: str = "9.0", level: int = 3) -> bool:
        return files.up_to_date(path, onnx, library, capability, "fp16", replace(options, level=level), run=True)

    assert kept()
    assert not kept(onnx="cd") and not kept(capability="8.9") and not kept(level=5)
    assert not kept(library=tensorrt("11.4.0.106")) and not kept(library=tensorrt("10.13.3.9", "tensorrt-rtx"))
    path.write_bytes(b"cut")
    assert not kept()


def test_a_plan_that_was_never_run_is_built_again_where_it_can_be_run(tmp_path: Path) -> None:
    path = tmp_path / "body_9.0.plan"
    files.write_plan(path, b"plan", metadata(ran=False, parity=()))
    options, library = BuildOptions(profile=(1, 8, 16)), tensorrt("10.13.3.9")
    kept = [files.up_to_date(path, "ab", library, "9.0", "fp16", options, run) for run in (False, True)]
    assert kept == [True, False] and "not run" in files.summarise(plan_metadata.read_metadata(path))


def test_plans_of_several_cards_lie_beside_one_another(tmp_path: Path) -> None:
    for capability in ("8.9", "12.0"):
        files.write_plan(plan_metadata.plan_path(tmp_path / "head_sr_x2", capability), b"", metadata())
    (tmp_path / "head_sr_x2_fast_8.9.plan").touch()  # of another part
    (tmp_path / "head_sr_x2_9.0.plan.json").touch()  # its plan is missing
    names = {capability: path.name for capability, path in plan_metadata.plans_beside(tmp_path / "head_sr_x2").items()}
    assert list(names) == ["8.9", "9.0", "12.0"] and names["9.0"] == "head_sr_x2_9.0.plan"


def test_a_plan_of_another_tensorrt_or_gpu_is_refused_before_tensorrt_sees_it() -> None:
    plan_metadata.check_machine(metadata(), "10.13.3.9", Gpu("NVIDIA H100", "9.0"))
    with pytest.raises(PlanMismatch, match=r"by tensorrt 10.13.3.9 and this is 11.4.0.106: build the engine again"):
        plan_metadata.check_machine(metadata(), "11.4.0.106", H200)
    with pytest.raises(
        PlanMismatch, match=r"for compute capability 9.0 \(NVIDIA H200\) and this GPU, NVIDIA L4, has 8.9"
    ):
        plan_metadata.check_machine(metadata(), "10.13.3.9", Gpu("NVIDIA L4", "8.9"))


def test_a_plan_that_is_not_the_described_one_is_refused() -> None:
    plan_metadata.check_plan(b"plan", metadata())
    with pytest.raises(PlanMismatch, match=r"\(3 bytes, 4 expected\): copy both files again"):
        plan_metadata.check_plan(b"pla", metadata())


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"part": "body", "colour": 1}'])
def test_a_foreign_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "body.plan.json").write_text(content)
    with pytest.raises(PlanMismatch, match="cannot be read"):
        plan_metadata.read_metadata(tmp_path / "body.plan")


@pytest.mark.parametrize(
    ("version", "numbers"), [("10.13.3.9", (10, 13, 3, 9)), ("8.6.1.post1", (8, 6, 1)), ("11.4.0rc1", (11, 4))]
)
def test_versions_are_compared_by_number(version: str, numbers: tuple[int, ...]) -> None:
    assert plan_metadata.version_numbers(version) == numbers


@pytest.fixture
def expected() -> Iterator[tuple[Port, ...]]:
    yield (Port("FEATURES", (2, 3), "float16"), Port("TASK_EMBEDDING", (4,), "float32"))


def test_inputs_give_the_batch(expected: tuple[Port, ...]) -> None:
    inputs = {"FEATURES": np.zeros((5, 2, 3), np.float32), "TASK_EMBEDDING": np.zeros((5, 4), np.float32)}
    assert plan_metadata.check_inputs(inputs, expected, (1, 4, 8)) == 5


@pytest.mark.parametrize(
    ("features", "embedding", "sentence"),
    [
        (
            np.zeros((9, 2, 3), np.float32),
            np.zeros((9, 4), np.float32),
            "batch of 9 is outside the engine's profile, 2 to 8",
        ),
        (
            np.zeros((1, 2, 3), np.float32),
            np.zeros((1, 4), np.float32),
            "batch of 1 is outside the engine's profile, 2 to 8",
        ),
        (np.zeros((3, 2, 2), np.float32), np.zeros((3, 4), np.float32), r"FEATURES has shape \[3, 2, 2\].*\[n, 2, 3\]"),
        (np.zeros((3, 2, 3), np.float32), np.zeros((2, 4), np.float32), r"different batch sizes: \[2, 3\]"),
        (
            np.zeros((3, 2, 3), np.complex64),
            np.zeros((3, 4), np.float32),
            "FEATURES is complex64; the engine takes float16",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    expected: tuple[Port, ...], features: np.ndarray, embedding: np.ndarray, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        plan_metadata.check_inputs({"FEATURES": features, "TASK_EMBEDDING": embedding}, expected, (2, 4, 8))


def test_wrong_names_are_refused(expected: tuple[Port, ...]) -> None:
    with pytest.raises(InputError, match="takes the inputs FEATURES, TASK_EMBEDDING, not IMAGE"):
        plan_metadata.check_inputs({"IMAGE": np.zeros((1, 3))}, expected, (1, 4, 8))


# --- operations -----------------------------------------------------------------------------------------------------


def test_operations_of_a_convolution_and_a_product_are_those_counted_by_hand() -> None:
    weights = [
        helper.make_tensor("k", TensorProto.FLOAT, [6, 2, 3, 3], [0.0] * 108),
        helper.make_tensor("m", TensorProto.FLOAT, [8, 5], [0.0] * 40),
    ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])]
    ports.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 8, 5]))
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], group=2, pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["c", "m"], ["y"]),
    ]
    model = helper.make_model(helper.make_graph(nodes, "counted", ports[:1], ports[1:], weights))
    # 6 maps of 8x8 values, each 2 channels of 3x3; then 6·8 rows of 8 against 5 columns.
    assert count_flops(model) == 2 * (6 * 8 * 8 * 2 * 9 + 6 * 8 * 8 * 5)


def test_an_operator_that_is_not_counted_is_refused() -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Einsum", ["x"], ["y"], equation="ij->ij")], "g", ports[:1], ports[1:])
    with pytest.raises(ValueError, match="cannot count the operations of Einsum"):
        count_flops(helper.make_model(graph))


def body_macs(tokens: int, dim: int, encoder: int, decoder: int) -> int:
    """Multiply-adds of IPT's body by hand: FFN 4 wide, and two attentions in a decoder layer."""
    attention = 4 * tokens * dim**2 + 2 * tokens**2 * dim
    ffn = 2 * tokens * dim * 4 * dim
    embedding = tokens * dim**2
    return encoder * (attention + ffn) + decoder * (2 * attention + ffn) + embedding + ffn


@pytest.mark.slow
def test_operations_of_the_small_body_are_those_counted_by_hand(parts_folder: Path) -> None:
    assert count_flops(onnx.load(parts_folder / "body.onnx")) == 2 * body_macs(256, 72, 2, 2)
