"""Build once, share everywhere: values, files and folders across processes.

What is expensive to make is made exactly once, however many processes ask for it at the
same moment, and nobody ever sees half of it::

    from atomcache import Cache

    cache = Cache("build/cache")
    html = cache.get_or_create("index", render)
    path = cache.get_or_create_path("report-42", build, name="report.pdf")

The first to ask builds; the others sleep and wake with the result; if the builder is
killed, another takes over at once.

PYTEST_DONT_REWRITE: there is nothing here for pytest to rewrite, before or after its start.
"""

from __future__ import annotations

from ._build import Build, current_build
from ._cache import Cache
from ._errors import (
    AtomcacheError,
    BuilderError,
    BuildFailedError,
    BuildTimeout,
    CircularBuildError,
    CodecError,
    DontStore,
    EntryNameError,
    InputError,
    KeyTypeError,
    LayoutError,
    MissingEntryError,
    MissingInputError,
    NoBuildError,
    OptionError,
    RemoteTraceback,
    StorageError,
    UnsafeDirectoryError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, Unpack

    from ._call_key import CallKey as CallKey
    from ._eviction import Pruned as Pruned
    from ._inputs import InputKey as InputKey
    from ._listing import BuildInfo as BuildInfo
    from ._listing import EntryInfo as EntryInfo
    from ._memoize import AsyncMemoized as AsyncMemoized
    from ._memoize import Memoized as Memoized
    from ._options import CallOptions
    from ._own_codec import Codec as Codec
    from ._statistics import Counts as Counts
    from ._statistics import Stats as Stats
    from ._watch import Event as Event

    T = TypeVar("T")

__version__ = "0.1.0"

__all__ = [
    "AsyncMemoized",
    "AtomcacheError",
    "Build",
    "BuildFailedError",
    "BuildInfo",
    "BuildTimeout",
    "BuilderError",
    "Cache",
    "CircularBuildError",
    "Codec",
    "CodecError",
    "Counts",
    "DontStore",
    "EntryInfo",
    "EntryNameError",
    "Event",
    "InputError",
    "KeyTypeError",
    "LayoutError",
    "Memoized",
    "MissingEntryError",
    "MissingInputError",
    "NoBuildError",
    "OptionError",
    "Pruned",
    "RemoteTraceback",
    "Stats",
    "StorageError",
    "UnsafeDirectoryError",
    "Waiting",
    "current_build",
    "default_cache",
    "get_or_create",
    "show_waiting",
]

_default: Cache | None = None


def default_cache() -> Cache:
    """Return the cache that `get_or_create` uses: ``Cache.for_app("atomcache")``.

    It is shared by all programs of this user, so choose keys that name their program.
    """
    global _default
    if _default is None:
        _default = Cache.for_app("atomcache")
    return _default


def get_or_create(key: object, factory: Callable[[], T], **options: Unpack[CallOptions]) -> T:
    """Return the value of `key` from the default cache; see `Cache.get_or_create`."""
    return default_cache().get_or_create(key, factory, **options)


_LATER = {
    "AsyncMemoized": "_memoize",
    "BuildInfo": "_listing",
    "Counts": "_statistics",
    "Event": "_watch",
    "Pruned": "_eviction",
    "Stats": "_statistics",
    "Codec": "_own_codec",
    "CallKey": "_call_key",
    "EntryInfo": "_listing",
    "InputKey": "_inputs",
    "Display": "_display",
    "Memoized": "_memoize",
    "Waiting": "_waiting",
    "show_waiting": "_display",
}
"""Names that not every program needs, and where they are."""


def __getattr__(name: str) -> object:
    """Load on demand what not every program needs."""
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
