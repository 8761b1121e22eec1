"""The parser of a command: its help is the docstring of the command's module."""

from __future__ import annotations

import argparse


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser that shows the first paragraph of a docstring before the arguments and the rest of it behind them."""
    summary, _, rest = description.partition("\n\n")
    return argparse.ArgumentParser(
        prog=prog, description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
