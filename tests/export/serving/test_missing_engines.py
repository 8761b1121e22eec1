"""A first start on a GPU builds the engines that are missing; GPUs, TensorRT and the builder are made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import fake_builder
from helpers.small_engines import TENSORRT, metadata
from helpers.toy_repository import ROUTER_CONFIG, ROUTER_MODEL, no_ports, write_model

from ipt_triton.export.engines.metadata import Gpu
from ipt_triton.export.serving import missing_engines, preflight_gpu, supervise
from ipt_triton.export.serving.command import main
from ipt_triton.export.serving.errors import InterruptedStartError
from ipt_triton.export.serving.missing_engines import GpuRepository
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.manifest import Manifest, Parity, Part

L4 = Gpu("NVIDIA L4", "8.9")
H200 = Gpu("NVIDIA H200", "9.0")
PARTS = ("body", "head_derain")
PART_CONFIG = """
name: "%s" backend: "python" max_batch_size: 0 instance_group [ { kind: KIND_CPU } ]
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ] output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
parameters { key: "generated_by" value { string_value: "ipt-export" } }
"""
PART_MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
BUILDER = (sys.executable, fake_builder.__file__)


def write_manifest(repository: Path, weights: int) -> None:
    parity = Parity("fp16", 0.1, 70.0, 1)
    parts = tuple(Part(name, (), (), "0" * 64, parity, 1, weights // len(PARTS), "fp16") for name in PARTS)
    Manifest(48, "tensorrt", "fp16", parts, ()).save(repository)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A GPU repository of two small parts and no plan; its files say what the fake builder does."""
    folder = tmp_path / "models"
    write_model(folder, "restore", ROUTER_CONFIG.replace('"openvino"', '"tensorrt-python"'), ROUTER_MODEL)
    for name in PARTS:
        write_model(folder, name, PART_CONFIG % name, PART_MODEL)
        (folder / name / "1" / "model.onnx").touch()
    write_manifest(folder, 2_000_000)
    (folder / "description.json").write_text(json.dumps(metadata().to_dict()))
    (folder / "capabilities").write_text("8.9")
    return folder


@pytest.fixture(autouse=True)
def gpus(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Gpu]]:
    """The GPUs that are seen, one at first; with the builder that stands for ours, and the modules that it needs."""
    seen = [L4]
    monkeypatch.setattr(preflight_gpu, "find_gpus", lambda: seen)
    monkeypatch.setattr(missing_engines, "BUILDER", BUILDER)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt.py").write_text(f"__version__ = {TENSORRT!r}")
    (modules / "pycuda.py").touch()
    monkeypatch.syspath_prepend(str(modules))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield seen
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.modules.pop("tensorrt", None)


def serve(repository: Path, *flags: str) -> int:
    return main(["--repository", str(repository), *no_ports(), *flags])


def check(repository: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str]]:
    """Exit code of `ipt-serve --check`, and what it says of the repository's engines."""
    status = serve(repository, "--check", *flags)
    return status, [line for line in capsys.readouterr().err.splitlines() if "engines" in line]


def plans(repository: Path) -> list[str]:
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*.plan"))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def stopped_when(condition: Callable[[], object]) -> Iterator[None]:
    """Send this process SIGTERM as soon as something is so, but never after the block, where nothing waits for it."""
    left = threading.Event()

    def wait() -> None:
        until(lambda: left.is_set() or condition())
        if not left.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.server
def test_a_repository_without_plans_is_built_once_for_each_kind_of_gpu_and_then_served(
    repository: Path, gpus: list[Gpu], capfd: pytest.CaptureFixture[str]
) -> None:
    gpus[:] = [L4, L4, H200]
    (repository / "capabilities").write_text("8.9 8.9 9.0")
    said = ""

    def ready() -> bool:
        nonlocal said
        said += capfd.readouterr().out
        return "ready: " in said

    with stopped_when(ready):
        assert serve(repository) == 0
    assert (repository / "asked").read_text().split() == ["0", "2"]
    assert plans(repository) == sorted(f"{part}/1/model_{number}.plan" for part in PARTS for number in ("8.9", "9.0"))
    assert "2 tasks: sr_x2, derain" in said


def test_the_build_says_what_it_does_and_a_start_after_it_builds_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patience: list[float] = []

    def await_ready(server: TritonServer, deadline: float) -> None:
        patience.append(deadline - time.monotonic())
        raise InterruptedStartError("far enough")

    monkeypatch.setattr(TritonServer, "_launch", lambda server, files: None)
    monkeypatch.setattr(TritonServer, "_await_ready", await_ready)
    assert serve(repository, "--timeout=100") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ipt-serve: building: ")]
    assert [line.removeprefix("ipt-serve: building: ") for line in lines] == [
        "engines for NVIDIA L4, compute capability 8.9",
        "body: built",
        "head_derain: built",
    ]
    assert patience[0] == pytest.approx(100, abs=0.05)  # what the build took does not count
    assert serve(repository) == 0
    assert "engines" not in capsys.readouterr().err
    assert (repository / "asked").read_text().split() == ["0"]


