"""The command among names, files, folders and outputs that wish it ill; the server is one object of this process."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.here import Here, run
from PIL import Image

from ipt_triton.client import restore
from ipt_triton.client.errors import ImageError
from ipt_triton.client.photo import Photo, read_photo, write_photo

ROOT = Path(__file__).parents[2]
DERAIN = ("--task", "derain")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "RestorationClient", Here)
    monkeypatch.setenv("IPT_URL", "here")  # or a server of our own would be started


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.png", "inner/b.png"):
        write_photo(Photo(np.zeros((9, 8, 3), np.uint8)), folder / name)
    return folder


class Strict:
    """Standard output of a shell whose locale is C: ASCII alone, and strict."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._bytes = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(self._bytes, "ascii", "strict", write_through=True))

    @property
    def text(self) -> str:
        return self._bytes.getvalue().decode("ascii")


def test_names_that_are_no_text_or_hold_control_characters_are_restored_and_told_escaped(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = (photos / "a.png").read_bytes()
    for name in (b"\xff\xfe.png", "é.png".encode(), b"red\x1b[31m.png", b"two\nlines.png"):
        Path(os.fsdecode(os.fsencode(photos) + b"/" + name)).write_bytes(data)
    Path(os.fsdecode(os.fsencode(photos) + b"/bad\xff\x1b]0;x\x07.png")).write_bytes(b"no image")
    shown = Strict(monkeypatch)
    assert run(photos, *DERAIN, "--output", tmp_path / "out") == 1
    told = capfd.readouterr().err
    assert shown.text.count("\n") == 6 and told.count("\n") == 2 and "6 restored, 1 failed" in told
    assert "\\x1b[31m" in shown.text and "\\udcff" in shown.text and "two\\nlines" in shown.text
    assert "\x1b" not in shown.text + told and "\x07" not in told
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 6


def test_pipes_sockets_devices_and_links_to_nothing_are_named_and_keep_nobody_waiting(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "pipe.png")
    (photos / "link.png").symlink_to("nothing")
    (photos / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as ear:
        ear.bind(os.path.relpath(photos / "ear.png"))
        assert run(photos, "/dev/null", *DERAIN, "--output", tmp_path / "out", "--json", tmp_path / "report.json") == 1
    told = capsys.readouterr().err
    for name in ("pipe.png", "link.png", "zero.png", "ear.png", "/dev/null"):
        assert f"{name}: no file but a pipe, a socket, a device or a link to nothing" in told
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == {"failed": 5, "restored": 2}


def test_a_pipe_is_no_photo_for_the_library_either(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=r"pipe.png is no file; give an image file"):
        read_photo(tmp_path / "pipe.png")


def test_a_folder_that_cannot_be_read_is_named_and_counted(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scandir = os.scandir  # closed by hand, because nothing is closed to root

    def closed(path: Any) -> Any:
        if Path(path).name == "inner":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert run(photos, *DERAIN, "--output", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert f"{photos / 'inner'}: the folder cannot be read: Permission denied" in told
    assert "1 failed, 1 restored" in told or "1 restored, 1 failed" in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [("{long} --output {out}", 2), ("{photos} --output {out} --suffix {long}", 1), ("{photos} --output {long}", 2)],
)
def test_names_that_are_too_long_are_refused_with_a_sentence(
    photos: Path, tmp_path: Path, words: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words.format(long="x" * 300, photos=photos, out=tmp_path / "out").split()
    try:
        status = run(*arguments, *DERAIN)
    except SystemExit as end:
        status = int(str(end.code))
    assert status == expected and ": File name too long" in capsys.readouterr().err


def test_a_report_that_has_no_place_is_refused_before_the_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(photos, *DERAIN, "--output", tmp_path / "out", "--json", photos)
    assert end.value.code == 2 and "is a folder; give a file" in capsys.readouterr().err

    def full(path: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert run(photos, *DERAIN, "--output", tmp_path / "out", "--json", tmp_path / "r.json") == 2
    assert "r.json cannot be written: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "r.json").exists()


def test_a_report_that_a_full_disk_takes_not_is_told_on_standard_error(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, *DERAIN, "--output", tmp_path / "out", "--json", "/dev/full") == 1
    told = capsys.readouterr().err
    assert "--json /dev/full cannot be written (No space left on device); this is the report:" in told
    assert json.loads(told[told.index("{") :])["counts"] == {"restored": 2}


SCRIPT = """
import sys
sys.path[:0] = {paths}
import helpers.here as scene
from ipt_triton.client import restore
restore.RestorationClient = scene.Here
sys.exit(restore.main(sys.argv[1:]))
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[list[str]]:
    """The command in a process of its own, with the server that gives images back."""
    script = tmp_path / "command.py"
    script.write_text(SCRIPT.format(paths=[str(ROOT / "tests"), str(ROOT / "src")]))
    yield [sys.executable, str(script)]


def shell(line: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line, "bash", *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$@" --json - | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$@" >&-', 0, ""),
        ('"$@" > /dev/full', 2, "ipt-restore: standard output cannot be written: No space left on device\n"),
    ],
)
def test_an_output_that_nobody_takes_ends_the_command_quietly(
    photos: Path, tmp_path: Path, command: list[str], line: str, status: int, told: str
) -> None:
    for number in range(400):  # more lines than standard output keeps
        (photos / f"{number}.png").symlink_to(photos / "a.png")
    done = shell(line, *command, str(photos), *DERAIN, "--output", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (status, told)
    assert not list((tmp_path / "out").rglob("*.part"))


def test_what_libraries_write_about_damaged_files_is_not_shown(
    photos: Path, tmp_path: Path, command: list[str]
) -> None:
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(photos / "whole.tiff", compression="tiff_lzw")
    data = (photos / "whole.tiff").read_bytes()
    for number in range(8, 200, 3):
        (photos / f"{number}.tiff").write_bytes(data[:number] + b"\xff\x01" + data[number + 2 :])
    with pytest.raises(ImageError):
        read_photo(photos / "8.tiff")
    done = shell('"$@"', *command, str(photos), *DERAIN, "--output", str(tmp_path / "out"), "--suffix", "_x")
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) > 10 and all(line.startswith("ipt-restore: ") for line in lines)


@pytest.mark.parametrize(
    "start", [[str(ROOT / "client" / "restore.py")], ["-c", "import ipt_triton.commands as c; c.restore()"]]
)
def test_ctrl_c_during_the_imports_leaves_no_traceback(start: list[str], tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(20)\n")
    (tmp_path / "cv2.py").write_text((tmp_path / "tqdm.py").read_text())
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, *start, "--list-tasks"], env=environment, stdout=-1, stderr=-1, text=True
    )
    assert process.stdout and process.stdout.readline() == "importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGINT
