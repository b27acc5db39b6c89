"""Dropping local copies of what other machines have removed.

What it is for: a hit asks no bucket, so a copy would outlive its removal elsewhere.  Removals are
written down in the bucket, in the order of time, and one process of each machine looks there
every half a minute, for as long as some process uses the cache; a file in the cache folder
tells what it has seen.

Who calls it: `Remote.follow`, in a thread of its own.  What may go wrong: a bucket or a folder
that can't be used is tried again next time.
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
from ._listing import _read_head, scan
from ._log import logger

if TYPE_CHECKING:
    from typing import Any

    from ._protocol import Protocol
    from ._remote import Remote

PERIOD = 30.0
"""Seconds between two looks of a machine; so long may a removed entry be seen elsewhere."""

_BACK = 600.0
"""Seconds before its last look, or its first use, from which on a machine wants to know of
removals: names go by the clocks of those who remove, and these differ."""


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
            if self._remote.usable():
                try:
                    self.look(protocol)
                except StoreDown as error:
                    self._remote.fail(error)
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
        told, names = self._remote.removed_since(when - _BACK, known)
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
        from ._remote import digest_of

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
