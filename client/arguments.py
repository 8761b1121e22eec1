"""The arguments of `ipt-restore`, those that other commands share with it, and what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import ImageColor

from ipt_triton.cli import make_parser
from ipt_triton.client.address import DEFAULT_URL, from_environment, short_header
from ipt_triton.client.errors import InvalidAddress, InvalidRequest
from ipt_triton.client.options import Options
from ipt_triton.client.photo import FORMATS
from ipt_triton.version import installed_version

_DESCRIPTION = """Restore photos: super-resolution, denoising, deraining and more.

examples:
  one photo, twice the size:      ipt-restore photo.jpg -t sr_x2 -o restored
  with a name of its own:         ipt-restore photo.jpg -t sr_x2 -o large.jpg
  without rain, then larger:      ipt-restore photo.jpg -t derain,sr_x2 --width 4000 -o restored
  what the server offers:         ipt-restore --list-tasks --url gpu-box:8001
  by several servers:             ipt-restore holiday/ -t derain -o restored --url gpu-1:8001,gpu-2:8001 --workers 8
  a video, enlarged to Full HD:   ipt-restore clip.mp4 -t sr_x2 --height 1080 -o out.mp4
  a folder with its sub-folders:  ipt-restore holiday/ -t denoise_30 -o restored --skip-existing
  between other commands:         convert a.png ppm:- | ipt-restore - -t derain -o - --format png > b.png
  official tiling, slower:        ipt-restore photo.png -t sr_x4 -o restored --stride 12 --keep 24
  for scripts:                    ipt-restore *.png -t 0 -o out --url gpu-box:8001 --json - --workers 4
  a third of a large archive:     ipt-restore archive/ -t derain -o out --shard 1/3 --log done.jsonl --skip-existing

Without --url, and with no server at localhost:8001, it starts one of its own with the weights that come with the
package, and stops it in the end. That needs pip install 'ipt-triton[serve]'; for other weights (--weights) it is
'ipt-triton[serve,export]'.

What is not given is taken from IPT_URL, IPT_TLS, IPT_CA, IPT_CERT, IPT_KEY, IPT_TOKEN and IPT_TIMEOUT. Others can read
a command line, so a token is better there.

exit codes:
  0  every photo is restored (or was there already, with --skip-existing)
  1  some photos failed; each is named, the others are done; also when the report could not be written
  2  nothing could be done: wrong arguments, outputs in the way, or no server; also when the server goes away
  130  interrupted; finished photos are whole, no half file is left
  141  nobody reads the output any more; the same holds
"""


def make_arguments() -> argparse.ArgumentParser:
    parser = make_parser("ipt-restore", _DESCRIPTION)
    parser.add_argument(
        "photos", nargs="*", metavar="PHOTO", help="image files, videos, folders of images, patterns; - is stdin"
    )
    parser.add_argument("-t", "--task", help="name or id of a task (see --list-tasks); several: derain,sr_x2")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PLACE", help="folder for the results, a file for one photo, - for stdout"
    )
    parser.add_argument("--list-tasks", action="store_true", help="print the server's tasks and stop")
    parser.add_argument("--version", action="version", version=f"ipt-restore {installed_version()}")
    add_server(parser)
    _add_choice(parser.add_argument_group("which photos"))
    add_making(parser)
    results = parser.add_argument_group("results")
    add_files(results)
    _add_results(results)
    return parser


def add_server(parser: argparse.ArgumentParser) -> None:
    """Which server restores, and how it is reached."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "-u", "--url", help=f"HOST:PORT of the server's gRPC port, or http(s)://…; several with commas ({DEFAULT_URL})"
    )
    group.add_argument("--tls", action="store_true", default=None, help="encrypt gRPC")
    group.add_argument("--ca", metavar="PEM", help="authorities that are trusted (the usual ones)")
    group.add_argument("--cert", metavar="PEM", help="the client's certificate, for servers that ask for one")
    group.add_argument("--key", metavar="PEM", help="its key")
    group.add_argument("--header", action="append", metavar="NAME:VALUE", help="sent with each request; repeatable")
    group.add_argument("--token", help="sent as 'authorization: Bearer TOKEN'")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds a request may take (no limit)")
    group.add_argument(
        "--retries", type=int, default=6, metavar="N", help="tries again while the server is busy or away (%(default)s)"
    )
    group.add_argument("--weights", type=Path, metavar="DIR", help="start a server of our own with this checkpoint")
    group.add_argument(
        "--keep-server", type=float, default=0, metavar="MINUTES", help="for the next command, so long (%(default)s)"
    )


