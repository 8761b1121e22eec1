"""The process between the launcher and tritonserver: nothing of the server outlives it.

`export.serving.server` runs this file as a script between itself and `tritonserver`:

    ipt-serve ──pipe──▶ supervise.py ──▶ tritonserver ──▶ triton_python_backend_stub …

The pipe carries `kill` (SIGKILL) or `stop` (SIGTERM); its end means that the launcher is gone and is a `kill` as well.
tritonserver with our router is killed: asked to stop, it would refuse the patches of photographs that it has begun, and
answer INTERNAL and NOT_FOUND for a second or more. The launcher waits before until nothing is under way, so that
nothing is lost. Other servers, and the builder of engines (`export.serving.missing_engines`), are asked to stop.
However the server ends, its orphans come to this process (it is a subreaper), are killed and reaped, and then its
shared-memory regions and its private directory are removed. Standard library only, because it runs isolated
(`python -I -S`) in some 30 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_COMMAND_FD = 0
_KILL_PATIENCE_S = 10.0
_MOST_DESCRIPTORS = 2**20
_STUB_NAME = "triton_python_backend_stub"[:15]  # as the kernel keeps names
_LEFTOVER = re.compile(r"(?P<owner>ipt-serve-(?P<namespace>\d+)-(?P<pid>\d+)-\d+-[0-9a-f]{8})(?:-|$)")


def _stat(process: int) -> tuple[str, list[str]]:
    """The command's name and the fields after it (proc(5)) of a process; raises OSError for none and for a zombie."""
    name, fields = _stat_of_any(process)
    if fields[0] in "ZX":
        raise ProcessLookupError(process)
    return name, fields


def _stat_of_any(process: int) -> tuple[str, list[str]]:
    # The name, in parentheses, may hold spaces; the fields after it do not.
    name, _, fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")
    return name.partition("(")[2], fields.split()


def _processes() -> Iterator[tuple[int, str, list[str]]]:
    """Yield the id and what `_stat` tells of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield (int(entry.name), *_stat(int(entry.name)))


def session_processes(session: int) -> Iterator[int]:
    """Yield the process ids of a session and of the children of its leader, without the leader and without zombies."""
    for process, _, (_, parent, _, process_session, *_) in _processes():
        if process != session and session in (int(parent), int(process_session)):
            yield process


def model_processes(session: int) -> dict[int, tuple[str, str]]:
    """Find tritonserver and the processes of its Python models; return what each is and when it started, by its id.

    One that is dead already is among them: Triton does not clear it away.
    """
    found = {}
    for process in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        with contextlib.suppress(OSError):
            name, fields = _stat_of_any(process)
            if session != int(fields[3]):
                continue
            if name == _STUB_NAME:
                words = Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")
                model = next((Path(word).parents[1].name for word in words[1:] if word.endswith(".py")), "")
                found[process] = (f"the model {model}" if model else "a model", fields[19])
            elif name == "tritonserver":
                found[process] = (name, fields[19])
    return found


def state_of(process: int) -> tuple[str, str]:
    """A process's state, one letter as in proc(5), and when it started; raises OSError for none and for a zombie."""
    _, fields = _stat(process)
    return fields[0], fields[19]


def cpu_ticks(process: int) -> int:
    """Clock ticks that a process has used the CPU for; 0 for none."""
    with contextlib.suppress(OSError):
        _, fields = _stat(process)
        return int(fields[11]) + int(fields[12])
    return 0


