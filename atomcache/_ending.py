"""What caches have counted is written down when the process ends.

What it is for: counts live in memory, and a process that ends leaves them to those that go on.
Nothing is registered before something is counted, and upkeep that is under way gets a moment to
finish.  A cache that is gone by then has its
counts written when the next one comes along.  A process that goes on for long, and hits, writes
now and then, for others to see.

Who calls it: `Asking`, before it counts and as it notes a use.  What may go wrong: counts that
can't be written are lost, and logged.
"""

from __future__ import annotations

import atexit
import os
import sys
from _weakref import ref

from ._log import logger
from ._watch import LOOK_AGAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._door import Door
    from ._layout import Layout
    from ._statistics import Statistics
    from ._watch import Watch


class Ending:
    """The end of one cache in this process."""

    def __init__(self, door: Door, layout: Layout, watch: Watch) -> None:
        self._door = door
        self._armed_in = 0
        self._next_write = 0.0
        self.statistics = _statistics_of(door, layout, watch)

    def arm(self) -> None:
        """See to it that what the cache has counted is written down when the process ends."""
        if self._armed_in == os.getpid() or not self._door.upkeep:
            return
        self._armed_in = os.getpid()
        gone = [each for each in _to_write if each[0]() is None]
        _to_write[:] = [each for each in _to_write if each[0]() is not None]
        _write(gone)
        if not _to_write:
            multiprocessing = sys.modules.get("multiprocessing.util")
            if multiprocessing is None:
                atexit.register(_write_all)
            else:  # its children end without atexit
                multiprocessing.Finalize(None, _write_all, exitpriority=0)
        _to_write.append((ref(self), self.statistics))

    def write_sometimes(self) -> None:
        """Write down what was counted, once a minute, in a thread: a hit waits for no disk."""
        now = self._door.monotonic()
        if now < self._next_write:
            return
        is_first, self._next_write = not self._next_write, now + LOOK_AGAIN
        if is_first:  # most processes have ended before there is a second
            return
        statistics = self.statistics
        try:
            self._door.start_thread(lambda: statistics().write(), daemon=True)
        except RuntimeError as error:  # no more threads to be had
            logger().warning("what was counted is written down later: %s", error)


_to_write: list[tuple[ref[Ending], Callable[[], Statistics]]] = []


def _statistics_of(door: Door, layout: Layout, watch: Watch) -> Callable[[], Statistics]:
    """Return what returns a cache's statistics, made when they are first asked for.

    It does not hold the cache, so that it can be asked when that is gone.
    """
    made: list[Statistics] = []

    def statistics() -> Statistics:
        if not made:
            from ._statistics import Statistics

            made.append(Statistics(door, layout, watch))
        return made[0]

    return statistics


def _write(ended: list[tuple[ref[Ending], Callable[[], Statistics]]]) -> None:
    for _, statistics in ended:
        try:
            statistics().end()
        except OSError as error:  # no descriptor left even to read a module
            logger().warning("what was counted is not kept: %s", error)


def _write_all() -> None:
    upkeep = sys.modules.get(f"{__package__}._upkeep")
    if upkeep is not None:
        upkeep.finish()
    _write(_to_write)


def _forget_in_child() -> None:
    _to_write.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
