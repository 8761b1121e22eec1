"""How tritonserver is called: its flags, those that a user may not pass on, and the folders that it is pointed to."""

from __future__ import annotations

import contextlib
import functools
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ipt_triton.export.serving import preflight
from ipt_triton.export.serving.preflight_gpu import has_gpu
from ipt_triton.service import MAX_INPUT_PIXELS, ROUTER

EXIT_TIMEOUT_S = 10
# What a client needs stays open: health, metadata, inference, the router's config (the task table), statistics.
_CLOSED_APIS = "model-repository,shared-memory,trace,logging"
_RESERVED_FLAGS = {
    "--model-repository": "use --repository",
    "--model-store": "use --repository",
    "--http-address": "use --host",
    "--grpc-address": "use --host",
    "--metrics-address": "use --host",
    "--http-port": "give it before the --",
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
    ports: Mapping[str, int],
    prefix: str,
    directory: Path,
    extra: Sequence[str],
) -> list[str]:
    """All flags of a server.

    Args:
        ports: by flag.
        prefix: what the names of its shared-memory regions start with.
        directory: the server's private folder, see `link_backends`.
        extra: the user's own flags; they come last, so they win.
    """
    flags = [
        f"--model-repository={repository.resolve()}",
        f"--http-address={address}",
        f"--grpc-address={address}",
        f"--metrics-address={address}",
        *(f"{flag}={port}" for flag, port in ports.items()),
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--log-info=false",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]
    if files.from_wheel:
        flags.append(f"--backend-directory={directory / 'backends'}")
    elif files.backends.is_dir():
        flags.append(f"--backend-directory={files.backends}")
    if not has_gpu():
        flags += ["--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false"]
    known = known_flags(files)
    if "--http-max-input-size" in known:
        # Three channels of 16 bits, and room for the request around them.
        flags.append(f"--http-max-input-size={_max_input_pixels(repository) * 6 + 2**20}")
    key = secrets.token_hex(16)
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        # Triton refuses an API named in two groups, so the user's group stands alone.
        if flag in known and not any(argument.startswith(flag) for argument in extra):
            flags.append(f"{flag}={_CLOSED_APIS}:launcher={key}")
    return [*flags, *extra]


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
