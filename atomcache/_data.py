"""The default codec, ``"data"``: any plain value, and nothing stored can execute.

What it is for: bytes and text are stored as they are; everything else as a pickle that
can hold inert data only, which `_inert` writes and reads and which is loaded when the
first such value turns up.

Who calls it: the codec table.  What may go wrong: `CodecError` for a value that would
not come back equal, in type too.
"""

from __future__ import annotations

from ._codecs import AnyCodec
from ._errors import OptionError
from ._keys import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ._codecs import Buffer
    from ._inert import InertPickles

_PICKLED, _BYTES, _TEXT = 0, 1, 2


class Data(AnyCodec):
    """``"data"``, the default codec.

    Parameters
    ----------
    allow
        Classes of the user's own that may be stored and read back.
    """

    name = "data"

    def __init__(self, allow: Sequence[type]) -> None:
        self._allowed: dict[str, type] = {}
        for kind in allow:
            if not isinstance(kind, type):
                raise OptionError(f"allow takes classes, but {describe(kind)} is not one")
            self._allowed[f"{kind.__module__}:{kind.__qualname__}"] = kind
        self._pickles: InertPickles | None = None

    def pack(self, value: Any) -> tuple[int, Buffer, Sequence[memoryview]]:
        if type(value) is bytes:
            return _BYTES, value, ()
        if type(value) is str:
            return _TEXT, value.encode("utf-8", "surrogatepass"), ()
        return _PICKLED, *self._inert().dumps(value)

    def unpack(self, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        if form == _BYTES:
            return bytes(payload)
        if form == _TEXT:
            return str(payload, "utf-8", "surrogatepass")
        if form != _PICKLED:
            raise ValueError(f"unknown form {form}")
        return self._inert().loads(payload, buffers)

    def _inert(self) -> InertPickles:
        if self._pickles is None:
            from ._inert import InertPickles

            self._pickles = InertPickles(self._allowed)
        return self._pickles
