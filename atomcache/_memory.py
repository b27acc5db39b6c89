"""The memory tier: values kept decoded in this process, each validated by one stat.

What it is for: a value that this process has read, and that nobody can change in place,
need not be read, verified and decoded again while its file is the same.  Another process
that replaces or removes the entry makes another file or none, so the change is seen at
once.  Only immutable values are kept: handing out one list twice would let one caller
change what the other sees.

Who calls it: `Cache`, if it was made with ``memory=``.  What may go wrong: nothing that is
not a miss; on filesystems that show changes late, so does the stat.
"""

from __future__ import annotations

import os
from _thread import RLock
from time import time

from ._freshness import RACY_SECONDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._codecs import AnyCodec
    from ._header import Header

_DEEPEST = 10
_COST_OF_ENTRY = 500
"""Bytes that a kept value costs besides its content: key, tuple, dict slots (measured with
`tracemalloc`; some 450 on CPython 3.11)."""


class MemoryTier:
    """Recently used values of one cache in one process.

    Parameters
    ----------
    limit
        Bytes of entry files, plus what keeping them costs, beyond which the least
        recently used is dropped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._lock = RLock()
        self._changing = False
        self._pid = os.getpid()
        self._kept: dict[str, tuple[tuple[int, ...], AnyCodec, Any, int, Header]] = {}

    def get(self, path: str, found: os.stat_result, codec: AnyCodec) -> tuple[Any, Header] | None:
        """Return value and header, if what is kept is still what is there."""
        kept = self._kept.get(path)
        if kept is None or kept[0] != _version(found) or kept[1] is not codec:
            return None
        with self._own_lock():
            if not self._changing:
                try:
                    self._changing = True
                    if self._kept.pop(path, None) is not None:
                        self._kept[path] = kept  # the youngest: dicts keep the order of insertion
                finally:
                    self._changing = False
        return kept[2], kept[4]

    def put(
        self,
        path: str,
        found: os.stat_result,
        codec: AnyCodec,
        value: Any,
        header: Header,
    ) -> None:
        """Keep a value that was read from the file that `found` describes."""
        cost = found.st_size + _COST_OF_ENTRY
        if cost > self.limit or not immutable(value):
            return
        if time() - found.st_ctime < RACY_SECONDS:
            return  # one that comes in its place could look the same
        with self._own_lock():
            if self._changing:
                return
            try:
                self._changing = True
                self._drop(path)
                self._kept[path] = (_version(found), codec, value, cost, header)
                self.size += cost
                while self.size > self.limit:
                    self._drop(next(iter(self._kept)))
            finally:
                self._changing = False

    def _own_lock(self) -> RLock:
        """Return the lock; a free one in a forked child, whose parent's threads stayed behind.

        A finalizer or a signal handler that comes in between has it too, and changes nothing.
        """
        if self._pid != os.getpid():
            self._lock = RLock()
            self._changing = False
            self.size = sum(each[3] for each in list(self._kept.values()))
            self._pid = os.getpid()  # last: another thread goes by it
        return self._lock

    def _drop(self, path: str) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            self.size -= kept[3]


def immutable(value: Any, depth: int = 0) -> bool:
    """Tell whether nobody can change a value in place."""
    kind = type(value)
    if kind in _IMMUTABLE:
        return True
    if kind in (tuple, frozenset) and depth < _DEEPEST:
        return all(immutable(each, depth + 1) for each in value)
    return f"{kind.__module__}.{kind.__qualname__}" in _IMMUTABLE_NAMES


_IMMUTABLE = frozenset([type(None), bool, int, float, complex, str, bytes, range, type(...)])
_IMMUTABLE_NAMES = frozenset(
    [
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"pathlib.{kind}{name}Path" for kind in ("", "Pure") for name in ("Posix", "Windows")),
        *("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "zoneinfo.ZoneInfo"),
    ]
)
"""Types by name, so that none of these modules is loaded for it."""


def _version(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev)
