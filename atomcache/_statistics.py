"""Counts of all processes that use a cache, without a lock that anybody waits for.

What it is for: when a process ends it adds what it counted to one file, if it gets that
file's lock at once; otherwise, every ten seconds while it builds, and every minute while it
hits, it writes a file of its own, by a scratch and a rename.  Who wants the sum reads them
all.  A process that is killed loses what it counted since it last wrote.

Who calls it: `Cache.stats`, the upkeep, and the end of a process.  What may go wrong: a
file that can't be read or written is logged and left out.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections import namedtuple

from ._door import ADD, CREATE, READ
from ._lines import read_lines, write_lines
from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NamedTuple

    from ._door import Door
    from ._layout import Layout
    from ._watch import Watch

    class Counts(NamedTuple):
        """What happened in a cache.

        Attributes
        ----------
        hits, misses
            Calls that found a fresh entry, and that did not.
        builds, failures
            Factories that ended with an entry published, and with an error.
        duplicates
            Factories that ended when somebody else had published the entry already.
        fetched
            Entries that came from the bucket and were not built.
        waits
            Calls that waited for somebody else's build.
        takeovers
            Claims of dead builders that were taken over.
        stale
            Old values that were served.
        evictions
            Entries removed to make room.
        corrupt
            Entries whose checksum was wrong.
        errors
            Calls for which the cache folder could not be read or written.
        not_stored
            Factories that ended with a value that was not to be kept.
        requests
            What was asked of the bucket.
        seconds_saved
            Hits, each times the seconds that its entry took to build.
        seconds_built
            What the builds took.
        """

        hits: int = 0
        misses: int = 0
        builds: int = 0
        failures: int = 0
        duplicates: int = 0
        fetched: int = 0
        waits: int = 0
        takeovers: int = 0
        stale: int = 0
        evictions: int = 0
        corrupt: int = 0
        errors: int = 0
        not_stored: int = 0
        requests: int = 0
        seconds_saved: float = 0.0
        seconds_built: float = 0.0

    class Stats(NamedTuple):
        """Counts of this process, and of all that ever used the cache.

        Attributes
        ----------
        process
            Since this process made its `Cache`.
        everyone
            Of all processes together, since the cache was made or cleared.
        """

        process: Counts
        everyone: Counts
else:
    _NAMES = (
        "hits misses builds failures duplicates fetched waits takeovers stale evictions "
        "corrupt errors not_stored requests seconds_saved seconds_built"
    )
    Counts = namedtuple("Counts", _NAMES, defaults=(*[0] * 14, 0.0, 0.0))
    Stats = namedtuple("Stats", "process everyone")

_PAUSE = 10.0
_LARGEST = 65_536
_OLD = 86_400.0
_TRIES = 100
_TOTAL = "total"
_LOCK = "lock"
_ADDED = "added"
_PATIENCE = 5.0
"""Seconds for which a thread of this process may be writing before others go on without."""


class Statistics:
    """The counts of one process, and its file."""

    def __init__(self, door: Door, layout: Layout, watch: Watch) -> None:
        self._door = door
        self._layout = layout
        self._watch = watch
        self._folder = layout.statistics
        self._next_write = 0.0
        self._forget()

    def _forget(self) -> None:
        """Start afresh, as a forked child must: its counts are in a file of their own."""
        self._pid = self._door.getpid()
        self._busy = allocate_lock()
        self._busy_thread = 0
        self._name = self._new_name()
        self._added = Counts()  # what is in the total already
        self._written = Counts()  # what is in this process's file
        self._total = Counts()

    def _new_name(self) -> str:
        return f"{self._pid}-{self._door.urandom(6).hex()}"

    def counts(self) -> Counts:
        """Return what this process has counted."""
        told = self._watch.counts()
        return Counts(
            hits=int(told["hit"]),
            misses=int(told["miss"]),
            builds=int(told["build_finished"]),
            failures=int(told["build_failed"]),
            duplicates=int(told["duplicate"]),
            fetched=int(told["fetched"]),
            waits=int(told["waited"]),
            takeovers=int(told["taken_over"]),
            stale=int(told["stale"]),
            evictions=int(told["evicted"]),
            corrupt=int(told["corrupt"]),
            errors=int(told["error"]),
            not_stored=int(told["not_stored"]),
            requests=self._watch.requests(),
            seconds_saved=told["seconds_saved"],
            seconds_built=told["seconds_built"],
        )

    def everyone(self) -> Counts:
        """Return the sum of all processes' counts."""
        self.write()
        self._attempt(self._sum_up)
        return self._total

    def _sum_up(self) -> None:
        """Add up all files, while nobody moves counts from one to another."""
        total = Counts()
        if self._names():
            lock = self._lock(tries=_TRIES)
            try:
                _, added = self._read_total()
                for name in self._names():
                    if name not in added:
                        total = _add(total, self._read(name))
            finally:
                self._unlock(lock)
        self._total = total

    def clear(self) -> None:
        """Forget what everybody counted."""
        self._attempt(lambda: self._door.remove_tree(self._folder))
        self._added, self._written = self.counts(), Counts()
        self._total = Counts()

    def _lock(self, tries: int = 1) -> int | None:
        """Take the lock of those who add up, if it is to be had."""
        fd = self._open(os.path.join(self._folder, _LOCK), ADD, self._door.open_kept)
        for _ in range(tries):
            if self._door.lock_exclusive(fd):
                return fd
            if tries > 1:
                self._door.sleep(0.01)
        self._door.close_kept(fd)
        return None

    def _unlock(self, fd: int | None) -> None:
        if fd is not None:
            try:
                self._door.unlock(fd)
            finally:
                self._door.close_kept(fd)

    def write_sometimes(self) -> None:
        """Write the counts down if that was not done in the last ten seconds."""
        if self._door.monotonic() >= self._next_write:
            self._next_write = self._door.monotonic() + _PAUSE
            self.write()

    def write(self) -> None:
        """Write what this process has counted into its own file."""
        self._attempt(self._write)

    def end(self) -> None:
        """Add what this process has counted to the total, or leave it in a file of its own."""
        self._attempt(self._end)

    def add_up(self) -> None:
        """Add what ended processes have left in files of their own to the total."""
        self._attempt(lambda: self._add_up(others=True))

    def _end(self) -> None:
        if not self._add_up():
            self._write()

    def _attempt(self, step: Callable[[], object]) -> None:
        if self._pid != self._door.getpid():
            self._forget()
        thread = self._door.thread()
        if self._busy_thread == thread:
            return  # a finalizer or a signal handler came in between
        if not self._busy.acquire(timeout=_PATIENCE):
            return  # another thread is at it, on a filesystem that does not answer
        try:
            self._busy_thread = thread
            step()
        except FileNotFoundError:
            return  # the cache was deleted, and its counts with it
        except OSError as error:
            logger().warning("what was counted can't be written down: %s", error)
        finally:
            self._busy_thread = 0
            self._busy.release()

    def _write(self) -> None:
        if self._written != Counts() and not self._there():  # the cache was cleared
            self._added, self._written = _add(self._added, self._written), Counts()
        counts = _subtract(self.counts(), self._added)
        if counts != self._written:
            self._save(self._name, counts)
            self._written = counts

    def _add_up(self, *, others: bool = False) -> bool:
        """Add to the total; `False` if another process is at it."""
        counts = self.counts()
        if not others and counts == self._added:
            return True
        lock = self._lock()
        if lock is None:
            return False
        try:
            total, added = self._read_total()
            names = self._names()
            done = {self._name, *added.intersection(names)}
            total = _add(total, _subtract(counts, self._added))
            for name in names if others else ():
                found = self._door.stat(os.path.join(self._folder, name))
                if name != _TOTAL and name not in done and self._old(found):
                    total = _add(total, self._read(name))
                    done.add(name)
            # Who is killed in between has said which files not to count again.
            self._save(_TOTAL, total, done)
            self._added, self._written, self._name = counts, Counts(), self._new_name()
            for name in done:
                self._door.remove_tree(os.path.join(self._folder, name))
        finally:
            self._unlock(lock)
        return True

    def _there(self) -> bool:
        try:
            self._door.stat(os.path.join(self._folder, self._name))
        except FileNotFoundError:
            return False
        return True

    def _old(self, found: os.stat_result) -> bool:
        """Tell whether a process that lives would have written since, if it does anything."""
        return self._door.time() - found.st_mtime > _OLD

    def _names(self) -> list[str]:
        try:
            names = self._door.listdir(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in names if name != _LOCK and name[:1] != ".")

    def _read_total(self) -> tuple[Counts, set[str]]:
        """Return the sum, and the names of files that are in it already."""
        told = self._told(_TOTAL)
        return self._counts_in(_TOTAL, told), set(told.get(_ADDED, "").split())

    def _read(self, name: str) -> Counts:
        return self._counts_in(name, self._told(name))

    def _counts_in(self, name: str, told: dict[str, str]) -> Counts:
        known = [each for each in Counts._fields if each in told]
        try:
            return Counts(**{each: _number(each, told[each]) for each in known})
        except ValueError as error:
            logger().warning("what a process counted can't be read: %s: %s", name, error)
            return Counts()

    def _told(self, name: str) -> dict[str, str]:
        """Return what a file says; nothing, if it can't be read."""
        try:
            fd = self._door.open(os.path.join(self._folder, name), READ)
        except FileNotFoundError:
            return {}
        except OSError as error:
            logger().warning("what a process counted can't be read: %s", error)
            return {}
        try:
            return dict(read_lines(self._door.read(fd, _LARGEST)))
        except (ValueError, OSError) as error:
            logger().warning("what a process counted can't be read: %s: %s", name, error)
            return {}
        finally:
            self._door.close(fd)

    def _save(self, name: str, counts: Counts, added: Iterable[str] = ()) -> None:
        scratch = os.path.join(self._folder, f".{self._name}")
        self._door.remove_tree(scratch)
        fd = self._open(scratch, CREATE)
        try:
            told = [*zip(Counts._fields, map(repr, counts), strict=True)]
            self._door.write(fd, write_lines([*told, (_ADDED, " ".join(added))]))
        finally:
            self._door.close(fd)
        path = os.path.join(self._folder, name)
        try:
            self._door.replace(scratch, path)
        except IsADirectoryError:  # nothing that we made
            self._door.remove_tree(path)
            self._door.replace(scratch, path)

    def _open(self, path: str, flags: int, opening: Callable[..., int] | None = None) -> int:
        opening = opening or self._door.open
        try:
            return opening(path, flags, self._layout.file_mode)
        except FileNotFoundError:  # a cache that was deleted is not made again for this
            try:
                self._door.mkdir(self._folder, self._layout.folder_mode)
            except FileExistsError:
                pass  # somebody else made it
            return opening(path, flags, self._layout.file_mode)


def _number(name: str, told: str) -> Any:
    return float(told) if name.startswith("seconds") else int(told)


def _add(one: Counts, other: Counts) -> Counts:
    sums: list[Any] = [a + b for a, b in zip(one, other, strict=True)]
    return Counts(*sums)


def _subtract(one: Counts, other: Counts) -> Counts:
    differences: list[Any] = [a - b for a, b in zip(one, other, strict=True)]
    return Counts(*differences)
