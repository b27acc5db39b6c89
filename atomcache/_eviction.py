"""Which entries go, and how they go.

What it is for: `Eviction.down_to` removes the least recently used entries until the rest is within
the limits.  It looks at every entry twice and keeps nothing of them in memory: the first walk
adds up bytes by how long ago entries were used, the second removes what is older than the
age at which enough is freed.  `Eviction.one` removes the oldest of a few entries that it comes
across by chance, which takes a fraction of a millisecond however large the cache is.

Who calls it: the upkeep.  What may go wrong: an entry that can't be removed is logged and left;
`OSError` for folders that can't be read.
"""

from __future__ import annotations

import math
import os
import stat
from heapq import merge
from itertools import islice

from ._hold import Hold
from ._layout import META, is_entry
from ._log import logger
from ._publish import identify, remove
from ._watch import USE_RECORDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._door import Door
    from ._layout import Layout
    from ._upkeep import Pace
    from ._watch import Watch

_EXACT = 100_000
"""Entries used about equally long ago whose order is told exactly when only some must go."""

_SORTED_AT_ONCE = 1000
"""How many of them are sorted in one step, in which no other thread of the process gets on."""

_BUCKETS_PER_DOUBLING = 256

_SAMPLE = 32
"""Entries of which the oldest goes: one of the oldest tenth in 29 of 30 cases.  Redis takes 5."""

_SHARDS = 64
"""Folders that are looked into for them at most; in a small cache most are empty."""


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

    def part(self, share: float) -> Limits:
        """Return limits that are so much lower, in whole entries, of which one stays."""
        number = self.max_entries and max(1, int(share * self.max_entries))
        return Limits(self.max_bytes and max(1, int(share * self.max_bytes)), number)


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


class Eviction:
    """Evicts entries of one cache.

    Parameters
    ----------
    watch
        Told of what is evicted.
    """

    def __init__(self, layout: Layout, watch: Watch) -> None:
        self._layout = layout
        self._door = layout.door
        self._watch = watch
        self._shards: list[str] = []

    def count(self, limits: Limits, done: Pruned, pace: Callable[[], None]) -> Ages:
        """Walk over all entries: evict idle ones, and add up the others by their age.

        Parameters
        ----------
        pace
            Called for each entry.
        """
        done.size = done.entries = 0
        ages = Ages(self._door.time())
        for path, size, used in self._entries(pace):
            age = ages.of(used)
            idle = limits.max_idle is not None and age > limits.max_idle + USE_RECORDED
            if idle and self._evict(path, size, done):
                continue
            if limits.expired and self._evict_expired(path, size, ages.now, done):
                continue
            ages.add(age, size)
            done.size += size
            done.entries += 1
        return ages

    def down_to(self, limits: Limits, goal: Limits, done: Pruned, ages: Ages, pace: Pace) -> None:
        """Evict everything last used before some moment, and as much of that moment as needed.

        Parameters
        ----------
        goal
            What to come down to; what was used last stays if it is within the limits.
        """
        edge, left = ages.edge(goal, done)
        of_the_edge: list[tuple[float, str, int]] = []
        number = ages.numbers[edge]

        def enough() -> bool:
            last = left.entries <= 1 and limits.fill(left.size, left.entries) <= 1
            return last or goal.fill(left.size, left.entries) <= 1

        there = [0, 0]
        for path, size, used in self._entries(pace):
            bucket = _bucket(ages.of(used))
            gone = False
            if bucket > edge:
                gone = self._evict(path, size, done)
            elif bucket == edge and number <= _EXACT:
                of_the_edge.append((_believed(used, ages.now), path, size))
            elif bucket == edge and not enough():
                gone = self._evict(path, size, done)
                if gone:
                    left.size -= size
                    left.entries -= 1
            if not gone:
                there[0] += size
                there[1] += 1
        done.size, done.entries = there
        left = done
        pace.settle()
        for _, path, size in _sorted(of_the_edge):
            if enough():
                break
            pace()
            if self._evict(path, size, done):
                done.size -= size
                done.entries -= 1

    def expired(self, idle: float, pace: Callable[[], None]) -> None:
        """Evict what has expired and was not used for so many seconds."""
        now = self._door.time()
        for path, size, used in self._entries(pace):
            if now - used > idle + USE_RECORDED:
                self._evict_expired(path, size, now, Pruned())

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

    def one(self, spare: str, tell: Callable[[int, int], None]) -> None:
        """Evict the entry used longest ago of some that are found by chance.

        Parameters
        ----------
        spare
            Path of an entry that is to stay.
        tell
            Called with how many bytes and entries come and go: before one goes, so that a walk
            which does not find it any more knows.
        """
        for _, path, known in sorted(self._some(spare)):
            size = _weigh(self._door, path)[0] if known is None else known
            done = Pruned()
            tell(-size, -1)
            self._evict(path, size, done)
            if done.removed:
                return
            tell(size, 1)
            if not done.held:
                return  # somebody else was faster

    def _some(self, spare: str) -> list[tuple[float, str, int | None]]:
        """Return last use, path and size of some entries, but for one."""
        found: list[tuple[float, str, int | None]] = []
        if not self._shards:
            self._shards = list(self._layout.shards())
        now = self._door.time()
        first = int(self._door.random() * len(self._shards))
        for at in range(min(_SHARDS, len(self._shards))):
            shard = self._shards[(first + at) % len(self._shards)]
            for each in islice(scan(self._door, shard), 4 * _SAMPLE):
                if not is_entry(each.name) or each.path == spare:
                    continue
                try:
                    stats = each.stat(follow_symlinks=False)
                    size = stats.st_size if stat.S_ISREG(stats.st_mode) else None
                    if size is None:
                        stats = self._door.stat(os.path.join(each.path, META))
                    used = stats.st_atime
                except (FileNotFoundError, NotADirectoryError):
                    continue  # gone, or never an answer: a walk sees to that
                found.append((_believed(used, now), each.path, size))
                if len(found) >= _SAMPLE:
                    return found
        if len(found) < _SAMPLE:
            self._shards = []  # there may be more by now
        return found

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
        self._watch.tell("evicted", path=path, size=size)
        return True

    def _entries(self, pace: Callable[[], None]) -> Iterator[tuple[str, int, float]]:
        """Yield path, size and time of last use of each entry."""
        for shard in self._layout.shards():
            for each in scan(self._door, shard):
                if not is_entry(each.name):
                    continue
                pace()
                try:
                    found = each.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield each.path, found.st_size, found.st_atime
                    else:
                        yield each.path, *_weigh(self._door, each.path)
                except FileNotFoundError:
                    continue


