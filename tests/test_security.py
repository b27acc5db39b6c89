"""Stored bytes never execute anything, unless the caller asked for that in a safe place."""

import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import atomcache
from atomcache import (
    BuildFailedError,
    Cache,
    CodecError,
    MissingEntryError,
    UnsafeDirectoryError,
    _header,
    _inert,
)
from atomcache._claim import take
from atomcache._door import Door, door
from atomcache._keys import digest
from atomcache._lines import write_lines

from .crew import leftovers

np = pytest.importorskip("numpy")

NOBODY = 65534
SECRET = b"0123456789abcdef"

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes of POSIX")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to give files away"
)


class Evil:
    """When unpickled, it leaves a file where it says."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class EvilCommand(Evil):
    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class EvilEval(Evil):
    def __reduce__(self):
        return eval, (f"open({self.marker!r}, 'w').close()",)


def evil_pickles(marker):
    """Return pickles of every protocol and shape that run code when loaded naively."""
    pickles = [
        pickle.dumps(wrap(kind(marker)), protocol)
        for protocol in range(6)
        for kind in (Evil, EvilCommand, EvilEval)
        for wrap in (lambda evil: evil, lambda evil: {"list": [1, (evil,)]})
    ]
    pickles.append(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    pickles.append(f"(S'touch {marker}'\nios\nsystem\n.".encode())
    pickles.append(f"(cos\nsystem\nS'touch {marker}'\no.".encode())
    pickles.append(f"catomcache._inert\nio.os.mkdir\n(S'{marker}'\ntR.".encode())
    pickles.append(f"catomcache._door\nos.mkdir\n(S'{marker}'\ntR.".encode())
    return pickles


def entry_of(cache, key="key", kind=b"v"):
    return Path(cache._layout.entry(digest(kind, key)))


def forge(cache, payload, key="key", codec=b"data", form=0, buffers=(), seal=b""):
    """Plant an entry that is right in all but its payload."""
    parts = _header.assemble(
        digest=digest(b"v", key),
        codec=codec.ljust(24, b"\0"),
        form=form,
        created=time.time(),
        expires=_header.NEVER,
        took=0.0,
        meta=[("key", key)],
        payload=payload,
        buffers=[memoryview(each) for each in buffers],
        seal=seal.ljust(32, b"\0"),
    )
    cache._layout.make_room(str(entry_of(cache, key)))
    entry_of(cache, key).write_bytes(b"".join(parts))


EXTENSION = """
import copyreg, os, pickle, sys
from atomcache import Cache
copyreg.add_extension("posix", "system", 0xF2)
pickle.loads(pickle.dumps(os.system, 2))  # so that pickle remembers it
print(Cache(sys.argv[1]).get("key", "a miss"))
"""


def test_an_extension_code_that_the_program_has_used_is_not_executed(cache, marker):
    command = f"touch {marker}".encode()
    forge(cache, b"\x80\x02\x82\xf2X" + len(command).to_bytes(4, "little") + command + b"\x85R.")
    done = subprocess.run(
        [sys.executable, "-c", EXTENSION, str(cache.directory)],
        env={**os.environ, "PYTHONPATH": str(Path(atomcache.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "a miss"
    assert not marker.exists()


def test_a_counter_is_made_of_counts_only(cache, caplog):
    """Of a range, which takes a few bytes to write down, it would count for ever."""
    forge(cache, restorer("STANDARD") + part(("Counter", [1, 1])) + b"R.")
    assert cache.get("key", "a miss") == "a miss"
    assert "not counts" in caplog.text


def test_a_pickle_so_deep_that_not_even_its_error_can_be_shown_is_a_miss(cache):
    forge(cache, b"\x80\x05catomcache._inert\nSTANDARD\n)" + b"\x85" * 3000 + b"\x85R.")
    assert cache.get("key", "a miss") == "a miss"
    assert cache.get_or_create("key", lambda: "anew") == "anew"


def test_a_name_in_a_meta_leads_nowhere_else(cache, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    made = cache.get_or_create_path("key", lambda target: target.write_text("x"), name="n")
    meta = made.parent / ".atomcache"
    head = _header.parse(meta.read_bytes())
    parts = _header.assemble(
        digest=head.digest,
        codec=head.codec,
        form=head.form,
        created=head.created,
        expires=head.expires,
        took=head.took,
        meta=[("key", "key"), ("name", str(outside / "file"))],
        payload=b"",
        seal=head.seal,
    )
    meta.write_bytes(b"".join(parts))
    assert cache.get_path("key") is None
    with pytest.raises(MissingEntryError), cache.hold("key"):
        pass
    assert sorted(path.name for path in outside.iterdir()) == ["file"]


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


def test_control_the_planted_pickles_do_execute_where_they_are_simply_loaded(tmp_path):
    for number, payload in enumerate(evil_pickles(tmp_path / "executed")[:-2]):
        marker = tmp_path / "executed"
        pickle.loads(payload)
        assert marker.exists(), number
        marker.rmdir() if marker.is_dir() else marker.unlink()


def test_control_a_forged_entry_is_read(cache):
    forge(cache, pickle.dumps(["forged"]))
    assert cache.get("key") == ["forged"]


def test_a_pickle_planted_in_an_entry_is_a_miss_and_never_executed(cache, marker, caplog):
    for payload in evil_pickles(marker):
        forge(cache, payload)
        caplog.clear()
        assert cache.get("key", "a miss") == "a miss"
        assert "not admitted" in caplog.text
        assert cache.get_or_create("key", lambda: "built") == "built"
        assert not marker.exists()


@pytest.mark.parametrize("codec", ["json", "bytes", "text", "data"])
@pytest.mark.parametrize("header", [b"data", b"pickle", b"json", b"bytes", b"text"])
@pytest.mark.parametrize("form", [0, 1, 2, 3])
def test_no_header_can_talk_a_reader_into_unpickling(cache, marker, codec, header, form):
    for payload in evil_pickles(marker):
        forge(cache, payload, codec=header, form=form)
        cache.get("key", codec=codec)
        assert not marker.exists()
        if header.decode() != codec:
            assert cache.get("key", "a miss", codec=codec) == "a miss"


@pytest.mark.parametrize("codec", ["data", "json", "bytes", "text"])
def test_an_entry_that_the_codec_pickle_wrote_is_a_miss_for_another_codec(cache, marker, codec):
    cache.set("key", Evil(marker), codec="pickle")
    new = {"bytes": b"built"}.get(codec, "built")
    assert cache.get("key", "a miss", codec=codec) == "a miss"
    assert cache.get_or_create("key", lambda: new, codec=codec) == new
    assert not marker.exists()


# -- pickles made of what the reader admits --------------------------------------------


class Call:
    """Pickles as a call of a restorer, with a state to build if given."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def part(value):
    """Return the opcodes that put a value on the stack."""
    return pickle.dumps(value, 0)[:-1]


