"""Small video clips, made by PyAV, and what a clip holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ipt_triton.client.video.encoding import ordinary_threads

TICKS = 12_800
"""Time stamps of a second, as in MP4 files of 25 frames a second."""


def needs_encoder(codec: str) -> None:
    """Leave the test out where PyAV was built without an encoder, as distributions may build it."""
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {codec}")


def moving(count: int, height: int = 64, width: int = 96, seed: int = 0) -> list[np.ndarray]:
    """Smooth RGB pictures, uint8, of which every pixel moves."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, 3)
    return [
        np.stack([127 + 80 * np.sin((x + 3 * i) / 9 + y / (11 + c) + phases[c]) for c in range(3)], axis=2).astype(
            np.uint8
        )
        for i in range(count)
    ]


def still(count: int, height: int = 64, width: int = 96, box: int = 8) -> list[np.ndarray]:
    """A still picture over which a small square wanders; every fourth frame equals the one before."""
    base = moving(1, height, width)[0]
    frames = []
    for i in range(count):
        frame = base.copy()
        step = i - i // 4
        left, top = (5 * step) % (width - box), (3 * step) % (height - box)
        frame[top : top + box, left : left + box] = 255
        frames.append(frame)
    return frames


@dataclass(frozen=True)
class Clip:
    """How a clip is written; its first stream is the video."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"qp": "0"})
    times: Sequence[int] | None = None  # in TICKS
    tags: tuple[int, int, int, int] = (1, 1, 1, 1)  # primaries, transfer, matrix, range
    ratio: Fraction = Fraction(1)
    audio: str | None = None
    subtitles: Sequence[tuple[int, int, bytes]] = ()  # milliseconds from, to, below 1,000; text. Matroska alone
    chapters: bool = False


def write_clip(path: Path, pictures: Iterable[Any], clip: Clip = Clip()) -> Path:
    """Write a clip of RGB pictures, or of ready frames."""
    frames = [_frame(picture, clip) for picture in pictures]
    times = clip.times or [i * TICKS // 25 for i in range(len(frames))]
    with av.open(str(path), "w") as container, ExitStack() as stack:
        video = container.add_stream(clip.codec, 25)
        context = video.codec_context
        video.time_base = context.time_base = Fraction(1, TICKS)
        context.width, context.height, context.pix_fmt = frames[0].width, frames[0].height, clip.pixel_format
        context.options = dict(clip.options)
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = clip.tags
        context.sample_aspect_ratio = clip.ratio
        context.thread_count = 1
        audio = container.add_stream(clip.audio, 48_000) if clip.audio else None
        texts = stack.enter_context(_subrip(path, clip)) if clip.subtitles else None
        subtitles = container.add_stream_from_template(texts.streams[0]) if texts else None
        container.metadata["title"] = "A small clip"
        if audio is not None:
            audio.metadata["language"] = "deu"
        if clip.chapters:
            container.set_chapters(
                [
                    {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}},
                    {"id": 2, "start": 200, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "Two"}},
                ]
            )
        with ordinary_threads():
            for frame, time in zip(frames, times, strict=True):
                frame.pts, frame.time_base = time, Fraction(1, TICKS)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        if audio is not None:
            _write_sine(container, audio, seconds=(times[-1] + TICKS // 25) / TICKS)
        for packet in texts.demux() if texts else ():
            if packet.dts is not None:
                packet.stream = subtitles
                container.mux_one(packet)
    return path


@contextmanager
def _subrip(path: Path, clip: Clip) -> Iterator[Any]:
    """The clip's subtitles as an open file of their own."""
    file = path.with_suffix(".srt")
    file.write_bytes(
        b"".join(
            b"%d\n00:00:00,%03d --> 00:00:00,%03d\n%s\n\n" % (number, begin, end, text)
            for number, (begin, end, text) in enumerate(clip.subtitles, 1)
        )
    )
    with av.open(str(file)) as container:
        yield container
    file.unlink()


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Give the first track of an MP4 file a display matrix (a, b, c, d); each -1, 0 or 1."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[place + offset : place + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Shown:
    """One decoded frame: its time in seconds, pixel format, and hash of its samples."""

    time: Fraction
    pixel_format: str
    samples: str


def shown(path: Path) -> list[Shown]:
    """The frames of a clip's first video stream."""
    with av.open(str(path)) as container:
        return [
            Shown(frame.pts * Fraction(frame.time_base), frame.format.name, _hash(frame))
            for frame in container.decode(video=0)
        ]


def samples(path: Path) -> list[list[np.ndarray]]:
    """The planes of each frame of a clip's first video stream."""
    with av.open(str(path)) as container:
        return [frame_planes(frame) for frame in container.decode(video=0)]


def frame_planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The planes of a planar frame, [height, width] each; copies."""
    deep = max(component.bits for component in frame.format.components) > 8
    return [
        np.frombuffer(plane, np.uint16 if deep else np.uint8).reshape(plane.height, -1)[:, : plane.width].copy()
        for plane in frame.planes
    ]


def packets(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """Times and bytes of the packets of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [
            (packet.pts * Fraction(packet.time_base), bytes(packet))
            for packet in container.demux(stream)
            if packet.pts is not None
        ]


def _hash(frame: av.VideoFrame) -> str:
    return hashlib.sha256(b"".join(plane.tobytes() for plane in frame_planes(frame))).hexdigest()


def _frame(picture: Any, clip: Clip) -> av.VideoFrame:
    if isinstance(picture, av.VideoFrame):
        return picture
    kind = "gray" if picture.ndim == 2 else "rgb24" if picture.dtype == np.uint8 else "rgb48le"
    return av.VideoFrame.from_ndarray(picture, format=kind).reformat(
        format=clip.pixel_format, dst_colorspace="ITU709" if clip.tags[2] == 1 else "ITU601"
    )


def _write_sine(container: Any, stream: Any, seconds: float) -> None:
    size = stream.codec_context.frame_size or 1024
    times = np.arange(0, seconds, 1 / 48_000)
    sine = np.sin(2 * np.pi * 440 * times).astype(np.float32) / 4
    for start in range(0, len(sine) - size, size):
        block = np.stack([sine[start : start + size]] * 2)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
