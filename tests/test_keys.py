"""Keys are what they are in every process, on every run, under every version.

The digests in golden_keys.json are those of the first release: one that changes makes
every entry under such a key unreachable.  To see what this version gives, run
``python -c "from tests.test_keys import tell; tell()"``.
"""

import array
import contextlib
import dataclasses
import enum
import functools
import gc
import inspect
import io
import itertools
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Generic, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import pytest

from atomcache import Cache, KeyTypeError, _asking, _keys
from atomcache._call_key import Calls
from atomcache._keys import digest
from atomcache._source import source_hash

from . import golden_source
from .crew import PATIENCE

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
attrs = pytest.importorskip("attrs")
pydantic = pytest.importorskip("pydantic")

HERE = Path(__file__).resolve().parent
GOLDEN = json.loads((HERE / "golden_keys.json").read_text())

BERLIN = ZoneInfo("Europe/Berlin")
NAN_WITH_PAYLOAD = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]


def key_of(key, kind=b"v"):
    return digest(kind, key).hex()


# -- classes whose names are part of keys --------------------------------------------------


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    CRIMSON = 1  # noqa: PIE796


class Paint(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Bit(enum.IntFlag, boundary=enum.KEEP):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Page:
    number: int
    title: str = "untitled"


@dataclasses.dataclass
class Leaf:
    number: int
    title: str = "untitled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    pages: tuple
    hidden: int = dataclasses.field(default=0, repr=False, compare=False)


@attrs.define
class Chair:
    legs: int
    _colour: str = "brown"


@attrs.frozen(slots=False)
class Stool:
    legs: int
    colour: str = "brown"


class Invoice(pydantic.BaseModel):
    number: int
    lines: tuple[str, ...] = ()


class Receipt(pydantic.BaseModel):
    number: int
    lines: tuple[str, ...] = ()


class Open(pydantic.BaseModel, extra="allow"):
    number: int


class Numbers(pydantic.RootModel):
    root: list[int]


class Holder(pydantic.BaseModel, arbitrary_types_allowed=True):
    thing: Any


class Sized(pydantic.BaseModel):
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


class Point(NamedTuple):
    x: int
    y: int = 0


Pair = namedtuple("Pair", "x y")


class Own:
    def __init__(self, identity):
        self.identity = identity

    def __atomcache_key__(self):
        return self.identity


class Other(Own):
    pass


class OwnText(str):
    def __atomcache_key__(self):
        return "own"


@dataclasses.dataclass
class OwnPage:
    number: int
    connection: object

    def __atomcache_key__(self):
        return self.number


class OwnInvoice(pydantic.BaseModel):
    number: int
    price: float

    def __atomcache_key__(self):
        return self.number


class OwnColour(enum.Enum):
    RED = 1
    GREEN = 2

    def __atomcache_key__(self):
        return "colour"


class OwnArray(np.ndarray):
    def __atomcache_key__(self):
        return "array"


def multiply(a, b=2, *rest, unit="m", **more):
    return a * b


def call(*args, version=None, ignore=(), find_key=None, **kwargs):
    return Calls(multiply, find_key, ignore, version).key(args, kwargs)


# -- keys that have had their digests since the first release ------------------------------


def plain():
    return {
        "none": None,
        "true": True,
        "false": False,
        "0": 0,
        "1": 1,
        "-1": -1,
        "23": 23,
        "24": 24,
        "-25": -25,
        "2**64 - 1": 2**64 - 1,
        "2**64": 2**64,
        "-2**64": -(2**64),
        "-2**64 - 1": -(2**64) - 1,
        "10**5000": 10**5000,
        "0.0": 0.0,
        "-0.0": -0.0,
        "1.0": 1.0,
        "1.5": 1.5,
        "0.1": 0.1,
        "float of 24 bits": 1 + 2.0**-23,
        "smallest float": 5e-324,
        "largest float": sys.float_info.max,
        "infinity": float("inf"),
        "-infinity": -float("inf"),
        "nan": float("nan"),
        "complex": 1 + 2j,
        "complex with -0.0": complex(1, -0.0),
        "no text": "",
        "text 1": "1",
        "text": "text",
        "text beyond latin": "\u00e4\u20ac\U0001f600",
        "text with nul": "a\0b",
        "decomposed text": "a\u0308",
        "composed text": "\u00e4",
        "lone surrogate": "\udc80",
        "no bytes": b"",
        "bytes": b"text",
        "bytearray": bytearray(b"text"),
        "text in a list": ["text"],
        "bytes in a list": [b"text"],
        "bytearray in a list": [bytearray(b"text")],
        "lone surrogate in a list": ["\udc80"],
        "surrogate's bytes in a list": [b"\xed\xb2\x80"],
        "no list": [],
        "list": [1, 2],
        "list in reverse": [2, 1],
        "no tuple": (),
        "tuple": (1, 2),
        "tuple in reverse": (2, 1),
        "list of list": [[1], 2],
        "list of tuple": [(1,), 2],
        "list that says tuple": ["tuple", [1, 2]],
        "no set": set(),
        "set": {"b", "a", "c", "d", "e"},
        "set of one": {1},
        "set of mixed": {1, 2.5, "a", b"a", None, (1, 2), frozenset({"x", "y"})},
        "no dict": {},
        "dict": {"b": 1, "a": 2},
        "dict of mixed": {1: "a", "1": "b", 2.5: "c", None: "d", (1, 2): "e", b"1": "f"},
        "dict of dicts": {"b": {"y": [1], "x": (1,)}, "a": {}},
        "pairs": [["a", 2], ["b", 1]],
        "OrderedDict": OrderedDict(b=1, a=2),
        "OrderedDict in reverse": OrderedDict(a=2, b=1),
        "defaultdict": defaultdict(int, b=1, a=2),
        "Counter": Counter("abracadabra"),
        "mappingproxy": types.MappingProxyType({"b": 1, "a": 2}),
        "deque": deque([1, 2]),
        "bounded deque": deque([1, 2], maxlen=2),
        "range": range(1, 10, 2),
        "slice": slice(None, 10, -1),
        "deep": functools.reduce(lambda inner, _: (inner,), range(100), "core"),
    }


def standard():
    return {
        "date": date(2024, 2, 29),
        "first date": date.min,
        "naive datetime": datetime(2024, 10, 27, 2, 30),
        "naive datetime folded": datetime(2024, 10, 27, 2, 30, fold=1),
        "datetime with microseconds": datetime(2024, 10, 27, 2, 30, 15, 7),
        "midnight": datetime(2024, 10, 27),
        "datetime in UTC": datetime(2024, 10, 27, 2, 30, tzinfo=UTC),
        "datetime with offset": datetime(
            2024, 10, 27, 2, 30, tzinfo=timezone(timedelta(hours=1, minutes=30, seconds=1))
        ),
        "datetime west": datetime(2024, 10, 27, 2, 30, tzinfo=timezone(timedelta(hours=-5))),
        "datetime in Berlin": datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN),
        "datetime in Berlin folded": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN),
        "datetime in Rome": datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Rome")),
        "datetime in zone UTC": datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("UTC")),
        "time": time(2, 30),
        "time folded": time(2, 30, fold=1),
        "time in UTC": time(2, 30, tzinfo=UTC),
        "time in Berlin": time(2, 30, tzinfo=BERLIN),
        "timedelta": timedelta(days=-1, seconds=5, microseconds=7),
        "no timedelta": timedelta(),
        "UTC": UTC,
        "offset": timezone(timedelta(hours=1)),
        "ZoneInfo": BERLIN,
        "Decimal": Decimal("1.0"),
        "Decimal with another exponent": Decimal("1.00"),
        "Decimal of 0": Decimal("0"),
        "Decimal of -0": Decimal("-0"),
        "large Decimal": Decimal("1E+50"),
        "long Decimal": Decimal("0.1234567890123456789012345678901234567890"),
        "Decimal nan": Decimal("NaN"),
        "Decimal snan": Decimal("sNaN"),
        "Decimal infinity": Decimal("-Infinity"),
        "Fraction": Fraction(-1, 3),
        "whole Fraction": Fraction(3),
        "UUID": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "UUID as text": "12345678-1234-5678-1234-567812345678",
        "path": PurePosixPath("a/b"),
        "absolute path": PurePosixPath("/a/b"),
        "path with surrogate": PurePosixPath("a\udc80"),
        "path of Windows": PureWindowsPath("a/b"),
        "path as text": "a/b",
    }


