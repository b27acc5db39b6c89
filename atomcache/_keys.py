"""From a key to the digest that names its entry.

What it is for: a key is anything plain (text, bytes, numbers, dates, paths, containers
of those, dataclasses, numpy arrays).  It is written down canonically, so that equal
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

from hashlib import blake2b

from ._errors import KeyTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

DIGEST_SIZE = 20
"""Bytes of a digest: git's SHA-1 length; a chance collision is beyond reach."""

_PERSON = b"atomcache key v1"  # exactly blake2b's 16 bytes of personalisation

_TAG = 27
"""CBOR's registered tag for 'a serialised object with type name and arguments'."""

_MAX_DEPTH = 200
"""Deeper keys are refused: a key that contains itself must not exhaust the stack."""


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
            written = kind + b"s" + key.encode()
        except UnicodeEncodeError:  # a lone surrogate, as in undecodable file names
            written = kind + b"s" + key.encode("utf-8", "surrogatepass")
    elif type(key) is bytes:
        written = kind + b"b" + key
    else:
        written = kind + b"d" + canonical(key)
    return blake2b(written, digest_size=DIGEST_SIZE, person=_PERSON).digest()


def canonical(key: object) -> bytes:
    """Write a key down so that equal keys, and only those, give equal bytes."""
    return _dumps(_plain(key, 0, key))


def describe(key: object, limit: int = 1000) -> str:
    """Return a key for people to read, in error messages and listings."""
    if type(key) is str and len(key) <= limit and key.isprintable():
        return key
    try:
        text = repr(key)
    except Exception as error:  # a class's own repr may do anything; long ints have none
        text = f"<{type(key).__qualname__}: {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def _dumps(plain: object) -> bytes:
    import cbor2

    return cbor2.dumps(plain, canonical=True)


def _tagged(name: str, *content: object) -> object:
    import cbor2

    return cbor2.CBORTag(_TAG, [name, *content])


def _plain(value: Any, depth: int, key: object) -> object:
    """Turn `value` into what CBOR can say without loss of type."""
    kind = type(value)
    if kind in (str, int, float, bool, bytes) or value is None:
        return _text(value) if kind is str else value
    if depth > _MAX_DEPTH:
        raise KeyTypeError(
            f"the key {describe(key, 100)} is nested more than {_MAX_DEPTH} levels deep, "
            "or contains itself; use a shorter key that says the same"
        )

    def each(values: Iterable[Any]) -> list[object]:
        return [_plain(one, depth + 1, key) for one in values]

    if kind is list:
        return each(value)
    if kind is tuple:
        return _tagged("tuple", each(value))
    if kind is dict:
        pairs = [(_dumps(_plain(k, depth + 1, key)), v) for k, v in value.items()]
        plain = [(k, _plain(v, depth + 1, key)) for k, v in pairs]
        plain.sort(key=lambda pair: (pair[0], _dumps(pair[1])))
        return _tagged("dict", [list(pair) for pair in plain])
    if kind in (set, frozenset):
        return _tagged("set", sorted(map(_dumps, each(value))))
    named = _standard(value) or _structured(value)
    if named is None:
        raise KeyTypeError(
            f"a key can't hold {kind.__module__}.{kind.__qualname__}: {describe(value, 100)} "
            f"(in the key {describe(key, 200)}). Keys are text, bytes, numbers, dates, paths, "
            "and tuples, lists, dicts, sets, dataclasses and numpy arrays of those; pass what "
            "identifies the object instead of the object"
        )
    name, content = named
    return _tagged(name, *each(content))


def _text(value: str) -> object:
    try:
        value.encode()
    except UnicodeEncodeError:
        return _tagged("str", value.encode("utf-8", "surrogatepass"))
    return value


def _standard(value: Any) -> tuple[str, list[Any]] | None:
    """Write down the standard library's plain types by name and content."""
    import datetime
    import decimal
    import fractions
    import pathlib
    import uuid

    kind = type(value)
    if kind is complex:
        return "complex", [value.real, value.imag]
    if kind is bytearray:
        return "bytearray", [bytes(value)]
    if kind is range or kind is slice:
        return kind.__name__, [value.start, value.stop, value.step]
    if kind is datetime.datetime or kind is datetime.time:
        zone = value.tzinfo
        known = None if zone is None else getattr(zone, "key", None) or str(value.utcoffset())
        return kind.__name__, [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, known]
    if kind is datetime.date:
        return "date", [value.isoformat()]
    if kind is datetime.timedelta:
        return "timedelta", [value.days, value.seconds, value.microseconds]
    if kind in (decimal.Decimal, uuid.UUID):
        return kind.__name__, [str(value)]
    if kind is fractions.Fraction:
        return "Fraction", [value.numerator, value.denominator]
    if isinstance(value, pathlib.PurePath):
        windows = isinstance(value, pathlib.PureWindowsPath)
        return "WindowsPath" if windows else "Path", [str(value)]
    return None


def _structured(value: Any) -> tuple[str, list[Any]] | None:
    """Write down enums, named tuples, dataclasses and numpy's arrays and scalars."""
    import dataclasses
    import enum

    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        number = value.value if isinstance(value, enum.Flag) else None  # a sum has no name
        return "enum", [name, value.name, number]
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return "namedtuple", [name, *value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value)]
        return "dataclass", [name, {field: getattr(value, field) for field in fields}]
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
        description = value.dtype.str if value.dtype.names is None else repr(value.dtype)
        return "numpy", [kind.__name__, description, list(value.shape), value.tobytes()]
    return None
