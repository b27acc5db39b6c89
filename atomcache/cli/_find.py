"""Which entry is meant by a KEY, and looking into a cache without making one.

A KEY is, in this order: the text of a key itself, which is found at once however many entries
there are; the beginning of an entry's id; or a key as ``atomcache ls`` shows it, for keys that
are no text, which takes a look at every entry.

Who calls it: the subcommands that take a KEY.  What may go wrong: `Misuse` for a key that there
is not, or that several entries have; `StorageError` for a folder that can't be read.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

from .._errors import AtomcacheError, StorageError, access_error
from ._arguments import Misuse, open_cache
from ._tables import quoted, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from .._cache import Cache
    from .._listing import EntryInfo

KINDS = {"value": b"v", "path": b"p"}

SHORTEST_ID = 4

KEY_HELP = (
    "the text of a key; or an entry's id, of which 4 digits will do if no other begins with "
    "them; or a key as atomcache ls shows it"
)


class DamagedError(AtomcacheError):
    """An entry that is not what was stored."""


def status(failed: str = "", mistaken: str = "", *, done: str = "done") -> str:
    """Return what the help says of the exit status."""
    return f"""
exit status:
  0  {done}
  1  {failed and f"{failed}, or "}something can't be read or written
  2  a mistake on the command line{mistaken and f", or {mistaken}"}
"""


def add_key(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Let a subcommand take a KEY, or several."""
    if several:
        parser.add_argument("keys", metavar="KEY", nargs="*", help=KEY_HELP)
    else:
        parser.add_argument("key", metavar="KEY", help=KEY_HELP)
    parser.add_argument(
        "--kind", choices=list(KINDS), help="which one, where a value and a path have one key"
    )


def look(options: argparse.Namespace) -> Cache:
    """Return the cache that was asked for; one of another layout is an error."""
    cache = open_cache(options)
    layout = cache._layout
    if not os.path.isdir(layout.root):
        with trouble(cache):
            try:
                layout._check_version(os.listdir(layout.directory))
            except FileNotFoundError:
                pass  # as good as empty
    return cache


def exists(cache: Cache) -> bool:
    """Tell whether a cache has a folder yet; looking at it and cleaning up must not make one."""
    return os.path.isdir(cache._layout.root)


@contextmanager
def trouble(cache: Cache) -> Iterator[None]:
    """Turn what the system says while a cache is read or changed into an error of one line."""
    try:
        yield
    except AtomcacheError:
        raise
    except OSError as error:
        raise access_error("the cache", cache._layout.directory, error) from error


def entries(cache: Cache) -> Iterator[EntryInfo]:
    """Yield what is known of each entry."""
    with trouble(cache):
        yield from cache.entries()


def find(cache: Cache, key: str, kind: str | None = None) -> str:
    """Return the path of the entry that is meant."""
    found = matches(cache, key, kind)
    if len(found) == 1:
        return found[0]
    place = cache._layout.directory
    if not found:
        wanted = f"{kind} " if kind else ""
        raise Misuse(
            f"there is no {wanted}entry for key {quoted(key)} in {place}; see atomcache ls"
        )
    some = ", ".join(f"{os.path.basename(path)} (a {_kind(path)})" for path in found[:5])
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    each_kind = len(found) == len(set(map(_kind, found)))
    raise Misuse(
        f"{len(found)} entries in {place} are meant by {quoted(key)}: {some}{more}. "
        f"Name one by its id{', or by --kind' if each_kind else ''}"
    )


def matches(cache: Cache, key: str, kind: str | None = None) -> list[str]:
    """Return the paths of all entries that a KEY may mean."""
    with trouble(cache):
        return _by_text(cache, key, kind) or _by_id(cache, key, kind) or _by_look(cache, key, kind)


def places(cache: Cache, key: str, kind: str | None = None) -> list[str]:
    """Return where the entries of a key that is text stand, if there are any."""
    from .._keys import digest

    kinds = [KINDS[kind]] if kind else list(KINDS.values())
    return [cache._layout.entry(digest(each, key)) for each in kinds]


def _by_text(cache: Cache, key: str, kind: str | None) -> list[str]:
    return [path for path in places(cache, key, kind) if os.path.lexists(path)]


def _by_id(cache: Cache, key: str, kind: str | None) -> list[str]:
    from .._layout import is_entry

    name = key.lower()
    if len(name) < SHORTEST_ID or not set(name) <= set("0123456789abcdef"):
        return []
    shard = os.path.join(cache._layout.root, name[:2])
    try:
        names = os.listdir(shard)
    except FileNotFoundError:
        return []
    found = [os.path.join(shard, each) for each in sorted(names) if each.startswith(name)]
    return [
        path for path in found if is_entry(os.path.basename(path)) and kind in (None, _kind(path))
    ]


def _by_look(cache: Cache, key: str, kind: str | None) -> list[str]:
    layout = cache._layout
    return sorted(
        layout.entry(bytes.fromhex(entry.id))
        for entry in cache.entries()
        if key in (entry.key, shown(entry.key)) and kind in (None, entry.kind)
    )


def _kind(path: str) -> str:
    return "path" if os.path.isdir(path) else "value"


def inspect(cache: Cache, path: str) -> EntryInfo:
    """Return what is known of the entry at a path.

    Raises
    ------
    DamagedError
        If it is not what was stored.
    Misuse
        If it was removed meanwhile.
    """
    from .._header import Damaged
    from .._listing import _inspect

    try:
        with trouble(cache):
            entry = _inspect(cache._door, path)
    except (Damaged, ValueError, KeyError, TypeError) as why:
        raise damaged(path, why) from None
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise
        if os.path.lexists(path):
            raise damaged(path, "it has no meta") from None
        raise Misuse(f"the entry {os.path.basename(path)} was removed just now") from None
    if entry.kind == "path" and os.path.dirname(entry.path) != path:
        raise damaged(path, "the name of what was built leads elsewhere")
    return entry


def damaged(path: str, why: object) -> DamagedError:
    """Return the error for an entry that is not what was stored."""
    return DamagedError(
        f"the entry {os.path.basename(path)} is damaged: {why}, in {path}. Whoever asks for it "
        "builds it anew; atomcache verify removes it"
    )
