"""What `ipt-restore` itself costs: CPU time beside the served time, memory for large pictures, plans of many files.

    ipt-benchmark client --checkpoint weights/ipt-tiny --precision bf16
    ipt-benchmark client --checkpoint weights/ipt-tiny --only memory --megapixels 100 300 --json build/client.json

CPU: batches of JPEGs of 512x512 go through the command, as a process of its own, a smaller and a larger one. What the
larger takes more, for each photograph that it has more, is the cost of a photograph: user and system time, and beside
it the time that passes, for which the server is busy all the while. The rest of the smaller is the command's start. Its
output is no terminal, so it draws no progress.

Memory: a large PNG becomes a PNG, in blocks of messages as large as usual, and whole. A throw-away network marks each
pixel with its place in the patch that it came from, so two files of the same bytes were cut alike.
The peak is that of the command's process when it sends blocks.

Planning: a folder of small photographs, hard links to a few. First the time from the command's start until one result
is there; then, where all results are there but the last one, the time until that one is there too, for which every
photograph and result is looked at.
"""

from __future__ import annotations

import argparse
import filecmp
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
from PIL import Image

from ipt_triton import RestorationClient
from ipt_triton.benchmarks.errors import LoadError
from ipt_triton.benchmarks.presentation import Figure, figure, quartiles, table
from ipt_triton.benchmarks.record import Record, Spread, command_line, run_benchmark
from ipt_triton.benchmarks.served import add_precision, add_source, photograph, serving, source_of
from ipt_triton.benchmarks.serving.memory import MIB
from ipt_triton.benchmarks.serving.router import null_server
from ipt_triton.client import protocol, restore
from ipt_triton.client.photo import MAX_PIXELS
from ipt_triton.client.protocol import GRPC_BYTES, MESSAGE_BYTES, Restoration
from ipt_triton.export.repository.configs import ServingOptions
from ipt_triton.export.serving.server import TritonServer
from ipt_triton.service import MAX_BATCH
from ipt_triton.tasks import OFFICIAL_TASKS

SIDE, QUALITY, WORKERS = 512, 92, 2
DERAIN = OFFICIAL_TASKS[3]
NOTHING_MEGAPIXELS = 0.01
"""Of a picture that takes no memory to speak of: the command's own."""
PARTS = ("cpu", "memory", "planning")
_LOOK_S = 0.02
_COMMAND = """
import sys
from ipt_triton.client import protocol, restore
protocol.MESSAGE_BYTES = {}
sys.exit(restore.main())
"""
_LINKS = 50_000
"""To one file; ext4 takes 65 000."""


@dataclass(frozen=True)
class Cost:
    """What a run of the command took: CPU time and time that passed in seconds, and its peak resident size in bytes."""

    cpu_s: float
    wall_s: float
    peak: int


