"""Whether this process was forked from one that had used an object store.

What it is for: obstore serves requests by threads of its own, one set per process.  They don't
come along when a process forks, and a request in the child would wait for them for ever, whoever
used them in the parent.  So it is noted at each fork whether they run.

Who calls it: `Bucket`, before each request; Python, when it forks.  What may go wrong: where
threads can't be listed (macOS), a child counts as unfit if its parent had obstore loaded; on
Linux, also if another library with threads of that kind runs beside a loaded obstore.
"""

from __future__ import annotations

import _thread
import os
import sys
import time

_THREADS = "tokio"
"""How the names of those threads begin."""

_LOOKS = 4
_PAUSE = 0.005
"""Seconds between two looks, where there are threads that may be about to name themselves."""

_in_use = False
unfit = False
"""Whether a store must not be used in this process."""


def _look() -> None:
    global _in_use
    _in_use = "obstore" in sys.modules and _threads_run()


def _threads_run() -> bool:
    folder = "/proc/self/task"
    for _ in range(_LOOKS):
        try:
            tasks = os.listdir(folder)
            for task in tasks:
                with open(f"{folder}/{task}/comm") as file:
                    if file.read().startswith(_THREADS):
                        return True
        except FileNotFoundError:  # no such system, or a thread that has just ended
            return True
        # Nothing else counts them without a lock that may be taken at this moment; to list their
        # frames can stop the process for ever before Python 3.12 (python/cpython#106883).
        if len(tasks) <= 1 + _thread._count():
            return False
        time.sleep(_PAUSE)  # a thread that is not Python's names itself once it runs
    return False


def _note_in_child() -> None:
    global unfit
    unfit = unfit or _in_use


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_look, after_in_child=_note_in_child)
