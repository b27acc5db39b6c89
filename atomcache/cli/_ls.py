"""``atomcache ls``: list the entries.

Who calls it: the dispatcher.  What may go wrong: `StorageError` for a folder that can't be
read.
"""

from __future__ import annotations

from ._arguments import add_cache, add_json, count
from ._find import entries, look, status
from ._tables import (
    facts_of,
    moment,
    on_terminal,
    say,
    say_json,
    say_table,
    shown,
    size_text,
    time_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from .._listing import EntryInfo

SORTED_ANYWAY = 1000
"""Entries up to which a listing is sorted by key where no other order was asked for."""

_ID = 12
"""Digits of an id that are shown on a terminal: of a million entries, no two begin alike."""

_ORDERS: dict[str, Callable[[EntryInfo], float]] = {
    "size": lambda entry: -entry.size,
    "age": lambda entry: entry.created,
    "used": lambda entry: entry.last_used,
    "cost": lambda entry: -entry.build_seconds,
}

_TITLES = ("ID", "KIND", "SIZE", "AGE", "USED", "COST", "EXPIRES", "TAGS", "KEY")
_RIGHT = frozenset(["SIZE", "AGE", "USED", "COST", "EXPIRES"])
_SPARE = ("USED", "COST", "KIND", "TAGS", "EXPIRES", "AGE", "SIZE")


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "List the entries."}

On a terminal it prints a table, with long keys cut, and fewer columns where it is narrow: AGE is
the time since an entry was published, USED since it was used last (known to the hour), COST how
long its build took, and EXPIRES in how long it will be built anew. On a pipe it prints a line for
each entry, with nothing cut and tabs between id, kind, size in bytes, time of publication, time
of last use, cost in seconds, expiry, tags with commas between them, and key; "-" stands for none.
Characters that are not printable are escaped in both. Of a key of more than 1000 characters only
so many are stored, and its length.

Without --sort, at most {SORTED_ANYWAY} entries come sorted by key, and more in no order, as they
are found: that begins at once and needs no memory. --sort keeps all in memory, or with --limit
that many. Damaged entries are left out; see atomcache verify."""
    parser.add_argument(
        "--sort",
        choices=list(_ORDERS),
        help="the largest first, the oldest, the one not used for the longest time, or the one "
        "that took longest to build",
    )
    parser.add_argument("--reverse", "-r", action="store_true", help="the other way round")
    parser.add_argument("--tag", metavar="TAG", help="only entries with this tag")
    parser.add_argument(
        "--glob", metavar="PATTERN", help="only keys that match a pattern such as 'page-*'"
    )
    parser.add_argument("--limit", "-n", metavar="N", type=count, help="at most so many")
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status()}
examples:
  atomcache ls --sort size --limit 10
      the ten largest
  atomcache ls --glob 'run -- gcc *'
      what was recorded of a compiler
  atomcache ls --sort used | tail -n 5 | cut -f 9
      the keys of the five used last
  atomcache ls --json | jq -r 'select(.build_seconds > 60) | .id'
      what took more than a minute; there is one object on each line
"""


def run(options: argparse.Namespace) -> int:
    """List the entries."""
    found = _in_order(chosen(entries(look(options)), options.tag, options.glob), options)
    if options.json:
        for entry in found:
            say_json(facts_of(entry))
    elif on_terminal():
        from time import time

        now = time()
        say_table(_TITLES, (_row(entry, now) for entry in found), _RIGHT, _SPARE)
    else:
        for entry in found:
            say("\t".join(_fields(entry)))
    return 0


def chosen(
    found: Iterable[EntryInfo], tag: str | None, pattern: str | None
) -> Iterator[EntryInfo]:
    """Yield the entries that have a tag, if one is given, and a key like a pattern, likewise."""
    from fnmatch import fnmatchcase

    for entry in found:
        if tag is not None and tag not in entry.tags:
            continue
        if pattern is None or fnmatchcase(entry.key, pattern):
            yield entry


def _in_order(found: Iterator[EntryInfo], options: argparse.Namespace) -> Iterable[EntryInfo]:
    from heapq import nlargest, nsmallest
    from itertools import chain, islice

    if options.sort is not None:
        order = _ORDERS[options.sort]

        def by(entry: EntryInfo) -> tuple[float, str]:
            return order(entry), entry.key

        if options.limit is not None:
            few = nlargest if options.reverse else nsmallest
            return few(options.limit, found, key=by)
        return sorted(found, key=by, reverse=options.reverse)
    first = list(islice(found, SORTED_ANYWAY + 1))
    if len(first) <= SORTED_ANYWAY:
        first.sort(key=lambda entry: (entry.key, entry.kind), reverse=options.reverse)
    return islice(chain(first, found), options.limit)


def _row(entry: EntryInfo, now: float) -> list[str]:
    left = "" if entry.expires is None else time_text(entry.expires - now)
    return [
        entry.id[:_ID],
        entry.kind,
        size_text(entry.size),
        time_text(now - entry.created),
        time_text(now - entry.last_used),
        time_text(entry.build_seconds),
        left if entry.expires is None or entry.expires > now else "expired",
        _tags(entry),
        shown(entry.key),
    ]


def _fields(entry: EntryInfo) -> list[str]:
    return [
        entry.id,
        entry.kind,
        str(entry.size),
        moment(entry.created, utc=True),
        moment(entry.last_used, utc=True),
        f"{entry.build_seconds:.3f}",
        "-" if entry.expires is None else moment(entry.expires, utc=True),
        _tags(entry) or "-",
        shown(entry.key),
    ]


def _tags(entry: EntryInfo) -> str:
    return ",".join(map(shown, entry.tags))