def restorer(name):
    return f"catomcache._inert\n{name}\n".encode()


def changed(name, state):
    """Return a pickle that alters a restorer, and then calls it."""
    call = part(("Path", "x")) + b"R." if name == "STANDARD" else b")R."
    return restorer(name) + part(state) + b"b" + call


STATES = [
    {"_function": 5},
    {"_name": "x"},
    {"__call__": 5},
    {"__class__": 5},
    (None, {"_function": 5}),
    (None, {"_name": "eval"}),
    (None, {"__class__": 5}),
    ({"_function": 5}, {"_function": 5}),
]
STANDARD, ARRAY, SCALAR = _inert.STANDARD, _inert.ARRAY, _inert.SCALAR
CRAFTED = {
    **{
        f"changed {name} {number}": changed(name, state)
        for name in ("STANDARD", "ARRAY", "SCALAR", "ALLOWED")
        for number, state in enumerate(STATES)
    },
    "item of a restorer": restorer("STANDARD") + part("a") + part("b") + b"s.",
    "append to a restorer": restorer("STANDARD") + part("a") + b"a.",
    "persistent id": b"Pevil\n.",
    "new of a restorer": restorer("STANDARD") + b")\x81.",
    "unknown module": b"catomcache._inert\n_restore_standard\n(S'eval'\ntR.",
    "makers": b"catomcache._inert\n_makers\n)R.",
    "dotted": b"\x80\x04\x8c\x10atomcache._inert\x8c\x12STANDARD._function\x93.",
    "dunder": b"\x80\x04\x8c\x10atomcache._inert\x8c\x11STANDARD.__class__\x93.",
    "builtins": b"cbuiltins\neval\n(S'1'\ntR.",
    "extension": b"\x82\x01.",
    "endless memo": b"h\xff.",
    "no buffer": b"\x80\x05\x97.",
    "nothing": b"",
    "only stop": b".",
    "stack underflow": b"0000.",
}
CALLS = {
    **{
        f"unknown standard {name!r}": (STANDARD, (name,))
        for name in ("eval", "__import__", "os.system", "", 5, None, "exec", (), "_makers")
    },
    "standard without a name": (STANDARD, ()),
    "object array": (ARRAY, ("O", (1,), "C", bytes(8))),
    "object array aliased": (ARRAY, ("|O", (1,), "C", b"\x01" * 8)),
    "object in a structure": (ARRAY, ([("a", "O")], (1,), "C", b"\x01" * 8)),
    "object in a subarray": (ARRAY, ([("a", "O", (2,))], (1,), "C", b"\x01" * 16)),
    "nested object": (ARRAY, ([("a", [("b", "O")])], (1,), "C", b"\x01" * 8)),
    "object scalar": (SCALAR, ("O", b"\x01" * 8)),
    "object structure scalar": (SCALAR, ([("a", "O")], b"\x01" * 8)),
    "string dtype": (ARRAY, ("T", (1,), "C", b"\x01" * 16)),
    "huge shape": (ARRAY, ("<i8", (2**62,), "C", b"12345678")),
    "huge shape twice": (ARRAY, ("<i8", (2**40, 2**40), "C", b"12345678")),
    "huge shape of nothing": (ARRAY, ("<i8", (2**62, 2**62, 0), "C", b"")),
    "overflowing shape": (ARRAY, ("<i8", (2**100,), "C", b"12345678")),
    "huge item": (ARRAY, ("V2147483647", (1,), "C", b"1")),
    "empty item": (ARRAY, ("V0", (5,), "C", b"")),
    "shape of text": (ARRAY, ("<i8", "abc", "C", b"12345678")),
    "shape of many": (ARRAY, ("<i8", (1,) * 1000, "C", b"12345678")),
    "no data": (ARRAY, ("<i8", (1,), "C", None)),
    "data of text": (ARRAY, ("<i8", (1,), "C", "text")),
    "dtype of nothing": (ARRAY, (None, (1,), "C", bytes(8))),
    "dtype of numbers": (ARRAY, (5, (1,), "C", bytes(8))),
    "dtype of rubbish": (ARRAY, ("rubbish", (1,), "C", bytes(8))),
    "dtype by comma": (ARRAY, ("i4,O", (1,), "C", bytes(16))),
    "too few": (ARRAY, ()),
    "scalar of nothing": (SCALAR, ("<i8", b"")),
    "not a date": (STANDARD, ("datetime", b"\xff" * 10)),
    "not a time": (STANDARD, ("time", b"\xff" * 6)),
    "not a number": (STANDARD, ("Decimal", "rubbish")),
    "division by zero": (STANDARD, ("Fraction", 1, 0)),
    "zone outside": (STANDARD, ("ZoneInfo", "../../../../etc/passwd")),
    "zone absolute": (STANDARD, ("ZoneInfo", "/etc/passwd")),
    "zone of nothing": (STANDARD, ("ZoneInfo", "")),
    "factory out of range": (STANDARD, ("defaultdict", 10**30)),
    "uuid of text": (STANDARD, ("UUID", "x")),
    "allowed of nobody": (_inert.ALLOWED, ("os:system", "call", ("true",))),
    "allowed of builtins": (_inert.ALLOWED, ("builtins:eval", "call", ("1",))),
    "allowed by path": (_inert.ALLOWED, ("os:path", "new", ())),
    "path of nul": (STANDARD, ("range", "x", "y")),
}
MUST_MISS = {
    **CRAFTED,
    **{name: pickle.dumps(Call(*reduced), 5) for name, reduced in CALLS.items()},
}
HARMLESS = {  # may be read as some value, a wrong one at worst
    "huge shape of nothing",
    "empty item",
    "negative shape",
    "only stop",
    "endless memo",
    "data of text",
    "shape of many",
}


