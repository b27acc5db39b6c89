"""Whatever Hypothesis thinks of: nothing executed, nothing torn, nothing crashes or hangs.

Values, keys and options of every kind; sequences of calls against a model in memory; and
files that say anything at all.  By default the examples are always the same ones and take
seconds; ``--thorough`` draws fifty times as many, new ones on each run.  How many there were
is shown by ``--hypothesis-show-statistics``.
"""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import fractions
import os
import pathlib
import pickle
import random
import shutil
import signal
import sys
import tempfile
import threading
import zoneinfo
from pathlib import Path

import pytest

from atomcache import (
    AtomcacheError,
    BuilderError,
    BuildTimeout,
    Cache,
    CodecError,
    EntryNameError,
    KeyTypeError,
    OptionError,
    _header,
    _inert,
)
from atomcache._door import door
from atomcache._keys import digest
from atomcache._lines import write_lines

from .crew import PATIENCE, leftovers

np = pytest.importorskip("numpy")
pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, assume, event, example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule  # noqa: E402

THOROUGH = "--thorough" in sys.argv
MISS = object()
ZONES = sorted(zoneinfo.available_timezones() & {"Europe/Berlin", "Asia/Tokyo", "UTC"})


def fuzz(examples, **more):
    """Return the settings of a test, with fifty times the examples if that was asked for."""
    return settings(
        max_examples=examples * (50 if THOROUGH else 1),
        derandomize=not THOROUGH,
        database=None,
        deadline=None,  # a machine can be busy; `bounded` tells what hangs
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **more,
    )


class HangsError(BaseException):
    """Something took too long; no ``except Exception`` may swallow it."""


@contextlib.contextmanager
def bounded(seconds=PATIENCE):
    """Fail rather than hang."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def hangs(signum, frame):
        raise HangsError(f"it hangs: no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def roof():
    """Make a folder for one example, in which nothing but the cache may turn up."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder, bounded():
        yield Path(folder)
        assert set(os.listdir(folder)) <= {"cache"}, "something was made outside the cache"


@contextlib.contextmanager
def fresh_cache(**options):
    with roof() as folder:
        yield Cache(folder / "cache", **options)


def entry_of(cache, key="key", kind=b"v"):
    return Path(cache._layout.entry(digest(kind, key)))


# -- what a value is, told apart by type all the way down ---------------------------------


def form(value, told=None):
    """Return what is equal for values of equal type and content only, NaN included.

    It is written without a look at how the library does it.  `told` says of a dict's items,
    of sets and others what a key does not distinguish; see `key_form`.
    """
    told = told or {}
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"

    def deep(each):
        return form(each, told)

    for base, special in told.items():
        if isinstance(value, base):
            return special(value, deep)
    if isinstance(value, np.ndarray | np.generic):
        dtype = value.dtype.str if value.dtype.names is None else repr(value.dtype)
        return name, dtype, value.shape, value.tobytes()
    if isinstance(value, float):
        return name, "nan" if value != value else value.hex()
    if isinstance(value, complex):
        return name, deep(value.real), deep(value.imag)
    if isinstance(value, collections.deque):
        return name, value.maxlen, tuple(map(deep, value))
    if isinstance(value, list | tuple):
        return name, tuple(map(deep, value))
    if isinstance(value, dict):
        makes = getattr(value, "default_factory", None)
        return name, makes, tuple((deep(k), deep(v)) for k, v in value.items())
    if isinstance(value, set | frozenset):
        return name, frozenset(collections.Counter(map(deep, value)).items())
    if isinstance(value, slice | range):
        return name, deep(value.start), deep(value.stop), deep(value.step)
    if isinstance(value, datetime.datetime | datetime.time):
        return name, value.replace(tzinfo=None).isoformat(), value.fold, deep(value.tzinfo)
    if isinstance(value, decimal.Decimal):
        return name, value.as_tuple()
    if isinstance(value, fractions.Fraction):
        return name, value.numerator, value.denominator
    if isinstance(value, pathlib.PurePath):
        return name, str(value)
    if isinstance(value, bytearray):
        return name, bytes(value)
    if isinstance(value, datetime.timezone | zoneinfo.ZoneInfo):
        return name, repr(value)
    assert kind.__module__ in ("builtins", "datetime", "uuid"), f"say how to tell {name} apart"
    return name, value


def offset(moment):
    zone = moment.tzinfo
    return getattr(zone, "key", None) or (zone and repr(zone.utcoffset(None)))


def items(array):
    """Return an array's content, without bytes that say nothing and with one NaN for all."""
    if array.dtype.names is not None:
        return tuple(items(array[name]) for name in array.dtype.names)
    if array.dtype.kind == "c":
        return items(array.real), items(array.imag)
    if array.dtype.kind == "f":
        return tuple("nan" if each != each else repr(each) for each in array.flat)
    return array.tobytes()


KEY_FORMS = {
    (np.ndarray, np.generic): lambda v, deep: (
        type(v).__qualname__,
        v.dtype.str if v.dtype.names is None else repr(v.dtype),
        v.shape,
        items(np.asarray(v)),
    ),
    # equal in Python, so equal keys: {1} and frozenset({1}), Path and PurePosixPath
    (set, frozenset): lambda v, deep: (
        "set",
        frozenset(collections.Counter(map(deep, v)).items()),
    ),
    pathlib.PurePath: lambda v, deep: (
        "path",
        isinstance(v, pathlib.PureWindowsPath),
        str(v),
    ),
    enum.Enum: lambda v, deep: (type(v).__qualname__, deep(v.value)),
    (datetime.datetime, datetime.time): lambda v, deep: (
        type(v).__name__,
        v.replace(tzinfo=None, fold=0).isoformat(),
        v.fold,
        offset(v),
    ),
    dict: lambda v, deep: (
        "dict",
        frozenset(collections.Counter((deep(k), deep(w)) for k, w in v.items()).items()),
    ),
}


def key_form(key):
    """Return what is equal for equal keys only."""
    if dataclasses.is_dataclass(key):
        fields = dataclasses.fields(key)
        return type(key).__qualname__, tuple(key_form(getattr(key, f.name)) for f in fields)
    return form(key, {**KEY_FORMS, (Record,): lambda v, deep: key_form(v)})


