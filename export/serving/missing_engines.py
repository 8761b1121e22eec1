"""Engines that a repository lacks for this machine's GPUs: whether they may be built before the start, and the build.

A GPU repository holds what its engines are built from, so that it can be carried to any GPU: `manifest.json` and
`samples.npz` at its root, `model.onnx` beside the plans of each part. The builder is a process of its own, because only
so can a build be stopped in the middle, and the memory that it took is free again when Triton starts.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.export.engines.library import library_of, load_library
from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.serving import supervise
from ipt_triton.export.serving.errors import BuildError, InterruptedStartError, describe_status
from ipt_triton.export.serving.preflight_gpu import Lack, check_plans, same_version
from ipt_triton.manifest import ManifestError, read_manifest

_BUILDER = "ipt_triton.export.engines.build"
BUILDER = (sys.executable, "-m", _BUILDER)
"""Takes `--repository DIR --device N`, builds there what is missing for that GPU, and prints what it does."""

UNASKED_WEIGHTS = 20_000_000
"""Most weights whose engines are built unasked: ipt-tiny has 1.8 million, ipt-small 11, the paper's model 116."""

# An estimate: 0.15 s for a million weights without timing kernels was measured (NVIDIA's builder on two CPU cores, 17 s
# for the paper's body); that timing them takes some fifteen times as long is a guess.
_SECONDS_PER_MILLION_WEIGHTS = 2.5

_EXPORT_AGAIN = "it lacks what they are built from: run ipt-export CHECKPOINT again"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class GpuRepository:
    """A repository that runs on GPUs.

    Attributes:
        runtime: as `ipt-export` calls it.
        parts: folders of the models that have engines.
        installed: version of the library that will load them, or its first numbers; None if it is not known.
    """

    folder: Path
    runtime: str
    parts: tuple[Path, ...]
    installed: str | None

    def lacks(self) -> list[Lack]:
        """The GPUs of this machine that have no engines to run; raises EngineError when there is no GPU."""
        return check_plans(self.parts, self.installed)

    def remedy(self, lacks: Sequence[Lack], build: bool | None) -> str | None:
        """What the user is to do about engines that will not be built before the start; None if they will be.

        Args:
            lacks: one at least.
            build: whether the user wants it; None: if it does not take long.
        """
        versions = [version for part in self.parts for version in part.glob("[1-9]*") if version.is_dir()]
        try:
            weights = sum(part.weight_count for part in read_manifest(self.folder).parts)
        except ManifestError:
            return _EXPORT_AGAIN
        if not all((version / "model.onnx").is_file() for version in versions):
            return _EXPORT_AGAIN
        command = f"python -m {_BUILDER} --repository {self.folder} --device {lacks[0].device}"
        if build is False:
            return f"leave out --no-build, or run {command}"
        if lacking := self._cannot_build():
            return f"{lacking}, or build elsewhere: {command}"
        for version in versions:
            if not os.access(version, os.W_OK):
                return f"{version} cannot be written: let ipt-serve write there, or build elsewhere: {command}"
        if build is None and weights > UNASKED_WEIGHTS:
            minutes = math.ceil(len(lacks) * weights / 1e6 * _SECONDS_PER_MILLION_WEIGHTS / 60)
            return f"building them takes some {minutes} minutes (estimated, not measured): run ipt-serve with --build"
        return None

    def _cannot_build(self) -> str | None:
        """What keeps this Python from building, and what to do; Triton's backend has libraries of its own."""
        try:
            version = load_library(library_of(self.runtime)).version
        except EngineError as error:
            return str(error)
        if importlib.util.find_spec("pycuda") is None:
            return "building them needs the Python module pycuda: run pip install pycuda"
        if self.installed is None or same_version(version, self.installed):
            return None
        wanted = self.installed
        return f"Python has TensorRT {version} and the server {wanted}: run pip install 'tensorrt=={wanted}.*'"


def build(repository: Path, lack: Lack, report: Callable[[str], None], interrupted: threading.Event) -> None:
    """Build what a repository lacks for a GPU, in place.

    Args:
        report: gets what the builder prints, line by line.
        interrupted: ends the builder when it is set.

    Raises:
        BuildError: the builder failed.
        InterruptedStartError: `interrupted` was set; no process of the builder is left.
    """
    owner = supervise.new_owner()
    command = [*BUILDER, "--repository", str(repository.resolve()), "--device", str(lack.device)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    supervisor = supervise.start(command, environment, owner, Path(tempfile.gettempdir(), owner))
    assert supervisor.stdin is not None and supervisor.stdout is not None

    def watch() -> None:
        while supervisor.poll() is None:
            if interrupted.wait(0.1):
                supervise.tell(supervisor, b"stop")
                try:
                    supervisor.wait(_PATIENCE_S)
                except subprocess.TimeoutExpired:
                    supervise.tell(supervisor, b"kill")
                return

    watcher = threading.Thread(target=watch, name="engine-builder-watch", daemon=True)
    watcher.start()
    last = error = ""
    with supervisor.stdin, supervisor.stdout:
        for raw in supervisor.stdout:
            line = raw.decode(errors="replace").strip()
            if line.startswith("error: "):
                error = line.removeprefix("error: ")
            elif line:
                last = line
                report(line)
        status = supervisor.wait()
        watcher.join()
    if interrupted.is_set():
        raise InterruptedStartError("the start was interrupted")
    if status != 0:
        raise BuildError(
            f"the engines for {lack.gpu.name} could not be built: {error or last or describe_status(status)}"
        )
