"""A codec of the user's own: what it provides, and how it is taken in.

Who calls it: the codec table, when `codec` is an object rather than a name; users import
`Codec` to annotate theirs.  What may go wrong: `OptionError` for an object that is not a
codec; `CodecError` for one that does not encode to bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ._codecs import NAME_SIZE, AnyCodec, type_name
from ._errors import CodecError, OptionError
from ._keys import describe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._codecs import Buffer


class Codec(Protocol):
    """What a user's own codec provides.

    Attributes
    ----------
    name
        1 to 24 printable ASCII characters.  It is stored with each entry, and entries
        stored under another name are misses, so change it when the format changes.

    Examples
    --------
    >>> class Point:
    ...     name = "point-1"
    ...
    ...     def encode(self, value):
    ...         return b"%d %d" % value
    ...
    ...     def decode(self, payload):
    ...         return tuple(map(int, payload.split()))
    >>> import tempfile
    >>> from atomcache import Cache
    >>> cache = Cache(tempfile.mkdtemp(), codec=Point())
    >>> cache.set("origin", (0, 0))
    >>> cache.get("origin")
    (0, 0)
    """

    name: str

    def encode(self, value: Any, /) -> bytes:
        """Turn a value into bytes; raise `TypeError` for what can't be stored."""

    def decode(self, payload: bytes, /) -> Any:
        """Turn the bytes back into an equal value; any exception makes it a miss."""


class _OwnCodec(AnyCodec):
    """A user's own codec as the entries see it."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name = codec.name

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        payload = self.codec.encode(value)
        if not isinstance(payload, bytes):
            raise CodecError(
                f"codec {self.name!r} must encode to bytes, but for a value of type "
                f"{type_name(value)} it returned {type_name(payload)}"
            )
        return 0, payload, ()

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        return self.codec.decode(bytes(payload))


def adopt(wanted: Any) -> AnyCodec:
    """Return the codec that a user's object stands for, checked."""
    if isinstance(wanted, type) or not all(
        callable(getattr(wanted, method, None)) for method in ("encode", "decode")
    ):
        raise OptionError(
            "codec must be a name or an object with name, encode and decode, not "
            f"{describe(wanted)}"
        )
    name = getattr(wanted, "name", None)
    if (
        not isinstance(name, str)
        or not name.isascii()
        or not name.isprintable()
        or not 1 <= len(name) <= NAME_SIZE
    ):
        raise OptionError(
            f"a codec's name must be 1 to {NAME_SIZE} printable ASCII characters, not "
            f"{describe(name)}"
        )
    if name in ("data", "json", "bytes", "text", "pickle"):
        raise OptionError(f"the codec name {describe(name)} is the library's own; choose another")
    return _OwnCodec(wanted)
