"""What a proxy costs: the same load straight to `ipt-serve`, through nginx, and through Envoy with TLS and a key.

    ipt-benchmark proxies
    ipt-benchmark proxies --precision bf16 --sizes 128x128 --rounds 5 --json build/proxies.json

nginx and Envoy run with the files of `deploy/proxy`, in which addresses, ports and folders alone are others. A closed
loop keeps --concurrency photographs under way, first without a proxy, then through one and the other; each way is
measured for --seconds in each round. What a proxy leaves of the throughput is the median of the rounds' ratios, so that
a machine that gets slower counts for all. Load, proxies and server share the machine's cores. The server has one task.

It wants nginx, openssl and Envoy on the path, or in build/tools.

Exit codes: 0 measured; 1 a program is missing, or failed; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import BenchmarkError
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import ROOT, Record, Spread, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_precision, of_one_task, photograph
from ipt_triton.benchmarks.serving.load import ClosedLoop, Request, Window, latency_ms, open_channel, restore_request
from ipt_triton.benchmarks.serving.replica import Replica
from ipt_triton.benchmarks.serving.throughput import positive, size
from ipt_triton.export.parts.split import export_parts
from ipt_triton.export.repository.write import ServingOptions, write_repository
from ipt_triton.export.serving.preflight import LOOPBACK, free_ports
from ipt_triton.train.model.checkpoint import load_checkpoint

TASK, WARM_UP_S, START_S = "sr_x2", 1.0, 30.0
FILES = ROOT / "deploy" / "proxy"
WAYS = ("direct", "nginx", "Envoy")


@dataclass(frozen=True)
class Way:
    """HOST:PORT to send photographs to, and what TLS and a key need there."""

    url: str
    credentials: grpc.ChannelCredentials | None = None


def program(name: str) -> str:
    """The path of a program. Raises BenchmarkError: it is not there."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", f"{ROOT}/build/tools"]))
    if found is None:
        raise BenchmarkError(f"{name} is missing; install it, or put it into build/tools")
    return found


def changed(text: str, changes: dict[str, str]) -> str:
    """A configuration with other words in some places, each of which must be there."""
    for theirs, ours in changes.items():
        if theirs not in text:
            raise BenchmarkError(f"deploy/proxy has no {theirs!r} any more")
        text = text.replace(theirs, ours)
    return text


@contextmanager
def running(words: Sequence[str], log: Path, way: Way) -> Iterator[Way]:
    """A proxy, once it takes connections; ended with the block."""
    with log.open("wb") as written, subprocess.Popen(words, stdout=written, stderr=written) as process:
        try:
            with open_channel(way.url, way.credentials) as channel:
                try:
                    grpc.channel_ready_future(channel).result(START_S)
                except grpc.FutureTimeoutError:
                    said = "\n  ".join(log.read_text(errors="replace").splitlines()[-4:])
                    raise BenchmarkError(f"{words[0]} takes no connection; it last said\n  {said}") from None
            yield way
        finally:
            process.terminate()


@contextmanager
def nginx(folder: Path, replica: Replica) -> Iterator[Way]:
    """nginx in front of a server."""
    folder.mkdir()
    (port,) = free_ports(LOOPBACK, 1)
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"    {name}_temp_path {folder / name};\n" for name in temporary)
    text = changed(
        (FILES / "nginx.conf").read_text(),
        {
            "http {\n": f"http {{\n{own}",
            "listen 8081 ": f"listen {LOOPBACK}:{port} ",
            "server 127.0.0.1:8001 ": f"server {replica.url} ",
            "        server 127.0.0.1:9001 max_fails=1 fail_timeout=5s;\n": "",
            "/run/": f"{folder}/",
            "/var/log/nginx/": f"{folder}/",
        },
    )
    (folder / "nginx.conf").write_text(text)
    user = "user root; " if os.geteuid() == 0 else ""  # its workers would not be let into the folder
    files = ["-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    words = [program("nginx"), *files, "-g", f"{user}daemon off;"]
    with running(words, folder / "log", Way(f"{LOOPBACK}:{port}")) as way:
        yield way


@contextmanager
def envoy(folder: Path, replica: Replica) -> Iterator[Way]:
    """Envoy in front of a server, with a certificate and a key of its own."""
    tls = folder / "tls" / "current"
    tls.mkdir(parents=True)
    (port,) = free_ports(LOOPBACK, 1)
    new_key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=benchmark"
    words = [program("openssl"), *new_key.split(), "-addext", f"subjectAltName=IP:{LOOPBACK}"]
    subprocess.run([*words, "-keyout", tls / "server.key", "-out", tls / "server.crt"], check=True, capture_output=True)
    key = secrets.token_urlsafe(32)
    caller = (
        "          caller:\n            permissions: [{ any: true }]\n            principals: [{ header: "
        f'{{ name: authorization, string_match: {{ exact: "Bearer {key}" }} }} }}]\n'
    )
    text = (FILES / "envoy.yaml").read_text()
    first, _, rest = text.partition("              - endpoint: # one more\n")
    text = changed(
        first + rest.partition("9003 }\n")[2],
        {
            "0.0.0.0, port_value: 8443": f"{LOOPBACK}, port_value: {port}",
            "port_value: 8001": f"port_value: {replica.ports['grpc']}",
            "port_value: 8003": f"port_value: {replica.ports['health']}",
        },
    )
    keys = changed((FILES / "envoy-keys.yaml").read_text(), {"        policies:\n": f"        policies:\n{caller}"})
    certificate = (FILES / "envoy-certificate.yaml").read_text()
    for name, content in (("envoy", text), ("envoy-keys", keys), ("envoy-certificate", certificate)):
        (folder / f"{name}.yaml").write_text(content.replace("/etc/envoy/ipt", str(folder)))
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials((tls / "server.crt").read_bytes()), grpc.access_token_call_credentials(key)
    )
    words = [program("envoy"), "--disable-hot-restart", "-l", "warning", "-c", str(folder / "envoy.yaml")]
    with running(words, folder / "log", Way(f"{LOOPBACK}:{port}", credentials)) as way:
        yield way


