"""Keeping a cache within its limits, and clean, without anybody having to think of it.

What it is for: after each publication `published` adds the entry's size to a count that all
processes share (see `_count`).  When that passes the limit by a hundredth, a thread prunes to 95 %
of it; one process at a time does that, under a claim like any other.  Publishers that find
the limit passed by a fiftieth evict an old entry or two themselves, which takes less than a
millisecond, so no program outruns who prunes, and processes that end at once keep the limit too.
Once a day, likewise, a thread removes what dead builders left (see `sweep`) and what has expired
and was not used for a month, and counts anew.

Who calls it: the protocol after publishing, and `Cache.prune`.  What may go wrong: nothing
that harms a publication; trouble is logged.  A process that ends waits a moment for its thread
and leaves the rest to the next.
"""

from __future__ import annotations

import os
from _thread import allocate_lock

from ._at_work import AtWork, is_at_work
from ._claim import (
    NEWBORN_GRACE,
    appearance,
    claim_path,
    open_claim,
    reap,
    take,
)
from ._count import Count
from ._door import ADD
from ._errors import CircularBuildError
from ._eviction import Eviction, Limits, Pruned, scan
from ._layout import is_entry
from ._log import logger
from ._publish import discard
from ._record import read_record
from ._watch import USE_RECORDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

    from ._claim import Claim
    from ._door import Door
    from ._protocol import Entry, Protocol

_TRIGGER = 1.01
"""Part of the limit from which somebody prunes, and the cache grows while they do."""

_GOAL = 0.95
"""Part of the limit that pruning by itself leaves, so that it is not soon to do again."""

_BRAKE = 1.02
"""Part of the limit from which publishers evict themselves."""

_MOST_AT_ONCE = 4
_EVICTING = 0.003
"""How many entries a publication evicts at most, and in how many seconds: it shall pay less than
5 ms."""

_BATCH = 64
_BREATH = 0.0005
"""Entries after which a thread that prunes pauses for so many seconds: it has the interpreter for
itself while it computes, and the program would wait for that many times in one publication."""

_RECOUNTS = 3
_FEW = 0.02
"""How often to walk over a cache to count it, unless less than such a part of it came or went
meanwhile: whether that was seen by the walk can't be told."""

_BACK_OFF = 10.0
"""Seconds to leave a cache alone that can't be brought down, because all is held."""

_TAKEN = 1.0
"""Seconds to leave it alone when another process is at it."""

_AT_EXIT = 1.0
_SOON_DONE = 100_000
"""Seconds for which a process that ends waits for its thread, and how many entries the cache may
have for that to be worth it."""

_SWEEP_PAUSE = 86_400.0
_SWEEP_AGAIN = 3600.0
_LOOK_PAUSE = 600.0
_INPUTS_IDLE = 30 * 86_400.0

_EXPIRED_IDLE = 30 * 86_400.0
"""Seconds without use after which what has expired goes by itself: it could still be served by
`stale_for` or `stale_on_error`, or be new to who asks for a longer age."""

_under_way: list[LockType] = []
"""A lock for each thread that prunes a cache, held until it is done."""


def finish() -> None:
    """Wait a moment for threads that prune, at the end of the process."""
    for done in list(_under_way):
        if done.acquire(timeout=_AT_EXIT):
            done.release()


