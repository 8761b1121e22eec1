"""Encoders: the source's own codec where there is an encoder for it, its quality, and the pixel format it is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ipt_triton.client.errors import InvalidRequest
from ipt_triton.client.video.colour import FULL_RANGE, Conversion, Layout, layout_of
from ipt_triton.client.video.errors import UnsupportedVideo
from ipt_triton.client.video.segments import Packet
from ipt_triton.client.video.source import Source, Tags

THREADS = 4
"""Of an encoder. Some encode otherwise with another number, and a run may go on after a kill on another machine."""

_LAMBDA = 118  # FFmpeg's unit of global_quality for one step of qscale


@dataclass(frozen=True)
class Encoder:
    """An encoder of FFmpeg and how its quality is set.

    Attributes:
        name: FFmpeg's.
        quality: name of the option for constant quality (lower is better), "qscale", or "" if it has none.
        default: of that option.
        allowed: values of that option.
        options: always given.
        lossless: options for lossless encoding; None if it cannot.
        whole_chroma: it refuses a side that is no whole number of chroma samples, such as an odd one of 4:2:0.
    """

    name: str
    quality: str = ""
    default: int = 0
    allowed: range = range(0)
    options: dict[str, str] = field(default_factory=dict)
    lossless: dict[str, str] | None = None
    whole_chroma: bool = False


_X26_CRF, _VPX_CRF, _QSCALE = range(52), range(64), range(1, 32)
_FFV1 = Encoder("ffv1", options={"level": "3", "slicecrc": "1"}, lossless={})

ENCODERS: dict[str, tuple[Encoder, ...]] = {
    "h264": (Encoder("libx264", "crf", 17, _X26_CRF, {"preset": "medium"}, {"qp": "0"}, whole_chroma=True),),
    "hevc": (
        Encoder(
            "libx265",
            "crf",
            18,
            _X26_CRF,
            {"preset": "medium", "x265-params": "log-level=error"},
            {"x265-params": "lossless=1:log-level=error"},
            whole_chroma=True,
        ),
    ),
    "vp8": (Encoder("libvpx", "crf", 8, range(4, 64), {"b": "20M", "deadline": "good", "cpu-used": "2"}),),
    "vp9": (
        Encoder(
            "libvpx-vp9",
            "crf",
            20,
            _VPX_CRF,
            {"b": "0", "deadline": "good", "cpu-used": "3", "row-mt": "1"},
            {"lossless": "1"},
        ),
    ),
    "av1": (Encoder("libsvtav1", "crf", 22, range(1, 64), {"preset": "6"}),),
    "mpeg4": (Encoder("mpeg4", "qscale", 2, _QSCALE),),
    "mjpeg": (Encoder("mjpeg", "qscale", 2, _QSCALE),),
    "prores": (Encoder("prores_ks", options={"vendor": "apl0"}),),
    "ffv1": (_FFV1,),
    "ffvhuff": (Encoder("ffvhuff", lossless={}, whole_chroma=True),),
    "huffyuv": (Encoder("huffyuv", lossless={}, whole_chroma=True),),
    "utvideo": (Encoder("utvideo", lossless={}, whole_chroma=True),),
    "rawvideo": (Encoder("rawvideo", lossless={}),),
}
"""Encoders by FFmpeg's name of the codec, the best one first."""

FALLBACKS = ("h264", "vp9", "av1", "mpeg4", "mjpeg")
"""Codecs for a source whose own one cannot be written, the first one that the container takes."""

_LOSSLESS_FALLBACKS = ("ffv1", "h264", "vp9")

_PRORES_PROFILES = {"XQ": "5", "4444": "4", "HQ": "3", "Standard": "2", "LT": "1", "Proxy": "0"}
"""Numbers of prores_ks by a word of the name that the decoder gives."""


