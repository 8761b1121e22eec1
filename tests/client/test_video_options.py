"""Videos of another size, restored in eight views, or less restored: frames become what photos become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fake_clients import Nearest, Stamping

from ipt_triton import InvalidRequest, ServerUnavailable

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'ipt-triton[video]'")

from helpers.clips import Clip, moving, needs_encoder, packets, rotate, samples, shown, still, write_clip  # noqa: E402

from ipt_triton.client.video import UnsupportedVideo, restore_video  # noqa: E402

LOSSLESS = Clip(codec="ffv1", options={}, pixel_format="bgr0")
DEEP = Clip(codec="ffv1", options={}, pixel_format="gbrp16le")


class Still(Stamping):
    """Gives every picture back."""

    def restore(self, image: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
        return image


def pictures(path: Path) -> list[np.ndarray]:
    """The frames of a clip of RGB."""
    with av.open(str(path)) as container:
        deep = container.streams.video[0].codec_context.format.components[0].bits > 8
        return [frame.to_ndarray(format="rgb48le" if deep else "rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    "task, options, in_parts",
    [
        ("sr_x2", {"scale": 2.5}, True),  # by sr_x3
        ("sr_x2", {"width": 151}, True),
        ("derain", {"scale": 0.4, "strength": 0.7}, True),
        ("derain", {"strength": 0.3}, True),
        ("derain", {"scale": 1.5}, False),  # by a chain
        ("derain", {"tta": True}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("clip", [LOSSLESS, DEEP], ids=["8 bit", "16 bit"])
def test_frames_become_what_photos_become_and_what_did_not_change_is_not_sent(
    tmp_path: Path, task: str, options: dict[str, Any], in_parts: bool, clip: Clip
) -> None:
    source = write_clip(tmp_path / "a.mkv", still(5, 130, 150), clip)
    client = Stamping()
    report = restore_video(client, source, tmp_path / "b.mkv", task, **options)
    assert report.sent < 0.75 if in_parts else report.sent == 0.8  # the fifth frame is the fourth one
    assert len([shape for shape in client.asked if shape == (130, 150, 3)]) == (1 if in_parts else 4)
    for before, after in zip(pictures(source), pictures(tmp_path / "b.mkv"), strict=True):
        np.testing.assert_array_equal(after, client.restore(before, task, **options))


def test_the_mean_of_views_is_rounded_once_more_where_it_is_resized_or_mixed(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", still(2, 60, 70), LOSSLESS)
    options: dict[str, Any] = {"scale": 1.5, "tta": True, "strength": 0.5}
    restore_video(Stamping(), source, tmp_path / "b.mkv", "derain", **options)
    for before, after in zip(pictures(source), pictures(tmp_path / "b.mkv"), strict=True):
        assert np.abs(after.astype(int) - Stamping().restore(before, "derain", **options)).max() <= 1


@pytest.mark.parametrize(
    "codec, pixel_format, suffix, options, size",
    [
        ("libx264", "yuv420p", ".mp4", {"scale": 1.3}, (124, 82)),  # 125x83 of a photo
        ("libx264", "yuv420p", ".mp4", {"width": 125, "height": 125}, (124, 82)),
        ("libx264", "yuv420p", ".mp4", {"scale": 2}, (192, 128)),
        ("libx264", "yuv422p", ".mkv", {"scale": 1.3}, (124, 83)),
        ("libx264", "yuv444p", ".mkv", {"scale": 1.3}, (125, 83)),
        ("libx265", "yuv420p10le", ".mp4", {"scale": 1.3}, (124, 82)),
        ("libvpx", "yuv420p", ".webm", {"scale": 1.3}, (125, 83)),
        ("libvpx-vp9", "yuv420p", ".webm", {"scale": 1.3}, (125, 83)),
        ("libsvtav1", "yuv420p", ".mkv", {"scale": 1.3}, (125, 83)),
        ("mpeg4", "yuv420p", ".avi", {"scale": 1.3}, (125, 83)),
        ("mjpeg", "yuvj420p", ".mov", {"scale": 1.3}, (125, 83)),
        ("prores_ks", "yuv422p10le", ".mov", {"scale": 1.3}, (125, 83)),
        ("ffv1", "yuv420p", ".mkv", {"scale": 1.3}, (125, 83)),
        ("ffvhuff", "yuv420p", ".avi", {"scale": 1.3}, (124, 82)),
        ("huffyuv", "yuv422p", ".avi", {"scale": 1.3}, (124, 83)),
        ("utvideo", "yuv420p", ".avi", {"scale": 1.3}, (124, 82)),
        ("rawvideo", "yuv420p", ".mkv", {"scale": 1.3}, (125, 83)),
    ],
)
def test_sides_are_even_where_the_encoder_wants_them_so(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    needs_encoder(codec)
    clip = Clip(codec=codec, pixel_format=pixel_format, options={})
    source = write_clip(tmp_path / f"a{suffix}", moving(6), clip)  # of two x265 does not know the decoding times
    target = tmp_path / f"b{suffix}"
    report = restore_video(Stamping(), source, target, "sr_x2", **options)
    assert (report.width, report.height, report.notes) == (*size, ())
    with av.open(str(target)) as container:
        assert {(frame.width, frame.height) for frame in container.decode(video=0)} == {size}


def test_a_smaller_video_keeps_times_sound_depth_and_stands_upright(tmp_path: Path) -> None:
    times = [0, 512, 600, 2_000, 5_000]
    clip = Clip(pixel_format="yuv420p10le", times=times, audio="aac", tags=(9, 16, 9, 1))
    source, target = rotate(write_clip(tmp_path / "a.mp4", moving(5), clip), (0, 1, -1, 0)), tmp_path / "b.mp4"
    report = restore_video(Stamping(), source, target, "derain", width=32, strength=0.5)
    assert (report.width, report.height) == (32, 48) and report.notes == ()
    assert [frame.time for frame in shown(target)] == [frame.time for frame in shown(source)]
    assert {frame.pixel_format for frame in shown(target)} == {"yuv420p10le"}
    assert packets(target, "audio") == packets(source, "audio")


def test_an_unspecified_matrix_goes_by_the_height_of_the_result(tmp_path: Path) -> None:
    colour = np.full((400, 16, 3), (200, 60, 90), np.uint8)
    for name, matrix in (("a", 2), ("c", 1)):  # written as BT.601, which 2 stands for at 400 lines, and as BT.709
        clip = Clip(codec="ffv1", options={}, pixel_format="yuv444p", tags=(matrix, matrix, matrix, 1))
        write_clip(tmp_path / f"{name}.mkv", [colour], clip)
    restore_video(Nearest(), tmp_path / "a.mkv", tmp_path / "b.mkv", "t")
    restore_video(Still(), tmp_path / "a.mkv", tmp_path / "d.mkv", "derain", height=720)
    for name, due in (("b", "a"), ("d", "c")):
        for made, plane in zip(samples(tmp_path / f"{name}.mkv")[0], samples(tmp_path / f"{due}.mkv")[0], strict=True):
            assert np.abs(made.astype(int) - int(plane[0, 0])).max() <= 1


def test_no_strength_is_the_video_itself(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(3, 50, 70), Clip(pixel_format="yuv420p10le"))
    restore_video(Stamping(), source, tmp_path / "b.mkv", "derain", strength=0, lossless=True)
    assert shown(tmp_path / "b.mkv") == shown(source)


class Leaving(Stamping):
    """A server that goes away after some frames."""

    def restore(self, image: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        if len(self.asked) > 5:
            raise ServerUnavailable("it is away")
        return super().restore(image, *arguments, **options)


@pytest.mark.parametrize("change", [{"scale": 0.75}, {"width": 20}, {"height": 20}, {"tta": True}, {"strength": 0.5}])
def test_segments_of_other_options_are_not_taken_up_and_those_of_the_same_are(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    source = write_clip(tmp_path / "a.mkv", moving(8, 32, 32), LOSSLESS)

    def left(name: str, options: dict[str, Any]) -> Path:
        with pytest.raises(ServerUnavailable):
            restore_video(Leaving(), source, tmp_path / name, "derain", segment_frames=2, **options)
        return tmp_path / name

    other, same, undisturbed = left("b.mkv", {}), left("c.mkv", change), tmp_path / "d.mkv"
    resumed = [
        restore_video(Stamping(), source, target, "derain", segment_frames=2, **change).resumed
        for target in (other, same, undisturbed)
    ]
    assert resumed[0] == resumed[2] == 0 and resumed[1] > 0
    assert shown(other) == shown(same) == shown(undisturbed)


@pytest.mark.parametrize(
    "options, kind, sentence",
    [
        ({"scale": 0}, InvalidRequest, "scale 0 is not allowed; give a number above 0"),
        ({"scale": float("nan")}, InvalidRequest, "scale nan is not allowed"),
        ({"scale": 2, "width": 9}, InvalidRequest, "scale together with width or height is not allowed"),
        ({"height": -1}, InvalidRequest, "height -1 is not allowed"),
        ({"strength": 1.1}, InvalidRequest, "strength 1.1 is not allowed; give 0 to 1"),
        ({"scale": 65}, InvalidRequest, "scale of 65 is not reached by derain on this server; up to 64 is"),
        ({"scale": 60}, UnsupportedVideo, "libx264 refuses 19200x1920 .*choose another size"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], sentence: str
) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(1, 32, 320))
    client = Stamping()
    with pytest.raises(kind, match=sentence):
        restore_video(client, source, tmp_path / "b.mp4", "derain", **options)
    assert not client.asked and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_size_needs_a_client_that_tells_its_tasks(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(1))
    with pytest.raises(InvalidRequest, match="scale, width and height need a client whose `info` tells its tasks"):
        restore_video(Nearest(), source, tmp_path / "b.mp4", "t", height=30)
    restore_video(Nearest(), source, tmp_path / "b.mp4", "t", strength=0.5, tta=True)