def run_command(
    url: str, *arguments: object, until: Callable[[], bool] | None = None, message_bytes: int = MESSAGE_BYTES
) -> Cost:
    """Run `ipt-restore` in a process of its own.

    Args:
        message_bytes: see `client.protocol`.
        until: interrupts the command when it is true, and ends the time.

    Raises:
        LoadError: it failed.
    """
    words = [sys.executable, "-c", _COMMAND.format(message_bytes), *map(str, arguments), "--url", url]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=told)
        peak, reached = 0, 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _peak(process.pid))
            if until is not None and not reached and until():
                reached = time.perf_counter() - started
                process.send_signal(signal.SIGINT)
            time.sleep(_LOOK_S)
        wall = reached or time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (restore.INTERRUPTED if reached else restore.DONE):
            told.seek(0)
            raise LoadError(f"ipt-restore ended with {process.returncode}: {told.read().decode(errors='replace')}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, peak)


def _peak(pid: int) -> int:
    """Peak resident size of a process in bytes; what `wait4` tells counts the process that it was forked from."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)


def write_photographs(folder: Path, number: int) -> Path:
    """A folder of JPEGs, the same photograph shifted by a pixel each."""
    folder.mkdir()
    image = photograph(SIDE, SIDE)
    for shift in range(number):
        Image.fromarray(np.roll(image, shift, 1)).save(folder / f"{shift}.jpg", quality=QUALITY)
    return folder


def measure_cpu(server: TritonServer, task: str, photos: tuple[int, int], runs: int) -> dict[str, Any]:
    """Seconds for a photograph: CPU time of command and server, and time that passes; and CPU time of the start."""
    fewer, more = photos
    cpu, served, wall, start = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folders = [write_photographs(Path(name) / str(number), number) for number in photos]
        for _ in range(runs):
            costs, server_cpu = [], [server_seconds(server)]
            for folder in folders:
                out = Path(name) / "out"
                costs.append(run_command(server.grpc_url, folder, "-t", task, "-o", out, "-j", WORKERS, "--overwrite"))
                server_cpu.append(server_seconds(server))
            few, many = costs
            cpu.append((many.cpu_s - few.cpu_s) / (more - fewer))
            wall.append((many.wall_s - few.wall_s) / (more - fewer))
            served.append((server_cpu[2] - 2 * server_cpu[1] + server_cpu[0]) / (more - fewer))
            start.append(few.cpu_s - fewer * cpu[-1])
    measured = {"cpu_s": cpu, "server_cpu_s": served, "wall_s": wall, "start_s": start}
    measured["share"] = [used / passed for used, passed in zip(cpu, wall, strict=True)]
    return {"task": task, **{name: asdict(Spread.of(values)) for name, values in measured.items()}}


def server_seconds(server: TritonServer) -> float:
    """CPU time of a server's processes so far."""
    times = [psutil.Process(pid).cpu_times() for pid in server.pids]
    return sum(each.user + each.system for each in times)


def measure_memory(megapixels: Sequence[float], message_bytes: int) -> list[dict[str, Any]]:
    """Peak memory of the command for pictures of so many megapixels, and whether blocks made another picture."""
    with tempfile.TemporaryDirectory() as name:
        sources = [_write_large(Path(name), each) for each in (NOTHING_MEGAPIXELS, *megapixels)]
        in_blocks = _restore_large(sources, message_bytes, "blocks")
        at_once = _restore_large(sources, GRPC_BYTES, "whole")
        return [
            {
                "megapixels": width * height / 1e6,
                "file_mib": source.stat().st_size / MIB,
                "result_mib": result.stat().st_size / MIB,
                "blocks": [parts, other_parts],
                "seconds": cost.wall_s,
                "peak_mib": cost.peak / MIB,
                "identical": filecmp.cmp(result, other, shallow=False),
            }
            for (source, width, height), (result, parts, cost), (other, other_parts, _) in zip(
                sources, in_blocks, at_once, strict=True
            )
        ]


def _write_large(folder: Path, megapixels: float) -> tuple[Path, int, int]:
    """A photograph of so many megapixels as a PNG, and its width and height."""
    height = round(math.sqrt(megapixels * 1e6 * 3 / 4))
    width = height * 4 // 3
    path = folder / f"{megapixels:g}.png"
    Image.fromarray(photograph(width, height)).save(path, compress_level=1)
    return path, width, height


def _restore_large(
    sources: Sequence[tuple[Path, int, int]], message_bytes: int, suffix: str
) -> list[tuple[Path, int, Cost]]:
    """Each picture through a server: its result, the blocks that it went in, and what that cost."""
    made = []
    options = ServingOptions(max_input_pixels=MAX_PIXELS, max_output_pixels=MAX_PIXELS)
    with null_server([DERAIN], MAX_BATCH, options, marks=True) as server:
        with RestorationClient(server.grpc_url) as client:
            info = client.info()
        for source, width, height in sources:
            result = source.with_name(f"{source.stem}_{suffix}.png")
            picture = np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))
            with patch.object(protocol, "MESSAGE_BYTES", message_bytes):
                parts = len(Restoration(info, picture, DERAIN.name, None, None).parts)
            arguments = (source, "-t", DERAIN.name, "-o", result)
            cost = run_command(server.grpc_url, *arguments, message_bytes=message_bytes)
            made.append((result, parts, cost))
            print(f"{source.stem} megapixels in {parts} blocks: {cost}", file=sys.stderr)
    return made


