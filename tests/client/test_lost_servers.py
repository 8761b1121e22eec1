"""Twenty photos through two servers that are stopped and killed meanwhile: all come out, as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import copytree

import pytest
from helpers.nginx import for_servers, free_port, nginx
from helpers.serve import Command, named
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
        Image.fromarray(read_image(name)[top : top + 300, 40:360]).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def servers(served: Served, tmp_path: Path) -> Iterator[list[Command]]:
    """Two `ipt-serve` with the same models. Those that run in the end are ended."""
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
    words = [SCRIPT, photos, "-t", "sr_x2", "-o", output, "--url", url, "--workers", "4", "--retries", "12"]
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


def faults(first: Command, second: Command) -> list[Callable[[], None]]:
    """A router of one server is killed, the other server is told to stop, and then the first one's body is killed."""

    def kill(model: str) -> Callable[[], None]:
        def happen() -> None:
            stubs = named(first.refresh(), STUB)
            os.kill(next(stub for stub in stubs if f"/{model}/" in command_line(stub)), signal.SIGKILL)

        return happen

    return [kill("restore"), second.process.terminate, kill("body")]


def command_line(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_two_servers_behind_nginx(photos: Path, servers: list[Command], tmp_path: Path) -> None:
    port = free_port()
    addresses = [server.address("grpc") for server in servers]
    with nginx(tmp_path / "nginx", for_servers(tmp_path / "nginx", port, addresses)):
        url = f"127.0.0.1:{port}"
        undisturbed = restore(photos, tmp_path / "before", url)
        assert len(undisturbed) == PHOTOS
        assert restore(photos, tmp_path / "after", url, faults(*servers)) == undisturbed
