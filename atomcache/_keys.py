"""From a key to the digest that names its entry.

What it is for: a key is anything plain (text, bytes, numbers, dates, paths, containers
of those, dataclasses, models, arrays, tables, and whatever says itself what identifies it
by a method ``__atomcache_key__``).  It is written down canonically, so that equal
keys give equal bytes in every process and on every run, and hashed.  Entry names hold
nothing of the key itself, so no key can leave the cache folder or clash with another
on a filesystem that ignores case.

Who calls it: `Cache`, once per call.  Text and bytes, by far the most common, take a
short way that imports nothing.  The rest is encoded as deterministic CBOR (RFC 8949,
section 4.2) by the cbor2 library; what CBOR has no type for is wrapped in a named list
under a private tag, so that a tuple, a list and a set with the same members differ.

What may go wrong: a key that is none of these raises `KeyTypeError`.
"""

from __future__ import annotations

import os
import sys

from ._errors import KeyTypeError

try:
    # hashlib's own, without loading OpenSSL: 5 ms of a process
    from _blake2 import blake2b as blake2b
except ImportError:
    from hashlib import blake2b as blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DIGEST_SIZE = 20
"""Bytes of a digest: git's SHA-1 length; a chance collision is beyond reach."""

_PERSON = b"atomcache key v1"  # exactly blake2b's 16 bytes of personalisation

_TAG = 27
"""CBOR's registered tag for 'a serialised object with type name and arguments'."""

_LONG = 100
"""Bytes of a part of a key from which on its hash is kept instead."""

_DEEP = 20
"""Levels of a key from which on it has its part in a stack that is full."""

_MAX_DEPTH = 200
"""Deeper keys are refused: a key that contains itself must not exhaust the stack."""


def shortened(written: bytes) -> bytes:
    """Return what was written of a part of a key, or if that is long its hash.

    A hash is told from what is written by its first byte, with which no CBOR begins.
    """
    if len(written) <= _LONG:
        return written
    return b"\xff" + blake2b(written, digest_size=DIGEST_SIZE, person=_PERSON).digest()


def digest(kind: bytes, key: object) -> bytes:
    """Return the digest of `key` among the entries of one kind.

    Parameters
    ----------
    kind
        One byte: a value and a path under one key are two entries.
    key
        The key as given by the caller.

    Raises
    ------
    KeyTypeError
        If the key, or something in it, is not plain data.
    """
    if type(key) is str:
        try:
            said = kind + b"s" + key.encode()
        except UnicodeEncodeError:  # a lone surrogate, as in undecodable file names
            said = kind + b"s" + key.encode("utf-8", "surrogatepass")
    elif type(key) is bytes:
        said = kind + b"b" + key
    else:
        said = kind + b"d" + canonical(key)
    return blake2b(said, digest_size=DIGEST_SIZE, person=_PERSON).digest()


class NotPlain(Exception):
    """What keeps a value from being written down; the caller says in which key."""


def canonical(key: object) -> bytes:
    """Write a key down so that equal keys, and only those, give equal bytes."""
    try:
        return written(key)
    except NotPlain as why:
        raise KeyTypeError(
            f"the key {describe(key, 200)} {why}. Keys are text, bytes, numbers, dates, paths, "
            "and tuples, lists, dicts, sets, dataclasses, models and arrays of those; pass what "
            "identifies the object instead of the object, or give its class a method "
            "__atomcache_key__ that returns it"
        ) from None


def written(value: object) -> bytes:
    """Do as `canonical`, for what is a part of a key; `NotPlain` says what is in the way."""
    try:
        return _dumps(_plain(value, 0))
    except RecursionError as error:
        if _levels(error) < _DEEP:  # the caller's own calls have left little of the stack
            raise
        raise NotPlain("is nested too deeply, or contains itself") from None


def _levels(error: RecursionError) -> int:
    """Return how many levels of a key were being written down when the stack was full."""
    levels, frame = 0, error.__traceback__
    while frame is not None:
        levels += frame.tb_frame.f_code is _plain.__code__
        frame = frame.tb_next
    return levels


def name_of(thing: Any) -> str:
    """Return the module and qualified name of a class or function, the same in every process.

    A script has its module's name if it was started with ``python -m``, else its path:
    workers know it under another name than the process that started them, and two
    scripts must not be taken for each other.  A notebook has its path, where the kernel knows it.
    What is typed at a prompt or comes from a pipe has nothing that tells it from another.
    """
    module = thing.__module__
    if module in ("__main__", "__mp_main__"):
        main = sys.modules.get(module)
        spec = getattr(main, "__spec__", None)
        file = getattr(main, "__file__", None)
        if spec is not None:
            module = spec.name
        elif file is not None:
            module = os.path.realpath(file)
        else:
            module = _notebook(main) or "__main__"
    return f"{module}.{thing.__qualname__}"


def _notebook(main: Any) -> str | None:
    """Return the path of the notebook that runs here."""
    by_vscode = getattr(main, "__vsc_ipynb_file__", None)
    if isinstance(by_vscode, str):
        return by_vscode
    # Jupyter's server says it to the kernel, whose workers inherit it.  Some versions give a
    # session a name of its own, another one each time, which has no suffix.
    by_server = os.environ.get("JPY_SESSION_NAME", "")
    return by_server if os.path.splitext(by_server)[1] else None