@dataclasses.dataclass(frozen=True)
class Record:
    x: object
    y: object = None


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Rights(enum.IntFlag):
    READ = 1
    WRITE = 2


class Number(int):
    pass


class Evil:
    def __reduce__(self):
        return os.abort, ()


Pair = collections.namedtuple("Pair", "a b")


# -- strategies ----------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=12)  # with NULs and lone surrogates
HUGE = st.sampled_from([63, 64, 5000, 4300]).map(lambda e: 10**e if e > 64 else 2**e)
INTS = st.integers() | HUGE | HUGE.map(lambda number: -number)
OFFSETS = st.timedeltas(
    min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)
).map(datetime.timezone)
TIME_ZONES = (
    st.none() | st.just(datetime.UTC) | OFFSETS | st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)
)
FOLDS = st.sampled_from([0, 1])
DATETIMES = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    *(st.datetimes(), TIME_ZONES, FOLDS),
)
PLAIN_PATHS = st.text(st.characters(exclude_characters="\0"), max_size=12)
PATHS = st.one_of(
    PLAIN_PATHS.map(pathlib.PurePosixPath),
    PLAIN_PATHS.map(pathlib.PureWindowsPath),
    PLAIN_PATHS.map(pathlib.Path),
)
ENDS = st.none() | st.integers()
LEAVES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 0.0, -0.0, 1.0, "", "1", b"", b"1"]),
    INTS,
    st.floats(),
    TEXTS,
    st.binary(max_size=40),
    st.complex_numbers(),
    st.builds(range, st.integers(), st.integers(), st.integers(1, 9) | st.integers(-9, -1)),
    DATETIMES,
    st.dates(),
    st.times(timezones=TIME_ZONES),
    st.timedeltas(),
    st.decimals(),
    st.sampled_from(["sNaN7", "-NaN99", "-0", "1E+999999", "1.50"]).map(decimal.Decimal),
    st.fractions(),
    st.uuids(),
    PATHS,
)
NP_DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.byte_string_dtypes(max_len=5),
    hnp.array_dtypes(max_size=3),
    st.sampled_from(["g", "G", ">U2", "<M8[25s]"]).map(np.dtype),
)
SMALL_ARRAYS = hnp.arrays(NP_DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))


@st.composite
def large_arrays(draw):
    """Arrays that are stored in band, apart, or mapped, seen from every side."""
    dtype = draw(st.sampled_from(["u1", ">i4", "f8", "c16", "M8[us]", "i2,f4", "S7"]))
    size = draw(st.sampled_from([16_383, 16_384, 16_385, 60_000, 262_144, 400_000]))
    dtype = np.dtype(dtype)
    raw = random.Random(size).randbytes(size // dtype.itemsize * dtype.itemsize)
    flat = np.frombuffer(raw, dtype)
    flat = flat[: len(flat) // 6 * 6]
    view = draw(st.integers(0, 7))
    cube = flat.reshape(2, 3, -1)
    return (
        flat.copy(),
        flat,
        cube.T,
        np.asfortranarray(cube),
        flat[::-1],
        cube[:, ::-2],
        cube.transpose(1, 0, 2),
        flat[1:],
    )[view]


SCALARS = st.one_of(
    NP_DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, ())).map(lambda array: array[()]),
    TEXTS.map(np.str_),
    st.binary(min_size=1, max_size=9).map(np.void),
    st.binary(max_size=9).map(np.bytes_),
).filter(lambda value: isinstance(value, np.generic))  # a structured one of subarrays is not
HASHABLE = st.recursive(
    LEAVES.filter(lambda value: not (isinstance(value, decimal.Decimal) and value.is_snan())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)
FACTORIES = st.sampled_from([None, list, dict, set, int, float, str, tuple, bool, bytes])


def containers(inner):
    pairs = st.lists(st.tuples(HASHABLE, inner), max_size=3)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        pairs.map(dict),
        pairs.map(collections.OrderedDict),
        st.builds(collections.defaultdict, FACTORIES, pairs),
        pairs.map(lambda items: collections.Counter(dict(items))),
        st.builds(collections.deque, st.lists(inner, max_size=4), st.none() | st.integers(0, 5)),
        st.sets(HASHABLE, max_size=3),
        st.builds(slice, inner, inner, inner),
    )


VALUE_LEAVES = st.one_of(
    LEAVES,
    st.sampled_from([..., NotImplemented]),
    st.builds(slice, ENDS, ENDS, ENDS),
    st.binary(max_size=40).map(bytearray),
    st.integers(16_000, 17_000).map(bytearray),
    st.sampled_from(ZONES).map(zoneinfo.ZoneInfo),
    OFFSETS,
    SMALL_ARRAYS,
    SCALARS,
)
VALUES = st.recursive(VALUE_LEAVES, containers, max_leaves=12)
ALIENS = st.sampled_from(
    [
        *(object(), len, form, lambda: 1, dict, os, (n for n in ()), memoryview(b"x")),
        *(Number(1), Colour.RED, Pair(1, 2), Record(1), Evil(), ValueError("x"), type(None)),
        *(np.array([object()]), np.dtype("i4"), np.zeros(1, "O,i4"), np.ma.array([1]), np.int8),
        collections.defaultdict(lambda: 1),
        sys.stderr,
        Path,
        threading.Lock(),
        iter([1]),
    ]
)


@st.composite
def odd_dtypes(draw):
    """Structures with gaps, and fields that overlap or stand in another order."""
    formats = draw(st.lists(st.sampled_from(["i1", "<i4", ">f8", "S3", "U1"]), min_size=1))
    formats = formats[:4]
    return np.dtype(
        {
            "names": [f"n{number}" for number in range(len(formats))],
            "formats": formats,
            "offsets": draw(
                st.lists(st.integers(0, 20), min_size=len(formats), max_size=len(formats))
            ),
            "itemsize": draw(st.integers(28, 40)),
        }
    )


