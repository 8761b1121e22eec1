"""Checks before Triton starts on TensorRT plans: driver and libraries are stubs, plans are bytes with a description."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_engines import TENSORRT, TypedParts, typed_parts, write_engines

from ipt_triton.export.engines.metadata import EngineError, Gpu, describe_path
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving import preflight, preflight_gpu
from ipt_triton.export.serving.command import main
from ipt_triton.export.serving.preflight_gpu import Lack, check_plans, find_gpus, server_tensorrt

H200 = Gpu("NVIDIA H200", "9.0")
L4 = Gpu("NVIDIA L4", "8.9")

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device)
{ strncpy(name, device ? "NVIDIA L4" : "NVIDIA H200", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{ *value = attribute == 75 ? (device ? 8 : 9) : attribute == 76 ? (device ? 9 : 0) : -1; return 0; }
"""


def has_gpu() -> bool:
    try:
        return bool(find_gpus())
    except EngineError:
        return False


def build(target: Path, source: str, *flags: str) -> Path:
    """A shared library from C."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) to build stub libraries with")
    code = target.with_suffix(".c")
    code.write_text(source)
    subprocess.run(["cc", "-shared", "-fPIC", str(code), "-o", str(target), *flags], check=True)
    return target


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> TypedParts:
    return typed_parts(tmp_path_factory)


@pytest.fixture
def repository(parts: TypedParts, tmp_path: Path) -> Path:
    """A repository of plans for the H200."""
    return write_models(parts, tmp_path, "tensorrt")


def parts_of(repository: Path) -> list[Path]:
    return [repository / name for name in ("body", "head_derain", "tail_derain")]


def write_models(parts: TypedParts, folder: Path, runtime: str) -> Path:
    engines = write_engines(folder / "engines", parts)
    manifest = replace(parts.manifest, runtime=runtime)
    write_repository(parts.folder, manifest, folder / "models", ServingOptions(), [engines])
    return folder / "models"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs that the checks see; a test may change them."""
    seen = [H200]
    monkeypatch.setattr(preflight_gpu, "find_gpus", lambda: seen)
    return seen


def test_the_driver_tells_name_and_compute_capability_of_each_gpu(tmp_path: Path) -> None:
    driver = build(tmp_path / "libcuda.so", DRIVER, "-DSTATUS=0", "-DCOUNT=2")
    assert find_gpus(str(driver)) == [H200, L4]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("-DSTATUS=100", "-DCOUNT=0"), "cuInit answered with CUDA error 100"),
        (("-DSTATUS=0", "-DCOUNT=0"), "the driver shows none"),
    ],
)
def test_a_driver_without_a_gpu_says_why(tmp_path: Path, flags: tuple[str, ...], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        find_gpus(str(build(tmp_path / "libcuda.so", DRIVER, *flags)))
    with pytest.raises(EngineError, match=r"libcuda\.so\.99 was not found"):
        find_gpus("libcuda.so.99")


@pytest.fixture
def backend(tmp_path: Path) -> Path:
    """Triton's backend linked with a TensorRT 10.13.3, as NGC's containers have both."""
    libraries = tmp_path / "libraries"
    folder = tmp_path / "backends" / "tensorrt"
    for path in (libraries, folder):
        path.mkdir(parents=True)
    build(libraries / "libnvinfer.so.10.13.3", "int nvinfer;", "-Wl,-soname,libnvinfer.so.10")
    (libraries / "libnvinfer.so.10").symlink_to("libnvinfer.so.10.13.3")
    build(
        folder / "libtriton_tensorrt.so",
        "extern int nvinfer; int use(void) { return nvinfer; }",
        str(libraries / "libnvinfer.so.10"),
    )
    return folder


def test_the_servers_tensorrt_is_known_from_its_library(backend: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "libraries")}
    assert server_tensorrt(backend, environment) == "10.13.3"
    assert server_tensorrt(tmp_path, environment) is None  # a server without the backend has a sentence of its own
    with pytest.raises(EngineError, match=r"libnvinfer.so.10 was not found, which Triton's tensorrt backend needs"):
        server_tensorrt(backend, {**os.environ, "LD_LIBRARY_PATH": ""})


@pytest.mark.slow
def test_plans_that_fit_pass(repository: Path, gpus: list[Gpu]) -> None:
    gpus.append(H200)
    for installed in ("10.13.3", TENSORRT, None):
        assert check_plans(parts_of(repository), installed) == []


@pytest.mark.slow
def test_plans_of_another_tensorrt_are_missing_plans(repository: Path, gpus: list[Gpu]) -> None:
    reason = "the plans were built by tensorrt 10.13.3.9 and the server has 10.14.1"
    assert check_plans(parts_of(repository), "10.14.1") == [Lack(0, H200, (reason,))]


@pytest.mark.slow
def test_each_kind_of_gpu_that_lacks_plans_is_named_once(repository: Path, gpus: list[Gpu]) -> None:
    gpus += [L4, L4]
    (lack,) = check_plans(parts_of(repository), None)
    reason = "there are no plans for compute capability 8.9, only for 9.0 (NVIDIA H200)"
    assert lack == Lack(1, L4, (reason,))
    assert str(lack) == f"NVIDIA L4 lacks engines, {reason}"