@pytest.mark.parametrize("name", MUST_MISS)
def test_a_pickle_crafted_from_admitted_names_is_a_miss_and_changes_nothing(cache, name):
    functions = [each._function for each in (STANDARD, ARRAY, SCALAR)]
    forge(cache, MUST_MISS[name])
    got = cache.get("key", "a miss")
    if name not in HARMLESS:
        assert isinstance(got, str)
        assert got == "a miss"
    assert functions == [each._function for each in (STANDARD, ARRAY, SCALAR)]
    assert not hasattr(STANDARD, "__dict__")
    cache.set("key", [Path("still works"), np.arange(3)])
    assert cache.get("key")[0] == Path("still works")


def test_a_restorer_can_not_be_changed():
    for name in ("_function", "_name", "other", "__call__"):
        with pytest.raises(AttributeError):
            setattr(STANDARD, name, eval)
        with pytest.raises((AttributeError, TypeError)):
            delattr(STANDARD, name)


@pytest.mark.parametrize("position", range(4))
def test_no_order_of_admitted_calls_reaches_anything_that_executes(cache, marker, position):
    """Take what a restorer returns as the function of the next call."""
    payloads = [
        part(Call(STANDARD, ("Path", "x"))) + part(("a",)) + b"R.",
        part(Call(STANDARD, ("defaultdict", 1)))
        + part((None, {"default_factory": os.system}))
        + b"b.",
        part(Call(STANDARD, ("OrderedDict",))) + part({"update": os.mkdir}) + b"b.",
        part(Call(STANDARD, ("Counter", {"a": 1}))) + part({"__init__": eval}) + b"b.",
    ]
    forge(cache, payloads[position])
    assert cache.get("key", "a miss") == "a miss"
    assert not marker.exists()