def classes():
    return {
        "Enum": Colour.RED,
        "Enum's other": Colour.GREEN,
        "Enum of another class": Paint.RED,
        "IntEnum": Level.LOW,
        "StrEnum": Word.YES,
        "Flag": Right.READ,
        "Flag's sum": Right.READ | Right.RUN,
        "Flag's whole": Right.READ | Right.WRITE | Right.RUN,
        "no Flag": Right(0),
        "IntFlag": Bit.LOW,
        "IntFlag's sum": Bit.LOW | Bit.HIGH,
        "IntFlag with a bit of no name": Bit(9),
        "IntFlag of no name": Bit(8),
        "dataclass": Page(1),
        "dataclass with another value": Page(1, "titled"),
        "dataclass with another type": Page(1.0),
        "dataclass of another class": Leaf(1),
        "dataclass of dataclasses": Book(pages=(Page(1), Page(2))),
        "dataclass with a hidden field": Book(pages=(Page(1), Page(2)), hidden=1),
        "attrs": Chair(4),
        "attrs with another value": Chair(4, "white"),
        "attrs of another class": Stool(4),
        "model": Invoice(number=1),
        "model with another value": Invoice(number=1, lines=("a",)),
        "model of another class": Receipt(number=1),
        "model with extras": Open(number=1, more=[2]),
        "model without extras": Open(number=1),
        "root model": Numbers([1, 2]),
        "model of models": Holder(thing={"a": Invoice(number=1)}),
        "NamedTuple": Point(1, 2),
        "NamedTuple with another value": Point(2, 1),
        "namedtuple of another class": Pair(1, 2),
        "own": Own(1),
        "own with another type": Own("1"),
        "own of another class": Other(1),
        "own of own": Own((Own(1), {"a": Page(1)})),
        "own of text": OwnText("text"),
        "call": call(1),
        "call with another value": call(1, 3),
        "call with another type": call(1, 2.0),
        "call with a version": call(1, version="v2"),
        "call with a number as version": call(1, version=2),
        "call with more": call(1, 2, 3, 4, unit="km", deep=[True]),
        "call without unit": call(1, ignore=("unit",)),
        "call with key": call(1, 2, find_key=lambda a, b, *, unit: (a, b)),
        "call with long text": call("a" * 98),
        "call with longer text": call("a" * 99),
        "call with key of long text": call(1, 2, find_key=lambda a, b, *, unit: "a" * 99),
    }


