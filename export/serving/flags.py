"""How tritonserver is called: its flags, those that a user may not pass on, and the folders that it is pointed to."""

from __future__ import annotations

import contextlib
import functools
import math
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from ipt_triton.export.engines.metadata import EngineError
from ipt_triton.export.serving import preflight, preflight_gpu
from ipt_triton.service import MAX_INPUT_PIXELS, ROUTER

CHUNKS_ON_A_GPU = 8
"""Chunks of patches whose tensors the pool of a GPU's memory holds between their parts: two that the bodies compute,
two that wait for them, two in heads, two in tails. What finds no room takes the CPU's memory: slower, never wrong."""

_POOL_FLAG = "--cuda-memory-pool-byte-size"
_SMALLEST_POOL = 64 << 20  # Triton's own; holds some 70 patches of the paper's model in FP16
_TYPE_BYTES = {pb.TYPE_FP32: 4, pb.TYPE_FP16: 2, pb.TYPE_BF16: 2}
# What a client needs stays open: health, metadata, inference, the router's config (the task table), statistics.
_CLOSED_APIS = "model-repository,shared-memory,trace,logging"
_CONNECTIONS = ("--grpc-max-connection-age=600000", "--grpc-keepalive-time=60000", "--grpc-http2-max-ping-strikes=0")
"""Milliseconds: a connection is ended so long after its start, once its calls are answered, and clients make another;
a caller that is not there any more is noticed so soon, 20 s more for an answer. Proxies may ping as often as they
like to see whether the server lives: of itself Triton ends a connection at the third ping of a long photograph."""
_TRACES = (
    "mode=opentelemetry",
    "level=TIMESTAMPS",
    f"rate={2**31 - 1}",  # of so many requests one that brings no trace along has a trace; with 0, none has any
    "opentelemetry,resource=service.name=ipt-server",
    "opentelemetry,bsp_schedule_delay=1000",  # milliseconds; what has not been sent is lost when the server ends
)
_TRACE_URL = re.compile(r"http://[^\s/?#,@]+")
_RESERVED_FLAGS = {
    "--model-repository": "use --repository",
    "--model-store": "use --repository",
    "--http-address": "use --host",
    "--grpc-address": "use --host",
    "--metrics-address": "use --host",
    "--http-port": "give it before the --",
    "--allow-http": "give --http-port before the -- to open it",
    "--grpc-port": "give it before the --",
    "--metrics-port": "give it before the --",
    "--allow-grpc": "readiness and warm-up need gRPC",
    "--grpc-use-ssl": "readiness and warm-up speak plain gRPC, put TLS in front of the server",
    "--grpc-use-ssl-mutual": "readiness and warm-up speak plain gRPC, put TLS in front of the server",
}


@functools.cache
def known_flags(files: preflight.ServerFiles) -> frozenset[str]:
    """The flags a tritonserver understands; it refuses to start when given one that it does not."""
    command = [str(files.executable), "--help"]
    text = subprocess.run(command, env=files.environment(), capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"^\s+(--[a-z0-9-]+)", text.stdout + text.stderr, re.MULTILINE))


def check_flags(arguments: Sequence[str], files: preflight.ServerFiles | None) -> list[str]:
    """Check the flags that a user wants passed on to tritonserver; one sentence for each that cannot be."""
    problems = []
    for argument in arguments:
        flag = argument.partition("=")[0]
        if files and flag.startswith("--") and flag not in known_flags(files):
            problems.append(f"{flag} is not a flag of {files.executable}: see what its --help lists")
        if flag in _RESERVED_FLAGS:
            problems.append(f"{flag} cannot be passed on to tritonserver: {_RESERVED_FLAGS[flag]}")
        if "shm-region-prefix-name" in argument:
            problems.append(f"{argument} cannot be passed on to tritonserver: the launcher cleans up by its prefix")
    return problems