BOMBS = {
    "bytes": b"\x80\x05\x8e" + (2**62).to_bytes(8, "little") + b"x.",
    "text": b"\x80\x05\x8d" + (2**62).to_bytes(8, "little") + b"x.",
    "bytearray": b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b"x.",
    "many bytes": b"\x80\x05\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "frame": b"\x80\x05\x95" + (2**62).to_bytes(8, "little") + b"N.",
    "memo": b"\x80\x05Nr\xff\xff\xff\x7f.",
    "fraction": pickle.dumps(Call(STANDARD, ("Fraction", "1e10000000000")), 5),
    "deep": b"\x80\x05" + b"(" * 1_000_000 + b"l" * 1_000_000 + b".",
    "deep tuple": b"\x80\x05)" + b"\x85" * 1_000_000 + b".",
}
READ_BOMB = """
import resource, sys
from atomcache import Cache
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
cache = Cache(sys.argv[1])
value = cache.get("key", "a miss")
print("harmless" if value != "a miss" and type(value) in (list, tuple) else value)
cache.set("key", "still works")
assert cache.get("key") == "still works"
"""


def run(code, *args, timeout=20):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(Path(atomcache.__file__).parent.parent)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize("name", BOMBS)
def test_a_few_bytes_that_ask_for_endless_memory_or_time_do_not_crash_the_reader(cache, name):
    forge(cache, BOMBS[name])
    said = run(READ_BOMB, cache.directory)
    assert said in ("a miss", "harmless", "None")


# -- claims and failures ---------------------------------------------------------------


class Bell(Door):
    """The real door, which tells when its owner is about to sleep on a claim."""

    def __init__(self, ring):
        super().__init__()
        self.ring = ring

    def wait_shared(self, fd, timeout):
        self.ring()
        return super().wait_shared(fd, timeout)


def ask_behind(cache, lines):
    """Wait for a build whose owner writes `lines` into its claim, and goes."""
    entry = str(entry_of(cache))
    claim = take(door, cache._layout, entry, 30.0)
    claim.sign("forged")
    rang = []

    def ring():
        rang.append(1)
        door.write(claim.fd, lines)
        claim.release()

    cache._open(Bell(ring))
    try:
        return cache.get_or_create("key", lambda: "built")
    finally:
        claim.release()
        assert rang == [1], "nobody waited: this test tests nothing"
        assert leftovers(cache.directory) == []


def record(**fields):
    given = {"module": "builtins", "name": "ValueError", "message": "m", "traceback": "t"}
    return write_lines([("failure", json.dumps({**given, **fields}))])


def content(value):
    return pickle.dumps(value, 5).hex()


class Loud(Exception):
    heard = []  # noqa: RUF012

    def __new__(cls, *args):
        cls.heard.append("new")
        return super().__new__(cls, *args)

    def __init__(self, *args):
        self.heard.append("init")

    def __setstate__(self, state):
        self.heard.append("setstate")


class Trap:
    """An object in a module that does something when it is looked at, as proxies do."""

    def __getattribute__(self, name):
        Loud.heard.append(name)
        return object.__getattribute__(self, name)


trap = Trap()


def test_control_a_failure_in_a_claim_is_raised_in_those_who_wait(cache):
    with pytest.raises(KeyError) as caught:
        ask_behind(cache, record(name="KeyError", content=content((("a", 1), {"note": 5}))))
    assert caught.value.args == ("a", 1)
    assert caught.value.note == 5


def test_a_pickle_planted_in_a_failure_is_never_executed(cache, marker):
    for payload in evil_pickles(marker):
        assert ask_behind(cache, record(content=payload.hex())) == "built"
        assert not marker.exists()
        cache.remove("key")