def with_inputs():
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        cache = Cache("cache")
        for name in ("data/a.csv", "data/deep/b.csv", "template.tex", "other.tex"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(name.encode())

        def key(key, *inputs):
            return cache._asking.input_key(key, cache._changed({"inputs": inputs}))

        return {
            "text": key("report", "template.tex"),
            "text with another file": key("report", "other.tex"),
            "text with two files": key("report", "template.tex", "other.tex"),
            "tuple": key(("report", 1), "template.tex"),
            "call": key(call(1), "template.tex"),
            "folder": key("report", "data"),
            "pattern": key("report", "data/**/*.csv", "*.tex"),
        }


def sources():
    functions = golden_source.alone, golden_source.calling, golden_source.decorated
    return {
        **{function.__name__: source_hash(function) for function in functions},
        "call": Calls(golden_source.alone, None, (), "source").key((1,), {}),
    }


def structure(*names, **options):
    return np.dtype({"names": names, "formats": ["<i2", "<f8"], **options})


def arrays():
    numbers = np.arange(6, dtype="<i8").reshape(2, 3)
    return {
        "array": numbers,
        "array of another shape": numbers.reshape(3, 2),
        "flat array": numbers.ravel(),
        "array with another value": numbers + 1,
        "big-endian array": numbers.astype(">i8"),
        "array of i4": numbers.astype("<i4"),
        "array of u8": numbers.astype("<u8"),
        "array of f8": numbers.astype("<f8"),
        "array of f2": numbers.astype("<f2"),
        "array of c16": numbers.astype("<c16"),
        "array of bool": numbers.astype("?"),
        "transposed array": numbers.T,
        "0-d array": np.array(7, dtype="<i8"),
        "array of one": np.array([7], dtype="<i8"),
        "no array": np.zeros((0, 3), dtype="<f8"),
        "no array the other way": np.zeros((3, 0), dtype="<f8"),
        "array with nan": np.array([np.nan, -0.0, np.inf], dtype="<f8"),
        "array of text": np.array(["a", "bc"], dtype="<U2"),
        "array of wider text": np.array(["a", "bc"], dtype="<U3"),
        "array of bytes": np.array([b"a", b"bc"], dtype="S2"),
        "array of days": np.array(["2024-02-29", "NaT"], dtype="<M8[D]"),
        "array of ns": np.array(["2024-02-29", "NaT"], dtype="<M8[ns]"),
        "array of 25 s": np.array([1, 2], dtype="<M8[25s]"),
        "array of timedeltas": np.array([1, 2], dtype="<m8[s]"),
        "structured array": np.array([(1, 2.5)], dtype=structure("a", "b")),
        "structured array of other names": np.array([(1, 2.5)], dtype=structure("a", "c")),
        "structured array in another order": np.array(
            [(1, 2.5)], dtype=structure("a", "b", offsets=[8, 0], itemsize=10)
        ),
        "nested structure": np.zeros(2, dtype=[("a", [("b", "<i2")]), ("c", "<f4", (2, 2))]),
        "flatter structure": np.zeros(2, dtype=[("a", [("b", "<i2")]), ("c", "<f4", (4,))]),
        "record array": np.rec.array([(1, 2.5)], dtype=structure("a", "b")),
        "matrix": np.zeros((1, 2), dtype="<f8").view(np.matrix),
        "array like the matrix": np.zeros((1, 2), dtype="<f8"),
        "scalar of i8": np.int64(1),
        "scalar of i4": np.int32(1),
        "scalar of f8": np.float64(1),
        "scalar of f4": np.float32(1),
        "scalar of c16": np.complex128(1),
        "scalar of bool": np.bool_(True),
        "scalar of text": np.str_("text"),
        "scalar of bytes": np.bytes_(b"text"),
        "scalar of days": np.datetime64("2024-02-29", "D"),
        "scalar of ns": np.datetime64("2024-02-29", "ns"),
        "scalar NaT": np.datetime64("NaT", "ns"),
        "scalar timedelta": np.timedelta64(1, "s"),
        "scalar of a structure": np.array([(1, 2.5)], dtype=structure("a", "b"))[0],
        "scalar in a tuple": (np.float64(1), 1.0),
    }


def words(*values):
    """Return labels whose type does not depend on the version of pandas."""
    return pd.Index(list(values), dtype=object)


def moments(*values, tz=None):
    return pd.DatetimeIndex(list(values), dtype="datetime64[ns]").tz_localize(tz)


def series(values, dtype, index=None, name=None):
    return pd.Series(values, dtype=dtype, index=index, name=name)


def frame():
    made = pd.DataFrame({0: np.array([1, 2], "<i8"), 1: np.array([0.5, np.nan], "<f8")})
    made[2] = series(["x", None], object)
    made[3] = pd.array([1, None], dtype="Int64")
    made[4] = pd.Categorical.from_codes([0, -1], categories=words("u", "v"))
    made[5] = moments("2024-01-01", "NaT")
    made.columns = words("a", "b", "c", "d", "e", "f")
    made.index = words("first", "second")
    return made


def tables():
    two = np.array([1, 2], "<i8")
    levels = [words("a", "a", "b"), pd.Index([1, 2, 1], dtype="int64")]
    return {
        "frame": frame(),
        "frame of nothing": pd.DataFrame(index=pd.RangeIndex(0), columns=pd.RangeIndex(0)),
        "frame of rows only": pd.DataFrame(index=pd.RangeIndex(2), columns=pd.RangeIndex(0)),
        "frame of twins": pd.DataFrame(
            np.arange(4, dtype="<i8").reshape(2, 2), columns=words("a", "a")
        ),
        "Series": series(two, "int64"),
        "Series with a name": series(two, "int64", name="a"),
        "Series with another name": series(two, "int64", name=("a", 1)),
        "Series with labels": series(two, "int64", index=words("x", "y")),
        "Series of f8": series(two, "float64"),
        "Series of i4": series(two, "int32"),
        "Series big-endian": pd.Series(two.astype(">i8")),
        "Series of bool": series([True, False], "bool"),
        "Series of nan": series([1.0, np.nan], "float64"),
        "Series of objects": series([1, "a", None, 2.5, pd.NaT, pd.NA, [1], {2}], object),
        "Series of numbers as objects": series([1, 2], object),
        "Series of Int64": series([1, 2], "Int64"),
        "Series of Int64 with NA": series([1, None], "Int64"),
        "Series of UInt8": series([1, 2], "UInt8"),
        "Series of Float64": series([1.5, None], "Float64"),
        "Series of boolean": series([True, None], "boolean"),
        "Series of string": series(["a", None], pd.StringDtype("python")),
        "Series of moments": pd.Series(moments("2024-01-01", "NaT")),
        "Series of moments in Berlin": pd.Series(moments("2024-10-27", tz=BERLIN)),
        "Series of timedeltas": series(np.array([1, 2], "<m8[ns]"), "timedelta64[ns]"),
        "Series of categories": pd.Series(
            pd.Categorical.from_codes([0, 1, -1], categories=words("u", "v"))
        ),
        "Series of sparse": pd.Series(pd.arrays.SparseArray(np.array([1, 0, 0], "<i8"))),
        "Series of intervals": pd.Series(pd.interval_range(0, 2)),
        "Series of periods": pd.Series(pd.period_range("2024-01", periods=2, freq="M")),
        "RangeIndex": pd.RangeIndex(1, 10, 2),
        "RangeIndex with a name": pd.RangeIndex(1, 10, 2, name="a"),
        "Index of i8": pd.Index([1, 3], dtype="int64"),
        "Index of i8 with a name": pd.Index([1, 3], dtype="int64", name="a"),
        "Index of f8": pd.Index([1, 3], dtype="float64"),
        "Index of objects": words("a", "b"),
        "Index of objects in reverse": words("b", "a"),
        "Index of Int64": pd.Index([1, 3], dtype="Int64"),
        "DatetimeIndex": moments("2024-01-01", "2024-01-02"),
        "DatetimeIndex in UTC": moments("2024-10-27", "2024-10-28", tz=UTC),
        "DatetimeIndex in Berlin": moments("2024-10-27", "2024-10-28", tz=BERLIN),
        "TimedeltaIndex": pd.TimedeltaIndex(np.array([1, 2], "<m8[ns]")),
        "PeriodIndex": pd.period_range("2024-01", periods=2, freq="M"),
        "PeriodIndex of days": pd.period_range("2024-01-01", periods=2, freq="D"),
        "IntervalIndex": pd.interval_range(0, 2),
        "IntervalIndex closed on the left": pd.interval_range(0, 2, closed="left"),
        "CategoricalIndex": pd.CategoricalIndex(
            pd.Categorical.from_codes([0, 1], categories=words("u", "v"))
        ),
        "MultiIndex": pd.MultiIndex.from_arrays(levels),
        "MultiIndex with names": pd.MultiIndex.from_arrays(levels, names=["x", None]),
        "MultiIndex in another order": pd.MultiIndex.from_arrays(levels[::-1]),
        "Series by MultiIndex": series(
            [1, 2, 3], "int64", index=pd.MultiIndex.from_arrays(levels)
        ),
        "Categorical": pd.Categorical.from_codes([0, 1], categories=words("u", "v")),
        "Categorical the other way": pd.Categorical.from_codes([1, 0], words("v", "u")),
        "ordered Categorical": pd.Categorical.from_codes([0, 1], words("u", "v"), ordered=True),
        "Categorical of numbers": pd.Categorical.from_codes(
            [0, 1], categories=pd.Index([1, 2], dtype="int64")
        ),
        "IntegerArray": pd.array([1, None], dtype="Int64"),
        "BooleanArray": pd.array([True, None], dtype="boolean"),
        "Timestamp": pd.Timestamp(2024, 10, 27, 2, 30),
        "Timestamp with ns": pd.Timestamp(2024, 10, 27, 2, 30, nanosecond=1),
        "Timestamp in Berlin": pd.Timestamp(datetime(2024, 10, 27, 2, 30), tz=BERLIN, fold=0),
        "Timestamp in Berlin folded": pd.Timestamp(
            datetime(2024, 10, 27, 2, 30), tz=BERLIN, fold=1
        ),
        "Timestamp in UTC": pd.Timestamp(2024, 10, 27, 2, 30, tz=UTC),
        "NaT": pd.NaT,
        "NA": pd.NA,
        "Timedelta": pd.Timedelta(np.timedelta64(1 - 86_400_000_000_000, "ns")),
        "Period": pd.Period("2024-01", freq="M"),
        "Period of a day": pd.Period("2024-01-01", freq="D"),
        "Interval": pd.Interval(1, 2),
        "Interval closed on the left": pd.Interval(1, 2, closed="left"),
        "Interval of floats": pd.Interval(1.0, 2.0),
        "Interval of moments": pd.Interval(pd.Timestamp(2024, 1, 1), pd.Timestamp(2025, 1, 1)),
        "offset of days": pd.offsets.Day(2),
        "offset of business days": pd.offsets.BusinessDay(2),
        "offset of weeks": pd.offsets.Week(weekday=0),
    }


@functools.cache
def examples():
    groups = {
        "plain": plain(),
        "standard": standard(),
        "classes": classes(),
        "numpy": arrays(),
        "pandas": tables(),
        "inputs": with_inputs(),
        "source": sources(),
    }
    return {
        f"{group}: {name}": key for group, keys in groups.items() for name, key in keys.items()
    }


def digests():
    return {name: key_of(key) for name, key in examples().items()}


def tell():
    print(json.dumps(digests(), indent=1))


@pytest.mark.parametrize("name", examples())
def test_a_key_has_the_digest_of_the_first_release(name):
    assert key_of(examples()[name]) == GOLDEN[name]


def test_every_golden_digest_has_its_example():
    assert list(GOLDEN) == list(examples())


def test_no_two_examples_meet():
    by_digest = {}
    for name in examples():
        by_digest.setdefault(key_of(examples()[name]), []).append(name)
    assert [names for names in by_digest.values() if len(names) > 1] == []


def test_a_value_and_a_path_under_one_key_are_two_entries():
    assert [name for name, key in examples().items() if key_of(key, b"p") == GOLDEN[name]] == []


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_keys_do_not_depend_on_the_seed_of_hashes(seed):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    said = python("-c", "from tests.test_keys import tell; tell()", env=environment)
    assert said == digests()


def test_keys_are_the_same_in_other_processes(crew):
    workers = [crew.start(digests_there) for _ in range(2)]
    assert [worker.result() for worker in workers] == [digests()] * 2


def digests_there(line):
    return digests()


def python(*arguments, cwd=HERE.parent, env=None):
    """Run Python and return what it printed as JSON."""
    ran = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


# -- what is one key, and what is two -----------------------------------------------------


def test_one_in_four_types_is_four_keys():
    for wrap in (lambda one: one, lambda one: [one], lambda one: {one: one}, Own):
        assert len({key_of(wrap(one)) for one in (1, 1.0, True, "1")}) == 4


def test_the_order_of_a_dict_or_set_does_not_count():
    pairs = [("a", 1), ("b", [2]), (3, {"y": 1, "x": 2}), (None, "d"), ((1, "t"), 5)]
    orders = list(itertools.permutations(pairs))
    assert len({key_of(dict(order)) for order in orders}) == 1
    # Members of a set stand in the order of their hashes unless these collide.
    collide = [0, 2**61 - 1, 2 * (2**61 - 1), 3 * (2**61 - 1)]
    sets = [set(order) for order in itertools.permutations(collide)]
    assert len({tuple(each) for each in sets}) > 1
    assert len({key_of(each) for each in sets}) == 1


def test_the_order_of_a_dict_does_not_count_where_its_keys_are_one_key():
    nans = [float("nan"), float("nan")]
    one, other = dict(zip(nans, "ab", strict=True)), dict(zip(nans, "ba", strict=True))
    assert len(one) == len(other) == 2
    assert key_of(one) == key_of(other) == key_of(dict(reversed(one.items())))
    assert key_of(one) != key_of(dict(zip(nans, "aa", strict=True)))


def test_what_a_dict_holds_is_encoded_once_however_deep_it_lies(monkeypatch):
    encoded = []
    encode = _keys._dumps
    monkeypatch.setattr(_keys, "_dumps", lambda it: encoded.append(encode(it)) or encoded[-1])
    key_of(functools.reduce(lambda inner, _: {"in": inner, "by": 1}, range(50), {"core": "heart"}))
    assert len([each for each in encoded if b"heart" in each]) == 1


def test_the_order_of_a_list_tuple_or_ordered_dict_counts():
    for make in (list, tuple, deque, Own):
        orders = {key_of(make(order)) for order in itertools.permutations([1, 2, 3])}
        assert len(orders) == 6
    orders = itertools.permutations([("a", 1), ("b", 2), ("c", 3)])
    assert len({key_of(OrderedDict(order)) for order in orders}) == 6


NANS = [float("nan"), -float("nan"), float("inf") - float("inf"), NAN_WITH_PAYLOAD]


@pytest.mark.parametrize("wrap", [lambda nan: nan, lambda nan: (1, nan), lambda nan: {nan: nan}])
def test_nan_is_equal_to_itself(wrap):
    assert len({struct.pack("<d", nan) for nan in NANS}) > 1
    assert len({key_of(wrap(nan)) for nan in NANS}) == 1


def with_nans(payload, dtype):
    """Return an array of two NaNs and of numbers that must stay as they are."""
    numbers = np.array([np.inf, -np.inf, np.inf, -0.0], dtype)
    numbers.view(dtype.replace("f", "u"))[:2] += payload
    return numbers


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f8"])
def test_nan_is_equal_to_itself_in_arrays(dtype):
    one, other = with_nans(1, dtype), with_nans(2, dtype)
    assert np.isnan(one).tolist() == np.isnan(other).tolist() == [True, True, False, False]
    before = one.tobytes()
    assert before != other.tobytes()
    nan = np.array([np.nan, np.nan, np.inf, -0.0], dtype)
    assert key_of(one) == key_of(other) == key_of(nan)
    assert one.tobytes() == before
    assert key_of(one[:1].reshape(())) == key_of(other[:1].reshape(()))
    assert key_of(one[0]) == key_of(other[0])
    assert key_of(pd.Series(one)) == key_of(pd.Series(other))
    structure = [("a", "u1"), ("b", dtype, (4,))]
    records = [np.array([(1, each)], structure) for each in (one, other)]
    assert key_of(records[0]) == key_of(records[1])


def test_nan_hides_no_other_number_of_its_array():
    rows = [[np.nan, 0.0], [np.nan, -0.0], [0.0, np.nan], [np.nan, np.inf], [np.nan, -np.inf]]
    assert len({key_of(np.array(row)) for row in rows}) == 5
    parts = [complex(*row) for row in rows]
    assert len({key_of(np.array([part])) for part in parts}) == 5
    assert len({key_of(np.complex128(part)) for part in parts}) == 5
    nans = [complex(nan, -0.0) for nan in NANS]
    assert len({key_of(np.array(nan)) for nan in nans}) == 1


def strided(step):
    """Return an array with something else between its items."""
    wide = np.full(6 * step, -1, "<i8")
    wide[::step] = np.arange(6)
    return wide[::step]


def pairs_of_equals():
    numbers = np.arange(6, dtype="<i8").reshape(2, 3)
    aware = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo.no_cache("Europe/Berlin"))
    table = frame()
    categories = series(["v", "u"], pd.CategoricalDtype(words("u", "v")))
    multi = pd.MultiIndex.from_arrays([words("a", "b"), words("x", "y")])
    return {
        "set and frozenset": ({1, 2}, frozenset({2, 1})),
        "Path and PurePath": (Path("a/b"), PurePath("a") / "b"),
        "Decimal from text and int": (Decimal("7"), Decimal(7)),
        "Fraction in lowest terms": (Fraction(2, 6), Fraction(1, 3)),
        "timedelta in other units": (timedelta(hours=36), timedelta(days=1, seconds=43200)),
        "two objects for one zone": (aware, datetime(2024, 7, 1, 12, tzinfo=BERLIN)),
        "defaultdicts with other defaults": (defaultdict(int, a=1), defaultdict(list, a=1)),
        "an alias and its member": (Colour.CRIMSON, Colour.RED),
        "a sum of flags in another order": (Right.RUN | Right.READ, Right.READ | Right.RUN),
        "a flag by number": (Right(5), Right.READ | Right.RUN),
        "fields in another order": (Invoice(number=1, lines=()), Invoice(lines=(), number=1)),
        "extras in another order": (Open(number=1, a=1, b=2), Open(number=1, b=2, a=1)),
        "Fortran order": (np.asfortranarray(numbers), numbers),
        "not contiguous": (strided(3), numbers.ravel()),
        "backwards": (numbers.ravel()[::-1][::-1], numbers.ravel()),
        "read-only": (np.broadcast_to(np.int64(1), (2, 2)), np.ones((2, 2), "<i8")),
        "frame and its copy": (table, table.copy()),
        "frame turned twice": (table, table.iloc[::-1, ::-1].iloc[::-1, ::-1]),
        "rows taken from a longer frame": (table, table.iloc[[0, 1, 0]].iloc[:2]),
        "frame made column by column": (
            table,
            pd.DataFrame({name: table[name] for name in table}).set_axis(table.columns, axis=1),
        ),
        "strided column": (
            pd.DataFrame(numbers).iloc[:, 1],
            series([1, 4], "int64", name=1),
        ),
        "categories by code and value": (
            categories,
            pd.Series(pd.Categorical.from_codes([1, 0], words("u", "v"))),
        ),
        "MultiIndex with unused labels": (
            multi,
            multi.append(pd.MultiIndex.from_arrays([words("z"), words("z")]))[:2],
        ),
        "DatetimeIndex with and without frequency": (
            moments("2024-01-01", "2024-01-02"),
            pd.date_range("2024-01-01", periods=2).as_unit("ns"),
        ),
        "Timestamps in another unit": (
            pd.Timestamp(2024, 1, 1).as_unit("s"),
            pd.Timestamp(2024, 1, 1).as_unit("ns"),
        ),
        "working days of two objects": (
            pd.offsets.CustomBusinessDay(holidays=["2024-01-01", "2024-05-01"]),
            pd.offsets.CustomBusinessDay(holidays=["2024-05-01", "2024-01-01"]),
        ),
        "NaT of two makers": (pd.Timestamp("NaT"), pd.NaT),
        "positional and by name": (call(1, 2), call(a=1, b=2)),
        "default left out": (call(1), call(1, 2, unit="m")),
        "names in another order": (call(1, x=1, y=2), call(1, y=2, x=1)),
        "ignored": (call(1, ignore=("b",)), call(1, 9, ignore=("b",))),
    }


