"""The options that mean the same on a cache, on a decorator and on a call.

What it is for: every option is named, checked and documented here and nowhere else.  A
`Cache` keeps one `Options` as its defaults; a call that changes some gets a checked
copy, a call that changes none pays nothing.

Who calls it: `Cache`.  What may go wrong: `OptionError`, at the call, not later.
"""

from __future__ import annotations

import math
import os
import sys

from ._errors import OptionError
from ._keys import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta
    from typing import Any, Literal, TypeAlias, TypedDict

    from ._codecs import AnyCodec
    from ._own_codec import Codec

    Inputs: TypeAlias = Iterable[str | os.PathLike[str]]

    class _Shared(TypedDict, total=False):
        max_age: float | timedelta | str | None
        stale_for: float | timedelta | str | None
        stale_on_error: float | timedelta | str | None
        retry_after: float | timedelta | str
        jitter: float | timedelta | str | None
        timeout: float | timedelta | str | None
        on_error: Literal["raise", "retry"]
        on_store_error: Literal["raise", "bypass"]
        codec: str | Codec
        durable: bool
        tags: Iterable[str]

    class CallOptions(_Shared, total=False):
        """Keyword options of a single call; see `Options` for what each means."""

        inputs: Inputs

    class DecoratorOptions(_Shared, total=False):
        """Keyword options of a decorator; see `Options` for what each means."""

        inputs: Inputs | Callable[..., Inputs]


class Options:
    """Options of a cache or of one call.

    Parameters
    ----------
    max_age : float, timedelta or str, optional
        Seconds after which an entry is built anew, or text such as ``"10m"`` (units s, m, h,
        d, w).  `None`, the default: never.  Other lengths of time are given alike.
    stale_for : float, timedelta or str, optional
        For so long after an entry's end those who ask get the old value at once, while a
        thread of one process builds it anew.
    stale_on_error : float, timedelta or str, optional
        For so long after an entry's end those who ask get the old value if building it anew
        fails.
    retry_after : float, timedelta or str
        Seconds between two failing attempts to replace an old value, of all processes
        together.  10 by default, at most a day.
    jitter : float, timedelta or str, optional
        An entry expires earlier by a random part of this, so that entries that are made
        together don't expire together.
    timeout : float or timedelta, optional
        Seconds to wait for somebody else's build before `BuildTimeout` is raised; 0
        does not wait at all.  `None`, the default: as long as the builder lives.  A
        caller that comes to build itself is not limited.  If there is an old value, that is
        returned instead, whatever its age.
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
    inputs : iterable of str or os.PathLike
        Files, folders and patterns such as ``"data/**/*.csv"`` whose names and content are
        part of the key, so that an entry is built anew when they change.  Relative ones are
        taken from the current folder.  A pattern that matches nothing is an error.
    """

    __slots__ = (
        "codec",
        "durable",
        "inputs",
        "jitter",
        "max_age",
        "on_error",
        "on_store_error",
        "retry_after",
        "stale_for",
        "stale_on_error",
        "tags",
        "timeout",
    )

    def __init__(self, codec: AnyCodec) -> None:
        self.max_age: float | None = None
        self.stale_for: float | None = None
        self.stale_on_error: float | None = None
        self.retry_after = 10.0
        self.jitter: float | None = None
        self.timeout: float | None = None
        self.on_error = "raise"
        self.on_store_error = "raise"
        self.codec = codec
        self.durable = True
        self.tags: tuple[str, ...] = ()
        self.inputs: tuple[str, ...] = ()

    def without_waiting(self) -> Options:
        """Return a copy for who builds only if nobody else does."""
        copy = Options(self.codec)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.timeout = 0.0
        return copy

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
        if copy.jitter and copy.max_age is not None and copy.jitter > copy.max_age:
            raise OptionError(
                f"jitter ({copy.jitter} s) must not be longer than max_age ({copy.max_age} s), "
                "or entries would expire as they are made"
            )
        return copy


_FOREVER = 1e9
"""Seconds, some thirty years, beyond which a length of time is no limit: the system's calls
take no more than about this."""


