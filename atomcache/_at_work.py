"""What each thread is at, and can't wait for.

What it is for: a signal handler, a finalizer or a callback runs in the midst of what its thread is
at.  If it asks for the same entry, be it by another `Cache` of the same folder, it would wait for
itself for ever.

Who calls it: whoever leads a flight, brings from a bucket, prunes, or calls those who want to be
told of waits; `Circles` refuses what would never end.  What may go wrong: nothing.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias

    from ._door import Door

    class Task(Protocol):
        """Something that a thread is at, until it is over."""

        over: bool

    Place: TypeAlias = tuple[int, str]

TELLING = ""
"""In the place of a path: the thread calls those who want to be told of waits."""

locks: list[Callable[[], Any]] = []
"""Each returns a lock of the process without which others don't get on with their builds."""

_at_work: dict[Place, Task] = {}
"""By thread and path.  Without a lock: single steps of a `dict` are atomic."""


def begin(place: Place, task: Task) -> None:
    """Note that a thread is at something from now on."""
    _at_work[place] = task


def end(place: Place, task: Task) -> None:
    """Note that it is not any more."""
    if _at_work.get(place) is task:
        _at_work.pop(place, None)


class AtWork:
    """Something that one thread is at until the block ends."""

    __slots__ = ("_before", "_place", "over")

    def __init__(self, door: Door, path: str) -> None:
        self.over = False
        self._place = (door.thread(), path)
        self._before: Task | None = None

    def __enter__(self) -> None:
        self._before = _at_work.get(self._place)
        begin(self._place, self)

    def __exit__(self, *_: object) -> None:
        self.over = True
        if self._before is None:
            end(self._place, self)
        else:
            begin(self._place, self._before)


def is_at_work(door: Door, path: str) -> bool:
    """Tell whether the calling thread is at something already."""
    found = _at_work.get((door.thread(), path))
    return found is not None and not found.over


def is_at_others(door: Door, claim: str) -> bool:
    """Tell whether the calling thread is at anything but what a claim is for."""
    me = door.thread()
    return any(
        thread == me and not task.over and not claim.startswith(path)
        for (thread, path), task in list(_at_work.items())
    )


def has_lock() -> bool:
    """Tell whether the calling thread has a lock that others need."""
    return any(lock()._is_owned() for lock in locks)  # as `threading.Condition` asks


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_at_work.clear)