def describe(key: object, limit: int = 1000) -> str:
    """Return a key for people to read, in error messages and listings."""
    if type(key) is str and len(key) <= limit and key.isprintable():
        return key
    try:
        text = repr(key)
    except Exception as error:  # a class's own repr may do anything; long ints have none
        text = f"<{type(key).__qualname__}: {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def describe_entry(key: object, tags: Iterable[str]) -> list[tuple[str, str]]:
    """Return what an entry's header says of its key."""
    told = [("key", describe(key)), *(("tag", tag) for tag in tags)]
    function = function_of(key)
    return [*told, ("function", function)] if function else told


def function_of(key: object) -> str:
    """Return the name of the decorated function that a key belongs to, or nothing."""
    function = None if type(key) is str else getattr(key, "function", None)
    return function if isinstance(function, str) else ""


def _dumps(plain: object) -> bytes:
    import cbor2

    return cbor2.dumps(plain, canonical=True)


def _tagged(name: str, *content: object) -> object:
    import cbor2

    return cbor2.CBORTag(_TAG, [name, *content])


def _plain(value: Any, depth: int) -> object:
    """Turn `value` into what CBOR can say without loss of type."""
    kind = type(value)
    if kind in (str, int, float, bool, bytes) or value is None:
        return _text(value) if kind is str else value
    if depth > _MAX_DEPTH:
        raise NotPlain(f"is nested more than {_MAX_DEPTH} levels deep, or contains itself")

    def each(values: Iterable[Any]) -> list[object]:
        return [_plain(one, depth + 1) for one in values]

    if kind is list:
        return each(value)
    if kind is tuple:
        return _tagged("tuple", each(value))
    if kind is dict:
        return _tagged("dict", _pairs(value, depth))
    if kind in (set, frozenset):
        return _tagged("set", sorted(map(_dumps, each(value))))
    named = _own(value, kind) or _standard(value, kind) or _structured(value, kind)
    if named is None:
        raise NotPlain(
            f"holds a {kind.__module__}.{kind.__qualname__}, which is not plain data: "
            f"{describe(value, 100)}"
        )
    name, content = named
    return _tagged(name, *each(content))


def _pairs(value: Any, depth: int) -> list[object]:
    """Write down a dict's items, in an order that does not depend on how it was made."""
    pairs = [(_dumps(_plain(k, depth + 1)), _plain(v, depth + 1)) for k, v in value.items()]
    if len({first for first, _ in pairs}) < len(pairs):  # NaNs, which equal themselves here alone
        pairs.sort(key=lambda pair: _dumps(pair[1]))
    pairs.sort(key=lambda pair: pair[0])
    return [list(pair) for pair in pairs]


def _structured(value: Any, kind: type) -> tuple[str, list[Any]] | None:
    """Write down what is no type of Python's own."""
    from ._key_classes import structured

    package = _package(kind)
    if package in ("numpy", "pandas"):
        from ._key_arrays import of_numpy, of_pandas

        of_package = of_numpy if package == "numpy" else of_pandas
        return structured(value, kind) or of_package(value, kind)
    return structured(value, kind)


def _text(value: str) -> object:
    try:
        value.encode()
    except UnicodeEncodeError:
        return _tagged("str", value.encode("utf-8", "surrogatepass"))
    return value


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]  # a class may have None for a module


def _own(value: Any, kind: type) -> tuple[str, list[Any]] | None:
    """Ask an object that says itself what identifies it."""
    method = getattr(kind, "__atomcache_key__", None)
    return None if method is None else ("own", [name_of(kind), method(value)])


def _standard(value: Any, kind: type) -> tuple[str, list[Any]] | None:
    """Write down the standard library's plain types by name and content."""
    import collections
    import datetime
    import decimal
    import fractions
    import pathlib
    import types
    import uuid

    if kind is complex:
        return "complex", [value.real, value.imag]
    if kind is bytearray:
        return "bytearray", [bytes(value)]
    if kind is range or kind is slice:
        return kind.__name__, [value.start, value.stop, value.step]
    if kind is datetime.datetime or kind is datetime.time:
        zone = value.tzinfo
        known = None if zone is None else zone_of(value)
        return kind.__name__, [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, known]
    if kind is datetime.date:
        return "date", [value.isoformat()]
    if kind is datetime.timedelta:
        return "timedelta", [value.days, value.seconds, value.microseconds]
    if kind is decimal.Decimal:
        return "Decimal", [str(value).replace("e", "E")]  # contexts differ in this
    if kind is uuid.UUID:
        return "UUID", [str(value)]
    if kind is fractions.Fraction:
        return "Fraction", [value.numerator, value.denominator]
    if kind is collections.OrderedDict:
        return "OrderedDict", [[list(pair) for pair in value.items()]]
    if kind is collections.defaultdict or kind is collections.Counter:
        return kind.__name__, [dict(value)]
    if kind is types.MappingProxyType:
        return "mappingproxy", [dict(value)]
    if kind is collections.deque:
        return "deque", [list(value), value.maxlen]
    if kind is datetime.timezone:
        return "timezone", [value.utcoffset(None), value.tzname(None)]
    if kind.__module__ == "zoneinfo" and value.key:
        return "ZoneInfo", [value.key]
    if isinstance(value, pathlib.PurePath):
        windows = isinstance(value, pathlib.PureWindowsPath)
        return "WindowsPath" if windows else "Path", [str(value)]
    return None


def zone_of(value: Any) -> str:
    """Name the time zone of a moment: by its key where it has one, else by its offset."""
    zone = getattr(value.tzinfo, "key", None) or value.utcoffset()
    if zone is None:
        raise NotPlain(f"holds a time in a zone without a name: {describe(value, 100)}")
    return str(zone)
