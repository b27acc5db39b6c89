"""``atomcache verify``: read every checksum, and remove what is damaged.

Who calls it: the dispatcher.  What may go wrong: `StorageError` for what can't be read, once
all the rest was.
"""

from __future__ import annotations

from ._arguments import add_cache, add_json
from ._find import look, status, trouble
from ._tables import number_of, say, say_json, shown, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .._cache import Cache
    from .._verify import Damage, Verified


def describe(parser: argparse.ArgumentParser) -> None:
    """Say what the subcommand takes."""
    parser.description = f"""{parser.description or "Read every checksum."}

Only values carry checksums: every byte of them is read. What a builder made at a path is the
user's to keep, so of that no more is checked than that it is there, with the size that it had.
Values are verified on every read anyway, so this is for a disk that is not trusted, and for
paths. It reads the whole cache and needs little memory; others may use the cache meanwhile."""
    parser.add_argument("--keep", action="store_true", help="only report, and remove nothing")
    add_cache(parser)
    add_json(parser)
    parser.epilog = f"""{status("something is damaged, removed or not", done="all is whole")}
examples:
  atomcache verify
  atomcache verify --keep --json | jq -r 'select(.reason) | .path'
      there is one object for each damaged entry on a line of its own, and then one with
      entries, size, damaged and removed
"""


def run(options: argparse.Namespace) -> int:
    """Read every checksum."""
    from .._verify import Verified, remove_damaged

    cache = look(options)
    verified = Verified()
    damaged = removed = 0
    for damage in _damages(cache, verified):
        damaged += 1
        gone = False
        if not options.keep:
            with trouble(cache):
                gone = remove_damaged(cache._protocol, damage)
        removed += gone
        _report(damage, gone, options)
    if options.json:
        say_json(
            {
                "entries": verified.entries,
                "size": verified.size,
                "damaged": damaged,
                "removed": removed,
            }
        )
        return 1 if damaged else 0
    done = f"verified {number_of(verified.entries, 'entry', 'entries')}, "
    done += size_text(verified.size)
    if damaged:
        done += f": {damaged:,} damaged, {removed:,} removed"
    say(done)
    return 1 if damaged else 0


def _damages(cache: Cache, verified: Verified) -> Iterator[Damage]:
    from .._verify import verify

    with trouble(cache):
        yield from verify(cache._layout, verified)


def _report(damage: Damage, gone: bool, options: argparse.Namespace) -> None:
    if options.json:
        say_json(
            {
                "id": damage.id,
                "key": damage.key,
                "kind": damage.kind,
                "path": str(damage.path),
                "reason": damage.reason,
                "removed": gone,
            }
        )
        return
    key = f"{shown(damage.key)}: " if damage.key else ""
    left = "" if gone or options.keep else " (not removed: it was replaced, or is being built)"
    say(f"damaged: {key}{shown(damage.reason)}: {shown(str(damage.path))}{left}")
