"""Keeping a cache within its limits, and clean, without anybody having to think of it.

What it is for: `prune` removes the least recently used entries until the rest is within the
limits.  It looks at every entry twice and keeps nothing of them in memory: the first walk
adds up bytes by how long ago entries were used, the second removes what is older than the
age at which enough is freed.  One process at a time does that, under a claim like
any other; an entry that somebody holds is left alone.

After each publication `published` adds the entry's size to a file whose length, in
thousandths of the limit, is an estimate of how full the cache is, shared by all
processes without a lock (appending is atomic).  When it says that the limit is passed, a
thread prunes to 95 % of it.  Once a day, likewise, a thread removes what dead
builders left (see `sweep`), and entries that have expired and were not used for a month.

Who calls it: the protocol after publishing, and `Cache.prune`.  What may go wrong: nothing
that harms a publication; trouble is logged.  A process that ends before its thread is
done leaves the rest to the next.
"""

from __future__ import annotations

import math
import os
import stat

from ._claim import (
    NEWBORN_GRACE,
    appearance,
    claim_path,
    open_claim,
    reap,
    take,
)
from ._door import ADD
from ._hold import Hold
from ._layout import META, is_entry
from ._log import logger
from ._publish import discard, identify, remove
from ._record import read_record
from ._watch import USE_RECORDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._claim import Claim
    from ._door import Door
    from ._layout import Layout
    from ._protocol import Entry, Protocol

FULL = 1000
"""Length of the file of estimates that stands for a full cache."""

_TRIGGER = FULL + FULL // 100
"""One hundredth over the limit: then somebody prunes, and the cache grows while they do."""

_GOAL = 0.95
"""Part of the limit that pruning by itself leaves, so that it is not soon to do again."""

_BRAKE = FULL + FULL // 25
_BRAKE_PAUSE = 0.004

_EXACT = 100_000
"""Entries used about equally long ago whose order is told exactly when only some must go."""

_BUCKETS_PER_DOUBLING = 256
_SWEEP_PAUSE = 86_400.0
_LOOK_PAUSE = 600.0
_INPUTS_IDLE = 30 * 86_400.0

_EXPIRED_IDLE = 30 * 86_400.0
"""Seconds without use after which what has expired goes by itself: it could still be served by
`stale_for` or `stale_on_error`, or be new to who asks for a longer age."""


