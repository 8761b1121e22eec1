"""Photos: image files with all that belongs to them, read into arrays and written back whole."""

from ipt_triton.client.photo.formats import (
    FORMATS,
    READ_SUFFIXES,
    WRITTEN_SUFFIXES,
    Format,
    check_format,
    same_format,
    unread_kind,
)
from ipt_triton.client.photo.frames import Frames, check_frames, read_frames, write_frames
from ipt_triton.client.photo.picture import Photo
from ipt_triton.client.photo.reading import MAX_BYTES, MAX_PIXELS, Header, as_image, read_header, read_photo
from ipt_triton.client.photo.writing import write_photo
from ipt_triton.client.photo.xmp import recorded_action

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "READ_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "Format",
    "Frames",
    "Header",
    "Photo",
    "as_image",
    "check_format",
    "check_frames",
    "read_frames",
    "read_header",
    "read_photo",
    "recorded_action",
    "same_format",
    "unread_kind",
    "write_frames",
    "write_photo",
]