NEARLY = st.one_of(
    st.sampled_from([np.longlong, np.ulonglong, np.intc]).map(lambda kind: kind(5)),
    odd_dtypes().map(lambda dtype: np.zeros(3, dtype)),
    odd_dtypes().map(lambda dtype: np.zeros(1, dtype)[0]),
    st.builds(lambda names: np.zeros(2, "i4,f8")[names], st.permutations(["f0", "f1"])),
    st.sampled_from(["V0", "S0", "U0"]).map(lambda dtype: np.zeros(2, dtype)),
    st.binary(max_size=30).map(pickle.PickleBuffer),
    st.integers(16_000, 17_000).map(lambda size: pickle.PickleBuffer(bytearray(size))),
    st.just(pickle.PickleBuffer(memoryview(b"abcd")[::2])),
    st.integers(10, 20_000).map(lambda depth: nest(1, depth)),
    st.integers(10, 20_000).map(lambda depth: nest(1, depth, lambda v: (v,))),
)
"""What comes back the same or is refused, as the codec likes."""


def nest(value, depth, wrap=lambda v: [v]):
    for _ in range(depth):
        value = wrap(value)
    return value


def depth_of(value):
    depth = 0
    while type(value) in (list, tuple) and value:
        value, depth = value[0], depth + 1
    return depth


def wrapped(values):
    """Put something deep inside other things."""
    wraps = [lambda v: v, lambda v: [1, (v,)], lambda v: {"key": v}, lambda v: [v, v]]
    return st.builds(lambda value, wrap: wrap(value), values, st.sampled_from(wraps))


# -- values --------------------------------------------------------------------------------


def comes_back(cache, value):
    before = form(value)
    assert cache.get_or_create("key", lambda: value) is value
    assert form(value) == before, "storing it changed it"
    back = cache.get_or_create("key", lambda: pytest.fail("it was stored and can't be read"))
    assert form(back) == before


@fuzz(110)
@given(VALUES)
def test_a_value_comes_back_equal_in_value_and_type(value):
    with fresh_cache() as cache:
        event(type(value).__name__)
        comes_back(cache, value)
        assert leftovers(cache.directory) == []


@fuzz(30)
@given(st.lists(large_arrays(), min_size=1, max_size=3), VALUES)
def test_large_arrays_among_other_things_come_back_equal(arrays, value):
    with fresh_cache() as cache:
        comes_back(cache, [value, *arrays])


@fuzz(30)
@given(wrapped(ALIENS), VALUES)
def test_a_value_that_can_not_come_back_is_refused_by_a_codec_error(alien, value):
    with fresh_cache() as cache:
        for refused in (alien, [value, alien]):
            with pytest.raises(CodecError):
                cache.get_or_create("key", lambda refused=refused: refused)
            with pytest.raises(CodecError):
                cache.set("key", refused)
        assert cache.get("key", MISS) is MISS
        assert list(cache.entries()) == []
        assert leftovers(cache.directory) == []


@fuzz(40)
@given(NEARLY)
def test_what_is_hard_to_store_comes_back_equal_or_is_refused(value):
    with fresh_cache() as cache:
        try:
            cache.set("key", value)
        except CodecError:
            event("refused")
            assert cache.get("key", MISS) is MISS
            return
        back = cache.get("key", MISS)
        assert back is not MISS, "it was stored and can't be read"
        assert type(back) is type(value)
        if depth_of(value):
            assert depth_of(back) == depth_of(value)
        else:
            assert form(back) == form(value)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
)


@fuzz(40)
@given(JSON_VALUES | VALUES, st.sampled_from(["json", "text", "bytes", "pickle"]))
def test_another_codec_returns_the_same_or_refuses_by_a_codec_error(value, codec):
    with fresh_cache(codec=codec) as cache:
        try:
            cache.set("key", value)
        except CodecError:
            assert codec != "pickle"
            return
        event(codec)
        assert form(cache.get("key", MISS)) == form(value)


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_a_number_that_json_can_not_write_is_refused_by_a_codec_error(cache, depth):
    for value in (nest(10**5000, depth), {10**5000: 1}):
        with pytest.raises(CodecError):
            cache.set("key", value, codec="json")


# -- keys ----------------------------------------------------------------------------------

KEY_LEAVES = st.one_of(
    LEAVES,
    LEAVES,
    st.binary(max_size=9).map(bytearray),
    st.builds(slice, ENDS, ENDS, ENDS),
    st.sampled_from([*Colour, *Rights, Rights.READ | Rights.WRITE, Rights(0)]),
    st.integers(0, 64).map(Rights),
    SMALL_ARRAYS,
    SCALARS,
)
KEYS = st.recursive(
    KEY_LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(st.tuples(HASHABLE, inner), max_size=3).map(dict),
        st.sets(HASHABLE, max_size=3),
        st.frozensets(HASHABLE, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner, inner),
    ),
    max_leaves=8,
)


def reordered(key):
    """Make an equal key from scratch, with dicts filled in another order."""
    kind = type(key)
    if kind in (list, tuple):
        return kind(map(reordered, key))
    if kind is Pair:
        return Pair(*map(reordered, key))
    if kind is Record:
        return Record(reordered(key.x), reordered(key.y))
    if kind is dict:
        return {reordered(k): reordered(v) for k, v in reversed(key.items())}
    if kind in (set, frozenset):
        return kind(sorted(map(reordered, key), key=repr_of, reverse=True))
    return pickle.loads(pickle.dumps(key))


def repr_of(value):
    return pickle.dumps(value)


@fuzz(90)
@given(KEYS)
@example({float("nan"): 1, float("-nan"): 2})
def test_an_equal_key_made_anew_in_another_order_leads_to_the_same_entry(key):
    again = reordered(key)
    assume(key_form(again) == key_form(key))
    assert digest(b"v", again) == digest(b"v", key)
    assert digest(b"v", key) != digest(b"p", key)


BERLIN = [datetime.time(1, tzinfo=zoneinfo.ZoneInfo(zone)) for zone in ZONES]


