"""What the subcommands take: their parser, and the kinds of arguments that several share.

Who calls it: every subcommand.  What may go wrong: `Misuse`, which becomes one line and exit
status 2.
"""

from __future__ import annotations

import argparse

from ._asked import Misuse as Misuse
from ._asked import count as count
from ._asked import duration as duration
from ._asked import open_cache as open_cache
from ._asked import size as size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


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
            formatter_class=argparse.RawDescriptionHelpFormatter,
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
