"""Bringing an entry from the bucket for whoever looks for it and builds nothing.

What it is for: `get` has to find what another machine made, whatever goes on here: while somebody
builds the same entry or brings it too, and where the folder can't be written.  So it waits for no
claim: it has one where it is free, and otherwise publishes without; the first to publish wins in
any case.  The threads of one process bring it once.

Who calls it: `Protocol.fetch`, and the protocol before it builds without storing.  What may go
wrong: whatever keeps the entry from coming is logged, and it counts as absent.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ._at_work import AtWork
from ._bucket import StoreDown
from ._build import Build
from ._claim import claim_path, take
from ._header import Damaged
from ._keys import describe, function_of
from ._log import logger
from ._publish import MISS, REVOKED, STAGED, Revoked, discard

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ._claim import Claim
    from ._object import Found
    from ._protocol import Entry, Protocol


_TRIES = 3


class Bringers:
    """Who of one process is about to bring which entry."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer that asks may come in between
        self._running: dict[str, list[Any]] = {}

    @contextmanager
    def one_by_one(self, path: str) -> Iterator[None]:
        """Keep other threads from bringing the same entry meanwhile."""
        with self._lock:
            bringer = self._running.setdefault(path, [threading.RLock(), 0])
            bringer[1] += 1
        try:
            with bringer[0]:
                yield
        finally:
            with self._lock:
                bringer[1] -= 1
                if not bringer[1]:
                    self._running.pop(path, None)


def bring(protocol: Protocol, entry: Entry, started: float, default: Any) -> Any:
    """Return what the bucket has, kept in the folder if that can be; or `default`."""
    remote = protocol.remote
    assert remote is not None
    if not remote.outage.usable():
        return default
    try:
        remote.bucket.check_process()  # before a lock that a fork may have left locked
        with (
            remote.bringers.one_by_one(entry.path),
            AtWork(protocol.door, entry.path),
            remote.bucket.budget(),
        ):
            return _bring(protocol, entry, started, default)
    except StoreDown as error:
        remote.outage.note(error)
        return default


def _bring(protocol: Protocol, entry: Entry, started: float, default: Any) -> Any:
    """Try until it is neither replaced nor removed while it comes down."""
    from ._remote import Gone

    remote = protocol.remote
    assert remote is not None
    keep = True
    for _ in range(_TRIES):
        try:
            value = entry.look(started) if keep else MISS
            if value is not MISS:
                return value
            remote.begin(entry)
            found = remote.look(entry, started)
            if found is None:
                return default
            step = _keep if keep else bring_apart
            value = step(protocol, entry, found)
            if value is not MISS:
                return value
        except Gone:
            continue
        except Damaged as why:
            logger().warning(
                "a damaged entry of the bucket is left out: %s: %s", entry.what(), why
            )
            return default
        except OSError as error:
            logger().info("%s can't be kept as it comes down: %s", entry.what(), error)
            keep = False
    return default


def _keep(protocol: Protocol, entry: Entry, found: Found) -> Any:
    """Bring it down into the folder; `MISS` if it was removed or another one published."""
    remote, door = protocol.remote, protocol.door
    assert remote is not None
    claim = take(door, protocol.layout, entry.path, protocol.lease)
    scratch = entry.layout.new_scratch(entry.path) if claim is None else claim.scratch
    try:
        if claim is not None:
            _sign(entry, claim)
        seen = entry.identity()
        entry.prepare(scratch)
        build = Build(door, claim_path(entry.path), claim)
        made = remote.fetch(entry, scratch, build, found)
        won, value = entry.publish(scratch, made, found.header.took, seen, build)
        if not won:
            return MISS
        if claim is None and not remote.holds(entry.digest, found.header.created):
            protocol.remove(entry.path)  # nobody could revoke what had no claim
            return MISS
        remote.published(protocol, entry)
    except Revoked:
        for suffix in (STAGED, REVOKED):
            discard(door, scratch + suffix)
        return MISS
    finally:
        if claim is not None:
            claim.release()
        discard(door, scratch)
    protocol.watch.tell("fetched", entry.key, seconds=found.header.took)
    protocol.published(entry)
    return value


def _sign(entry: Entry, claim: Claim) -> None:
    claim.sign(
        entry.what(),
        kind=entry.kind,
        key=describe(entry.key),
        tags=entry.options.tags,
        function=function_of(entry.key),
    )


def bring_apart(protocol: Protocol, entry: Entry, found: Found) -> Any:
    """Bring it down into a temporary folder of this process, where the cache can't be written."""
    from ._path import PathEntry

    remote, door = protocol.remote, protocol.door
    assert remote is not None
    folder = door.temporary_folder()
    scratch = folder if isinstance(entry, PathEntry) else os.path.join(folder, "value")
    build = Build(door, claim_path(entry.path), None)
    value = remote.fetch(entry, scratch, build, found)
    if not isinstance(entry, PathEntry):
        with suppress(OSError):  # where it is mapped, and what is open can't be removed
            door.remove_tree(folder)
        return value
    from pathlib import Path

    return Path(value)
