"""What all commands share: a parser whose help is the docstring, and errors as one sentence and an exit code."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence

from .errors import IptError


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows the first paragraph of a docstring before the arguments and the rest of it behind them."""
    summary, _, rest = description.partition("\n\n")
    return argparse.ArgumentParser(
        prog=prog, description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


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