@pytest.mark.parametrize(("one", "other"), pairs_of_equals().values(), ids=pairs_of_equals())
def test_equal_content_is_one_key(one, other):
    assert key_of(one) == key_of(other)
    assert key_of([one, (other,)]) == key_of([other, (one,)])


def test_a_mapped_array_is_its_content(tmp_path):
    numbers = np.arange(6, dtype="<i8").reshape(2, 3)
    np.save(tmp_path / "numbers.npy", numbers)
    mapped = np.load(tmp_path / "numbers.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert key_of(mapped) == key_of(numbers)


def pairs_of_others():
    def zoned(*arguments, **options):
        return datetime(2024, 10, 27, 2, 30, *arguments, **options)

    return {
        "hidden field of a dataclass": (Book(pages=(), hidden=1), Book(pages=())),
        "a sum and its bits in a set": (Right.READ | Right.RUN, {Right.READ, Right.RUN}),
        "enum and its value": (Level.LOW, 1),
        "enum and its text": (Word.YES, "yes"),
        "named tuple and tuple": (Point(1, 2), (1, 2)),
        "dataclass and dict": (Page(1), {"number": 1, "title": "untitled"}),
        "model and dict": (Invoice(number=1), {"number": 1, "lines": ()}),
        "own and its identity": (Own(1), 1),
        "own and a tuple that looks like it": (Own(1), ("tests.test_keys.Own", 1)),
        "array and list": (np.array([1, 2]), [1, 2]),
        "scalar and number": (np.float64(1.5), 1.5),
        "scalar and 0-d array": (np.float64(1.5), np.array(1.5)),
        "scalar text and text": (np.str_("a"), "a"),
        "Timestamp and datetime": (pd.Timestamp(2024, 1, 1), datetime(2024, 1, 1)),
        "Timedelta and timedelta": (pd.Timedelta(timedelta(days=1)), timedelta(days=1)),
        "date and datetime": (date(2024, 1, 1), datetime(2024, 1, 1)),
        "date and its text": (date(2024, 1, 1), "2024-01-01"),
        "NaT and NA": (pd.NaT, pd.NA),
        "NaT and numpy's": (pd.NaT, np.datetime64("NaT", "ns")),
        "NA and None": (pd.NA, None),
        "aware and naive": (zoned(tzinfo=UTC), zoned()),
        "one moment in two zones": (
            zoned(tzinfo=BERLIN),
            zoned(tzinfo=BERLIN).astimezone(UTC),
        ),
        "one offset in two zones": (zoned(tzinfo=BERLIN), zoned(tzinfo=ZoneInfo("Europe/Rome"))),
        "two offsets": (timezone(timedelta(hours=1)), timezone(timedelta(hours=2))),
        "two offsets of one name": (
            timezone(timedelta(hours=1), "here"),
            timezone(timedelta(hours=2), "here"),
        ),
        "one offset of two names": (timezone(timedelta(0), "here"), UTC),
        "moments at two offsets of one name": (
            zoned(tzinfo=timezone(timedelta(hours=1), "here")),
            zoned(tzinfo=timezone(timedelta(hours=2), "here")),
        ),
        "with and without a version": (call(1), call(1, version=1)),
        "version of another type": (call(1, version=1), call(1, version="1")),
        "key= and the call": (
            call(1, 2),
            call(1, 2, find_key=lambda a, b, *, unit: {"a": a, "b": b}),
        ),
        "positional rest and list": (call(1, 2, 3), call(1, 2, (3,))),
        "Series and its values": (series([1, 2], "int64"), np.array([1, 2], "int64")),
        "Series and Index": (series([1, 2], "int64"), pd.Index([1, 2], dtype="int64")),
        "Series and frame": (series([1], "int64"), series([1], "int64").to_frame()),
        "Categorical and its Series": (
            pd.Categorical(["a"]),
            pd.Series(pd.Categorical(["a"])),
        ),
        "sparse with another filling": (
            pd.arrays.SparseArray([1, 0, 0], fill_value=0),
            pd.arrays.SparseArray([1, 0, 0], fill_value=1),
        ),
        "offsets of two lengths": (pd.offsets.Hour(1), pd.offsets.Hour(2)),
        "working days with and without holidays": (
            pd.offsets.CustomBusinessDay(holidays=["2024-01-01"]),
            pd.offsets.CustomBusinessDay(),
        ),
        "working days of two weeks": (
            pd.offsets.CustomBusinessDay(weekmask="Mon Tue"),
            pd.offsets.CustomBusinessDay(),
        ),
        "office hours": (pd.offsets.BusinessHour(start="10:00"), pd.offsets.BusinessHour()),
        "working days of two calendars": (
            pd.offsets.CustomBusinessDay(calendar=np.busdaycalendar(weekmask="Mon Tue")),
            pd.offsets.CustomBusinessDay(calendar=np.busdaycalendar(weekmask="Mon Wed")),
        ),
        "working days of a calendar with and without holidays": (
            np.busdaycalendar(holidays=["2024-01-01"]),
            np.busdaycalendar(),
        ),
        "offsets by two units": (pd.DateOffset(months=1), pd.DateOffset(years=1)),
        "offset to midnight": (pd.offsets.MonthEnd(normalize=True), pd.offsets.MonthEnd()),
    }


@pytest.mark.parametrize(("one", "other"), pairs_of_others().values(), ids=pairs_of_others())
def test_other_content_is_another_key(one, other):
    assert key_of(one) != key_of(other)
    assert key_of([one]) != key_of([other])


def test_a_time_in_a_zone_without_a_name_is_refused():
    zone = unnamed_zone(1)
    assert zone.key is None
    with pytest.raises(KeyTypeError, match="a zone without a name"):
        key_of(time(12, tzinfo=zone))
    moments = [datetime(2024, 1, 1, tzinfo=unnamed_zone(hours)) for hours in (1, 1, 2)]
    keys = [key_of(moment) for moment in moments]
    assert keys[0] == keys[1] != keys[2]


def unnamed_zone(hours):
    """Return a zone with one change of clocks, as read from a file of no name."""
    head = b"TZif2" + bytes(15)
    seconds = struct.pack(">l", hours * 3600)
    first = head + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + seconds + b"\0\0ABC\0"
    second = head + struct.pack(">6l", 0, 0, 0, 1, 2, 4) + struct.pack(">qb", 0, 1)
    second += seconds + b"\0\0" + struct.pack(">lbb", hours * 3600 + 3600, 1, 0) + b"ABC\0"
    return ZoneInfo.from_file(io.BytesIO(first + second + b"\n\n"))


def test_a_decimal_does_not_depend_on_the_context_of_the_caller():
    large = Decimal("1E+50")
    usual = key_of(large)
    with localcontext() as context:
        context.capitals = 0
        context.prec = 1
        assert key_of(large) == usual


def test_what_a_model_has_cached_does_not_count():
    asked, fresh = Sized(width=3), Sized(width=3)
    assert asked.area == 9
    assert key_of(asked) == key_of(fresh)


def test_what_lies_between_the_fields_of_a_structure_does_not_count():
    dtype = np.dtype([("a", "i1"), ("b", "<i8")], align=True)
    clean = np.zeros(2, dtype)
    dirty = np.frombuffer(b"\xff" * clean.nbytes, dtype).copy()
    dirty["a"] = dirty["b"] = 0
    assert (clean == dirty).all()
    assert key_of(clean) == key_of(dirty)
    assert key_of(clean[0]) == key_of(dirty[0])


@pytest.mark.skipif(
    np.finfo(np.longdouble).nmant != 63, reason="long doubles have no unused bytes here"
)
@pytest.mark.parametrize("kind", [np.longdouble, np.clongdouble])
def test_unused_bytes_of_a_long_double_do_not_count(kind):
    clean = np.ones(2, kind)
    spoilt = clean.view(np.uint8).reshape(-1, np.longdouble().itemsize).copy()
    spoilt[:, 10:] = 0xFF
    dirty = spoilt.reshape(-1).view(kind)
    assert (clean == dirty).all()
    assert clean.tobytes() != dirty.tobytes()
    assert key_of(clean) == key_of(dirty)
    assert key_of(clean[0]) == key_of(dirty[0])


def test_long_doubles_are_told_apart_to_the_last_bit():
    one, inf, nan = map(np.longdouble, [1, "inf", "nan"])
    numbers = [one, np.nextafter(one, inf), np.nextafter(one, -inf), one * 0, -one * 0]
    numbers += [inf, -inf, nan, np.nextafter(inf, one), np.nextafter(one * 0, one)]
    assert len({key_of(each) for each in numbers}) == len(numbers)
    assert len({key_of(np.array([one, each])) for each in numbers}) == len(numbers)
    assert len({key_of(one + 1j * each) for each in numbers[:3]}) == 3
    assert key_of(nan) == key_of(-nan)
    with np.printoptions(legacy="1.13", precision=1):
        assert len({key_of(each) for each in numbers}) == len(numbers)


def test_an_array_of_items_that_are_not_numpys_own_is_refused():
    rational = pytest.importorskip("numpy._core._rational_tests").rational
    for thing in (np.zeros(2, rational), np.zeros(1, [("a", rational)])):
        with pytest.raises(KeyTypeError, match="a type that numpy knows from elsewhere"):
            key_of(thing)


# -- pandas: one change anywhere is another key -------------------------------------------


def with_label(table):
    return table.rename(index={"second": "2nd"})


def with_column(table):
    return table.rename(columns={"d": "D"})


def with_value(column, value):
    def change(table):
        table[column] = table[column].where(table.index != "second", value)
        return table

    return change


def with_type(column, dtype):
    return lambda table: table.astype({column: dtype})


def with_attribute(name, value):
    def change(table):
        setattr(table, name, value)
        return table

    return change


def with_index_name(table):
    return table.rename_axis(index="name")


CHANGES = {
    "label of a row": with_label,
    "label of a column": with_column,
    "name of the index": with_index_name,
    "name of the columns": lambda table: table.rename_axis(columns="name"),
    "rows in reverse": lambda table: table.iloc[::-1],
    "values in reverse": lambda table: table.iloc[::-1].set_axis(table.index),
    "columns in reverse": lambda table: table.iloc[:, ::-1],
    "one row less": lambda table: table.iloc[:1],
    "one column less": lambda table: table.iloc[:, :5],
    "a row twice": lambda table: table.iloc[[0, 1, 1]],
    "a number": with_value("a", 3),
    "a float": with_value("b", 0.25),
    "an object": with_value("c", "y"),
    "an object that is missing otherwise": lambda table: table.assign(
        c=series(["x", np.nan], object, index=table.index)
    ),
    "a nullable number": with_value("d", 0),
    "a category": with_value("e", "u"),
    "a moment": with_value("f", pd.Timestamp(2025, 1, 1)),
    "type of numbers": with_type("a", "int32"),
    "type of numbers to nullable": with_type("a", "Int64"),
    "type of numbers to objects": with_type("a", object),
    "type of floats": with_type("b", "float32"),
    "type of nullable numbers": with_type("d", "Int32"),
    "categories to objects": with_type("e", object),
    "order of categories": lambda table: table.assign(
        e=table["e"].cat.reorder_categories(words("v", "u"))
    ),
    "ordered categories": with_type("e", pd.CategoricalDtype(words("u", "v"), ordered=True)),
    "one category more": with_type("e", pd.CategoricalDtype(words("u", "v", "w"))),
    "zone of moments": lambda table: table.assign(f=table["f"].dt.tz_localize(BERLIN)),
    "unit of moments": lambda table: table.assign(f=table["f"].dt.as_unit("s")),
    "labels in levels": with_attribute("index", pd.MultiIndex.from_arrays([words("a", "b")] * 2)),
    "labels by number": with_attribute("index", pd.RangeIndex(2)),
    "columns by number": with_attribute("columns", pd.RangeIndex(6)),
}


def test_a_frame_changed_in_one_thing_is_another_key():
    keys = {name: key_of(change(frame())) for name, change in CHANGES.items()}
    assert key_of(frame()) == GOLDEN["pandas: frame"]
    assert [name for name, key in keys.items() if key == GOLDEN["pandas: frame"]] == []
    assert len(set(keys.values())) == len(keys)


def test_a_frame_is_another_key_if_any_one_value_is():
    numbers = pd.DataFrame(np.arange(12, dtype="<i8").reshape(4, 3))
    keys = {key_of(numbers)}
    for row, column in itertools.product(range(4), range(3)):
        changed = numbers.copy()
        changed.iloc[row, column] = -1
        keys.add(key_of(changed))
    assert len(keys) == 13


def columns_of_every_kind():
    return {
        "numbers": (series([1, 2], "int64"), 3),
        "objects": (series(["a", 2], object), None),
        "nullable": (series([1, 2], "Int64"), pd.NA),
        "nullable floats": (series([1, 2], "Float64"), pd.NA),
        "nullable booleans": (series([True, False], "boolean"), pd.NA),
        "text": (series(["a", "b"], pd.StringDtype("python")), pd.NA),
        "default text": (pd.Series(["a", "b"]), None),
        "categories": (pd.Series(pd.Categorical(["a", "b"])), "a"),
        "moments": (pd.Series(moments("2024-01-01", "2024-01-02")), pd.NaT),
        "aware moments": (pd.Series(moments("2024-01-01", "2024-01-02", tz=BERLIN)), pd.NaT),
        "timedeltas": (series([1, 2], "timedelta64[ns]"), pd.NaT),
        "periods": (pd.Series(pd.period_range("2024-01", periods=2, freq="M")), pd.NaT),
        "intervals": (pd.Series(pd.interval_range(0, 2)), pd.Interval(5, 6)),
    }


@pytest.mark.parametrize(
    ("column", "value"), columns_of_every_kind().values(), ids=columns_of_every_kind()
)
def test_a_column_or_index_of_any_type_is_another_key_if_one_value_is(column, value):
    changed = column.copy()
    changed.iloc[1] = value
    assert changed.dtype == column.dtype
    for view in (lambda it: it, pd.Index, pd.DataFrame, lambda it: it.array, call):
        forms = [column, changed, column.iloc[::-1].reset_index(drop=True), column.iloc[:1]]
        assert len({key_of(view(form)) for form in forms}) == 4
        assert key_of(view(column)) == key_of(view(column.copy()))


def long_columns():
    numbers = np.arange(1000)
    hours = pd.date_range("2024-01-01", periods=1000, freq="h", tz=BERLIN)
    return {
        "aware moments": hours,
        "moments with an offset": hours.tz_convert(timezone(timedelta(hours=1))),
        "categories": pd.Categorical(numbers % 3),
        "periods": pd.period_range("2024-01-01", periods=1000, freq="h"),
        "nullable": pd.array(numbers, dtype="Int64"),
        "nullable floats": pd.array(numbers, dtype="Float64"),
        "nullable booleans": pd.array(numbers > 500, dtype="boolean"),
        "sparse": pd.arrays.SparseArray(numbers % 2),
    }


@pytest.mark.parametrize("column", long_columns().values(), ids=long_columns())
def test_a_long_column_is_written_down_as_arrays_and_not_value_by_value(monkeypatch, column):
    written = []
    write = _keys._plain
    monkeypatch.setattr(_keys, "_plain", lambda *given: written.append(1) or write(*given))
    for made in (pd.Series(column), pd.Index(column), pd.DataFrame({"a": column})):
        key_of(made)
    assert len(written) < 300


def test_a_column_of_moments_depends_on_the_offset_of_a_zone_and_not_on_its_name_alone():
    zones = [timezone(timedelta(hours=hours), "here") for hours in (1, 2)]
    columns = [moments("2024-01-01", tz=zone) for zone in zones]
    columns += [columns[0].tz_convert(zones[1]), columns[1].tz_convert(zones[0])]
    assert len({str(column.dtype) for column in columns}) == 1
    assert len({key_of(column) for column in columns}) == 4
    unnamed = [moments("2024-01-01", tz=unnamed_zone(hours)) for hours in (1, 2)]
    assert len({key_of(column) for column in unnamed}) == 2


def test_columns_of_arrow_are_keys():
    arrow = pytest.importorskip("pyarrow")
    numbers = series([1, None], pd.ArrowDtype(arrow.int64()))
    assert key_of(numbers) == key_of(numbers.copy())
    for other in ([1, 2], [2, None], [None, 1]):
        assert key_of(numbers) != key_of(series(other, numbers.dtype))
    assert key_of(numbers) != key_of(series([1, None], pd.ArrowDtype(arrow.int32())))
    assert key_of(numbers) != key_of(series([1, None], "Int64"))
    nested = pd.ArrowDtype(arrow.list_(arrow.int64()))
    assert key_of(series([[1], [2]], nested)) != key_of(series([[1], [3]], nested))


# -- objects that say themselves what identifies them -------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OwnPage(1, object()), OwnPage(1, object())),
        (OwnInvoice(number=1, price=2), OwnInvoice(number=1, price=3)),
        (OwnColour.RED, OwnColour.GREEN),
        (OwnText("a"), OwnText("b")),
        (np.zeros(2).view(OwnArray), np.ones(3).view(OwnArray)),
    ],
    ids=["dataclass", "model", "enum", "text", "array"],
)
def test_what_an_object_says_of_itself_goes_before_what_it_is(one, other):
    assert key_of(one) == key_of(other)
    assert key_of([one]) == key_of([other])


