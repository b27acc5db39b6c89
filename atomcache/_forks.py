"""What a forked child can't do without, and what it must do without.

What it is for: a child inherits the lock of a module that another thread is about to import, and
would wait for it for ever, perhaps with a claim that keeps all others waiting.  So what is loaded
on a first miss is loaded before a process with threads forks.  And obstore serves requests by
threads of its own, one set per process.  They don't come along, and a request in the child would
wait for them for ever, whoever used them in the parent.  So it is noted at each fork whether they
run.

Who calls it: Python, when it forks; `Bucket`, before each request.  What may go wrong: the first
fork beside threads takes some 40 ms longer; where threads can't be listed (macOS), a child counts
as unfit for obstore if its parent had it loaded; on Linux, also if another library with threads
of that kind runs beside a loaded obstore.
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
import time

_ON_A_MISS = (
    "cbor2",
    "copy",
    "decimal",
    "fractions",
    "json",
    "mmap",
    "pathlib",
    "sysconfig",
    "tempfile",
    "threading",
    "traceback",
    "uuid",
    "zoneinfo",
    "atomcache._data",
    "atomcache._exchange",
    "atomcache._heartbeat",
    "atomcache._hold",
    "atomcache._inert",
    "atomcache._inputs",
    "atomcache._listing",
    "atomcache._path",
    "atomcache._pickle",
    "atomcache._statistics",
    "atomcache._upkeep",
)
"""What is loaded when a process misses for the first time, with what that loads in turn.  Not
`logging`: what it does after a fork would lack what it does before."""

_THREADS = "tokio"
"""How the names of those threads begin."""

_LOOKS = 4
_PAUSE = 0.005
"""Seconds between two looks, where there are threads that may be about to name themselves."""

_in_use = False
unfit = False
"""Whether a store must not be used in this process."""


def _before_fork() -> None:
    global _in_use
    if _thread._count():
        _load()
    _in_use = "obstore" in sys.modules and _threads_run()


def _load() -> None:
    """Load what is loaded on a miss; whoever is about to do so is waited for."""
    for name in _ON_A_MISS:
        importlib.import_module(name)
    if "asyncio" in sys.modules:
        importlib.import_module("atomcache._tasks")


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
    os.register_at_fork(before=_before_fork, after_in_child=_note_in_child)
