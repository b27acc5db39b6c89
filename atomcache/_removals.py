"""Removing from a bucket, and dropping local copies of what other machines have removed.

What it is for: a hit asks no bucket, so a copy would outlive its removal elsewhere.  Removals are
written down in the bucket, in the order of time, and one process of each machine looks there
every half a minute, for as long as some process uses the cache; a file in the cache folder
tells what it has seen.

Who calls it: `Cache`, to remove; `Remote.follow`, which looks in a thread of its own.  What may go
wrong: `StorageError` for a removal that the others can't be told of; for those of others, a bucket
or a folder that can't be used is tried again next time.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import ref

from ._bucket import StoreDown
from ._door import CREATE, READ
from ._entry import function_tag
from ._freshness import CLOCK_SLACK
from ._header import Damaged
from ._layout import CLAIM
from ._listing import _read_head, scan
from ._log import logger
from ._object import (
    FOLDER,
    REMOVED,
    Found,
    digest_of,
    object_name,
    read_record,
    tag_name,
    write_record,
)

if TYPE_CHECKING:
    from typing import Any

    from ._protocol import Protocol
    from ._remote import Remote

PERIOD = 30.0
"""Seconds between two looks of a machine; so long may a removed entry be seen elsewhere."""

_BACK = 600.0
"""Seconds before its last look, or its first use, from which on a machine wants to know of
removals: names go by the clocks of those who remove, and these differ."""


_AT_ONCE = 1000
"""Objects that one request of a store removes."""


class Removals:
    """What is removed from one bucket, and written down there for the other machines.

    Parameters
    ----------
    remote
        Whose bucket it is.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._bucket = remote.bucket

    def remove(self, digest: bytes) -> None:
        """Remove an entry from the bucket, and from the other machines' folders by and by."""
        if self._remote.read_only:
            return
        self._remote.outage.insist(lambda: self._remove(digest, log=True))

    def remove_tagged(self, tag: str) -> None:
        """Remove all entries that carry a tag."""
        if self._remote.read_only:
            return

        def remove() -> None:
            prefix = tag_name(tag, b"")
            for each in list(self._bucket.list(prefix)):
                digest = digest_of(each.name.rpartition("/")[2])
                if digest is not None:
                    self._remove(digest, log=False)
                self._bucket.delete(each.name)
            self.tell({"tag": tag})

        self._remote.outage.insist(remove)

    def clear(self) -> None:
        """Remove everything."""
        if self._remote.read_only:
            return

        def clear() -> None:
            names = [each.name for each in self._bucket.list(f"{FOLDER}/")]
            # Claims first: whoever finds its claim gone does not publish, or takes it back.
            names.sort(key=lambda name: not name.endswith(CLAIM))
            names = [name for name in names if not name.startswith(REMOVED)]
            for start in range(0, len(names), _AT_ONCE):
                self._bucket.delete(*names[start : start + _AT_ONCE])
            self.tell({"all": True})

        self._remote.outage.insist(clear)

    def since(self, when: float, known: set[str]) -> tuple[list[dict[str, Any]], set[str]]:
        """Return what was removed since a time but for what is known, and what is known now."""
        told, names = [], set()
        for each in self._bucket.list(REMOVED, f"{REMOVED}{int(when * 1000):015d}"):
            names.add(each.name)
            answer = None if each.name in known else self._bucket.get(each.name)
            record = {} if answer is None else read_record(answer[0])
            if record and record.get("by") != self._remote.machine:
                told.append(record)
        return told, names

    def _remove(self, digest: bytes, *, log: bool) -> None:
        """Remove an entry; first the claim is revoked, so that no build brings it back."""
        name = object_name(digest)
        for _ in range(5):
            claimed = self._bucket.get(name + CLAIM)
            if claimed is None:
                break
            record = {**read_record(claimed[0]), "state": "revoked"}
            if self._bucket.put_if(name + CLAIM, write_record(record), claimed[1]):
                break
        answer = self._bucket.get(name)
        if answer is not None:
            blob, tags = parts_of(answer, digest)
            marks = [tag_name(tag, digest) for tag in tags]
            self._bucket.delete(name, *([blob] if blob else []), *marks)
        if log:
            self.tell({"digest": digest.hex()})

    def tell(self, what: dict[str, Any]) -> None:
        """Write down for the other machines what is to be dropped."""
        now = self._remote.door.time()
        name = f"{REMOVED}{int(now * 1000):015d}-{self._remote.door.urandom(6).hex()}"
        self._bucket.put(name, write_record({**what, "at": now, "by": self._remote.machine}))


