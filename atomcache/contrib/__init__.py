"""Ready adapters that show others what a cache does: OpenTelemetry and Prometheus.

What it is for: each adapter is a module of its own, which needs the library that it adapts to;
nothing else in the package does.  In here is what they share: pairing the begin of a build with
its end.

Who calls it: `opentelemetry` and `prometheus`, from a callback of `Cache.on`.  What may go wrong:
an adapter whose library is missing raises an `ImportError` that says what to install.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING

from atomcache._build import current_build
from atomcache._errors import NoBuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from atomcache import Event

STORED = "stored"
FAILED = "failed"
NOT_STORED = "not_stored"
"""How a build ends: nothing is kept if the factory said so, if its caller was interrupted, if
the entry was removed meanwhile, if somebody else had published it meanwhile, or if the cache
folder could not be written."""

BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Upper bounds of a histogram's classes, in seconds: builds take from milliseconds to hours."""


class Running:
    """A build of this process that is under way.

    Attributes
    ----------
    key
        As in its events.
    mark
        Whatever the adapter made when it began, such as a span.
    seconds
        How long it took, once it has ended.
    ended
        When that was, in nanoseconds since the epoch.
    """

    __slots__ = ("began", "ended", "key", "mark", "pid", "seconds", "thread")

    def __init__(self, key: str, mark: Any) -> None:
        self.key = key
        self.mark = mark
        self.pid = os.getpid()
        self.thread = threading.get_ident()
        self.began = time.monotonic()
        self.seconds = 0.0
        self.ended = 0

    def end(self, seconds: float | None) -> None:
        """Take down when it ended, and how long it took if that is known."""
        self.ended = time.time_ns()
        self.seconds = time.monotonic() - self.began if seconds is None else seconds


class Builds:
    """The builds of this process that are under way, each of which ends exactly once.

    A build whose caller is interrupted ends without an event; it is over when nobody has its
    `Build` any more.  The garbage collector tells that, in the middle of anything, so the
    adapter hears of it with the next event or `catch_up`.

    Parameters
    ----------
    began
        Called at the begin of a build with its event; what it returns is kept as `Running.mark`.
    ended
        Called after the end with the build, how it ended, and what was raised if it failed.
    """

    def __init__(
        self,
        began: Callable[[Event], Any],
        ended: Callable[[Running, str, BaseException | None], object],
    ) -> None:
        self._began = began
        self._ended = ended
        self._running: dict[int, Running] = {}
        self._over: deque[Running] = deque()

    def __len__(self) -> int:
        here = os.getpid()  # what a child's parent builds is not the child's
        return sum(running.pid == here for running in list(self._running.values()))

    def see(self, event: Event) -> None:
        """Take note of an event."""
        if self._over:
            self.catch_up()
        if event.kind == "build_started":
            self._begin(event)
        elif event.kind == "build_finished":
            self._end(event, STORED)
        elif event.kind == "build_failed":
            self._end(event, FAILED)
        elif event.kind in ("duplicate", "not_stored"):
            self._end(event, NOT_STORED)

    def catch_up(self) -> None:
        """Tell of builds that have ended without an event."""
        while self._over:
            try:
                running = self._over.popleft()
            except IndexError:  # another thread told of the last one
                return
            self._ended(running, NOT_STORED, None)

    def drop(self) -> int:
        """Forget the builds that are under way; return how many there were."""
        number = len(self)
        self._running.clear()
        return number

    def _begin(self, event: Event) -> None:
        try:
            build = current_build()
        except NoBuildError:  # nobody could tell its end
            return
        number = id(build)
        self._running[number] = Running(event.key, self._began(event))
        weakref.finalize(build, self._gone, number).atexit = False

    def _end(self, event: Event, outcome: str) -> None:
        """End the build of this thread that began last and has the event's key."""
        thread, pid = threading.get_ident(), os.getpid()
        for number, running in reversed(list(self._running.items())):
            if (running.thread, running.pid, running.key) == (thread, pid, event.key):
                self._running.pop(number, None)
                running.end(event.seconds)
                self._ended(running, outcome, event.error)
                return

    def _gone(self, number: int) -> None:
        running = self._running.pop(number, None)
        if running is not None and running.pid == os.getpid():
            running.end(None)
            self._over.append(running)
