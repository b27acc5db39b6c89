"""Which keys a process remembers something of, and what tells them apart there.

What it is for: what follows from a key, such as where its entry stands, need not be worked out
again at each call.  A table in memory takes keys for one that are equal, and ``1``, ``True`` and
``1.0`` are equal and three keys; so types stand in the table beside the keys.  A table holds on
to its keys, so only small ones are remembered.

Who calls it: `Asking` and decorated functions, once per call.  Nothing can go wrong.
"""

from __future__ import annotations

from sys import getsizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCALARS = frozenset([str, int, bytes, bool, type(None)])
"""Types whose equal objects of the same type are the same key; of floats, 0.0 and -0.0 are
equal and differ."""

BY_THEMSELVES: set[type] = {str}
"""Types that equal nothing of another type, so that their objects stand for themselves."""

_MOST_BYTES = 500
"""Size of the largest key that is remembered."""

_MOST_LETTERS = 400
"""Length from which text is not even looked up: its hash would cost as much as its digest."""

_DEEPEST = 3
"""Levels of tuples in tuples that are looked at."""


def exact(key: object) -> Any:
    """Return what stands for a key in a table, or nothing if the key is not to be remembered."""
    kind = type(key)
    if kind is str and len(key) > _MOST_LETTERS:  # type: ignore[arg-type]
        return None
    if kind in BY_THEMSELVES:
        return key
    if kind is tuple:
        kinds = shape(key)  # type: ignore[arg-type]
        return None if kinds is None else (kinds, key)
    return (kind, key) if kind in SCALARS else None


def shape(values: tuple[Any, ...], deeper: int = _DEEPEST) -> tuple[Any, ...] | None:
    """Return the types of what a tuple holds, or nothing if that is not all plain scalars.

    In a table, types come before values: Python warns, where asked to, when it compares text
    with bytes.
    """
    kinds: tuple[Any, ...] = tuple(map(type, values))
    if SCALARS.issuperset(kinds):
        return kinds
    if not deeper or not all(kind is tuple or kind in SCALARS for kind in kinds):
        return None
    pairs = zip(values, kinds, strict=True)
    found = tuple(shape(v, deeper - 1) if kind is tuple else kind for v, kind in pairs)
    return None if None in found else found


def small(key: object) -> bool:
    """Tell whether a key takes so little memory that a table may hold on to it."""
    return _size(key) <= _MOST_BYTES


def _size(key: object) -> int:
    inner = sum(map(_size, key)) if type(key) is tuple else 0
    return getsizeof(key) + inner