def test_the_name_of_the_class_is_part_of_what_an_object_says():
    assert key_of(Own("same")) != key_of(Other("same"))

    def make():
        class Own:
            def __atomcache_key__(self):
                return "same"

        return Own()

    assert key_of(make()) != key_of(Own("same"))
    assert key_of(make()) == key_of(make())


def test_what_an_object_says_may_hold_others_that_say_it_themselves():
    assert key_of(Own([Own(1), frame()])) == key_of(Own([Own(1), frame()]))
    assert key_of(Own([Own(1)])) != key_of(Own([Own(2)]))
    assert key_of(Own([Own(1)])) != key_of(Own([Other(1)]))


def test_an_object_that_says_what_is_not_plain_is_refused():
    with pytest.raises(KeyTypeError, match=r"_thread\.lock") as refused:
        key_of(Own(threading.Lock()))
    assert "__atomcache_key__" in str(refused.value)


def test_an_object_that_identifies_itself_by_itself_is_refused():
    one = Own(None)
    one.identity = (one,)
    with pytest.raises(KeyTypeError, match="contains itself"):
        key_of(one)


def test_an_error_while_an_object_says_what_it_is_comes_out_as_it_is():
    class Broken:
        def __atomcache_key__(self):
            raise LookupError("no identity yet")

    with pytest.raises(LookupError, match="no identity yet"):
        key_of([Broken()])


