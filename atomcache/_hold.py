"""Holding a path entry, so that nobody evicts it.

What it is for: who holds an entry has a shared lock on a file beside it, ``data.held``; who
evicts it takes the exclusive lock first.  The file stands beside the entry and not in it, so
that a hold outlasts a refresh.  The kernel lets go of the lock when its owner dies, so a
crash ends a hold.  Who replaces an entry that is held writes into the file where the old one
stands now, and the last holder removes it.

Who calls it: `Cache.hold`, the upkeep before it evicts, and whoever removes what was replaced.
What may go wrong: where there are no locks, or the folder can't be written, nothing can be
held; that is logged.
"""

from __future__ import annotations

import errno
import os

from ._claim import NO_LOCKS, leads_to
from ._door import ADD, APPEND, PROBE
from ._layout import CLAIM, HELD, META, split_scratch
from ._lines import read_lines, write_lines
from ._log import logger
from ._publish import discard
from ._record import read_all

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
    entry
        Path of the entry.
    mode
        Of the file, if it has to be made; `None` if it is not to be.
    """

    def __init__(self, door: Door, entry: str, mode: int | None) -> None:
        self._door = door
        self._mode = mode
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
        """Let go; the last one to hold it removes the file, and what was replaced meanwhile."""
        if self._fd is None or self._owner != self._door.getpid():
            return  # nothing was held, or this is a forked child, whose copy is closed
        fd, self._fd = self._fd, None
        door = self._door
        replaced: list[str] = []
        try:
            if door.lock_exclusive(fd):
                if leads_to(door, self._name, door.fstat(fd)):
                    door.unlink(self._name)
                    replaced = self._replaced(fd)  # last: what is not told by now, who tells sees
                door.unlock(fd)
        finally:
            door.close_kept(fd)
        for path in replaced:
            discard(door, path)

    def _replaced(self, fd: int) -> list[str]:
        """Return where what was replaced stands, by what the file says."""
        folder, own = os.path.split(self._entry)
        if not self._door.fstat(fd).st_size:
            return []
        names = [name for word, name in read_lines(read_all(self._door, fd)) if word == "replaced"]
        scratch = [(name, split_scratch(name)) for name in names]
        return [
            os.path.join(folder, name)
            for name, parts in scratch
            if parts and parts[0] == own + CLAIM
        ]

    def _lock(self, *, exclusive: bool) -> bool:
        """Lock the file of this name, made if need be; `False` if somebody else has it."""
        door = self._door
        while True:
            try:
                if self._mode is None:
                    fd = door.open_kept(self._name, PROBE)
                else:
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


def is_held(door: Door, entry: str) -> bool:
    """Tell whether somebody holds an entry."""
    if not os.path.lexists(entry + HELD):
        return False
    hold = Hold(door, entry, None)
    try:
        free = hold.claim()
    except OSError:  # the hold has ended, or the folder is gone
        return False
    hold.end()
    return not free


def discard_replaced(door: Door, entry: str, *paths: str) -> None:
    """Remove what an entry was before it was replaced, or leave that to the last who holds it."""
    for path in paths:
        if os.path.lexists(path) and not (
            is_held(door, entry) and _tell_holders(door, entry, path)
        ):
            discard(door, path)


def _tell_holders(door: Door, entry: str, path: str) -> bool:
    """Say where what they hold stands now; `False` if the last hold has ended meanwhile."""
    try:
        fd = door.open_kept(entry + HELD, PROBE | APPEND)
    except FileNotFoundError:
        return False
    except PermissionError:  # another user's: a sweep removes it
        return True
    try:
        door.write(fd, b"\n" + write_lines([("replaced", os.path.basename(path))]))
        return leads_to(door, entry + HELD, door.fstat(fd))
    finally:
        door.close_kept(fd)


def remove_stale(door: Door, path: str, layout: Layout) -> bool:
    """Remove the file of a hold that ended by a crash."""
    hold = Hold(door, path[: -len(HELD)], layout.file_mode)
    if hold.claim():
        hold.end()
    return False  # nothing that a dead builder left
