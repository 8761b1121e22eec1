"""What must be true before Triton starts: the server's files, the repository, the runtime, the ports.

Every check returns problems, each one sentence that names the thing and what to do; an empty list means go.
`repository_notes` returns what is worth knowing and does not stop a start.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ipt_triton.cpu import cpu_flags, cpu_notes
from ipt_triton.export.engines.library import library_of, load_library
from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.serving import missing_engines, preflight_gpu
from ipt_triton.export.serving.supervise import SHARED_MEMORY
from ipt_triton.service import ROUTER, ROUTER_FILES, ROUTERS, STREAM, STREAM_FILES

LOOPBACK = "127.0.0.1"
"""Where metrics listen, whatever the host; the launcher hands their page on at its own port."""

PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

_STUB = "triton_python_backend_stub"
_EXPORT_AGAIN = "run ipt-export CHECKPOINT again"
_RUNTIME_MODULES = {
    "openvino": {"openvino": "pip install openvino"},
    "tensorrt": {},
    "tensorrt-python": {"pycuda": "pip install pycuda"},
    "tensorrt-rtx": {"pycuda": "pip install pycuda"},
}
# The files that a version folder must hold; the other backends are Triton's to judge.
_MODEL_FILES = {"python": "model.py", "onnxruntime": "model.onnx"}


@dataclass(frozen=True)
class ServerFiles:
    """Where one `tritonserver` has its pieces."""

    executable: Path
    backends: Path
    """Folder with one folder per backend."""
    stub: Path
    """The program that runs Python models, built for one version of Python."""
    libraries: Path | None
    """Folder for LD_LIBRARY_PATH; None for a server that finds its own libraries."""
    from_wheel: bool
    """True for the server in the nvidia-pytriton wheel, False for one on PATH."""

    def environment(self, *folders: Path) -> dict[str, str]:
        """Return the environment to run it in: our libraries and `folders`, our Python and its packages for the stubs.

        An embedded Python looks for its packages from the first `python3` on PATH, so ours must be that one.
        """
        libraries = [str(folder) for folder in (self.libraries, *folders) if folder]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")])),
            "PATH": os.pathsep.join(filter(None, [str(Path(sys.executable).parent), os.environ.get("PATH")])),
        }


def find_server() -> ServerFiles | None:
    """Find the `tritonserver` on PATH (an NGC container), else the one in the nvidia-pytriton wheel, else None."""
    if on_path := shutil.which("tritonserver"):
        executable = Path(on_path).resolve()
        backends = executable.parent.parent / "backends"
        return ServerFiles(executable, backends, backends / "python" / _STUB, None, from_wheel=False)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(spec.submodule_search_locations[0])
    server = package / "tritonserver"
    return ServerFiles(
        executable=server / "bin" / "tritonserver",
        backends=server / "backends",
        stub=server / "python_backend_stubs" / PYTHON_VERSION / _STUB,
        libraries=package.parent / "nvidia_pytriton.libs",
        from_wheel=True,
    )


def find_libpython() -> Path | None:
    """Return this Python's shared library in its own folders; None where the stub must find one in the system's."""
    name = f"libpython{PYTHON_VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix) / "lib"]
    return next((Path(folder, name) for folder in folders if folder and Path(folder, name).is_file()), None)


def check_server(server: ServerFiles | None) -> list[str]:
    """Check the server's own files: stub for this Python, libraries, numpy."""
    if server is None:
        return ["no tritonserver on PATH and no nvidia-pytriton wheel: run pip install 'ipt-triton[serve]'"]
    if not server.stub.is_file():
        if not server.from_wheel:
            return []  # a server with folders of its own: its start will tell
        built = sorted((folder.name for folder in server.stub.parents[1].iterdir()), key=lambda v: int(v.split(".")[1]))
        return [
            f"the nvidia-pytriton wheel has no Python stub for Python {PYTHON_VERSION}: "
            f"run ipt-serve with Python {built[0]} to {built[-1]}"
        ]
    problems = []
    libpython = find_libpython()
    folders = [libpython.parent] if libpython and server.from_wheel else []
    for program in (server.executable, server.stub):
        libraries = _libraries(program, server.environment(*folders))
        for name in sorted(libraries):
            wanted = re.match(r"libpython(\d+\.\d+)\.so", name)
            if wanted and wanted[1] != PYTHON_VERSION:
                problems.append(
                    f"{server.executable} runs models in Python {wanted[1]} and ipt-serve runs in {PYTHON_VERSION}: "
                    f"run ipt-serve with Python {wanted[1]}"
                )
            elif wanted and not libraries[name]:
                problems.append(
                    f"{name} was not found, which Python models need (this Python was built without a shared library): "
                    f"install it (Debian: apt install libpython{PYTHON_VERSION}) or use a Python that has it"
                )
            elif not libraries[name]:
                problems.append(f"{name} was not found, which {program.name} needs: install the package that holds it")
    if server.from_wheel:
        numpy = metadata.version("numpy")
        if int(numpy.split(".")[0]) >= 2:
            problems.append(
                f"numpy {numpy} makes this server's Python models answer with zero bytes: run pip install 'numpy<2'"
            )
    return problems


