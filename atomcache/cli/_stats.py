"""``atomcache stats``: what all processes together have counted, and how much there is.

Who calls it: the dispatcher.  What may go wrong: `StorageError` for a folder that can't be
read.
"""

from __future__ import annotations

from ._arguments import add_cache, add_json
from ._find import entries, exists, look, status, trouble
from ._tables import say_facts, say_json, size_text, time_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Show what was counted."}

That is of all processes together, since the cache was made or cleared. Processes write down
what they counted when they end, and while they build every ten seconds. The time saved is, for
each hit, the time that the entry took to build. Damaged entries are not among the entries."""
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status()}
examples:
  atomcache stats
  atomcache stats --json | jq .hit_rate
"""


def run(options: argparse.Namespace) -> int:
    """Show what was counted."""
    from .._statistics import Counts

    cache = look(options)
    counts = Counts()
    if exists(cache):
        with trouble(cache):
            counts = cache.stats().everyone
    number = size = 0
    for entry in entries(cache):
        number += 1
        size += entry.size
    asked = counts.hits + counts.misses
    rate = counts.hits / asked if asked else None
    if options.json:
        say_json({"entries": number, "size": size, "hit_rate": rate, **counts._asdict()})
        return 0
    say_facts(
        [
            ("entries", f"{number:,}"),
            ("size", f"{size_text(size)} ({size} bytes)"),
            ("hits", f"{counts.hits:,}"),
            ("misses", f"{counts.misses:,}"),
            ("hit rate", "-" if rate is None else f"{rate:.1%}"),
            ("time saved", time_text(counts.seconds_saved)),
            ("time built", time_text(counts.seconds_built)),
            ("builds", f"{counts.builds:,}"),
            ("failed builds", f"{counts.failures:,}"),
            ("not stored", f"{counts.not_stored:,} (built, and not to be kept)"),
            (
                "duplicates",
                f"{counts.duplicates:,} (built though somebody else had published meanwhile)",
            ),
            ("fetched", f"{counts.fetched:,} (from the bucket, instead of building)"),
            ("requests", f"{counts.requests:,} (to the bucket)"),
            ("waits", f"{counts.waits:,}"),
            ("takeovers", f"{counts.takeovers:,} (from builders that died)"),
            ("stale", f"{counts.stale:,} (old values that were served)"),
            ("evictions", f"{counts.evictions:,}"),
            ("damaged", f"{counts.corrupt:,} (found when somebody asked for them)"),
            ("errors", f"{counts.errors:,} (the folder could not be read or written)"),
        ]
    )
    return 0
