"""The base of the errors of parts and repositories; engines and serving have their own below IptError."""

from __future__ import annotations

from ipt_triton.errors import IptError


class ExportError(IptError, ValueError):
    """Something that cannot be exported as asked: checkpoints, a precision, a graph, or a repository."""