class Limits:
    """How much a cache may hold.

    Parameters
    ----------
    max_bytes, max_entries
        Beyond which the least recently used go; `None` for any number.
    max_idle
        Seconds without use after which an entry goes; `None` for never.
    expired
        Whether what has expired goes.
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        max_entries: int | None = None,
        max_idle: float | None = None,
        *,
        expired: bool = False,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.max_idle = max_idle
        self.expired = expired

    def any(self) -> bool:
        """Tell whether there is any limit."""
        return self.expired or not (self.max_bytes is self.max_entries is self.max_idle is None)

    def fill(self, size: float, entries: float) -> float:
        """Return how full a cache is that holds so much; 1 is full."""
        by_size = 0.0 if self.max_bytes is None else size / self.max_bytes
        by_number = 0.0 if self.max_entries is None else entries / self.max_entries
        return max(by_size, by_number)


class Pruned:
    """What pruning did.

    Attributes
    ----------
    removed, freed
        How many entries were removed, and how many bytes that freed.
    entries, size
        How many there are now, and how many bytes they take.
    held
        How many were to be removed and are held by somebody.
    """

    __slots__ = ("entries", "freed", "held", "removed", "size")

    def __init__(self) -> None:
        self.removed = self.freed = self.entries = self.size = self.held = 0

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)}" for name in self.__slots__)
        return f"Pruned({told})"


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
        self._fill = os.path.join(self._layout.upkeep, "fill")
        self._swept = os.path.join(self._layout.upkeep, "swept")
        self._next_look = 0.0
        self._busy = 0

    def _at_work(self) -> bool:
        """Tell whether a thread of this process is at it; a parent's stayed with the parent."""
        return self._busy == self._door.getpid()

    def published(self, entry: Entry) -> None:
        """Note what was published, and see to it that somebody cleans up if it is time."""
        try:
            if self._limits.any():
                self._grow(entry.size)
            if self._door.monotonic() >= self._next_look:
                self._next_look = self._door.monotonic() + _LOOK_PAUSE
                self._look_whether_swept()
        except OSError as error:
            logger().warning("the cache's upkeep failed: %s", error)

    def _grow(self, size: int) -> None:
        """Add to the estimate, in whole thousandths; a part of one is rounded by chance."""
        share = FULL * self._limits.fill(size, 1)
        units = int(share)
        if self._door.random() < share - units:
            units += 1
        if not units and self._limits.max_idle is None:
            return
        fd = self._open(self._fill)
        try:
            self._door.write(fd, bytes(min(units, 2 * FULL)))
            found = self._door.fstat(fd)
        finally:
            self._door.close(fd)
        is_new = bool(units) and found.st_size == units
        idle = self._limits.max_idle
        if not self._at_work() and (
            is_new or found.st_size > _TRIGGER or (idle is not None and self._idle_due(idle))
        ):
            self._behind(self._trim)
        if found.st_size > _BRAKE:  # let who trims keep up
            self._door.sleep(_BRAKE_PAUSE)

    def _trim(self) -> None:
        """Prune until there is no more to do, or somebody else is at it."""
        while True:
            done = self.prune(self._limits, _GOAL, wait=False)
            if done is None or not done.removed or self._estimate() <= _TRIGGER:
                return

    def _idle_due(self, idle: float) -> bool:
        """Tell whether it is time to look for idle entries: ten times in their time."""
        mark = os.path.join(self._layout.upkeep, "idle")
        return self._due(mark, max(1.0, min(idle / 10, _SWEEP_PAUSE)))

    def _look_whether_swept(self) -> None:
        if self._at_work():
            self._next_look = 0.0
        elif self._due(self._swept, _SWEEP_PAUSE):
            self._behind(self._sweep)

    def _due(self, mark: str, pause: float) -> bool:
        """Tell whether a mark is older than `pause`, and if so make it new; a new one is not."""
        now = self._door.time()
        try:
            marked = self._door.stat(mark).st_mtime
        except FileNotFoundError:
            marked = now
            self._door.close(self._open(mark))
        if -USE_RECORDED < now - marked < pause:
            return False
        self._door.utime(mark, (now, now))
        return True

    def _sweep(self) -> None:
        from ._listing import sweep

        reaped = sweep(self._layout)
        if reaped:
            self._protocol.watch.tell("reaped", number=reaped)
        self._add_up()
        for each in _scan(self._door, self._layout.inputs):
            found = each.stat(follow_symlinks=False)
            last = max(found.st_atime, found.st_mtime)
            if is_entry(each.name) and self._door.time() - last > _INPUTS_IDLE:
                discard(self._door, each.path)
        now = self._door.time()
        for path, size, used in self._entries():
            if now - used > _EXPIRED_IDLE + USE_RECORDED:
                self._evict_expired(path, size, now, Pruned())

    def _behind(self, step: Callable[[], object]) -> None:
        """Do something in a thread that keeps no process from ending, one at a time."""
        if self._at_work():
            return
        self._busy = self._door.getpid()

        def run() -> None:
            try:
                step()
            except OSError as error:
                logger().warning("the cache's upkeep failed: %s", error)
            finally:
                self._busy = 0

        try:
            self._door.start_thread(run, daemon=True)
        except RuntimeError as error:  # no more threads to be had
            self._busy = 0
            logger().warning("the cache's upkeep is left for later: %s", error)

    # -- prune -----------------------------------------------------------------------

    def prune(self, limits: Limits, goal: float = 1.0, *, wait: bool = True) -> Pruned | None:
        """Remove what is beyond the limits; `None` if somebody else is at it and `wait` is off.

        Parameters
        ----------
        goal
            Part of the limits to come down to, once they are passed.
        """
        claim = self._claim(wait)
        if claim is None:
            return None
        try:
            claim.sign("the cache is pruned", kind="upkeep")
            return self._prune(limits, goal)
        finally:
            claim.release()

    def _claim(self, wait: bool) -> Claim | None:
        door = self._door
        place = os.path.join(self._layout.upkeep, "prune")
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

        The estimate was written just now, so no two machines' clocks are compared.
        """
        try:
            return self._door.stat(self._fill).st_mtime - found.st_mtime
        except FileNotFoundError:
            return 0.0

    def _prune(self, limits: Limits, goal: float) -> Pruned:
        door = self._door
        now = door.time()
        done = Pruned()
        before = self._estimate()
        sizes: dict[int, int] = {}
        numbers: dict[int, int] = {}
        for path, size, used in self._entries():
            age = max(0.0, now - used)
            idle = limits.max_idle is not None and age > limits.max_idle + USE_RECORDED
            if idle and self._evict(path, size, done):
                continue
            if limits.expired and self._evict_expired(path, size, now, done):
                continue
            bucket = _bucket(age)
            sizes[bucket] = sizes.get(bucket, 0) + size
            numbers[bucket] = numbers.get(bucket, 0) + 1
        done.size, done.entries = sum(sizes.values()), sum(numbers.values())
        if limits.fill(done.size, done.entries) > 1:
            self._evict_oldest(limits, goal, now, sizes, numbers, done)
        grown = max(0, self._estimate() - before)
        if self._limits.any():
            fill = int(FULL * self._limits.fill(done.size, done.entries))
            door.close(self._open(self._fill))
            door.truncate(self._fill, fill + grown)
        return done

    def _evict_oldest(
        self,
        limits: Limits,
        goal: float,
        now: float,
        sizes: dict[int, int],
        numbers: dict[int, int],
        done: Pruned,
    ) -> None:
        """Evict everything last used before some moment, and as much of that moment as needed."""
        size, entries = done.size, done.entries
        edge = 0
        for bucket in sorted(sizes, reverse=True):
            edge = bucket
            size -= sizes[bucket]
            entries -= numbers[bucket]
            if limits.fill(size, entries) <= goal:
                break
        of_the_edge: list[tuple[float, str, int]] = []
        left = size + sizes[edge], entries + numbers[edge]
        for path, size, used in self._entries():
            bucket = _bucket(max(0.0, now - used))
            if bucket > edge:
                self._count(done, size, self._evict(path, size, done))
            elif bucket == edge and numbers[edge] <= _EXACT:
                of_the_edge.append((used, path, size))
            elif bucket == edge and limits.fill(left[0], left[1]) > goal:
                evicted = self._evict(path, size, done)
                self._count(done, size, evicted)
                if evicted:
                    left = left[0] - size, left[1] - 1
        for _, path, size in sorted(of_the_edge):
            if limits.fill(done.size, done.entries) <= goal:
                break
            self._count(done, size, self._evict(path, size, done))

    def _count(self, done: Pruned, size: int, evicted: bool) -> None:
        if evicted:
            done.size -= size
            done.entries -= 1

    def _evict_expired(self, path: str, size: int, now: float, done: Pruned) -> bool:
        """Evict an entry if it has expired; what took its place since we looked stays."""
        from ._header import Damaged
        from ._listing import _read_head

        seen = identify(self._door, path)
        try:
            header = _read_head(self._door, path)[0]
        except (Damaged, ValueError, FileNotFoundError, NotADirectoryError):
            return False
        if header.expires > now or identify(self._door, path) != seen:
            return False
        return self._evict(path, size, done)

    def _evict(self, path: str, size: int, done: Pruned) -> bool:
        door = self._door
        try:
            if stat.S_ISDIR(door.lstat(path).st_mode):
                if not _remove_unless_held(door, self._layout, path):
                    done.held += 1
                    return False
            else:
                door.unlink(path)
        except FileNotFoundError:
            return True  # somebody else removed it
        except OSError as error:
            logger().warning("an entry can't be evicted: %s: %s", path, error)
            return False
        done.removed += 1
        done.freed += size
        self._protocol.watch.tell("evicted", path=path, size=size)
        return True

    def _entries(self) -> Iterator[tuple[str, int, float]]:
        """Yield path, size and time of last use of each entry."""
        for shard in self._layout.shards():
            for each in _scan(self._door, shard):
                if not is_entry(each.name):
                    continue
                try:
                    found = each.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield each.path, found.st_size, found.st_atime
                    else:
                        yield each.path, *_weigh(self._door, each.path)
                except FileNotFoundError:
                    continue

    def _open(self, path: str) -> int:
        try:
            return self._door.open(path, ADD, self._layout.file_mode)
        except FileNotFoundError:
            self._layout.make_room(path)
            return self._door.open(path, ADD, self._layout.file_mode)

    def _estimate(self) -> int:
        try:
            return int(self._door.stat(self._fill).st_size)
        except FileNotFoundError:
            return 0


def _remove_unless_held(door: Door, layout: Layout, path: str) -> bool:
    """Remove a path entry, and let nobody begin to hold it meanwhile."""
    hold = Hold(door, path, layout.file_mode)
    if not hold.claim():
        return False
    try:
        return remove(door, path, layout.new_scratch(path))
    finally:
        hold.end()


def _weigh(door: Door, path: str) -> tuple[int, float]:
    """Return size and time of last use of a path entry."""
    from ._header import Damaged
    from ._path import read_header

    meta = os.path.join(path, META)
    try:
        used: float = door.stat(meta).st_atime
        return int(read_header(door, meta, unnoticed=True)[1].get("bytes", 0)), used
    except (Damaged, ValueError, FileNotFoundError, NotADirectoryError):
        return 0, 0.0  # never an answer: the first to go


def _scan(door: Door, folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with door.scandir(folder) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return


def _bucket(age: float) -> int:
    """Return a number that grows with age, 256 steps for each doubling: 0.3 % of it each."""
    return int(_BUCKETS_PER_DOUBLING * math.log2(1.0 + age))