@fuzz(90)
@given(st.lists(KEYS, min_size=2, max_size=12))
@example([Rights(8), Rights(16), Rights(0)])
@example([datetime.time(1), *BERLIN])
@example([pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")])
@example([0, 0.0, -0.0, False, "0", b"0", None, 0j, np.int64(0), decimal.Decimal(0), "", b""])
@example([(), [], {}, set(), "", b"", bytearray(), ((),), [[]], {(): ()}, None])
@example([["a", "b"], ("a", "b"), [["a"], "b"], {"a": "b"}, {"a", "b"}, Pair("a", "b")])
@example([["tuple", [1]], (1,), ["set", [1]], {1}, {"tuple": [1]}])
@example([np.zeros(2, "i4"), np.zeros(1, "i8"), np.zeros((2, 1), "i4"), np.zeros(2, "f4")])
@example([np.str_("a"), np.str_("a\0"), np.bytes_(b"a"), np.bytes_(b"a\0"), "a", b"a"])
def test_two_keys_share_an_entry_exactly_if_they_are_equal_in_type_and_content(keys):
    entries = {}
    for key in keys:
        entries.setdefault(digest(b"v", key), []).append(key)
    for same in entries.values():
        assert len({key_form(key) for key in same}) == 1, f"one entry for {same}"
    assert len(entries) == len(set(map(key_form, keys))), "two entries for equal keys"


@fuzz(70)
@given(KEYS | st.sampled_from(["..", "/etc/passwd", "../" * 9 + "x", "C:\\x", "\0", "a/b"]))
@example("%0A\n%25\r\n\ud800")
def test_every_key_works_in_every_call_and_makes_nothing_outside_the_folder(key):
    with fresh_cache() as cache:
        assert cache.get(key, MISS) is MISS
        assert cache.get_or_create(key, lambda: 1) == 1
        cache.set(key, 2)
        assert cache.get(key) == 2
        path = cache.get_or_create_path(
            key, lambda target: target.write_text("x"), name="x", durable=False
        )
        assert cache.get_path(key) == path
        assert key in cache
        assert sorted(info.kind for info in cache.entries()) == ["path", "value"]
        with pytest.raises(ZeroDivisionError):
            cache.get_or_create(key, lambda: 1 / 0, max_age=0)
        assert cache.remove(key) is True
        assert key not in cache


@fuzz(30)
@given(wrapped(ALIENS), KEYS)
def test_a_key_that_is_not_plain_data_is_a_key_type_error(alien, key):
    inside = alien
    while type(inside) in (list, tuple, dict):
        inside = inside["key"] if type(inside) is dict else inside[-1]
    # These can be keys.
    assume(not isinstance(inside, Pair | Record | enum.Enum | collections.defaultdict))
    with fresh_cache() as cache:
        for bad in (alien, [key, alien]):
            with pytest.raises(KeyTypeError):
                cache.get_or_create(bad, lambda: 1)
            with pytest.raises(KeyTypeError):
                cache.remove(bad)
        assert not cache.directory.exists()


@fuzz(20)
@given(
    st.integers(1, 400) | st.sampled_from([1000, 100_000]),
    st.sampled_from([list, tuple, frozenset]),
    st.booleans(),
)
@example(100_000, list, False)
def test_a_deeply_nested_key_works_or_is_a_key_type_error(depth, kind, as_dict):
    assume(kind is not frozenset or depth < 1000)  # Python itself can't hash it
    key = nest(1, depth, lambda v: {"k": v} if as_dict else kind([v]))
    with fresh_cache() as cache:
        try:
            assert cache.get_or_create(key, lambda: 1) == 1
        except KeyTypeError:
            assert depth > 100
        else:
            assert cache.get(key) == 1


@fuzz(20)
@given(odd_dtypes())
def test_an_array_of_any_structure_is_a_key_or_a_key_type_error(dtype):
    with fresh_cache() as cache:
        try:
            cache.set(np.zeros(2, dtype), 1)
        except KeyTypeError:
            return
        assert cache.get(np.zeros(2, dtype)) == 1


# -- options -------------------------------------------------------------------------------


class Own:
    name = "own-1"

    def encode(self, value):
        return pickle.dumps(value)

    def decode(self, payload):
        return pickle.loads(payload)


JUNK = st.one_of(
    VALUES,
    ALIENS,
    st.floats(),
    st.timedeltas(),
    st.lists(TEXTS),
    st.lists(st.sampled_from([int, Record, Number])),
    st.sampled_from(["raise", "retry", "bypass", "data", "json", "bytes", "text", "pickle"]),
    st.sampled_from(["1MB", "1.5 gib", "nan MB", "1e999 KB", "-1", "0.5", "\u0661 kb", "1 MB x"]),
    st.sampled_from([5e-324, 1e10, 1e19, 1e300, datetime.timedelta.max, 10**400]),
    st.sampled_from([Own(), Own, np.array([1, 2]), b"x" * 16]),
)
CALL_OPTIONS = ["max_age", "timeout", "on_error", "on_store_error", "codec", "durable", "tags"]
EDGES = [("max_age", 1e300), ("timeout", 1e300), ("tags", ("\ud800",)), ("tags", dict)]


def examples_of(edges):
    def decorate(test):
        for edge in edges:
            test = example(*edge)(test)
        return test

    return decorate


def works(cache, codec=None, key="key", **options):
    """Use a cache, or call with options, that were accepted."""
    value = {"bytes": b"1", "text": "1"}.get(codec if isinstance(codec, str) else "", [1])
    if codec is not None:
        options["codec"] = codec
    assert cache.get_or_create(key, lambda: value, **options) == value
    assert cache.get(key, value, **options) == value
    cache.set(key, value, **options)
    for _ in range(2):
        path = cache.get_or_create_path(key, Path.touch, name="x", **options)
        assert path.is_file()
    assert cache.get_path(key, path, **options) == path
    assert len(list(cache.entries())) == 2
    assert cache.reap() == 0
    assert cache.clear() == 2


@fuzz(110)
@given(st.sampled_from(CALL_OPTIONS), JUNK)
@examples_of(EDGES)
def test_any_option_of_a_call_is_an_option_error_or_works(name, junk):
    with fresh_cache(durable=False) as cache:
        calls = [
            lambda **o: cache.get("key", **o),
            lambda **o: cache.get_path("key", **o),
            lambda **o: cache.get_or_create("key", lambda: pytest.fail("called"), **o),
            lambda **o: cache.get_or_create_path("k", lambda t: pytest.fail("c"), name="x", **o),
            lambda **o: cache.set("key", 1, **o),
        ]
        try:
            cache.get("key", **{name: junk})
        except OptionError:
            for call in calls:
                with pytest.raises(OptionError):
                    call(**{name: junk})
            assert not cache.directory.exists()
        else:
            event(f"{name} accepted")
            works(cache, **{name: junk})


@fuzz(110)
@given(st.sampled_from([*CALL_OPTIONS, "allow", "secret", "shared", "lease", "memory"]), JUNK)
@examples_of([*EDGES, ("lease", 5e-324), ("tags", {"a": 1}.keys())])
def test_any_option_of_a_cache_is_an_option_error_or_works_in_all_later_calls(name, junk):
    with roof() as folder:
        try:
            cache = Cache(folder / "cache", **{"durable": False, name: junk})
        except OptionError:
            assert os.listdir(folder) == []
        else:
            event(f"{name} accepted")
            works(cache, **({"codec": junk} if name == "codec" else {}))
            if name != "codec" or isinstance(junk, str):
                works(pickle.loads(pickle.dumps(cache)), **{name: junk} if name == "codec" else {})


@fuzz(40)
@given(JUNK | PLAIN_PATHS)
@example("\udc80")
def test_any_directory_is_an_option_error_or_works(junk):
    with roof() as folder:
        try:
            cache = Cache(junk)
            assert cache.directory.is_absolute()
        except OptionError:
            return
        part = os.fspath(junk).replace("/", "_")
        if len(os.fsencode(part)) < 200:
            works(Cache(folder / "cache" / f"_{part}", durable=False))


@pytest.mark.parametrize("depth", [0, 1, 100_000])
@pytest.mark.parametrize(
    "name", [*CALL_OPTIONS, "allow", "secret", "shared", "lease", "memory", "directory"]
)
def test_an_option_that_can_not_even_be_printed_is_an_option_error(tmp_path, name, depth):
    junk = nest(10**5000, depth)
    with pytest.raises(OptionError):
        Cache(**{"directory": tmp_path / "cache", name: junk})
    if name in CALL_OPTIONS:
        with pytest.raises(OptionError):
            Cache(tmp_path / "cache").get("key", **{name: junk})


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_a_key_that_can_not_even_be_printed_works(cache, depth):
    key = nest(10**5000, depth)
    works(cache, key=key)
    assert cache.get_or_create(key, lambda: 1) == 1


@fuzz(30)
@given(st.dictionaries(TEXTS.filter(lambda name: name not in CALL_OPTIONS), JUNK, min_size=1))
def test_an_option_that_does_not_exist_is_an_option_error(options):
    assume(not {"key", "default", "self", "value", "factory"} & set(options))
    with fresh_cache() as cache:
        with pytest.raises(OptionError):
            cache.get("key", **options)
        with pytest.raises(OptionError):
            cache.set("key", 1, **options)


@fuzz(30)
@given(JUNK)
@example(np.array(["x", "x"]))
def test_any_name_of_a_path_is_an_entry_name_error_or_works(junk):
    with fresh_cache(durable=False) as cache:
        for name in (junk, "x", junk, junk * 30 if isinstance(junk, str) else junk):
            try:
                path = cache.get_or_create_path("key", Path.touch, name=name)
            except EntryNameError:
                continue
            assert path == cache.get_path("key")
            assert path.name == name
            assert path.parent == entry_of(cache, kind=b"p")
            cache.clear()


@fuzz(20)
@given(
    st.floats(PATIENCE, allow_infinity=True)
    | st.timedeltas(min_value=datetime.timedelta(seconds=PATIENCE)),
    st.booleans(),
)
@example(1e10, True)
@example(1e300, False)
@example(datetime.timedelta.max, True)
@example(datetime.timedelta.max, False)
def test_a_timeout_of_any_length_is_waited_with(timeout, other_cache):
    building, go_on = threading.Event(), threading.Event()

    def build():
        building.set()
        assert go_on.wait(PATIENCE)
        return "built"

    with fresh_cache() as cache:
        builder = threading.Thread(target=cache.get_or_create, args=("key", build))
        builder.start()
        assert building.wait(PATIENCE)
        threading.Timer(0.02, go_on.set).start()
        asked = Cache(cache.directory) if other_cache else cache
        try:
            assert asked.get_or_create("key", lambda: "wrong", timeout=timeout) == "built"
        finally:
            go_on.set()
            builder.join()


# -- sequences of calls against a model -----------------------------------------------------

FEW_KEYS = st.sampled_from(["a", 1, 1.0, True, "1", b"a", ("a",), ["a"], {"a": 1}])
FEW_VALUES = st.sampled_from([None, 0, False, "text", b"bytes", [1, (2,)], {"k": {1}}, 0.5])
CODECS = st.sampled_from(["data", "data", "data", "pickle", "own"])
OWN = Own()
NAMES = st.sampled_from(["x", "x", "x", "y"])


class AsADict(RuleBasedStateMachine):
    """Two caches on one folder, fresh ones and pickled copies, and a dict that says what is."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="fuzz")
        self.directory = os.path.join(self.folder, "cache")
        self.caches = [
            Cache(self.directory, durable=False, memory=memory) for memory in (None, "1MB")
        ]
        self.values = {}  # key's form: (value, codec, tag, expired)
        self.paths = {}  # key's form: (name, content or files, expired)
        self.built = 0

    def teardown(self):
        shutil.rmtree(self.folder)

    def cache(self, which):
        if which == 2:
            return Cache(self.directory, durable=False)
        if which == 3:
            return pickle.loads(pickle.dumps(self.caches[1]))
        return self.caches[which]

    def present(self, key, codec):
        value, stored, _, expired = self.values.get(key_form(key), (None, None, None, True))
        return (value,) if stored == codec and not expired else ()

    WHICH = st.integers(0, 3)

    @rule(
        which=WHICH,
        key=FEW_KEYS,
        value=FEW_VALUES,
        codec=CODECS,
        age=st.sampled_from([None, None, None, 0, 1000]),
        tag=st.sampled_from(["", "t", "%0A\n"]),
        fails=st.sampled_from([False, False, False, True]),
    )
    def get_or_create(self, which, key, value, codec, age, tag, fails):
        calls = []

        def factory():
            calls.append(1)
            if fails:
                raise ZeroDivisionError("as planned")
            return value

        options = {
            "codec": OWN if codec == "own" else codec,
            "tags": [tag] if tag else [],
            "max_age": age,
        }
        there = self.present(key, codec) if age != 0 else ()
        ask = self.cache(which).get_or_create
        if fails and not there:
            with pytest.raises(ZeroDivisionError, match="as planned"):
                ask(key, factory, **options)
        else:
            expected = there[0] if there else value
            assert form(ask(key, factory, **options)) == form(expected)
            if not there:
                self.values[key_form(key)] = (value, codec, tag, age == 0)
        assert len(calls) == (0 if there else 1)

    @rule(which=WHICH, key=FEW_KEYS, codec=CODECS)
    def get(self, which, key, codec):
        found = self.cache(which).get(key, MISS, codec=OWN if codec == "own" else codec)
        there = self.present(key, codec)
        assert form(found) == form(there[0]) if there else found is MISS

    @rule(which=WHICH, key=FEW_KEYS, value=FEW_VALUES, codec=CODECS)
    def set(self, which, key, value, codec):
        self.cache(which).set(key, value, codec=OWN if codec == "own" else codec)
        self.values[key_form(key)] = (value, codec, "", False)

    @rule(which=WHICH, key=FEW_KEYS)
    def set_what_can_not_be_stored(self, which, key):
        with pytest.raises(CodecError):
            self.cache(which).set(key, [object()])

    @rule(which=WHICH, key=FEW_KEYS)
    def ask_a_factory_for_its_own_result(self, which, key):
        cache = self.cache(which)
        with pytest.raises(AtomcacheError, match="own result"):
            cache.get_or_create(key, lambda: cache.get_or_create(key, int, max_age=0), max_age=0)

    @rule(
        which=WHICH,
        key=FEW_KEYS,
        name=NAMES,
        age=st.sampled_from([None, None, None, 0, 1000]),
        makes=st.sampled_from(["file", "folder", "nothing", "error", "link"]),
    )
    def get_or_create_path(self, which, key, name, age, makes):
        calls = []
        self.built += 1
        content = f"{makes} {self.built}"

        def build(target):
            calls.append(1)
            (target.parent / "rubbish").mkdir()
            if makes == "file":
                target.write_text(content)
            elif makes == "folder":
                (target / "deep").mkdir(parents=True)
                (target / "deep" / "file").write_text(content)
            elif makes == "link":
                target.symlink_to(__file__)
            elif makes == "error":
                target.write_text("half of ")
                raise ZeroDivisionError("as planned")

        known = self.paths.get(key_form(key))
        there = known is not None and known[0] == name and not known[2] and age != 0

        def ask():
            return self.cache(which).get_or_create_path(key, build, name=name, max_age=age)

        if known is not None and known[0] != name:
            with pytest.raises(EntryNameError):
                ask()
            assert calls == []
        elif there or makes in ("file", "folder"):
            path = ask()
            assert path.name == name
            assert self.content(path) == (known[1] if there else content)
            assert len(calls) == (0 if there else 1)
            if not there:
                self.paths[key_form(key)] = (name, content, age == 0)
        else:
            with pytest.raises(ZeroDivisionError if makes == "error" else BuilderError):
                ask()
            assert calls == [1]

    @staticmethod
    def content(path):
        assert set(os.listdir(path.parent)) == {path.name, ".atomcache"}
        return (path / "deep" / "file" if path.is_dir() else path).read_text()

    @rule(which=WHICH, key=FEW_KEYS)
    def get_path(self, which, key):
        path = self.cache(which).get_path(key)
        name, content, expired = self.paths.get(key_form(key), (None, None, True))
        if expired:
            assert path is None
        else:
            assert (path.name, self.content(path)) == (name, content)

    @rule(which=WHICH, key=FEW_KEYS)
    def contains(self, which, key):
        path = self.paths.get(key_form(key))
        there = bool(self.present(key, "data")) or (path is not None and not path[2])
        assert (key in self.cache(which)) is there

    @rule(which=WHICH, key=FEW_KEYS)
    def remove(self, which, key):
        value = self.values.pop(key_form(key), None)
        path = self.paths.pop(key_form(key), None)
        assert self.cache(which).remove(key) is (value is not None or path is not None)

    @rule(which=WHICH, really=st.sampled_from([False, False, True]))
    def clear(self, which, really):
        if really:
            assert self.cache(which).clear() == len(self.values) + len(self.paths)
            self.values.clear()
            self.paths.clear()

    @rule()
    def delete_the_whole_cache(self):
        if len(self.values) + len(self.paths) > 4:
            shutil.rmtree(self.directory)
            self.values.clear()
            self.paths.clear()

    @rule(which=WHICH)
    def entries(self, which):
        listed = list(self.cache(which).entries())
        values = [info for info in listed if info.kind == "value"]
        paths = [info for info in listed if info.kind == "path"]
        codecs = [{"own": "own-1"}.get(codec, codec) for _, codec, _, _ in self.values.values()]
        assert sorted(info.codec for info in values) == sorted(codecs)
        tags = [(tag,) if tag else () for _, _, tag, _ in self.values.values()]
        assert sorted(info.tags for info in values) == sorted(tags)
        names = [name for name, _, _ in self.paths.values()]
        assert sorted(info.path.name for info in paths) == sorted(names)
        assert all(info.path.exists() and info.size >= 0 for info in listed)

    @rule(which=WHICH)
    def reap(self, which):
        assert self.cache(which).reap() == 0

    @invariant()
    def nothing_is_left_over(self):
        assert leftovers(self.folder) == []
        assert set(os.listdir(self.folder)) <= {"cache"}


AsADict.TestCase.settings = fuzz(40, stateful_step_count=40)


class TestACacheBehavesAsADictThatBuildsWhatIsMissing(AsADict.TestCase):
    pass


# -- files that say anything ----------------------------------------------------------------

OLD = {"name": "old", "numbers": [1, 2.5, None], "when": (1, 2)}


@st.composite
def mutations(draw, strange=b""):
    """Return a function that damages bytes in up to three ways, perhaps in none."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["cut", "flip", "put", "insert", "delete", "zero", "append"]),
                st.floats(0, 1, exclude_max=True),
                st.binary(min_size=1, max_size=40) | st.just(strange),
                st.integers(0, 7),
            ),
            min_size=1,
            max_size=3,
        )
    )

    def damage(content):
        for what, where, put, bit in steps:
            at = int(where * len(content))
            if what == "cut":
                content = content[:at]
            elif what == "flip" and content:
                flipped = bytes([content[at] ^ (1 << bit)])
                content = content[:at] + flipped + content[at + 1 :]
            elif what == "put":
                content = content[:at] + put + content[at + len(put) :]
            elif what == "insert":
                content = content[:at] + put + content[at:]
            elif what == "delete":
                content = content[:at] + content[at + len(put) :]
            elif what == "zero":
                content = content[:at] + bytes(len(content[at : at + len(put)]))
            elif what == "append":
                content += put
        return content

    return damage


