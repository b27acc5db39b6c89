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
from itertools import chain
from typing import TYPE_CHECKING

from ._claim import (
    LEASE,
    NEWBORN_GRACE,
    appearance,
    living_record,
    open_claim,
    reap,
    revoke,
)
from ._door import CREATE
from ._header import NEVER, SIZE, Damaged, head_size, parse, read_meta
from ._hold import is_held, remove_stale
from ._layout import CLAIM, META, is_claim, is_entry, is_failure_mark, is_hold, split_scratch
from ._log import logger
from ._publish import discard, remove
from ._record import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any, Literal

    from ._claim import Wanted
    from ._door import Door
    from ._header import Header
    from ._layout import Layout
    from ._protocol import Protocol
    from ._record import Record


_LONGEST_RETRY = 86_400.0

_MOMENT = 3600.0
"""Seconds after which nobody is still writing a file of a few lines."""

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
    function
        Module and qualified name of the decorated function that made it, or empty.
    last_used
        When it was used last, in seconds since the epoch, to the hour.
    id
        40 hexadecimal digits that name the entry in its folder.
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
    function: str = ""
    last_used: float = 0.0
    id: str = ""


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """What is known of a build that is under way.

    Attributes
    ----------
    key
        The key as given, as in `EntryInfo`.
    kind
        ``"value"`` or ``"path"``.
    pid, host
        The process that builds, and the machine that it runs on.
    started
        When it began, in seconds since the epoch.
    done, total, note
        How far it is, if the factory reports that by `Build.progress`.
    waiting
        How many processes wait for it on this machine; `None` where the system does not tell.  Who
        gave up by a timeout counts until the build ends: a sleep in a lock can't be ended.
    tags, function
        As in `EntryInfo`.
    """

    key: str
    kind: str
    pid: int
    host: str
    started: float
    done: float | None
    total: float | None
    note: str
    waiting: int | None
    tags: tuple[str, ...]
    function: str


