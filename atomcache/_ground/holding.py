"""Tasks that leave something in a helper's hands: the folder of the trials, locks, open files.

What it is for: some trials need a process that keeps what it got while others try for it.  What
one helper holds from one task to the next is a `Holdings`, and is given back at its end.

Who calls it: the helper's program, for each task that the crew gives out.  What may go wrong:
`OSError`, which is the answer then.  A folder that can't be removed is tried again for a while.
"""

from __future__ import annotations

import os
from contextlib import suppress
from time import monotonic, sleep

from .._door import APPEND, CREATE, PROBE, door
from .changing import LONG_ENOUGH, write

PREFIX = ".atomcache-doctor-"
"""How the name of the folder begins in which things are tried."""

_ROUNDS = 150
_ROUND = 0.0004
"""Seconds from one round of a race to the next, each begun by all at the same moment."""

_TRIES = 5


class Holdings:
    """What one helper holds from one task to the next; each public method but `end` is a task."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._locked: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._kept: list[int] = []

    def make(self, place: str) -> str:
        """Make the folder of the trials."""
        import tempfile

        self._folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        return self._folder

    def end(self) -> bool:
        """Remove the folder of the trials, if this helper made it; tell whether it is gone."""
        if self._folder is None:
            return True
        for fd in [*self._locked.values(), *self._open.values(), *self._kept]:
            os.close(fd)
        for _ in range(_TRIES):
            try:
                door.remove_tree(self._folder)
            except OSError:  # it is cautious, and gives up where files change their identity
                for folder, _, files in os.walk(self._folder, topdown=False):
                    with suppress(OSError):
                        for name in files:
                            os.unlink(os.path.join(folder, name))
                        os.rmdir(folder)
            if not os.path.lexists(self._folder):
                return True
            sleep(LONG_ENOUGH / _TRIES)  # some filesystems show late what others made
        return False

    def race(self, what: str, prefix: str, start: float) -> tuple[int, list[int]]:
        """Try for one name after another at the same moments as others do."""
        own = f"{prefix}of-{os.getpid()}"
        if what == "link":
            write(own, "linked")
        won: list[int] = []
        end = max(start, monotonic()) + LONG_ENOUGH
        for turn in range(_ROUNDS):
            if monotonic() > end:
                return turn, won
            while monotonic() < start + turn * _ROUND:
                pass
            if self._wins(what, f"{prefix}{turn}", own):
                won.append(turn)
        return _ROUNDS, won

    def end_race(self) -> None:
        """Let go of what was won."""
        for fd in self._kept:
            os.close(fd)
        self._kept.clear()

    def _wins(self, what: str, path: str, own: str) -> bool:
        try:
            if what == "link":
                os.link(own, path)
            elif what == "create":
                os.close(os.open(path, CREATE | APPEND, 0o600))
            else:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                self._kept.append(fd)
                return door.lock_exclusive(fd)
        except FileExistsError:
            return False
        return True

    def lock(self, path: str, exclusive: bool) -> bool:
        """Try for a lock and keep it; what is refused is closed, as the library does."""
        fd = os.open(path, PROBE)
        granted = False
        try:
            granted = door.lock_exclusive(fd) if exclusive else door.lock_shared(fd)
            if granted and path not in self._locked:
                self._locked[path] = fd
        finally:
            if self._locked.get(path) != fd:
                os.close(fd)
        return granted

    def let_go(self, path: str) -> None:
        """Let go of a lock."""
        fd = self._locked.pop(path)
        door.unlock(fd)
        os.close(fd)

    def wait(self, path: str) -> bool:
        """Sleep until nobody has the lock."""
        fd = os.open(path, PROBE)
        try:
            if not door.can_wait:
                while not door.lock_shared(fd):
                    sleep(0.001)
                door.unlock(fd)
                return True
            return door.wait_shared(fd, None)
        finally:
            os.close(fd)

    def hold_open(self, path: str) -> None:
        """Open a file and keep it open."""
        self._open[path] = os.open(path, PROBE)

    def read_held(self, path: str) -> str:
        """Return what a file says that is kept open, and close it."""
        fd = self._open.pop(path)
        try:
            os.lseek(fd, 0, 0)
            return os.read(fd, 100).decode()
        finally:
            os.close(fd)
