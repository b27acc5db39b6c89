"""How many requests each call makes to the bucket that machines share.

    python benchmarks/bucket_requests.py

Two machines, which are folders of one process, share a store in memory; what they ask is counted
as `Cache.stats` does.  The figures stand in docs/scale.md.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from obstore.store import MemoryStore

from atomcache import Cache, _following


def look(cache: Cache) -> None:
    """Look once for what other machines have removed, however lately that was done."""
    protocol = cache._protocol
    assert protocol.remote is not None
    follower = _following.Follower(protocol.remote, protocol)
    for path in (follower._path, follower._begun):
        if os.path.exists(path):
            os.utime(path, (1, 1))
    follower.look(protocol)


def main() -> None:
    """Count, and print a table."""
    with tempfile.TemporaryDirectory(prefix="requests-") as folder:
        store: Any = MemoryStore()
        a, b = (Cache(Path(folder) / name, remote=store, codec="bytes") for name in "ab")

        def count(what: str, cache: Cache, step: Callable[[], object]) -> None:
            before = cache.stats().process.requests
            step()
            print(f"{what:45} {cache.stats().process.requests - before:3}")

        def get(cache: Cache, key: str, size: int = 10, **options: Any) -> Callable[[], object]:
            return lambda: cache.get_or_create(key, lambda: bytes(size), **options)

        follow = _following.Follower.start
        anything: Any = _following.Follower
        anything.start = lambda follower: None  # only when it is to be counted
        try:
            count("miss, built here", a, get(a, "small"))
            count("the same with 2 tags", a, get(a, "tagged", tags=["one", "two"]))
            count("the same with 1 MB", a, get(a, "large", 1 << 20))
            count("the same with 16 MB", a, get(a, "larger", 16 << 20))
            count("hit in the bucket", b, get(b, "small"))
            count("hit in the bucket, 16 MB", b, get(b, "larger"))
            count("hit in the folder", b, get(b, "small"))
            count("get of what is not there", b, lambda: b.get("absent"))
            count("in, of what is not there", b, lambda: "absent" in b)
            count("get_path of what is not there", b, lambda: b.get_path("absent"))
            a.set("first", b"")
            count("set", a, lambda: a.set("small", b"new"))
            count("refresh", a, lambda: a.refresh("small", lambda: b"newer"))
            count("remove", a, lambda: a.remove("small"))
            count("remove of what is not there", a, lambda: a.remove("small"))
            get(b, "tagged", tags=["one", "two"])()
            count("remove_tagged, 1 entry", a, lambda: a.remove_tagged("one"))
            look(b)
            count("look for removals, none", b, lambda: look(b))
            a.remove("larger")
            count("look for removals, 1 of 1 copy and 1 of none", b, lambda: look(b))
        finally:
            anything.start = follow


if __name__ == "__main__":
    main()
