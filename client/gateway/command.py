"""The command `ipt-gateway`: pictures in, pictures out over HTTP, in front of a running server.

examples:
  ipt-gateway                                  http://127.0.0.1:8080, in front of localhost:8001
  ipt-gateway --url gpu-1:8001,gpu-2:8001      several servers
  ipt-gateway new-key alice >> keys.txt        a key for Alice, on standard error; its hash into the file
  ipt-gateway --host 0.0.0.0 --keys keys.txt   for other machines, with keys
  ipt-gateway --port 0                         any free port; the line 'page: ...' tells it

Without --url the server is the one of IPT_URL; IPT_TLS, IPT_CA, IPT_CERT, IPT_KEY and IPT_TOKEN tell how it is reached.

Keys come from --keys and from IPT_GATEWAY_KEYS, which holds such lines with ';' between. The file is read again when it
changes. Without keys everybody who reaches the port may use the gateway, so it then listens on loopback alone, unless
--without-keys is given. /metrics needs a key too, where there are any.

Traces go to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, such as http://localhost:4318, over HTTP, with the
extra `telemetry`; OpenTelemetry's other variables hold too.

Told to stop, it takes no new photos, and finishes what is under way for --grace seconds at most; jobs that take longer
are begun again by the next gateway with the same folder. Told twice, it ends at once.

exit codes:
  0  stopped as asked (Ctrl-C, SIGTERM)
  1  the gateway failed
  2  wrong arguments, no such address, or a folder or file that cannot be used
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from ipt_triton.cli import make_parser, run_command, seconds
from ipt_triton.client.address import DEFAULT_URL, from_environment, parse_addresses
from ipt_triton.client.asynchronous import AsyncRestorationClient
from ipt_triton.client.errors import RestorationError
from ipt_triton.client.gateway.app import build_app
from ipt_triton.client.gateway.ending import GRACE_S
from ipt_triton.client.gateway.journal import log_requests
from ipt_triton.client.gateway.keys import Keys, new_key
from ipt_triton.client.gateway.serving import is_loopback, listen, make_server
from ipt_triton.client.gateway.settings import Settings
from ipt_triton.client.gateway.spans import tracing
from ipt_triton.client.gateway.spool import Spool

_GIB = 2**30


class NotAllowed(RestorationError):
    """Arguments that would open the gateway further than was meant."""

    status = 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["new-key"]:
        return _new_key(words[1:])
    args = _parser().parse_args(words)
    return run_command(lambda: _serve(args))


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = make_parser("ipt-gateway", __doc__ or "")
    parser.add_argument(
        "-u", "--url", help=f"HOST:PORT of the server's gRPC port, or http(s)://…; several with commas ({DEFAULT_URL})"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="%(default)s; 0: any free one")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="hashes of the callers' keys, see new-key")
    parser.add_argument(
        "--without-keys", action="store_true", help="let anybody who reaches the address use the gateway"
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="pages that may call, https://example.org; repeat"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help=f"for jobs and their files ({default.folder})")
    parser.add_argument(
        "--grace",
        type=seconds,
        default=GRACE_S,
        metavar="S",
        help="seconds that requests and jobs under way get at a stop (%(default)s)",
    )
    limits = parser.add_argument_group("limits")
    for flag, name, unit, what in _LIMITS:
        shown = getattr(default, name) / _UNITS.get(unit, 1)
        limits.add_argument(flag, type=_positive, dest=name, metavar=unit, help=f"{what} ({shown:g})", default=None)
    return parser


_LIMITS = (
    ("--max-upload", "max_upload_bytes", "MiB", "of a file"),
    ("--max-megapixels", "max_pixels", "MP", "of a photo"),
    ("--max-result", "max_output_pixels", "MP", "of a restored photo"),
    ("--timeout", "restore_s", "S", "seconds for /v1/restore"),
    ("--retention", "retention_s", "S", "seconds that jobs are kept"),
    ("--disk", "disk_bytes", "GiB", "of the folder"),
    ("--workers", "workers", "N", "processes that decode and encode"),
    ("--worker-memory", "worker_bytes", "GiB", "of each"),
    ("--slots", "slots", "N", "photos at the same time"),
    ("--requests", "requests", "N", "requests and jobs of one caller at the same time"),
    ("--megapixels", "megapixels", "N", "megapixels of one caller at the same time"),
)
_UNITS = {"MiB": 2**20, "GiB": _GIB, "MP": 10**6}


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give a number above 0")
    return value


def _settings(args: argparse.Namespace) -> Settings:
    settings = Settings(keys_file=args.keys, origins=tuple(args.cors))
    if args.folder:
        settings = replace(settings, folder=args.folder)
    whole = {field.name for field in fields(Settings) if field.type == "int"}
    for _, name, unit, _ in _LIMITS:
        if (given := getattr(args, name)) is not None:
            value = given * _UNITS.get(unit, 1)
            settings = replace(settings, **{name: max(1, round(value)) if name in whole else value})
    return settings


def _serve(args: argparse.Namespace) -> int:
    settings = _settings(args)
    keys = Keys(settings)
    if not is_loopback(args.host) and not keys.required and not args.without_keys:
        raise NotAllowed(
            f"--host {args.host} would let other machines in without keys; give --keys FILE, or say --without-keys"
        )
    server_of = {**from_environment(), **({"url": args.url} if args.url else {})}
    parse_addresses(server_of.get("url", DEFAULT_URL))
    log_requests()
    with tracing(), Spool(settings.folder, settings.disk_bytes) as spool, listen(args.host, args.port) as place:
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"page: http://{host}:{place.getsockname()[1]}/", flush=True)
        app = build_app(settings, partial(AsyncRestorationClient, **server_of), keys, spool)
        server = make_server(app, args.grace)
        server.run(sockets=[place])
        return 0 if server.started else 1


def _new_key(words: Sequence[str]) -> int:
    """Make a key: its line on standard output, for the file, and the key itself on standard error, for its owner."""
    parser = argparse.ArgumentParser(prog="ipt-gateway new-key", description=(_new_key.__doc__ or "").strip())
    parser.add_argument("name", help="whose it is, for the log")
    secret, line = new_key(parser.parse_args(words).name)
    print(line)
    print(secret, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