def has_unsent(port: int) -> bool:
    """Whether something that was written to a connection of a local port has not reached its client yet."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, queues, *_ = line.split()
                if local.endswith(f":{port:04X}") and state == "01" and not queues.startswith("00000000"):
                    return True
    return False


def end_session(session: int) -> bool:
    """Kill everything in a session but its leader and reap what is ours; False if something is left after 10 s."""
    deadline = time.monotonic() + _KILL_PATIENCE_S
    while True:
        left = list(session_processes(session))
        for process in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if session == os.getpid():
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if not left:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def remove_regions(prefix: str) -> list[str]:
    """Remove the shared-memory regions whose names start with `prefix`; return the names of those that were there."""
    removed = []
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            region.unlink()
            removed.append(region.name)
    return removed


def close_regions(prefix: str) -> None:
    """Let none but their owner read the regions whose names start with `prefix`: Triton makes them 0644."""
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            region.chmod(0o600)


def clean_up(session: int, prefix: str, directory: Path, since: float) -> None:
    """Remove everything of a server that a supervisor, the leader of `session`, started at `since` (epoch seconds)."""
    end_session(session)
    remove_regions(prefix)
    _remove_environment_folders(since)
    shutil.rmtree(directory, ignore_errors=True)


def _remove_environment_folders(since: float) -> None:
    """Remove the empty folder that the Python backend makes in /tmp, whatever TMPDIR says, and leaves when killed.

    Its name tells no owner, so nothing is done while another tritonserver runs that it might belong to.
    """
    folders = [folder for folder in Path("/tmp").glob("python_env_*") if _modified(folder) >= since - 1]
    if any(name == "tritonserver" for _, name, _ in _processes()):
        return
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, not ours, gone
            folder.rmdir()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0


def sweep_leftovers() -> list[str]:
    """Remove what servers left whose launcher and supervisor were both killed; return the names of what was there.

    A name tells its launcher (process id, its start time, its process namespace), so what belongs to a living launcher
    or to another container is not touched.
    """

    def leftovers() -> dict[Path, str]:
        found = {}
        for folder in (SHARED_MEMORY, Path(tempfile.gettempdir())):
            for path in folder.glob("ipt-serve-*"):
                match = _LEFTOVER.match(path.name)
                if not match or int(match["namespace"]) != _namespace():
                    continue
                if not match["owner"].startswith(f"{_owner_of(int(match['pid']))}-"):
                    found[path] = match["owner"]
        return found

    # The supervisor of a launcher that was killed a moment ago is still at work; its server still holds the ports.
    patience = time.monotonic() + 5
    while (stale := leftovers()) and time.monotonic() < patience and any(map(_supervised, set(stale.values()))):
        time.sleep(0.05)
    if stale:
        _remove_environment_folders(min(map(_modified, stale)))
    removed = []
    for path in stale:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            removed.append(path.name)
    return removed


def new_owner() -> str:
    """Make a name for a server of this process: its regions' names start with it, its private folder bears it."""
    return f"{_owner_of(os.getpid())}-{secrets.token_hex(4)}"


def _supervised(owner: str) -> bool:
    """Whether a process, supervisor or server, still has an owner's name on its command line."""
    for process, _, _ in _processes():
        with contextlib.suppress(OSError):
            if owner.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
                return True
    return False


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _owner_of(process: int) -> str:
    """Name a process so that no later one gets the same name: namespace, id, start time in clock ticks after boot."""
    try:
        started = _stat(process)[1][19]
    except OSError:
        started = "gone"
    return f"ipt-serve-{_namespace()}-{process}-{started}"


def start(
    command: Sequence[str], environment: Mapping[str, str], owner: str, directory: Path
) -> subprocess.Popen[bytes]:
    """Start a command below a supervisor, which is returned: `tell` tells it, its output is that of the command.

    Args:
        owner: from `new_owner`.
        directory: private folder of the command, removed at its end; need not be there.
    """
    supervisor = [sys.executable, "-I", "-S", __file__, f"{owner}-", str(directory)]
    return subprocess.Popen(
        [*supervisor, *command],
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C in the terminal is for the launcher alone
    )


def tell(supervisor: subprocess.Popen[bytes], word: bytes) -> None:
    """Send a supervisor `stop` or `kill`, if it still listens."""
    if supervisor.stdin:
        with contextlib.suppress(OSError, ValueError):  # gone, or cleaned up after
            os.write(supervisor.stdin.fileno(), word)


def supervise(prefix: str, directory: Path, command: list[str]) -> int:
    """Run `command` until it ends or the pipe asks for its end; leave nothing of it; return its status, shell style."""
    launcher = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor:
            os._exit(1)

    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    _raise_descriptor_limit()
    started = time.time()
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_supervisor)
    except OSError as error:
        print(f"E {command[0]} does not start: {error.strerror}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        return 127

    while server.poll() is None:
        ready, _, _ = select.select([_COMMAND_FD, wake_read], [], [], 0.5)
        words = os.read(_COMMAND_FD, 64) or b"kill" if _COMMAND_FD in ready else b""
        signals = set(os.read(wake_read, 64)) if wake_read in ready else set()
        # A forked child of a launcher that is gone may still hold its end of the pipe.
        if b"kill" in words or signals & {signal.SIGTERM, signal.SIGINT} or os.getppid() != launcher:
            server.kill()
            server.wait()
        elif words:
            server.terminate()

    clean_up(supervisor, prefix, directory, started)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def _raise_descriptor_limit() -> None:
    """Let the server have as many connections as it may; shells hand on 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
