"""A real nginx on loopback, from the configuration of `deploy/proxy` or from one of the test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "proxy" / "nginx.conf"

needs_nginx = pytest.mark.skipif(PROGRAM is None, reason="nginx is not installed (Debian: apt-get install nginx-light)")


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, text: str) -> Iterator[Callable[[], None]]:
    """Runs while the block does; what it yields has it read its configuration and certificates again.

    Args:
        text: the configuration, whose `http` block begins with a line of its own.
    """
    assert PROGRAM is not None
    folder.mkdir()
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"    {name}_temp_path {folder / name};\n" for name in places)
    (folder / "nginx.conf").write_text(text.replace("http {\n", f"http {{\n{own}"))
    log = folder / "error.log"
    user = "user root; " if os.geteuid() == 0 else ""  # its workers would not be let into the folder
    files = ["-p", str(folder), "-e", str(log), "-c", str(folder / "nginx.conf")]
    command = [PROGRAM, *files, "-g", f"{user}daemon off;"]

    def reload() -> None:
        subprocess.run([*command[:-2], "-s", "reload"], check=True)

    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 10
            while not (folder / "nginx.pid").exists():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield reload
        finally:
            process.terminate()


def for_servers(folder: Path, port: int, addresses: Sequence[str], gateway: str = "127.0.0.1:9") -> str:
    """Our configuration for servers at these addresses: listening at a port of loopback, all files in a folder."""
    text = CONFIGURATION.read_text()
    for theirs, ours in (
        ("listen 8081 ", f"listen 127.0.0.1:{port} "),
        ("server 127.0.0.1:8001 ", f"server {addresses[0]} "),
        ("server 127.0.0.1:9001 ", f"server {addresses[1]} "),
        ("server 127.0.0.1:8080 ", f"server {gateway} "),
        ("/run/ipt-nginx.pid", f"{folder / 'nginx.pid'}"),
        ("/var/log/nginx/", f"{folder}/"),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    return text
