"""``atomcache clear``: remove all entries.

Who calls it: the dispatcher.  What may go wrong: `Misuse` where nobody can be asked;
`StorageError` for what can't be removed.
"""

from __future__ import annotations

import sys

from ._arguments import Misuse, add_cache, add_json
from ._find import exists, look, status, trouble
from ._tables import number_of, say, say_json, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from .._cache import Cache


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Remove all entries."}

On a terminal it asks first; elsewhere it wants --yes. What was counted (see atomcache stats) is
forgotten too. Builds under way go on, and their callers get what they build, but it is not
kept."""
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status("the answer was not yes")}
examples:
  atomcache clear
  atomcache clear --yes --cache build/cache
"""


def run(options: argparse.Namespace) -> int:
    """Remove all entries."""
    cache = look(options)
    if not options.yes and not sys.stdin.isatty():
        raise Misuse("this removes all entries; where nobody can be asked, it wants --yes")
    if not options.yes and not _agreed(cache):
        sys.stderr.write("nothing was removed\n")
        return 1
    removed = 0
    if exists(cache):
        with trouble(cache):
            removed = cache.clear()
    if options.json:
        say_json({"removed": removed})
    else:
        say(f"removed {number_of(removed, 'entry', 'entries')}")
    return 0


def _agreed(cache: Cache) -> bool:
    from .._layout import is_entry
    from .._listing import _paths

    with trouble(cache):
        number = sum(1 for _ in _paths(cache._layout, is_entry))
    sys.stderr.write(
        f"remove all {number_of(number, 'entry', 'entries')} of "
        f"{shown(cache._layout.directory)}? [y/N] "
    )
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
