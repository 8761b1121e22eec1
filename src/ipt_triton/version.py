"""Which ipt-triton this is."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@lru_cache(maxsize=1)
def installed_version() -> str:
    """The version that is installed; "of a checkout" where the sources run without an installation."""
    try:
        return version("ipt-triton")
    except PackageNotFoundError:
        return "of a checkout"