def server_flags(
    files: preflight.ServerFiles,
    repository: Path,
    address: str,
    ports: Mapping[str, int | None],
    prefix: str,
    directory: Path,
    extra: Sequence[str],
    trace_url: str | None = None,
) -> list[str]:
    """All flags of a server.

    Args:
        ports: by flag; None for one that stays closed.
        prefix: what the names of its shared-memory regions start with.
        directory: the server's private folder, see `link_backends`.
        extra: the user's own flags; they come last, so they win.
        trace_url: of a collector, see `check_trace_url`.
    """
    flags = [
        f"--model-repository={repository.resolve()}",
        f"--http-address={address}",
        f"--grpc-address={address}",
        f"--metrics-address={preflight.LOOPBACK}",
        *(f"{flag}={port}" for flag, port in ports.items() if port),
        f"--allow-http={'true' if ports.get('--http-port') else 'false'}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--log-info=false",
        *(flag for flag in _CONNECTIONS if flag.partition("=")[0] in known_flags(files)),
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]
    if files.from_wheel:
        flags.append(f"--backend-directory={directory / 'backends'}")
    elif files.backends.is_dir():
        flags.append(f"--backend-directory={files.backends}")
    if not preflight_gpu.has_gpu():
        flags += ["--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false"]
    known = known_flags(files)
    if _POOL_FLAG in known and not is_given(_POOL_FLAG, extra):
        flags += _pool_flags(repository)
    if "--http-max-input-size" in known:
        # Three channels of 16 bits, and room for the request around them.
        flags.append(f"--http-max-input-size={_max_input_pixels(repository) * 6 + 2**20}")
    # Who may see this machine's processes can read the key, and nobody can send it: a line break ends a header.
    key = f"{secrets.token_hex(16)}\n"
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        # Triton refuses an API named in two groups, so the user's group stands alone.
        if flag in known and not is_given(flag, extra):
            flags.append(f"{flag}={_CLOSED_APIS}:launcher={key}")
    if trace_url:
        flags += [f"--trace-config={setting}" for setting in (*_TRACES, f"opentelemetry,url={trace_url}/v1/traces")]
    return [*flags, *extra]


def check_trace_url(url: str | None) -> list[str]:
    """Check the address of a collector of traces; a sentence if it is none."""
    if url is None or _TRACE_URL.fullmatch(url):
        return []
    return [f"{url!r} is no collector of traces: give http://HOST:PORT, of its port for OTLP over HTTP"]


def is_given(flag: str, extra: Sequence[str]) -> bool:
    """Whether a flag is among the user's own."""
    return any(argument.partition("=")[0] == flag for argument in extra)


def is_off(flag: str, extra: Sequence[str]) -> bool:
    """Whether the user's own flags say no to what tritonserver does unless told otherwise, such as `--allow-http`."""
    values = re.findall(rf"(?:^| ){flag}[= ](\S+)", " ".join(extra))
    return bool(values) and values[-1].lower() in ("false", "off", "0")


def _pool_flags(repository: Path) -> list[str]:
    """A pool of memory on each GPU for what TensorRT's backend hands from part to part, after the largest ensemble.

    Parts in Triton's Python backend need none: they write to the CPU's memory, whatever computes them.
    """
    configs = {}
    for folder in repository.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            configs[folder.name] = preflight.read_config(folder)
    patch = max((_bytes_between_parts(config, configs) for config in configs.values()), default=0)
    if not patch:
        return []
    try:
        chunk = int(configs[ROUTER].parameters["chunk"].string_value)
        gpus = preflight_gpu.find_gpus()
    except (KeyError, ValueError, EngineError):
        return []  # somebody else's repository, or no GPU
    size = max(CHUNKS_ON_A_GPU * chunk * patch, _SMALLEST_POOL)
    return [f"{_POOL_FLAG}={index}:{size}" for index, _ in enumerate(gpus)]


def _bytes_between_parts(ensemble: pb.ModelConfig, configs: Mapping[str, pb.ModelConfig]) -> int:
    """Bytes per patch of what one step of an ensemble writes on a GPU and another reads; 0 for other models."""
    steps = ensemble.ensemble_scheduling.step
    read = {tensor for step in steps for tensor in step.input_map.values()}
    total = 0
    for step in steps:
        model = configs[step.model_name]
        for output in model.output if model.platform == "tensorrt_plan" else ():
            if step.output_map[output.name] in read:
                total += math.prod(output.dims) * _TYPE_BYTES.get(output.data_type, 4)
    return total


def _max_input_pixels(repository: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        parameters = preflight.read_config(repository / ROUTER).parameters
        if "max_input_pixels" in parameters:
            return int(parameters["max_input_pixels"].string_value)
    return MAX_INPUT_PIXELS


def link_backends(files: preflight.ServerFiles, directory: Path) -> list[Path]:
    """Link a backend folder for the wheel's server; return the folders to add to its library path.

    The wheel keeps the backend and the stubs apart, Triton wants them together. libpython is linked alone: its folder
    may hold other libraries (conda's libstdc++, say) that must not shadow the system's.
    """
    if not files.from_wheel:
        return []
    python = directory / "backends" / "python"
    python.mkdir(parents=True)
    for file in [*(files.backends / "python").glob("*.*"), files.stub]:
        (python / file.name).symlink_to(file)
    libpython = preflight.find_libpython()
    if libpython is None:
        return []
    library_folder = directory / "lib"
    library_folder.mkdir()
    (library_folder / libpython.name).symlink_to(libpython)
    return [library_folder]