def test_a_pickle_planted_as_a_claim_is_never_executed(cache, marker):
    claim = Path(f"{entry_of(cache)}.temp")
    cache._layout.make_room(str(entry_of(cache)))
    for payload in evil_pickles(marker):
        claim.write_bytes(payload)
        assert cache.get_or_create("key", lambda: "built") == "built"
        assert not claim.exists()
        assert not marker.exists()
        cache.remove("key")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "SystemExit"),
        ("builtins", "KeyboardInterrupt"),
        ("builtins", "GeneratorExit"),
        ("builtins", "BaseException"),
        ("builtins", "eval"),
        ("builtins", "type"),
        ("builtins", "object"),
        ("os", "system"),
        ("os", "mkdir"),
        ("subprocess", "Popen"),
        ("atomcache", "Cache"),
        ("atomcache._door", "os.system"),
        ("this", "Zen"),
        ("no.such.module", "Error"),
        ("", ""),
        ("builtins", "ValueError.__init__"),
        ("builtins", "__dict__.ValueError"),
    ],
)
def test_a_failure_of_a_class_that_is_no_exception_here_becomes_a_build_failed_error(
    cache, module, name, marker
):
    line = record(module=module, name=name, content=content(((str(marker),), {})))
    with pytest.raises(BuildFailedError):
        ask_behind(cache, line)
    assert not marker.exists()
    assert "this" not in sys.modules


def test_a_failure_is_restored_without_running_code_of_its_class(cache):
    Loud.heard.clear()
    line = record(module=__name__, name="Loud", content=content((("a",), {"b": 1})))
    with pytest.raises(Loud) as caught:
        ask_behind(cache, line)
    assert caught.value.args == ("a",)
    assert Loud.heard == []


def test_looking_for_the_class_of_a_failure_runs_no_code_of_what_lies_on_the_way(cache):
    Loud.heard.clear()
    with pytest.raises(BuildFailedError):
        ask_behind(cache, record(module=__name__, name="trap.Thing"))
    assert Loud.heard == []


@pytest.mark.parametrize(
    "line",
    [
        write_lines([("failure", "")]),
        write_lines([("failure", "null")]),
        write_lines([("failure", "5")]),
        write_lines([("failure", "[]")]),
        write_lines([("failure", "{}")]),
        write_lines([("failure", '"text"')]),
        write_lines([("failure", "[" * 100_000)]),
        record(module=[]),
        record(name=5),
        record(name=None),
        record(name=[]),
        record(content=5),
        record(content=[]),
        record(content="not hex"),
        record(content=""),
        record(content="2e"),
        record(content=content(5)),
        record(content=content(())),
        record(content=content((1, 2))),
        record(content=content((("a",), []))),
        record(content=content((["a"], {}))),
        record(content=content(((), {}, ()))),
        *(record(content=payload.hex()) for payload in CRAFTED.values()),
        *(record(content=content(Call(*reduced))) for reduced in CALLS.values()),
    ],
)
def test_a_failure_that_nobody_wrote_counts_as_none(cache, line):
    assert ask_behind(cache, line) == "built"


@pytest.mark.parametrize("name", ["bytes", "text", "bytearray"])
def test_a_failure_that_asks_for_endless_memory_counts_as_none(cache, name):
    assert ask_behind(cache, record(content=BOMBS[name].hex())) == "built"


@pytest.mark.parametrize(
    ("name", "args"),
    [("UnicodeDecodeError", ("a",)), ("ExceptionGroup", ("a", "b")), ("OSError", (1, "a", "b"))],
)
def test_a_failure_with_arguments_that_its_class_refuses_still_is_an_exception(cache, name, args):
    with pytest.raises((BuildFailedError, OSError)):
        ask_behind(cache, record(name=name, content=content((args, {}))))


@pytest.mark.parametrize(
    "token", ["../../../precious", "/precious", "a/../../precious", "", ".", "..", "0x1", "1_0"]
)
def test_a_claim_can_not_name_a_scratch_outside_its_place(tmp_path, token):
    cache = Cache(tmp_path / "cache")
    entry = entry_of(cache)
    cache._layout.make_room(str(entry))
    for step in ("", "a", ".."):  # so that a path through it exists
        Path(f"{entry}.temp.{step}").mkdir()
    folders = [tmp_path, cache.directory, entry.parents[1], entry.parent, f"{entry}.temp."]
    precious = [Path(folder, "precious") for folder in folders]
    for each in precious:
        each.mkdir()
    claim = take(door, cache._layout, str(entry), 30.0)
    claim.token = token
    claim.sign("forged")
    claim.scratch_made = False
    door.stop_heartbeat(claim.fd)
    door.unlock(claim.fd)  # its owner seems to be dead
    assert cache.get_or_create("key", lambda: "built") == "built"
    claim.release()
    assert all(each.is_dir() for each in precious)


