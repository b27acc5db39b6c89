"""What a miss costs: a factory that does nothing but return 4 KB, under a new key each time.

The floor is what any safe writer has to do: create a file exclusively, write 4 KB, close it,
and rename it.  It and atomcache spread their files over 256 folders that exist beforehand.
atomcache does more: it looks, claims, locks, looks again, writes who builds, publishes
without replacing, and removes claim and scratch.  `CALLS` is that and nothing else: its system
calls in a row, without a library.  What lies between it and the floor is the price of the
promises, what lies above it is ours to save.  Nobody forces anything onto the disk.  See
`timing` for the clock.

Pitfall: what it costs to create a file depends on what was created and deleted nearby.  On
ext4 the floor was seen at 30 us, and at 1,000 us in the same run while others deleted files in
turn with it; any ratio to such a floor flatters.  So this runs before all other
measurements, atomcache and the floor are compared by themselves first, the floor is shown
alone too, and all of it once more in memory (tmpfs), where creating is cheap and even: the
hardest comparison, for it leaves the library's own work in plain sight.

Competitors are asked as their users would: `joblib`, `cachier` through their decorators,
dogpile.cache by `get_or_create`, diskcache by `get` then `set`.  Their caches grow while
they are measured, like everybody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import peers
from .findings import Findings, Settings, Table, micro
from .peers import OURS, VALUE
from .timing import Contestant, interleaved
from .waiting import filesystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOOR = "create, write, close, rename"
CALLS = "the protocol's system calls alone"
MEMORY = "/dev/shm"


def contestants(group: str, given: dict[str, Any]) -> dict[str, Callable[[], Contestant]]:
    """Return what a worker has to time."""
    folder = given["folder"]
    pid = os.getpid()

    def paths(kind: str) -> Iterator[str]:
        """Yield names in 256 folders that exist."""
        shards = [os.path.join(folder, kind, f"{shard:02x}") for shard in range(256)]
        for shard in shards:
            os.makedirs(shard, mode=0o700, exist_ok=True)
        return (f"{shards[at * 37 % 256]}/{pid:020x}{at:020x}" for at in itertools.count())

    paths(os.path.join(OURS, "v1"))
    made: dict[str, Callable[[], Contestant]] = {
        FLOOR: lambda: Contestant(_write, paths("bare")),
        CALLS: lambda: Contestant(_call, paths("calls")),
    }
    for name in peers.NAMES:
        made[name] = lambda name=name: Contestant(  # type: ignore[misc]
            peers.prepare(name, folder).miss,
            (f"page-{pid}-{number}" for number in itertools.count()),
        )
    return {name: made[name] for name in given["names"]}


_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def _write(path: str) -> None:
    fd = os.open(path + ".temp", _CREATE, 0o600)
    try:
        os.write(fd, VALUE)
    finally:
        os.close(fd)
    os.rename(path + ".temp", path)


def _call(path: str) -> None:
    """Do what `Cache.get_or_create` asks of the system, and nothing in between."""
    with contextlib.suppress(FileNotFoundError):
        os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    claim = path + ".temp"
    fd = os.open(claim, _CREATE | os.O_APPEND, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.fstat(fd)
    os.lstat(claim)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)
    os.write(fd, _RECORD)
    os.close(os.dup(fd))
    scratch = claim + ".0123456789abcdef"
    os.close(os.open(scratch, _CREATE, 0o600))
    written = os.open(scratch, os.O_RDWR | os.O_CLOEXEC)
    os.write(written, VALUE)
    os.close(written)
    os.fstat(fd)
    os.link(scratch, path)
    os.lstat(claim)
    os.unlink(claim)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
    os.unlink(scratch)


_RECORD = bytes(300)


def measure(settings: Settings) -> Findings:
    """Time misses and compare."""
    found = Findings(
        "Misses",
        [
            "4 KB, a new key each time, a factory that costs nothing.  diskcache and zict are "
            "asked, then told; they do not keep two processes from building the same.",
            "The verdicts are from the first table, where nobody else has just created and "
            "deleted files next to the floor's; the second one, with everybody in turn, shows "
            "what that does to it.",
        ],
    )
    _pair(found, settings)
    present = [name for name in peers.NAMES if peers.installed(name)]
    given = {"folder": str(settings.folder / "misses"), "names": [FLOOR, *present]}
    samples = interleaved("misses", "everybody", given, quick=settings.quick)
    rows = [["", "median", "best", "against the floor", "against atomcache"]]
    lines = {}
    for name in samples.values:
        floor, ours = samples.ratio(name, FLOOR) or 0, samples.ratio(name, OURS) or 0
        rows.append(
            [
                name,
                micro(samples.median(name)),
                micro(samples.best(name)),
                f"{floor:.2f}",
                f"{ours:.2f}",
            ]
        )
        lines[name] = samples.median(name)
        found.raw[f"miss: 4 KB: {name}"] = samples.values[name]
        if name not in (OURS, FLOOR) and ours < 0.97:
            found.better.append(
                f"A miss of 4 KB: {name} takes {ours:.2f} times what atomcache takes."
            )
    for name, trouble in samples.troubles.items():
        rows.append([name, f"failed: {trouble}", "", "", ""])
    for name in peers.NAMES:
        if not peers.installed(name):
            rows.append([name, "not installed", "", "", ""])
    found.tables.append(Table("Everybody in turn", rows))
    found.lines["misses"] = lines
    return found


def _pair(found: Findings, settings: Settings) -> None:
    """Compare atomcache with the floor alone, on the disk's filesystem and in memory."""
    rows = [["", "floor, alone", "floor", "its system calls", "ratio", "all of it", "ratio", ""]]
    with contextlib.ExitStack() as stack:
        places = {"": settings.folder / "pair"}
        if filesystem(settings.folder) != "tmpfs" and os.access(MEMORY, os.W_OK):
            made = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY))
            places[" in memory (tmpfs)"] = Path(made)
        for where, place in places.items():
            given = {"folder": str(place / "alone"), "names": [FLOOR]}
            alone = interleaved("misses", "alone", given, quick=settings.quick)
            given = {"folder": str(place / "turn"), "names": [FLOOR, CALLS, OURS]}
            pair = interleaved("misses", "pair", given, quick=settings.quick)
            ratio = pair.ratio(OURS, FLOOR) or 0
            rows.append(
                [
                    where.strip() or filesystem(settings.folder),
                    micro(alone.median(FLOOR)),
                    micro(pair.median(FLOOR)),
                    micro(pair.median(CALLS)),
                    f"{pair.ratio(CALLS, FLOOR) or 0:.2f}",
                    micro(pair.median(OURS)),
                    f"{ratio:.2f}",
                    pair.spread(OURS, FLOOR),
                ]
            )
            found.at_most(f"miss, 4 KB, empty factory{where}, against {FLOOR}", ratio, 2.5)
            for name, values in pair.values.items():
                found.raw[f"miss: 4 KB: pair{where}: {name}"] = values
    found.tables.append(Table("atomcache and the floor", rows))
