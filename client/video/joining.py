"""Joining: finished segments and the source's other streams become one file, without encoding anything again."""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from ipt_triton.client.video.encoding import Plan, ordinary_threads
from ipt_triton.client.video.errors import UnsupportedVideo, VideoError
from ipt_triton.client.video.segments import read_header, read_packets
from ipt_triton.client.video.source import Source, open_to_read, readable

_OF_THE_CONTAINER = frozenset(("major_brand", "minor_version", "compatible_brands", "encoder"))
"""Metadata that describes the source's container, not the video."""

_OF_THE_ENCODER = frozenset(("encoder", "BPS", "DURATION", "NUMBER_OF_FRAMES", "NUMBER_OF_BYTES"))
"""Metadata that describes how the source's stream was encoded."""


def join(source: Source, segments: Sequence[Path], plan: Plan, path: Path) -> None:
    """Write the segments' video, and all else that the source holds and the container takes, to `path`.

    Audio, subtitles, attachments and data are copied as they are; what the container does not take is noted in the
    source. The video takes the source's place among the streams.

    Args:
        source: its file is read a second time.
        segments: files of `client.video.segments`, in order.
        plan: by which they were encoded.
        path: the file to write; its suffix names the container.

    Raises:
        UnsupportedVideo: the segments do not belong together.
        VideoError: the container cannot be written.
    """
    try:
        with (
            open_to_read(source.path) as old,
            av.open(str(path), "w") as new,
        ):
            _join(source, old, new, segments, plan)
    except av.FFmpegError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror) from error
        raise VideoError(f"{path} cannot be written: {error.strerror or error}; choose another container") from error


def _join(source: Source, old: Any, new: Any, segments: Sequence[Path], plan: Plan) -> None:
    header = read_header(segments[0])
    video: Any = None
    copies: dict[int, Any] = {}
    for stream in old.streams:
        if stream.index == source.index:
            video = new.add_stream(plan.encoder, plan.rate)
            plan.configure(video.codec_context, header.width, header.height)
            video.time_base = plan.time_base
            _describe(stream, video)
        elif not (_is_text_of_chapters(stream) and old.chapters()) and _is_taken(stream, new, source):
            copies[stream.index] = new.add_stream_from_template(stream, opaque=True)
            _describe(stream, copies[stream.index])
    new.metadata.update({name: value for name, value in old.metadata.items() if name not in _OF_THE_CONTAINER})
    new.set_chapters(old.chapters())
    with ordinary_threads():
        new.start_encoding()
    own = (video.codec_context.extradata or b"").hex()
    for segment in segments:
        if read_header(segment).extradata not in (header.extradata, own):
            raise UnsupportedVideo(f"{segment} was encoded otherwise than the others; delete its folder and begin anew")
    packets = heapq.merge(_video(segments, video, plan), _others(old, copies, source), key=_moment)
    for packet in packets:
        new.mux_one(packet)


def _describe(stream: Any, copy: Any) -> None:
    copy.metadata.update({name: value for name, value in stream.metadata.items() if name not in _OF_THE_ENCODER})
    copy.disposition = stream.disposition


def _is_text_of_chapters(stream: Any) -> bool:
    """Whether a stream holds what MP4 files repeat of their chapters; it is written anew with them."""
    return bool(stream.type == "data" and getattr(stream, "name", None) == "bin_data")


def _is_taken(stream: Any, new: Any, source: Source) -> bool:
    """Whether the container takes a stream as it is: tried with a file of this stream alone."""
    name = getattr(stream, "name", None) or (stream.codec_context.name if stream.codec_context else "unknown")
    probe = Path(new.name).with_name(f"probe{Path(new.name).suffix}")
    try:
        with av.open(str(probe), "w") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
        return True
    except (av.FFmpegError, ValueError, AttributeError):
        language = f" ({stream.metadata['language']})" if "language" in stream.metadata else ""
        source.notes.append(
            f"{stream.type} stream {stream.index}, {name}{language}, is left out: {new.format.name} does not take it"
        )
        return False
    finally:
        probe.unlink(missing_ok=True)


def _video(segments: Sequence[Path], stream: Any, plan: Plan) -> Iterator[Any]:
    times = [packet.pts for segment in segments for packet in read_packets(segment, with_data=False)]
    decoded = iter(decode_times(times))
    for segment in segments:
        for pts, duration, is_key, data in read_packets(segment):
            packet = av.Packet(data)
            packet.pts, packet.dts, packet.duration = pts, next(decoded), duration
            packet.time_base, packet.is_keyframe, packet.stream = plan.time_base, is_key, stream
            yield packet


def _others(old: Any, copies: dict[int, Any], source: Source) -> Iterator[Any]:
    """The source's packets for the copied streams, as far as they can be read."""
    if not copies:
        return
    packets = old.demux([stream for stream in old.streams if stream.index in copies])
    for packet in readable(packets, lambda reason: source.notes.append(f"the other streams end early: {reason}")):
        if packet.dts is None and packet.pts is None:
            continue
        if packet.dts is None:
            packet.dts = packet.pts
        packet.stream = copies[packet.stream.index]
        yield packet


def _moment(packet: Any) -> Fraction:
    return packet.dts * Fraction(packet.time_base)


def decode_times(shown: Sequence[int]) -> list[int]:
    """Decoding times for frames in the encoder's order: rising, and never after the frame is shown.

    Segments know nothing of each other, so that theirs could run backwards where they meet.

    Args:
        shown: times at which the frames are shown; no two are the same.
    """
    order = sorted(shown)
    rank = {time: place for place, time in enumerate(order)}
    delay = max((place - rank[time] for place, time in enumerate(shown)), default=0)
    step = min((b - a for a, b in pairwise(order)), default=1)
    return [*(order[0] - (delay - place) * step for place in range(delay)), *order][: len(order)]
