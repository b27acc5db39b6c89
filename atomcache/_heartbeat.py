"""The heartbeat: one thread per process that touches the claims it owns.

What it is for: where a kernel lock can't be seen by everybody (another machine, another
mount, a filesystem without locks), a contender knows that an owner lives because the
claim's modification time keeps changing.  Where locks can be trusted nobody looks at
it, but the owner can't know who may come to wait, so it always beats.

Who calls it: the door, for claims.  What may go wrong: a factory that holds the
interpreter lock for longer than a whole lease starves this thread; others may then
build the same thing once more, and nobody sees a torn value.
"""

from __future__ import annotations

import os
from _thread import RLock, allocate_lock, start_new_thread

from ._at_work import locks
from ._door import door
from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType


class _Heart:
    """The claims that one process keeps alive, and the thread that does so."""

    def __init__(self) -> None:
        # A finalizer or a signal handler that builds too may come in between.
        self.lock = RLock()
        self.periods: dict[int, float] = {}
        self.asleep_for: float | None = None  # None: no thread runs
        self.bell: LockType = allocate_lock()
        self.bell.acquire()

    def start(self, fd: int, period: float) -> None:
        try:
            with self.lock:
                self.periods[fd] = period
                if self.asleep_for is None:
                    start_new_thread(self.beat, ())
                    self.asleep_for = period
                elif period < self.asleep_for and self.bell.locked():
                    self.bell.release()
        except RuntimeError as error:  # no more threads to be had
            logger().warning(
                "a build has no heartbeat, other machines may build it too: %s", error
            )

    def stop(self, fd: int) -> None:
        with self.lock:
            self.periods.pop(fd, None)

    def beat(self) -> None:
        while True:
            with self.lock:
                if not self.periods:
                    self.asleep_for = None
                    return
                self.asleep_for = min(self.periods.values())
            self.bell.acquire(timeout=self.asleep_for)
            errors = []
            with self.lock:  # held while touching: nobody closes a descriptor meanwhile
                for fd in list(self.periods):
                    if fd in self.periods:  # a finalizer that came in between may have ended it
                        errors += self.touch(fd)
            # Not under the lock: what handles it may wait for a build that needs the lock.
            for error in errors:
                logger().warning(
                    "the heartbeat of a build stopped, other machines may build it too: %s", error
                )

    def touch(self, fd: int) -> list[OSError]:
        try:
            os.utime(fd)
            door.show(fd)
        except OSError as error:
            self.periods.pop(fd, None)
            return [error]
        return []


_heart = _Heart()
locks.append(lambda: _heart.lock)


def start(fd: int, period: float) -> None:
    """Touch `fd` every `period` seconds, or oftener where another claim wants it."""
    _heart.start(fd, period)


def stop(fd: int) -> None:
    """Leave `fd` alone from now on; it may be closed once this has returned."""
    _heart.stop(fd)


def _after_fork_in_child() -> None:
    global _heart
    _heart = _Heart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
