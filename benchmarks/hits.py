"""What a hit costs: values by size, memoized calls, paths.

Values.  Every competitor holds the same random bytes under the same keys, and is asked
for one key again and again ("one key"), and for a random one of 1,000 ("1,000 keys"), which
takes away what a competitor, or the processor, remembers of the last one.  The floor is
`os.open`, `os.fstat`, `os.read` and `os.close` on the very file in which atomcache keeps
the value (its header, some 190 bytes, included), with the path known beforehand.

Calls.  A function of two small integers, memoized, returns 4 KB.  ``tuple key`` is
``get_or_create(("f", 1, 2), ...)``, which writes its key down anew each time.

Paths.  `get_or_create_path` against `os.stat` of the path that it returns.

A factory that runs during a measurement raises, so that a figure can't be a miss by
mistake.  See `timing` for the clock and for what a ratio means.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomcache import Cache
from atomcache._door import door
from atomcache._keys import digest
from atomcache._layout import Layout

from . import peers
from .findings import Findings, Settings, Table, micro
from .peers import OURS, NotStoredError
from .timing import ROOT, TIMEOUT, Contestant, Samples, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOR = "open, fstat, read, close"
PLAIN = "open().read()"
STAT = "os.stat"
TUPLE = "atomcache, tuple key"
MEMOIZE = "atomcache.memoize"
DISKCACHE = ("diskcache", "diskcache-community")
SLOW = ("joblib.Memory", "dogpile.cache dbm", "cachier", "FileLock recipe")
MANY = 1000


def names(size: int) -> list[str]:
    """Return the keys of one size."""
    return [f"page-{size}-{number}" for number in range(MANY)]


def contestants(group: str, given: dict[str, Any]) -> dict[str, Callable[[], Contestant]]:
    """Return what a worker has to time."""
    folder = given["folder"]
    if group == "path":
        return _paths(folder)
    if group == "call":
        return _calls(folder)
    keys = given["keys"]
    prefix = os.path.join(folder, OURS)
    layout = Layout(door, prefix, False)
    files = [layout.entry(digest(b"v", key)) for key in keys]

    def over(ask: Callable[[Any], object], items: list[Any]) -> Contestant:
        if len(items) == 1:
            return Contestant(ask, itertools.repeat(items[0]))
        chosen = random.Random(7)
        return Contestant(ask, (chosen.choice(items) for _ in itertools.count()))

    made: dict[str, Callable[[], Contestant]] = {
        FLOOR: lambda: over(bare_read, files),
        PLAIN: lambda: over(_plain_read, files),
    }
    for name in given["peers"]:
        made[name] = lambda name=name: over(peers.prepare(name, folder).hit, keys)  # type: ignore[misc]
    return made


def bare_read(path: str) -> bytes:
    """Read a file by the fewest system calls that know how long it is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _plain_read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _paths(folder: str) -> dict[str, Callable[[], Contestant]]:
    cache = Cache(os.path.join(folder, "paths"))

    def build(target: Path) -> None:
        raise NotStoredError

    path = str(cache.get_or_create_path("report", lambda it: it.write_bytes(b"x"), name="r.pdf"))
    ask = cache.get_or_create_path
    return {
        STAT: lambda: Contestant(os.stat, itertools.repeat(path)),
        OURS: lambda: Contestant(
            lambda key: ask(key, build, name="r.pdf"), itertools.repeat("report")
        ),
    }


def _calls(folder: str) -> dict[str, Callable[[], Contestant]]:
    cache = Cache(os.path.join(folder, "calls"))
    value = os.urandom(4096)
    ran: list[int] = []

    def function(one: int, two: int) -> bytes:
        if ran[one:]:
            raise NotStoredError
        return value

    def contestant(call: Callable[[int, int], object]) -> Contestant:
        ran.clear()
        call(1, 2)
        ran[:] = [0, 0]
        return Contestant(lambda one: call(one, 2), itertools.repeat(1))

    def ours() -> Contestant:
        ask = cache.get_or_create
        return contestant(lambda one, two: ask(("f", one, two), lambda: function(one, two)))

    made = {TUPLE: ours}
    made[MEMOIZE] = lambda: contestant(cache.memoize(function))
    for name in DISKCACHE:
        if peers.installed(name):
            made[f"{name}.memoize"] = lambda name=name: contestant(  # type: ignore[misc]
                importlib.import_module(name.replace("-", "_"))
                .Cache(os.path.join(folder, f"calls-{name}"))
                .memoize(name="f")(function)
            )
    return made


def _fill(folder: str, keys: list[str], size: int, only: list[str]) -> None:
    """Store the same values in all competitors.

    In a process of its own: joblib notes only once per process which code a function has,
    so a second cache of the same function, in another folder, would be taken for outdated.
    """
    given = json.dumps([folder, keys, size, only])
    command = [sys.executable, "-m", "benchmarks.hits"]
    subprocess.run(command, input=given, cwd=ROOT, text=True, check=True, timeout=TIMEOUT)


