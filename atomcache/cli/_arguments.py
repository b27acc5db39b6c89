"""What the subcommands take: their parser, and the kinds of arguments that several share.

Who calls it: every subcommand.  What may go wrong: `Misuse`, which becomes one line and exit
status 2.
"""

from __future__ import annotations

import argparse

from . import _asked
from ._asked import Misuse as Misuse
from ._asked import open_cache as open_cache
from ._help import Formatter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn, TypeVar

    T = TypeVar("T")


def _argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return what reads an argument, and lets argparse say which one can't be meant."""

    def read_argument(text: str) -> T:
        try:
            return read(text)
        except Misuse as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_argument


count = _argument(_asked.count)
duration = _argument(_asked.duration)
size = _argument(_asked.size)


class Parser(argparse.ArgumentParser):
    """Parses the arguments of one subcommand; a mistake is one line.

    Parameters
    ----------
    prog
        What is called, for the usage.
    purpose
        What it does, in a few words.
    """

    def __init__(self, prog: str, purpose: str) -> None:
        super().__init__(
            prog=prog,
            description=f"{purpose[:1].upper()}{purpose[1:]}.",
            formatter_class=Formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `Misuse`."""
        raise Misuse(f"{message}; see {self.prog} --help")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand be told which cache."""
    parser.add_argument(
        "-C",
        "--cache",
        metavar="DIR",
        help="the cache folder; by default $ATOMCACHE_DIR, else the cache that "
        "atomcache.get_or_create uses",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand be asked for JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