# -- what can't be a key ------------------------------------------------------------------


class Name(str):
    pass


class Number(int):
    pass


class Text(bytes):
    pass


class Row(list):
    pass


class Table(dict):
    pass


class Moment(datetime):
    pass


class Mute:
    def __repr__(self):
        raise RuntimeError("no words")


class Unnamed:
    __module__ = None


class OwnFrame(pd.DataFrame):
    pass


def not_plain():
    class Local:
        pass

    return {
        "object": object(),
        "object of a class": Local(),
        "object without repr": Mute(),
        "object of a class without a module": Unnamed(),
        "class": Page,
        "class of enum": Colour,
        "class that says itself": Own,
        "function": multiply,
        "lambda": lambda: None,
        "method": Own(1).__atomcache_key__,
        "partial": functools.partial(multiply, 1),
        "built-in": len,
        "module": sys,
        "generator": (n for n in ()),
        "dict's keys": {}.keys(),
        "lock": threading.Lock(),
        "file": io.StringIO(),
        "error": ValueError("a"),
        "...": ...,
        "memoryview": memoryview(b"a"),
        "array.array": array.array("i", [1]),
        "SimpleNamespace": types.SimpleNamespace(a=1),
        "kind of str": Name("a"),
        "kind of int": Number(1),
        "kind of bytes": Text(b"a"),
        "kind of list": Row([1]),
        "kind of dict": Table(a=1),
        "kind of datetime": Moment(2024, 1, 1),
        "zone without a name": unnamed_zone(1),
        "array of objects": np.array([1, "a"], dtype=object),
        "structure of objects": np.zeros(1, dtype=[("a", object)]),
        "masked array": np.ma.array([1, 2], mask=[True, False]),
        "masked": np.ma.masked,
        "kind of array": np.zeros(1).view(type("Kind", (np.ndarray,), {})),
        "dtype": np.dtype("f8"),
        "finfo": np.finfo(np.float64),
        "iinfo": np.iinfo(np.int64),
        "random generator": np.random.default_rng(1),
        "kind of frame": OwnFrame({"a": [1]}),
        "groups of pandas": pd.DataFrame({"a": [1]}).groupby("a"),
        "type of pandas": pd.Int64Dtype(),
    }


