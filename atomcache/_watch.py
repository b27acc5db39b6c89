"""What a cache sees happen: counts for `stats`, and events for those who subscribed.

What it is for: every hit, miss, build, wait and removal is counted in this process, and told
to the callbacks of `Cache.on`.  Counting takes no lock: `itertools.count` moves on in one
step of the interpreter; only adding up seconds takes one, once per build.  Hits are counted
per entry too, together with how long its build took, so that the time saved needs no
arithmetic per hit.  That sum may miss a hit that comes while its entry's count is put aside;
the number of hits misses none.

The counts of a process are added up with those of others in `_statistics`.

Who calls it: `Cache`, the protocol, and whoever removes things.  What may go wrong: a
callback that raises is logged, and harms nobody.
"""

from __future__ import annotations

import os
from _thread import RLock
from _weakref import ref
from itertools import count

from ._at_work import locks
from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._door import Door

KINDS = (
    "hit",
    "miss",
    "build_started",
    "build_finished",
    "build_failed",
    "duplicate",
    "not_stored",
    "fetched",
    "waited",
    "taken_over",
    "reaped",
    "evicted",
    "corrupt",
    "stale",
    "error",
)
"""What can happen; `Event` says what each means."""

USE_RECORDED = 3600.0
"""Seconds for which a recorded use stands: Go's build cache takes an hour too (its mtimeInterval
in cmd/go/internal/cache), so that a hit costs no write."""

LOOK_AGAIN = 60.0
"""Seconds after which a hit looks again whether its use, and what was counted, is to be written
down."""

_MOST_USES = 10_000


class Event:
    """Something that happened in a cache.

    Attributes
    ----------
    kind
        ``"hit"``; ``"miss"``; ``"build_started"``, ``"build_finished"`` and
        ``"build_failed"``; ``"duplicate"``, it was built, but somebody else had published it
        meanwhile; ``"not_stored"``, the factory asked for that, or the entry was removed
        meanwhile, or it can't be written; ``"fetched"``, it came from the bucket;
        ``"waited"`` for somebody else's build; ``"taken_over"`` from a builder that died;
        ``"reaped"``, what dead builders left;
        ``"evicted"``, to make room; ``"corrupt"``, an entry whose checksum is wrong;
        ``"stale"``, an old value was served;
        ``"error"``, the cache folder could not be read or written.
    key
        The key as listings show it; empty where it is not known.
    seconds
        How long it took, for builds and waits.
    error
        What was raised, for ``"build_failed"`` and ``"error"``.
    details
        More to tell, such as how many bytes were evicted.
    """

    __slots__ = ("details", "error", "key", "kind", "seconds")

    def __init__(
        self,
        kind: str,
        key: str = "",
        seconds: float | None = None,
        error: BaseException | None = None,
        **details: object,
    ) -> None:
        self.kind = kind
        self.key = key
        self.seconds = seconds
        self.error = error
        self.details = details

    def __repr__(self) -> str:
        told = [repr(self.kind)]
        for name in ("key", "seconds", "error"):
            value = getattr(self, name)
            if value not in (None, ""):
                told.append(f"{name}={value!r}")
        told += [f"{name}={value!r}" for name, value in self.details.items()]
        return f"Event({', '.join(told)})"


class _Use:
    """The hits of one entry in this process."""

    __slots__ = ("due", "hits", "took")

    def __init__(self, due: float, took: float) -> None:
        self.due = due
        self.took = took
        self.hits = count()


_watches: list[ref[Watch]] = []

_summing = RLock()  # a finalizer that builds may come in between
locks.append(lambda: _summing)

_warned: list[int] = []
"""Processes that said already what a duplicate build means: once is enough."""


