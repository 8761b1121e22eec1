"""The errors of this room. Python 3.9 syntax, as `record`."""

from __future__ import annotations

from ipt_triton.errors import IptError


class BenchmarkError(IptError):
    """A measurement that cannot be made or shown."""


class ArgumentError(BenchmarkError):
    """Arguments that only a checkpoint or a server can show to be wrong."""

    status = 2


class EvaluationError(BenchmarkError):
    """A test set, an image or a server that cannot be evaluated."""


class LoadError(BenchmarkError):
    """A request failed under load, or its answer has another shape than it should have."""


class ReportError(BenchmarkError, ValueError):
    """Results that cannot be reported, or a file that is not a record of a benchmark; the message names it."""
