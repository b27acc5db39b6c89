"""Whether two processes that hit together get twice as much done as one.

Two processes hold a cache open, each with 1,000 keys of 4 KB in a random order.  In each
round one of them hits alone for 0.15 s, then both at once, then the other one
alone; what both did together is divided by the mean of what each did alone in the same
round.  The same for the bare system calls on the same files, which shows what the
machine can give: with two cores that others use too, or that are one core's two
threads, nobody gets twice as much.  Read atomcache's figure against that one.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from atomcache import Cache
from atomcache._door import door
from atomcache._keys import digest
from atomcache._layout import Layout

from .findings import Findings, Settings, Table
from .hits import FLOOR, bare_read, names
from .peers import OURS, VALUE
from .timing import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

SLICE = 0.15


def _work(folder: str) -> None:
    """Hit for a slice at the time that stdin says, again and again; print hits per second."""
    cache = Cache(folder)
    keys = names(4096)
    random.Random(os.getpid()).shuffle(keys)
    layout = Layout(door, folder, False)
    files = [layout.entry(digest(b"v", key)) for key in keys]
    kinds: dict[str, tuple[Callable[[Any], object], list[str]]] = {
        OURS: (lambda key: cache.get_or_create(key, _never), keys),
        FLOOR: (bare_read, files),
    }
    for line in sys.stdin:
        name, _, start = line.strip().rpartition("|")
        ask, items = kinds[name]
        while time.monotonic() < float(start):
            pass
        until = time.monotonic() + SLICE
        done = 0
        while time.monotonic() < until:
            for item in items[done % 1000 : done % 1000 + 50]:
                ask(item)
            done += 50
        print(done / (time.monotonic() - until + SLICE), flush=True)


def _never() -> bytes:
    raise AssertionError("a hit was to be measured")


def measure(settings: Settings) -> Findings:
    """Compare one process with two."""
    folder = str(settings.folder / "together")
    cache = Cache(folder)
    for key in names(4096):
        cache.set(key, VALUE)
    command = [sys.executable, "-m", "benchmarks.together", folder]
    crew = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]

    def run(name: str, workers: list[subprocess.Popen[str]]) -> list[float]:
        start = time.monotonic() + 0.02
        for one in workers:
            assert one.stdin is not None
            one.stdin.write(f"{name}|{start}\n")
            one.stdin.flush()
        rates = []
        for one in workers:
            assert one.stdout is not None
            rates.append(float(one.stdout.readline()))
        return rates

    ratios: dict[str, list[float]] = {OURS: [], FLOOR: []}
    alone: dict[str, list[float]] = {OURS: [], FLOOR: []}
    try:
        for name in ratios:
            run(name, crew)
        for _ in range(3 if settings.quick else 25):
            for name, each in ratios.items():
                (first,) = run(name, crew[:1])
                both = sum(run(name, crew))
                (last,) = run(name, crew[1:])
                each.append(2 * both / (first + last))
                alone[name] += [first, last]
    finally:
        for one in crew:
            one.kill()
            one.communicate()
    rows = [["", "one process, hits a second", "two against one", "range"]]
    rows += [
        [
            name,
            f"{median(alone[name]):,.0f}",
            f"{median(each):.2f}",
            f"{min(each):.2f}-{max(each):.2f}",
        ]
        for name, each in ratios.items()
    ]
    found = Findings("Two processes together", [f"{os.cpu_count()} cores; 4 KB, 1,000 keys."])
    found.tables.append(Table("Throughput", rows))
    found.at_least("two processes hitting together, against one", median(ratios[OURS]), 1.8)
    found.remarks.append(
        "The bare system calls show how much two processes can get out of this machine: "
        f"{median(ratios[FLOOR]):.2f} times; atomcache gets "
        f"{median(ratios[OURS]) / median(ratios[FLOOR]):.0%} of that."
    )
    return found


if __name__ == "__main__":
    _work(sys.argv[1])
