"""Dropping local copies of what other machines have removed.

What it is for: a hit asks no bucket, so a copy would outlive its removal elsewhere.  Removals are
written down in the bucket, in the order of the store's time, and one process of each machine
looks there every half a minute, for as long as some process uses the cache.  One that ends sooner
finishes its look first.  Two files in the cache folder tell when a look began, and what the last
one saw that was finished.

Who calls it: `Remote.follow`, which looks in a thread of its own; the protocol asks after each
publication whether there was a look meanwhile.  What may go wrong: a bucket or a folder that can't
be used is tried again next time.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import ref

from ._bucket import StoreDown
from ._claim import claim_path, revoke
from ._door import CREATE, READ
from ._entry import function_tag
from ._header import Damaged
from ._hold import Hold
from ._listing import _read_head, scan
from ._log import logger
from ._object import digest_of
from ._publish import remove
from ._removals import time_of

if TYPE_CHECKING:
    from typing import Any

    from ._layout import Layout
    from ._protocol import Protocol
    from ._remote import Remote

PERIOD = 30.0
"""Seconds between two looks of a machine; so long may a removed entry be seen elsewhere."""

_BACK = 600.0
"""Seconds before the latest removal that is known, from which on a machine looks for more."""

_FIRST_BACK = 86_400.0
"""Seconds before its oldest entry, from which on a machine looks that has never looked before: it
only has the clocks of those who made the entries to go by."""

_BEGUN = 5.0
"""Seconds for which a look that has begun keeps others of its machine from looking too."""

FINISH = 5.0
"""Seconds for which a process that ends waits for its first look."""

State = tuple[int, int]


class Follower:
    """Looks for removals by other machines, until nobody uses the cache any more."""

    def __init__(self, remote: Remote, protocol: Protocol) -> None:
        self._remote = remote
        self._protocol = ref(protocol)
        self._door = protocol.door
        self._layout = protocol.layout
        self._path = os.path.join(protocol.layout.upkeep, "removed")
        self._begun = f"{self._path}.begun"
        self._looked = threading.Event()

    def start(self) -> None:
        """Look from now on, in a thread; the process ends when the first look has."""
        try:
            self._door.start_thread(self._run, daemon=True)
            if self._age(self._path) >= PERIOD / 2:
                self._door.start_thread(self._finish)
        except RuntimeError as error:  # no more threads to be had
            logger().info("removals by other machines are not seen: %s", error)

    def _finish(self) -> None:
        self._looked.wait(FINISH)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            protocol = self._protocol()
            if protocol is None:
                self._looked.set()
                return
            if self._remote.outage.usable():
                try:
                    self._remote.removals.tell_rest()
                    self.look(protocol)
                except StoreDown as error:
                    self._remote.outage.note(error)
                except OSError as error:
                    logger().info("removals by other machines are not seen: %s", error)
            del protocol
            self._looked.set()
            pause.wait(PERIOD)

    def state(self) -> State:
        """Return what changes whenever a look begins or ends on this machine."""
        return self._changed(self._begun), self._changed(self._path)

    def _changed(self, path: str) -> int:
        try:
            return int(self._door.stat(path).st_mtime_ns)
        except OSError:
            return 0

    def _age(self, path: str) -> float:
        changed = self._changed(path)
        age = self._door.time() - changed / 1e9
        return age if changed and age >= 0 else float("inf")

    def look(self, protocol: Protocol) -> None:
        """Look once, unless another process did lately, or does now."""
        if self._age(self._path) < PERIOD / 2:
            return
        begun, ended = self.state()
        if begun > ended and self._age(self._begun) < _BEGUN:
            return
        self._write(self._begun, "")
        since, known, first = self._read()
        told, names = self._remote.removals.since(since, known)
        if first and not names:  # or a clock was ahead of the store's, and would stay so
            since = min(since, max(0.0, self._remote.removals.latest() - _BACK))
            told, names = self._remote.removals.since(since, known)
        latest = max(map(time_of, names), default=since + _BACK)
        next_since = max(since, latest - _BACK)
        for name, removal in told:
            if not self._apply(protocol, removal, first):
                names.discard(name)
                next_since = min(next_since, time_of(name) - 1)
        known = {name for name in names if time_of(name) >= next_since}
        self._write(self._path, "\n".join([repr(next_since), *sorted(known)]))

    def _apply(self, protocol: Protocol, removal: dict[str, Any], first: bool) -> bool:
        """Drop what was removed; `False` if some of it is held, and is to go later.

        `first` tells whether this machine has never looked before, so that much of what it has
        may be younger than the removal.
        """
        at = removal.get("at")
        if not isinstance(at, int | float):
            return True
        before = at + _BACK if first else float("inf")
        if "digest" in removal:
            return self._drop(protocol, str(removal["digest"]), before)
        tag, everything = removal.get("tag"), removal.get("all") is True
        dropped = True
        for entry in scan(self._layout):
            tags = (*entry.tags, function_tag(entry.function))
            if everything or tag in tags:
                dropped = self._drop(protocol, entry.id, before) and dropped
        return dropped

    def _drop(self, protocol: Protocol, name: str, before: float) -> bool:
        """Drop a copy, unless it is one of what came instead; `False` if it is held."""
        digest = digest_of(name)
        if digest is None:
            return True
        path = self._layout.entry(digest)
        try:
            created = _read_head(self._door, path)[0].created
        except (FileNotFoundError, NotADirectoryError, ValueError, Damaged):
            return True  # no copy here
        if created > before or self._remote.holds(digest, created):
            return True
        protocol.flights.detach(path)
        protocol.stale.forget(path)
        return drop(self._layout, path)

    def _read(self) -> tuple[float, set[str], bool]:
        """Return from when on to look, what was seen before, and whether it is the first look."""
        try:
            fd = self._door.open(self._path, READ)
        except FileNotFoundError:
            return self._first(), set(), True
        try:
            size = self._door.fstat(fd).st_size
            told = self._door.read(fd, size).decode("ascii", "replace").split("\n")
        finally:
            self._door.close(fd)
        try:
            return float(told[0]), set(told[1:]), False
        except ValueError:
            return self._first(), set(), True

    def _first(self) -> float:
        oldest = min((entry.created for entry in scan(self._layout)), default=self._door.time())
        return max(0.0, oldest - _FIRST_BACK)

    def _write(self, path: str, content: str) -> None:
        scratch = f"{path}.{self._door.urandom(6).hex()}"
        with suppress(FileExistsError):
            self._door.mkdir(self._layout.upkeep, self._layout.folder_mode)
        fd = self._door.open(scratch, CREATE, self._layout.file_mode)
        try:
            self._door.write(fd, content.encode())
        finally:
            self._door.close(fd)
        now = self._door.time()  # the system's own time of change goes by steps of milliseconds
        self._door.utime(scratch, (now, now))
        self._door.replace(scratch, path)


def drop(layout: Layout, path: str) -> bool:
    """Remove an entry of this machine, with what builds it; `False` if somebody holds it."""
    hold = Hold(layout.door, path, layout.file_mode)
    if not hold.claim():
        return False
    try:
        revoke(layout.door, claim_path(path))
        remove(layout.door, path, layout.new_scratch(path))
    finally:
        hold.end()
    return True


def name_machine(layout: Layout) -> str:
    """Return what tells this machine from all others: an id in the cache folder, and its host.

    Host and path are not enough: containers may share both.
    """
    from ._publish import discard, install_file

    door = layout.door
    path = os.path.join(layout.upkeep, "machine")
    mine = door.urandom(16).hex()
    scratch = f"{path}.{mine}"
    try:
        for _ in range(2):
            try:
                fd = door.open(path, READ)
            except FileNotFoundError:
                layout.make_room(path)
                fd = door.open(scratch, CREATE, layout.file_mode)
                try:
                    door.write(fd, mine.encode())
                finally:
                    door.close(fd)
                install_file(door, scratch, path, None)
                discard(door, scratch)
                continue
            try:
                mine = door.read(fd, 64).decode("ascii", "replace")
            finally:
                door.close(fd)
            break
    except OSError as error:
        logger().info("this machine has no lasting name: %s", error)
    return f"{mine}-{door.host()}"
