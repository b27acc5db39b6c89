"""Walks over the whole cache: what there is, removing all of it, and what the dead left.

What it is for: `Cache.entries`, `Cache.clear` and `Cache.reap`.  A walk sees each folder
as it is when it gets there; entries come and go meanwhile and are neither waited for nor
stumbled over.

Who calls it: `Cache` only.  What may go wrong: `OSError` from the system; damaged
entries are left out of listings.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._claim import LEASE, NEWBORN_GRACE, appearance, open_claim, read_record, reap
from ._door import CREATE, READ
from ._header import NEVER, SIZE, Damaged, head_size, parse, read_meta
from ._layout import is_claim, is_entry, split_scratch
from ._log import logger
from ._path import META
from ._publish import discard, remove

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any, Literal

    from ._door import Door
    from ._layout import Layout


SILENT_LEASES = 10
"""Leases without a heartbeat after which a sweep takes an owner for dead that can't be
seen: one of another machine, or of this machine before it was restarted.  Whoever asks for
the key waits one lease; a sweep is in no hurry and rather errs on the side of the living."""


@dataclass(frozen=True, slots=True)
class EntryInfo:
    """What is known of one entry.

    Attributes
    ----------
    key
        The key as given, if it was printable text of at most 1000 characters; else as
        `repr` shows it, shortened.
    kind
        ``"value"`` or ``"path"``.
    path
        The entry's file, or the file or folder that was built.
    size
        Bytes that it takes, for a folder with all that is in it.
    created
        When it was published, in seconds since the epoch.
    expires
        When it expires, in seconds since the epoch; `None` for never.
    build_seconds
        How long the factory took.
    codec
        What a value was stored with; empty for a path.
    tags
        As given when it was built.
    """

    key: str
    kind: Literal["value", "path"]
    path: Path
    size: int
    created: float
    expires: float | None
    build_seconds: float
    codec: str
    tags: tuple[str, ...]


def scan(layout: Layout) -> Iterator[EntryInfo]:
    """Yield what is known of each entry."""
    for path in _paths(layout, is_entry):
        try:
            yield _inspect(layout.door, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed while we looked
        except (Damaged, ValueError, KeyError, TypeError) as why:
            logger().warning("a damaged entry is not listed: %s: %s", path, why)


def clear(layout: Layout, new_scratch: Callable[[str], str]) -> int:
    """Remove all entries; return how many."""
    return sum(remove(layout.door, path, new_scratch(path)) for path in _paths(layout, is_entry))


def sweep(layout: Layout) -> int:
    """Remove claims and scratch of dead owners; return how many.

    What can't be removed does not keep the rest from being removed; the first error is
    raised at the end.
    """
    swept = _Sweep(layout)
    swept.claims()
    swept.scratch()
    if swept.error is not None:
        raise swept.error
    return swept.removed


class _Sweep:
    """One walk of `sweep`: what it has removed so far, and what went wrong first."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.door = layout.door
        self.removed = 0
        self.error: OSError | None = None

    def attempt(self, step: Callable[..., bool], *args: Any, **options: Any) -> bool:
        try:
            removed = step(self.door, *args, **options)
        except OSError as error:
            self.error = self.error or error
            return False
        self.removed += removed
        return removed

    def claims(self) -> None:
        young = []
        for path in _paths(self.layout, is_claim):
            found, signed = _look_at_claim(self.door, path)
            if found is None:
                continue
            silent = signed and self.silent_for(path, found) > SILENT_LEASES * LEASE
            if self.attempt(reap, path, found, silent=silent) or signed:
                continue
            young.append((path, found))
        if young:
            self.door.sleep(NEWBORN_GRACE)
        for path, before in young:
            found, signed = _look_at_claim(self.door, path)
            if found is not None and not signed and appearance(found) == appearance(before):
                self.attempt(reap, path, found, silent=True)

    def silent_for(self, path: str, found: os.stat_result) -> float:
        """Return for how many seconds a claim has been silent, by the filesystem's own clock.

        A file made now tells that clock, so no two machines' clocks are compared.
        """
        probe = f"{path}.{self.door.urandom(8).hex()}"
        try:
            fd = self.door.open(probe, CREATE, self.layout.file_mode)
        except OSError as error:
            self.error = self.error or error
            return 0.0
        try:
            return self.door.fstat(fd).st_mtime - found.st_mtime
        finally:
            self.door.close(fd)
            discard(self.door, probe)

    def scratch(self) -> None:
        for path in _paths(self.layout, lambda name: split_scratch(name) is not None):
            self.attempt(_remove_orphan, path)


def _remove_orphan(door: Door, path: str) -> bool:
    """Remove a scratch unless the claim that goes with it is still there.

    A scratch is made after its claim, and this is called after the scratch was seen, so a
    scratch without a claim has lost its owner, or its owner has no more use for it.
    """
    folder, name = os.path.split(path)
    parts = split_scratch(name)
    assert parts is not None
    claim, token = parts
    fd = open_claim(door, os.path.join(folder, claim))
    if fd is not None:
        try:
            record = read_record(door, fd)
        finally:
            door.close_claim(fd)
        if record is None or token.startswith(record.token):
            return False
    door.remove_tree(path)
    return True


def _look_at_claim(door: Door, path: str) -> tuple[os.stat_result | None, bool]:
    """Return what a claim looks like, if it is there, and whether it is signed."""
    fd = open_claim(door, path)
    if fd is None:
        return None, False
    try:
        return door.fstat(fd), read_record(door, fd) is not None
    finally:
        door.close_claim(fd)


def _paths(layout: Layout, wanted: Callable[[str], bool]) -> Iterator[str]:
    for shard in layout.shards():
        try:
            names = layout.door.listdir(shard)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in names:
            if wanted(name):
                yield os.path.join(shard, name)


def _inspect(door: Door, path: str) -> EntryInfo:
    from pathlib import Path

    is_folder = stat.S_ISDIR(door.lstat(path).st_mode)
    fd = door.open(os.path.join(path, META) if is_folder else path, READ)
    try:
        size = door.fstat(fd).st_size
        head = door.read(fd, SIZE)
        if len(head) < SIZE:
            raise Damaged("it is shorter than a header")
        head += door.read(fd, min(head_size(head), size) - SIZE)
    finally:
        door.close(fd)
    header = parse(head)
    meta: dict[str, Any] = read_meta(head, header)
    name = str(meta["name"]) if is_folder else ""
    return EntryInfo(
        key=str(meta["key"]),
        kind="path" if is_folder else "value",
        path=Path(path, name),
        size=_size(Path(path)) if is_folder else size,
        created=header.created,
        expires=None if header.expires == NEVER else header.expires,
        build_seconds=header.took,
        codec="" if is_folder else header.codec.rstrip(b"\0").decode("ascii", "replace"),
        tags=tuple(meta["tags"]),
    )


def _size(path: Path) -> int:
    """Return how many bytes a file, or a folder with all that is in it, takes."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    return sum(_size(each) for each in path.iterdir())
