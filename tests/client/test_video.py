"""Videos through stand-in clients and a real server: what is kept, what is sent, and what survives a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_clients import Nearest, Tiled, tiled
from hypothesis import given, settings
from hypothesis import strategies as st

from ipt_triton import InvalidRequest, RestorationClient, RestorationError, ServerUnavailable
from ipt_triton.tiling import KEEP, STRIDE

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'ipt-triton[video]'")

from helpers.clips import (  # noqa: E402
    TICKS,
    Clip,
    frame_planes,
    moving,
    needs_encoder,
    packets,
    rotate,
    samples,
    shown,
    still,
    write_clip,
)

from ipt_triton.client.video import DamagedVideo, UnsupportedVideo, VideoError, restore_video  # noqa: E402
from ipt_triton.client.video.joining import decode_times  # noqa: E402
from ipt_triton.client.video.segments import SegmentWriter  # noqa: E402

ROOT = Path(__file__).parents[2]
VARIABLE = [0, 512, 600, 2_000, 2_001, 5_000, 5_512, 6_024, 40_000, 40_100]
"""Times of ten frames, in TICKS, at no even distance."""


def work_folder(target: Path) -> Path:
    return target.with_name(f".{target.name}.segments")


# Colours


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_what_is_not_changed_keeps_every_sample(tmp_path: Path, pixel_format: str, matrix: int) -> None:
    clip = Clip(pixel_format=pixel_format, tags=(matrix, matrix, matrix, 1))
    source = write_clip(tmp_path / "a.mkv", moving(3, 50, 70), clip)
    client = Nearest()
    restore_video(client, source, tmp_path / "b.mkv", "t", lossless=True)
    assert shown(tmp_path / "b.mkv") == shown(source)
    assert {kind for _, kind in client.asked} == {"uint16" if "10" in pixel_format else "uint8"}


def test_full_range_changes_by_rounding_alone(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(2), Clip(tags=(1, 1, 1, 2)))
    restore_video(Nearest(), source, tmp_path / "b.mkv", "t", lossless=True)
    for old, new in zip(samples(source), samples(tmp_path / "b.mkv"), strict=True):
        for a, b in zip(old, new, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.streams.video[0].codec_context.color_range == 2


@pytest.mark.parametrize(
    "matrix, red",
    [(1, (63, 102, 240)), (6, (81, 90, 240)), (9, (74, 97, 240))],
    ids=["BT.709", "BT.601", "BT.2020"],
)
def test_red_of_every_standard_is_red_for_the_network(tmp_path: Path, matrix: int, red: tuple[int, int, int]) -> None:
    frame = av.VideoFrame(64, 64, "yuv444p")
    for plane, value in zip(frame.planes, red, strict=True):
        np.frombuffer(plane, np.uint8)[:] = value
    source = write_clip(tmp_path / "a.mkv", [frame], Clip(pixel_format="yuv444p", tags=(matrix, 1, matrix, 1)))
    seen: list[np.ndarray] = []

    class Seeing(Nearest):
        def answer(self, image: np.ndarray, *rule: Any) -> np.ndarray:
            seen.append(image)
            return image

    restore_video(Seeing(), source, tmp_path / "b.mkv", "t")
    assert np.abs(seen[0].astype(int) - [255, 0, 0]).max() <= 2


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), cosited=st.booleans(), axis=st.integers(0, 1), seed=st.integers()
)
def test_chroma_that_is_enlarged_and_reduced_is_itself(
    height: int, width: int, cosited: bool, axis: int, seed: int
) -> None:
    from ipt_triton.client.video.colour import _double, _halve

    values = np.random.default_rng(abs(seed)).uniform(0, 255, (height, width)).astype(np.float32)
    for size in (2 * values.shape[axis], 2 * values.shape[axis] - 1):
        enlarged = _double(values, axis, cosited, size)
        assert enlarged.shape[axis] == size
        np.testing.assert_allclose(_halve(enlarged, axis, cosited), values, atol=1e-3)


@pytest.mark.parametrize("height, matrix", [(719, 6), (720, 1)])
def test_an_unspecified_matrix_goes_by_the_height(height: int, matrix: int) -> None:
    from ipt_triton.client.video.colour import Conversion, Layout

    layout = Layout("yuv444p", "yuv", 8)
    picture = np.full((height, 8, 3), (200, 60, 90), np.uint8)
    unspecified, named = (Conversion(layout, number, False).frame(picture) for number in (2, matrix))
    for a, b in zip(frame_planes(unspecified), frame_planes(named), strict=True):
        np.testing.assert_array_equal(a, b)


# What is kept


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_sound_subtitles_chapters_tags_and_metadata_are_kept(tmp_path: Path, suffix: str) -> None:
    times = [time + 20 * (time == 2_001) for time in VARIABLE]  # Matroska holds milliseconds
    clip = Clip(
        times=times,
        tags=(9, 16, 9, 1),
        ratio=Fraction(4, 3),
        audio="aac",
        subtitles=[(0, 300, b"One"), (500, 900, b"Two")],
        chapters=True,
    )
    if suffix == ".mp4":
        clip = Clip(**{**clip.__dict__, "subtitles": ()})
    source, target = write_clip(tmp_path / f"a{suffix}", moving(len(times)), clip), tmp_path / f"b{suffix}"
    report = restore_video(Nearest(), source, target, "t", segment_frames=4)
    assert report.notes == () and report.frames == len(times)
    assert [frame.time for frame in shown(target)] == [frame.time for frame in shown(source)]
    assert packets(target, "audio") == packets(source, "audio")
    if clip.subtitles:
        assert packets(target, "subtitle") == packets(source, "subtitle")
    with av.open(str(source)) as old, av.open(str(target)) as new:
        assert [stream.type for stream in new.streams] == [stream.type for stream in old.streams]
        assert new.metadata["title"] == "A small clip" and new.streams.audio[0].language == "deu"
        assert [(c["start"] * c["time_base"], c["metadata"]) for c in new.chapters()] == [
            (c["start"] * c["time_base"], c["metadata"]) for c in old.chapters()
        ]
        video = new.streams.video[0]
        assert video.sample_aspect_ratio == Fraction(4, 3)
        context = video.codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (9, 16, 9, 1)


def test_variable_times_are_exact_to_the_tick_in_mp4(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(len(VARIABLE)), Clip(times=VARIABLE))
    restore_video(Nearest(), source, tmp_path / "b.mp4", "t", segment_frames=3)
    assert [frame.time * TICKS for frame in shown(tmp_path / "b.mp4")] == VARIABLE


@pytest.mark.parametrize(
    "codec, pixel_format, suffix, options",
    [
        ("libx264", "yuv420p", ".mp4", {}),
        ("libx264", "yuv422p10le", ".mov", {}),
        ("libx265", "yuv420p10le", ".mp4", {"x265-params": "log-level=none"}),
        ("libvpx-vp9", "yuv420p", ".webm", {"b": "1M"}),
        ("libsvtav1", "yuv420p10le", ".mp4", {"preset": "12"}),
        ("prores_ks", "yuv422p10le", ".mov", {"profile": "3"}),
        ("ffv1", "yuv444p16le", ".mkv", {}),
        ("mpeg4", "yuv420p", ".avi", {}),
        ("mjpeg", "yuvj420p", ".mov", {}),
        ("libvpx", "yuv420p", ".webm", {"b": "1M"}),
        ("ffvhuff", "yuv420p10le", ".avi", {}),
        ("huffyuv", "yuv422p", ".avi", {}),
        ("utvideo", "yuv422p", ".avi", {}),
        ("rawvideo", "yuv420p", ".mkv", {}),
    ],
)
def test_codec_depth_and_chroma_are_the_sources(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str, options: dict[str, str]
) -> None:
    needs_encoder(codec)
    source = write_clip(
        tmp_path / f"a{suffix}", moving(6), Clip(codec=codec, pixel_format=pixel_format, options=options)
    )
    target = tmp_path / f"b{suffix}"
    report = restore_video(Nearest(), source, target, "t", segment_frames=4)
    assert report.notes == ()
    policies = {os.sched_getscheduler(int(path.name)) for path in Path("/proc/self/task").iterdir()}
    assert os.SCHED_FIFO not in policies  # as SVT-AV1 makes root's threads
    with av.open(str(source)) as old, av.open(str(target)) as new:
        a, b = old.streams.video[0], new.streams.video[0]
        assert (b.codec_context.name, b.format.name, b.profile) == (a.codec_context.name, a.format.name, a.profile)
    assert [frame.time for frame in shown(target)] == [frame.time for frame in shown(source)]
    difference = [
        np.abs(a.astype(float) - b).mean() / (1 << (max(8, b.dtype.itemsize * 8) - 8))
        for old, new in zip(samples(source), samples(target), strict=True)
        for a, b in zip(old, new, strict=True)
    ]
    assert max(difference) < 3


@pytest.mark.parametrize(
    "codec, options, encoder",
    [
        ("libx264", {}, "libx264"),
        ("libx265", {"x265-params": "log-level=none"}, "libx265"),
        ("libvpx-vp9", {"b": "1M"}, "libvpx-vp9"),
        ("libsvtav1", {"preset": "12"}, "ffv1"),
        ("mpeg4", {}, "ffv1"),
    ],
)
def test_lossless_keeps_every_sample(tmp_path: Path, codec: str, options: dict[str, str], encoder: str) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(3), Clip(codec=codec, options=options))
    report = restore_video(Nearest(), source, tmp_path / "b.mkv", "t", lossless=True)
    assert report.encoder == encoder
    assert [frame.samples for frame in shown(tmp_path / "b.mkv")] == [frame.samples for frame in shown(source)]


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1), (0, 1, 1, 0)])
def test_turned_videos_show_what_players_show(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    pictures = [np.full((48, 80, 3), 120, np.uint8)]  # no edge between colours leaves what RGB can hold
    pictures[0][:24, :40] = (150, 100, 100)
    pictures[0][24:, 40:] = (90, 130, 90)
    source = rotate(write_clip(tmp_path / "a.mp4", pictures, Clip(ratio=Fraction(4, 3))), matrix)
    restore_video(Nearest(), source, tmp_path / "b.mp4", "t", lossless=True)
    a, b, c, d = matrix
    stored = samples(source)[0][0]
    expected = np.empty((48, 80) if a else (80, 48), np.uint8)
    for y in range(48):
        for x in range(80):
            across, down = a * x + c * y, b * x + d * y  # as ISO 14496-12 maps pixels
            expected[down - (min(b, d) < 0), across - (min(a, c) < 0)] = stored[y, x]
    np.testing.assert_array_equal(samples(tmp_path / "b.mp4")[0][0], expected)
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == (Fraction(4, 3) if a else Fraction(3, 4))
        assert next(container.decode(video=0)).side_data.get("DISPLAYMATRIX") is None


def test_a_task_that_enlarges_enlarges_the_video(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(3))
    report = restore_video(Nearest(scale=2), source, tmp_path / "b.mp4", "sr_x2")
    assert (report.width, report.height) == (192, 128)
    assert [plane.shape for plane in samples(tmp_path / "b.mp4")[0]] == [(128, 192), (64, 96), (64, 96)]


def test_transparency_is_left_out_and_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(2), Clip(codec="ffv1", options={}, pixel_format="yuva420p"))
    report = restore_video(Nearest(), source, tmp_path / "b.mkv", "t")
    assert report.notes == ("transparency is left out",)
    assert {frame.pixel_format for frame in shown(tmp_path / "b.mkv")} == {"yuv420p"}


def test_a_stream_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.ts"
    parts = [write_clip(tmp_path / f"{height}.ts", moving(3, height), Clip()).read_bytes() for height in (64, 96)]
    source.write_bytes(b"".join(parts))
    with pytest.raises(UnsupportedVideo, match="changes from 96x64"):
        restore_video(Nearest(), source, tmp_path / "b.mkv", "t")


def test_odd_sizes_keep_their_size(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(2, 51, 73), Clip(codec="ffv1", options={}))
    restore_video(Nearest(), source, tmp_path / "b.mkv", "t")
    assert shown(tmp_path / "b.mkv") == shown(source)


def test_what_the_container_does_not_take_is_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(3), Clip(codec="snow", options={}, subtitles=[(0, 50, b"One")]))
    report = restore_video(Nearest(), source, tmp_path / "b.mp4", "t")
    assert any("snow" in note and "libx264" in note for note in report.notes)
    assert any("subtitle" in note and "left out" in note for note in report.notes)
    assert [frame.time for frame in shown(tmp_path / "b.mp4")] == [frame.time for frame in shown(source)]


# What is sent


def test_frames_are_restored_several_at_a_time_and_stay_in_order(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(12))
    client = Nearest(delay=0.05)
    restore_video(client, source, tmp_path / "b.mkv", "t", workers=3, lossless=True)
    assert client.most == 3
    assert shown(tmp_path / "b.mkv") == shown(source)


def test_only_what_changed_is_sent_and_the_frames_are_those_restored_whole(tmp_path: Path) -> None:
    pictures = still(9, 160, 240)
    source = write_clip(tmp_path / "a.mkv", pictures, Clip(codec="ffv1", options={}, pixel_format="gbrp10le"))
    client = Tiled()
    report = restore_video(client, source, tmp_path / "b.mkv", "t")
    whole = [shape for shape, _ in client.asked if shape == (160, 240, 3)]
    assert len(whole) == 1 and report.sent < 0.7
    with av.open(str(source)) as old, av.open(str(tmp_path / "b.mkv")) as new:
        for before, after in zip(old.decode(video=0), new.decode(video=0), strict=True):
            green, blue, red = frame_planes(before)
            deep = np.rint(np.stack([red, green, blue], axis=2) * (65535 / 1023)).astype(np.uint16)
            expected = np.rint(tiled(deep, 1, STRIDE, KEEP) * (1023 / 65535)).astype(np.uint16)
            green, blue, red = frame_planes(after)
            np.testing.assert_array_equal(np.stack([red, green, blue], axis=2), expected)


def test_frames_that_wait_are_bounded(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(40))
    done: list[int] = []
    ahead: list[int] = []

    class Counting(Nearest):
        def answer(self, image: np.ndarray, *rule: Any) -> np.ndarray:
            ahead.append(len(self.asked) - (done[-1] if done else 0))
            return image

    restore_video(Counting(), source, tmp_path / "b.mkv", "t", progress=lambda frames, *_: done.append(frames))
    assert max(ahead) <= 2 + 6


def test_progress_tells_frames_of_all_and_seconds(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(5))
    calls: list[tuple[int, int | None, float]] = []
    restore_video(Nearest(), source, tmp_path / "b.mp4", "t", progress=lambda *told: calls.append(told))
    assert [call[0] for call in calls] == [0, 1, 2, 3, 4, 5] and {call[1] for call in calls} == {5}
    assert all(a[2] <= b[2] for a, b in pairwise(calls))


# Going on


KILLED = """
    import sys, time
    from helpers.fake_clients import Nearest
    from ipt_triton.client.video import restore_video

    class Slow(Nearest):
        def answer(self, image, *rule):
            time.sleep(0.1 if len(self.asked) > 13 else 0)
            return image // 2

    restore_video(Slow(), sys.argv[1], sys.argv[2], "t", segment_frames=4)
