"""Errors of videos: what can be wrong with a clip, its target or the library that reads it."""

from ipt_triton.client.errors import RestorationError


class VideoError(RestorationError):
    """Base of what can be wrong with a video's file. Raised itself when a file cannot be opened or written."""


class DamagedVideo(VideoError):
    """No video, or so damaged that no frame can be read."""


class UnsupportedVideo(VideoError):
    """A sound video of a kind that cannot be restored or written (interlaced, changing size, no encoder, ...)."""


class VideoLibraryMissing(VideoError):
    """PyAV is not installed."""