class Grown(Page):
    """A subclass of a dataclass that is none itself."""

    def __init__(self, extra):
        super().__init__(1)
        self.extra = extra


class Throne(Chair):
    __slots__ = ("gold",)

    def __init__(self, gold):
        super().__init__(4)
        self.gold = gold


class Place(Point):
    """A named tuple whose objects have a dict."""


@dataclasses.dataclass
class Pages(list):
    number: int


@dataclasses.dataclass
class Queue(deque):
    number: int


@attrs.define(slots=False)
class Chairs(dict):
    number: int


class Slotted:
    __slots__ = ("hidden",)

    def hide(self, hidden):
        self.hidden = hidden
        return self


@dataclasses.dataclass(slots=True)
class OnSlots(Slotted):
    number: int


@attrs.define
class OnSlotsToo(Slotted):
    number: int


@dataclasses.dataclass
class Unset:
    number: int = dataclasses.field(init=False)


@attrs.define
class UnsetToo:
    number: int = attrs.field(init=False)


def holding(thing, **attributes):
    vars(thing).update(attributes)
    return thing


def filled(kind, *content):
    made = kind(1)
    (made.update if kind is Chairs else made.extend)(*content)
    return made


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Grown(1), "Grown, which is derived from a dataclass and is none itself"),
        (lambda: Throne(1), "Throne, which is derived from an attrs class and is none itself"),
        (lambda: holding(Page(1), extra=1), "Page whose attribute 'extra' is none of its fields"),
        (lambda: holding(Stool(1), extra=1), "Stool whose attribute 'extra' is none of"),
        (lambda: holding(Place(1), extra=1), "Place whose attribute 'extra' is none of"),
        (lambda: holding(Sized(width=1), extra=1), "Sized whose attribute 'extra' is none of"),
        (lambda: OnSlots(1).hide(1), "OnSlots whose attribute 'hidden' is none of"),
        (lambda: OnSlotsToo(1).hide(1), "OnSlotsToo whose attribute 'hidden' is"),
        (lambda: filled(Pages, [1]), "Pages, which is a list too"),
        (lambda: filled(Queue, [1]), "Queue, which is a deque too"),
        (lambda: filled(Chairs, {"a": 1}), "Chairs, which is a dict too"),
        (Unset, "Unset whose field 'number' has no value"),
        (UnsetToo, "UnsetToo whose field 'number' has no value"),
    ],
)
def test_an_object_that_is_not_told_by_its_fields_is_refused(make, why):
    with pytest.raises(KeyTypeError, match=why) as refused:
        key_of(make())
    assert "__atomcache_key__" in str(refused.value)


def test_what_an_object_has_worked_out_from_its_fields_does_not_count():
    for make in (Square, SquareToo, SlottedSquare, Hashed, Box[int], SlottedBox[int]):
        asked = make(2)
        assert hash(asked) == hash(make(2))
        assert getattr(asked, "area", 4) == 4
        assert key_of(asked) == key_of(make(2))
    assert key_of(Box[int](2)) == key_of(Box(2))
    assert key_of(Place(1)) == key_of(Place(1, 0)) != key_of(Place(2))
    assert key_of(OnSlots(1)) == key_of(OnSlots(1))


T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Square:
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


@attrs.frozen(slots=False)
class SquareToo:
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


@attrs.frozen
class SlottedSquare:
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


@attrs.frozen(slots=False, cache_hash=True)
class Hashed:
    width: int


@dataclasses.dataclass(frozen=True)
class Box(Generic[T]):
    content: T


@attrs.frozen
class SlottedBox(Generic[T]):
    content: T


class Secretive(pydantic.BaseModel):
    number: int
    _secret: object = pydantic.PrivateAttr(None)

    def keeping(self, secret):
        self._secret = secret
        return self


def test_private_attributes_of_a_model_count():
    keys = [Secretive(number=1).keeping(secret) for secret in (None, 1, "1")]
    assert len({key_of(key) for key in keys}) == 3
    assert key_of(keys[1]) == key_of(Secretive(number=1).keeping(1))
    with pytest.raises(KeyTypeError, match=r"_thread\.lock"):
        key_of(Secretive(number=1).keeping(threading.Lock()))


def type_name(thing):
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


@pytest.mark.parametrize("thing", not_plain().values(), ids=not_plain())
def test_anything_else_is_refused_by_the_name_of_its_type(thing):
    with pytest.raises(KeyTypeError) as refused:
        key_of(thing)
    said = str(refused.value)
    assert type_name(thing) in said
    assert "pass what identifies the object" in said
    assert "__atomcache_key__" in said
    assert isinstance(refused.value, TypeError)