STORED = st.one_of(
    *(st.just(OLD), st.just("text"), st.just(b""), VALUES),
    large_arrays().map(lambda array: {"array": array, "more": [1]}),
)


@fuzz(110)
@given(STORED, mutations())
def test_a_damaged_entry_is_built_anew_and_never_returned(value, damage):
    with fresh_cache() as cache:
        cache.set("key", value)
        file = entry_of(cache)
        whole = file.read_bytes()
        changed = damage(whole)
        file.write_bytes(changed)
        expected = value if changed == whole else "new"
        assert form(cache.get("key", "new")) == form(expected)
        assert len(list(cache.entries())) in (0, 1)
        assert form(cache.get_or_create("key", lambda: "new")) == form(expected)
        assert form(cache.get_or_create("key", lambda: "wrong")) == form(expected)
        assert [info.key for info in cache.entries()] == ["key"]
        assert leftovers(cache.directory) == []


@fuzz(30)
@given(st.lists(st.tuples(STORED, st.floats(0, 1)), min_size=2, max_size=4), st.randoms())
def test_entries_that_changed_places_or_were_spliced_are_built_anew(stored, dice):
    with fresh_cache() as cache:
        files = []
        for number, (value, _) in enumerate(stored):
            cache.set(number, value)
            files.append(entry_of(cache, number))
        whole = [file.read_bytes() for file in files]
        order = list(range(len(stored)))
        dice.shuffle(order)
        for number, other in enumerate(order):
            at = int(stored[number][1] * len(whole[number]))
            spliced = (
                whole[number][:at] + whole[other][at:] if dice.random() < 0.5 else whole[other]
            )
            files[number].write_bytes(spliced)
            expected = stored[number][0] if spliced == whole[number] else "new"
            assert form(cache.get_or_create(number, lambda: "new")) == form(expected)
        assert len(list(cache.entries())) == len(stored)


FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen"),
    *("pickle.find_class", "marshal.loads", "ctypes.dlopen", "socket.connect", "code.__new__"),
)
_heard = None


def _listen(name, args):
    if _heard is not None and name in FORBIDDEN:
        _heard.append((name, args))


sys.addaudithook(_listen)


@contextlib.contextmanager
def nothing_executed():
    """Hear of all that pickles could do by naming a function, and of memory bombs."""
    global _heard
    _heard = []
    try:
        with little_memory():
            yield
        assert _heard == []
    finally:
        _heard = None


@contextlib.contextmanager
def little_memory(more=1 << 30):
    """Have what asks for endless memory fail, rather than take the machine down."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def text_op(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def global_op(module, name):
    return text_op(module) + text_op(name) + b"\x93"


SOUP = st.lists(
    st.one_of(
        st.sampled_from([bytes([code]) for code in b"(02.1NQRXabdeothlsu})]\x81\x85\x86\x87\x88"]),
        st.sampled_from([bytes([code]) for code in b"\x89\x8f\x90\x91\x92\x93\x94\x97\x98RRRb("]),
        st.sampled_from(["STANDARD", "ARRAY", "SCALAR", "ALLOWED", "pickle", "io"]).map(
            lambda name: global_op(_inert.__name__, name)
        ),
        st.sampled_from([("os", "system"), ("builtins", "eval"), ("io", "open")]).map(
            lambda names: global_op(*names)
        ),
        st.sampled_from([*_inert._makers(), "<i4", "C", "touch executed", "|O"]).map(text_op),
        st.sampled_from(
            [b"cos\nsystem\n", b"cbuiltins\nexec\n", b"ios\nsystem\n", b"h\0", b"q\0"]
        ),
        st.integers(0, 255).map(lambda number: b"K" + bytes([number])),
        st.binary(max_size=6),
        st.builds(
            lambda name, kind, count: (
                global_op(_inert.__name__, name)
                + text_op(kind)
                + b"".join(b"K" + bytes([n]) for n in range(count))
                + {0: b"\x85", 1: b"\x86", 2: b"\x87"}[count]
                + b"R"
            ),
            st.sampled_from(["STANDARD", "ARRAY", "SCALAR", "ALLOWED"]),
            st.sampled_from([*_inert._makers(), "<i4", "nothing"]),
            st.integers(0, 2),
        ),
    ),
    max_size=25,
).map(lambda parts: b"\x80\x05" + b"".join(parts) + b".")
TIMES = st.one_of(st.just(_header.NEVER), st.floats(), st.just(0.0))


@fuzz(180)
@given(
    payload=SOUP
    | st.binary(max_size=60)
    | VALUES.filter(lambda v: v is not ...).map(lambda v: pickle.dumps(v, 5)),
    form_number=st.integers(0, 3),
    codec=st.sampled_from(["data", "data", "data", "json", "text", "bytes"]),
    created=TIMES,
    expires=TIMES,
    took=TIMES,
    meta=st.lists(st.tuples(st.sampled_from(["key", "name", "tag", "x"]), TEXTS), max_size=3),
    buffers=st.lists(st.binary(max_size=100), max_size=2),
    max_age=st.sampled_from([None, 0, 1000]),
)
def test_a_forged_entry_with_right_checksums_never_executes_nor_crashes(
    payload, form_number, codec, created, expires, took, meta, buffers, max_age
):
    new = b"new" if codec == "bytes" else "new"
    with fresh_cache(codec=codec) as cache:
        cache.set("key", new)
        parts = _header.assemble(
            digest=digest(b"v", "key"),
            codec=codec.encode().ljust(24, b"\0"),
            form=form_number,
            created=created,
            expires=expires,
            took=took,
            meta=meta,
            payload=payload,
            buffers=list(map(memoryview, buffers)),
            seal=bytes(32),
        )
        entry_of(cache).write_bytes(b"".join(parts))
        with nothing_executed():
            found = cache.get("key", MISS, max_age=max_age)
            event("a miss" if found is MISS else f"read as {type(found).__name__}")
            list(cache.entries())
            if found is MISS:
                assert cache.get_or_create("key", lambda: new, max_age=max_age) == new
            else:
                cache.get_or_create("key", lambda: new, max_age=max_age)
        assert cache.remove("key") is True
        assert leftovers(cache.directory) == []


JUNK_FIELDS = st.one_of(
    TEXTS,
    st.sampled_from(["", "-1", "nan", "inf", "-inf", "1e308", "0x1", "1_0", "9" * 5000, "\u0661"]),
    st.sampled_from(["../../x", "/etc", "a/b", "\0", "\0.temp", "x" * 5000 + ".temp", "%0A", "%"]),
)
TOKENS = st.sampled_from(["0123456789abcdef", "00", "f" * 16])


@st.composite
def claims(draw, directory_device=None):
    """Return what a claim may hold: a record with changes, a damaged one, or anything."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=200))
    lease = draw(st.sampled_from(["0.05", "0.1", "nan", "-1", "", "x", "inf", "1e99", "9" * 400]))
    fields = {
        "token": draw(TOKENS),
        "pid": "1",
        "host": "elsewhere",
        "boot": draw(st.sampled_from([door.boot_id(), "another"])),
        "device": draw(st.sampled_from([directory_device or "5", "5"])),
        "locked": draw(st.sampled_from("01")),
        "started": "1.5",
        "what": "the value of key x",
        "signed": "1",
    }
    more = st.sampled_from([*fields, "waits-for", "failure"])
    fields |= draw(st.dictionaries(more, JUNK_FIELDS | st.just("x.temp"), max_size=3))
    text = write_lines(fields.items())
    if draw(st.booleans()):
        text = draw(mutations())(text)
    text = text.replace(b"lease", b"")  # or a damaged one might be rightly waited for
    return b"\n" + write_lines([("lease", lease)]) + text


