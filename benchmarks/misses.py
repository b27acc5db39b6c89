"""What a miss costs: a factory that does nothing but return 4 KB, under a new key each time.

The floor is what any safe writer has to do: create a file exclusively, write 4 KB, close it,
and rename it.  It and atomcache spread their files over 256 folders that exist beforehand.
atomcache does more: it looks, claims, locks, looks again, writes who builds, publishes
without replacing, and removes claim and scratch.  Nobody forces anything onto the disk;
figures of a filesystem's journal vary, ratios less so.  See `timing` for the clock.

Competitors are asked as their users would: `joblib`, `cachier` through their decorators,
dogpile.cache by `get_or_create`, diskcache by `get` then `set`.  Their caches grow while
they are measured, like everybody's.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

from . import peers
from .findings import Findings, Settings, Table, micro
from .peers import OURS, VALUE
from .timing import Contestant, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable

FLOOR = "create, write, close, rename"


def contestants(group: str, given: dict[str, Any]) -> dict[str, Callable[[], Contestant]]:
    """Return what a worker has to time."""
    folder = given["folder"]
    bare = os.path.join(folder, "bare")
    for shard in range(256):
        os.makedirs(os.path.join(folder, OURS, "v1", f"{shard:02x}"), mode=0o700, exist_ok=True)
        os.makedirs(os.path.join(bare, f"{shard:02x}"), mode=0o700, exist_ok=True)

    def write(path: str) -> None:
        fd = os.open(path + ".temp", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, VALUE)
        finally:
            os.close(fd)
        os.rename(path + ".temp", path)

    pid = os.getpid()
    paths = (
        f"{bare}/{number * 37 % 256:02x}/{pid:020x}{number:020x}" for number in itertools.count()
    )
    made: dict[str, Callable[[], Contestant]] = {FLOOR: lambda: Contestant(write, paths)}
    for name in given["peers"]:
        made[name] = lambda name=name: Contestant(  # type: ignore[misc]
            peers.prepare(name, folder).miss,
            (f"page-{pid}-{number}" for number in itertools.count()),
        )
    return made


def measure(settings: Settings) -> Findings:
    """Time misses and compare."""
    found = Findings(
        "Misses",
        [
            "4 KB, a new key each time, a factory that costs nothing.  diskcache and zict are "
            "asked, then told; they do not keep two processes from building the same."
        ],
    )
    present = [name for name in peers.NAMES if peers.installed(name)]
    given = {"folder": str(settings.folder / "misses"), "peers": present}
    samples = interleaved("misses", "value", given, quick=settings.quick)
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
    found.tables.append(Table("A miss, 4 KB", rows))
    found.lines["misses"] = lines
    found.at_most(f"miss, 4 KB, empty factory, against {FLOOR}", samples.ratio(OURS, FLOOR), 2.5)
    return found
