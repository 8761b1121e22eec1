"""The command `ipt-serve`: check a model repository, serve it with Triton, heal it, leave nothing behind.

ipt-serve --repository triton_models
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from ipt_triton.cli import seconds
from ipt_triton.export.serving import preflight
from ipt_triton.export.serving.errors import CheckError, InterruptedStartError, ServeError
from ipt_triton.export.serving.health import Health
from ipt_triton.export.serving.keep import MOST_RESTARTS, WINDOW_S, Keeper
from ipt_triton.export.serving.missing_engines import UNASKED_WEIGHTS
from ipt_triton.export.serving.output import output_logger
from ipt_triton.export.serving.server import GRACE_S, TritonServer
from ipt_triton.jsonlines import JsonLines, log_json

logger = logging.getLogger("ipt-serve")

_EPILOG = f"""\
examples:
  ipt-serve                                       serve triton_models on localhost, gRPC at port 8001
  ipt-serve --check                               only look whether everything is there
  ipt-serve --host 0.0.0.0 --grpc-port 9001       let other machines in
  ipt-serve --build                               build engines for this machine's GPUs first, however long it takes
  ipt-serve --grpc-port 0 --metrics-port 0 --health-port 0     any free ports; the line 'ready: ...' tells them
  ipt-serve --http-port 8000                      open Triton's HTTP port too; read SECURITY.md before
  ipt-serve --trace-url http://localhost:4318     send the traces that requests belong to, to a collector
  ipt-serve --log-format json                     for a collector of logs: each line is an object of JSON
  ipt-serve -- --log-info=true --log-verbose=1    what follows -- goes to tritonserver and wins

The server is the tritonserver on PATH (an NGC container), else the one in the wheel nvidia-pytriton.
Closed to clients: model-repository, shared-memory, trace and logging; to open some, pass your own
--http-restricted-api and --grpc-restricted-protocol after the --.

A repository for GPUs is carried without engines, or with those of other GPUs. What is missing for the GPUs at hand is
built before the start and kept in the repository; a large model's only with --build. --check tells what would be done.

http://HOST:8003/readyz answers 200 while every task restores pictures, else 503. A server that fails is started again,
on the same ports.

Told to stop, it refuses new photographs and answers those under way, for --grace seconds ({GRACE_S:.0f}) at most. Told
twice, it ends at once.

exit codes:
  0  stopped as asked (Ctrl-C, SIGTERM, SIGHUP); with --check: everything is there
  1  the server failed: engines could not be built, it did not become ready, the warm-up failed, or it was started again
     {MOST_RESTARTS} times within {WINDOW_S / 60:.0f} minutes and failed still
  2  wrong arguments, or a check failed
"""


def _port(text: str) -> int:
    port = int(text) if text.isdecimal() else -1
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port: give a number from 1 to 65535, or 0 for any free one"
        )
    return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipt-serve",
        description="Serve a model repository with a real Triton server until it is told to stop.",
        usage="ipt-serve [--repository DIR] [--host HOST] [--grpc-port N] [--metrics-port N] [--health-port N] "
        "[--http-port N] [--trace-url URL] [--log-format FORMAT] [--check] [--build | --no-build] [--timeout S] "
        "[--grace S] [-- TRITON_FLAG ...]",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repository", default="triton_models", metavar="DIR", help="model repository (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="name or IPv4 address to listen on (%(default)s)")
    parser.add_argument("--grpc-port", type=_port, default=8001, metavar="N", help="%(default)s; 0: any free one")
    parser.add_argument(
        "--metrics-port", type=_port, default=8002, metavar="N", help="of loopback; %(default)s; 0: any free one"
    )
    parser.add_argument(
        "--health-port",
        type=_port,
        default=8003,
        metavar="N",
        help="/readyz, /livez, /metrics; %(default)s; 0: any free one",
    )
    parser.add_argument("--http-port", type=_port, metavar="N", help="closed unless given; 0: any free one")
    parser.add_argument(
        "--trace-url",
        metavar="URL",
        help="http://HOST:PORT of a collector of traces, which takes OTLP over HTTP; empty: no traces",
    )
    parser.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="of all lines, tritonserver's and its models' too (%(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="only check, start nothing")
    parser.add_argument(
        "--build",
        action=argparse.BooleanOptionalAction,
        help=f"engines that the GPUs at hand lack (by itself up to {UNASKED_WEIGHTS // 10**6} million weights)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="S",
        help="seconds until ready, with the warm-up, without the build of engines (%(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=GRACE_S,
        metavar="S",
        help="seconds that photographs under way get at a stop (%(default)s); what they take longer is lost",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, see `--help`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    options = _parser().parse_args(words[:split])
    if any(word.startswith("--model-control-mode") and word != "--model-control-mode=none" for word in words[split:]):
        _parser().error("--model-control-mode: a model that is unloaded would be taken for a dead one, and healed")
    voice = _Voice(options.log_format == "json")

    server = TritonServer(
        options.repository,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        extra_args=words[split + 1 :],
        build=options.build,
        trace_url=options.trace_url or None,
    )
    for note in server.notes():
        voice.say(f"note: {note}")
    if options.check:
        problems = server.check() + preflight.check_address(options.host, {"--health-port": options.health_port})
        for problem in problems:
            voice.say(problem, logging.ERROR)
        if not problems:
            voice.answer(f"{options.repository} can be served")
        return 2 if problems else 0

    asked = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        server.interrupt()
        if asked > 1:  # the second Ctrl-C means now
            server.kill()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)

    keeper = Keeper(server, lambda line: voice.say(line, logging.WARNING))
    try:
        with contextlib.closing(_health(server, options.health_port, keeper)) as health:
            try:
                server.start(options.timeout, lambda line: voice.say(f"building: {line}"))
                if warning := server.faulty_http():
                    voice.say(f"warning: {warning}", logging.WARNING)
                names = ", ".join(task.name for task in server.tasks)
                tasks = f"{len(server.tasks)} tasks{': ' + names if names else ''}"
                keeper.begin()  # or /readyz would not agree yet with the line below
                voice.answer(f"ready: {server.addresses}, health {server.url_of(health.port)}/readyz, {tasks}")
                keeper.keep(options.timeout)
            finally:
                server.stop(options.grace)
    except CheckError as error:
        for problem in error.problems:
            voice.say(problem, logging.ERROR)
        return 2
    except InterruptedStartError:
        return 0
    except ServeError as error:
        voice.say(str(error), logging.ERROR)
        return 1
    return 0


class _Voice:
    """What the command says: on standard error, and its answers on standard output; to people, or as lines of JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        if as_json:
            log_json(level=logging.WARNING)
            logger.setLevel(logging.INFO)
        else:
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        output_logger.setLevel(logging.INFO)  # Triton's own flags decide what it writes

    def say(self, line: str, level: int = logging.INFO) -> None:
        if self._as_json:
            logger.log(level, "%s", line)
        else:
            print(f"ipt-serve: {line}", file=sys.stderr, flush=True)

    def answer(self, line: str) -> None:
        record = logging.makeLogRecord({"levelname": "INFO", "msg": line})
        print(JsonLines().format(record) if self._as_json else line, flush=True)


def _health(server: TritonServer, port: int, keeper: Keeper) -> Health:
    if problems := preflight.check_address(server.host, {"--health-port": port}):
        raise CheckError(problems)
    return Health(preflight.resolve(server.host), port, keeper.unready, server.metrics_page)


if __name__ == "__main__":
    sys.exit(main())
