"""Pickles that cannot execute anything: what the codec ``"data"`` writes and admits.

What it is for: a value comes back equal, in type too, and a file that somebody else
wrote can at worst be a wrong value, never a program.  The pickles written here name no
classes and no functions but the few restorers below; the reader admits those names
and nothing else.

How: when something that is not one of Python's built-in containers is met while
pickling, its type is looked up here.  Known types are written as a call of a restorer
with plain arguments; everything else is refused then and there, with the type and the
remedy.  A restorer is an object without settable attributes: a crafted pickle that
tries to alter what it is given finds nothing to alter.

Who calls it: `_data`, when a value is neither bytes nor text.  What may go wrong:
`CodecError` while storing; any exception while reading makes the entry a miss.

Large buffers (numpy arrays, `pickle.PickleBuffer`) are handed out as they are, to be
stored out of band, and come back as views of the entry.
"""

from __future__ import annotations

import io
import pickle
from functools import cache
from types import BuiltinFunctionType, FunctionType

from ._codecs import keep_large, type_name
from ._errors import CodecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Literal

    from ._codecs import Buffer

_DEFAULT_FACTORIES = (None, list, dict, set, int, float, str, tuple, bool, bytes)
"""What a defaultdict may make: harmless, and the only callables it may hold."""


class Restorer:
    """A named function that a stored value may call while it is read."""

    __slots__ = ("_function", "_name")
    __module__ = __name__  # pickle looks it up by this module and the name

    _name: str
    _function: Callable[..., Any]

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a restorer can't be changed")

    __delattr__ = None  # type: ignore[assignment]

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce__(self) -> str:
        return self._name


@cache
def _makers() -> dict[str, Callable[..., Any]]:
    import collections
    import datetime
    import decimal
    import pathlib
    import uuid
    import zoneinfo

    return {
        "complex": complex,
        "range": range,
        "slice": slice,
        "Ellipsis": lambda: ...,
        "NotImplemented": lambda: NotImplemented,
        "OrderedDict": collections.OrderedDict,
        "defaultdict": lambda place: collections.defaultdict(_DEFAULT_FACTORIES[place]),
        "deque": lambda length: collections.deque(maxlen=length),
        "Counter": _counter,
        "datetime": datetime.datetime,
        "date": datetime.date,
        "time": datetime.time,
        "timedelta": datetime.timedelta,
        "timezone": datetime.timezone,
        "ZoneInfo": zoneinfo.ZoneInfo,
        "Decimal": decimal.Decimal,
        "Fraction": _fraction,
        "UUID": lambda number: uuid.UUID(int=number),
        "Path": pathlib.Path,
        "PurePosixPath": pathlib.PurePosixPath,
        "PureWindowsPath": pathlib.PureWindowsPath,
        "numpy.str_": lambda text: _numpy().str_(text),
        "numpy.bytes_": lambda text: _numpy().bytes_(text),
    }


def _counter(counts: dict[Any, int]) -> Any:
    import collections

    if type(counts) is not dict:
        raise ValueError("not counts")  # of a long range it would count for ever
    return collections.Counter(counts)


def _fraction(numerator: int, denominator: int) -> Any:
    import fractions

    if type(numerator) is not int or type(denominator) is not int:
        raise ValueError("not a fraction")  # of a text like "1e99999999" it would take for ever
    return fractions.Fraction(numerator, denominator)


def _numpy() -> Any:
    import numpy

    return numpy


def _restore_standard(name: str, *args: Any) -> Any:
    return _makers()[name](*args)


def _restore_array(description: Any, shape: Any, order: str, data: Any) -> Any:
    import numpy as np

    dtype = _inert_dtype(description)
    if not dtype.itemsize:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if order == "F" else "C")


def _restore_scalar(description: Any, data: bytes) -> Any:
    import numpy as np

    return np.frombuffer(data, dtype=_inert_dtype(description))[0]


def _inert_dtype(description: Any) -> Any:
    import numpy as np

    dtype = np.lib.format.descr_to_dtype(description)
    if dtype.hasobject:
        raise ValueError("a stored array must not hold Python objects")
    return dtype


STANDARD = Restorer("STANDARD", _restore_standard)
ARRAY = Restorer("ARRAY", _restore_array)
SCALAR = Restorer("SCALAR", _restore_scalar)
ALLOWED = Restorer("ALLOWED", lambda *_: None)  # each codec reads with one of its own


