"""What must be true before Triton starts on TensorRT plans: a GPU that they were built for, and the TensorRT of theirs.

Known from the descriptions beside the plans, the driver and the libraries' file names, so a server that could not load
its engines is refused in a sentence instead of a minute, or gets them built first (`missing_engines.py`).
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipt_triton.export.engines.metadata import EngineError, Gpu, PlanMismatch, read_metadata, version_numbers

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Lack:
    """A kind of GPU that has no engines to run: its first device, and why, one reason or more."""

    device: int
    gpu: Gpu
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.gpu.name} lacks engines, {'; '.join(self.reasons)}"


@functools.cache
def has_gpu() -> bool:
    """Whether the machine shows this process an NVIDIA GPU, usable or not."""
    return Path("/dev/nvidiactl").exists()


def find_gpus(driver: str = _DRIVER) -> list[Gpu]:
    """The GPUs that CUDA shows to this process; raises EngineError, with the reason, when there is none."""
    try:
        cuda = ctypes.CDLL(driver)
    except OSError as error:
        raise EngineError(f"the driver's {driver} was not found") from error
    count, value, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)

    def call(function: str, *arguments: object) -> None:
        status = getattr(cuda, function)(*arguments)
        if status != 0:
            raise EngineError(f"{function} answered with CUDA error {status}")

    def attribute(number: int, device: ctypes.c_int) -> int:
        call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        device = ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDeviceGetName", name, len(name), device)
        gpus.append(Gpu(name.value.decode(), f"{attribute(_MAJOR, device)}.{attribute(_MINOR, device)}"))
    if not gpus:
        raise EngineError("the driver shows none")
    return gpus


def server_tensorrt(backend: Path, environment: Mapping[str, str]) -> str | None:
    """The version of the TensorRT that Triton's backend loads, such as `10.13.3`; None where it cannot be known.

    Args:
        backend: the folder of the tensorrt backend.
        environment: what the server will run in.

    Raises:
        EngineError: the library is missing.
    """
    library = backend / "libtriton_tensorrt.so"
    if not library.is_file():
        return None
    try:
        listed = subprocess.run(["ldd", str(library)], env=environment, capture_output=True, text=True, check=False)
    except OSError:  # a machine without ldd
        return None
    for name, path in re.findall(r"^\s*(libnvinfer\.so\.\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$", listed.stdout, re.M):
        if path == "not found":
            raise EngineError(
                f"{name} was not found, which Triton's tensorrt backend needs: "
                "install that TensorRT, or serve in an NGC Triton container"
            )
        version = re.search(r"\.so\.(\d+(?:\.\d+)+)$", Path(path).resolve().name)
        return version[1] if version else None
    return None


def check_plans(parts: Sequence[Path], installed: str | None) -> list[Lack]:
    """The GPUs of this machine that cannot run a repository, a lack for each compute capability.

    Triton puts every model on every GPU that it sees, so each of them needs a plan of each model. What else lies beside
    those plans, for other GPUs or of other versions, does no harm.

    Args:
        parts: folders of the models that have plans.
        installed: version of the TensorRT that will load them, or its first numbers; None if it is not known.

    Raises:
        EngineError: there is no GPU.
    """
    try:
        gpus = find_gpus()
    except EngineError as error:
        raise EngineError(
            f"the repository runs on a GPU and no GPU can be used ({error}): serve it on a machine with an NVIDIA GPU "
            "and driver (in a container: docker run --gpus all), or run ipt-export CHECKPOINT --runtime openvino"
        ) from error
    kinds: dict[str, tuple[int, Gpu]] = {}
    for device, gpu in enumerate(gpus):
        kinds.setdefault(gpu.compute_capability, (device, gpu))
    lacks = []
    for device, gpu in kinds.values():
        reasons = [_why_not(folder, gpu.compute_capability, installed) for folder in parts]
        if any(reasons):
            lacks.append(Lack(device, gpu, tuple(dict.fromkeys(filter(None, reasons)))))
    return lacks


def _why_not(part: Path, compute_capability: str, installed: str | None) -> str | None:
    """Why none of a part's plans runs on a GPU, in the words of the first that comes near; None if one does."""
    unfit: list[str] = []
    elsewhere: set[str] = set()
    descriptions = {path.with_suffix("") for path in part.glob("[1-9]*/*.plan.json")}
    for plan in sorted(descriptions.union(part.glob("[1-9]*/*.plan"))):
        try:
            metadata = read_metadata(plan)
        except PlanMismatch as error:
            unfit.append(str(error).partition(": ")[0])
            continue
        size = plan.stat().st_size if plan.is_file() else 0
        if metadata.compute_capability != compute_capability:
            elsewhere.add(metadata.built_for)
        elif installed is not None and not same_version(metadata.version, installed):
            unfit.append(
                f"the plans were built by {metadata.library} {metadata.version} and the server has {installed}"
            )
        elif size != metadata.plan_bytes:
            unfit.append(f"{plan} has {size} bytes and {metadata.plan_bytes} are expected")
        else:
            return None
    there = f", only for {', '.join(sorted(elsewhere))}" if elsewhere else ""
    return unfit[0] if unfit else f"there are no plans for compute capability {compute_capability}{there}"


def same_version(version: str, installed: str) -> bool:
    """Whether a version begins with the numbers of another, as a library's file name has fewer than its module."""
    known = version_numbers(installed)
    return version_numbers(version)[: len(known)] == known
