"""Who waits for somebody else's build, told to those who want to show it.

What it is for: while anything in this process waits, one thread looks ten times a second at the
claims that are waited for and hands what it reads there, the builder's own reports of progress
included, to the callbacks: those of ``Cache(on_wait=...)`` and those of `show_waiting`.  A claim
that many tasks or threads wait for is read and told once.  The end is told by whoever stops
waiting last, before its call returns, so that a display is gone by then.

Who calls it: `Patience`, if there is a callback; nothing here is loaded otherwise.  What may go
wrong: a callback that raises is logged, and harms nobody; so is a claim that can't be read.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ._at_work import TELLING, AtWork
from ._claim import claim_path, living_record
from ._header import MAGIC, SIZE, Damaged, glance
from ._layout import META
from ._listing import progress_of
from ._log import logger
from ._patience import everywhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._door import Door
    from ._protocol import Entry

PERIOD = 0.1
"""Seconds between two looks: a factory reports its progress as often."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is known of a build that this process waits for.

    Attributes
    ----------
    key
        The key as given, as in `EntryInfo`.
    kind
        ``"value"`` or ``"path"``.
    pid, host
        The process that builds, and the machine that it runs on.
    started
        When it began, in seconds since the epoch.
    waited
        Seconds for which this process has waited.
    done, total, note
        How far it is, if the factory reports that by `Build.progress`.
    took_before
        Seconds that building the entry took last time, if there is an old one.
    over
        Whether the wait has ended; the last that is told of it.
    """

    key: str
    kind: str
    pid: int
    host: str
    started: float
    waited: float
    done: float | None
    total: float | None
    note: str
    took_before: float | None
    over: bool = False


class Wait:
    """One claim that is waited for, by all of one cache in this process who do."""

    def __init__(self, entry: Entry, on_wait: Callable[[Waiting], object] | None) -> None:
        self.entry = entry
        self.door: Door = entry.layout.door
        self.on_wait = on_wait
        self.waiters = 0
        self.began = self.door.monotonic()
        self.told: Waiting | None = None
        self.ended = False
        self.took_before = _took_before(self.door, entry)

    def end(self) -> None:
        """Wait no more."""
        with _changing:
            self.waiters -= 1
            if self.waiters:
                return
            _waits.pop(_name(self.entry, self.on_wait), None)
        with _telling:
            self.ended = True  # a look that is under way is not told after the end
            if self.told is not None:
                waited = self.door.monotonic() - self.began
                self._call(replace(self.told, waited=waited, over=True))

    def look(self) -> None:
        """Read the claim and tell of it."""
        path = claim_path(self.entry.path)
        try:
            record = living_record(self.door, path)
        except OSError as error:
            logger().warning("a claim that is waited for can't be read: %s", error)
            return
        if record is None:
            return  # between two builders, or one that could not claim
        done, total, note = progress_of(record.progress)
        now = Waiting(
            key=record.key,
            kind=record.kind,
            pid=record.pid,
            host=record.host,
            started=record.started,
            waited=self.door.monotonic() - self.began,
            done=done,
            total=total,
            note=note,
            took_before=self.took_before,
        )
        with _telling:
            if not self.ended:
                self.told = now
                self._call(now)

    def _call(self, waiting: Waiting) -> None:
        with AtWork(self.door, TELLING):
            for callback in (self.on_wait, *everywhere):
                if callback is None:
                    continue
                try:
                    callback(waiting)
                except Exception:
                    logger().warning("on_wait failed at %r", waiting, exc_info=True)


_waits: dict[tuple[str, int], Wait] = {}
_changing = threading.Condition(threading.RLock())
_telling = threading.RLock()
"""Held while callbacks are called, so that one is told one thing at a time."""
_watching = False


def forget(callback: Callable[[Waiting], object]) -> None:
    """Tell a callback of `everywhere` nothing more; it is not being told anything either."""
    with _telling:
        if callback in everywhere:
            everywhere.remove(callback)


def begin(entry: Entry, on_wait: Callable[[Waiting], object] | None) -> Wait:
    """Have it told that a caller waits for an entry, until `Wait.end` is called."""
    global _watching
    with _changing:
        wait = _waits.get(_name(entry, on_wait))
        if wait is None:
            wait = _waits[_name(entry, on_wait)] = Wait(entry, on_wait)
        wait.waiters += 1
        if not _watching:
            try:
                entry.layout.door.start_thread(_watch, daemon=True)
                _watching = True
            except RuntimeError as error:  # no more threads to be had
                logger().warning("a wait is not shown: %s", error)
    return wait


def _watch() -> None:
    """Look at what is waited for until nothing is."""
    global _watching
    while True:
        with _changing:
            _changing.wait(PERIOD)
            if not _waits:
                _watching = False
                return
            waits = list(_waits.values())
        try:
            for wait in waits:
                wait.look()
        except BaseException:  # a callback that ends its thread; the next wait gets another one
            with _changing:
                _watching = False
            raise


def _name(entry: Entry, on_wait: object) -> tuple[str, int]:
    return entry.path, id(on_wait)


def _took_before(door: Door, entry: Entry) -> float | None:
    path = os.path.join(entry.path, META) if entry.kind == "path" else entry.path
    try:
        fd = door.open_unnoticed(path)
        try:
            header = glance(door.read(fd, SIZE))
            return header.took if header.magic == MAGIC else None
        finally:
            door.close(fd)
    except (OSError, Damaged):
        return None  # there is no old one, or none that can be read


def _after_fork_in_child() -> None:
    """Forget the parent's waits and its thread: the child's only thread waits for nothing."""
    global _changing, _telling, _watching
    _waits.clear()
    _changing = threading.Condition(threading.RLock())
    _telling = threading.RLock()
    _watching = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