class Upkeep:
    """The upkeep of one cache, by one process.

    Parameters
    ----------
    protocol
        Of the cache.
    limits
        What the cache may hold.
    add_up
        Adds up what ended processes have counted.
    """

    def __init__(self, protocol: Protocol, limits: Limits, add_up: Callable[[], None]) -> None:
        self._protocol = protocol
        self._add_up = add_up
        self._door = protocol.door
        self._layout = protocol.layout
        self._limits = limits
        self._count = Count(protocol.door, protocol.layout)
        self._eviction = Eviction(protocol.layout, protocol.watch)
        self._swept = os.path.join(self._layout.upkeep, "swept")
        self._next_look = 0.0
        self._next_trim = self._next_idle = 0.0
        self._busy = 0

    def _at_work(self) -> bool:
        """Tell whether a thread of this process is at it; a parent's stayed with the parent."""
        return self._busy == self._door.getpid()

    def published(self, entry: Entry) -> None:
        """Note what was published, and see to it that somebody cleans up if it is time."""
        try:
            is_new = entry.size_before is None
            grown = entry.size - (entry.size_before or 0)
            if self._count.add(grown, int(is_new), make=self._limits.any()):
                self._keep_within(entry.path)
            if self._door.monotonic() >= self._next_look:
                self._next_look = self._door.monotonic() + _LOOK_PAUSE
                self._look_whether_swept()
        except OSError as error:
            logger().warning("the cache's upkeep failed: %s", error)

    def used(self) -> None:
        """Look whether entries are idle, at a hit, at most every ten minutes."""
        idle = self._limits.max_idle
        if idle is None or self._at_work() or self._door.monotonic() < self._next_idle:
            return
        self._next_idle = self._door.monotonic() + _LOOK_PAUSE
        if self._idle_due(idle):
            self._behind(self._trim)

    def _fill(self) -> float:
        return self._limits.fill(self._count.size, self._count.entries)

    def _keep_within(self, published: str) -> None:
        """See to it that somebody prunes if it is time, and help if it is high time."""
        limits = self._limits
        if (
            limits.any()
            and not self._at_work()
            and self._door.monotonic() >= self._next_trim
            # First, because it leaves a mark from which the time is counted.
            and (
                (limits.max_idle is not None and self._idle_due(limits.max_idle))
                or not self._count.counted
                or self._count.long
                or self._fill() > _TRIGGER
            )
        ):
            self._behind(self._trim)
        began = self._door.monotonic()
        for _ in range(_MOST_AT_ONCE):
            if self._fill() <= _BRAKE or self._door.monotonic() - began > _EVICTING:
                return
            self._eviction.one(published, self._add)

    def _add(self, size: int, entries: int) -> None:
        self._count.add(size, entries, make=False)

    def _trim(self) -> None:
        """Prune until there is no more to do, or somebody else is at it; sweep if it is time."""
        while True:
            done = self._prune_claimed(
                self._limits, self._limits.part(_GOAL), wait=False, pause=True
            )
            if done is None or not done.removed or self._fill() <= _TRIGGER:
                break
        if done is None:
            self._next_trim = self._door.monotonic() + _TAKEN
        elif self._fill() > _TRIGGER:
            self._next_trim = self._door.monotonic() + _BACK_OFF
        # Publications never find the time for it where each of them has the cache trimmed.
        if self._sweep_due():
            self._sweep()

    def _idle_due(self, idle: float) -> bool:
        """Tell whether it is time to look for idle entries: ten times in their time."""
        mark = os.path.join(self._layout.upkeep, "idle")
        return self._due(mark, max(1.0, min(idle / 10, _SWEEP_PAUSE)))

    def _look_whether_swept(self) -> None:
        if self._at_work():
            self._next_look = 0.0
        elif self._sweep_due():
            self._behind(self._sweep)

    def _sweep_due(self) -> bool:
        return self._due(self._swept, _SWEEP_PAUSE, again=_SWEEP_AGAIN)

    def _due(self, mark: str, pause: float, *, again: float | None = None) -> bool:
        """Tell whether a mark is older than `pause`, and if so make it new; a new one is not.

        Parameters
        ----------
        again
            Seconds after which it is due again unless it is marked as done by then.
        """
        now = self._door.time()
        try:
            marked = self._door.stat(mark).st_mtime
        except FileNotFoundError:
            marked = now
            self._door.close(self._open(mark))
        if -USE_RECORDED < now - marked < pause:
            return False
        new = now if again is None else now - pause + again
        self._door.utime(mark, (new, new))
        return True

    def _sweep(self) -> None:
        from ._listing import sweep

        reaped = sweep(self._layout)
        if reaped:
            self._protocol.watch.tell("reaped", number=reaped)
        self._add_up()
        for each in scan(self._door, self._layout.inputs):
            found = each.stat(follow_symlinks=False)
            last = max(found.st_atime, found.st_mtime)
            if is_entry(each.name) and self._door.time() - last > _INPUTS_IDLE:
                discard(self._door, each.path)
        self._eviction.expired(_EXPIRED_IDLE, Pace(self._door, self._count, True))
        now = self._door.time()
        self._door.utime(self._swept, (now, now))
        if self._limits.any():  # what others removed was not counted
            self._trim()

    def _behind(self, step: Callable[[], object]) -> None:
        """Do something in a thread that keeps no process from ending for long, one at a time."""
        if self._at_work():
            return
        self._busy = self._door.getpid()
        done = allocate_lock()
        done.acquire()
        if self._count.entries <= _SOON_DONE:
            _under_way.append(done)

        def run() -> None:
            try:
                step()
            except OSError as error:
                logger().warning("the cache's upkeep failed: %s", error)
            finally:
                over()

        def over() -> None:
            self._busy = 0
            if done in _under_way:
                _under_way.remove(done)
            done.release()

        try:
            self._door.start_thread(run, daemon=True)
        except RuntimeError as error:  # no more threads to be had
            over()
            logger().warning("the cache's upkeep is left for later: %s", error)

    # -- prune -----------------------------------------------------------------------

    def prune(self, limits: Limits) -> Pruned:
        """Remove what is beyond the limits; wait for whoever is at it already."""
        done = self._prune_claimed(limits, limits, wait=True)
        assert done is not None
        return done

    def _prune_claimed(
        self, limits: Limits, goal: Limits, *, wait: bool, pause: bool = False
    ) -> Pruned | None:
        """Prune under a claim; `None` if somebody else is at it and `wait` is off.

        Parameters
        ----------
        goal
            What to come down to, once the limits are passed.
        pause
            Whether to let other threads of this process get on.
        """
        place = os.path.join(self._layout.upkeep, "prune")
        if is_at_work(self._door, place):
            raise CircularBuildError(
                f"this very thread prunes the cache already, in {self._layout.directory}, and "
                "what came in between wants the same: a signal handler, a finalizer or a callback"
            )
        with AtWork(self._door, place):
            claim = self._claim(place, wait)
            if claim is None:
                return None
            try:
                claim.sign("the cache is pruned", kind="upkeep")
                return self._prune(limits, goal, Pace(self._door, self._count, pause))
            finally:
                claim.release()

    def _claim(self, place: str, wait: bool) -> Claim | None:
        door = self._door
        seen: tuple[int, ...] = ()
        since = 0.0
        while True:
            claim = take(door, self._layout, place, self._protocol.lease)
            if claim is not None:
                return claim
            fd = open_claim(door, claim_path(place))
            if fd is None:
                continue
            try:
                found = door.fstat(fd)
                record = read_record(door, fd)
                if wait and record is not None and door.can_wait:
                    door.wait_shared(fd, None)
            finally:
                door.close_kept(fd)
            if appearance(found) != seen:
                seen, since = appearance(found), door.monotonic()
            silent_for = door.monotonic() - since if wait else self._silent_for(found)
            silent = silent_for >= (NEWBORN_GRACE if record is None else record.lease)
            gone = reap(door, claim_path(place), found, silent=silent)
            if not gone and not wait:
                return None
            if not gone:
                door.sleep(0.01)

    def _silent_for(self, found: os.stat_result) -> float:
        """Return how long a claim has been silent, by the clock of the filesystem.

        The count was added to just now, so no two machines' clocks are compared.
        """
        try:
            return self._door.stat(self._count.path).st_mtime - found.st_mtime
        except FileNotFoundError:
            return 0.0

    def _prune(self, limits: Limits, goal: Limits, pace: Pace) -> Pruned:
        done = Pruned()
        for _ in range(_RECOUNTS):
            since = self._count.length()
            ages = self._eviction.count(limits, done, pace)
            more = self._count.begin_anew(done.size, done.entries, since, make=self._limits.any())
            if more <= _FEW * done.entries:
                break
        if limits.fill(done.size, done.entries) > 1:
            pace.begin(done)
            try:
                self._eviction.down_to(limits, goal, done, ages, pace)
            finally:
                pace.tell()
        return done

    def _open(self, path: str) -> int:
        try:
            return self._door.open(path, ADD, self._layout.file_mode)
        except FileNotFoundError:
            self._layout.make_room(path)
            return self._door.open(path, ADD, self._layout.file_mode)


