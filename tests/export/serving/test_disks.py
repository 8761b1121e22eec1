"""Disks that are full or may only be read: an export says so and spoils nothing, a server works.

They are mounted for one process; Linux lets a user do so who is root, or root of namespaces of its own.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.small_parts import MODEL, small_parts

MOUNTING = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0}"
EXPORT = [sys.executable, "-m", "ipt_triton.export", "repository"]

RESTORE = """
import sys
from pathlib import Path
import numpy as np
from ipt_triton import RestorationClient
from ipt_triton.export.serving.server import TritonServer
with TritonServer(Path(sys.argv[1])) as server, RestorationClient(server.grpc_url) as client:
    print(client.restore(np.zeros((70, 60, 3), np.uint8), client.info().tasks[0].name).shape)
"""


BOARD = """
import sys
from pathlib import Path
from ipt_triton.board import Board
Board(Path(sys.argv[1]), 3).begin(0, 7)
assert Board(Path(sys.argv[1]), 4).under_way()[3].left == 7
"""


def mounted(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may mount; what it mounts is gone with it."""
    return subprocess.run([*MOUNTING, script], capture_output=True, text=True, timeout=300, check=False)


def can_mount() -> bool:
    folder = shlex.quote(tempfile.gettempdir())
    try:
        return mounted(f"{READ_ONLY.format(folder)} && mount -t tmpfs none {folder}").returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_mount(), reason="this user may not mount, or there is no unshare")


@pytest.mark.slow
def test_an_export_to_a_full_disk_names_the_file_and_leaves_the_old_repository(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    parts, disk = small_parts(tmp_path_factory), tmp_path / "disk"
    disk.mkdir()
    export = shlex.join([*EXPORT, "--parts", str(parts), "--repository", str(disk / "models")])
    listing = f"(cd {disk} && find . -type f -exec sha256sum {{}} + | sort)"
    script = f"""
        mount -t tmpfs -o size=64m none {disk}
        {export} > /dev/null
        {listing} > {tmp_path}/before
        rm {disk}/models/body/1/body.onnx
        cat /dev/zero > {disk}/filling 2> /dev/null || true
        truncate --size=-8192 {disk}/filling
        {export} > /dev/null && exit 9
        rm {disk}/filling
        {export} > /dev/null
        {listing} > {tmp_path}/after
    """
    run = mounted(script)
    assert run.returncode == 0, run.stderr
    assert "No space left on device" in run.stderr and f"{disk}/models/" in run.stderr
    assert "Traceback" not in run.stderr
    assert (tmp_path / "after").read_text() == (tmp_path / "before").read_text()


@pytest.mark.server
def test_a_repository_that_may_only_be_read_is_served(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path / "models"
    subprocess.run([*EXPORT, "--parts", small_parts(tmp_path_factory), "--repository", repository], check=True)
    run = mounted(f"""
        {READ_ONLY.format(repository)}
        touch {repository}/new 2> /dev/null && exit 9
        {shlex.join([sys.executable, "-c", RESTORE, str(repository)])}
    """)
    assert run.returncode == 0, run.stderr
    scale = MODEL.config.tasks[0].scale
    assert f"({70 * scale}, {60 * scale}, 3)" in run.stdout


def test_a_file_system_that_sets_no_place_aside_has_a_board_too(tmp_path: Path) -> None:
    board = shlex.join([sys.executable, "-c", BOARD, str(tmp_path / "board")])
    run = mounted(f"mount -t ramfs none {tmp_path} && {board}")
    assert run.returncode == 0, run.stderr
