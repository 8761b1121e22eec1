"""What must be true before Triton starts on TensorRT plans: a GPU that they were built for, and the TensorRT of theirs.

Known from the descriptions beside the plans, the driver and the libraries' file names, so a server that could not load
its engines is refused in a sentence instead of a minute. Every check returns problems as `preflight.py` does.
Only seen without a GPU so far.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ipt_triton.export.engines.metadata import (
    EngineError,
    EngineMetadata,
    Gpu,
    PlanMismatch,
    read_metadata,
    version_numbers,
)

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_BUILD_AGAIN = "build the engines again (make engines, or export/engines/build.py) and export the repository again"


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


def check_plans(parts: Iterable[Path], installed: str | None) -> list[str]:
    """Check the plans of an exported repository against this machine.

    Args:
        parts: folders of the models that have plans.
        installed: version of the TensorRT that will load them, or its first numbers; None if it is not known.
    """
    problems: list[str] = []
    models: dict[Path, list[EngineMetadata]] = {}
    for folder in parts:
        descriptions = {path.with_suffix("") for path in folder.glob("[1-9]*/*.plan.json")}
        plans = sorted(descriptions.union(folder.glob("[1-9]*/*.plan")))
        if not plans:
            problems.append(f"{folder} holds no plan: {_BUILD_AGAIN}")
        for plan in plans:
            try:
                metadata = read_metadata(plan)
            except PlanMismatch as error:
                problems.append(str(error))
                continue
            models.setdefault(folder, []).append(metadata)
            size = plan.stat().st_size if plan.is_file() else 0
            if size != metadata.plan_bytes:
                problems.append(
                    f"{plan} has {size} bytes and {metadata.plan_bytes} are expected: copy it again, or {_BUILD_AGAIN}"
                )
    everything = [metadata for group in models.values() for metadata in group]
    if installed is not None:
        problems += _check_versions(everything, installed)
    try:
        gpus = find_gpus()
    except EngineError as error:
        return [
            *problems,
            f"the repository runs on a GPU and no GPU can be used ({error}): serve it on a machine with an NVIDIA GPU "
            "and driver (in a container: docker run --gpus all), or run ipt-export CHECKPOINT --runtime openvino",
        ]
    return problems + _check_gpus(list(models.values()), gpus)


def _check_versions(plans: Sequence[EngineMetadata], installed: str) -> list[str]:
    known = version_numbers(installed)
    wrong = sorted({p.version for p in plans if version_numbers(p.version)[: len(known)] != known})
    return [
        f"the plans were built by TensorRT {version} and the server has {installed}: {_BUILD_AGAIN}, with {installed}"
        for version in wrong
    ]


def _check_gpus(models: Sequence[Sequence[EngineMetadata]], gpus: Sequence[Gpu]) -> list[str]:
    """Triton puts every model on every GPU that it sees, so each of them needs a plan of each model."""
    problems = []
    for gpu in dict.fromkeys(gpus):
        lacking = [plans for plans in models if gpu.compute_capability not in {p.compute_capability for p in plans}]
        if lacking:
            built = sorted({f"{p.compute_capability} ({p.gpu})" for plans in lacking for p in plans})
            problems.append(
                f"the plans were built for compute capability {', '.join(built)} and this GPU, {gpu.name}, has "
                f"{gpu.compute_capability}: on it {_BUILD_AGAIN}, or hide it with CUDA_VISIBLE_DEVICES"
            )
    return problems
