"""Whether a hit costs more where there are a million entries.

A cache grows from 1,000 to 1,000,000 entries (100,000 in quick mode), and is measured at
each power of ten against another one that keeps 1,000, in the same rounds (see `timing`).
The entries' files are not made by a million misses but written directly, in the library's
own format, by several processes.  Values are 100 bytes, so that this takes 4 GB of disk (a
file takes a block) and not more; hits of larger values differ by the same few microseconds.

``1,000 hot keys``: random ones of 1,000 keys, spread over the whole cache; this is what the
target is about, what the number of *other* entries costs.  ``any key``: random ones of all.
That touches a new inode and a new page at each hit, for which any program pays: it is shown
with the bare system calls on the same files, in the same rounds.  diskcache, filled in one
transaction for each 10,000 entries, is shown with hot keys.

Pitfall: if memory can't hold a million inodes, ``any key`` measures the disk.
"""

from __future__ import annotations

import importlib
import itertools
import os
import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from atomcache import Cache
from atomcache._codecs import NAME_SIZE
from atomcache._door import door
from atomcache._header import NEVER, SEAL_SIZE, assemble
from atomcache._keys import digest
from atomcache._layout import Layout

from . import peers
from .findings import Findings, Settings, Table, micro
from .hits import FLOOR, bare_read
from .peers import NotStoredError
from .timing import ROOT, Contestant, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

FEW = 1000
HOT = "1,000 hot keys"
ANY = "any key"
ANY_FLOOR = f"{FLOOR}, any key"
REFERENCE = "1,000 entries"
DISK = "diskcache"
DISK_REFERENCE = "diskcache, 1,000 entries"
VALUE = b"0123456789" * 10


def _key(number: int) -> str:
    return f"entry {number}"


