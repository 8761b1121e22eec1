"""The command on videos: restored into a file of their own, with what cannot be done said in a sentence."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from helpers.clips import Clip, moving, write_clip
from helpers.here import Here, run

from ipt_triton.client import restore


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "RestorationClient", Here)
    monkeypatch.setenv("IPT_URL", "here")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", moving(6), Clip())


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_becomes_a_video_where_it_is_asked_for(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(clip, "-t", "derain,denoise_30", "-o", tmp_path / "out.mp4") == 0
    assert frames(tmp_path / "out.mp4") == 6
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out.mp4'}  96x64  ")
    assert run(clip, "-t", "derain", "-o", tmp_path / "folder", "--suffix", "_dry", "--format", "png") == 0
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["clip_dry.mp4"]


@pytest.mark.parametrize(
    "options, size",
    [
        (("--scale", 1.5), "144x96"),
        (("--width", 91), "90x60"),  # 91x61 as a photo; 4:2:0 of H.264 has even sides
        (("--width", 48, "--height", 48), "48x32"),
        (("--tta", "--strength", 0.5), "96x64"),
    ],
)
def test_a_video_takes_the_options_of_photos(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], size: str
) -> None:
    assert run(clip, "-t", "derain", "-o", tmp_path / "out.mp4", *options) == 0
    assert f"  {size}  " in capsys.readouterr().out
    assert frames(tmp_path / "out.mp4") == 6


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--scale", 65), "clip.mp4: a scale of 65 is not reached by derain on this server; up to 64 is"),
        (("--strip-metadata",), "clip.mp4: --strip-metadata, --compare and --reference are for photos; leave them out"),
        (("--reference", "."), "clip.mp4: --strip-metadata, --compare and --reference are for photos; leave them out"),
        (("--compare",), "clip.mp4: --strip-metadata, --compare and --reference are for photos; leave them out"),
        (("-o", "-"), "clip.mp4: a video is written to a file, not to standard output; give --output FILE"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(clip, "-t", "derain", "-o", "out.mp4", *options) == 1
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_file_that_is_no_video_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing" * 100)
    assert run(tmp_path / "broken.mp4", "-t", "derain", "-o", tmp_path / "out.mp4") == 1
    assert f"{tmp_path / 'broken.mp4'}" in capsys.readouterr().err