def test_check_tells_what_would_be_built(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "NVIDIA L4 lacks engines, there are no plans for compute capability 8.9: they are built before the start"
    assert check(repository, capsys) == (0, [f"ipt-serve: note: {note}"])
    assert plans(repository) == []
    status, (problem,) = check(repository, capsys, "--no-build")
    assert status == 2
    assert problem.endswith(
        f"leave out --no-build, or run python -m ipt_triton.export.engines.build --repository {repository} --device 0"
    )


def test_a_large_model_is_built_only_when_asked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(repository, 116_000_000)
    status, (problem,) = check(repository, capsys)
    assert status == 2
    assert problem.endswith("takes some 5 minutes (estimated, not measured): run ipt-serve with --build")
    assert check(repository, capsys, "--build")[0] == 0
    assert serve(repository) == 2
    assert plans(repository) == []


def test_ipt_small_is_built_unasked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(repository, 11_000_000)
    assert check(repository, capsys)[0] == 0


def test_plans_of_another_card_and_another_tensorrt_stay_and_new_ones_come_beside_them(
    repository: Path, gpus: list[Gpu]
) -> None:
    (repository / "capabilities").write_text("9.0")
    subprocess.run([*BUILDER, "--repository", repository, "--device=0"], check=True)
    (repository / "capabilities").write_text("8.9")
    description = repository / "description.json"
    current = description.read_text()
    description.write_text(current.replace(TENSORRT, "10.12.0.1"))
    subprocess.run([*BUILDER, "--repository", repository, "--device=0"], check=True)
    description.write_text(current)
    found = GpuRepository(repository, "tensorrt-python", tuple(repository / name for name in PARTS), TENSORRT)
    (lack,) = found.lacks()
    assert lack.reasons == (f"the plans were built by tensorrt 10.12.0.1 and the server has {TENSORRT}",)
    missing_engines.build(repository, lack, print, threading.Event())
    assert found.lacks() == []
    assert plans(repository) == sorted(f"{part}/1/model_{number}.plan" for part in PARTS for number in ("8.9", "9.0"))


def test_a_build_that_fails_is_one_sentence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "fail").touch()
    assert serve(repository) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ipt-serve: the engines for NVIDIA L4 could not be built: body: not enough GPU memory to build"
    )


def test_a_build_that_leaves_plans_out_is_one_sentence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "capabilities").write_text("7.5")
    assert serve(repository) == 1
    assert "engines were built and still NVIDIA L4 lacks engines" in capsys.readouterr().err


@pytest.mark.parametrize("manner", ["", "stubborn"])
def test_a_signal_ends_the_build_with_exit_0_and_no_process_is_left(
    repository: Path, monkeypatch: pytest.MonkeyPatch, manner: str
) -> None:
    monkeypatch.setattr(missing_engines, "_PATIENCE_S", 0.5)
    (repository / "hang").write_text(manner)
    pid = repository / "process"
    began = time.monotonic()
    with stopped_when(lambda: pid.exists() and pid.read_text()):
        assert serve(repository) == 0
    assert time.monotonic() - began < 20
    assert not alive(int(pid.read_text()))
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"ipt-serve-{supervise._namespace()}-{os.getpid()}-*"))


def test_a_launcher_that_is_killed_takes_the_build_along(repository: Path) -> None:
    (repository / "hang").touch()
    code = f"""
import threading
from pathlib import Path
from ipt_triton.export.engines.metadata import Gpu
from ipt_triton.export.serving import missing_engines, preflight_gpu
missing_engines.BUILDER = {BUILDER!r}
lack = preflight_gpu.Lack(0, Gpu("NVIDIA L4", "8.9"), ())
missing_engines.build(Path({str(repository)!r}), lack, print, threading.Event())
"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    pid = repository / "process"
    until(lambda: pid.exists() and pid.read_text())
    assert alive(int(pid.read_text()))
    launcher.kill()
    launcher.wait()
    until(lambda: not alive(int(pid.read_text())))


def remedy(repository: Path, runtime: str, installed: str | None = TENSORRT) -> str | None:
    found = GpuRepository(repository, runtime, tuple(repository / name for name in PARTS), installed)
    return found.remedy(found.lacks(), None)


def test_a_repository_that_cannot_be_written_is_one_sentence(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remedy(repository, "tensorrt-python") is None
    monkeypatch.setattr(os, "access", lambda path, mode: "body" not in str(path))  # root may write everywhere
    sentence = remedy(repository, "tensorrt-python")
    assert sentence is not None
    assert sentence.startswith(
        f"{repository / 'body' / '1'} cannot be written: let ipt-serve write there, or build elsewhere: "
    )


@pytest.mark.parametrize("name", ["manifest.json", "body/1/model.onnx"])
def test_a_repository_without_its_parts_must_be_exported_again(repository: Path, name: str) -> None:
    (repository / name).unlink()
    sentence = remedy(repository, "tensorrt")
    assert sentence is not None and "it lacks what they are built from: run ipt-export CHECKPOINT again" in sentence


def test_triton_and_python_must_have_the_same_tensorrt_to_build(repository: Path) -> None:
    assert remedy(repository, "tensorrt", "10.13.3") is None
    sentence = remedy(repository, "tensorrt", "11.1.0")
    assert sentence is not None
    assert sentence.startswith(
        f"Python has TensorRT {TENSORRT} and the server 11.1.0: run pip install 'tensorrt==11.1.0.*', or build else"
    )


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("pycuda", "building them needs the Python module pycuda: run pip install pycuda, or build elsewhere"),
        ("tensorrt", "TensorRT is not installed: pip install tensorrt, or use an NGC container, or build elsewhere"),
    ],
)
def test_a_module_that_the_builder_needs_is_named(repository: Path, tmp_path: Path, module: str, sentence: str) -> None:
    (tmp_path / "modules" / f"{module}.py").unlink()
    told = remedy(repository, "tensorrt")
    assert told is not None and told.startswith(sentence)
