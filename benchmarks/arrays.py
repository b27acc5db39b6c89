"""What it costs to load a large array, and what many workers that read it cost in memory.

The array has 256 MB of float64, in the page cache.  Loads are timed each in turn, round by
round, in one process; and the first one after the import, in a process of its own each time.
atomcache verifies the whole file at the first load of a process, and at later ones only
that it is still the same file, once that is 2 s old; so the measurement waits that long.
"first" matters for workers, "in a row" for loops; "again" is a load after another process has
run and read all of the array, so that the processor has forgotten everything.  Then eight
processes load it, add up all of it, wait for one another, and say how much private memory that
took (`Private_Clean` and `Private_Dirty` of ``/proc/self/smaps_rollup``, after, less before).

The floor is ``numpy.load(mmap_mode="r")``, which checks nothing.  `joblib.Memory` is shown
as it is by default, and with ``mmap_mode="r"``, which gives read-only arrays; atomcache's
can be written to, privately.  "Loading" says nothing of when pages are touched: a mapping
without a checksum is fast because it has read nothing yet.  So a third column adds up all
elements of the array, loading included.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from atomcache import Cache

from . import peers
from .findings import Findings, Settings, Table, micro
from .peers import OURS
from .timing import ROOT, TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS = 32 * 1024 * 1024
WORKERS = 8
IN_A_ROW = 5
SETTLED = 2.5
"""Seconds after which atomcache trusts the times of a file."""
MAPPED = "numpy.load, mmap_mode='r'"
COPIED = "numpy.load"
JOBLIB_MAPPED = "joblib.Memory, mmap_mode='r'"


def _loaders(folder: str) -> dict[str, tuple[str, Callable[[], tuple[Any, Any]]]]:
    """Return, by name, the module needed and what prepares storing and loading."""

    def ours() -> tuple[Any, Any]:
        cache = Cache(os.path.join(folder, OURS))
        return (
            lambda array: cache.set("array", array),
            lambda: cache.get_or_create("array", peers.array),
        )

    def plain(mode: Any) -> tuple[Any, Any]:
        path = os.path.join(folder, "array.npy")
        return lambda array: np.save(path, array), lambda: np.load(path, mmap_mode=mode)

    def memory(mode: Any) -> tuple[Any, Any]:
        memory = importlib.import_module("joblib").Memory
        cached = memory(os.path.join(folder, "joblib"), mmap_mode=mode, verbose=0).cache(
            peers.array
        )
        return lambda array: cached(), cached

    def disk() -> tuple[Any, Any]:
        cache = importlib.import_module("diskcache").Cache(os.path.join(folder, "diskcache"))
        return lambda array: cache.set("array", array), lambda: cache["array"]

    return {
        OURS: ("atomcache", ours),
        MAPPED: ("numpy", lambda: plain("r")),
        COPIED: ("numpy", lambda: plain(None)),
        JOBLIB_MAPPED: ("joblib", lambda: memory("r")),
        "joblib.Memory": ("joblib", lambda: memory(None)),
        "diskcache": ("diskcache", disk),
    }


def _private() -> float:
    total = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean", "Private_Dirty")):
            total += int(line.split()[1])
    return total / 1024


def _work(folder: str, name: str) -> None:
    """Be one worker: load, say how long it took, read all, and say what memory it took."""
    load = _loaders(folder)[name][1]()[1]
    np.ones(1000).sum()
    before = _private()
    began = time.perf_counter()
    array = load()
    took = time.perf_counter() - began
    total = float(array.sum())
    print("loaded", flush=True)
    sys.stdin.readline()
    used = _private() - before
    facts = took, used, total, bool(array.flags.owndata), bool(array.flags.writeable)
    print(json.dumps(facts), flush=True)
    sys.stdin.readline()


def _crowd(folder: str, name: str, workers: int) -> list[Any]:
    """Have some workers load the array and hold it together."""
    command = [sys.executable, "-m", "benchmarks.arrays", folder, name]
    crew = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(workers)
    ]
    try:
        _lines(crew)
        _go(crew)
        facts = [json.loads(line) for line in _lines(crew)]
        _go(crew)
        for one in crew:
            one.wait(TIMEOUT)
        return facts
    finally:
        for one in crew:
            one.kill()
            one.communicate()


def _lines(crew: list[subprocess.Popen[str]]) -> list[str]:
    said = []
    for one in crew:
        assert one.stdout is not None
        line = one.stdout.readline()
        if not line:
            raise RuntimeError("a worker that reads the array died")
        said.append(line)
    return said


def _go(crew: list[subprocess.Popen[str]]) -> None:
    for one in crew:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()


def measure(settings: Settings) -> Findings:
    """Load the array in every way and compare."""
    found = Findings(
        "A 256 MB array",
        [
            "`first`: the first load of a process.  `again`: a later one, after other work.  `in "
            "a row`: one after the other.  `and add up`: load it and add up all elements.  "
            "Private memory: of each of eight workers that hold the array and have read all of "
            "it, the greatest."
        ],
    )
    folder = str(settings.folder / "arrays")
    os.makedirs(folder, exist_ok=True)
    chosen = _loaders(folder)
    if settings.quick:
        chosen = {name: chosen[name] for name in (OURS, MAPPED)}
    rounds = 2 if settings.quick else 9
    array = np.random.default_rng(7).random(ITEMS)
    expected = float(array.sum())
    peers.given_array[:] = [array]
    loads: dict[str, Any] = {}
    missing = []
    for name, (module, make) in chosen.items():
        if importlib.util.find_spec(module) is None:
            missing.append(name)
            continue
        store, loads[name] = make()
        store(array)
    peers.given_array.clear()
    del array
    time.sleep(SETTLED)
    for load in loads.values():
        load()  # the first one of this process

    again: dict[str, list[float]] = {name: [] for name in loads}
    row: dict[str, list[float]] = {name: [] for name in loads}
    added: dict[str, list[float]] = {name: [] for name in loads}
    first: dict[str, list[float]] = {name: [] for name in loads}
    for turn in range(rounds):
        order = list(loads)
        order = order[turn % len(order) :] + order[: turn % len(order)]
        for name in order:
            first[name].append(_crowd(folder, name, 1)[0][0])
            began = time.perf_counter()
            value = loads[name]()
            again[name].append(time.perf_counter() - began)
            if value.sum() != expected:
                raise AssertionError(f"{name} returned another array")
            added[name].append(time.perf_counter() - began)
            for _ in range(IN_A_ROW):
                del value
                began = time.perf_counter()
                value = loads[name]()
                row[name].append(time.perf_counter() - began)
            del value

    columns = ["first", "again", "in a row", "and add up", "private memory", "copy", "writable"]
    rows = [["", *columns]]
    memory = {}
    for name in loads:
        facts = _crowd(folder, name, WORKERS)
        memory[name] = max(0.0, *(fact[1] for fact in facts))
        rows.append(
            [
                name,
                micro(median(first[name])),
                micro(median(again[name])),
                micro(median(row[name])),
                micro(median(added[name])),
                f"{memory[name]:.1f} MB",
                "yes" if memory[name] > 200 else "no",
                "yes" if facts[0][4] else "no",
            ]
        )
    rows += [[name, "not installed", *[""] * 6] for name in missing]
    found.tables.append(Table(f"256 MB of float64, {WORKERS} workers", rows))
    found.lines["arrays"] = {name: [median(first[name]), median(added[name])] for name in loads}
    found.at_most(
        "hit of a 256 MB array, first of a process", median(first[OURS]) * 1e6, 200, "us"
    )
    found.at_most(
        "hit of a 256 MB array, later, after other work", median(again[OURS]) * 1e6, 200, "us"
    )
    found.at_most("hit of a 256 MB array, later, in a row", median(row[OURS]) * 1e6, 200, "us")
    found.at_most("private memory of each of 8 workers that read all", memory[OURS], 10, "MB")
    for name in loads:
        for what, times in (
            ("the first load of a process", first),
            ("later loads, after other work", again),
            ("later loads, in a row", row),
            ("load and add up", added),
        ):
            ratio = median(times[name]) / median(times[OURS])
            if name != OURS and ratio < 0.9:
                found.better.append(
                    f"256 MB array, {what}: {name} takes {ratio:.2g} times what atomcache "
                    "takes; it reads and verifies nothing before it is used."
                )
    return found


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2])