class Ages:
    """How many entries there are of each age, and how many bytes; in steps of 0.3 %."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.sizes: dict[int, int] = {}
        self.numbers: dict[int, int] = {}

    def of(self, used: float) -> float:
        """Return how long ago something was used."""
        return max(0.0, self.now - _believed(used, self.now))

    def add(self, age: float, size: int) -> None:
        bucket = _bucket(age)
        self.sizes[bucket] = self.sizes.get(bucket, 0) + size
        self.numbers[bucket] = self.numbers.get(bucket, 0) + 1

    def edge(self, goal: Limits, done: Pruned) -> tuple[int, Pruned]:
        """Return the age beyond which all must go, and what is then left."""
        left = Pruned()
        left.size, left.entries = done.size, done.entries
        edge = 0
        for edge in sorted(self.sizes, reverse=True):
            if goal.fill(left.size - self.sizes[edge], left.entries - self.numbers[edge]) <= 1:
                break
            left.size -= self.sizes[edge]
            left.entries -= self.numbers[edge]
        else:  # all would have to go: of the youngest, some may stay
            left.size += self.sizes.get(edge, 0)
            left.entries += self.numbers.get(edge, 0)
        return edge, left


def _bucket(age: float) -> int:
    """Return a number that grows with age, 256 steps for each doubling: 0.3 % of it each."""
    return int(_BUCKETS_PER_DOUBLING * math.log2(1.0 + age))


def _believed(used: float, now: float) -> float:
    """Return when something was used: never, where a clock that was ahead has noted it."""
    return used if used <= now + USE_RECORDED else 0.0


def _sorted(entries: list[tuple[float, str, int]]) -> Iterator[tuple[float, str, int]]:
    step = _SORTED_AT_ONCE
    return merge(*(sorted(entries[at : at + step]) for at in range(0, len(entries), step)))


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


def scan(door: Door, folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with door.scandir(folder) as found:
            yield from found
    except (FileNotFoundError, NotADirectoryError):
        return
