"""What comes back on a hit equals what the factory returned, in type too, or was refused."""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import os
import pathlib
import pickle
import uuid
import zoneinfo
from dataclasses import dataclass

import attrs
import pydantic
import pytest

from atomcache import Cache, CodecError, OptionError

from .crew import leftovers, sleepers, until
from .test_damage import entry_of

np = pytest.importorskip("numpy")

MISS = object()


def zone(key):
    try:
        return zoneinfo.ZoneInfo(key)
    except zoneinfo.ZoneInfoNotFoundError:
        return datetime.timezone(datetime.timedelta(hours=1), "none here")


def same(one, two):
    """Tell whether two values are equal in type, all the way down, NaN and -0.0 included."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, two) and (
            one == two or (math.isnan(one) and math.isnan(two))
        )
    if isinstance(one, complex):
        return same(one.real, two.real) and same(one.imag, two.imag)
    if isinstance(one, decimal.Decimal):
        return one.as_tuple() == two.as_tuple()
    if isinstance(one, collections.deque):
        return one.maxlen == two.maxlen and same(list(one), list(two))
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        if getattr(one, "default_factory", None) is not getattr(two, "default_factory", None):
            return False
        return same(list(one.items()), list(two.items()))
    if isinstance(one, set | frozenset):
        return one == two and {*map(type, one)} == {*map(type, two)}
    if isinstance(one, slice):
        return same((one.start, one.stop, one.step), (two.start, two.stop, two.step))
    if isinstance(one, datetime.datetime | datetime.time):
        return (
            one == two
            and one.fold == two.fold
            and repr(one.tzinfo) == repr(two.tzinfo)
            and one.replace(tzinfo=None) == two.replace(tzinfo=None)
        )
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, np.generic):
        return one.dtype == two.dtype and one.tobytes() == two.tobytes()
    return one == two


def comes_back(cache, value):
    """Store a value, and assert that a hit gives the same in value and type."""
    assert cache.get_or_create("key", lambda: value) is value
    back = cache.get("key", MISS)
    assert back is not MISS, "it was stored and can't be read"
    assert same(back, value), f"{back!r} is not {value!r}"
    cache.remove("key")
    return back


UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 2, 29, 12, 30, 59, 999_999)
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    2**64,
    -(10**5000),
    0.0,
    -0.0,
    5e-324,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    "text",
    "nul\0, surrogate \ud800, emoji 😀",
    "x" * 300_000,
    b"",
    b"\0\xff" * 1000,
    b"x" * 300_000,
    bytearray(b"x"),
    bytearray(b"x" * 50_000),
    (),
    [],
    {},
    set(),
    frozenset(),
    (1,),
    (1, [2, (3, {4})]),
    [(), [], {}],
    {1: "int", "1": "str", 1.5: "float", (1, 2): "tuple", None: None, b"b": b"", frozenset(): 0},
    {"b": 1, "a": 2},
    {1, 2.5, "three", (4,)},
    frozenset({1, frozenset({2})}),
    complex(1, -2),
    complex(-0.0, float("nan")),
    range(5),
    range(10**30, 0, -7),
    slice(1, None, -1),
    slice(None),
    ...,
    NotImplemented,
    collections.OrderedDict(b=1, a=2),
    collections.defaultdict(list, a=[1]),
    collections.defaultdict(None, a=[1]),
    collections.defaultdict(int),
    collections.deque([1, 2]),
    collections.deque([1, 2], maxlen=2),
    collections.deque(maxlen=0),
    collections.Counter("hello"),
    collections.Counter(a=-1, b=0),
    MOMENT,
    MOMENT.replace(tzinfo=UTC),
    MOMENT.replace(fold=1),
    MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30))),
    MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=-1), "odd")),
    datetime.datetime(2024, 10, 27, 2, 30, tzinfo=zone("Europe/Berlin"), fold=1),
    datetime.datetime.min,
    datetime.datetime.max,
    datetime.date(2024, 2, 29),
    datetime.time(12, 30, 1, 5),
    datetime.time(1, fold=1, tzinfo=UTC),
    datetime.timedelta(days=-1, microseconds=1),
    datetime.timedelta.max,
    UTC,
    datetime.timezone(datetime.timedelta(0), "named"),
    decimal.Decimal("1.50"),
    decimal.Decimal("-0"),
    decimal.Decimal("NaN"),
    decimal.Decimal("sNaN12"),
    decimal.Decimal("-Infinity"),
    decimal.Decimal("1E+999999"),
    decimal.Decimal("1." + "3" * 100),
    fractions.Fraction(-1, 3),
    fractions.Fraction(10**40, 7),
    uuid.UUID(int=5),
    uuid.UUID(int=2**128 - 1),
    pathlib.Path("a/b"),
    pathlib.Path(),
    pathlib.PurePosixPath("/a"),
    pathlib.PureWindowsPath("C:\\a"),
]


def name_of(value):
    return f"{type(value).__name__} {ascii(value)[:25]}" if abs_ok(value) else "big int"


def abs_ok(value):
    return not isinstance(value, int) or abs(value) < 10**100


@pytest.mark.parametrize("value", VALUES, ids=name_of)
def test_the_codec_data_returns_what_was_stored_in_value_and_type(cache, value):
    comes_back(cache, value)
    comes_back(cache, [value, (value,), {"key": value}])


def test_all_of_them_together_and_nested_come_back(cache):
    comes_back(cache, {"deep": [VALUES, tuple(VALUES), dict(enumerate(VALUES))]})


@pytest.mark.parametrize("key", ["Europe/Berlin", "UTC"])
def test_a_time_zone_comes_back(cache, key):
    try:
        value = zoneinfo.ZoneInfo(key)
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("this system has no time zones")
    cache.set("key", value)
    assert cache.get("key") is value


def test_what_was_one_object_within_a_value_is_one_object_again(cache):
    inner = [1]
    cache.set("key", {"a": inner, "b": inner, "c": [1]})
    back = cache.get("key")
    assert back["a"] is back["b"]
    assert back["a"] is not back["c"]


def test_a_value_that_contains_itself_comes_back(cache):
    for value in ([], collections.deque(), collections.OrderedDict()):
        value.update(me=value) if isinstance(value, dict) else value.append(value)
        cache.set("key", value)
        back = cache.get("key")
        assert (back["me"] if isinstance(back, dict) else back[0]) is back


def test_each_hit_returns_an_object_of_its_own(cache):
    cache.set("key", {"list": [1]})
    first = cache.get("key")
    first["list"].append(2)
    first["new"] = 1
    assert cache.get("key") == {"list": [1]}


def test_none_is_a_value_like_any_other_and_a_hit(cache):
    calls = []
    for _ in range(3):
        assert cache.get_or_create("key", lambda: calls.append(1)) is None
    assert calls == [1]
    assert "key" in cache
    assert cache.get("key", "a miss") is None


@pytest.mark.parametrize("codec", ["json", "pickle"])
def test_none_is_a_hit_in_every_codec_that_can_store_it(cache, codec):
    calls = []
    for _ in range(2):
        assert cache.get_or_create("key", lambda: calls.append(1), codec=codec) is None
    assert calls == [1]


# -- numpy -----------------------------------------------------------------------------

DTYPES = [
    *("?", "i1", "u1", "<i2", ">i2", "<u4", ">i4", "<i8", ">u8", "e", "<f4", ">f4", "<f8", ">f8"),
    *("g", "<c8", ">c16", "S3", "<U2", ">U2", "V5", "<M8[ns]", ">M8[D]", "<M8[25s]", "<m8[us]"),
    *("<M8", "m8", "longlong", "ulonglong", "intc", "S1", "U1"),
    [("a", "<i4"), ("b", ">f8", (2, 3)), ("c", "U3")],
    [("a", "i1"), ("nested", [("x", "<f4"), ("y", "S2")])],
    {"names": ["a", "b"], "formats": ["i1", "<f8"], "offsets": [3, 8], "itemsize": 24},
    [(("title", "a"), "<i4")],
]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 4), (1, 1)]


def numbers(dtype, shape):
    """Return an array of any dtype, filled with bytes that mean something in each."""
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if dtype.names is None and dtype.kind in "US":
        return np.array([str(n % 10) for n in range(count)], dtype).reshape(shape)
    if dtype.kind in "biufcmM?":
        generic = np.datetime_data(dtype)[0] == "generic" if dtype.kind in "mM" else False
        plain = np.zeros(count, dtype) if generic else np.arange(count).astype(dtype)
        return plain.reshape(shape)
    flat = np.zeros(count, dtype)
    flat.view(np.uint8)[:] = np.arange(flat.nbytes) % 7 if dtype.names is None else 0
    return flat.reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arrays_of_every_inert_dtype_and_shape_come_back(cache, dtype, shape):
    value = numbers(dtype, shape)
    back = comes_back(cache, value)
    assert back.dtype.str == value.dtype.str
    assert np.array_equal(comes_back(cache, {"deep": (value,)})["deep"][0], value)


@pytest.mark.parametrize("dtype", ["V0", "S0", "U0", []], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0)], ids=str)
def test_arrays_of_items_without_bytes_come_back_or_are_refused(cache, dtype, shape):
    value = np.ndarray(shape, np.dtype(dtype))
    try:
        cache.set("key", value)
    except CodecError:
        return
    back = cache.get("key", MISS)
    assert back is not MISS, "it was stored and can't be read"
    assert (back.dtype, back.shape) == (value.dtype, value.shape)


def views():
    base = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    large = np.arange(300.0 * 200).reshape(300, 200)
    yield "C", base
    yield "Fortran", np.asfortranarray(base)
    yield "transposed", base.T
    yield "permuted", base.transpose(1, 0, 2)
    yield "reversed", base[::-1, :, ::-2]
    yield "strided", base[::2, 1:3, ::3]
    yield "column", base[:, 1, 2]
    yield "broadcast", np.broadcast_to(np.arange(5), (4, 5))
    yield "large", large
    yield "large Fortran", np.asfortranarray(large)
    yield "large transposed", large.T
    yield "large strided", large[::3, ::2]
    yield "large reversed", large[::-1]
    yield "one row Fortran", np.asfortranarray(large[:1])
    yield "unaligned", np.frombuffer(b"x" + bytes(range(80)), np.int64, offset=1)


@pytest.mark.parametrize(("name", "value"), list(views()), ids=[name for name, _ in views()])
def test_arrays_come_back_equal_whatever_their_layout(cache, name, value):
    back = comes_back(cache, value)
    assert np.array_equal(back, value)
    if value.flags.f_contiguous != value.flags.c_contiguous:
        assert back.flags.f_contiguous == value.flags.f_contiguous


SIZES = [10, 2_000, 3_000, 50_000, 1_000_000]
"""In band, just below and above 16 KiB, above what is read at once, many pages."""


@pytest.mark.parametrize("size", SIZES)
def test_a_large_array_comes_back_writable_and_writing_changes_no_entry(cache, size):
    value = np.arange(size, dtype=np.int64)
    cache.set("key", {"array": value})
    before = entry_of(cache).read_bytes()
    first = cache.get("key")["array"]
    second = cache.get("key")["array"]
    assert first.flags.writeable
    first[:] = -1
    assert np.array_equal(second, value)
    assert np.array_equal(cache.get("key")["array"], value)
    assert entry_of(cache).read_bytes() == before


@pytest.mark.parametrize("size", SIZES)
def test_a_read_only_array_comes_back_equal(cache, size):
    value = np.arange(size, dtype=np.int64)
    value.flags.writeable = False
    back = comes_back(cache, value)
    assert np.array_equal(back, value)


def test_an_array_outlives_the_entry_it_was_read_from(cache):
    value = np.arange(1_000_000)
    cache.set("key", value)
    back = cache.get("key")
    cache.set("key", np.zeros(1_000_000))
    assert np.array_equal(back, value)
    cache.clear()
    assert np.array_equal(back, value)


def test_many_large_buffers_in_one_value_come_back_aligned(cache):
    value = [np.full(17_000 + n, n, np.uint8) for n in range(20)]
    value += [np.arange(5_000 + n) for n in range(20)]
    back = comes_back(cache, value)
    assert all(each.flags.aligned for each in back)
    assert all(each.ctypes.data % 64 == 0 for each in back[20:])


SCALARS = [
    np.bool_(True),
    np.int8(-5),
    np.uint64(2**64 - 1),
    np.float16(1.5),
    np.float32(-0.0),
    np.float64(1.5),
    np.float64("nan"),
    np.longdouble(1) / 3,
    np.complex64(1 - 2j),
    np.str_("text"),
    np.bytes_(b"bytes"),
    np.datetime64("2024-02-29T12:00", "ns"),
    np.datetime64("NaT", "D"),
    np.timedelta64(-5, "D"),
    np.void(b"abc"),
    np.zeros((), "i4,f8")[()],
    np.array(5, ">i4")[()],
    np.intc(5),
]


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_numpy_scalars_come_back_in_value_and_type(cache, value):
    comes_back(cache, value)
    comes_back(cache, {"deep": [value]})


@pytest.mark.parametrize(
    "value",
    [
        np.str_(""),
        np.bytes_(b""),
        np.bytes_(b"nul\0"),
        np.str_("nul\0"),
        np.longlong(5),
        np.ulonglong(5),
        np.rec.array([(1,)], dtype=[("a", "i4")])[0],
    ],
    ids=lambda v: f"{type(v).__name__} {v!r}",
)
def test_odd_numpy_scalars_come_back_or_are_refused(cache, value):
    try:
        cache.set("key", value)
    except CodecError:
        return
    back = cache.get("key", MISS)
    assert back is not MISS, "it was stored and can't be read"
    assert type(back) is type(value)
    assert back == value


def test_a_padded_structure_comes_back_aligned_as_it_was_or_is_refused(cache):
    value = np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))
    cache.set("key", value)
    assert cache.get("key").dtype == value.dtype


# -- refused ---------------------------------------------------------------------------


@dataclass
class Record:
    x: int


class Number(int):
    pass


class Colour(enum.Enum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")
REFUSED = {
    "object": (object(), "object"),
    "function": (name_of, "function"),
    "lambda": (lambda: 1, "function"),
    "class": (dict, "type"),
    "module": (os, "module"),
    "generator": ((n for n in ()), "generator"),
    "dataclass": (Record(1), "Record"),
    "subclass of int": (Number(1), "Number"),
    "enum": (Colour.RED, "Colour"),
    "named tuple": (Pair(1, 2), "Pair"),
    "memoryview": (memoryview(b"x"), "memoryview"),
    "object array": (np.array([object()]), "object"),
    "array of mixed objects": (np.array([1, "a"], dtype=object), "object"),
    "object in a structure": (np.zeros(2, [("a", "O")]), "object"),
    "masked array": (np.ma.array([1]), "MaskedArray"),
    "dtype": (np.dtype("i4"), "dtype|DType"),
    "defaultdict of a lambda": (collections.defaultdict(lambda: 1), "defaultdict"),
    "exception": (ValueError("x"), "ValueError"),
    "file": (os.stat("."), "stat_result"),
}


def nest(value, depth):
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_codec_data_can_not_return_is_refused_by_its_type(cache, name):
    value, kind = REFUSED[name]
    for wrap in (lambda v: v, lambda v: [1, (v,)], lambda v: {"key": v}):
        with pytest.raises(CodecError, match=kind) as caught:
            cache.get_or_create("key", lambda wrap=wrap: wrap(value))
        assert isinstance(caught.value, TypeError)
        with pytest.raises(CodecError):
            cache.set("key", wrap(value))
    assert cache.get("key", MISS) is MISS
    assert leftovers(cache.directory) == []


def test_a_value_nested_too_deeply_is_refused_or_comes_back(cache):
    value = nest(1, 100_000)
    with pytest.raises(CodecError, match="deep"):
        cache.set("key", value)
    assert leftovers(cache.directory) == []


def refuse(line, cache):
    def factory():
        line.tell("building")
        line.hear("go on")
        return [object()]

    try:
        return cache.get_or_create("key", factory)
    except CodecError as error:
        return str(error)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="counts sleepers in /proc/locks")
def test_a_value_that_can_not_be_stored_is_refused_for_those_who_wait_too(crew, cache):
    builder = crew.start(refuse, cache)
    builder.hear("building")
    for _ in range(3):
        crew.start(refuse, cache)
    claim = f"{entry_of(cache)}.temp"
    until(lambda: sleepers(claim) == 3, "all waiters sleep")
    builder.tell("go on")
    answers = crew.results()
    assert len(set(answers)) == 1
    assert "object" in answers[0]
    assert leftovers(cache.directory) == []


# -- classes of one's own, as they change -------------------------------------------------


def of_dataclasses(*fields):
    return dataclasses.make_dataclass("Invoice", [(field, int, 7) for field in fields])


def of_slots(*fields):
    return dataclasses.make_dataclass("Invoice", [(field, int, 7) for field in fields], slots=True)


def of_attrs(*fields):
    return attrs.make_class("Invoice", {field: attrs.field(default=7) for field in fields})


def of_pydantic(*fields):
    return pydantic.create_model("Invoice", **dict.fromkeys(fields, (int, 7)))


def of_tuples(*fields):
    return collections.namedtuple("Invoice", fields, defaults=[7] * len(fields))


@pytest.mark.parametrize(
    "make", [of_dataclasses, of_slots, of_attrs, of_pydantic, of_tuples], ids=lambda m: m.__name__
)
def test_an_object_of_a_class_that_has_got_another_field_is_built_anew(tmp_path, make, caplog):
    def cache(*fields):
        kind = make(*fields)
        kind.__module__, kind.__qualname__ = "shop", "Invoice"
        cache = Cache(tmp_path / "cache", allow=[kind])
        return cache.get_or_create("key", kind)

    assert cache("n").n == 7
    assert cache("n").n == 7
    assert [each for each in caplog.records if "anew" in each.getMessage()] == []
    assert cache("n", "total").total == 7
    [said] = [each.getMessage() for each in caplog.records if "anew" in each.getMessage()]
    assert "shop:Invoice" in said


def test_a_dtype_of_records_is_refused_as_it_would_come_back_as_another(cache):
    records = np.rec.fromarrays([[1, 2], [3, 4]], names="a,b").view(np.ndarray)
    records = np.array(records, dtype=np.dtype((np.record, records.dtype)))
    assert records.dtype.type is np.record
    with pytest.raises(CodecError, match="dtype"):
        cache.set("key", records)


def test_who_does_not_allow_a_class_is_told_which(tmp_path, caplog):
    Cache(tmp_path / "cache", allow=[Record]).set("key", Record(1))
    assert Cache(tmp_path / "cache").get("key") is None
    assert "Record is not in allow=" in caplog.text


def test_who_asks_with_another_codec_is_told_why_it_is_built_anew(cache, caplog):
    cache.get_or_create("key", lambda: "value", codec="text")
    assert cache.get_or_create("key", lambda: "anew", codec="json") == "anew"
    [said] = [each.getMessage() for each in caplog.records]
    assert "codec 'text' is not read by codec 'json'" in said


# -- json, bytes, text, pickle ---------------------------------------------------------

JSON = [None, True, 1, 10**30, -1.5, "text \0 \ud800 😀", [], {}, [1, [2.0, {"a": None}]], -0.0]


@pytest.mark.parametrize("value", JSON, ids=ascii)
def test_the_codec_json_returns_what_was_stored_in_value_and_type(tmp_path, value):
    comes_back(Cache(tmp_path / "cache", codec="json"), value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ((1,), "tuple"),
        ([(1,)], "tuple"),
        ({1: 2}, "int"),
        ({None: 2}, "NoneType"),
        ({"a": [{True: 1}]}, "bool"),
        (float("nan"), "nan"),
        ([float("inf")], "inf"),
        ({"a": float("-inf")}, "inf"),
        ({1}, "set"),
        (b"bytes", "bytes"),
        (Number(1), "Number"),
        (MOMENT, "datetime"),
        (np.float64(1), "float64"),
        (nest(1, 100_000), "deep"),
    ],
    ids=lambda each: ascii(each)[:20] if not isinstance(each, list) else "list",
)
def test_the_codec_json_refuses_what_it_would_change(tmp_path, value, told):
    cache = Cache(tmp_path / "cache", codec="json")
    with pytest.raises(CodecError, match=told):
        cache.get_or_create("key", lambda: value)
    assert cache.get("key", MISS) is MISS
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
def test_the_codecs_bytes_and_text_return_exactly_what_was_stored(cache, size):
    for codec, value in (("bytes", os.urandom(size)), ("text", ("é\0\ud800\r\n" * size)[:size])):
        cache.set("key", value, codec=codec)
        back = cache.get("key", codec=codec)
        assert type(back) is type(value)
        assert back == value


@pytest.mark.parametrize(
    ("codec", "value", "kind"),
    [
        ("bytes", "text", "str"),
        ("bytes", bytearray(b"x"), "bytearray"),
        ("bytes", None, "NoneType"),
        ("bytes", memoryview(b"x"), "memoryview"),
        ("text", b"bytes", "bytes"),
        ("text", np.str_("x"), "numpy.str_"),
        ("text", 5, "int"),
    ],
)
def test_the_codecs_bytes_and_text_refuse_everything_else(cache, codec, value, kind):
    with pytest.raises(CodecError, match=kind):
        cache.set("key", value, codec=codec)
    assert cache.get("key", MISS, codec=codec) is MISS


def test_the_codec_pickle_returns_what_only_pickle_can_store(tmp_path):
    cache = Cache(tmp_path / "cache", codec="pickle")
    for value in (Record(1), Number(5), Colour.RED, Pair(1, 2), np.array([1, "a"], dtype=object)):
        cache.set("key", value)
        back = cache.get("key")
        assert type(back) is type(value)
        assert np.all(back == value)
    large = np.arange(100_000)
    cache.set("key", [large])
    cache.get("key")[0][:] = 0
    assert np.array_equal(cache.get("key")[0], large)


@pytest.mark.parametrize("value", [lambda: 1, (n for n in ()), os], ids=["lambda", "gen", "os"])
def test_the_codec_pickle_refuses_what_pickle_refuses(tmp_path, value):
    cache = Cache(tmp_path / "cache", codec="pickle")
    with pytest.raises(CodecError, match="pickle"):
        cache.set("key", value)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("writer", ["data", "json", "bytes", "text", "pickle"])
@pytest.mark.parametrize("reader", ["data", "json", "bytes", "text", "pickle"])
def test_an_entry_that_another_codec_wrote_is_a_miss(cache, writer, reader):
    value = b"x" if writer == "bytes" else "x"
    cache.set("key", value, codec=writer)
    back = cache.get("key", MISS, codec=reader)
    assert back is MISS if reader != writer else back == value


# -- codecs of one's own ---------------------------------------------------------------


class Upper:
    name = "upper-1"

    def encode(self, value):
        return value.upper().encode()

    def decode(self, payload):
        assert type(payload) is bytes
        return payload.decode().lower()


def own(**changes):
    codec = Upper()
    for name, value in changes.items():
        setattr(codec, name, value)
    return codec


@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_codec_of_ones_own_is_used_both_ways(tmp_path, size):
    cache = Cache(tmp_path / "cache", codec=Upper())
    assert cache.get_or_create("key", lambda: "a" * size) == "a" * size
    assert cache.get_or_create("key", lambda: "wrong") == "a" * size
    assert entry_of(cache).read_bytes().endswith(b"A" * size)


@pytest.mark.parametrize("name", ["x", "x" * 24, "a b!~"])
def test_a_codecs_name_may_be_up_to_24_printable_characters(cache, name):
    codec = own(name=name)
    cache.set("key", "value", codec=codec)
    assert cache.get("key", codec=codec) == "value"
    assert cache.get("key", MISS, codec=own(name="other")) is MISS
    assert [info.codec for info in cache.entries()] == [name]


BAD_NAMES = ["", "x" * 25, "é", "a\n", "\0", None, 5, b"x", "data", "json", "bytes", "pickle"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_codec_with_a_bad_name_is_an_option_error(cache, name):
    with pytest.raises(OptionError, match="codec"):
        cache.get_or_create("key", lambda: "x", codec=own(name=name))


def test_a_codec_without_encode_or_decode_or_name_or_as_a_class_is_an_option_error(cache):
    class Nameless:
        encode = decode = staticmethod(str)

    for codec in (own(encode=None), own(decode=5), Nameless(), Upper, pickle):
        with pytest.raises(OptionError, match="codec"):
            cache.get_or_create("key", lambda: "x", codec=codec)


@pytest.mark.parametrize("given", ["text", bytearray(b"x"), memoryview(b"x"), None, 5], ids=repr)
def test_a_codec_that_encodes_to_anything_but_bytes_is_refused(cache, given):
    with pytest.raises(CodecError, match=f"upper-1.*{type(given).__name__}"):
        cache.set("key", "x", codec=own(encode=lambda value: given))
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


def test_what_a_codec_raises_while_encoding_reaches_the_caller_and_leaves_nothing(cache):
    def refuse(value):
        raise TypeError("only lists")

    with pytest.raises(TypeError, match="only lists"):
        cache.get_or_create("key", lambda: "x", codec=own(encode=refuse))
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("error", [ValueError, KeyError, OSError, AssertionError, RecursionError])
def test_an_entry_that_a_codec_can_not_decode_is_told_of_and_built_anew(cache, caplog, error):
    cache.set("key", "old", codec=Upper())

    def refuse(payload):
        if payload == b"OLD":
            raise error("not mine")
        return payload.decode().lower()

    codec = own(decode=refuse)
    assert cache.get_or_create("key", lambda: "new", codec=codec) == "new"
    assert "not mine" in caplog.text
    assert cache.get_or_create("key", lambda: "wrong", codec=codec) == "new"