def _libraries(program: Path, environment: Mapping[str, str]) -> dict[str, bool]:
    """List the shared libraries that the dynamic loader wants for a program, and whether it finds each."""
    trace = subprocess.run(
        [str(program)],
        env={**environment, "LD_TRACE_LOADED_OBJECTS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    pairs = re.findall(r"^\s*(\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$", trace.stdout, re.MULTILINE)
    return {name: target != "not found" for name, target in pairs}


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """Parse `folder`/config.pbtxt; raise OSError or `text_format.ParseError`."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig(), allow_unknown_field=True)


def check_repository(repository: Path, server: ServerFiles | None = None, build: bool | None = None) -> list[str]:
    """Check a model repository: every folder a whole model, every ensemble's steps there, the runtime installed.

    Args:
        build: whether engines that are missing will be built; None: if it does not take long.
    """
    if not repository.is_dir():
        return [f"the model repository {repository} is not a folder: run ipt-export CHECKPOINT first"]
    folders = sorted(entry for entry in repository.iterdir() if entry.is_dir())
    if not folders:
        return [f"the model repository {repository} holds no model: run ipt-export CHECKPOINT first"]
    problems: list[str] = []
    configs: dict[str, model_config_pb2.ModelConfig] = {}
    for folder in folders:
        try:
            configs[folder.name] = read_config(folder)
        except FileNotFoundError:
            if folder.name == ROUTER:
                problems.append(f"{folder / 'config.pbtxt'} is missing: run ipt-export CHECKPOINT first")
            else:
                problems.append(f"{folder} is not a model, it has no config.pbtxt: remove it or {_EXPORT_AGAIN}")
        except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{folder / 'config.pbtxt'} cannot be read ({reason}): {_EXPORT_AGAIN}")
        else:
            problems += _check_model(folder, configs[folder.name], server)
    for name, config in configs.items():
        for step in config.ensemble_scheduling.step:
            if not (repository / step.model_name).is_dir():
                problems.append(f"the ensemble {name} needs the model {step.model_name}: {_EXPORT_AGAIN}")
    if ROUTER in configs:
        router = configs[ROUTER].parameters
        runtime, precision = router["runtime"].string_value, router["precision"].string_value
        problems += _missing_files(repository, configs, runtime)
        problems += _check_runtime(repository, runtime, precision, server, build)
    return problems


def _missing_files(repository: Path, configs: Mapping[str, model_config_pb2.ModelConfig], runtime: str) -> list[str]:
    """What `ipt-export` writes beside the code of models and Triton misses only when it loads them."""
    problems = []
    for name, config in configs.items():
        if "generated_by" not in config.parameters or config.backend != "python":
            continue
        wanted = list({ROUTER: ROUTER_FILES, STREAM: STREAM_FILES}.get(name, ()))
        if name not in ROUTERS and runtime == "openvino":
            try:
                ways = json.loads(config.parameters["ways"].string_value)
                wanted = [f"{part}.onnx" for part in dict.fromkeys(part for way in ways.values() for part in way)]
            except (ValueError, AttributeError, TypeError):
                problems.append(f"{repository / name / 'config.pbtxt'} is of another version: {_EXPORT_AGAIN}")
        for version in (repository / name).glob("[1-9]*"):
            missing = [file for file in wanted if not (version / file).is_file()]
            problems += [f"{version / file} is missing: {_EXPORT_AGAIN}" for file in missing]
    return problems


def repository_notes(repository: Path, server: ServerFiles | None = None, build: bool | None = None) -> list[str]:
    """What this machine does otherwise than others with a repository; none if its router cannot be read.

    That is the precision on its CPU, the engines that will be built for its GPUs before the start, or that its shared
    memory is small.
    """
    try:
        parameters = read_config(repository / ROUTER).parameters
        small = _small_memory_notes({name: value.string_value for name, value in parameters.items()})
        if parameters["runtime"].string_value == "openvino":
            return cpu_notes(parameters["precision"].string_value, cpu_flags()) + small
        on_gpu = gpu_repository(repository, server)
        lacks = on_gpu.lacks() if on_gpu else []
    except (OSError, UnicodeDecodeError, text_format.ParseError, EngineError):
        return []  # `check_repository` names it
    if on_gpu is None or not lacks or on_gpu.remedy(lacks, build):
        return small
    return [*(f"{lack}: they are built before the start" for lack in lacks), *small]


def _small_memory_notes(router: Mapping[str, str]) -> list[str]:
    """Whether a 16-bit photograph at the limits and its answer find room in the memory that processes share."""
    try:
        pixels = int(router["max_input_pixels"]) + int(router["max_output_pixels"])
        room = shutil.disk_usage(SHARED_MEMORY).total
    except (KeyError, ValueError, OSError):
        return []
    if 6 * pixels <= room:
        return []
    return [
        f"{SHARED_MEMORY} has {room / 1e6:.0f} MB, and one photograph at this repository's limits takes "
        f"{6 * pixels / 1e6:.0f} MB of it: enlarge it (docker: --shm-size), or run ipt-export with lower "
        "--max-input-pixels and --max-output-pixels"
    ]


def gpu_repository(repository: Path, server: ServerFiles | None) -> missing_engines.GpuRepository | None:
    """What `ipt-export` wrote for GPUs; None for what it wrote for CPUs, and for what `check_repository` refuses.

    Raises:
        EngineError: the TensorRT of Triton's backend is missing.
    """
    try:
        configs = {folder: read_config(folder) for folder in repository.iterdir() if folder.is_dir()}
        runtime = configs[repository / ROUTER].parameters["runtime"].string_value
    except (OSError, UnicodeDecodeError, text_format.ParseError, KeyError):
        return None
    if runtime == "openvino" or runtime not in _RUNTIME_MODULES:
        return None
    parts = (
        folder
        for folder, config in configs.items()
        if folder.name not in ROUTERS and config.platform != "ensemble" and "generated_by" in config.parameters
    )
    installed = None
    if runtime != "tensorrt":
        with contextlib.suppress(EngineError):  # which `check_repository` names
            installed = load_library(library_of(runtime)).version
    elif server is not None:
        installed = preflight_gpu.server_tensorrt(server.backends / runtime, server.environment())
    return missing_engines.GpuRepository(repository, runtime, tuple(sorted(parts)), installed)


def _check_model(folder: Path, config: model_config_pb2.ModelConfig, server: ServerFiles | None) -> list[str]:
    problems = []
    if config.name not in ("", folder.name):
        problems.append(f"{folder / 'config.pbtxt'} names its model {config.name}: {_EXPORT_AGAIN}")
    versions = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name.isdigit() and entry.name != "0"]
    if not versions:
        problems.append(f"{folder} has no version folder, {folder / '1'}: {_EXPORT_AGAIN}")
    backend = config.backend or config.platform.partition("_")[0]  # older: platform "tensorrt_plan"
    file_name = config.default_model_filename or _MODEL_FILES.get(backend)
    if file_name and not config.cc_model_filenames:
        for version in versions:
            if not (version / file_name).is_file():
                problems.append(f"{version / file_name} is missing: {_EXPORT_AGAIN}")
    # The tensorrt backend has a sentence of its own, said once for the whole repository.
    if server is not None and backend not in ("", "ensemble", "tensorrt") and _lacks_backend(server, backend):
        problems.append(
            f"{folder.name} needs Triton's {backend} backend, which {server.executable} does not have: "
            "use a tritonserver that has it or export for another runtime"
        )
    return problems


def _lacks_backend(server: ServerFiles, backend: str) -> bool:
    # A server whose folder of backends is elsewhere gets the benefit of the doubt.
    return server.backends.is_dir() and not (server.backends / backend).is_dir()


def _check_runtime(
    repository: Path, runtime: str, precision: str, server: ServerFiles | None, build: bool | None
) -> list[str]:
    if runtime not in _RUNTIME_MODULES:
        known = ", ".join(sorted(_RUNTIME_MODULES))
        return [f"the router's runtime is {runtime or 'not set'!r}, which is none of {known}: {_EXPORT_AGAIN}"]
    problems = [
        f"the repository was exported for {runtime} and the module {module} is not installed: "
        f"run {_RUNTIME_MODULES[runtime][module]}"
        for module in _missing_modules(runtime)
    ]
    if runtime == "openvino":
        if precision == "bf16" and not problems and not openvino_has_bf16():
            problems.append(
                "the repository was exported in BF16, which OpenVINO does not compute on this CPU: "
                "run ipt-export CHECKPOINT with --precision fp32"
            )
        return problems
    if runtime == "tensorrt" and server is not None and _lacks_backend(server, runtime):
        problems.append(
            f"the repository was exported for Triton's tensorrt backend, which {server.executable} does not have: "
            "serve it in an NGC Triton container or run ipt-export CHECKPOINT --runtime openvino"
        )
    try:
        if runtime != "tensorrt":
            load_library(library_of(runtime))
    except EngineError as error:
        problems.append(str(error))
    try:
        on_gpu = gpu_repository(repository, server)
        lacks = on_gpu.lacks() if on_gpu else []
    except EngineError as error:
        return [*problems, str(error)]
    remedy = on_gpu.remedy(lacks, build) if on_gpu and lacks else None
    return problems + [f"{lack}: {remedy}" for lack in lacks if remedy]


def _missing_modules(runtime: str) -> list[str]:
    return [module for module in _RUNTIME_MODULES[runtime] if importlib.util.find_spec(module) is None]


def openvino_has_bf16() -> bool:
    """Whether OpenVINO computes BF16 here, asked as `runner_openvino.py` does, in a process that is gone afterwards."""
    code = "import openvino; print(*openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return answer.returncode != 0 or "BF16" in answer.stdout.split()  # the start tells of an OpenVINO that fails


def check_address(host: str, ports: Mapping[str, int | None]) -> list[str]:
    """Check that the server may listen on `host` at `ports` (flag → number); None and 0 mean any free port."""
    try:
        address = resolve(host)
    except OSError as error:
        return [f"the host {host} has no IPv4 address ({error.strerror}): give --host an address of this machine"]
    problems = []
    wanted = [(flag, port) for flag, port in ports.items() if port]
    for index, (flag, port) in enumerate(wanted):
        twin = next((other for other, number in wanted[:index] if number == port), None)
        if twin:
            problems.append(f"{flag} and {twin} are both {port}: give each its own port")
            continue
        try:
            _bind(LOOPBACK if flag == "--metrics-port" else address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problems.append(f"port {port} on {host} is in use: stop what listens there or give another {flag}")
            elif error.errno == errno.EADDRNOTAVAIL:
                return [f"{host} is not an address of this machine: give --host another, 0.0.0.0 for all"]
            else:
                problems.append(f"port {port} on {host} cannot be used ({error.strerror}): give another {flag}")
    return problems


def resolve(host: str) -> str:
    """Return the IPv4 address of a host name; raise OSError if it has none."""
    return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])


def free_ports(address: str, count: int, taken: Sequence[int] = ()) -> list[int]:
    """Find `count` different ports that nothing listens on.

    They lie below the kernel's ephemeral range: a port out of that range may become the source port of somebody's
    connection between this look and the server's bind.
    """
    candidates = list(range(20000, 32000))
    found: list[int] = []
    start = int.from_bytes(os.urandom(4), "little")
    for offset in range(len(candidates)):
        if len(found) == count:
            break
        # A stride coprime to the length visits every candidate once, far from the neighbours' choices.
        port = candidates[(start + offset * 7919) % len(candidates)]
        try:
            if port not in taken:
                _bind(address, port)
                found.append(port)
        except OSError:
            continue
    if len(found) < count:
        raise OSError(errno.EADDRINUSE, f"no free port on {address} between 20000 and 32000")
    return found


def _bind(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port in TIME_WAIT is free, one that somebody listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
