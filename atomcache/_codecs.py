"""How a value becomes bytes and comes back: the plain codecs and what a codec is.

What it is for: ``"json"``, ``"bytes"`` and ``"text"`` are here; ``"data"``, the default,
is in `_data`, and ``"pickle"`` in `_pickle`.  `_own_codec` says what a codec of the
user's own looks like.

Who calls it: `_codec_table` finds them by name; the value entries pack and unpack with
them.  The reader's codec decides: an entry that another codec wrote is a miss, so no
file can choose how it is read.

What may go wrong: a value that would not come back equal, in type too, is refused with
`CodecError` when it is stored.  An error while decoding makes the entry a miss.
"""

from __future__ import annotations

from ._errors import CodecError
from ._keys import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from pickle import PickleBuffer
    from typing import Any

    from ._header import Header

    Buffer = bytes | bytearray | memoryview


NAME_SIZE = 24
"""Bytes that an entry's header keeps for the codec's name."""


class AnyCodec:
    """A codec as the entries see it: in-band payload and out-of-band buffers.

    `form` is a small number of the codec's own, stored in the header, by which it tells
    its own variants apart.
    """

    name: str
    stored_name: bytes
    guarded = False
    """Whether `check_origin` must be asked before anything is unpacked."""

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        """Return form, payload and buffers."""
        raise NotImplementedError

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        """Return the value; any exception means that the entry can't be used."""
        raise NotImplementedError

    def check_origin(
        self,
        path: str,
        found: os.stat_result,
        header: Header,
        payload: Buffer,
        buffers: Sequence[memoryview],
    ) -> None:
        """Raise unless the entry comes from somebody who may be trusted."""

    def seal(self, digest: bytes, form: int, parts: Sequence[Buffer]) -> bytes:
        """Return a proof that the parts come from a friend; empty where none is needed."""
        return b""


class Bytes(AnyCodec):
    """``"bytes"``: stores `bytes` as they are."""

    name = "bytes"

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        return 0, _exactly(bytes, value, self.name), ()

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> bytes:
        return bytes(payload)


class Text(AnyCodec):
    """``"text"``: stores `str` as UTF-8."""

    name = "text"

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        return 0, _exactly(str, value, self.name).encode("utf-8", "surrogatepass"), ()

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> str:
        return str(payload, "utf-8", "surrogatepass")


class Json(AnyCodec):
    """``"json"``: stores what JSON itself can say, and refuses to bend the rest."""

    name = "json"

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        import json

        try:
            _check_json(value)
        except RecursionError:
            raise CodecError(
                "codec 'json' can't store a value that is nested so deeply or contains "
                "itself; use the codec 'data'"
            ) from None
        try:
            return 0, json.dumps(value, separators=(",", ":")).encode(), ()
        except ValueError as error:
            raise CodecError(f"codec 'json' can't store it: {error}") from None

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        import json

        return json.loads(bytes(payload))


OUT_OF_BAND_SIZE = 16_384
"""Bytes from which a buffer is stored apart and mapped; below, copying is cheaper."""


def keep_large(buffers: list[PickleBuffer]) -> Callable[[PickleBuffer], bool]:
    """Return a buffer callback for pickle: large ones into `buffers`, others in band."""

    def callback(buffer: PickleBuffer) -> bool:
        if buffer.raw().nbytes < OUT_OF_BAND_SIZE:
            return True
        buffers.append(buffer)
        return False

    return callback


def type_name(value: object) -> str:
    """Return the full name of a value's type, for messages."""
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _exactly(wanted: type, value: Any, codec: str) -> Any:
    if type(value) is not wanted:
        raise CodecError(
            f"codec {codec!r} stores {wanted.__name__} only, but the value is "
            f"{type_name(value)}; return {wanted.__name__} or use the codec 'data'"
        )
    return value


def _check_json(value: Any) -> None:
    """Refuse what JSON would change on the way: tuples, keys that are not str, NaN."""
    kind = type(value)
    if kind is list:
        for each in value:
            _check_json(each)
    elif kind is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise CodecError(
                    f"codec 'json' would turn the dict key {describe(key)} of type "
                    f"{type_name(key)} into str; use str keys or the codec 'data'"
                )
            _check_json(each)
    elif kind is float:
        if value != value or value in (float("inf"), float("-inf")):
            raise CodecError(f"JSON has no {value!r}; use the codec 'data'")
    elif kind not in (str, int, bool) and value is not None:
        raise CodecError(
            f"codec 'json' can't store this {type_name(value)} so that it comes back as one; "
            "use list, dict, str, int, float, bool and None, or the codec 'data'"
        )