@pytest.mark.slow
def test_plans_for_several_gpus_serve_each_of_them(parts: TypedParts, tmp_path: Path, gpus: list[Gpu]) -> None:
    engines = [
        write_engines(tmp_path / "h200", parts),
        write_engines(tmp_path / "l4", parts, compute_capability="8.9", gpu="NVIDIA L4"),
    ]
    write_repository(parts.folder, parts.manifest, tmp_path / "models", ServingOptions(), engines)
    gpus.append(L4)
    assert check_plans(parts_of(tmp_path / "models"), None) == []
    gpus.append(Gpu("NVIDIA B200", "10.0"))
    (lack,) = check_plans(parts_of(tmp_path / "models"), None)
    assert lack.device == 2
    assert "no plans for compute capability 10.0, only for 8.9 (NVIDIA L4), 9.0 (NVIDIA H200)" in str(lack)


@pytest.mark.slow
def test_damaged_plans_and_descriptions_are_missing_plans(repository: Path, gpus: list[Gpu]) -> None:
    body, head, tail = (next(part.glob("1/*.plan")) for part in parts_of(repository))
    body.unlink()
    describe_path(head).unlink()
    describe_path(tail).write_text("{")
    (lack,) = check_plans(parts_of(repository), TENSORRT)
    assert f"{body} has 0 bytes and" in lack.reasons[0]
    assert lack.reasons[1] == f"{describe_path(head)}, the description of a plan, is missing"
    assert f"{describe_path(tail)}, the description of a plan, cannot be read" in lack.reasons[2]
    describe_path(body).unlink()
    (lack,) = check_plans(parts_of(repository), None)
    assert lack.reasons[0] == "there are no plans for compute capability 9.0"


@pytest.mark.slow
def test_a_damaged_plan_for_a_gpu_that_is_not_here_does_no_harm(repository: Path, gpus: list[Gpu]) -> None:
    plan = next((repository / "body").glob("1/*.plan"))
    other = plan.with_name("model_8.9.plan")
    other.touch()
    describe_path(other).write_text("{")
    assert check_plans(parts_of(repository), TENSORRT) == []


@pytest.mark.slow
def test_a_model_of_somebody_else_needs_no_description(repository: Path, gpus: list[Gpu]) -> None:
    folder = repository / "theirs" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text('name: "theirs" platform: "tensorrt_plan" max_batch_size: 1')
    (folder / "model.plan").write_bytes(b"a plan of their own")
    assert preflight.check_repository(repository) == []


@pytest.mark.slow
@pytest.mark.skipif(has_gpu(), reason="there is a GPU here")
def test_no_gpu_is_one_sentence_with_both_ways_out(repository: Path) -> None:
    with pytest.raises(EngineError) as caught:
        check_plans(parts_of(repository), None)
    problem = str(caught.value)
    assert problem.startswith("the repository runs on a GPU and no GPU can be used (the driver's libcuda.so.1 was not")
    assert "docker run --gpus all" in problem and problem.endswith("ipt-export CHECKPOINT --runtime openvino")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-python"])
def test_the_command_checks_a_gpu_repository_before_it_starts_triton(
    parts: TypedParts, tmp_path: Path, capsys: pytest.CaptureFixture[str], runtime: str
) -> None:
    models = write_models(parts, tmp_path, runtime)
    flags = ["--grpc-port=0", "--metrics-port=0", "--health-port=0"]
    if has_gpu():
        pytest.skip("there is a GPU here")
    for arguments in (["--check"], []):
        assert main(["--repository", str(models), *flags, *arguments]) == 2
        assert "no GPU can be used" in capsys.readouterr().err


@pytest.mark.slow
def test_the_python_runtime_needs_the_tensorrt_of_the_plans(
    parts: TypedParts, tmp_path: Path, gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write_models(parts, tmp_path, "tensorrt-python")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text("__version__ = '10.14.1.2'")
    (modules / "pycuda.py").touch()
    monkeypatch.syspath_prepend(str(modules))
    try:
        (problem,) = preflight.check_repository(models, build=False)
    finally:
        sys.modules.pop("tensorrt", None)
    assert "built by tensorrt 10.13.3.9 and the server has 10.14.1.2" in problem


@pytest.mark.slow
def test_the_tensorrt_runtime_needs_the_tensorrt_of_the_servers_backend(
    repository: Path, backend: Path, tmp_path: Path, gpus: list[Gpu]
) -> None:
    (backend.parent / "python").mkdir()
    stub = backend.parent / "python" / "triton_python_backend_stub"
    server = preflight.ServerFiles(tmp_path / "tritonserver", backend.parent, stub, tmp_path / "libraries", False)
    assert preflight.check_repository(repository, server) == []
    for description in repository.glob("*/1/*.plan.json"):
        description.write_text(description.read_text().replace(TENSORRT, "11.4.0.106"))
    (problem,) = preflight.check_repository(repository, server)
    assert "built by tensorrt 11.4.0.106 and the server has 10.13.3" in problem