@cache
def _standard_reducers() -> dict[type, Callable[[Any], Any]]:
    """Return, for each type of the standard library that is admitted, how to write it."""
    import collections
    import datetime
    import decimal
    import fractions
    import pathlib
    import uuid
    import zoneinfo

    def call(name: str, args: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
        return lambda value: (STANDARD, (name, *args(value)))

    def moment(value: Any) -> Any:
        return STANDARD, (type(value).__name__, *value.__reduce_ex__(5)[1])

    def path(value: Any) -> Any:
        name = "Path" if isinstance(value, pathlib.Path) else type(value).__name__
        return STANDARD, (name, str(value))

    def zone(value: Any) -> Any:
        if value.key is None:
            raise CodecError("codec 'data' can't store a ZoneInfo that was read from a file")
        return STANDARD, ("ZoneInfo", value.key)

    def default_dict(value: Any) -> Any:
        factory = value.default_factory
        if factory not in _DEFAULT_FACTORIES:
            raise CodecError(
                f"codec 'data' can't store a defaultdict that calls {factory!r}; store a dict"
            )
        place = _DEFAULT_FACTORIES.index(factory)
        return STANDARD, ("defaultdict", place), None, None, iter(value.items())

    singles = {type(one): repr(one) for one in (..., NotImplemented)}
    return {
        complex: call("complex", lambda v: (v.real, v.imag)),
        range: call("range", lambda v: (v.start, v.stop, v.step)),
        slice: call("slice", lambda v: (v.start, v.stop, v.step)),
        **{kind: call(name, lambda v: ()) for kind, name in singles.items()},
        collections.OrderedDict: lambda v: (
            STANDARD,
            ("OrderedDict",),
            None,
            None,
            iter(v.items()),
        ),
        collections.deque: lambda v: (STANDARD, ("deque", v.maxlen), None, iter(v)),
        collections.Counter: call("Counter", lambda v: (dict(v),)),
        collections.defaultdict: default_dict,
        datetime.datetime: moment,
        datetime.date: moment,
        datetime.time: moment,
        datetime.timedelta: call("timedelta", lambda v: (v.days, v.seconds, v.microseconds)),
        datetime.timezone: call("timezone", lambda v: v.__getinitargs__()),
        zoneinfo.ZoneInfo: zone,
        decimal.Decimal: call("Decimal", lambda v: (str(v),)),
        fractions.Fraction: call("Fraction", lambda v: (v.numerator, v.denominator)),
        uuid.UUID: call("UUID", lambda v: (v.int,)),
        type(pathlib.Path()): path,
        pathlib.PurePosixPath: path,
        pathlib.PureWindowsPath: path,
    }


def _reduce_numpy(value: Any) -> Any:
    """Write a numpy array or scalar, or return `None` if it is neither."""
    import numpy

    np: Any = numpy

    if type(value) is np.ndarray:
        description = _describe_dtype(value.dtype)
        order: Literal["C", "F"] = (
            "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        )
        # as bytes in memory order, because PEP 3118 has no codes for datetimes and others
        flat = np.asarray(value, order=order).ravel("K" if order == "F" else "C")
        data = pickle.PickleBuffer(flat.view(np.uint8) if flat.dtype.itemsize else flat)
        return ARRAY, (description, value.shape, order, data)
    if isinstance(value, np.str_ | np.bytes_):
        # not str(value) or bytes(value): numpy's drop NULs at the end
        plain = str.__str__(value) if isinstance(value, np.str_) else value[:].join([b"", b""])
        return STANDARD, (f"numpy.{type(value).__name__}", plain)
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        args = _describe_dtype(value.dtype), value.tobytes()
        restored = _restore_scalar(*args)
        if type(restored) is type(value) and restored.dtype == value.dtype:
            return SCALAR, args
    return None


def _describe_dtype(dtype: Any) -> Any:
    import numpy as np

    if dtype.hasobject or dtype.char == "T":
        raise CodecError(
            f"codec 'data' can't store a numpy array of dtype {dtype}: it holds Python objects; "
            "convert it to a fixed-size dtype, or use the codec 'pickle'"
        )
    try:
        description = np.lib.format.dtype_to_descr(dtype)
    except ValueError as error:
        raise CodecError(f"codec 'data' can't store the numpy dtype {dtype}: {error}") from None
    if not dtype.itemsize and np.empty((), dtype).dtype != dtype:
        raise CodecError(
            f"codec 'data' can't store the numpy dtype {dtype}, which has no bytes; store a list"
        )
    restored = np.lib.format.descr_to_dtype(description)
    if restored != dtype or (dtype.names and restored.type is not dtype.type):
        raise CodecError(
            f"codec 'data' can't store the numpy dtype {dtype} so that it comes back the same; "
            "use the codec 'pickle'"
        )
    return description


class InertPickles:
    """Writes and reads pickles of the admitted types.

    Parameters
    ----------
    allowed
        Classes of the user's own, by reference (``"module:qualified name"``).  They are
        rebuilt as pickle does it: `__new__`, then `__setstate__` or the attributes.
    """

    def __init__(self, allowed: Mapping[str, type]) -> None:
        self._allowed = allowed
        self._reducers = _standard_reducers()
        self._restorers = {
            "STANDARD": STANDARD,
            "ARRAY": ARRAY,
            "SCALAR": SCALAR,
            "ALLOWED": Restorer("ALLOWED", self._restore_allowed),
        }

    def dumps(self, value: Any) -> tuple[bytes, list[memoryview]]:
        """Return the pickle and its out-of-band buffers."""
        file = io.BytesIO()
        buffers: list[pickle.PickleBuffer] = []
        try:
            _Pickler(file, buffers, self).dump(value)
        except pickle.PicklingError as error:
            raise CodecError(str(error)) from None
        except RecursionError:
            raise CodecError(
                f"codec 'data' can't store {type_name(value)} objects nested so deeply"
            ) from None
        return file.getvalue(), [buffer.raw() for buffer in buffers]

    def loads(self, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
        """Return the value that a pickle and its buffers stand for.

        Extension codes that the program has used are answered by pickle itself, without
        `find_class`; where there are any, a pickle with one in it is refused.
        """
        import copyreg

        if copyreg._extension_cache:  # type: ignore[attr-defined]
            _refuse_extensions(payload)
        return _Unpickler(io.BytesIO(payload), buffers, self._restorers).load()

    def reduce(self, value: Any) -> Any:
        """Say how to write an object that is not one of Python's built-in containers."""
        kind = type(value)
        if kind is Restorer:
            return value.__reduce__()
        known = self._reducers.get(kind)
        if known is not None:
            return known(value)
        if kind.__module__ == "numpy":
            reduced = _reduce_numpy(value)
            if reduced is not None:
                return reduced
        reference = f"{kind.__module__}:{kind.__qualname__}"
        if self._allowed.get(reference) is kind:
            return self._reduce_allowed(reference, value)
        what = f"a {type_name(value)}"
        if isinstance(value, type | FunctionType | BuiltinFunctionType):
            what = f"{value.__module__}.{value.__qualname__}, {what},"
        raise CodecError(
            f"codec 'data' stores inert data only and can't store {what} so that it comes back "
            "safely. Return plain data, or name your own class in Cache(..., allow=[...]), or use "
            "codec='pickle'"
        )

    def _reduce_allowed(self, reference: str, value: Any) -> Any:
        import copyreg
        import enum

        if isinstance(value, enum.Enum):
            return ALLOWED, (reference, "call", (value.value,))
        reduced = value.__reduce_ex__(5)
        function, args, *rest = reduced if isinstance(reduced, tuple) else (None, ())
        fields = _fields(type(value))
        if function is copyreg.__newobj__ and args[0] is type(value):  # type: ignore[attr-defined]
            return ALLOWED, (reference, "new", args[1:], fields), *rest
        if function is copyreg.__newobj_ex__ and args[0] is type(value):  # type: ignore[attr-defined]
            return ALLOWED, (reference, "new_ex", args[1:], fields), *rest
        if function is type(value):
            return ALLOWED, (reference, "call", args), *rest
        raise CodecError(
            f"codec 'data' can't store this {type_name(value)}: its __reduce__ rebuilds it by "
            f"{function!r}, not by its own class; use codec='pickle'"
        )

    def _restore_allowed(self, reference: str, how: str, args: Any, fields: Any = None) -> Any:
        kind = self._allowed.get(reference)
        if kind is None:
            raise ValueError(f"class {reference} is not in allow=")
        if how == "call":
            return kind(*args)
        if fields != _fields(kind):
            raise ValueError(f"class {reference} has other fields than when this was stored")
        if how == "new_ex":
            return kind.__new__(kind, *args[0], **args[1])
        return kind.__new__(kind, *args)


def _fields(kind: type) -> tuple[str, ...] | None:
    """Return the names of the fields that a class declares, if it does.

    An object is rebuilt without its constructor: one of a class that has got another field since
    would come back without it.
    """
    for table in ("__dataclass_fields__", "model_fields"):  # of dataclasses, of pydantic
        found = getattr(kind, table, None)
        if isinstance(found, dict):
            return tuple(found)
    attributes = getattr(kind, "__attrs_attrs__", None)
    if attributes is not None:
        return tuple(each.name for each in attributes)
    named: tuple[str, ...] | None = getattr(kind, "_fields", None)
    return named


def _refuse_extensions(payload: Buffer) -> None:
    import pickletools

    for opcode, _, _ in pickletools.genops(bytes(payload)):
        if opcode.name in ("EXT1", "EXT2", "EXT4"):
            raise pickle.UnpicklingError("extension codes are not admitted by the codec 'data'")


class _Pickler(pickle.Pickler):
    def __init__(
        self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], pickles: InertPickles
    ) -> None:
        super().__init__(file, 5, buffer_callback=self._take_buffer)
        self._keep = keep_large(buffers)
        self._reduce = pickles.reduce
        self._of_arrays: dict[int, pickle.PickleBuffer] = {}

    def reducer_override(self, value: Any) -> Any:
        reduced = self._reduce(value)
        if type(reduced) is tuple and reduced[0] is ARRAY:
            buffer = reduced[1][3]
            self._of_arrays[id(buffer)] = buffer
        return reduced

    def _take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        if id(buffer) not in self._of_arrays:  # the user's: it would come back as bytes
            raise CodecError("codec 'data' can't store a pickle.PickleBuffer; store its bytes")
        return self._keep(buffer)


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, buffers: Sequence[memoryview], restorers: dict[str, Restorer]
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._restorers = restorers

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name in self._restorers:
            return self._restorers[name]
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted by the codec 'data'")
