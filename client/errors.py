"""Errors of the client: every message is one sentence that names the value, what is allowed and what to do."""

from ipt_triton.errors import IptError


class RestorationError(IptError):
    """Base of every error that the client raises on purpose."""


class ServerUnavailable(RestorationError):
    """No server answers at the address, or it is too busy; raised after the last retry."""


class AccessRefused(ServerUnavailable):
    """A certificate or a token is not accepted, by the server or by this client."""


class InvalidAddress(RestorationError):
    """An address, a file for TLS or a header that cannot be used; raised before anything is sent."""


class ServerError(RestorationError):
    """The server answered with an error that is not the caller's fault, or it serves something else."""


class RequestTimeout(RestorationError):
    """The server did not answer within the client's timeout, or a proxy's."""


class Cancelled(RestorationError):
    """The caller no longer wanted the result; the server has given the rest of it up."""


class InvalidRequest(RestorationError):
    """An array, stride, keep or size that the server cannot take."""


class UnknownTask(InvalidRequest):
    """A task id or name that the server does not serve."""


class PlanError(RestorationError):
    """Photos and outputs that contradict each other; raised before any work."""


class ImageError(RestorationError):
    """Base of what can be wrong with a photo's file. Raised itself when the file cannot be opened or written."""


class NotAnImage(ImageError):
    """The file holds none of the formats that are read."""


class DamagedImage(ImageError):
    """The file is truncated or its contents contradict its header."""


class ImageTooLarge(ImageError):
    """The file claims more pixels than the decompression limit."""


class UnsupportedImage(ImageError):
    """A sound image of a kind that cannot be restored (animation, floating point, ...)."""


class UnsupportedFormat(ImageError):
    """The output format cannot hold the photo (16 bit, alpha, size) or is unknown."""