def measure_planning(files: int) -> dict[str, Any]:
    """Seconds to the first result of so many photographs, and to the last where the others are there; with peaks.

    Raises:
        LoadError: a result is missing.
    """
    with tempfile.TemporaryDirectory() as name, null_server([DERAIN], MAX_BATCH) as server:
        photos, results = Path(name) / "in", Path(name) / "out"
        names = [f"{number:08}.jpg" for number in range(files)]
        photos.mkdir()
        Image.fromarray(photograph(64, 64)).save(photos / names[0])
        _fill(photos, names)
        arguments = (photos, "-t", DERAIN.name, "-o", results, "--skip-existing")
        first = run_command(server.grpc_url, *arguments, until=(results / names[0]).exists)
        _fill(results, names[:-1])
        every = run_command(server.grpc_url, *arguments)
        if not (results / names[-1]).exists():
            raise LoadError(f"of {files} photographs the last one was not restored")
    return {
        "files": files,
        "first_s": first.wall_s,
        "first_peak_mib": first.peak / MIB,
        "every_s": every.wall_s,
        "every_peak_mib": every.peak / MIB,
    }


def _fill(folder: Path, names: Sequence[str]) -> None:
    """Give a folder files of these names, all the same as the first, which is there."""
    data, time_ns = (folder / names[0]).read_bytes(), (folder / names[0]).stat().st_mtime_ns
    for number, name in enumerate(names):
        path = folder / name
        if number % _LINKS == 0:
            original = path
            path.write_bytes(data)
            os.utime(path, ns=(time_ns, time_ns))
        elif not path.exists():
            os.link(original, path)


