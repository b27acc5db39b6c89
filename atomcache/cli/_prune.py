"""``atomcache prune``: remove the least recently used entries, and those that have expired.

Who calls it: the dispatcher.  What may go wrong: `StorageError` for a folder that can't be
changed.
"""

from __future__ import annotations

import argparse

from ._arguments import Misuse, add_cache, add_json, count, duration, size
from ._find import exists, look, status, trouble
from ._tables import number_of, say, say_json, size_text


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Remove entries."}

Give at least one limit, or --expired. Entries are removed, the least recently used first, until
the rest is within all of them. What somebody holds (see Cache.hold) stays. If another process is
pruning, this waits until it is done."""
    parser.add_argument(
        "--max-bytes", metavar="SIZE", type=_size, help="bytes to keep, such as 500MB or 1.5GiB"
    )
    parser.add_argument("--max-entries", metavar="N", type=_number, help="entries to keep")
    parser.add_argument(
        "--max-idle",
        metavar="TIME",
        type=duration,
        help="remove what was not used for so long, such as 12h or 30d; use is known to the hour",
    )
    parser.add_argument(
        "--expired",
        action="store_true",
        help="remove what has reached the age limit with which it was made, also what could still "
        "have been served for a while (--stale-for, --stale-on-error)",
    )
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status()}
examples:
  atomcache prune --expired
  atomcache prune --max-bytes 10GB
  atomcache prune --max-idle 30d --max-entries 100000
  atomcache prune --cache build/cache --max-bytes 1GB --json
"""


def run(options: argparse.Namespace) -> int:
    """Remove the least recently used entries."""
    from .._eviction import Pruned

    limits = {
        "max_bytes": options.max_bytes,
        "max_entries": options.max_entries,
        "max_idle": options.max_idle,
    }
    if set(limits.values()) == {None} and not options.expired:
        raise Misuse(
            "say what may stay: --max-bytes, --max-entries or --max-idle, or remove what is "
            "--expired; see atomcache prune --help"
        )
    cache = look(options)
    done = Pruned()
    if exists(cache):
        with trouble(cache):
            done = cache.prune(**limits, expired=options.expired)
    if options.json:
        say_json({name: getattr(done, name) for name in Pruned.__slots__})
        return 0
    held = f"; {number_of(done.held, 'entry is', 'entries are')} held" if done.held else ""
    say(
        f"removed {number_of(done.removed, 'entry', 'entries')}, {size_text(done.freed)}; "
        f"{number_of(done.entries, 'entry', 'entries')}, {size_text(done.size)}, left{held}"
    )
    return 0


def _size(text: str) -> int:
    if not text.strip("0. BKMGTIbkmgti") and "0" in text:
        raise argparse.ArgumentTypeError("at least 1 byte must stay; atomcache clear removes all")
    return size(text)


def _number(text: str) -> int:
    number = count(text)
    if not number:
        raise argparse.ArgumentTypeError("at least 1 must stay; atomcache clear removes all")
    return number
