"""The real Triton serves engines on a stand-in for a GPU: `ipt-serve`, its checks and builds, and killed processes.

Triton itself sees no GPU, so its parts are configured for the CPU; its Python models see the stand-in, PyCUDA and a
TensorRT whose engines ONNX Runtime computes. `ipt-serve` runs in a virtual environment of its own for that.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.serve import assert_batches_are_shared
from helpers.support import SMALL, read_image
from stand_in.machine import CAPABILITY, BuiltEngines, StandIn

from ipt_triton import RestorationClient
from ipt_triton.export.engines.metadata import plan_path, read_metadata
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.supervise import SHARED_MEMORY
from ipt_triton.train.model.infer import restore_image

pytestmark = [pytest.mark.slow, pytest.mark.server]

PHOTO = read_image("dog")[50:120, 60:150]
TASKS = tuple(task.name for task in SMALL.tasks)
OPTIONS = ServingOptions(router_instances=2, max_input_pixels=1_000_000, max_output_pixels=4_000_000)


class Served:
    """`ipt-serve` on a repository, as a process of its own."""

    def __init__(self, python: Path, repository: Path, log: Path) -> None:
        self.log = log
        ports = [word for name in ("grpc", "metrics", "health") for word in (f"--{name}-port", "0")]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [*command(python, repository), *ports],
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    @property
    def url(self) -> str:
        found = re.search(r"grpc ([^,]+),", self.ready)
        assert found, self.output
        return found[1]

    @property
    def output(self) -> str:
        """What it wrote to stderr."""
        return self.log.read_text()

    def restore(self, task: str) -> np.ndarray:
        with RestorationClient(self.url, retries=8) as client:
            return client.restore(PHOTO, task)

    def processes(self, program: str = "", word: str = "") -> list[int]:
        """The server's processes, of a program, with a word on their command line."""
        mark = f"-{self.process.pid}-"  # the launcher's id is in the names of its folder and its regions
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
                name = (folder / "comm").read_text().strip()  # cut to 15 characters
            except OSError:
                continue
            if "ipt-serve-" in line and mark in line and word in line and name.startswith(program[:15]):
                found.append(int(folder.name))
        return found

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def command(python: Path, repository: Path) -> list[str]:
    return [str(python), "-m", "ipt_triton.export.serving.command", "--repository", str(repository)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def check(python: Path, repository: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`ipt-serve --check`."""
    return subprocess.run(
        [*command(python, repository), "--check", *flags],
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def hide_gpu_from_triton(repository: Path) -> None:
    """Configure the parts for the CPU, where Triton starts them without looking for a GPU."""
    for config in repository.glob("*/config.pbtxt"):
        config.write_text(config.read_text().replace("KIND_GPU", "KIND_CPU"))


@pytest.fixture(scope="module")
def python(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.environment_for_triton(tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def exported(built: BuiltEngines, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that `ipt-export` writes of the engines, for a Triton without a GPU."""
    folder = tmp_path_factory.mktemp("exported") / "models"
    write_repository(built.parts.folder, built.parts.manifest, folder, OPTIONS, [built.folder])
    hide_gpu_from_triton(folder)
    return folder


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(exported, tmp_path / "models"))


@pytest.fixture
def expected(built: BuiltEngines) -> dict[str, np.ndarray]:
    """What PyTorch makes of the photograph in FP32."""
    return {task: restore_image(built.parts.checkpoint.model, PHOTO, task) for task in TASKS}


def assert_same_picture(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).max() <= 1


def test_triton_restores_with_the_plans_as_pytorch_does_in_shared_batches_and_goes_on_after_a_kill(
    python: Path, exported: Path, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    server = Served(python, exported, tmp_path / "server.log")
    try:
        assert f"6 tasks: {', '.join(TASKS)}" in server.ready, server.output
        for task in (*TASKS, *TASKS):
            assert_same_picture(server.restore(task), expected[task])
        patch = PHOTO[None, :48, :48].transpose(0, 3, 1, 2).astype(np.float32)
        assert_batches_are_shared(server.url, [(task, patch) for task in TASKS])
        bodies = server.processes("triton_python_backend_stub", "/body/1/model.py")
        assert len(bodies) == 2
        os.kill(bodies[0], signal.SIGKILL)
        for task in TASKS:
            assert_same_picture(server.restore(task), expected[task])
        assert "starting tritonserver again: the process of the model body is gone" in server.output
    finally:
        assert server.stop() == 0
    assert server.processes() == []
    assert not list(SHARED_MEMORY.glob(f"ipt-serve-*-{server.process.pid}-*"))


def test_engines_that_are_missing_are_built_before_the_start_in_place(
    python: Path, built: BuiltEngines, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    manifest = replace(built.parts.manifest, runtime="tensorrt-rtx")
    parts = Path(shutil.copytree(built.parts.folder, tmp_path / "parts"))
    manifest.save(parts)
    write_repository(parts, manifest, repository, OPTIONS)
    hide_gpu_from_triton(repository)
    done = check(python, repository)
    assert done.returncode == 0 and "they are built before the start" in done.stderr
    server = Served(python, repository, tmp_path / "server.log")
    try:
        assert "ipt-serve: building: body for 8.9 (stand-in GPU): fp16" in server.output
        for task in TASKS:
            assert_same_picture(server.restore(task), expected[task])
    finally:
        assert server.stop() == 0
    for part in manifest.parts:
        assert read_metadata(plan_path(repository / part.name / "1" / "model", CAPABILITY)).ran


def test_a_spoilt_plan_ends_the_start_with_a_sentence(python: Path, repository: Path, tmp_path: Path) -> None:
    plan = plan_of_body(repository)
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1  # of the same size, which the check before the start is content with
    plan.write_bytes(content)
    done = check(python, repository)
    assert (done.returncode, done.stderr) == (0, "")
    for model in repository.iterdir():
        if model.is_dir() and model.name != "body":
            shutil.rmtree(model)
    server = Served(python, repository, tmp_path / "server.log")
    assert server.process.wait(60) == 1
    assert server.ready == "" and server.processes() == []
    last = server.output.partition("tritonserver ended by itself with exit status 1")[2]
    assert "the plan of body is not the one its description speaks of" in last and "Traceback" not in last


def test_the_check_finds_nothing_amiss(python: Path, exported: Path) -> None:
    done = check(python, exported)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{exported} can be served\n"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            {"STAND_IN_CAPABILITY": "8.6"},
            "there are no plans for compute capability 8.6, only for 8.9 (stand-in GPU)",
        ),
        (
            {"STAND_IN_TENSORRT": "11.4.0.106"},
            "the plans were built by tensorrt 10.13.3.9 and the server has 11.4.0.106",
        ),
    ],
    ids=["GPU", "TensorRT"],
)
def test_the_check_refuses_plans_of_another_machine_in_a_sentence(
    python: Path, exported: Path, setting: dict[str, str], sentence: str
) -> None:
    done = check(python, exported, "--no-build", **setting)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"ipt-serve: stand-in GPU lacks engines, {sentence}")


def test_the_check_refuses_a_truncated_plan_in_a_sentence(python: Path, repository: Path) -> None:
    plan = plan_of_body(repository)
    plan.write_bytes(plan.read_bytes()[:-100])
    done = check(python, repository, "--no-build")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"{plan} has {plan.stat().st_size} bytes and" in line


def plan_of_body(repository: Path) -> Path:
    return plan_path(repository / "body" / "1" / "model", CAPABILITY)
