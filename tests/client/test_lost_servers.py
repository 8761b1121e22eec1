"""Photos through two servers that are stopped, killed and stuck meanwhile: all come out, as if nothing had happened.

`LOST_SERVERS_PHOTOS` says how many there are.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from shutil import copytree
from urllib.request import urlopen

import pytest
from helpers.envoy import KEY, running_envoy
from helpers.nginx import for_servers, free_port, needs_nginx, nginx
from helpers.pretended import make_certificates, needs_openssl
from helpers.serve import Command, named, until
from helpers.support import Served, read_image
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "client" / "restore.py"
STUB = "triton_python_backend_stub"
PHOTOS = int(os.environ.get("LOST_SERVERS_PHOTOS", "20"))
NAMES = ["colosseum", "dog", "kitten", "parrot", "skyline"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PHOTOS):
        name, top = NAMES[number % len(NAMES)], 8 * (number % 20)
        Image.fromarray(read_image(name)[top : top + 200, 40 + number // 20 : 280]).save(folder / f"{number:02}.png")
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


def restore(
    photos: Path, output: Path, url: str, *options: str, meanwhile: Sequence[Callable[[], None]] = ()
) -> dict[str, bytes]:
    """What `ipt-restore` makes of the photos.

    Args:
        meanwhile: things to do, the first after two photos, each after two photos more.
    """
    patient = ("--retries", "40")  # a busy machine starts a server slowly
    words = [SCRIPT, photos, "-t", "sr_x2", "-o", output, "--url", url, "--workers", "4", *patient, *options]
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


def strike(server: Command, model: str, number: signal.Signals, healed: int = 0) -> None:
    """Send a signal to a process of a model as soon as the server serves, healed from so many faults before.

    Until a fault is noticed the server seems to serve, and another one would be healed together with it.
    """

    def serves() -> bool:
        if server.output.count("starting tritonserver again") < healed:
            return False
        try:
            return bool(urlopen(server.address("health"), timeout=2).status == 200)
        except OSError:
            return False

    until(serves, 180, "serving again")
    processes = [stub for stub in named(server.refresh(), STUB) if f"/{model}/" in command_line(stub)]
    os.kill(processes[0], number)


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it has just ended
        return ""


@contextmanager
def behind_nginx(servers: list[Command], folder: Path) -> Iterator[tuple[str, ...]]:
    port = free_port()
    with nginx(folder, for_servers(folder, port, [server.address("grpc") for server in servers])):
        yield (f"127.0.0.1:{port}",)


@contextmanager
def behind_envoy(servers: list[Command], folder: Path) -> Iterator[tuple[str, ...]]:
    tls = folder / "tls" / "current"
    tls.mkdir(parents=True)
    make_certificates(tls)
    places = [(port_of(server.address("grpc")), port_of(server.address("health"))) for server in servers]
    with running_envoy(folder, places) as port:
        yield (f"localhost:{port}", "--tls", "--ca", str(tls / "ca.crt"), "--token", KEY)


@contextmanager
def listed(servers: list[Command], folder: Path) -> Iterator[tuple[str, ...]]:
    yield (",".join(server.address("grpc") for server in servers),)


def port_of(address: str) -> int:
    return int(re.findall(r":(\d+)", address)[0])


@pytest.mark.parametrize(
    "reached",
    [
        pytest.param(behind_nginx, marks=needs_nginx),
        pytest.param(behind_envoy, marks=needs_openssl),
        listed,
    ],
)
def test_all_photos_come_out_as_if_nothing_had_happened(
    reached: Callable[[list[Command], Path], AbstractContextManager[tuple[str, ...]]],
    photos: Path,
    undisturbed: dict[str, bytes],
    servers: list[Command],
    tmp_path: Path,
) -> None:
    first, second = servers
    faults = (
        lambda: strike(first, "restore", signal.SIGKILL),  # a router
        second.process.terminate,  # as an orchestrator does
        lambda: strike(first, "body", signal.SIGKILL, healed=1),
        lambda: strike(first, "body", signal.SIGSTOP, healed=2),
    )
    with reached(servers, tmp_path / "proxy") as (url, *options):
        assert restore(photos, tmp_path / "restored", url, *options, meanwhile=faults) == undisturbed
    # Three times for the faults, and once more where Triton itself does not bear one of them.
    until(lambda: first.output.count("starting tritonserver again") >= 3, 60, "healed three times")
