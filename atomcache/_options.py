"""The options that mean the same on a cache, on a decorator and on a call.

What it is for: every option is named, checked and documented here and nowhere else.  A
`Cache` keeps one `Options` as its defaults; a call that changes some gets a checked
copy, a call that changes none pays nothing.

Who calls it: `Cache`.  What may go wrong: `OptionError`, at the call, not later.
"""

from __future__ import annotations

import math

from ._errors import OptionError
from ._keys import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from typing import Any, Literal, TypedDict

    from ._codecs import AnyCodec
    from ._own_codec import Codec

    class CallOptions(TypedDict, total=False):
        """Keyword options of a single call; see `Options` for what each means."""

        max_age: float | timedelta | None
        timeout: float | timedelta | None
        on_error: Literal["raise", "retry"]
        on_store_error: Literal["raise", "bypass"]
        codec: str | Codec
        durable: bool
        tags: Iterable[str]


class Options:
    """Options of a cache or of one call.

    Parameters
    ----------
    max_age : float or timedelta, optional
        Seconds after which an entry is built anew.  `None`, the default: never.
    timeout : float or timedelta, optional
        Seconds to wait for somebody else's build before `BuildTimeout` is raised; 0
        does not wait at all.  `None`, the default: as long as the builder lives.  A
        caller that comes to build itself is not limited.
    on_error : {"raise", "retry"}
        What those who wait do when the build fails: ``"raise"`` the same error, or
        ``"retry"``, one after another.
    on_store_error : {"raise", "bypass"}
        What to do when the folder can't be read or written: ``"raise"`` a
        `StorageError`, or ``"bypass"`` the cache and build without storing.
    codec : str or Codec
        How values become bytes: ``"data"``, ``"json"``, ``"bytes"``, ``"text"``,
        ``"pickle"`` or an object with a name, `encode` and `decode`.
    durable : bool
        Whether a path entry is forced onto the disk before it is published.
    tags : iterable of str
        Labels that are stored with the entry.
    """

    __slots__ = ("codec", "durable", "max_age", "on_error", "on_store_error", "tags", "timeout")

    def __init__(self, codec: AnyCodec) -> None:
        self.max_age: float | None = None
        self.timeout: float | None = None
        self.on_error = "raise"
        self.on_store_error = "raise"
        self.codec = codec
        self.durable = True
        self.tags: tuple[str, ...] = ()

    def changed(
        self, changes: Mapping[str, Any], find_codec: Callable[[object], AnyCodec]
    ) -> Options:
        """Return a copy with some options changed and checked."""
        copy = Options(self.codec)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        for name, value in changes.items():
            if name == "codec":
                copy.codec = find_codec(value)
            elif name in _CHECKS:
                setattr(copy, name, _CHECKS[name](name, value))
            else:
                known = ", ".join(sorted(self.__slots__))
                raise OptionError(f"there is no option {name!r}; the options are {known}")
        return copy


_FOREVER = 1e9
"""Seconds, some thirty years, beyond which a length of time is no limit: the system's calls
take no more than about this."""


def seconds(name: str, value: object) -> float | None:
    """Check a length of time and return it in seconds; `None` stays `None`."""
    if value is None:
        return None
    length = value.total_seconds() if hasattr(value, "total_seconds") else value
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise OptionError(
            f"{name} must be a number of seconds, a timedelta or None, not {describe(value)}"
        )
    try:
        length = float(length)
    except OverflowError:
        raise OptionError(f"{name} is longer than any clock can tell: {describe(value)}") from None
    if math.isnan(length) or length < 0:
        raise OptionError(f"{name} must not be negative, but it is {describe(value)}")
    return None if length > _FOREVER else length


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size(name: str, value: object) -> int | None:
    """Check a number of bytes, such as 500, ``"64MB"`` or ``"1.5GiB"``; `None` stays `None`."""
    if value is None:
        return None
    number: float | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str):
        text = value.strip()
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
        unit = _UNITS.get(text[len(digits) :].strip().upper())
        try:
            number = None if unit is None else float(digits) * unit
        except ValueError:
            number = None
    if number is None or not 0 < number < 2**63:
        raise OptionError(
            f"{name} must be a positive number of bytes, such as 500, '64MB' or '1.5GiB', "
            f"or None, not {describe(value)}"
        )
    return int(number)


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(f"{name} must be one of {', '.join(choices)}, not {describe(value)}")
        return value

    return check


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, not {describe(value)}")
    return value


def _tags(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes | type) or not hasattr(value, "__iter__"):
        raise OptionError(
            f"{name} must be several strings, as a list or tuple, not {describe(value)}"
        )
    tags = tuple(value)
    for tag in tags:
        if not isinstance(tag, str) or not tag:
            raise OptionError(
                f"each of {name} must be a non-empty string, but one is {describe(tag)}"
            )
    return tags


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "max_age": seconds,
    "timeout": seconds,
    "on_error": _one_of("raise", "retry"),
    "on_store_error": _one_of("raise", "bypass"),
    "durable": _flag,
    "tags": _tags,
}
