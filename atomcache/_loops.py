"""Event loops that stand still, and the builds that can't go on without them.

What it is for: a call that is not awaited stops the loop of its thread for as long as it waits.  A
coroutine that builds on that loop stands still meanwhile, so the call must not wait for what it
builds, however many others are between the two.  Each build by a coroutine is noted with its loop,
and each loop whose thread sleeps is noted too, so that no coroutine is begun on it.

Who calls it: `_circles`, before a thread sleeps, and `_tasks`, around each coroutine of a factory.
What may go wrong: a factory that needs a loop in a way of its own, such as
``asyncio.run_coroutine_threadsafe``, is not known to need it.
"""

from __future__ import annotations

import os
import sys
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._build import Build

_lock = RLock()  # a finalizer or a signal handler that waits too may come in between
_needed: dict[object, tuple[Build, ...]] = {}
_asleep: list[object] = []


def running_loop() -> object | None:
    """Return the event loop that runs in this thread, without importing what runs them."""
    events = sys.modules.get("asyncio.events")
    running = getattr(events, "_get_running_loop", None)  # missing while it is being imported
    return None if running is None else running()


def need(loop: object, build: Build) -> bool:
    """Note that a build can't go on without a loop; `False` if the loop's thread sleeps."""
    with _lock:
        if loop in _asleep:
            return False
        _needed[loop] = (*_needed.get(loop, ()), build)
        return True


def need_no_more(loop: object, build: Build) -> None:
    """Note that a build has got from a loop what it needed."""
    with _lock:
        left = tuple(each for each in _needed.get(loop, ()) if each is not build)
        if left:
            _needed[loop] = left
        else:
            _needed.pop(loop, None)


def fall_asleep(loop: object) -> tuple[Build, ...]:
    """Note that a loop's thread is about to sleep; return the builds that need the loop."""
    with _lock:
        _asleep.append(loop)
        return _needed.get(loop, ())


def wake(loop: object) -> None:
    """Note that a loop's thread sleeps no more."""
    with _lock:
        if loop in _asleep:  # not so in a child that was forked meanwhile
            _asleep.remove(loop)


def _after_fork_in_child() -> None:
    global _lock
    _lock = RLock()
    _needed.clear()
    _asleep.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
