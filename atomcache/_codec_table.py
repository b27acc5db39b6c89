"""The codecs that one cache can use, found by name or taken in from the user.

Who calls it: `Cache`, for itself and for each call with a codec of its own.  What may go
wrong: `OptionError` for a name that there is not, an object that is no codec, a class in
`allow` that is none, or a secret that is too short.
"""

from __future__ import annotations

from ._codecs import NAME_SIZE, AnyCodec, Bytes, Json, Text
from ._errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SHORTEST_SECRET = 16
"""Bytes: as long as an AES-128 key."""


class CodecTable:
    """The codecs that one cache can use, by name, made when first asked for.

    Parameters
    ----------
    directory
        The cache folder, which ``"pickle"`` checks before it trusts it.
    allow
        Classes that ``"data"`` admits besides Python's own.
    secret
        Key with which ``"pickle"`` signs what it stores and checks what it reads.
    """

    def __init__(self, directory: str, allow: Sequence[type], secret: bytes | None) -> None:
        if secret is not None and (type(secret) is not bytes or len(secret) < SHORTEST_SECRET):
            raise OptionError(f"secret must be at least {SHORTEST_SECRET} bytes of type bytes")
        self._directory = directory
        self._allow = allow
        self._secret = secret
        self.shared = False  # whether entries come from a bucket
        self._made: dict[str, AnyCodec] = {}

    def find(self, wanted: object) -> AnyCodec:
        """Return the codec that a name or a user's object stands for."""
        if not isinstance(wanted, str):
            from ._own_codec import adopt

            return _finish(adopt(wanted))
        codec = self._made.get(wanted)
        if codec is None:
            codec = self._made[wanted] = _finish(self._make(wanted))
        return codec

    def _make(self, name: str) -> AnyCodec:
        if name == "data":
            from ._data import Data

            return Data(self._allow)
        if name == "pickle":
            if self.shared and self._secret is None:
                raise OptionError(
                    "codec 'pickle' needs secret= where entries come from a bucket: whoever can "
                    "write there could have code run here"
                )
            from ._pickle import Pickle

            return Pickle(self._directory, self._secret)
        plain = {"bytes": Bytes, "text": Text, "json": Json}.get(name)
        if plain is not None:
            return plain()
        raise OptionError(
            f"there is no codec {name!r}; there are 'data', 'json', 'bytes', 'text', 'pickle', "
            "or pass an object with name, encode and decode"
        )


def _finish(codec: AnyCodec) -> AnyCodec:
    codec.stored_name = codec.name.encode("ascii").ljust(NAME_SIZE, b"\0")
    return codec
