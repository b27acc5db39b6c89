"""Holding a path entry, so that nobody evicts it.

What it is for: who holds an entry has a shared lock on a file beside it, ``data.held``; who
evicts it takes the exclusive lock first.  The file stands beside the entry and not in it, so
that a hold outlasts a refresh.  The kernel lets go of the lock when its owner dies, so a
crash ends a hold.

Who calls it: `Cache.hold`, the upkeep before it evicts, and whoever removes what was replaced.
What may go wrong: where there are no locks, or the folder can't be written, nothing can be
held; that is logged.
"""

from __future__ import annotations

import errno
import os

from ._claim import NO_LOCKS, leads_to
from ._door import ADD
from ._layout import HELD, META
from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from ._door import Door
    from ._layout import Layout

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


class Hold:
    """The lock of one who holds an entry, or is about to evict it.

    Parameters
    ----------
    layout
        Of the cache.
    entry
        Path of the entry.
    """

    def __init__(self, layout: Layout, entry: str) -> None:
        self._door = layout.door
        self._mode = layout.file_mode
        self._entry = entry
        self._name = entry + HELD
        self._owner = self._door.getpid()
        self._fd: int | None = None

    def share(self) -> bool:
        """Hold the entry; `False` if there is none."""
        while not self._lock(exclusive=False):
            self._door.sleep(0.001)  # somebody is evicting it
        try:
            self._door.stat(os.path.join(self._entry, META))
        except (FileNotFoundError, NotADirectoryError):
            self.end()
            return False
        return True

    def claim(self) -> bool:
        """Keep others from holding the entry; `False` if somebody does."""
        return self._lock(exclusive=True)

    def end(self) -> None:
        """Let go; the last one to hold it removes the file."""
        if self._fd is None or self._owner != self._door.getpid():
            return  # nothing was held, or this is a forked child, whose copy is closed
        fd, self._fd = self._fd, None
        door = self._door
        try:
            if door.lock_exclusive(fd):
                if leads_to(door, self._name, door.fstat(fd)):
                    door.unlink(self._name)
                door.unlock(fd)
        finally:
            door.close_kept(fd)

    def _lock(self, *, exclusive: bool) -> bool:
        """Lock the file of this name, made if need be; `False` if somebody else has it."""
        door = self._door
        while True:
            try:
                fd = door.open_kept(self._name, ADD, self._mode)
            except OSError as error:
                if error.errno not in _NOT_WRITABLE:
                    raise
                logger().warning("nothing can be held in a folder that is read-only: %s", error)
                return True
            try:
                locked = door.lock_exclusive(fd) if exclusive else door.lock_shared(fd)
                if locked and leads_to(door, self._name, door.fstat(fd)):
                    self._fd = fd
                    return True
            except OSError as error:
                door.close_kept(fd)
                if error.errno not in NO_LOCKS:
                    raise
                logger().info("there are no locks here, so nothing can be held: %s", error)
                return True
            door.close_kept(fd)
            if not locked:
                return False


class Holding:
    """A ``with`` block in which a path entry is held; made by `Cache.hold`.

    By hand, because `contextlib` takes a process 3 ms to load.
    """

    def __init__(self, hold: Callable[[], tuple[Path, Hold]]) -> None:
        self._hold = hold
        self._held: list[Hold] = []

    def __enter__(self) -> Path:
        path, held = self._hold()
        self._held.append(held)
        return path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._held.pop().end()


def is_held(layout: Layout, entry: str) -> bool:
    """Tell whether somebody holds an entry."""
    if not os.path.lexists(entry + HELD):
        return False
    hold = Hold(layout, entry)
    try:
        free = hold.claim()
    except OSError:  # the folder is gone
        return False
    hold.end()
    return not free


def remove_stale(door: Door, path: str, layout: Layout) -> bool:
    """Remove the file of a hold that ended by a crash."""
    hold = Hold(layout, path[: -len(HELD)])
    if hold.claim():
        hold.end()
    return False  # nothing that a dead builder left