@dataclass(frozen=True)
class Plan:
    """How the restored video is written, but for its size.

    Attributes:
        encoder: FFmpeg's name.
        options: of the encoder.
        pixel_format: what the encoder is given.
        conversion: from pictures to the planar layout of that format.
        tags: colours, for the stream's header.
        time_base, rate, sample_aspect_ratio: of the stream.
        steps: height and width of a picture are multiples of these.
    """

    encoder: str
    options: dict[str, str]
    pixel_format: str
    conversion: Conversion
    tags: Tags
    time_base: Fraction
    rate: Fraction
    sample_aspect_ratio: Fraction
    steps: tuple[int, int]

    def size_within(self, width: int, height: int) -> tuple[int, int]:
        """The largest width and height that the encoder takes and that are not above these."""
        down, across = self.steps
        return max(across, width - width % across), max(down, height - height % down)

    def configure(self, context: Any, width: int, height: int) -> None:
        """Set up an encoder's context, or a stream, for pictures of this size."""
        context.width, context.height, context.pix_fmt = width, height, self.pixel_format
        context.time_base, context.framerate = self.time_base, self.rate
        context.sample_aspect_ratio = self.sample_aspect_ratio
        context.color_primaries, context.color_trc = self.tags.primaries, self.tags.transfer
        context.colorspace, context.color_range = self.tags.matrix, self.tags.range
        context.thread_count = THREADS
        context.flags |= av.codec.context.Flags.global_header
        context.options = dict(self.options)


def plan_output(source: Source, target: Path, quality: int | None, lossless: bool) -> Plan:
    """Choose encoder, options and pixel format for a target.

    Args:
        source: its codec, format, colours and times are kept where the target's container and an encoder take them;
            what is not kept is noted in it.
        target: its suffix names the container.
        quality: of the encoder, lower is better; None for a good one.
        lossless: encode without loss.

    Raises:
        UnsupportedVideo: no container of that suffix, or no encoder for it.
        InvalidRequest: a quality that the encoder does not have.
    """
    encoder = _choose_encoder(source, target, lossless)
    if encoder.name not in [candidate.name for candidate in ENCODERS.get(source.codec, ())]:
        source.notes.append(f"{source.codec} cannot be written to {target.name}; the video is {encoder.name}'s")
    layout = source.conversion.layout
    pixel_format = _choose_format(layout, encoder, source)
    written = layout_of(pixel_format)
    assert written is not None
    if written != layout:
        source.notes.append(f"{encoder.name} takes no {layout.name}; the video is written as {pixel_format}")
    tags, conversion = source.tags, source.conversion
    if written.kind != layout.kind:  # from RGB or gray to YUV
        tags = Tags(tags.primaries, tags.transfer, 1, 1)
        conversion = Conversion(written, matrix=1, full=False)
    else:
        conversion = Conversion(written, conversion.matrix, conversion.full, conversion.cosited)
        if conversion.full and layout.kind != "rgb":
            tags = Tags(tags.primaries, tags.transfer, tags.matrix, FULL_RANGE)
    return Plan(
        encoder.name,
        _options(encoder, source, quality, lossless),
        pixel_format,
        conversion,
        tags,
        source.time_base,
        source.rate,
        source.sample_aspect_ratio,
        (1 << written.halvings[0], 1 << written.halvings[1]) if encoder.whole_chroma else (1, 1),
    )


class FrameEncoder:
    """One encoder at work: pictures in, packets out; every packet is one frame.

    Args:
        plan: see `plan_output`.
        width, height: of the pictures.

    Raises:
        UnsupportedVideo: the encoder refuses the size or the options.
    """

    def __init__(self, plan: Plan, width: int, height: int) -> None:
        self._plan = plan
        self._context: Any = av.CodecContext.create(plan.encoder, "w")
        plan.configure(self._context, width, height)
        try:
            with ordinary_threads():
                self._context.open()
        except av.FFmpegError as error:
            raise UnsupportedVideo(
                f"{plan.encoder} refuses {width}x{height} {plan.pixel_format} with {plan.options} "
                f"({error.strerror or error}); choose another size, another quality or a target of another kind"
            ) from error
        self._durations: dict[int, int] = {}

    @property
    def extradata(self) -> str:
        """The encoder's header in hexadecimal digits, may be empty."""
        return (self._context.extradata or b"").hex()

    def encode(self, frame: av.VideoFrame, pts: int, duration: int) -> Iterator[Packet]:
        """Give the encoder a frame of the plan's layout; take what it has finished."""
        if frame.format.name != self._plan.pixel_format:
            frame = frame.reformat(format=self._plan.pixel_format)
        frame.pts, frame.time_base = pts, self._plan.time_base
        self._durations[pts] = duration
        yield from self._packets(frame)

    def finish(self) -> Iterator[Packet]:
        """The packets that are still due."""
        yield from self._packets(None)

    def _packets(self, frame: av.VideoFrame | None) -> Iterator[Packet]:
        for packet in self._context.encode(frame):
            duration = self._durations.pop(packet.pts)
            yield Packet(packet.pts, duration, packet.is_keyframe, bytes(packet))