def main() -> None:
    """Be the process that fills."""
    folder, keys, size, only = json.load(sys.stdin)
    for name in only:
        peer = peers.prepare(name, folder)
        for key in keys:
            peer.put(key, random.Random(key).randbytes(size))


def measure(settings: Settings) -> Findings:
    """Time hits and compare."""
    found = Findings(
        "Hits",
        [
            "Microseconds per call: the median sample, and the best one; `ratio` is the median, "
            "over all rounds, of the time against atomcache's in the same round: above 1, "
            "atomcache is faster.  atomcache verifies a checksum at each hit; no other does."
        ],
    )
    present = [name for name in peers.NAMES if peers.installed(name)]
    sizes = [4096, 65_536] if settings.quick else [100, 4096, 16_384, 65_536, 262_144, 1_048_576]
    by_size: dict[str, dict[str, float]] = {}
    ratios: dict[tuple[int, str], Samples] = {}
    for size in sizes:
        folder = str(settings.folder / f"hits-{size}")
        key = names(size)[0]
        _fill(folder, [key], size, present)
        given = {"folder": folder, "keys": [key], "peers": present}
        samples = interleaved("hits", "value", given, quick=settings.quick)
        ratios[size, "one key"] = samples
        _tabulate(found, f"{_bytes(size)}, one key", samples, present)
        for name in samples.values:
            by_size.setdefault(name, {})[str(size)] = samples.median(name)
    found.lines["hits"] = by_size

    if settings.quick:
        present = [name for name in present if name not in SLOW]  # filling them takes seconds
    folder = str(settings.folder / "hits-many")
    keys = names(4096)
    _fill(folder, keys, 4096, present)
    given = {"folder": folder, "keys": keys, "peers": present}
    samples = ratios[4096, "1,000 keys"] = interleaved(
        "hits", "value", given, quick=settings.quick
    )
    _tabulate(found, "4 KB, 1,000 keys", samples, present)

    for (size, keyed), samples in ratios.items():
        where = f"hit, {_bytes(size)}, {keyed}"
        if size == 4096:
            found.at_most(f"{where}, against {FLOOR}", samples.ratio(OURS, FLOOR), 1.6)
        for name in DISKCACHE:
            if size == 4096:
                found.at_least(f"{where}, {name} against atomcache", samples.ratio(name, OURS), 1)
            elif size == 65_536:
                what = f"{where}, {name} against atomcache"
                found.at_least(what, samples.ratio(name, OURS), 2.5)
        for name in SLOW:
            if size == 4096 and not (settings.quick and keyed != "one key"):
                found.at_least(f"{where}, {name} against atomcache", samples.ratio(name, OURS), 8)

    other = str(settings.folder / "hits-other")
    samples = interleaved("hits", "path", {"folder": other}, quick=settings.quick)
    _tabulate(found, "A path", samples, [])
    found.at_most("hit of a path, against os.stat", samples.ratio(OURS, STAT), 3)

    samples = interleaved("hits", "call", {"folder": other}, quick=settings.quick)
    ours = MEMOIZE if MEMOIZE in samples.values else TUPLE
    _tabulate(found, "A memoized call, two small arguments, 4 KB", samples, [], ours)
    for mine in (TUPLE, MEMOIZE):
        for name in DISKCACHE:
            if mine in samples.values and f"{name}.memoize" in samples.values:
                ratio = samples.ratio(f"{name}.memoize", mine)
                found.at_least(f"memoized call that hits, {name}.memoize against {mine}", ratio, 1)
    return found


def _tabulate(
    found: Findings, title: str, samples: Samples, expected: list[str], ours: str = OURS
) -> None:
    rows = [["", "median", "best", "ratio", "quartiles"]]
    for name in samples.values:
        ratio = samples.ratio(name, ours) or 0
        rows.append(
            [
                name,
                micro(samples.median(name)),
                micro(samples.best(name)),
                f"{ratio:.2f}",
                samples.spread(name, ours),
            ]
        )
        found.raw[f"hit: {title}: {name}"] = samples.values[name]
        if name not in (OURS, ours, TUPLE, FLOOR, PLAIN, STAT) and ratio < 0.97:
            found.better.append(f"{title}: {name} takes {ratio:.2f} times what atomcache takes.")
    for name, trouble in samples.troubles.items():
        rows.append([name, f"failed: {trouble}", "", "", ""])
    missing = [name for name in peers.NAMES if expected and not peers.installed(name)]
    rows += [[name, "not installed", "", "", ""] for name in missing]
    found.tables.append(Table(title, rows))


def _bytes(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    return f"{size // 1024} KB" if size < 1 << 20 else f"{size >> 20} MB"


if __name__ == "__main__":
    main()