def _add_choice(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--files-from", metavar="FILE", help="more photos, one name a line; - is stdin")
    group.add_argument("--limit", type=int, metavar="N", help="restore no more than N")
    group.add_argument("--shard", metavar="I/N", default="1/1", help="only the I-th of N parts, from 1")
    group.add_argument("-j", "--workers", type=int, default=2, metavar="N", help="photos in flight (%(default)s)")


def add_making(parser: argparse.ArgumentParser) -> None:
    """How photos are restored."""
    group = parser.add_argument_group("how they are restored")
    group.add_argument("--scale", type=float, metavar="F", help="so many times the size, such as 2.5 (the task's own)")
    group.add_argument("--width", type=int, metavar="N", help="of the result; with --height what fits into both")
    group.add_argument("--height", type=int, metavar="N", help="of the result")
    group.add_argument("--tta", action="store_true", help="mean of eight turned and mirrored views: 8 times the work")
    group.add_argument("--strength", type=float, default=1.0, metavar="S", help="share of the result, 0 to 1 (1)")
    group = parser.add_argument_group("tiling (the server's own rule if not given)")
    group.add_argument("--stride", type=int, metavar="N", help="pixels between neighbouring tiles, 1 to KEEP")
    group.add_argument("--keep", type=int, metavar="N", help="side of each tile's centre that is used, even, 2 to 48")


STORED = ("quality", "flatten", "depth")
"""Of those of `add_files`, what decides how samples are written in a format."""


def add_files(group: argparse._ArgumentGroup) -> None:
    """How results are named and stored."""
    group.add_argument(
        "-f", "--format", choices=("same", *FORMATS), default="same", help="file format (%(default)s as the photo's)"
    )
    group.add_argument("-q", "--quality", type=int, metavar="Q", help="of JPEG, WebP and AVIF, 1 to 100")
    group.add_argument("--flatten", metavar="COLOUR", help="put transparent photos on it: white, #ffffff")
    group.add_argument("--depth", type=int, choices=(8,), help="16-bit photos in 8 bit")
    group.add_argument("--strip-metadata", action="store_true", help="keep no EXIF, XMP, IPTC, comments and times")
    group.add_argument("--suffix", default="", help="added to each file's stem: --suffix _x2 writes photo_x2.jpg")
    group.add_argument("--json", metavar="FILE", help="write a report as JSON, - for standard output")


def _add_results(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--compare", action="store_true", help="write photo_compare.png too: before and after")
    group.add_argument("--reference", type=Path, metavar="DIR", help="measure PSNR and SSIM against its images")
    there = group.add_mutually_exclusive_group()
    there.add_argument("--overwrite", action="store_true", help="replace results that exist")
    there.add_argument(
        "--skip-existing", action="store_true", help="leave results that are up to date, restore the others"
    )
    group.add_argument("--log", metavar="FILE", help="append a line of JSON for each photo as soon as it is done")


def access(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a client, but for its address."""
    return {name: getattr(args, name) for name in ("timeout", "retries", "ca", "cert", "key", "token")} | {
        "tls": bool(args.tls),
        "headers": args.header,
    }


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command with a sentence if arguments are wrong or do not fit together; read those of several parts."""
    if not args.list_tasks:
        given = {"PHOTO": args.photos or args.files_from, "--task": args.task, "--output": args.output}
        if missing := ", ".join(name for name, value in given.items() if not value):
            parser.error(f"{missing} missing; for example: ipt-restore photo.jpg --task sr_x2 --output restored")
    check_shared(parser, args)
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit {args.limit} is not allowed; give 1 or more")
    if args.reference and not args.reference.is_dir():
        parser.error(f"--reference {args.reference} is no folder")
    if list(args.photos).count("-") and args.files_from == "-":
        parser.error("standard input is a photo or a list of photos; give one of PHOTO - and --files-from -")
    _check_place(parser, "log", args.log)
    if args.json == "-" and args.output == Path("-"):
        parser.error("standard output takes the photo or the report; give --json FILE")
    args.shard = _parse_shard(parser, args.shard)


def check_shared(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """The same for the arguments of `add_server`, `add_making`, `add_files` and --workers.

    What was not given comes from the environment.
    """
    try:
        for name, value in from_environment().items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        args.header = dict(map(short_header, args.header or ()))
    except InvalidAddress as error:
        parser.error(str(error))
    if "/" in args.suffix or "\\" in args.suffix:
        parser.error(f"--suffix {args.suffix!r} is part of a file's name and must not hold a slash")
    for name, lowest in (("workers", 1), ("retries", 0)):
        value = getattr(args, name)
        if value < lowest:
            parser.error(f"--{name} {value} is not allowed; give {lowest} or more")
    if args.timeout is not None and not args.timeout > 0:
        parser.error(f"--timeout {args.timeout:g} is not allowed; give seconds above 0, or leave it out")
    try:
        args.options = Options(args.scale, args.width, args.height, args.tta, args.strength)
    except InvalidRequest as error:
        parser.error(f"{error}")
    if args.quality is not None and not 1 <= args.quality <= 100:
        parser.error(f"--quality {args.quality} is not allowed; give 1 to 100")
    if not 0 <= args.keep_server < 1e6:
        parser.error(f"--keep-server {args.keep_server:g} is not allowed; give minutes, 0 or more")
    if args.weights and args.url:
        parser.error("--weights is for a server of our own; leave --url and IPT_URL out")
    if args.url and args.keep_server:
        parser.error("--keep-server is for a server of our own; leave --url and IPT_URL out")
    _check_place(parser, "json", args.json)
    args.flatten = _parse_colour(parser, args.flatten)


def _check_place(parser: argparse.ArgumentParser, name: str, place: str | None) -> None:
    if place in (None, "-"):
        return
    if not Path(place).parent.is_dir():
        parser.error(f"--{name} {place}: there is no folder {Path(place).parent}")
    if Path(place).is_dir():
        parser.error(f"--{name} {place} is a folder; give a file")


def _parse_shard(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    first, slash, second = text.partition("/")
    if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    parser.error(f"--shard {text} is not allowed; give I/N with I from 1 to N")


def _parse_colour(parser: argparse.ArgumentParser, text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        parser.error(f"--flatten {text!r} is no colour; give a name such as white, or #ffffff")
    return red, green, blue
