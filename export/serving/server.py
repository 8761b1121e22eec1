"""Starts tritonserver, warms it up, watches it, and ends it without a trace: a Triton server as an object.

    with TritonServer("triton_models") as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)

The command `ipt-serve`, the demo, the tests and the benchmarks all start servers through this class.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as triton

from ipt_triton.board import BOARD, Board
from ipt_triton.export.serving import missing_engines, preflight, supervise
from ipt_triton.export.serving.counters import Counters, fetch_page, read_counters
from ipt_triton.export.serving.errors import (
    BuildError,
    CheckError,
    InterruptedStartError,
    NotReadyError,
    ServeError,
    ServerEndedError,
)
from ipt_triton.export.serving.flags import check_flags, check_trace_url, is_off, link_backends, server_flags
from ipt_triton.export.serving.output import ServerOutput
from ipt_triton.export.serving.warm_up import warm_up
from ipt_triton.service import ROUTER, ROUTERS
from ipt_triton.tasks import Task

logger = logging.getLogger(__name__)

GRACE_S = 15.0
"""Seconds that photographs under way get to be finished when the server is told to stop."""

_POLL_S, _DEAD_S = 0.1, 2.0
_STOP_FILE = "stopping"  # in the server's private folder; the router looks for it at each request
_FIXED_CHUNKED = (2, 60)  # the first release, 25.08, after the one with the mended HTTP port


class TritonServer:
    """One `tritonserver` process, everything that belongs to it, and the end of it all.

    Args:
        repository: the model repository.
        host: name or IPv4 address to listen on; loopback unless the machine's network is meant to reach it.
        http_port: a port, or 0 for a free one; None: HTTP stays closed.
        grpc_port, metrics_port: a port, or None or 0 for a free one. Metrics listen on loopback alone.
        extra_args: flags for tritonserver; they come last, so they win over the launcher's.
        log_path: file for what the server writes; without it each line goes to `output.output_logger`.
        build: whether to build engines that the repository lacks for this machine's GPUs; None: if it does not take
            long (`missing_engines.UNASKED_WEIGHTS`).
        trace_url: `http://HOST:PORT` of a collector, which gets the traces of requests that bring one along.

    As a context manager it starts and stops; `keep.Keeper` heals it. `start` may be called again after `stop`; free
    ports are then looked up anew. Methods may be called from any thread, `interrupt` and `kill` from signal handlers.
    """

    def __init__(
        self,
        repository: str | Path,
        host: str = "127.0.0.1",
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        extra_args: Sequence[str] = (),
        log_path: str | Path | None = None,
        build: bool | None = None,
        trace_url: str | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.host = host
        self.tasks: tuple[Task, ...] = ()
        """The tasks that were warmed up, empty for a repository without a router."""
        # None is a port that stays closed, 0 any free one.
        self._wanted_ports = {
            "--http-port": http_port,
            "--grpc-port": grpc_port or 0,
            "--metrics-port": metrics_port or 0,
        }
        self._ports = dict(self._wanted_ports)
        self._trace_url = trace_url
        self._extra_args = tuple(extra_args)
        self._log_path = Path(log_path) if log_path else None
        self._build = build
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._output: ServerOutput | None = None
        self._prefix = ""
        self._directory = Path()
        self._started = 0.0
        self._interrupted = threading.Event()
        self._stopped = False

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        """`host:port` as tritonclient.http takes it; of a server whose HTTP port was opened."""
        return f"{self._reachable_host}:{self._ports['--http-port']}"

    @property
    def grpc_url(self) -> str:
        """`host:port` as tritonclient.grpc takes it."""
        return f"{self._reachable_host}:{self._ports['--grpc-port']}"

    @property
    def metrics_url(self) -> str:
        """`http://host:port/metrics`, the Prometheus page."""
        return f"http://{preflight.LOOPBACK}:{self._ports['--metrics-port']}/metrics"

    def url_of(self, port: int) -> str:
        """`http://host:port` of a port on this server's host."""
        return f"http://{self._reachable_host}:{port}"

    @property
    def has_metrics(self) -> bool:
        """Whether there is a page of metrics: `--allow-metrics=false` turns it off."""
        return not is_off("--allow-metrics", self._extra_args)

    @property
    def addresses(self) -> str:
        """Where it answers, in words: HTTP, gRPC, metrics, without what is closed."""
        http = "" if self._ports["--http-port"] is None else f"http://{self.http_url}, "
        metrics = f", metrics {self.metrics_url}" if self.has_metrics else ""
        return f"{http}grpc {self.grpc_url}{metrics}"

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._supervisor is not None and self._supervisor.poll() is None

    @property
    def pids(self) -> list[int]:
        """The server's processes: tritonserver, the Python stubs and theirs; empty when it does not run."""
        return sorted(supervise.session_processes(self._supervisor.pid)) if self._supervisor and self.running else []

    def model_processes(self) -> dict[int, tuple[str, str]]:
        """tritonserver and the processes of its Python models: what each is and when it started, by its id."""
        return supervise.model_processes(self._supervisor.pid) if self._supervisor else {}

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop, by `interrupt` or `stop`."""
        return self._interrupted.is_set()

    @property
    def board(self) -> Board:
        """What the routers have written of their work; of a server that runs."""
        return Board(self._directory / BOARD)

    @property
    def region_prefix(self) -> str:
        """What the names of this server's regions in /dev/shm start with."""
        return self._prefix

    def check(self) -> list[str]:
        """Return every reason not to start, one sentence each; starts nothing."""
        return self._check(preflight.find_server())

    def notes(self) -> list[str]:
        """Return what is worth knowing before a start and does not stop it, one sentence each."""
        return preflight.repository_notes(self.repository, preflight.find_server(), self._build)

    def _check(self, files: preflight.ServerFiles | None) -> list[str]:
        problems = preflight.check_server(files)
        problems += preflight.check_repository(self.repository, files, self._build)
        problems += preflight.check_address(self.host, self._wanted_ports)
        return problems + check_trace_url(self._trace_url) + check_flags(self._extra_args, files)

    def start(self, timeout: float = 300.0, report: Callable[[str], None] = logger.info) -> None:
        """Check, build missing engines, start, wait until every model is ready, and restore one small image per task.

        Args:
            timeout: seconds from the end of the build until all is ready.
            report: gets what the build of engines says, line by line.

        Raises CheckError, BuildError, ServerEndedError, NotReadyError, WarmUpError or InterruptedStartError; nothing of
        the server is left then.
        """
        if self.running:
            raise ServeError("this server runs already: stop it first")
        for name in supervise.sweep_leftovers():
            logger.warning("removed %s, which a killed server had left", name)
        files = preflight.find_server()
        problems = self._check(files)
        if problems or files is None:
            raise CheckError(problems)
        if self._stopped:  # an interrupt that came before the first start counts
            self._interrupted.clear()
            self._stopped = False
        self._build_engines(files, report)
        self._choose_ports()
        try:
            self._run(files, timeout)
        except BaseException:
            self.stop(grace=0)
            raise

    def end(self) -> None:
        """End the server at once, if it still runs, without a trace: `start_again` may follow."""
        if supervisor := self._supervisor:
            self._end(supervisor)

    def rest(self, seconds: float) -> None:
        """Sleep; raises InterruptedStartError when `interrupt` is called."""
        if self._interrupted.wait(seconds):
            raise InterruptedStartError("the start was interrupted")

    def start_again(self, timeout: float = 300.0) -> None:
        """Start a server that has ended on the ports that it had; raises what `start` does."""
        files = preflight.find_server()
        if files is None:
            raise CheckError(preflight.check_server(files))
        try:
            self._run(files, timeout)
        except BaseException:
            self.end()
            raise

    def _run(self, files: preflight.ServerFiles, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._launch(files)
        self._await_ready(deadline)
        supervise.close_regions(self._prefix)
        if (self.repository / ROUTER).is_dir():
            self.tasks = warm_up(self.grpc_url, lambda: self._pause(deadline, 0.02))
        self._check_alive()

    def _build_engines(self, files: preflight.ServerFiles, report: Callable[[str], None]) -> None:
        on_gpu = preflight.gpu_repository(self.repository, files)
        if on_gpu is None:
            return
        for lack in on_gpu.lacks():
            report(f"engines for {lack.gpu.name}, compute capability {lack.gpu.compute_capability}")
            missing_engines.build(self.repository, lack, report, self._interrupted)
        if still := on_gpu.lacks():
            raise BuildError(f"engines were built and still {still[0]}: run ipt-export CHECKPOINT again")

    def stop(self, grace: float = GRACE_S) -> None:
        """End the server once the photographs under way are answered, after `grace` seconds at the latest.

        The router refuses new ones from now on, as UNAVAILABLE; so does the closed port afterwards. With 0 the server
        is killed at once. Does nothing when the server does not run. Afterwards no process, no shared-memory region and
        no temporary file of it is left.
        """
        self._stopped = True
        self._interrupted.set()
        supervisor = self._supervisor
        if supervisor is None:
            return
        deadline = time.monotonic() + grace
        if grace > 0 and self.running:
            with contextlib.suppress(OSError):  # a full disk: new photographs are taken, and cut off at the end
                (self._directory / _STOP_FILE).touch()
            if not self._await_answers(deadline):
                supervise.tell(supervisor, b"stop")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    supervisor.wait(max(0, deadline - time.monotonic()))
        self._end(supervisor)

    def _end(self, supervisor: subprocess.Popen[bytes]) -> None:
        supervise.tell(supervisor, b"kill")
        supervisor.wait()
        self._clean_up(supervisor)
        self._supervisor = None

    def _await_answers(self, deadline: float) -> bool:
        """Wait until twice in a row nothing is under way: a request that is handed to the router counts nowhere.

        False, at once, if the server does not tell what is under way: it has no metrics or another router than ours.
        """
        idle, patches = 0, -1.0
        while idle < 2 and self.running and time.monotonic() < deadline:
            try:
                counters = self.counters() if self.has_metrics else None
            except TimeoutError:
                idle = 0
                continue
            if counters is None or not counters.under_way:
                return False
            # Patches that were sent to an ensemble, past the router, show only in that they are computed.
            before, patches = patches, sum(n for model, n in counters.computed.items() if model not in ROUTERS)
            busy = any(map(counters.waiting.get, ROUTERS)) or any(counters.under_way.values()) or patches != before
            idle = 0 if busy or supervise.has_unsent(self._ports["--grpc-port"] or 0) else idle + 1
            time.sleep(_POLL_S)
        return True

    def metrics_page(self) -> bytes:
        """The page of metrics; raises OSError, of which TimeoutError means a busy server."""
        return fetch_page(preflight.LOOPBACK, self._ports["--metrics-port"] or 0)

    def counters(self) -> Counters | None:
        """What the server has done and does; None where it does not tell. Raises TimeoutError when it is busy."""
        try:
            return read_counters(self.metrics_page().decode())
        except TimeoutError:
            raise
        except OSError:
            return None

    def faulty_http(self) -> str | None:
        """Warn of an open HTTP port where single requests can end Triton; None for a newer one, or a closed port."""
        if self._ports["--http-port"] is None:
            return None
        version = "of unknown version"
        with (
            contextlib.suppress(triton.InferenceServerException),
            triton.InferenceServerClient(self.grpc_url) as client,
        ):
            version = client.get_server_metadata(client_timeout=5).version
        if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) >= _FIXED_CHUNKED:
            return None
        return (
            f"Triton {version} dies of single HTTP requests (CVE-2025-23310, CVE-2025-23311, mended in release 25.07): "
            f"let nobody but yourself reach {self.http_url}"
        )

    def kill(self) -> None:
        """Ask for the immediate end of the server without waiting for it; `stop` still cleans up."""
        if supervisor := self._supervisor:
            supervise.tell(supervisor, b"kill")

    def interrupt(self) -> None:
        """Make `start` raise InterruptedStartError, or `wait` return, soon; the server is then to be stopped."""
        self._interrupted.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until `interrupt` is called (True) or `timeout` seconds have passed (False).

        Raises ServerEndedError when tritonserver ends by itself; nothing of it is left then.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._interrupted.wait(_POLL_S):
            self._check_alive()
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True

    def _check_alive(self) -> None:
        supervisor = self._supervisor
        if supervisor is None:
            raise ServeError("the server does not run: start it first")
        if supervisor.poll() is not None:
            self._clean_up(supervisor)
            self._supervisor = None
            status = supervisor.returncode if supervisor.returncode >= 0 else 128 - supervisor.returncode
            raise ServerEndedError(status, self._last_words())

    def _last_words(self) -> list[str]:
        return self._output.last_words() if self._output else []

    def _clean_up(self, supervisor: subprocess.Popen[bytes]) -> None:
        # The supervisor has done all this unless it was killed itself.
        if supervisor.returncode < 0:
            supervise.clean_up(supervisor.pid, self._prefix, self._directory, self._started)
        if self._output:
            self._output.join(5)
        if supervisor.stdin:
            supervisor.stdin.close()

    def _choose_ports(self) -> None:
        given = [port for port in self._wanted_ports.values() if port]
        wanted = list(self._wanted_ports.values())
        free = iter(preflight.free_ports(preflight.resolve(self.host), wanted.count(0), given))
        self._ports = {flag: next(free) if port == 0 else port for flag, port in self._wanted_ports.items()}

    def _launch(self, files: preflight.ServerFiles) -> None:
        """Start the supervisor, which starts tritonserver."""
        address = preflight.resolve(self.host)
        owner = supervise.new_owner()
        self._started = time.time()
        self._prefix = f"{owner}-"
        self._directory = Path(tempfile.gettempdir(), owner)
        try:
            self._directory.mkdir(mode=0o700)
            libraries = link_backends(files, self._directory)
            log = self._log_path.open("ab") if self._log_path else None
        except OSError as error:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise ServeError(
                f"{error.filename} cannot be written ({error.strerror}): make room there or choose another place"
            ) from error
        self._output = None
        flags = server_flags(
            files,
            self.repository,
            address,
            self._ports,
            self._prefix,
            self._directory,
            self._extra_args,
            self._trace_url,
        )
        command = [str(files.executable), *flags]
        logger.info("starting %s", " ".join(command))
        try:
            environment = {**files.environment(*libraries), "IPT_SERVER_FOLDER": str(self._directory)}
            self._supervisor = supervise.start(command, environment, owner, self._directory)
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        assert self._supervisor.stdout is not None
        self._output = ServerOutput(self._supervisor.stdout, log)

    def _await_ready(self, deadline: float) -> None:
        dead: dict[int, float] = {}
        while True:
            self._pause(deadline, _POLL_S)
            self._check_models(dead)
            try:
                # Triton opens its ports when its models are loaded. gRPC would back off from a closed port for seconds.
                socket.create_connection((self._reachable_host, self._ports["--grpc-port"]), 1).close()
                with triton.InferenceServerClient(self.grpc_url) as client:
                    if client.is_server_ready(client_timeout=5):
                        return
            except (OSError, triton.InferenceServerException) as error:
                logger.debug("not ready yet: %s", error)

    def _check_models(self, dead: dict[int, float]) -> None:
        """Raise NotReadyError for a model's process that died: Triton would wait for it without end.

        One that could not begin is cleared away by Triton, which ends by itself then and says why.

        Args:
            dead: when each was first seen so; kept from look to look.
        """
        now = time.monotonic()
        for process, (name, _) in self.model_processes().items():
            try:
                supervise.state_of(process)
            except OSError:
                if now - dead.setdefault(process, now) > _DEAD_S:
                    raise NotReadyError(
                        f"the process of {name} died while tritonserver started: start it again"
                    ) from None

    def _pause(self, deadline: float, seconds: float) -> None:
        self.rest(seconds)
        self._check_alive()
        if time.monotonic() > deadline:
            last = "".join(f"\n  {line}" for line in self._last_words())
            raise NotReadyError(f"tritonserver was not ready in time: give it longer or read its log{last}")