def builds(layout: Layout) -> Iterator[BuildInfo]:
    """Yield what is being built at the moment."""
    waiting = layout.door.waiting_for_locks()
    for path in _paths(layout, is_claim):
        try:
            record = living_record(layout.door, path)
            found = layout.door.lstat(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            logger().warning("a claim can't be read: %s: %s", path, error)
            continue
        if record is None:
            continue
        silent_for = layout.door.time() - found.st_mtime
        if silent_for > SILENT_LEASES * LEASE and not record.lock_is_proof(layout.door, found):
            continue
        done, total, note = progress_of(record.progress)
        yield BuildInfo(
            key=record.key,
            kind=record.kind,
            pid=record.pid,
            host=record.host,
            started=record.started,
            done=done,
            total=total,
            note=note,
            waiting=None if waiting is None else len(waiting.get(found.st_ino, ())),
            tags=record.tags,
            function=record.function,
        )


def progress_of(told: str) -> tuple[float | None, float | None, str]:
    """Return how far a build is, by what its claim says: done, total and a note."""
    done, _, rest = told.partition(" ")
    total, _, note = rest.partition(" ")
    try:
        return float(done) if done else None, float(total) if total else None, note
    except ValueError:
        return None, None, ""


def scan(layout: Layout) -> Iterator[EntryInfo]:
    """Yield what is known of each entry."""
    for path in _paths(layout, is_entry):
        try:
            yield _inspect(layout.door, path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed while we looked
        except (Damaged, ValueError, KeyError, TypeError, OSError) as why:
            logger().warning("a damaged entry is not listed: %s: %s", path, why)


def clear(protocol: Protocol) -> int:
    """Remove all entries, and what is remembered of inputs; return how many entries."""
    layout = protocol.layout
    protocol.flights.detach()
    discard(layout.door, layout.inputs)
    removing = _Each(layout.door)
    for path in _paths(layout, is_claim):
        removing.attempt(_revoke, path)
    for path in _paths(layout, is_entry):
        removing.attempt(remove, path, layout.new_scratch(path))
    return removing.result()


def remove_where(protocol: Protocol, wanted: Wanted, *, tag: str | None = None) -> int:
    """Remove all entries that carry what is wanted, built and being built; return how many.

    Parameters
    ----------
    tag
        What is wanted, if that is a tag: factories that run may give it yet.
    """
    layout = protocol.layout
    protocol.flights.detach()
    removing = _Each(layout.door)
    for path in _paths(layout, is_claim):
        removing.attempt(_revoke, path, wanted, tag=tag)
    for path in _paths(layout, is_entry):
        try:
            meta = _read_head(layout.door, path)[1]
        except (Damaged, ValueError, OSError):
            continue  # gone, or damaged and thus never an answer
        if wanted(meta.get("function", ""), meta["tags"]):
            removing.attempt(remove, path, layout.new_scratch(path))
    return removing.result()


def _revoke(door: Door, path: str, wanted: Wanted | None = None, **tag: str | None) -> bool:
    revoke(door, path, wanted, **tag)
    return False  # a claim is no entry


def sweep(layout: Layout) -> int:
    """Remove claims and scratch of dead owners; return how many.

    What can't be removed does not keep the rest from being removed; the first error is
    raised at the end.
    """
    swept = _Sweep(layout)
    swept.claims()
    swept.scratch()
    return swept.result()


class _Each:
    """Does something with each of many things, whatever goes wrong with some."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.removed = 0
        self.error: OSError | None = None

    def attempt(self, step: Callable[..., bool], *args: Any, **options: Any) -> bool:
        """Do a step; an error is kept for the end."""
        try:
            removed = step(self.door, *args, **options)
        except OSError as error:
            self.error = self.error or error
            return False
        self.removed += removed
        return removed

    def result(self) -> int:
        """Return how much was removed, or raise the first error."""
        if self.error is not None:
            raise self.error
        return self.removed


class _Sweep(_Each):
    """One walk of `sweep`: what it has removed so far, and what went wrong first."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout.door)
        self.layout = layout

    def claims(self) -> None:
        young = []
        pruner = os.path.join(self.layout.upkeep, "prune" + CLAIM)
        for path in chain(_paths(self.layout, is_claim), [pruner]):
            try:
                found, record = _look_at_claim(self.door, path)
            except OSError as error:  # no claim, whatever it is
                self.error = self.error or error
                continue
            if found is None:
                continue
            signed = record is not None
            silent = record is not None and self.silent(path, found, record)
            if self.attempt(reap, path, found, silent=silent) or signed:
                continue
            young.append((path, found))
        if young:
            self.door.sleep(NEWBORN_GRACE)
        for path, before in young:
            found, record = _look_at_claim(self.door, path)
            if found is not None and record is None and appearance(found) == appearance(before):
                self.attempt(reap, path, found, silent=True)

    def silent(self, path: str, found: os.stat_result, record: Record) -> bool:
        """Tell whether the owner of a claim that can't be seen has been silent for too long.

        A sign of life from the future proves that the clock was set back, and nothing else; but
        of this machine before it was restarted nobody is left to give another one.
        """
        seconds = self.silent_for(path, found)
        door = self.door
        restarted = record.host == door.host() and record.boot != door.boot_id()
        return (abs(seconds) if restarted else seconds) > SILENT_LEASES * LEASE

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
        for path in _paths(self.layout, lambda name: split_scratch(name) is not None, inputs=True):
            self.attempt(_remove_orphan, path)
        for path in _paths(self.layout, is_hold):
            self.attempt(remove_stale, path, self.layout)
        for path in _paths(self.layout, is_failure_mark):
            self.attempt(_remove_old_mark, path)
        statistics = self.layout.statistics
        written = [os.path.join(statistics, name) for name in _names(self.door, statistics)]
        half_written = [path for path in written if os.path.basename(path)[:1] == "."]
        for path in (*half_written, os.path.join(self.layout.upkeep, "count.new")):
            self.attempt(_remove_half_written, path)


def _remove_old_mark(door: Door, path: str) -> bool:
    """Remove the mark of a failure that nobody minds any more."""
    try:
        if abs(door.time() - door.stat(path).st_mtime) > _LONGEST_RETRY:
            door.unlink(path)
    except FileNotFoundError:
        return False
    return False  # nothing that a dead builder left


def _remove_half_written(door: Door, path: str) -> bool:
    """Remove what is written in a moment and then renamed, if that moment is long ago."""
    try:
        if abs(door.time() - door.lstat(path).st_mtime) > _MOMENT:
            door.remove_tree(path)
            return True
    except FileNotFoundError:
        return False
    return False


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
            door.close_kept(fd)
        if record is None or token.startswith(record.token):
            return False
    if is_held(door, os.path.join(folder, claim[: -len(CLAIM)])):
        return False
    door.remove_tree(path)
    return True


def _look_at_claim(door: Door, path: str) -> tuple[os.stat_result | None, Record | None]:
    """Return what a claim looks like, if it is there, and its record, if it is signed."""
    fd = open_claim(door, path)
    if fd is None:
        return None, None
    try:
        return door.fstat(fd), read_record(door, fd)
    finally:
        door.close_kept(fd)


def _paths(
    layout: Layout, wanted: Callable[[str], bool], *, inputs: bool = False
) -> Iterator[str]:
    for shard in layout.shards(inputs=inputs):
        for name in _names(layout.door, shard):
            if wanted(name):
                yield os.path.join(shard, name)


def _names(door: Door, folder: str) -> list[str]:
    try:
        return door.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _inspect(door: Door, path: str) -> EntryInfo:
    from pathlib import Path

    header, meta, found = _read_head(door, path)
    size, used = found.st_size, found.st_atime
    name = meta.get("name")
    return EntryInfo(
        key=str(meta["key"]),
        kind="value" if name is None else "path",
        path=Path(path, name or ""),
        size=size if name is None else int(meta.get("bytes", 0)),
        created=header.created,
        expires=None if header.expires == NEVER else header.expires,
        build_seconds=header.took,
        codec="" if name is not None else header.codec.rstrip(b"\0").decode("ascii", "replace"),
        tags=tuple(meta["tags"]),
        function=meta.get("function", ""),
        last_used=used,
        id=os.path.basename(path),
    )


def _read_head(door: Door, path: str) -> tuple[Header, dict[str, Any], os.stat_result]:
    """Return an entry's header and meta, and what the file that they stand in is like."""
    is_folder = stat.S_ISDIR(door.lstat(path).st_mode)
    fd = door.open_unnoticed(os.path.join(path, META) if is_folder else path)
    try:
        found = door.fstat(fd)
        head = door.read(fd, SIZE)
        if len(head) < SIZE:
            raise Damaged("it is shorter than a header")
        head += door.read(fd, min(head_size(head), found.st_size) - SIZE)
    finally:
        door.close(fd)
    header = parse(head)
    meta = read_meta(head, header)
    if is_folder != ("name" in meta):
        raise Damaged("it is not of the kind that its header says")
    return header, meta, found
