"""How much a cache holds, by what everybody adds up without a lock.

What it is for: each publication appends its size to one file, ``upkeep/count``; appending is
atomic.  Who wants the sum reads what was appended since it looked last.  It is a count in bytes
and entries, so programs with other limits, or with none, add to the same one.  A walk over the
cache begins the file anew with what is really there, and marks it as counted.

Who calls it: the upkeep.  What may go wrong: `OSError` from the door.  Who is killed between
publishing and appending, and whatever is removed by other means than the upkeep, is set right by
the next walk.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from array import array

from ._claim import leads_to
from ._door import ADD, APPEND, CREATE, PROBE
from ._publish import persist

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._door import Door
    from ._layout import Layout

_COUNTED = b"atomcache count\n"
"""What the file begins with once somebody has walked over the whole cache."""

_RECORD = 16
_LONGEST = 1 << 20
"""Bytes beyond which the file is to be begun anew: a process that has just started reads all of
it, in some 2 ms."""

_TRIES = 3


class Count:
    """What one process knows of how much a cache holds.

    Attributes
    ----------
    size, entries
        Bytes and entries, as of the last look.
    counted
        Whether that includes what was there before anybody counted.
    long
        Whether it is time to begin anew.
    """

    def __init__(self, door: Door, layout: Layout) -> None:
        self._door = door
        self._layout = layout
        self.path = os.path.join(layout.upkeep, "count")
        self._forget()
        self._begin()

    def _begin(self) -> None:
        self._pid = self._door.getpid()
        self._looking = allocate_lock()  # a forked child's own: the parent's may be taken

    def _forget(self) -> None:
        self._file: tuple[int, int] = (0, 0)
        self._read = 0
        self._sums = (0, 0)
        self.counted = self.long = False

    @property
    def size(self) -> int:
        return max(0, self._sums[0])

    @property
    def entries(self) -> int:
        return max(0, self._sums[1])

    def add(self, size: int, entries: int, *, make: bool) -> bool:
        """Add what was published, and look at the sum; `False` if nobody counts here.

        Parameters
        ----------
        make
            Whether to begin to count, if nobody does.
        """
        record = _numbers(size, entries)
        for _ in range(_TRIES):
            fd = self._open(make)
            if fd is None:
                return False
            try:
                self._door.write(fd, record)
                found = self._door.fstat(fd)
                self._look(fd, found)
            finally:
                self._door.close(fd)
            if found.st_nlink or leads_to(self._door, self.path, found):
                break  # else it was begun anew at this moment, without what we added
        return True

    def look(self) -> None:
        """Look at the sum."""
        fd = self._open(make=False)
        if fd is not None:
            try:
                self._look(fd, self._door.fstat(fd))
            finally:
                self._door.close(fd)

    def length(self) -> int:
        """Return how long the file is, to hand to `begin_anew` after a walk."""
        try:
            return int(self._door.stat(self.path).st_size)
        except FileNotFoundError:
            return 0

    def begin_anew(self, size: int, entries: int, since: int, *, make: bool) -> int:
        """Begin with what a walk has found; return how often something was added meanwhile."""
        fd = self._open(make)
        if fd is None:
            return 0
        try:
            self._door.lseek(fd, since, 0)
            added = self._door.read(fd, max(0, self._door.fstat(fd).st_size - since))
        finally:
            self._door.close(fd)
        scratch = f"{self.path}.new"
        self._door.remove_tree(scratch)  # of one who was killed
        fd = self._door.open(scratch, CREATE, self._layout.file_mode)
        try:
            added = added[: len(added) - len(added) % _RECORD]
            self._door.write(fd, _COUNTED + _numbers(size, entries) + added)
        finally:
            self._door.close(fd)
        persist(self._door, lambda: self._door.replace(scratch, self.path))
        self.look()
        return len(added) // _RECORD

    def _open(self, make: bool) -> int | None:
        for flags in (PROBE | APPEND, ADD):
            try:
                fd: int = self._door.open(self.path, flags, self._layout.file_mode)
                return fd
            except FileNotFoundError:
                if not make:
                    return None
                self._layout.make_room(self.path)
        raise AssertionError("unreachable")

    def _look(self, fd: int, found: os.stat_result) -> None:
        """Add up what was appended since the last look, unless another thread is at it."""
        if self._pid != self._door.getpid():
            self._begin()
        if not self._looking.acquire(blocking=False):
            return
        try:
            end = found.st_size - found.st_size % _RECORD
            if (found.st_dev, found.st_ino) != self._file or end < self._read:
                self._forget()
                self._file = (found.st_dev, found.st_ino)
            self._door.lseek(fd, self._read, 0)
            data = self._door.read(fd, end - self._read)
            if not self._read:
                self.counted = data.startswith(_COUNTED)
                data = data[_RECORD:] if self.counted else data
            self.counted &= end == found.st_size  # else something is torn, and all after it wrong
            numbers = array("q", data[: len(data) - len(data) % _RECORD])
            size, entries = self._sums
            self._sums = size + sum(numbers[::2]), entries + sum(numbers[1::2])
            self._read = end
            self.long = end > _LONGEST
        finally:
            self._looking.release()


def _numbers(size: int, entries: int) -> bytes:
    return array("q", (size, entries)).tobytes()
