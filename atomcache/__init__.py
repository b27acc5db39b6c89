"""Build once, share everywhere: values, files and folders across processes.

What is expensive to make is made exactly once, however many processes ask for it at the
same moment, and nobody ever sees half of it::

    from atomcache import Cache

    cache = Cache("build/cache")
    html = cache.get_or_create("index", render)
    path = cache.get_or_create_path("report-42", build, name="report.pdf")

The first to ask builds; the others sleep and wake with the result; if the builder is
killed, another takes over at once.
"""

from __future__ import annotations

from ._cache import Cache
from ._errors import (
    AtomcacheError,
    BuilderError,
    BuildFailedError,
    BuildTimeout,
    CircularBuildError,
    CodecError,
    EntryNameError,
    KeyTypeError,
    LayoutError,
    OptionError,
    RemoteTraceback,
    StorageError,
    UnsafeDirectoryError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar, Unpack

    from ._listing import EntryInfo as EntryInfo
    from ._options import CallOptions
    from ._own_codec import Codec as Codec

    T = TypeVar("T")

__version__ = "0.1.0"

__all__ = [
    "AtomcacheError",
    "BuildFailedError",
    "BuildTimeout",
    "BuilderError",
    "Cache",
    "CircularBuildError",
    "Codec",
    "CodecError",
    "EntryInfo",
    "EntryNameError",
    "KeyTypeError",
    "LayoutError",
    "OptionError",
    "RemoteTraceback",
    "StorageError",
    "UnsafeDirectoryError",
    "default_cache",
    "get_or_create",
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


def __getattr__(name: str) -> object:
    """Load on demand what only listings and type annotations need."""
    if name == "EntryInfo":
        from ._listing import EntryInfo

        return EntryInfo
    if name == "Codec":
        from ._own_codec import Codec

        return Codec
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