def versions() -> dict[str, str]:
    """Of both proxies, as they say themselves."""
    said = {"nginx": [program("nginx"), "-v"], "Envoy": [program("envoy"), "--version"]}
    found = {}
    for name, words in said.items():
        result = subprocess.run(words, capture_output=True, text=True, check=True)
        number = re.search(r"/(\d+\.\d+\.\d+)", result.stdout + result.stderr)
        found[name] = number[1] if number else "unknown"
    return found


def measure_size(ways: dict[str, Way], request: Request, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rates, ratios to the direct way and latencies with photographs of one size."""
    windows: dict[str, list[Window]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name in [*WAYS[number % 3 :], *WAYS[: number % 3]]:  # each is first in its turn
            way = ways[name]
            with ClosedLoop(way.url, [request], arguments.concurrency, way.credentials) as loop:
                loop.warm_up(WARM_UP_S)
                windows[name].append(loop.window(arguments.seconds))
            print(f"{name}: {windows[name][-1].rate:.3f} photos/s", file=sys.stderr)
    rates = {name: [window.rate for window in of_way] for name, of_way in windows.items()}
    ratios = {
        name: [rate / direct for rate, direct in zip(rates[name], rates["direct"], strict=True)] for name in WAYS[1:]
    }
    return {
        "photos_per_s": {name: asdict(Spread.of(values)) for name, values in rates.items()},
        "of_direct": {name: asdict(Spread.of(values)) for name, values in ratios.items()},
        "latency_ms": {name: latency_ms(of_way) for name, of_way in windows.items()},
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record."""
    checkpoint = of_one_task(load_checkpoint(arguments.checkpoint), TASK)  # nothing but the load: no heartbeats
    rows = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        manifest = export_parts([checkpoint], folder / "parts", arguments.precision)
        write_repository(folder / "parts", manifest, folder / "models", ServingOptions())
        replica = Replica(folder / "models", folder / "server")
        stack.callback(replica.end)
        replica.await_ready()
        ways = {
            "direct": Way(replica.url),
            "nginx": stack.enter_context(nginx(folder / "nginx", replica)),
            "Envoy": stack.enter_context(envoy(folder / "envoy", replica)),
        }
        with RestorationClient(replica.url) as client:
            info = client.info()
        for width, height in arguments.sizes:
            request = restore_request(info, info.task(TASK), photograph(width, height))
            rows.append({"size": [width, height], **measure_size(ways, request, arguments)})
    return {
        "model": arguments.checkpoint.name,
        "precision": arguments.precision,
        "concurrency": arguments.concurrency,
        "proxies": versions(),
        "sizes": rows,
    }


def markdown(record: Record) -> str:
    """A table of all sizes and ways."""
    figures = record.figures
    named = {name: f"{name} {number}" for name, number in figures["proxies"].items()}
    rows = []
    for row in figures["sizes"]:
        for name in WAYS:
            share = quartiles(row["of_direct"][name], ".3f") if name in row["of_direct"] else ""
            latencies = row["latency_ms"][name]
            rate = quartiles(row["photos_per_s"][name], ".3f")
            shown = named.get(name, name) + (", TLS and a key" if name == "Envoy" else "")
            size_of = "x".join(map(str, row["size"]))
            rows.append((size_of, shown, rate, share, f"{latencies['p50']:.0f}", f"{latencies['p95']:.0f}"))
    header = ("photograph", "way", "photos/s", "of direct", "ms, median", "ms, 95 %")
    title = f"**{figures['model']}, {figures['precision']}, {TASK}, {figures['concurrency']} under way**"
    return f"{title}\n\n{table(header, rows)}"


def draw(record: Record) -> Figure:
    """What each proxy leaves of the throughput."""
    drawn, axes = figure(7, 3.2, ncols=len(record.figures["sizes"]), squeeze=False)
    for ax, row in zip(axes[0], record.figures["sizes"], strict=True):
        spreads = [row["of_direct"][name] for name in WAYS[1:]]
        ax.bar(WAYS[1:], [spread["median"] for spread in spreads], 0.6)
        ax.axhline(1, color="black", linewidth=1)
        ax.set_title("x".join(map(str, row["size"])))
        ax.set_ylabel("photos/s, of direct")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = command_line("proxies", __doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("weights/ipt-tiny"), help="(default %(default)s)")
    add_precision(parser)
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(128, 128), (512, 512)], metavar="WxH", help="(128x128 512x512)"
    )
    parser.add_argument("--concurrency", type=positive(int), default=4, help="under way (default %(default)s)")
    parser.add_argument("--rounds", type=positive(int), default=7, help="(default %(default)s)")
    parser.add_argument("--seconds", type=positive(float), default=15.0, help="of each way (default %(default)s)")
    arguments = parser.parse_args(argv)
    return run_benchmark("proxies", argv, arguments, measure, markdown, draw, ("nvidia-pytriton", "tritonclient"))


if __name__ == "__main__":
    sys.exit(main())
