"""Arrays and tables as keys.

What it is for: numpy's arrays and scalars are written down by dtype, shape and bytes, what pandas
makes by labels, types and content.  Neither is imported for the sake of a key: who has such an
object has imported them.

Who calls it: `_keys`, for objects of these packages.  What may go wrong: `NotPlain` for what is no
plain data, such as an array of items that numpy knows from elsewhere.
"""

from __future__ import annotations

from ._keys import NotPlain, zone_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def of_numpy(value: Any, kind: type) -> tuple[str, list[Any]] | None:
    """Write down an array or a scalar by dtype, shape and bytes."""
    import numpy

    if kind is numpy.busdaycalendar:  # part of pandas' offsets
        return "busdaycalendar", [value.weekmask, value.holidays]
    if not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    if value.dtype.hasobject:
        raise NotPlain(
            f"holds a {kind.__module__}.{kind.__qualname__} of dtype={value.dtype}, whose items "
            "may be anything: give it another dtype, or make a list of it"
        )
    if isinstance(value, numpy.ma.MaskedArray):
        return None
    # Classes of scalars have other names in other versions of numpy; their dtypes do not.
    form = kind.__name__ if isinstance(value, numpy.ndarray) else "scalar"
    form = "ndarray" if kind is numpy.memmap else form
    items = numpy.asarray(value)
    return "numpy", [form, _dtype(value.dtype), list(value.shape), _items(items)]


def _items(array: Any) -> Any:
    """Return the content of an array as bytes, without those that may be anything."""
    import numpy

    if array.dtype.names is not None:  # there may be bytes between the fields
        return [_items(array[name]) for name in array.dtype.names]
    if array.dtype.kind == "c":
        return [_items(array.real), _items(array.imag)]
    if array.dtype.kind == "f":
        if array.dtype.itemsize > 8:  # some bytes of a long double are not used
            return [numpy.format_float_scientific(each) for each in array.flat]
        if numpy.isnan(array).any():  # which has many forms
            array = array.copy()
            array[numpy.isnan(array)] = numpy.nan
    return array.tobytes()


def _dtype(dtype: Any) -> Any:
    """Write down a type of items, with the fields of a structure and where they stand."""
    if dtype.subdtype is not None:
        return [_dtype(dtype.subdtype[0]), list(dtype.subdtype[1])]
    if dtype.isbuiltin == 2:
        raise NotPlain(f"holds an array of {dtype}, a type that numpy knows from elsewhere")
    if dtype.names is None:
        return dtype.str
    fields = [[name, _dtype(dtype.fields[name][0]), dtype.fields[name][1]] for name in dtype.names]
    return [fields, dtype.itemsize]


def of_pandas(value: Any, kind: Any) -> tuple[str, list[Any]] | None:
    """Write down what pandas makes, by labels, types and content."""
    import pandas

    name = kind.__name__
    content: list[Any] | None = None
    if isinstance(value, pandas.DataFrame):
        columns = [_column(value.iloc[:, at]) for at in range(value.shape[1])]
        content = [value.columns, value.index, columns]
    elif isinstance(value, pandas.Series):
        content = [value.name, value.index, _column(value)]
    elif isinstance(value, pandas.RangeIndex):
        content = [value.name, value.start, value.stop, value.step]
    elif isinstance(value, pandas.MultiIndex):
        levels = [_column(value.get_level_values(at)) for at in range(value.nlevels)]
        content = [list(value.names), levels]
    elif isinstance(value, pandas.Index):
        content = [value.name, _column(value)]
    elif isinstance(value, pandas.api.extensions.ExtensionArray):
        content = [_column(pandas.Series(value))]
    elif value is pandas.NaT or value is pandas.NA:
        content = []
    elif isinstance(value, pandas.Timestamp):
        zone = None if value.tzinfo is None else zone_of(value)
        content = [value.tz_localize(None).isoformat(), value.fold, zone]
    elif isinstance(value, pandas.Timedelta):
        content = [value.isoformat()]
    elif isinstance(value, pandas.offsets.BaseOffset):
        content = [value.n, value.normalize, value.kwds]
    elif isinstance(value, pandas.Period):
        content = [str(value), value.freqstr]
    elif isinstance(value, pandas.Interval):
        content = [value.left, value.right, value.closed]
    return None if content is None else (f"pandas.{name}", content)


def _column(values: Any) -> list[Any]:
    """Return the type and content of a column or an index, as arrays wherever that can be."""
    import numpy
    import pandas

    dtype = values.dtype
    described = str(dtype)
    array = values.array
    if described == "category":
        codes = numpy.asarray(array.codes, "<i4")
        return ["category", _column(array.categories), bool(array.ordered), codes]
    if isinstance(dtype, pandas.DatetimeTZDtype):
        zone = _zone_name(dtype.tz)
        if zone is not None:  # the moments count from UTC, whatever the zone
            return [described, zone, pandas.DatetimeIndex(values).asi8]
    if isinstance(dtype, pandas.PeriodDtype):
        return [described, pandas.PeriodIndex(values).asi8]
    arrays = pandas.arrays
    if isinstance(array, arrays.IntegerArray | arrays.FloatingArray | arrays.BooleanArray):
        missing = numpy.asarray(values.isna())
        return [described, missing, values.to_numpy(dtype.numpy_dtype, na_value=0)]
    if isinstance(dtype, pandas.SparseDtype) and not dtype.subtype.hasobject:
        return [described, numpy.asarray(values)]
    if type(dtype).__module__.startswith("numpy") and not dtype.hasobject:
        return [described, values.to_numpy()]
    return [described, list(values)]


def _zone_name(zone: Any) -> str | None:
    """Name a time zone that does so itself, or has one offset; others do at each moment."""
    import datetime

    if type(zone) is datetime.timezone:
        return str(zone.utcoffset(None))
    return getattr(zone, "key", None) or getattr(zone, "zone", None)
