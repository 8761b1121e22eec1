"""Errors of training: one base, and below it a class for each thing that may be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ipt_triton.errors import IptError


class TrainError(IptError):
    """Something in training that a person can mend."""


class WrongInput(TrainError, ValueError):
    """Arguments or data that no command can work with."""

    status = 2


class ConfigError(WrongInput):
    """A model configuration that cannot be built."""


class CheckpointError(TrainError, ValueError):
    """A checkpoint that cannot be read, or whose tensors do not fit its architecture."""


class DataError(WrongInput):
    """A data folder that cannot be trained on."""


class ImageSetError(TrainError):
    """A test set or one of its images that cannot be measured on."""


class RuntimeUnavailable(TrainError, RuntimeError):
    """Devices that this machine or this Python cannot offer."""

    status = 2


class StateError(TrainError, RuntimeError):
    """A saved run that cannot be read, or is not the one that shall go on."""


class TrainingError(TrainError, RuntimeError):
    """Training that cannot start or go on."""


class MissingPackage(TrainingError):
    """A package that is not installed, and what needs it."""


class OfficialImportError(TrainError, ValueError):
    """A file or state dict that cannot be imported."""


class UnreadableFileError(OfficialImportError):
    """The file is not there, or torch cannot read tensors from it."""


class LayoutError(OfficialImportError):
    """The tensors are not those of an official IPT."""


class TaskChoiceError(OfficialImportError):
    """The tasks named do not fit the file."""

    status = 2


@contextmanager
def needs(package: str, user: str) -> Iterator[None]:
    """While something is imported: raise MissingPackage, naming package and user, where it is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingPackage(f"{user} needs a package ({error}): pip install {package}") from None
