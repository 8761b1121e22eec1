"""Twenty photos through two servers that are stopped and killed meanwhile: all come out, as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import copytree
from urllib.request import urlopen

import pytest
from helpers.nginx import for_servers, free_port, needs_nginx, nginx
from helpers.serve import Command, named, until
from helpers.support import Served, read_image
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "client" / "restore.py"
STUB = "triton_python_backend_stub"
PHOTOS = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, name in zip(range(PHOTOS), 4 * ["colosseum", "dog", "kitten", "parrot", "skyline"], strict=True):
        top = 8 * number
        Image.fromarray(read_image(name)[top : top + 200, 40:280]).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def undisturbed(served: Served, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What becomes of the photos where nothing happens."""
    restored = restore(photos, tmp_path_factory.mktemp("undisturbed"), served.server.grpc_url)
    assert len(restored) == PHOTOS
    return restored


@pytest.fixture
def servers(served: Served, tmp_path: Path) -> Iterator[list[Command]]:
    """Two `ipt-serve` with the same models, which are stopped in the end, and leave nothing."""
    commands = [Command(copytree(served.repository, tmp_path / name / "models")) for name in ("first", "second")]
    try:
        for command in commands:
            command.ready()
        yield commands
    finally:
        for command in commands:
            command.process.terminate()
        for command in commands:
            assert command.process.wait(60) == 0, command.output
            assert command.left() == []


def restore(photos: Path, output: Path, url: str, meanwhile: Sequence[Callable[[], None]] = ()) -> dict[str, bytes]:
    """What `ipt-restore` makes of the photos.

    Args:
        meanwhile: things to do, the first after two photos, each after two photos more.
    """
    patient = ("--retries", "40")  # a busy machine starts a server slowly
    words = [SCRIPT, photos, "-t", "sr_x2", "-o", output, "--url", url, "--workers", "4", *patient]
    with subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for happen in meanwhile:
            assert process.stdout.readline() and process.stdout.readline()
            happen()
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    return {path.name: path.read_bytes() for path in output.iterdir()}


def kill(server: Command, model: str) -> None:
    """End a process of a model without a word, as soon as the server serves."""

    def serves() -> bool:
        try:
            return bool(urlopen(server.address("health"), timeout=2).status == 200)
        except OSError:
            return False

    until(serves, 180, "serving again")
    processes = [stub for stub in named(server.refresh(), STUB) if f"/{model}/" in command_line(stub)]
    os.kill(processes[0], signal.SIGKILL)


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it has just ended
        return ""


@pytest.mark.parametrize(
    "proxy", [pytest.param(True, marks=needs_nginx, id="behind nginx"), pytest.param(False, id="listed")]
)
def test_all_photos_come_out_as_if_nothing_had_happened(
    proxy: bool, photos: Path, undisturbed: dict[str, bytes], servers: list[Command], tmp_path: Path
) -> None:
    first, second = servers
    addresses = [server.address("grpc") for server in servers]
    faults = (
        lambda: kill(first, "restore"),  # a router
        second.process.terminate,  # as an orchestrator does
        lambda: kill(first, "body"),
    )
    with ExitStack() as stack:
        url = ",".join(addresses)
        if proxy:
            port, folder = free_port(), tmp_path / "nginx"
            url = f"127.0.0.1:{port}"
            stack.enter_context(nginx(folder, for_servers(folder, port, addresses)))
        assert restore(photos, tmp_path / "restored", url, faults) == undisturbed
    until(lambda: first.output.count("starting tritonserver again") == 2, 60, "healed twice")