# -- the codec "pickle" ----------------------------------------------------------------


@pytest.fixture
def roof():
    """Return a private folder right below ``/tmp``, which is sticky."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        yield Path(place)


class Thing:
    def __eq__(self, other):
        return type(other) is Thing

    __hash__ = None


@pytest.fixture
def pickles(roof):
    """Return a cache two folders deep that holds one entry by the codec ``"pickle"``."""
    cache = Cache(roof / "above" / "cache", codec="pickle")
    cache.set("key", Thing())
    cache.directory.chmod(0o755)
    roof.chmod(0o755)
    (roof / "above").chmod(0o755)
    return cache


def fresh(cache, **parameters):
    """Return the same cache as another process would see it."""
    return Cache(cache.directory, codec="pickle", **parameters)


def assert_refused(cache, place=None):
    for call in (
        lambda c: c.get("key"),
        lambda c: c.get_or_create("key", Thing),
        lambda c: c.get_or_create("key", Thing, on_store_error="bypass"),
    ):
        with pytest.raises(UnsafeDirectoryError) as caught:
            call(fresh(cache))
        assert isinstance(caught.value, PermissionError)
        assert str(place or cache.directory) in str(caught.value)
        assert "secret" in str(caught.value)


def test_pickles_are_accepted_from_a_private_folder_below_a_sticky_one(pickles):
    assert stat.S_IMODE(os.stat("/tmp").st_mode) & stat.S_ISVTX
    assert fresh(pickles).get_or_create("key", lambda: "wrong") == Thing()
    assert fresh(pickles).get_or_create("new", Thing) == Thing()


def test_pickles_are_accepted_from_a_folder_that_is_yet_to_be_made(roof):
    cache = Cache(roof / "a" / "b" / "c", codec="pickle")
    assert cache.get_or_create("key", Thing) == Thing()
    assert cache.get_or_create("key", lambda: "wrong") == Thing()


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o707, 0o702, 0o777, 0o1777])
def test_pickles_are_refused_from_a_folder_that_others_can_write(pickles, mode):
    pickles.directory.chmod(mode)
    assert_refused(pickles)
    with pytest.raises(UnsafeDirectoryError):
        fresh(pickles).set("new", Thing())


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o777])
@pytest.mark.parametrize("levels", [1, 2])
def test_pickles_are_refused_below_a_folder_in_which_others_can_rename(pickles, mode, levels):
    above = pickles.directory.parents[levels - 1]
    above.chmod(mode)
    assert_refused(pickles, above)
    above.chmod(mode | stat.S_ISVTX)
    assert fresh(pickles).get("key") == Thing()


@pytest.mark.parametrize("place", ["v1", "shard"])
def test_pickles_are_refused_from_a_folder_within_the_cache_that_others_can_write(pickles, place):
    folder = entry_of(pickles).parent
    (folder.parent if place == "v1" else folder).chmod(0o777)
    assert_refused(pickles)


def test_pickles_are_refused_where_others_can_redirect_a_link_to_the_cache(pickles, roof):
    (roof / "open").mkdir()
    (roof / "open").chmod(0o777)
    (roof / "open" / "link").symlink_to(pickles.directory)
    with pytest.raises(UnsafeDirectoryError):
        Cache(roof / "open" / "link", codec="pickle").get("key")


@as_root
@pytest.mark.parametrize("level", [0, 1, 2])
def test_pickles_are_refused_from_a_folder_of_another_user(pickles, level):
    place = [pickles.directory, *pickles.directory.parents][level]
    os.chown(place, NOBODY, -1)
    assert_refused(pickles, place)
    os.chown(place, 0, -1)


@as_root
def test_an_entry_of_another_user_is_refused_by_the_codec_pickle(pickles):
    os.chown(entry_of(pickles), NOBODY, -1)
    with pytest.raises(UnsafeDirectoryError, match=str(NOBODY)):
        fresh(pickles).get_or_create("key", Thing)


@pytest.mark.parametrize("mode", [0o660, 0o620, 0o602, 0o666])
def test_an_entry_that_others_can_write_is_refused_by_the_codec_pickle(pickles, mode):
    entry_of(pickles).chmod(mode)
    with pytest.raises(UnsafeDirectoryError, match=f"{mode:o}"):
        fresh(pickles).get_or_create("key", Thing)


def test_a_pickle_in_an_unsafe_place_is_refused_before_it_is_unpickled(pickles, marker):
    for payload in evil_pickles(marker):
        forge(pickles, payload, codec=b"pickle")
        pickles.directory.chmod(0o777)
        assert_refused(pickles)
        pickles.directory.chmod(0o700)
        entry_of(pickles).chmod(0o666)
        with pytest.raises(UnsafeDirectoryError):
            fresh(pickles).get("key")
        assert not marker.exists()
        entry_of(pickles).unlink()


# -- secrets ---------------------------------------------------------------------------


@pytest.fixture
def signed(roof):
    """Return a cache with a secret in a folder that everybody can write."""
    roof.chmod(0o777)
    cache = Cache(roof / "cache", codec="pickle", secret=SECRET)
    cache.set("key", Thing())
    for folder, folders, files in os.walk(cache.directory):
        for name in [*folders, *files]:
            os.chmod(os.path.join(folder, name), 0o777)
    cache.directory.chmod(0o777)
    return cache


def test_with_a_secret_pickles_are_accepted_anywhere(signed):
    assert fresh(signed, secret=SECRET).get_or_create("key", lambda: "wrong") == Thing()


def test_a_flipped_byte_in_a_signed_entry_is_a_miss(signed):
    file = entry_of(signed)
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert fresh(signed, secret=SECRET).get("key", "a miss") == "a miss"


def test_with_a_wrong_secret_an_entry_is_a_miss_and_built_anew(signed):
    other = fresh(signed, secret=b"another secret, as long")
    assert other.get("key", "a miss") == "a miss"
    assert other.get_or_create("key", lambda: "built") == "built"
    assert other.get("key") == "built"
    assert signed.get("key", "a miss") == "a miss"


def test_a_forged_pickle_without_the_right_signature_is_never_unpickled(signed, marker):
    header = _header.parse(entry_of(signed).read_bytes())
    other = fresh(signed, secret=b"another secret, as long")._codecs.find("pickle")
    for payload in evil_pickles(marker):
        seals = [
            b"",
            bytes(32),
            b"\xff" * 32,
            header.seal,
            other.seal(digest(b"v", "key"), 0, [payload]),
        ]
        for seal in seals:
            forge(signed, payload, codec=b"pickle", seal=seal)
            assert fresh(signed, secret=SECRET).get("key", "a miss") == "a miss"
            assert not marker.exists()


def test_a_signed_entry_is_good_for_its_own_key_and_buffers_only(signed):
    whole = entry_of(signed).read_bytes()
    header = _header.parse(whole)
    payload = whole[_header.payload_start(header) :]
    forge(signed, payload, key="other", codec=b"pickle", seal=header.seal)
    assert signed.get("other", "a miss") == "a miss"
    forge(signed, payload, codec=b"pickle", seal=header.seal, buffers=[b"x" * 20_000])
    assert signed.get("key", "a miss") == "a miss"
    forge(signed, payload, codec=b"pickle", seal=header.seal, form=1)
    assert signed.get("key", "a miss") == "a miss"
    forge(signed, payload, codec=b"pickle", seal=header.seal)
    assert signed.get("key") == Thing()


def test_large_buffers_are_signed_too(signed):
    value = np.arange(100_000)
    signed.set("key", value)
    assert np.array_equal(signed.get("key"), value)
    whole = entry_of(signed).read_bytes()
    header = _header.parse(whole)
    ((at, size, _),) = _header.read_rows(whole, header)
    start = _header.payload_start(header)
    payload = whole[start : start + header.payload_size]
    forge(signed, payload, codec=b"pickle", seal=header.seal, buffers=[whole[at : at + size]])
    assert np.array_equal(signed.get("key"), value)
    altered = bytes(8) + b"\2" + whole[at + 9 : at + size]
    forge(signed, payload, codec=b"pickle", seal=header.seal, buffers=[altered])
    assert isinstance(signed.get("key", "a miss"), str)


def test_an_entry_without_a_signature_is_a_miss_for_who_has_a_secret(roof, marker):
    Cache(roof / "cache", codec="pickle").set("key", Evil(marker))
    with_secret = Cache(roof / "cache", codec="pickle", secret=SECRET)
    assert with_secret.get("key", "a miss") == "a miss"
    assert not marker.exists()


def test_a_secret_is_not_shown_nor_stored(signed):
    assert "0123456789" not in repr(signed)
    for file in signed.directory.rglob("*"):
        assert file.is_dir() or SECRET not in file.read_bytes()


# -- modes -----------------------------------------------------------------------------


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(cache):
    """Return the modes of all folders and of all files that the library makes."""
    seen = {"folder": set(), "file": set()}

    def look():
        for each in [cache.directory, *cache.directory.rglob("*")]:
            if each.name != "made":
                kind = "folder" if each.is_dir() else "file"
                seen[kind].add(stat.S_IMODE(each.stat().st_mode))
        return "built"

    cache.get_or_create("key", look)
    cache.get_or_create_path("key", lambda t: (t.write_text("x"), look()), name="made")
    cache.set("key", 1)
    look()
    return seen


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o002])
def test_folders_are_0700_and_files_0600_whatever_the_umask(tmp_path, umask, mask):
    umask(mask)
    assert modes(Cache(tmp_path / "cache")) == {"folder": {0o700}, "file": {0o600}}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o002])
def test_a_shared_cache_obeys_the_umask(tmp_path, umask, mask):
    umask(mask)
    cache = Cache(tmp_path / "cache", shared=True)
    assert modes(cache) == {"folder": {0o777 & ~mask}, "file": {0o666 & ~mask}}


def test_what_a_bypass_builds_is_private(tmp_path, umask):
    umask(0)
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", on_store_error="bypass")
    path = cache.get_or_create_path("key", lambda t: t.write_text("x"), name="made")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_backup_tools_and_git_are_told_to_skip_the_cache(cache):
    cache.set("key", 1)
    tag = (cache.directory / "CACHEDIR.TAG").read_bytes()
    assert tag.startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    assert (cache.directory / ".gitignore").read_text() == "*\n"


# -- classes of one's own --------------------------------------------------------------


class Point:
    made = []  # noqa: RUF012

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is Point and (self.x, self.y) == (other.x, other.y)

    __hash__ = None

    def __setstate__(self, state):
        self.made.append(state)
        self.__dict__.update(state)


class Nearly(Point):
    pass


class Elsewhere:
    def __reduce__(self):
        return os.system, ("true",)


def test_a_class_that_was_not_allowed_is_refused_and_the_remedy_named(cache):
    with pytest.raises(CodecError) as caught:
        cache.get_or_create("key", lambda: [Point(1, 2)])
    for word in (f"{__name__}.Point", "allow=", "codec='pickle'"):
        assert word in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert "key" not in cache


def test_an_allowed_class_comes_back_equal(tmp_path):
    cache = Cache(tmp_path / "cache", allow=[Point])
    cache.set("key", {"p": [Point(1, Point("a", (2,)))]})
    assert cache.get("key") == {"p": [Point(1, Point("a", (2,)))]}


def test_allowing_a_class_does_not_allow_its_subclasses(tmp_path):
    cache = Cache(tmp_path / "cache", allow=[Point])
    with pytest.raises(CodecError, match="Nearly"):
        cache.set("key", Nearly(1, 2))


def test_a_reader_that_does_not_allow_a_class_does_not_make_it(tmp_path):
    Cache(tmp_path / "cache", allow=[Point]).set("key", Point(1, 2))
    Point.made.clear()
    assert Cache(tmp_path / "cache").get("key", "a miss") == "a miss"
    assert Cache(tmp_path / "cache", allow=[Nearly]).get("key", "a miss") == "a miss"
    assert Point.made == []
    assert Cache(tmp_path / "cache", allow=[Point]).get("key") == Point(1, 2)
    assert Point.made == [{"x": 1, "y": 2}]


def test_an_allowed_class_that_is_rebuilt_by_something_else_is_refused(tmp_path):
    cache = Cache(tmp_path / "cache", allow=[Elsewhere])
    with pytest.raises(CodecError, match="system"):
        cache.set("key", Elsewhere())


def test_an_evil_pickle_is_not_executed_by_a_reader_that_allows_classes(tmp_path, marker):
    cache = Cache(tmp_path / "cache", allow=[Point, Thing])
    for payload in evil_pickles(marker):
        forge(cache, payload)
        assert cache.get("key", "a miss") == "a miss"
        assert not marker.exists()


@pytest.mark.parametrize("value", [os.system, eval, len, Path, Cache, sys, open, print, Thing])
def test_functions_classes_and_modules_are_refused(cache, value):
    with pytest.raises(CodecError):
        cache.set("key", value)
    with pytest.raises(CodecError):
        cache.set("key", {"deep": [(value,)]})
    assert "key" not in cache
