"""What a fleet of machines asks of a bucket while all wait for one of them to build.

    python benchmarks/fleet.py [--machines NUMBER] [--json FILE]

The library's own code for buckets runs on each machine of a simulated fleet, over a clock that
jumps and a store that answers after 20 ms and counts; only what would take real time is
replaced.  All machines ask for one cold key within a second.  The figures stand in
docs/scale.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet

from atomcache import Cache, _bucket_claim
from atomcache._bucket_claim import RemoteClaim
from atomcache._options import Options
from atomcache._remote import Remote

LATENCY = 0.02
"""Seconds that the store takes to answer: what S3 takes for a small object, roughly."""

SPREAD = 1.0
"""Seconds within which all machines ask."""


class World:
    """A clock, and who sleeps until when."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.sleepers: list[tuple[float, int, Any]] = []
        self.number = 0
        self.random = random.Random(seed)
        self.main = getcurrent()

    def start(self, function: Any, at: float = 0.0) -> None:
        """Have a function begin at a time."""
        self.number += 1
        heapq.heappush(self.sleepers, (at, self.number, greenlet(function, self.main)))

    def sleep(self, seconds: float) -> None:
        """Let whoever calls go on later."""
        self.number += 1
        heapq.heappush(self.sleepers, (self.now + seconds, self.number, getcurrent()))
        self.main.switch()

    def run(self) -> None:
        """Let everybody come to an end."""
        while self.sleepers:
            self.now, _, sleeper = heapq.heappop(self.sleepers)
            sleeper.switch()


class Store:
    """A store that answers late and counts; the door's own methods."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._version = 0
        self.at: Counter[int] = Counter()
        self.requests = 0

    def budget(self, *, bounded: bool = True) -> Any:
        """Let requests take as long as they do."""
        return nullcontext()

    def renew_budget(self) -> None:
        """Let requests take as long as they do."""

    def _ask(self) -> None:
        self.requests += 1
        self.at[int(self._world.now)] += 1
        self._world.sleep(LATENCY)

    def _store(self, name: str, content: bytes) -> str:
        self._version += 1
        self._objects[name] = content, self._version
        return str(self._version)

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Answer a get."""
        self._ask()
        found = self._objects.get(name)
        return None if found is None else (found[0], str(found[1]))

    def put_new(self, name: str, content: bytes) -> str | None:
        """Answer a put that must be the first."""
        self._ask()
        return None if name in self._objects else self._store(name, content)

    def put_if(self, name: str, content: bytes, etag: str) -> str | None:
        """Answer a put that must know what it replaces."""
        self._ask()
        found = self._objects.get(name)
        if found is None or str(found[1]) != etag:
            return None
        return self._store(name, content)

    def put(self, name: str, content: Any) -> str:
        """Answer any put."""
        self._ask()
        return self._store(name, content if isinstance(content, bytes) else b"".join(content))

    def delete(self, *names: str) -> None:
        """Answer a removal."""
        self._ask()
        for name in names:
            self._objects.pop(name, None)


def simulate(machines: int, build: float, seed: int = 1) -> dict[str, float]:
    """Return what a fleet asked of the store for a build that takes so many seconds."""
    world = World(seed)
    store: Any = Store(world)
    door: Any = SimpleNamespace(
        monotonic=lambda: world.now,
        time=lambda: 1e9 + world.now,
        sleep=world.sleep,
        random=world.random.random,
        host=lambda: "machine",
        getpid=lambda: 1,
        urandom=world.random.randbytes,
    )
    answers: list[float] = []
    builds: list[float] = []

    def ask() -> None:
        remote = Remote(door, store, lease=30.0)
        entry: Any = _Entry()
        claim: Any = SimpleNamespace(
            token=world.random.randbytes(8).hex(), is_mine=lambda: True, scratch=""
        )
        told: Any = SimpleNamespace(revoked=lambda: False, took=None, ended=0.0, lost_claim=False)
        patience: Any = SimpleNamespace(left=lambda: None, begin=lambda: None, end=lambda: None)

        def make() -> bytes:
            world.sleep(build)
            builds.append(world.now)
            return b"x" * 4096

        remote.make(entry, claim, told, door.time(), patience, make)
        answers.append(world.now)

    for _ in range(machines):
        world.start(ask, world.random.random() * SPREAD)
    renewing = RemoteClaim.start_renewing
    anything: Any = RemoteClaim
    anything.start_renewing = lambda claim: world.start(lambda: _renew(world, claim))
    try:
        world.run()
    finally:
        anything.start_renewing = renewing
    if len(builds) != 1 or len(answers) != machines:
        raise RuntimeError(f"{len(builds)} builds, {len(answers)} answers")
    late = sorted(answer - builds[0] for answer in answers)
    waiting = [number for second, number in store.at.items() if SPREAD < second < builds[0] - 1]
    return {
        "machines": machines,
        "build": build,
        "requests": store.requests,
        "each": store.requests / machines,
        "peak": max(store.at.values()),
        "steady": sorted(waiting)[len(waiting) // 2] if waiting else 0,
        "median late": late[len(late) // 2],
        "last late": late[-1],
    }


class _Turn:
    """A lock that lets the simulated clock go on."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._taken = False

    def __enter__(self) -> None:
        while self._taken:
            self._world.sleep(LATENCY)
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


def _renew(world: World, claim: Any) -> None:
    claim._changing = _Turn(world)
    while True:
        world.sleep(30.0 / _bucket_claim.RENEWALS)
        if claim._ended.is_set() or not claim.confirm():
            return


class _Entry:
    """As much of an entry as the code for buckets looks at."""

    def __init__(self) -> None:
        cache = Cache("unused")
        self.options = Options(cache._codecs.find("bytes"))
        self.digest = bytes(20)
        self.key = "key"
        self.anew = self.only_look = False
        self.unusable = self.replaces = self.replaced_blob = ""
        self.shared: float | None = None

    def what(self) -> str:
        return "the value"

    def fits(self, header: Any, meta: Any) -> bool:
        return True

    def receive(self, scratch: str, head: bytes, pieces: Any) -> bytes:
        return b"".join(pieces)

    def forget_received(self, scratch: str) -> None:
        """Nothing came."""

    def tags_of(self, build: Any) -> set[str]:
        return set()

    def send(self, value: bytes, took: float, build: Any) -> tuple[bytes, Any, int]:
        from atomcache._header import assemble

        parts = assemble(
            digest=self.digest,
            codec=self.options.codec.stored_name,
            form=0,
            created=1e9,
            expires=float("inf"),
            took=took,
            meta=[("key", "key")],
            payload=value,
            seal=bytes(32),
        )
        return b"".join(parts[:3]), iter([value]), len(value)


def main() -> None:
    """Simulate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--machines", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = [
        simulate(machines, build) for build in (2.0, 60.0, 600.0) for machines in chosen.machines
    ]
    print(
        f"{'build':>6} {'machines':>8} {'requests':>9} {'each':>6} {'peak/s':>7} "
        f"{'waiting/s':>9} {'median late':>11} {'last late':>9}"
    )
    for row in rows:
        print(
            f"{row['build']:6.0f} {row['machines']:8.0f} {row['requests']:9.0f} "
            f"{row['each']:6.1f} {row['peak']:7.0f} {row['steady']:9.0f} "
            f"{row['median late']:10.2f}s {row['last late']:8.2f}s"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