@contextmanager
def ordinary_threads() -> Iterator[None]:
    """Takes back, after the block, that threads were made real-time ones: SVT-AV1 does so to root's, its caller's
    included, and then nothing else gets that core any more."""
    tasks = Path("/proc/self/task")  # of Linux

    def urgent() -> set[int]:
        found = set()
        for task in (int(path.name) for path in tasks.glob("*")):
            with suppress(ProcessLookupError):
                if os.sched_getscheduler(task) == os.SCHED_FIFO:
                    found.add(task)
        return found

    before = urgent()
    try:
        yield
    finally:
        for task in urgent() - before:
            with suppress(ProcessLookupError):
                os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


def _choose_encoder(source: Source, target: Path, lossless: bool) -> Encoder:
    candidates = list(ENCODERS.get(source.codec, ()))
    for codec in _LOSSLESS_FALLBACKS if lossless else FALLBACKS:
        candidates += ENCODERS[codec]
    for encoder in candidates:
        if (not lossless or encoder.lossless is not None) and _takes(target, encoder.name):
            return encoder
    raise UnsupportedVideo(
        f"{target}: no {'lossless ' if lossless else ''}video can be written into a file of this suffix; choose .mkv, "
        ".mp4 or .mov"
    )


def _takes(target: Path, encoder: str) -> bool:
    """Whether an encoder is there and the target's container takes what it writes."""
    try:
        av.Codec(encoder, "w")
    except ValueError:  # PyAV's UnknownCodecError
        return False
    try:
        with av.open(str(target.with_name(f".{target.name}.probe{target.suffix}")), "w") as container:
            container.add_stream(encoder, 25)
    except ValueError as error:
        if isinstance(error, av.FFmpegError) or "format" not in str(error):
            raise UnsupportedVideo(
                f"{target}: no container has the suffix {target.suffix!r}; choose .mkv, .mp4 or .mov"
            ) from error
        return False
    return True


def _choose_format(layout: Layout, encoder: Encoder, source: Source) -> str:
    """The format that loses the least: the same layout, else more chroma, then more bits, then the nearest below."""
    names = [form.name for form in av.Codec(encoder.name, "w").video_formats or []]
    if not names:  # the encoder takes any
        return layout.name

    def loss(name: str) -> tuple[Any, ...]:
        other = layout_of(name)
        if other is None or any(component.is_alpha for component in av.VideoFormat(name).components):
            return (9,)
        if other.kind not in (layout.kind, "yuv"):
            return (9,)
        lost_chroma = max(a - b for a, b in zip(other.halvings, layout.halvings, strict=True)) > 0
        return (
            lost_chroma,
            other.kind != layout.kind,
            other.bits < layout.bits,
            abs(other.bits - layout.bits),
            sum(layout.halvings) - sum(other.halvings),
            name.startswith("yuvj"),
            name != other.name,
        )

    best = min(names, key=loss)
    if loss(best) == (9,):
        raise UnsupportedVideo(
            f"{source.path}: {encoder.name} takes no pixels like {layout.name}; choose a target of another kind"
        )
    return best


def _options(encoder: Encoder, source: Source, quality: int | None, lossless: bool) -> dict[str, str]:
    options = dict(encoder.options)
    value = encoder.default if quality is None else quality
    if encoder.quality and value not in encoder.allowed:
        raise InvalidRequest(
            f"quality {value} must be {encoder.allowed[0]} to {encoder.allowed[-1]}, "
            f"the {encoder.quality} of {encoder.name}"
        )
    if lossless:
        options.update(encoder.lossless or {})
    elif encoder.quality == "qscale":
        options.update({"flags": "+qscale", "global_quality": str(_LAMBDA * value)})
    elif encoder.quality:
        options[encoder.quality] = str(value)
    elif quality is not None:
        source.notes.append(f"{encoder.name} has no quality to set; {quality} is not used")
    if encoder.name == "prores_ks" and source.codec == "prores":
        profile = next((value for name, value in _PRORES_PROFILES.items() if name in (source.profile or "")), None)
        if profile is not None:
            options["profile"] = profile
    return options
