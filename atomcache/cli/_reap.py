"""``atomcache reap``: remove what dead builders left.

Who calls it: the dispatcher.  What may go wrong: `StorageError` for what can't be removed.
"""

from __future__ import annotations

from ._arguments import add_cache, add_json
from ._find import exists, look, status, trouble
from ._tables import number_of, say, say_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Remove what is left."}

Whoever asks for a key does that for this key, and once a day somebody does it for all. What a
living builder owns is never touched, nor what belongs to one on another machine that has shown
a sign of life within the last five minutes."""
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status()}
examples:
  atomcache reap
      after a crash, on a disk that is short of room
"""


def run(options: argparse.Namespace) -> int:
    """Remove what dead builders left."""
    cache = look(options)
    reaped = 0
    if exists(cache):
        with trouble(cache):
            reaped = cache.reap()
    if options.json:
        say_json({"reaped": reaped})
    else:
        say(f"removed {number_of(reaped, 'thing')} that dead builders left")
    return 0
