"""A server of one's own: started where none is named and none runs, ended when nobody needs it any more.

    with own_server(WEIGHTS, keep_minutes=0, say=print) as url: ...

Commands that want the same weights share one. Each holds a shared lock on the server's file while it works, which the
system takes away when a command ends, however it ends. The keeper, a process beside the server, ends it when nobody has
held the lock for the minutes asked for. The weights are exported once, into the user's cache.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import ipt_triton
from ipt_triton.client.address import DEFAULT_URL
from ipt_triton.client.arguments import access
from ipt_triton.client.errors import ServerUnavailable
from ipt_triton.cpu import cpu_flags, has_bf16
from ipt_triton.reading import printable

try:
    import fcntl
except ImportError:  # not on Windows, where no Triton runs either
    fcntl = None  # type: ignore[assignment]

PACKAGE = Path(ipt_triton.__file__).parent
WEIGHTS = PACKAGE / "weights" / "ipt-tiny"
"""What comes with the package."""

PACKED = "parts.zip"
"""In a folder of weights: what an export made of them before, so that PyTorch is not needed."""

START_S, STOP_S = 300.0, 30.0
_LOOK_S = 0.2
_PR_SET_PDEATHSIG = 1
_STARTS = 2  # on a machine that is very busy Triton 2.51 may die while it loads its models
_ADDRESS = re.compile(r"^ready: .*?grpc (\S+?),")


def answers(url: str) -> bool:
    """Whether something takes connections at HOST:PORT."""
    host, _, port = url.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def chosen_server(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Arguments of a client for the server that a command names, else of one at the usual place, else of our own.

    Args:
        args: of a command, see `arguments`.
        say: as for `own_server`.

    Raises:
        ServerUnavailable: see `own_server`.
    """
    if args.url or (not args.weights and answers(DEFAULT_URL)):
        yield {"url": args.url or DEFAULT_URL, **access(args)}
        return
    with own_server(args.weights or WEIGHTS, args.keep_server, say) as url:
        yield {"url": url, "timeout": args.timeout, "retries": args.retries}


@contextmanager
def own_server(weights: Path, keep_minutes: float, say: Callable[[str], None]) -> Iterator[str]:
    """HOST:PORT of a server with these weights: one that runs already, or a new one.

    Args:
        weights: folder of a checkpoint.
        keep_minutes: how long the server stays when nobody uses it any more.
        say: takes a sentence before what takes time.

    Raises:
        ServerUnavailable: it cannot be exported or started; the message says why.
    """
    if fcntl is None:
        raise ServerUnavailable("a server of our own needs Linux; name one that runs with --url")
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipt-triton"
        cache.mkdir(parents=True, exist_ok=True)
        precision = "bf16" if has_bf16(cpu_flags()) else "fp32"
        name = _digest(weights, precision)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one command at a time exports and starts
            use = _join(cache / f"{name}.server", keep_minutes)
            if use is None:
                repository = _export(weights, precision, cache / name, say)
                use = _start(repository, cache / f"{name}.server", keep_minutes, say)
    except OSError as error:
        raise ServerUnavailable(f"no server of one's own: {error.filename}: {error.strerror}") from error
    file, url = use
    with file:
        yield url


def _digest(weights: Path, precision: str) -> str:
    """Of the weights, the precision and the code that exports and serves them."""
    digest = hashlib.sha256(precision.encode())
    # In a checkout export and train are links, into which rglob does not look by itself.
    code = {path for folder in (PACKAGE, PACKAGE / "export", PACKAGE / "train") for path in folder.rglob("*.py")}
    for path in (*sorted(weights.iterdir()), *sorted(code)):
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _join(path: Path, keep_minutes: float) -> tuple[IO[str], str] | None:
    """The lock on a server that runs, and its address; None if there is none."""
    try:
        file = path.open("r+")
    except FileNotFoundError:
        return None
    with suppress(ValueError, KeyError, OSError):
        fcntl.flock(file, fcntl.LOCK_SH)
        state = json.load(file)
        if answers(state["url"]) and path.samefile(f"/dev/fd/{file.fileno()}"):  # else its keeper was about to end it
            _write(file, {**state, "minutes": max(keep_minutes, state["minutes"])})
            return file, str(state["url"])
    file.close()
    return None


def _export(weights: Path, precision: str, repository: Path, say: Callable[[str], None]) -> Path:
    if not (repository / "restore" / "config.pbtxt").is_file():
        say(f"exporting {weights.name} into {repository}, once")
        packed = weights / PACKED
        source = ["repository", "--parts", packed] if packed.is_file() else [weights, "--parts", f"{repository}.parts"]
        arguments = [*source, "--precision", precision, "--repository", repository]
        done = subprocess.run(_command("export", *arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerUnavailable(f"{weights} cannot be exported: {_last_line(done.stderr)}")
    return repository


def _start(repository: Path, path: Path, keep_minutes: float, say: Callable[[str], None]) -> tuple[IO[str], str]:
    """Start a keeper and wait until its server is ready."""
    say("starting a server of our own; ipt-serve and --url use one that stays")
    path.unlink(missing_ok=True)
    file = path.open("w+")
    fcntl.flock(file, fcntl.LOCK_SH)
    log = path.with_suffix(".log")
    with log.open("w") as output:
        words = [sys.executable, "-m", __spec__.name, repository, path, str(keep_minutes)]
        keeper = subprocess.Popen(
            list(map(str, words)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + START_S
    try:
        while keeper.poll() is None and time.monotonic() < deadline:
            file.seek(0)
            if text := file.read():
                return file, str(json.loads(text)["url"])
            time.sleep(_LOOK_S)
    except BaseException:
        file.close()
        raise
    file.close()
    raise ServerUnavailable(f"a server of our own did not start: {_last_line(log.read_text(errors='replace'))}")


def keep(repository: str, path: Path, minutes: float) -> int:
    """Serve until nobody uses the server any more; returns the exit status of the process."""
    for _ in range(_STARTS):
        server = _serve(repository)
        try:
            assert server.stdout is not None
            address = _ADDRESS.match(server.stdout.readline())
            if address is None:
                continue
            with path.open("r+") as file:
                _write(file, {"url": address[1], "minutes": minutes})
                _await_idle(file, server)
                path.unlink(missing_ok=True)
            return 0
        finally:
            server.terminate()
            server.wait(STOP_S)
    return 1


def _serve(repository: str) -> subprocess.Popen[str]:
    ports = [word for port in ("grpc", "metrics", "health") for word in (f"--{port}-port", "0")]
    return subprocess.Popen(
        _command("serve", "--repository", repository, *ports),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Let Linux tell this process to end when the one that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _await_idle(file: IO[str], server: subprocess.Popen[str]) -> None:
    """Return with the lock when nobody has held it for the minutes that the file tells, or the server has ended."""
    used = time.monotonic()
    while server.poll() is None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            used = time.monotonic()
        else:
            file.seek(0)
            if time.monotonic() - used >= 60 * json.load(file)["minutes"]:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(_LOOK_S)


def _write(file: IO[str], state: dict[str, Any]) -> None:
    file.seek(0)
    file.write(json.dumps(state))
    file.truncate()
    file.flush()


def _command(name: str, *arguments: object) -> list[str]:
    code = f"import sys, ipt_triton.commands as commands; sys.exit(commands.{name}())"
    return [sys.executable, "-c", code, *map(str, arguments)]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return printable(lines[-1]) if lines else "it said nothing"


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