def plant_claim(cache, key, content):
    claim = Path(f"{entry_of(cache, key)}.temp")
    cache._layout.make_room(str(entry_of(cache, key)))
    claim.write_bytes(content)
    return claim


DEVICE = str(os.stat(tempfile.gettempdir()).st_dev)


@fuzz(20)
@given(
    st.lists(claims(DEVICE), min_size=1, max_size=6),
    st.lists(st.tuples(TOKENS | st.just("abc00"), st.none() | st.binary()), max_size=3),
    st.booleans(),
)
def test_whatever_dead_claims_and_scratch_say_values_are_built_and_all_is_reaped(
    contents, scratch, as_path
):
    with fresh_cache(lease=0.2) as cache, nothing_executed():
        cache.set("healthy", 1)
        for number, content in enumerate(contents):
            claim = plant_claim(cache, number, content)
            for token, inside in scratch:
                rest = Path(f"{claim}.{token}")
                if rest.exists():
                    continue
                if inside is None:
                    (rest / "folder").mkdir(parents=True)
                else:
                    rest.write_bytes(inside)
        plant_claim(cache, "path", contents[0])
        with contextlib.suppress(BuildTimeout):  # says who is building, whatever is written there
            cache.get_or_create(0, lambda: "built", timeout=0)
        assert cache.get_or_create(0, lambda: "built", timeout=10) == "built"
        for number in range(len(contents)):
            with contextlib.suppress(FileNotFoundError):
                os.utime(f"{entry_of(cache, number)}.temp", (1, 1))
        cache.reap()
        left = leftovers(cache.directory)
        assert [file for file in left if str(entry_of(cache, "path")) not in file] == []
        for number in range(len(contents)):
            assert cache.get_or_create(number, lambda: "built", timeout=10) == "built"
        assert cache.get("healthy") == 1
        assert len(list(cache.entries())) == len(contents) + 1