def _fill(folder: str, first: int, last: int, step: int) -> None:
    """Write entry files as the library would, for every `step`-th number of a range."""
    layout = Layout(door, folder, False)
    codec = b"data".ljust(NAME_SIZE, b"\0")
    for shard in range(256):
        os.makedirs(os.path.join(layout.root, f"{shard:02x}"), mode=0o700, exist_ok=True)
    for number in range(first, last, step):
        key = _key(number)
        name = digest(b"v", key)
        parts = assemble(
            digest=name,
            codec=codec,
            form=1,
            created=1.7e9,
            expires=NEVER,
            took=0.0,
            meta=[("key", key)],
            payload=VALUE,
            seal=bytes(SEAL_SIZE),
        )
        fd = os.open(layout.entry(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.write(fd, b"".join(parts))
        os.close(fd)
    if Cache(folder).get(_key(first)) != VALUE:
        raise AssertionError("the entries written directly can't be read: has the format changed?")


def _fill_disk(folder: str, first: int, last: int) -> None:
    cache = importlib.import_module("diskcache").Cache(folder)
    for start in range(first, last, 10_000):
        with cache.transact():
            for number in range(start, min(start + 10_000, last)):
                cache.set(_key(number), VALUE)
    cache.close()


def _grow(folder: str, first: int, last: int) -> None:
    """Fill with several processes."""
    workers = os.cpu_count() or 1
    command = [sys.executable, "-m", "benchmarks.scale", folder]
    crew = [
        subprocess.Popen([*command, str(first + at), str(last), str(workers)], cwd=ROOT)
        for at in range(workers)
    ]
    if any([one.wait() for one in crew]):  # noqa: C419 - wait for all of them
        raise RuntimeError("the cache could not be filled")


def contestants(group: str, given: dict[str, Any]) -> dict[str, Callable[[], Contestant]]:
    """Return what a worker has to time."""
    folder, count = given["folder"], given["count"]
    hot = [_key(number) for number in random.Random(5).sample(range(count), FEW)]
    few = [_key(number) for number in range(FEW)]

    def any_of(made: Callable[[str], Any]) -> Any:
        chosen = random.Random(os.getpid())
        return (made(_key(chosen.randrange(count))) for _ in itertools.count())

    def hit(name: str, items: Any = None) -> Contestant:
        cache = Cache(os.path.join(folder, name))
        ask = cache.get_or_create
        chosen = random.Random(7)
        keys = hot if name == "big" else few
        if items is None:
            items = (chosen.choice(keys) for _ in itertools.count())
        for key in keys:
            ask(key, _never)
        return Contestant(lambda key: ask(key, _never), items)

    def disk(name: str) -> Contestant:
        cache = importlib.import_module("diskcache").Cache(os.path.join(folder, name))
        chosen = random.Random(7)
        keys = hot if name == "disk-big" else few

        def ask(key: str, get: Callable[[str], object] = cache.get) -> object:
            found = get(key)
            return found if found is not None else _never()

        return Contestant(ask, (chosen.choice(keys) for _ in itertools.count()))

    layout = Layout(door, os.path.join(folder, "big"), False)
    made: dict[str, Callable[[], Contestant]] = {
        REFERENCE: lambda: hit("few"),
        HOT: lambda: hit("big"),
        ANY: lambda: hit("big", any_of(str)),
        ANY_FLOOR: lambda: Contestant(
            bare_read, any_of(lambda key: layout.entry(digest(b"v", key)))
        ),
    }
    if given["disk"]:
        made[DISK_REFERENCE] = lambda: disk("disk-few")
        made[DISK] = lambda: disk("disk-big")
    return made


def _never() -> bytes:
    raise NotStoredError


def measure(settings: Settings) -> Findings:
    """Grow the cache and measure at each power of ten."""
    found = Findings("Scale", ["100 bytes; microseconds per hit, and ratios within rounds."])
    folder = str(settings.folder / "scale")
    with_disk = peers.installed("diskcache") and not settings.quick
    counts = [100_000] if settings.quick else [1000, 10_000, 100_000, 1_000_000]
    space = os.statvfs(settings.folder)
    if space.f_files and space.f_favail < counts[-1] * 1.1:
        raise RuntimeError("the filesystem has too few free inodes for this many entries")
    if space.f_bavail * space.f_frsize < counts[-1] * 5000:
        raise RuntimeError("the filesystem has too little room for this many entries")
    _grow(os.path.join(folder, "few"), 0, FEW)
    if with_disk:
        _fill_disk(os.path.join(folder, "disk-few"), 0, FEW)
    rows = [["entries", HOT, "against 1,000 entries", ANY, f"against {FLOOR}", DISK]]
    lines: dict[str, dict[str, float]] = {HOT: {}, ANY: {}, ANY_FLOOR: {}}
    ratio = any_ratio = None
    done = 0
    for count in counts:
        _grow(os.path.join(folder, "big"), done, count)
        if with_disk:
            _fill_disk(os.path.join(folder, "disk-big"), done, count)
        done = count
        given = {"folder": folder, "count": count, "disk": with_disk}
        samples = interleaved("scale", "value", given, quick=settings.quick)
        if samples.troubles:
            raise RuntimeError(str(samples.troubles))
        ratio = samples.ratio(HOT, REFERENCE) or 0
        any_ratio = samples.ratio(ANY, ANY_FLOOR) or 0
        disk = ""
        if with_disk:
            against = samples.ratio(DISK, DISK_REFERENCE) or 0
            disk = f"{micro(samples.median(DISK))}, {against:.2f} times 1,000"
            lines.setdefault(DISK, {})[str(count)] = samples.median(DISK)
            if (samples.ratio(DISK, HOT) or 1) < 0.97:
                found.better.append(
                    f"{count:,} entries of 100 bytes, hot keys: diskcache takes "
                    f"{samples.ratio(DISK, HOT):.2f} times what atomcache takes."
                )
        rows.append(
            [
                f"{count:,}",
                micro(samples.median(HOT)),
                f"{ratio:.2f}",
                micro(samples.median(ANY)),
                f"{any_ratio:.2f}",
                disk,
            ]
        )
        for name in (HOT, ANY, ANY_FLOOR):
            lines[name][str(count)] = samples.median(name)
            found.raw[f"scale: {count:,}: {name}"] = samples.values[name]
    found.lines["scale"] = lines
    found.tables.append(Table("Hits by number of entries", rows))
    what = f"hit with {counts[-1]:,} entries against one with 1,000"
    found.at_most(what, ratio, 1.3)
    found.remarks.append(
        f"Any key of {counts[-1]:,}, against {FLOOR} of the same files: {any_ratio:.2f} times; "
        "what it costs more than a hot key is what the system takes to find and read a file "
        "that was not used lately."
    )
    return found


def main() -> None:
    """Be one of the processes that fill."""
    folder, first, last, step = sys.argv[1:]
    _fill(folder, int(first), int(last), int(step))


if __name__ == "__main__":
    main()
