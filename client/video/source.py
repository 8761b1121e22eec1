"""Sources: a video file's frames in order, upright, with their times, and what must be known to write them again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from ipt_triton.client.video.colour import FULL_RANGE, RGB, UNSPECIFIED, Conversion, Layout, layout_of
from ipt_triton.client.video.errors import DamagedVideo, UnsupportedVideo, VideoError

_ONE = 1 << 16  # of a display matrix, whose entries are fixed-point numbers
_TOP_LEFT_MATRICES = (9, 10)
"""BT.2020, whose chroma lies on luma along both axes."""


@dataclass(frozen=True)
class Tags:
    """Code points of ITU-T H.273 for colours, and FFmpeg's for the range; 2 (range: 0) where the file says nothing."""

    primaries: int
    transfer: int
    matrix: int
    range: int


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        pts, duration: in units of the stream's time base; a duration of 0 is unknown.
        picture: RGB [height, width, 3] or gray [height, width], uint8, or uint16 for more than 8 bits; upright.
    """

    pts: int
    duration: int
    picture: NDArray[Any]


@dataclass(frozen=True)
class RawFrame:
    """A frame as decoded, and its repaired time."""

    pts: int
    duration: int
    frame: av.VideoFrame


@dataclass(frozen=True)
class Orientation:
    """How a frame's pixels must be turned to stand upright: transposed, then mirrored along height and width."""

    transposed: bool = False
    flipped: tuple[bool, bool] = (False, False)

    def upright(self, picture: NDArray[Any]) -> NDArray[Any]:
        """The picture as players show it."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        for axis in (0, 1):
            if self.flipped[axis]:
                picture = np.flip(picture, axis)
        return np.ascontiguousarray(picture)


def open_to_read(path: Path) -> av.container.InputContainer:
    """A video file. Its metadata may be no UTF-8, which PyAV takes from 19 on, and older ones if they are asked to.

    Raises:
        av.FFmpegError: it cannot be read.
    """
    options: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    return av.open(str(path), **options)


class Source:
    """A video file whose first video stream (cover pictures aside) is read.

    Args:
        path: the file.

    Attributes:
        size: width and height of its pictures, upright.
        notes: what was wrong or could not be kept, a sentence each; complete once all frames are read.

    Raises:
        VideoError: it cannot be opened.
        DamagedVideo: it is no video, or none of its frames can be decoded.
        UnsupportedVideo: it is interlaced, or its pixel format cannot be read.
    """

    codec: str
    profile: str | None
    tags: Tags
    conversion: Conversion
    orientation: Orientation
    size: tuple[int, int]
    sample_aspect_ratio: Fraction
    _first: av.VideoFrame | None

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, list[str]()
        self._damaged = 0
        try:
            self._container = open_to_read(path)
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error
        try:
            self._describe()
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._container.close()

    def frames(self) -> Iterator[RawFrame]:
        """All frames in the order they are shown; once only. Damaged ones are left out, and noted.

        Raises:
            UnsupportedVideo: size, format or scan change on the way.
        """
        if self._first is None:
            raise ValueError("the frames were read already")
        frame: av.VideoFrame | None = self._first
        self._first = None
        number, first, gap = 0, 0, 0
        last: tuple[int, int] | None = None
        while frame is not None:
            self._check_same(frame, number)
            duration = int(frame.duration or 0)
            pts = frame.pts if frame.pts is not None else frame.dts
            if last is not None and (pts is None or pts <= last[0]):
                pts = last[0] + max(1, last[1])
                self._note_once("some frames had no time of their own, or one before their predecessor's; they got one")
            pts = 0 if pts is None else pts
            if last is None:
                first = pts
            else:
                gap = max(gap, pts - last[0])
            last = (pts, duration)
            yield RawFrame(*last, frame)
            number += 1
            frame = next(self._decoded, None)
        if self._damaged:
            self.notes.append(f"{self._damaged} damaged places were left out; {number} frames could be read")
        elif self._seconds is not None and last is not None:
            read = (last[0] + last[1] - first) * self.time_base
            if read + 2 * max(gap * self.time_base, 1 / self.rate) < self._seconds:
                self.notes.append(
                    f"the file ends early: of {float(self._seconds):.2f} s of video {float(read):.2f} s could be read"
                )

    def picture(self, raw: RawFrame) -> Frame:
        """A frame's picture. Threads may call this for several frames at once."""
        return Frame(raw.pts, raw.duration, self.orientation.upright(self.conversion.picture(raw.frame)))

    def _describe(self) -> None:
        videos = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            raise DamagedVideo(f"{self.path} holds no video; give a file with a video stream")
        stream: Any = videos[0]  # its types change from one PyAV to the next
        self.index: int = stream.index
        self.time_base, self.rate = Fraction(stream.time_base or 1), Fraction(stream.average_rate or 25)
        is_avi = self._container.format.name == "avi"  # which counts the gaps between frames as well
        self.frame_count: int | None = None if is_avi else stream.frames or None
        self._seconds = self._length(stream)
        self._decoded = self._decode(stream)
        self._first = next(self._decoded, None)
        if self._first is None:
            raise DamagedVideo(f"{self.path} holds no frame that can be decoded; get a complete copy of it")
        context = stream.codec_context
        self.codec = av.Codec(context.codec.name, "r").canonical_name
        self.profile = context.profile
        self.tags = Tags(
            int(context.color_primaries), int(context.color_trc), int(context.colorspace), int(context.color_range)
        )
        layout = layout_of(self._first.format.name)
        if layout is None:
            raise UnsupportedVideo(
                f"{self.path} holds pixels of the format {self._first.format.name}, which is not read; convert it to "
                "a planar one of 8 to 16 bits, such as yuv420p"
            )
        if any(component.is_alpha for component in self._first.format.components):
            self.notes.append("transparency is left out")
        self.conversion = self._conversion(layout)
        self.orientation = self._orientation()
        width, height = self._first.width, self._first.height
        self.size = (height, width) if self.orientation.transposed else (width, height)
        ratio = Fraction(stream.sample_aspect_ratio or 1)
        self.sample_aspect_ratio = 1 / ratio if ratio and self.orientation.transposed else ratio

    def _length(self, stream: Any) -> Fraction | None:
        """Seconds that the file gives the video stream; None if they may be another stream's."""
        try:  # Matroska's, as in 00:01:02.345000000
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
        except (KeyError, ValueError):
            is_its_own = "matroska" not in self._container.format.name or len(self._container.streams) == 1
            return stream.duration * self.time_base if stream.duration and is_its_own else None

    def _conversion(self, layout: Layout) -> Conversion:
        assert self._first is not None
        name, tags = self._first.format.name, self.tags
        full = name.startswith("yuvj") or tags.range == FULL_RANGE or (layout.kind == "gray" and tags.range == 0)
        matrix = tags.matrix if tags.matrix != RGB else UNSPECIFIED
        between = name.startswith("yuvj") or self.codec in ("mjpeg", "mpeg1video")  # JPEG's and MPEG-1's chroma
        return Conversion(layout, matrix, full, (matrix in _TOP_LEFT_MATRICES, not between))

    def _orientation(self) -> Orientation:
        assert self._first is not None
        data: Any = self._first.side_data.get("DISPLAYMATRIX")
        if data is None:
            return Orientation()
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data)[:36])
        if (b, c) == (0, 0) and abs(a) == abs(d) == _ONE:
            return Orientation(False, (d < 0, a < 0))
        if (a, d) == (0, 0) and abs(b) == abs(c) == _ONE:
            return Orientation(True, (b < 0, c < 0))
        self.notes.append("the picture is shown turned by no right angle; it is left as it lies in the file")
        return Orientation()

    def _check_same(self, frame: av.VideoFrame, number: int) -> None:
        form, expected = frame.format.name, self.conversion.layout
        if frame.interlaced_frame:
            raise UnsupportedVideo(
                f"{self.path} is interlaced (frame {number}), and its lines belong to two moments; deinterlace it "
                "first, for example with ffmpeg -i in.mp4 -vf bwdif out.mp4"
            )
        if number == 0:
            self._size = (frame.width, frame.height)
        if (frame.width, frame.height) != self._size or layout_of(form) != expected:
            raise UnsupportedVideo(
                f"{self.path} changes from {self._size[0]}x{self._size[1]} {expected.name} to "
                f"{frame.width}x{frame.height} {form} at frame {number}; cut it there and restore the parts"
            )

    def _note_once(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _decode(self, stream: Any) -> Iterator[av.VideoFrame]:
        for packet in chain(readable(self._container.demux(stream), self._break_off), [None]):
            try:
                yield from stream.codec_context.decode(packet)
            except av.EOFError:
                return
            except av.FFmpegError:
                self._damaged += 1

    def _break_off(self, reason: str) -> None:
        self._damaged += 1
        self.notes.append(f"the file ends early: {reason}")


def readable(packets: Iterator[Any], tell: Callable[[str], None]) -> Iterator[Any]:
    """Packets up to the end, or to where no more can be read; the reason is told."""
    try:
        yield from packets
    except av.FFmpegError as error:
        tell(error.strerror or str(error))


def _unreadable(path: Path, error: av.FFmpegError) -> VideoError:
    if isinstance(error, OSError) and not isinstance(error, av.InvalidDataError) and not path.is_file():
        return VideoError(f"{path} cannot be read: {error.strerror or error}")
    return DamagedVideo(f"{path} is no video that can be read, or it is damaged ({error.strerror or error})")
