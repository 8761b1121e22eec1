"""What all commands share: a parser whose help is the docstring, errors as a sentence and an exit code, quiet ends."""

from __future__ import annotations

import argparse
import importlib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from .errors import IptError
from .reading import printable

CLOSED_PIPE = 128 + 13
"""Exit status of a command whose reader is gone, as the shell has it for those that SIGPIPE ends."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows the first paragraph of a docstring before the arguments and the rest of it behind them."""
    summary, _, rest = description.partition("\n\n")
    return _Parser(prog=prog, description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter)


def seconds(text: str) -> float:
    """An argument's number of seconds: 0 or more, and an end.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    with suppress(ValueError):
        if 0 <= (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is not allowed: give seconds, 0 or more")


def run_subcommand(prog: str, description: str, modules: Mapping[str, str], argv: Sequence[str] | None) -> int:
    """Hand the arguments behind a sub-command to its module's `main`; returns its exit status, 2 for an unknown one.

    Args:
        modules: full names by sub-command; only the one that is asked for is imported.
    """
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser(prog, description)
    parser.add_argument("command", choices=modules, metavar="COMMAND", help=", ".join(modules))
    command = parser.parse_args(words[:1]).command  # the rest is the sub-command's
    status: int = importlib.import_module(modules[command]).main(words[1:])
    return status


def run_command(work: Callable[[], int | None], *expected: type[Exception]) -> int:
    """Run a command's work and return its exit status; what goes wrong is printed in a sentence.

    Args:
        work: returns the exit status, None for 0.
        expected: errors to print beside IptError and OSError; their exit status is 1.
    """
    try:
        return work() or 0
    except Exception as error:
        if not isinstance(error, (IptError, OSError, *expected)):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.status if isinstance(error, IptError) else 1


@contextmanager
def interrupts_end_it() -> Iterator[None]:
    """Ctrl-C in the block ends the process by its signal, without a traceback: for imports, which take a second."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def escape_output() -> None:
    """Let standard output and error take any name of a file, escaped where they have no character for it.

    One that the shell has closed takes it and shows it nowhere.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 (open to the end)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Let what standard output still holds go nowhere, for a reader that is gone or a disk that is full."""
    with open(os.devnull, "w") as nowhere, suppress(OSError):  # noqa: PTH123 (a file descriptor)
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def mute_libraries() -> None:
    """Let what C libraries write past Python go nowhere; they tell of each damaged file in words of their own.

    Python's standard error gets a descriptor of its own.
    """
    try:
        if sys.stderr.fileno() != 2:
            return
    except OSError:  # no file
        return
    ours = os.dup(2)
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123 (a file descriptor)
        os.dup2(nowhere.fileno(), 2)
    sys.stderr = open(ours, "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)  # noqa: PTH123, SIM115