def parts_of(answer: tuple[bytes, str], digest: bytes) -> tuple[str, list[str]]:
    """Return the object that holds an entry's content, if any, and its tags."""
    try:
        found = Found(*answer, digest)
    except Damaged as why:
        logger().info("the content of a damaged entry is left in the bucket: %s", why)
        return "", []
    return found.blob, found.meta["tags"]


class Follower:
    """Looks for removals by other machines, until nobody uses the cache any more."""

    def __init__(self, remote: Remote, protocol: Protocol) -> None:
        self._remote = remote
        self._protocol = ref(protocol)
        self._door = protocol.door
        self._layout = protocol.layout
        self._path = os.path.join(protocol.layout.upkeep, "removed")

    def start(self) -> None:
        """Look from now on, in a thread that keeps no process from ending."""
        threading.Thread(target=self._run, name="atomcache", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            protocol = self._protocol()
            if protocol is None:
                return
            if self._remote.outage.usable():
                try:
                    self.look(protocol)
                except StoreDown as error:
                    self._remote.outage.note(error)
                except OSError as error:
                    logger().info("removals by other machines are not seen: %s", error)
            del protocol
            pause.wait(PERIOD)

    def look(self, protocol: Protocol) -> None:
        """Look once, unless another process did lately."""
        seen = self._read()
        if seen is None:
            return
        when, known = seen
        now = self._door.time()
        told, names = self._remote.removals.since(when - _BACK, known)
        for removal in told:
            self._apply(protocol, removal)
        self._write("\n".join([repr(now), *sorted(names)]))

    def _apply(self, protocol: Protocol, removal: dict[str, Any]) -> None:
        at = removal.get("at")
        if not isinstance(at, int | float):
            return
        before = at + CLOCK_SLACK
        if "digest" in removal:
            self._remove(protocol, str(removal["digest"]), before)
            return
        tag, everything = removal.get("tag"), removal.get("all") is True
        for entry in scan(self._layout):
            tags = (*entry.tags, function_tag(entry.function))
            if entry.created <= before and (everything or tag in tags):
                self._remove(protocol, entry.id, before)

    def _remove(self, protocol: Protocol, name: str, before: float) -> None:
        """Remove a copy from before, unless it is one of what came instead."""
        digest = digest_of(name)
        if digest is None:
            return
        path = self._layout.entry(digest)
        try:
            created = _read_head(self._door, path)[0].created
        except (FileNotFoundError, NotADirectoryError, ValueError, Damaged):
            return  # no copy here
        if created <= before and not self._remote.holds(digest, created):
            protocol.remove(path)

    def _read(self) -> tuple[float, set[str]] | None:
        """Return when this machine looked last and what it saw; `None` if another looks now."""
        try:
            fd = self._door.open(self._path, READ)
        except FileNotFoundError:
            return self._door.time(), set()
        try:
            found = self._door.fstat(fd)
            if 0 <= self._door.time() - found.st_mtime < PERIOD / 2:
                return None
            told = self._door.read(fd, found.st_size).decode("ascii", "replace").split("\n")
        finally:
            self._door.close(fd)
        self._door.utime(self._path, (self._door.time(), self._door.time()))
        try:
            return float(told[0]), set(told[1:])
        except ValueError:
            return self._door.time(), set()

    def _write(self, marker: str) -> None:
        scratch = f"{self._path}.{self._door.urandom(6).hex()}"
        with suppress(FileExistsError):
            self._door.mkdir(self._layout.upkeep, self._layout.folder_mode)
        fd = self._door.open(scratch, CREATE, self._layout.file_mode)
        try:
            self._door.write(fd, marker.encode())
        finally:
            self._door.close(fd)
        self._door.replace(scratch, self._path)
