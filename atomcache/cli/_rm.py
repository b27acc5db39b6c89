"""``atomcache rm``: remove entries.

A removal is as final as `Cache.remove`: what is being built meanwhile is not kept.

Who calls it: the dispatcher.  What may go wrong: `Misuse` for an unknown key, before anything is
removed; `StorageError` for what can't be removed.
"""

from __future__ import annotations

import os

from .._errors import AtomcacheError
from ._arguments import Misuse, add_cache, add_json
from ._find import add_key, entries, find, inspect, look, matches, places, status, trouble
from ._tables import number_of, say, say_json, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from .._cache import Cache


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Remove entries."}

They are named by their keys or ids, or all that have a tag, or all whose keys match a pattern.
Builds under way go on, and their callers get what they build, but it is not kept. If one of
several keys is unknown, none is removed. That no entry has a tag, or a key like a pattern, is no
mistake."""
    add_key(parser, several=True)
    parser.add_argument("--tag", metavar="TAG", help="all entries with this tag")
    parser.add_argument(
        "--glob",
        metavar="PATTERN",
        help="all keys that match a pattern such as 'page-*'; quote it, so that the shell does "
        "not take it for file names",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status(mistaken="there is no such entry, or several")}
examples:
  atomcache rm index report-42
  atomcache rm --tag customer-42
  atomcache rm --glob 'run -- gcc *' --dry-run
"""


def run(options: argparse.Namespace) -> int:
    """Remove entries."""
    given = [bool(options.keys), options.tag is not None, options.glob is not None]
    if sum(given) != 1:
        raise Misuse("give either keys, or --tag, or --glob; see atomcache rm --help")
    if options.kind and not options.keys:
        raise Misuse("--kind goes with keys only; see atomcache rm --help")
    if options.tag == "":
        raise Misuse("a tag has at least one character; see atomcache rm --help")
    cache = look(options)
    if options.dry_run:
        return _tell(cache, options)
    if options.keys:
        removed = _remove_keys(cache, options.keys, options.kind)
    elif options.tag is not None:
        with trouble(cache):
            removed = cache.remove_tagged(options.tag)
    else:
        removed = _remove_like(cache, options.glob)
    if options.json:
        say_json({"removed": removed})
    else:
        say(f"removed {number_of(removed, 'entry', 'entries')}")
    return 0


def _tell(cache: Cache, options: argparse.Namespace) -> int:
    from ._ls import chosen

    if options.keys:
        paths = dict.fromkeys(find(cache, key, options.kind) for key in options.keys)
        found = [(os.path.basename(path), _key(cache, path)) for path in paths]
    else:
        listed = chosen(entries(cache), options.tag, options.glob)
        found = [(entry.id, entry.key) for entry in listed]
    if options.json:
        say_json({"would_remove": [{"id": name, "key": key} for name, key in found]})
        return 0
    for name, key in found:
        say(f"{name}  {shown(key)}")
    say(f"would remove {number_of(len(found), 'entry', 'entries')}")
    return 0


def _key(cache: Cache, path: str) -> str:
    try:
        return inspect(cache, path).key
    except AtomcacheError:  # a damaged one can be removed too
        return ""


def _remove_keys(cache: Cache, keys: list[str], kind: str | None) -> int:
    found: dict[str, None] = {}
    for key in keys:
        under_way = _builds(cache, key, kind)
        if under_way and not matches(cache, key, kind):
            found.update(dict.fromkeys(under_way))
        else:
            found[find(cache, key, kind)] = None
    with trouble(cache):
        return sum(cache._protocol.remove(path) for path in found)


def _builds(cache: Cache, key: str, kind: str | None) -> list[str]:
    """Return the entries of a key, that is text, which are being built."""
    from .._claim import claim_path

    return [path for path in places(cache, key, kind) if os.path.lexists(claim_path(path))]


def _remove_like(cache: Cache, pattern: str) -> int:
    """Remove all entries whose keys match a pattern, those that are being built first."""
    from fnmatch import fnmatchcase

    from .._claim import living_record, revoke
    from .._layout import is_claim
    from .._listing import _paths
    from ._ls import chosen

    with trouble(cache):
        for path in _paths(cache._layout, is_claim):
            record = living_record(cache._door, path)
            if record is not None and fnmatchcase(record.key, pattern):
                revoke(cache._door, path)
        removed = 0
        for entry in chosen(cache.entries(), None, pattern):
            removed += cache._protocol.remove(cache._layout.entry(bytes.fromhex(entry.id)))
    return removed
