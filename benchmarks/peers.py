"""The competitors of the micro-figures: each stores, answers, and makes on a miss.

Each is configured as its documentation suggests for a folder that processes share:

- diskcache, diskcache-community: ``Cache(folder)``, all defaults.
- joblib: ``Memory(folder, verbose=0)``.
- dogpile.cache: a region with the backend ``dogpile.cache.dbm``, which is the one for
  several processes without a server.
- cachier: the pickle core with ``separate_files=True``; by default it rewrites one file
  with all entries at each miss, which would be worse for it at every figure here.
- FileLock recipe: take the lock, look, build: what pytest-xdist's documentation suggests.
- zict: ``zict.File(folder)``, which is no cache between processes, but the thinnest layer
  over files that one can install.

None but atomcache checks what it reads against a checksum.  Versions are in the report.
All are imported by name, so that this loads, and type-checks, without any of them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atomcache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "atomcache"

DISTRIBUTIONS = (
    "diskcache",
    "diskcache-community",
    "joblib",
    "dogpile.cache",
    "cachier",
    "filelock",
    "zict",
    "numpy",
    "pyperf",
    "xxhash",
    "cbor2",
)


@dataclass(frozen=True)
class Peer:
    """One prepared competitor.

    `put` stores; `hit` answers from what is stored and fails if it isn't; `miss` answers
    for a key that isn't stored, storing it.
    """

    put: Callable[[str, bytes], object]
    hit: Callable[[str], object]
    miss: Callable[[str], object]


class NotStoredError(Exception):
    """A factory ran where a hit was to be measured."""


VALUE = os.urandom(4096)
"""What a miss makes."""

_given: list[bytes] = []
"""What `page` returns next, where a competitor memoizes functions."""


def page(key: str) -> bytes:
    """Return what a memoizing competitor is to store."""
    if not _given:
        raise NotStoredError(key)
    return _given[0]


given_array: list[Any] = []
"""What `array` returns."""


def array() -> Any:
    """Return the array that a memoizing competitor is to store."""
    if not given_array:
        raise NotStoredError
    return given_array[0]


def _never() -> bytes:
    raise NotStoredError


def _memoized(cached: Callable[[str], object]) -> Peer:
    """Make a competitor of a memoized `page`."""

    def put(key: str, value: bytes) -> object:
        _given[:] = [value]
        try:
            return cached(key)
        finally:
            _given.clear()

    def miss(key: str) -> object:
        _given[:] = [VALUE]
        return cached(key)

    return Peer(put, cached, miss)


def _atomcache(folder: str) -> Peer:
    cache = Cache(folder)
    ask = cache.get_or_create
    return Peer(cache.set, lambda key: ask(key, _never), lambda key: ask(key, lambda: VALUE))


def _diskcache(folder: str, module: str = "diskcache") -> Peer:
    cache = importlib.import_module(module).Cache(folder)

    def hit(key: str, get: Callable[[str], object] = cache.get) -> object:
        found = get(key)
        if found is None:
            raise NotStoredError(key)
        return found

    def miss(key: str) -> object:
        found = cache.get(key)
        if found is None:
            found = VALUE
            cache.set(key, found)
        return found

    return Peer(cache.set, hit, miss)


def _community(folder: str) -> Peer:
    return _diskcache(folder, "diskcache_community")


def _joblib(folder: str) -> Peer:
    return _memoized(importlib.import_module("joblib").Memory(folder, verbose=0).cache(page))


def dogpile_region(folder: str) -> Any:
    """Return a region of dogpile.cache over a dbm file."""
    os.makedirs(folder, exist_ok=True)
    return (
        importlib.import_module("dogpile.cache")
        .make_region()
        .configure("dogpile.cache.dbm", arguments={"filename": os.path.join(folder, "cache.dbm")})
    )


def _dogpile(folder: str) -> Peer:
    region = dogpile_region(folder)
    ask = region.get_or_create
    return Peer(region.set, lambda key: ask(key, _never), lambda key: ask(key, lambda: VALUE))


def _cachier(folder: str) -> Peer:
    decorate = importlib.import_module("cachier").cachier
    return _memoized(decorate(cache_dir=folder, separate_files=True)(page))


def _filelock(folder: str) -> Peer:
    os.makedirs(folder, exist_ok=True)
    lock_class = importlib.import_module("filelock").FileLock

    def get(key: str, factory: Callable[[], bytes]) -> bytes:
        data = os.path.join(folder, key)
        with lock_class(data + ".lock"):
            if os.path.exists(data):
                with open(data, "rb") as file:
                    return file.read()
            value = factory()
            with open(data, "wb") as file:
                file.write(value)
            return value

    return Peer(
        lambda key, value: get(key, lambda: value),
        lambda key: get(key, _never),
        lambda key: get(key, lambda: VALUE),
    )


def _zict(folder: str) -> Peer:
    files = importlib.import_module("zict").File(folder)

    def miss(key: str) -> object:
        try:
            return files[key]
        except KeyError:
            files[key] = VALUE
            return VALUE

    return Peer(files.__setitem__, files.__getitem__, miss)


_PEERS: dict[str, tuple[str, Callable[[str], Peer]]] = {
    OURS: ("atomcache", _atomcache),
    "diskcache": ("diskcache", _diskcache),
    "diskcache-community": ("diskcache_community", _community),
    "zict.File": ("zict", _zict),
    "joblib.Memory": ("joblib", _joblib),
    "dogpile.cache dbm": ("dogpile", _dogpile),
    "cachier": ("cachier", _cachier),
    "FileLock recipe": ("filelock", _filelock),
}

NAMES = list(_PEERS)


def installed(name: str) -> bool:
    """Tell whether a competitor can be imported."""
    return importlib.util.find_spec(_PEERS[name][0]) is not None


def prepare(name: str, folder: str) -> Peer:
    """Make a competitor ready to work in `folder`, where its own part is."""
    return _PEERS[name][1](os.path.join(folder, name.replace(" ", "-")))


def versions() -> dict[str, str]:
    """Return the version of everything that is compared, or that it isn't installed."""
    found = {}
    for name in ("atomcache", *DISTRIBUTIONS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