"""


class Half(Nearest):
    def answer(self, image: np.ndarray, *rule: Any) -> np.ndarray:
        return image // 2


def test_a_killed_run_goes_on_and_its_frames_are_those_of_an_undisturbed_one(tmp_path: Path) -> None:
    times = [i * 512 + (i % 3) * 100 for i in range(25)]
    source = write_clip(tmp_path / "a.mp4", moving(25), Clip(times=times, audio="aac"))
    target, undisturbed = tmp_path / "b.mp4", tmp_path / "c.mp4"
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), source, target],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])},
    )
    third = work_folder(target) / "000002.segment"
    deadline = time.monotonic() + 60
    while not third.exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not target.exists()
    client = Half()
    report = restore_video(client, source, target, "t", segment_frames=4)
    assert report.resumed >= 12 and len(client.asked) == 25 - report.resumed
    assert restore_video(Half(), source, undisturbed, "t", segment_frames=4).resumed == 0
    assert shown(target) == shown(undisturbed) and len(shown(target)) == 25
    assert packets(target, "video") == packets(undisturbed, "video")
    assert packets(target, "audio") == packets(source, "audio")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


class Leaving(Nearest):
    """A server that goes away after some frames."""

    def answer(self, image: np.ndarray, *rule: Any) -> np.ndarray:
        if len(self.asked) > 8:
            raise ServerUnavailable("it is away")
        return image


@pytest.mark.parametrize("change", ["quality", "task", "source"])
def test_segments_of_another_source_or_of_other_options_are_not_taken_up(tmp_path: Path, change: str) -> None:
    source, target = write_clip(tmp_path / "a.mp4", moving(12)), tmp_path / "b.mp4"
    with pytest.raises(ServerUnavailable):
        restore_video(Leaving(), source, target, "t", segment_frames=2)
    assert (work_folder(target) / "000000.segment").exists()
    arguments: dict[str, Any] = {"quality": 30} if change == "quality" else {}
    if change == "source":
        write_clip(source, moving(12, seed=1))
    report = restore_video(Nearest(), source, target, "u" if change == "task" else "t", segment_frames=2, **arguments)
    assert report.resumed == 0 and report.frames == 12


def test_two_runs_for_one_target_do_not_mix(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "a.mp4", moving(3)), tmp_path / "b.mp4"

    class Impatient(Nearest):
        def answer(self, image: np.ndarray, *rule: Any) -> np.ndarray:
            with pytest.raises(VideoError, match="another run"):
                restore_video(Nearest(), source, target, "t")
            return image

    assert restore_video(Impatient(), source, target, "t").frames == 3


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 1000), min_size=1, max_size=30), reorder=st.integers(0, 4), seed=st.integers(0, 999)
)
def test_decoding_times_rise_and_are_never_after_the_frame_is_shown(gaps: list[int], reorder: int, seed: int) -> None:
    times = np.cumsum(gaps)
    places = np.argsort(np.arange(len(times)) + np.random.default_rng(seed).uniform(0, reorder + 0.1, len(times)))
    shown_at = times[places].tolist()
    decoded = decode_times(shown_at)
    assert all(a < b for a, b in pairwise(decoded))
    assert all(at <= show for at, show in zip(decoded, shown_at, strict=True))


# What goes wrong


def test_files_that_are_no_videos_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for name, kind in (("text.mp4", DamagedVideo), ("nothing.mp4", VideoError)):
        with pytest.raises(kind, match=name):
            restore_video(Nearest(), tmp_path / name, tmp_path / "b.mp4", "t")
    assert not (tmp_path / "b.mp4").exists() and not work_folder(tmp_path / "b.mp4").exists()


def test_a_truncated_video_is_restored_as_far_as_it_goes_and_that_is_said(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(40), Clip(options={"g": "5", "bf": "0"}))
    frames = shown(source)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    report = restore_video(Nearest(), cut, tmp_path / "b.mkv", "t")
    assert 10 < report.frames < 40 and any("ends early: of 1.60 s" in note for note in report.notes)
    assert [frame.time for frame in shown(tmp_path / "b.mkv")] == [frame.time for frame in frames[: report.frames]]


def test_damaged_frames_are_told(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(30), Clip(codec="mjpeg", pixel_format="yuvj420p", options={}))
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        place = next(packet.pos for packet in container.demux(video=0) if packet.pts == 10 * TICKS // 25)
    data[place : place + 600] = bytes(600)
    source.write_bytes(data)
    report = restore_video(Nearest(), source, tmp_path / "b.mp4", "t")
    assert report.frames == 29 and any("damaged" in note for note in report.notes)


def test_interlaced_video_is_refused(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    source = write_clip(tmp_path / "a.mp4", moving(3), Clip(options=options))
    with pytest.raises(UnsupportedVideo, match="deinterlace"):
        restore_video(Nearest(), source, tmp_path / "b.mp4", "t")


def test_a_full_disk_leaves_no_target_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_clip(tmp_path / "a.mp4", moving(12)), tmp_path / "b.mp4"
    written = []
    write = SegmentWriter.write

    def fill(self: SegmentWriter, packet: Any) -> None:
        written.append(packet)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, packet)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "write", fill)
        with pytest.raises(VideoError, match=r"disk is full.*b\.mp4"):
            restore_video(Nearest(), source, target, "t", segment_frames=4)
    assert not target.exists()
    assert restore_video(Nearest(), source, target, "t", segment_frames=4).resumed == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_disk_that_fills_while_the_segments_are_joined_leaves_the_segments(tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "a.mkv", moving(12)), tmp_path / "b.mkv"

    def fill(done: int, *_: Any) -> None:
        if done == 12:
            (work_folder(target) / "joined.mkv").symlink_to("/dev/full")

    with pytest.raises(VideoError, match="disk is full"):
        restore_video(Nearest(), source, target, "t", progress=fill)
    assert not target.exists()
    (work_folder(target) / "joined.mkv").unlink()
    assert restore_video(Nearest(), source, target, "t").resumed == 12


def test_arguments_and_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(2))
    cases: list[tuple[type[RestorationError], str, Path, dict[str, Any]]] = [
        (VideoError, "itself", source, {}),
        (UnsupportedVideo, "suffix", tmp_path / "b.foo", {}),
        (UnsupportedVideo, "suffix", tmp_path / "b", {}),
        (InvalidRequest, "workers 0", tmp_path / "b.mp4", {"workers": 0}),
        (InvalidRequest, "KEEP 47", tmp_path / "b.mp4", {"keep": 47}),
        (InvalidRequest, "quality 52 must be 0 to 51.*libx264", tmp_path / "b.mp4", {"quality": 52}),
        (VideoError, "nowhere", tmp_path / "nowhere" / "b.mp4", {}),
    ]
    for kind, words, target, arguments in cases:
        with pytest.raises(kind, match=words):
            restore_video(Nearest(), source, target, "t", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_without_the_library_the_extra_is_named() -> None:
    code = "import sys; sys.modules['av'] = None\nimport ipt_triton.client.video"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert "ipt-triton[video]" in answer.stderr.splitlines()[-1]


# A real server


def test_a_real_server_restores_a_video_and_parts_of_frames_as_whole_ones(
    client: RestorationClient, tmp_path: Path
) -> None:
    pictures = still(5, 160, 200)
    source = write_clip(tmp_path / "a.mkv", pictures, Clip(codec="ffv1", options={}, pixel_format="bgr0"))
    report = restore_video(client, source, tmp_path / "b.mkv", "denoise_30")
    assert report.frames == 5 and report.sent < 1
    with av.open(str(tmp_path / "b.mkv")) as container:
        restored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for before, after in zip(pictures, restored, strict=True):
        np.testing.assert_array_equal(after, client.restore(before, "denoise_30"))


def test_segments_of_other_weights_are_not_taken_up(
    client: RestorationClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_clip(tmp_path / "a.mp4", moving(4)), tmp_path / "b.mp4"
    restore = client.restore
    calls: list[int] = []

    def leave(*arguments: Any, **options: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) > 3:
            raise ServerUnavailable("it is away")
        return restore(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(client, "restore", leave)
        with pytest.raises(ServerUnavailable):
            restore_video(client, source, target, "denoise_30", segment_frames=1)
    journal = work_folder(target) / "journal.json"
    content = json.loads(journal.read_text())
    assert content["model"]
    journal.write_text(json.dumps({**content, "model": "another"}))
    assert restore_video(client, source, target, "denoise_30", segment_frames=1).resumed == 0