WRAPPINGS = {
    "list": lambda it: [it],
    "tuple": lambda it: (1, (2, it)),
    "dict": lambda it: {"a": it},
    "dict's key": lambda it: {it: 1},
    "set": lambda it: {it},
    "OrderedDict": lambda it: OrderedDict(a=it),
    "deque": lambda it: deque([it]),
    "slice": lambda it: slice(it),
    "dataclass": lambda it: Page(it),
    "attrs": lambda it: Chair(it),
    "model": lambda it: Holder(thing=it),
    "named tuple": lambda it: Point(it),
    "own": lambda it: Own(it),
    "Series": lambda it: pd.Series([1, it], dtype=object),
    "Index": lambda it: pd.Index([1, it], dtype=object),
    "frame": lambda it: pd.DataFrame({"a": pd.Series([1, it], dtype=object)}),
    "name": lambda it: pd.Series([1], name=it),
    "columns": lambda it: pd.DataFrame([[1]], columns=pd.Index([it], dtype=object)),
    "Categorical": lambda it: pd.Categorical([it]),
    "MultiIndex": lambda it: pd.MultiIndex.from_arrays([pd.Index([it], dtype=object), [1]]),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_it_is_refused_inside_anything_else_too(wrap):
    with pytest.raises(KeyTypeError, match=r"holds a builtins\.object, which is not plain"):
        key_of(wrap(object()))


def test_what_contains_itself_is_refused():
    circle = []
    circle.append(circle)
    ring = {}
    ring["ring"] = [ring]
    for endless in (circle, ring, (circle,), Page(circle), pd.Series([circle], dtype=object)):
        with pytest.raises(KeyTypeError, match="contains itself"):
            key_of(endless)


def test_a_key_too_deep_for_what_its_caller_left_of_the_stack_is_refused():
    key = functools.reduce(lambda inner, _: (inner,), range(190), "core")

    def deeper(levels):
        return deeper(levels - 1) if levels else key_of(key)

    room = sys.getrecursionlimit() - len(inspect.stack(0))
    assert deeper(0) == key_of(key)
    with pytest.raises(KeyTypeError, match="nested too deeply"):
        deeper(room - 300)


def test_a_stack_that_is_full_before_a_shallow_key_comes_is_not_told_of_the_key():
    def deeper(levels):
        return deeper(levels - 1) if levels else key_of([{"a": Page((1, [2]))}])

    room = sys.getrecursionlimit() - len(inspect.stack(0))
    assert deeper(0) == deeper(room - 300)
    seen = set()
    for left in range(1, 60):
        try:
            deeper(room - left)
        except RecursionError:
            seen.add(left)
    assert len(seen) > 10


def test_a_message_stays_short_however_long_the_key():
    with pytest.raises(KeyTypeError) as refused:
        key_of([*["x" * 1000] * 1000, object()])
    assert len(str(refused.value)) < 1500


def test_a_refused_key_leaves_nothing_and_calls_no_factory(tmp_path):
    cache = Cache(tmp_path / "cache")
    built = []
    for ask in (
        lambda: cache.get_or_create([object()], lambda: built.append(1)),
        lambda: cache.get_or_create_path([object()], built.append, name="a"),
        lambda: cache.set([object()], 1),
        lambda: cache.get([object()]),
    ):
        with pytest.raises(KeyTypeError):
            ask()
    assert built == []
    assert list(cache.entries()) == []


def test_an_argument_that_is_not_plain_is_named_with_the_ways_out():
    with pytest.raises(KeyTypeError) as refused:
        call(1, unit=threading.Lock())
    said = str(refused.value)
    for word in (
        "'unit'",
        "tests.test_keys.multiply",
        "_thread.lock",
        "key=",
        "ignore=('unit',)",
        "__atomcache_key__",
    ):
        assert word in said
    with pytest.raises(KeyTypeError, match=r"what key= returned .*_thread\.lock"):
        call(1, 2, find_key=lambda a, b, *, unit: threading.Lock())


def test_an_argument_by_a_name_of_its_own_is_named_by_that():
    for ignore in ((), ("unit",)):
        with pytest.raises(KeyTypeError, match=r"the argument 'lock' of .*ignore=\('lock',\)"):
            call(1, first=1, lock=threading.Lock(), ignore=ignore)


def test_an_array_of_objects_is_refused_by_its_dtype():
    with pytest.raises(KeyTypeError, match=r"a numpy\.ndarray of dtype=object, whose items"):
        key_of(np.array([1, "a"], dtype=object))
    with pytest.raises(KeyTypeError, match=r"a numpy\.ndarray of dtype=\[\('a', 'O'\)\]"):
        key_of((1, np.zeros(1, dtype=[("a", object)])))


def test_an_ignored_argument_need_not_be_plain():
    ignored = [call(1, unit=threading.Lock(), ignore=("unit",)) for _ in range(2)]
    assert key_of(ignored[0]) == key_of(ignored[1])


def test_keys_of_calls_hold_on_to_no_long_argument():
    for wrap in (lambda text: text, lambda text: [text], lambda text: {"a": text}):
        keys = [call(wrap("a" * 100_000 + end)) for end in "aab"]
        assert keys[0] == keys[1] != keys[2]
        assert key_of(keys[0]) == key_of(keys[1]) != key_of(keys[2])
        assert sys.getsizeof(keys[0]) < 1000
        assert len(pickle.dumps(keys[0])) < 1000


def test_a_cache_remembers_small_keys_apart_by_type(tmp_path):
    cache = Cache(tmp_path / "cache")
    plain = [1, True, "1", b"1", None, 0, False, "", b""]
    keys = [wrap(one) for wrap in (lambda one: one, lambda one: (one,)) for one in plain]
    keys += [(1, (one,)) for one in plain] + [((1,), one) for one in plain] + [(), ((),)]
    keys += [0.0, -0.0, (0.0,), (-0.0,), (1.0,), ("1", b"1"), (b"1", "1"), ((1, 1),), (1, 1)]
    for _ in range(2):
        for key in keys:
            assert cache.get_or_create(key, lambda key=key: repr(key)) == repr(key)
            made = cache.get_or_create_path(
                key, lambda target, key=key: target.write_text(repr(key)), name="a"
            )
            assert made.read_text() == repr(key)


@pytest.mark.parametrize("key", ["a", 5, None, ("a", 5), ("a", (True, (b"b",)))], ids=repr)
def test_a_small_plain_key_is_digested_once(tmp_path, monkeypatch, key):
    cache = Cache(tmp_path / "cache")
    made = cache.get_or_create(key, lambda: [1])
    monkeypatch.setattr(_asking, "digest", None)
    assert cache.get_or_create(key, lambda: [2]) == made


def test_remembering_keys_compares_no_text_with_bytes(tmp_path):
    code = """
import sys
from atomcache import Cache

cache = Cache(sys.argv[1])


@cache.memoize
def same(a, b=None):
    return a


for key in ("a", b"a", ("a",), (b"a",), ("a", ("a",)), ("a", (b"a",))):
    cache.get_or_create(key, lambda: None)
    same(key), same(b=key, a=1)
print(len(list(cache.entries())))
"""
    assert python("-bb", "-c", code, tmp_path / "cache") == 18


@pytest.mark.parametrize("kind", ["text", "tuple", "path", "call", "list", "ignored", "key"])
def test_what_is_remembered_of_long_keys_takes_little_memory(tmp_path, kind):
    cache = Cache(tmp_path / "cache")
    call = cache.memoize(named("call"))
    ignoring = cache.memoize(ignore=("text",))(named("ignoring"))
    by_key = cache.memoize(key=lambda number, text: text)(named("by_key"))
    ask = {
        "text": lambda number, text: cache.get_or_create(text, lambda: 1),
        "tuple": lambda number, text: cache.get_or_create((text, number), lambda: 1),
        "path": lambda number, text: cache.get_or_create_path(text, Path.touch, name="a"),
        "call": call,
        "list": lambda number, text: call(number, [text]),
        "ignored": ignoring,
        "key": by_key,
    }[kind]
    ask(-1, "")  # what is loaded at the first call stays
    tracemalloc.start()
    try:
        for number in range(50):
            ask(number, f"{number}" * 50_000)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def named(name):
    def function(number, text):
        return 1

    function.__qualname__ = name
    return function


def test_calls_that_are_equal_have_equal_keys_and_others_not():
    assert call(1) == call(a=1, b=2)
    assert hash(call(1)) == hash(call(a=1, b=2))
    for other in (call(1, 3), call(1.0), call(1, version=1), call(True)):
        assert call(1) != other


# -- classes of a script ------------------------------------------------------------------

SCRIPT = """
import dataclasses, enum, json, multiprocessing, sys, typing
from atomcache._call_key import Calls
from atomcache._keys import digest

@dataclasses.dataclass
class Page:
    number: int

class Colour(enum.Enum):
    RED = 1

class Point(typing.NamedTuple):
    x: int

class Own:
    def __atomcache_key__(self):
        return 1

class Outer:
    class Inner(Own):
        pass

def work(number):
    return number

def keys():
    things = [Page(1), Colour.RED, Point(1), Own(), Outer.Inner()]
    things.append(Calls(work, None, (), None).key((1,), {}))
    return [digest(b"v", thing).hex() for thing in things]

def there(line):
    line.send([__name__, keys()])

if __name__ == "__main__":
    said = {}
    for method in sys.argv[1:]:
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=there, args=(theirs,))
        process.start()
        theirs.close()
        said[method] = ours.recv()
        process.join()
    said["here"] = [__name__, keys()]
    print(json.dumps(said))
"""

METHODS = ["spawn", "forkserver", "fork"] if os.name == "posix" else ["spawn"]


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "project" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    path = folder / "script.py"
    path.write_text(SCRIPT)
    return path


def same_everywhere(said):
    """Return the keys that all processes of a script agree on."""
    name, keys = said.pop("here")
    assert name == "__main__"
    assert len(set(keys)) == 6
    assert said["spawn"] == ["__mp_main__", keys]
    for method, (_, there) in said.items():
        assert there == keys, method
    return keys


def test_a_class_of_a_script_is_the_same_in_its_workers(script):
    same_everywhere(python("-W", "ignore", script, *METHODS))


def test_a_class_of_a_module_run_by_name_is_the_same_in_its_workers_and_when_imported(script):
    root = script.parent.parent
    ran = same_everywhere(
        python("-W", "ignore", "-m", "package.script", *METHODS, cwd=root, env=seen_from(root))
    )
    code = "import json, package.script; print(json.dumps(package.script.keys()))"
    assert python("-c", code, cwd=root, env=seen_from(root)) == ran


def seen_from(root):
    """Return an environment in which modules of a folder can be imported."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(root), *([before] if before else [])])
    return {**os.environ, "PYTHONPATH": path}


def test_a_script_is_the_same_however_its_path_is_written(script, tmp_path):
    direct = python(script)
    assert python("script.py", cwd=script.parent) == direct
    assert python(f"..{os.sep}package{os.sep}script.py", cwd=script.parent) == direct
    if os.name == "posix":
        link = tmp_path / "link.py"
        link.symlink_to(script)
        assert python(link) == direct


def test_two_scripts_are_not_taken_for_each_other(script):
    other = script.with_name("other.py")
    other.write_text(SCRIPT)
    keys = python(script)["here"][1] + python(other)["here"][1]
    assert len(set(keys)) == 12


def test_classes_typed_at_the_prompt_have_stable_keys():
    assert python("-c", SCRIPT) == python("-c", SCRIPT)


def test_two_notebooks_are_not_taken_for_each_other():
    names = ["", "/home/me/a.ipynb", "/home/me/b.ipynb"]
    said = [python("-c", SCRIPT, env=in_notebook(name))["here"] for name in names]
    assert len({key for _, keys in said for key in keys}) == 18
    by_vscode = f"__vsc_ipynb_file__ = {names[1]!r}\n{SCRIPT}"
    assert python("-c", by_vscode, env=in_notebook(""))["here"] == said[1]


def test_a_notebook_whose_server_does_not_know_its_path_is_the_same_in_each_session():
    one, other = (python("-c", SCRIPT, env=in_notebook(f"/home/me/{uuid.uuid4()}")) for _ in "ab")
    assert one == other


def in_notebook(name):
    """Return the environment of a kernel, as Jupyter's server gives it."""
    return {**os.environ, "JPY_SESSION_NAME": name}