def seconds(name: str, value: object) -> float | None:
    """Check a length of time and return it in seconds; `None` stays `None`."""
    if value is None:
        return None
    length = value
    if hasattr(value, "total_seconds") and not isinstance(value, type):
        length = value.total_seconds()
    if isinstance(value, str):
        length = _parse_seconds(name, value)
    if isinstance(length, bool) or not isinstance(length, int | float):
        raise OptionError(
            f"{name} must be a number of seconds, text such as '10m', a timedelta or None, not "
            f"{describe(value)}"
        )
    try:
        length = float(length)
    except OverflowError:
        raise OptionError(f"{name} is longer than any clock can tell: {describe(value)}") from None
    if math.isnan(length) or length < 0:
        raise OptionError(f"{name} must not be negative, but it is {describe(value)}")
    return None if length > _FOREVER else length


def remote_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Check what a cache is told of its bucket, whether there is one or not."""
    timeout = seconds("remote_timeout", given["remote_timeout"])
    if not timeout:
        raise OptionError(
            "remote_timeout must be a number of seconds that is more than 0, not "
            f"{describe(given['remote_timeout'])}"
        )
    if given["write"] not in ("sync", "async"):
        raise OptionError(f"write must be 'sync' or 'async', not {describe(given['write'])}")
    if not isinstance(given["read_only"], bool):
        raise OptionError(f"read_only must be True or False, not {describe(given['read_only'])}")
    if not isinstance(given["remote_options"], dict):
        raise OptionError("remote_options must be a dict")
    return {**given, "remote_timeout": timeout}


_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def _parse_seconds(name: str, text: str) -> float:
    """Return the seconds of ``"500ms"``, ``"90s"``, ``"1.5h"`` or ``"1h30m"``."""
    total = 0.0
    number = unit = ""
    try:
        for letter in text.lower().replace(" ", ""):
            if letter not in "0123456789.":
                unit += letter
                continue
            if unit:
                total += float(number) * _TIME_UNITS[unit]
                number = unit = ""
            number += letter
        return total + float(number) * _TIME_UNITS[unit]
    except (KeyError, ValueError):
        raise OptionError(
            f"{name} must be a length of time such as '500ms', '90s', '10m', '1h30m' or '30d', "
            f"not {describe(text)}"
        ) from None


def _retry_after(name: str, value: object) -> float:
    length = seconds(name, value)
    if length is None or length > 86_400:
        raise OptionError(f"{name} must be at most a day, not {describe(value)}")
    return length


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
    if number is None or not 1 <= number < 2**63:
        advice = ". Convert it by int()" if isinstance(value, float) else ""
        raise OptionError(
            f"{name} must be a whole number of bytes, at least one, such as 500, '64MB' or "
            f"'1.5GiB', or None, not {describe(value)}{advice}"
        )
    return int(number)


def number(name: str, value: object) -> int | None:
    """Check a number of things; `None` stays `None`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise OptionError(f"{name} must be a positive whole number or None, not {describe(value)}")
    return min(value, sys.maxsize)  # more can't be


def _one_of(*choices: str) -> Callable[[str, object], str]:
    def check(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise OptionError(f"{name} must be one of {', '.join(choices)}, not {describe(value)}")
        return value

    return check


def flag(name: str, value: object) -> bool:
    """Check a switch."""
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


def paths(name: str, value: Any) -> tuple[str, ...]:
    """Check several paths and return them as text."""
    if callable(value):
        raise OptionError(
            f"{name} can be a function on a decorator only: it is called with the arguments"
        )
    if isinstance(value, str | bytes | os.PathLike) or not hasattr(value, "__iter__"):
        raise OptionError(
            f"{name} must be several paths, as a list or tuple, not {describe(value)}"
        )
    found = tuple(os.fspath(each) if isinstance(each, os.PathLike) else each for each in value)
    for path in found:
        if not isinstance(path, str) or not path or "\0" in path:
            raise OptionError(f"each of {name} must be the path of a file, not {describe(path)}")
    return found


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "max_age": seconds,
    "stale_for": seconds,
    "stale_on_error": seconds,
    "retry_after": _retry_after,
    "jitter": seconds,
    "timeout": seconds,
    "on_error": _one_of("raise", "retry"),
    "on_store_error": _one_of("raise", "bypass"),
    "durable": flag,
    "tags": _tags,
    "inputs": paths,
}