class Pace:
    """What is to be done at times during a walk over the cache: pause, and tell what has gone."""

    def __init__(self, door: Door, count: Count, pause: bool) -> None:
        self._door = door
        self._count = count
        self._pause = pause
        self._calls = 0
        self._told = (0, 0)
        self._done: Pruned | None = None

    def __call__(self) -> None:
        self._calls += 1
        if self._calls % _BATCH == 0:
            if self._pause:
                self._door.sleep(_BREATH)
            self.tell()

    def begin(self, done: Pruned) -> None:
        """Take what is evicted from now on off the count."""
        self._done = done
        self._told = done.freed, done.removed

    def tell(self) -> None:
        """Take off what was evicted since the last time."""
        if self._done is not None and self._done.removed > self._told[1]:
            freed, removed = self._told
            self._told = self._done.freed, self._done.removed
            self._count.add(freed - self._told[0], removed - self._told[1], make=False)

    def settle(self) -> None:
        """Put right what a walk has left by what others evicted behind it.

        Never to more: one who evicts tells it first, so a count that began in between, with a
        walk that still found the entry, has it for good.
        """
        self.tell()
        self._count.look()
        if self._done is not None and self._count.counted:
            self._done.size = min(self._done.size, self._count.size)
            self._done.entries = min(self._done.entries, self._count.entries)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_under_way.clear)