class Watch:
    """Counts and subscribers of one cache in one process."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.callbacks: dict[object, Callable[[Event], object]] = {}
        self.requests: Callable[[], int] = int  # none, where there is no bucket
        self.forget()
        _watches[:] = [each for each in _watches if each() is not None]
        _watches.append(ref(self))

    def subscribe(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Have `callback` told of events until the function that is returned is called.

        Without a lock: a finalizer may end a subscription in the midst of another one's begin.
        """
        subscription = object()  # one of its own: a callback may come twice
        self.callbacks[subscription] = callback

        def end() -> None:
            self.callbacks.pop(subscription, None)

        return end

    def forget(self) -> None:
        """Start at zero, as a forked child must: its parent counts for itself."""
        self._counts = {kind: count() for kind in KINDS}
        self._hits = self._counts["hit"]
        self._uses: dict[str, _Use] = {}
        self._past_saved = 0.0
        self._built = 0.0

    def hit(self, path: str, key: object) -> bool:
        """Count a hit; tell whether the entry's use is to be recorded."""
        next(self._hits)
        use = self._uses.get(path)
        if self.callbacks:
            self._call("hit", key)
        if use is None or self._door.monotonic() >= use.due:
            return True
        next(use.hits)
        return False

    def due(self, path: str) -> bool:
        """Tell whether the use of an entry is to be recorded, for a look that is no hit."""
        use = self._uses.get(path)
        return use is None or self._door.monotonic() >= use.due

    def used(self, path: str, took: float, *, hit: bool) -> None:
        """Note that the use of an entry was recorded, by a hit or by another look."""
        if path not in self._uses and len(self._uses) >= _MOST_USES:
            self._fold(list(self._uses))
        use = self._uses.setdefault(path, _Use(0.0, took))  # threads may come together
        use.due = self._door.monotonic() + LOOK_AGAIN
        use.took = took
        if hit:
            next(use.hits)

    def rebuilt(self, path: str) -> None:
        """Note that later hits save what another build took."""
        if path in self._uses:
            self._fold([path])

    def tell(
        self,
        kind: str,
        key: object = "",
        *,
        seconds: float | None = None,
        error: BaseException | None = None,
        **details: object,
    ) -> None:
        """Count what happened, and tell those who subscribed."""
        next(self._counts[kind])
        if kind == "build_finished" and seconds is not None:
            with _summing:
                self._built += seconds
        if self.callbacks:
            self._call(kind, key, seconds=seconds, error=error, **details)

    def duplicate(self, key: object, what: str, path: str, seconds: float) -> None:
        """Tell of a build that was in vain, since somebody else had published meanwhile."""
        self.tell("duplicate", key, seconds=seconds)
        if os.getpid() not in _warned:
            _warned[:] = [os.getpid()]
            logger().warning(
                "%s was built, in %.1f s, but somebody else had published it meanwhile, in %s. "
                "What they published is used. That is so if it was set during the build, if "
                "this process was stopped for longer than its lease, or if several machines "
                "share this folder and can't see each other's claims. More of these are "
                "counted, as duplicates in stats(), and not logged",
                what,
                seconds,
                path,
            )

    def counts(self) -> dict[str, float]:
        """Return what was counted so far."""
        counted: dict[str, float] = {kind: _value(each) for kind, each in self._counts.items()}
        uses = [(_value(use.hits), use.took) for use in list(self._uses.values())]
        counted["seconds_saved"] = self._past_saved + sum(hits * took for hits, took in uses)
        counted["seconds_built"] = self._built
        return counted

    def _fold(self, paths: list[str]) -> None:
        """Put counts of entries aside, to count them anew or no more."""
        gone = [use for path in paths if (use := self._uses.pop(path, None)) is not None]
        saved = sum(_value(use.hits) * use.took for use in gone)
        with _summing:
            self._past_saved += saved

    def _call(self, kind: str, key: object, **told: Any) -> None:
        from ._keys import describe

        event = Event(kind, describe(key), **told)
        for callback in list(self.callbacks.values()):
            try:
                callback(event)
            except Exception:
                log = logger()
                log.warning("a subscriber of the cache failed at %r", event, exc_info=True)


def _after_fork_in_child() -> None:
    global _summing
    _summing = RLock()
    for each in _watches:
        watch = each()
        if watch is not None:
            watch.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _value(counter: count[int]) -> int:
    """Return how often a counter was moved on, without moving it."""
    return int(repr(counter)[6:-1])