def bytes_a_pixel(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> float:
    """What a picture takes more than the smallest one, for each pixel that it has more."""
    more = (row["peak_mib"] - rows[0]["peak_mib"]) * MIB
    return float(more / (row["megapixels"] - rows[0]["megapixels"]) / 1e6)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a record: CPU time, memory, or both."""
    figures: dict[str, Any] = {}
    if arguments.only in (None, "cpu"):
        name, checkpoint = source_of(arguments)
        with serving([checkpoint], arguments.precision) as served:
            rows = []
            for task in arguments.tasks.split(","):
                rows.append(measure_cpu(served.server, task, tuple(arguments.photos), arguments.runs))
                print(f"{task}: {rows[-1]}", file=sys.stderr)
        figures["cpu"] = {"model": name, "precision": arguments.precision, "photos": arguments.photos, "rows": rows}
    if arguments.only in (None, "memory"):
        figures["memory"] = {
            "message_mib": arguments.message_mib,
            "rows": measure_memory(arguments.megapixels, round(arguments.message_mib * MIB)),
        }
    if arguments.only in (None, "planning"):
        figures["planning"] = measure_planning(arguments.files)
    return figures


def markdown(record: Record) -> str:
    """Tables for CPU time and memory, and a sentence for planning, as far as they were measured."""
    cpu, memory, planning = (record.figures.get(part) for part in PARTS)
    parts = []
    if cpu:
        fewer, more = cpu["photos"]
        rows = [
            (
                row["task"],
                quartiles(row["cpu_s"], ".1f", 1000),
                quartiles(row["server_cpu_s"], ".0f", 1000),
                quartiles(row["wall_s"], ".0f", 1000),
                quartiles(row["share"], ".2f", 100),
                quartiles(row["start_s"], ".2f"),
                row["share"]["runs"],
            )
            for row in cpu["rows"]
        ]
        header = ("task", "CPU, ms", "server's CPU, ms", "served in, ms", "share, %", "CPU of the start, s", "runs")
        parts.append(
            f"JPEGs of {SIDE}x{SIDE} through `ipt-restore --workers {WORKERS}` to `{cpu['model']}` in "
            f"{cpu['precision']} on the same cores, for each photograph; {more} of them against {fewer}.\n\n"
            + table(header, rows)
        )
    if memory:
        lines = [
            (
                f"{row['megapixels']:.2f}",
                f"{row['file_mib']:.0f}",
                f"{row['result_mib']:.0f}",
                row["blocks"][0],
                f"{row['seconds']:.0f}",
                f"{row['peak_mib']:.0f}",
                f"{bytes_a_pixel(memory['rows'], row):.1f}" if row is not memory["rows"][0] else "–",
                f"{'the same bytes' if row['identical'] else 'ANOTHER FILE'} as in {row['blocks'][1]}",
            )
            for row in memory["rows"]
        ]
        names = ("megapixels", "file, MiB", "result, MiB", "blocks", "seconds", "peak, MiB", "bytes a pixel", "result")
        parts.append(
            f"PNGs through `ipt-restore` to a network that only marks pixels, in blocks of "
            f"{memory['message_mib']:g} MiB with their answers at most: peak resident size of the command.\n\n"
            + table(names, lines)
        )
    if planning:
        parts.append(
            f"A folder of {planning['files']} photographs: the first result {planning['first_s']:.2f} s after the "
            f"command, {planning['first_peak_mib']:.0f} MiB at its peak. Where all results are there but the last, "
            f"that one after {planning['every_s']:.0f} s, {planning['every_peak_mib']:.0f} MiB at its peak."
        )
    return "\n\n".join(parts)


def draw(record: Record) -> Figure:
    """Share of the served time by task, peak memory by size, and peak memory while planning."""
    cpu, memory, planning = (record.figures.get(part) for part in PARTS)
    number = len(record.figures)
    drawn, grid = figure(4.5 * number, 3.6, ncols=number, squeeze=False)
    axes = iter(grid.flat)
    if cpu:
        ax = next(axes)
        ax.bar([row["task"] for row in cpu["rows"]], [100 * row["share"]["median"] for row in cpu["rows"]], 0.6)
        ax.set(ylabel="CPU of the command, % of the served time", title=f"JPEGs of {SIDE}x{SIDE}", ylim=(0, None))
    if memory:
        ax, rows = next(axes), memory["rows"]
        ax.plot([row["megapixels"] for row in rows], [row["peak_mib"] for row in rows], "o-")
        ax.set(xlabel="megapixels", ylabel="peak of the command, MiB", title="PNG to PNG", ylim=(0, None))
    if planning:
        ax = next(axes)
        ax.bar(["first result", "all looked at"], [planning["first_peak_mib"], planning["every_peak_mib"]], 0.6)
        ax.set(ylabel="peak of the command, MiB", title=f"A folder of {planning['files']} photographs")
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 done, 1 failed, 2 wrong arguments."""
    parser = command_line("client", __doc__)
    add_source(parser)
    add_precision(parser)
    default = "(default %(default)s)"
    parser.add_argument("--tasks", default="derain,denoise_30,sr_x2", help=default)
    parser.add_argument("--photos", type=int, nargs=2, default=[20, 60], metavar="N", help=f"of the batches {default}")
    parser.add_argument("--runs", type=int, default=1, help=f"of each pair of batches {default}")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[100, 300], metavar="N", help=default)
    parser.add_argument(
        "--message-mib",
        type=float,
        default=MESSAGE_BYTES / MIB,
        metavar="N",
        help=f"of a block and its answer {default}",
    )
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help=f"of a folder {default}")
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args(argv)
    if not 0 < arguments.photos[0] < arguments.photos[1] or min(arguments.runs, *arguments.megapixels) <= 0:
        parser.error("--photos takes two numbers, the larger one last; --runs and --megapixels take numbers above 0")
    if arguments.files < 2:
        parser.error(f"--files {arguments.files} is not allowed; give 2 or more")
    if max(arguments.megapixels) * 1e6 > MAX_PIXELS:
        parser.error(
            f"--megapixels {max(arguments.megapixels):g} is not allowed; a picture has {MAX_PIXELS} pixels at most"
        )
    packages = ("numpy", "openvino", "nvidia-pytriton", "tritonclient", "pillow", "psutil")
    return run_benchmark("client", argv, arguments, measure, markdown, draw, packages)