@pytest.mark.skipif(os.name != "posix", reason="holds a lock by flock")
@fuzz(20)
@given(claims(DEVICE), st.booleans())
@example(
    b"\nlease 0.1\ntoken 00\npid 1\nhost x\nboot %s\ndevice %s\nlocked 1\nstarted nan\nwhat x\n"
    b"signed 1\nwaits-for \0.temp\n" % (door.boot_id().encode(), DEVICE.encode()),
    True,
)
def test_whatever_a_living_claim_says_its_owner_is_waited_for_and_nothing_else(content, nested):
    import fcntl

    with fresh_cache(lease=0.2) as cache, nothing_executed():
        claim = plant_claim(cache, "key", content)
        with open(claim, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)

            def ask():
                return cache.get_or_create("key", lambda: "stolen", timeout=0.01)

            with pytest.raises(BuildTimeout):
                cache.get_or_create("outer", ask) if nested else ask()
            assert cache.reap() == 0
            assert claim.exists()


def build_text(cache, key="key", name="made.txt", text="built", **options):
    path = cache.get_or_create_path(
        key, lambda target: target.write_text(text), name=name, durable=False, **options
    )
    assert path.parent == entry_of(cache, key, b"p")
    return path.read_text()


@fuzz(40)
@given(
    st.one_of(
        mutations(), st.binary(max_size=300).map(lambda junk: lambda content: junk), st.none()
    ),
    st.sampled_from([0, 1, None, 4e9]),
    st.sampled_from([None, 1000]),
)
def test_whatever_the_meta_of_a_path_says_a_right_path_is_returned(damage, mark, max_age):
    with fresh_cache() as cache:
        build_text(cache, max_age=max_age)
        build_text(cache, "other", "other.txt", "wrong")
        meta = entry_of(cache, kind=b"p") / ".atomcache"
        whole = meta.read_bytes()
        other = (entry_of(cache, "other", b"p") / ".atomcache").read_bytes()
        changed = other if damage is None else damage(whole)
        meta.write_bytes(changed)
        if mark is not None:
            os.utime(meta, (mark, mark))
        found = cache.get_path("key", max_age=max_age)
        if not changed.startswith(whole):  # what lies behind it is not read
            assert found is None
        list(cache.entries())
        for _ in range(2):
            text = build_text(cache, max_age=max_age, text="again")
            assert text in ("built", "again")
        assert cache.get_or_create_path("other", None, name="other.txt").read_text() == "wrong"
        assert leftovers(cache.directory) == []
        assert cache.clear() == 2
