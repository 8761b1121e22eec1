"""Restoring a video: its frames through the pipeline into segments, and these with all else into the target."""

from __future__ import annotations

import errno
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import av

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.client.options import Options
from ipt_triton.client.video.encoding import FrameEncoder, Plan, plan_output
from ipt_triton.client.video.errors import VideoError
from ipt_triton.client.video.joining import join
from ipt_triton.client.video.making import Making, Restorer, plan_making
from ipt_triton.client.video.pipeline import Finished, Sent, restored_frames
from ipt_triton.client.video.segments import SegmentHeader, WorkFolder, fingerprint, read_header, read_packets
from ipt_triton.client.video.source import Source
from ipt_triton.tasks import TaskKey

log = logging.getLogger(__name__)

SEGMENT_FRAMES = 60
"""Frames of a segment: what a kill costs at most, and at least one key frame in so many."""

_FORMAT = 1
"""Version of the segments' files and of what decides about their frames."""

Progress = Callable[[int, "int | None", float], None]


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        frames: of the target.
        resumed: those of them that a run before had finished.
        width, height: of the target.
        encoder: FFmpeg's name.
        sent: share of this run's pixels that were restored; the others were known from the frame before.
        seconds: that this run took.
        notes: what was damaged, left out or not kept, a sentence each.
    """

    frames: int
    resumed: int
    width: int
    height: int
    encoder: str
    sent: float
    seconds: float
    notes: tuple[str, ...]


def restore_video(
    client: Restorer,
    source: Path | str,
    target: Path | str,
    task: TaskKey,
    *,
    stride: int | None = None,
    keep: int | None = None,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    tta: bool = False,
    strength: float = 1.0,
    workers: int = 2,
    quality: int | None = None,
    lossless: bool = False,
    segment_frames: int = SEGMENT_FRAMES,
    progress: Progress | None = None,
) -> VideoReport:
    """Restore every frame of a video.

    Kept are the frames' times, codec, depth, chroma, colour tags and pixel shape, the other streams, chapters and
    metadata, as far as the target's container takes them; the report's notes name what is not, and are logged. Rotated
    videos are turned upright. Of a frame that follows another, only what changed is restored, with the same result as
    the whole frame's.

    A run that ended early goes on when it is called again with the same arguments. Until then its segments lie in the
    folder `.NAME.segments` beside the target.

    Args:
        client: a `RestorationClient`, or anything with its `restore`.
        source: a file with a video stream. The first one is restored, others are copied.
        target: the file to write, replaced if it is there; its suffix names the container.
        task: id or name; or several, a chain, through which frames go whole unless nothing in them has changed.
        stride, keep: the tiling rule; None for the server's, for the default where the client has no `info`.
        scale, width, height: size of the target's frames as of a photo, see `RestorationClient.restore`; of the upright
            picture, in the stream's own pixels. Where the encoder takes whole chroma samples alone (H.264 and HEVC in
            4:2:0), sides are rounded down to even ones.
        tta: restore each frame in eight views and take their mean, eight times the work; frames go whole unless
            nothing in them has changed.
        strength: share of the result, 0 to 1; the rest is the frame itself.
        workers: frames that are sent at a time.
        quality: the encoder's crf or qscale, lower is better; None for one that loses next to nothing.
        lossless: encode without loss.
        segment_frames: frames of a segment; each begins with a key frame.
        progress: called with the frames done, the frames of all (None: not known) and the seconds since the start.

    Raises:
        VideoError: a file cannot be read or written, or the disk is full. Finished segments stay.
        DamagedVideo: no video, or no frame of it can be decoded.
        UnsupportedVideo: interlaced, of changing size, or nothing can be written into a target of this kind, or not in
            this size.
        InvalidRequest: options that are not allowed, a size that is not reached, a rule that no tiling can follow, a
            quality that the encoder does not have, workers or segment_frames below 1.
        RestorationError: see `RestorationClient.restore`.
    """
    if workers < 1 or segment_frames < 1:
        raise InvalidRequest(f"workers {workers} and segment_frames {segment_frames} must both be 1 or more")
    source, target, started = Path(source), Path(target), time.monotonic()
    options = Options(scale, width, height, tta, strength)
    with _explained(target), Source(source) as clip:
        if target.exists() and target.samefile(source):
            raise VideoError(f"{target} is the video itself; choose another target")
        plan = plan_output(clip, target, quality, lossless)
        making = plan_making(client, task, stride, keep, options, clip.size, plan)
        if making.size is not None:
            FrameEncoder(plan, *making.size)  # what it refuses is known before the work
        with WorkFolder(target, _journal(source, plan, making, segment_frames)) as work:
            resumed = sum(1 for path in work.finished() for _ in read_packets(path, with_data=False))
            sent = Sent()
            raw = itertools.islice(clip.frames(), resumed, None)
            frames = restored_frames(raw, clip.picture, making, plan.conversion, workers, sent)
            with closing(frames):
                for done in itertools.chain([resumed], _encode(frames, plan, work, segment_frames, resumed)):
                    if progress is not None:
                        progress(done, clip.frame_count, time.monotonic() - started)
            header = read_header(work.finished()[0])
            joined = work.path / f"joined{target.suffix}"
            join(clip, work.finished(), plan, joined)
            joined.replace(target)
            work.remove()
    for note in clip.notes:
        log.warning("%s: %s", source, note)
    return VideoReport(
        done,
        resumed,
        header.width,
        header.height,
        plan.encoder,
        sent.share,
        time.monotonic() - started,
        tuple(clip.notes),
    )


def _journal(source: Path, plan: Plan, making: Making, segment_frames: int) -> dict[str, Any]:
    """All that decides about the frames of the segments: those of another model, for example, are not taken up."""
    return {
        "format": _FORMAT,
        "source": fingerprint(source),
        "tasks": making.tasks,
        "options": [str(value) for value in astuple(making.options)],
        "rule": list(making.rule),
        "model": making.model,
        "encoder": [plan.encoder, plan.pixel_format, plan.options],
        "segment_frames": segment_frames,
        "library": av.__version__,
    }


def _encode(frames: Iterator[Finished], plan: Plan, work: WorkFolder, segment_frames: int, done: int) -> Iterator[int]:
    """Encode frames into segments that follow the finished ones; yields the number of frames done after each."""
    for number in itertools.count(len(work.finished())):
        group = itertools.islice(frames, segment_frames)
        first = next(group, None)
        if first is None:
            return
        width, height = first.frame.width, first.frame.height
        encoder = FrameEncoder(plan, width, height)
        with work.segment(number, SegmentHeader(width, height, encoder.extradata)) as segment:
            for pts, duration, frame in itertools.chain([first], group):
                for packet in encoder.encode(frame, pts, duration):
                    segment.write(packet)
                done += 1
                yield done
            for packet in encoder.finish():
                segment.write(packet)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Errors of the operating system as sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VideoError(
                f"the disk is full, {target} is not written; make room and restore the video again: what is finished "
                "is kept"
            ) from error
        raise VideoError(f"{error.filename or target} cannot be used: {error.strerror or error}") from error
