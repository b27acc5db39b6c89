"""Keeping a bucket small: the oldest entries go, and what was left behind.

What it is for: `prune` walks over a bucket once and removes entries beyond an age or a size, the
oldest first; stores don't tell when something was used last.  It also removes what was left
behind: contents that no entry names, claims that are over, labels of entries that are gone, and
what was written down of removals a month ago.

Who calls it: `Cache.prune_remote`.  What may go wrong: `StoreDown`.  An entry that is replaced
while this runs may be removed; it is built anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._eviction import Pruned
from ._header import Damaged
from ._layout import CLAIM
from ._object import FOLDER, GONE, REMOVED, Found, tags_folder

if TYPE_CHECKING:
    from ._bucket import Listed
    from ._remote import Remote

LEFT_BEHIND = 86_400.0
"""Seconds after which what belongs to no entry was left behind: no upload takes that long."""

FORGOTTEN = 30 * 86_400.0
"""Seconds for which removals stay written down."""


def prune(remote: Remote, max_bytes: int | None, max_age: float | None) -> Pruned:
    """Remove the oldest entries beyond the limits, and what was left behind."""
    now = remote.door.time()
    bucket = remote.bucket
    entries: dict[str, Listed] = {}
    contents: dict[str, list[Listed]] = {}
    labels: list[Listed] = []
    for each in bucket.list(f"{FOLDER}/"):
        old = now - each.modified > LEFT_BEHIND
        if each.name.startswith(REMOVED):
            if now - each.modified > FORGOTTEN:
                bucket.delete(each.name)
        elif each.name.startswith(tags_folder()):
            labels.append(each)
        elif each.name.endswith(CLAIM) or each.size == len(GONE):  # of which no entry is so small
            if old:
                bucket.delete(each.name)
        else:
            entry, _, token = each.name.partition(".")
            if token:
                contents.setdefault(entry, []).append(each)
            else:
                entries[entry] = each
    pruned = Pruned()
    sizes = {
        name: each.size + sum(content.size for content in contents.get(name, ()))
        for name, each in entries.items()
    }
    pruned.entries, pruned.size = len(entries), sum(sizes.values())
    for name, each in sorted(entries.items(), key=lambda item: item[1].modified):
        too_old = max_age is not None and now - each.modified > max_age
        too_much = max_bytes is not None and pruned.size > max_bytes
        if not too_old and not too_much:
            if max_age is None or max_bytes is None:
                break
            continue
        bucket.delete(name)
        for content in contents.pop(name, ()):
            bucket.delete(content.name)
        del entries[name]
        pruned.removed += 1
        pruned.freed += sizes[name]
        pruned.entries -= 1
        pruned.size -= sizes[name]
    for name, some in contents.items():
        old_ones = [each for each in some if now - each.modified > LEFT_BEHIND]
        named = _named(remote, name) if old_ones and name in entries else ""
        for each in old_ones:
            if each.name != named:
                bucket.delete(each.name)
    for each in labels:
        digest = each.name.rpartition("/")[2]
        if f"{FOLDER}/{digest[:2]}/{digest}" not in entries and now - each.modified > LEFT_BEHIND:
            bucket.delete(each.name)
    return pruned


def _named(remote: Remote, name: str) -> str:
    """Return the name of the content of an entry."""
    answer = remote.bucket.get(name)
    if answer is None:
        return ""
    try:
        return Found(*answer, bytes.fromhex(name.rpartition("/")[2])).blob
    except (Damaged, ValueError):
        return ""
