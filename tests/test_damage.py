"""An entry that is not exactly what was stored is built anew and told of, never returned."""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from atomcache import Cache, _header
from atomcache._keys import digest

from .crew import leftovers

np = pytest.importorskip("numpy")

VALUE = {"name": "value", "numbers": [1, 2.5, None], "when": (1, 2)}
MISS = object()
NEW = {"name": "another", "numbers": []}


def entry_of(cache, key="key", kind=b"v"):
    return Path(cache._layout.entry(digest(kind, key)))


def damage(file, content):
    """Put other bytes in the place of an entry, as a bad disk would."""
    file.write_bytes(content)


def flipped(content, position, bit=None):
    changed = bytearray(content)
    changed[position] ^= 0xFF if bit is None else 1 << bit
    return bytes(changed)


def assert_rebuilt(cache, caplog, value=NEW, key="key", **options):
    """Ask for a damaged value: it is not returned, told of, built once and right again."""
    caplog.clear()
    calls = []
    got = cache.get_or_create(key, lambda: calls.append(1) or value, **options)
    assert calls == [1], "a damaged entry was returned"
    assert got == value
    warnings = [r for r in caplog.records if r.name == "atomcache"]
    assert warnings, "nothing was logged"
    assert all(r.levelname == "WARNING" for r in warnings)
    assert str(entry_of(cache, key)) in warnings[0].getMessage()
    caplog.clear()
    assert cache.get_or_create(key, lambda: calls.append(2), **options) == value
    assert calls == [1], "the new entry is damaged too"
    assert caplog.records == []


@pytest.fixture
def stored(cache):
    """Return a cache with one small value, and the value's file."""
    cache.set("key", VALUE)
    return cache, entry_of(cache)


def test_an_undamaged_entry_is_a_hit_and_nothing_is_logged(stored, caplog):
    cache, file = stored
    damage(file, file.read_bytes())
    assert cache.get_or_create("key", lambda: "wrong") == VALUE
    assert caplog.records == []


def test_a_change_of_any_single_byte_is_found_and_the_value_built_anew(stored, caplog):
    cache, file = stored
    whole = file.read_bytes()
    for position in range(len(whole)):
        damage(file, flipped(whole, position))
        assert cache.get("key", "a miss") == "a miss", f"byte {position} is not verified"
        assert_rebuilt(cache, caplog)
    assert leftovers(cache.directory) == []


def test_a_change_of_any_single_bit_is_found(stored):
    cache, file = stored
    whole = file.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damage(file, flipped(whole, position, bit))
            assert cache.get("key", "a miss") == "a miss", f"bit {bit} of byte {position}"


def test_an_entry_cut_off_at_any_length_is_built_anew(stored, caplog):
    cache, file = stored
    whole = file.read_bytes()
    for length in range(len(whole)):
        damage(file, whole[:length])
        assert_rebuilt(cache, caplog)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("value", ["text", b"bytes", VALUE, None], ids=repr)
@pytest.mark.parametrize("garbage", [b"\0", b"x", b"\0" * 64, b"x" * 300_000], ids=len)
def test_an_entry_with_something_behind_it_is_built_anew(cache, caplog, value, garbage):
    cache.set("key", value)
    file = entry_of(cache)
    damage(file, file.read_bytes() + garbage)
    assert_rebuilt(cache, caplog)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_in_the_place_of_an_entry_are_built_anew(stored, caplog, seed):
    cache, file = stored
    dice = random.Random(seed)
    start = [b"", _header.MAGIC, file.read_bytes()[: _header.SIZE]][seed % 3]
    damage(file, start + dice.randbytes(dice.choice([0, 1, 100, 500, 5000, 500_000])) + b"!")
    assert_rebuilt(cache, caplog)


def test_an_empty_file_or_zeros_in_the_place_of_an_entry_are_built_anew(stored, caplog):
    cache, file = stored
    size = file.stat().st_size
    for content in (b"", bytes(1), bytes(size), bytes(300_000)):
        damage(file, content)
        assert_rebuilt(cache, caplog)


def test_a_hole_that_a_crash_left_is_built_anew(stored, caplog):
    cache, file = stored
    whole = file.read_bytes()
    for start in range(0, len(whole), 16):
        damage(file, whole[:start] + bytes(len(whole) - start))
        assert_rebuilt(cache, caplog)


def test_two_entries_that_changed_places_are_both_built_anew(cache, caplog):
    cache.set("one", 1)
    cache.set("two", 2)
    one, two = entry_of(cache, "one"), entry_of(cache, "two")
    first = one.read_bytes()
    damage(one, two.read_bytes())
    damage(two, first)
    assert cache.get("one") is None
    assert cache.get("two") is None
    assert_rebuilt(cache, caplog, "new one", "one")
    assert_rebuilt(cache, caplog, "new two", "two")


def test_the_entry_of_another_cache_is_a_hit_for_the_same_key_only(tmp_path, caplog):
    source, goal = Cache(tmp_path / "a"), Cache(tmp_path / "b")
    source.set("key", VALUE)
    goal.set("other", 1)
    damage(entry_of(goal, "other"), entry_of(source).read_bytes())
    assert_rebuilt(goal, caplog, key="other")
    entry_of(goal).parent.mkdir(exist_ok=True)
    shutil.copy(entry_of(source), entry_of(goal))
    assert goal.get("key") == VALUE


@pytest.mark.parametrize("codec", ["data", "json", "bytes", "text", "pickle"])
def test_damage_is_found_whatever_the_codec(tmp_path, caplog, codec):
    cache = Cache(tmp_path / "cache", codec=codec, secret=b"0123456789abcdef")
    value = {"bytes": b"abc", "text": "abc"}.get(codec, ["abc"])
    new = {"bytes": b"new", "text": "new"}.get(codec, ["new"])
    cache.set("key", value)
    file = entry_of(cache)
    whole = file.read_bytes()
    for position in (0, 8, 16, 40, _header.SIZE, len(whole) - 4, len(whole) - 1):
        damage(file, flipped(whole, position))
        assert_rebuilt(cache, caplog, new)


def test_an_attribute_of_damage_does_not_stop_listing_removing_or_replacing(stored):
    cache, file = stored
    cache.set("other", 1)
    damage(file, b"garbage")
    assert [info.key for info in cache.entries()] == ["other"]
    assert cache.remove("key") is True
    damage(file, b"garbage")
    cache.set("key", VALUE)
    assert cache.get("key") == VALUE
    damage(file, b"garbage")
    assert cache.clear() == 2


# -- large buffers ---------------------------------------------------------------------


def large_value():
    return {
        "small": [1, 2, 3],
        "a": np.arange(20_001, dtype=np.uint8),
        "b": np.linspace(0, 1, 60_000),
        "text": "x" * 1000,
    }


def mid_value():
    """Return a value with a buffer apart that is still small enough to be read at once."""
    return {"a": np.arange(20_001, dtype=np.uint8)}


@pytest.mark.parametrize("make", [large_value, mid_value])
def test_a_changed_byte_in_an_entry_with_large_buffers_is_found(cache, caplog, make):
    cache.set("key", make())
    file = entry_of(cache)
    whole = file.read_bytes()
    header = _header.parse(whole)
    rows = _header.read_rows(whole, header)
    assert rows, "no buffer lies apart: this test tests nothing"
    payload = _header.payload_start(header)
    positions = set(range(payload + header.payload_size + 70))
    for at, size, _ in rows:  # with the padding before each
        positions |= {*range(at - 64, at + 3), at + size - 1, at + size // 2}
    positions |= set(random.Random(1).sample(range(len(whole)), 200))
    positions |= set(range(len(whole) - 3, len(whole)))
    for position in sorted(positions & set(range(len(whole)))):
        damage(file, flipped(whole, position))
        assert cache.get("key", MISS) is MISS, f"byte {position}"
    damage(file, whole)
    assert cache.get("key", MISS) is not MISS, "even the whole entry is a miss"
    damage(file, flipped(whole, rows[0][0] + 5))
    assert_rebuilt(cache, caplog)


@pytest.mark.parametrize("make", [large_value, mid_value])
def test_an_entry_with_large_buffers_cut_off_or_prolonged_is_found(cache, caplog, make):
    cache.set("key", make())
    file = entry_of(cache)
    whole = file.read_bytes()
    (at, size, _) = _header.read_rows(whole, _header.parse(whole))[-1]
    lengths = {*range(0, 400, 7), at - 65, at - 1, at, at + 1, at + size // 2, len(whole) - 1}
    for length in sorted(lengths):
        damage(file, whole[:length])
        assert cache.get("key", MISS) is MISS, f"length {length}"
    for more in (b"\0", b"x" * 64, whole):
        damage(file, whole)
        assert cache.get("key", MISS) is not MISS, "even the whole entry is a miss"
        damage(file, whole + more)
        assert_rebuilt(cache, caplog)


@pytest.mark.parametrize("size", [200_000, 300_000])
def test_long_text_and_bytes_are_verified_to_the_last_byte(cache, caplog, size):
    for value in (b"x" * size, "x" * size):
        cache.set("key", value)
        file = entry_of(cache)
        whole = file.read_bytes()
        for position in (0, 200, len(whole) // 2, len(whole) - 1):
            damage(file, flipped(whole, position, 0))
            assert_rebuilt(cache, caplog, "new")
        for length in (1, 100, len(whole) // 2, len(whole) - 1):
            damage(file, whole[:length])
            assert_rebuilt(cache, caplog, "new")


# -- paths -----------------------------------------------------------------------------


def build_path(cache, text="built", **options):
    path = cache.get_or_create_path(
        "key", lambda target: target.write_text(text), name="made.txt", **options
    )
    return path.read_text()


@pytest.fixture
def built(cache):
    """Return a cache with one path, and the path's folder."""
    assert build_path(cache) == "built"
    return cache, entry_of(cache, kind=b"p")


def test_an_undamaged_path_is_a_hit_whatever_the_age_limit(built, caplog):
    cache, _ = built
    for options in ({}, {"max_age": 1000}):
        assert build_path(cache, "wrong", **options) == "built"
    assert caplog.records == []


@pytest.mark.parametrize("missing", ["made.txt", ".atomcache"])
@pytest.mark.parametrize("options", [{}, {"max_age": 1000}], ids=["ageless", "aged"])
def test_a_path_that_misses_its_target_or_its_meta_is_built_anew(built, missing, options):
    cache, folder = built
    (folder / missing).unlink()
    assert cache.get_path("key", **options) is None
    assert build_path(cache, "again", **options) == "again"
    assert build_path(cache, "wrong", **options) == "again"
    assert sorted(os.listdir(folder)) == [".atomcache", "made.txt"]
    assert leftovers(cache.directory) == []


def test_a_path_with_a_changed_byte_in_its_meta_is_built_anew(built, caplog):
    cache, folder = built
    meta = folder / ".atomcache"
    whole, mark = meta.read_bytes(), meta.stat().st_mtime
    for position in range(len(whole)):
        damage(meta, flipped(whole, position))
        os.utime(meta, (mark, mark))
        caplog.clear()
        assert cache.get_path("key") is None, f"byte {position}"
        assert any(str(folder) in record.getMessage() for record in caplog.records)
        text = f"again {position}"
        assert build_path(cache, text, max_age=1000) == text
        assert build_path(cache, "wrong", max_age=1000) == text


def test_a_path_whose_meta_is_cut_off_empty_or_random_is_built_anew(built, caplog):
    cache, folder = built
    meta = folder / ".atomcache"
    whole = meta.read_bytes()
    contents = [whole[:length] for length in range(0, len(whole), 3)]
    contents += [random.Random(seed).randbytes(seed * 50) for seed in range(8)]
    for number, content in enumerate(contents):
        damage(meta, content)
        os.utime(meta, (0, 0))
        caplog.clear()
        assert cache.get_path("key") is None
        assert caplog.records
        assert build_path(cache, f"again {number}", max_age=1000) == f"again {number}"
        assert cache.get_path("key").read_text() == f"again {number}"
    assert leftovers(cache.directory) == []


def test_a_path_whose_expiry_mark_was_lost_ends_when_its_header_says(cache):
    assert build_path(cache, max_age=1000) == "built"
    folder = entry_of(cache, kind=b"p")
    os.utime(folder / ".atomcache", (1, 1))  # long past: as after a restore or a copy
    assert build_path(cache, "again") == "built"
    cache._door.time = lambda: time.time() + 2000
    try:
        assert build_path(cache, "again") == "again"
    finally:
        del cache._door.time


@pytest.mark.parametrize("what", ["empty folder", "file", "dangling link"])
def test_something_else_in_the_place_of_a_path_entry_is_built_anew(built, what):
    cache, folder = built
    shutil.rmtree(folder)
    if what == "empty folder":
        folder.mkdir()
    elif what == "file":
        folder.write_text("garbage")
    else:
        folder.symlink_to(folder.parent / "nowhere")
    assert build_path(cache, "again") == "again"
    assert build_path(cache, "wrong") == "again"
    assert leftovers(cache.directory) == []


def test_a_target_that_became_a_dangling_link_is_built_anew(built):
    cache, folder = built
    (folder / "made.txt").unlink()
    (folder / "made.txt").symlink_to("nowhere")
    assert build_path(cache, "again") == "again"


def test_a_damaged_path_is_not_listed_and_can_be_removed(built, caplog):
    cache, folder = built
    damage(folder / ".atomcache", b"garbage")
    assert list(cache.entries()) == []
    assert cache.remove("key") is True
    assert not folder.exists()


# -- claims ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_rubbish_in_the_claim_of_a_dead_owner_is_reaped(cache, seed):
    cache.set("other", 1)
    claim = Path(f"{entry_of(cache)}.temp")
    claim.parent.mkdir(exist_ok=True)
    rubbish = [b"", b"\n", b"\0" * 100, b"\ntoken zz\nsigned 1\n", b"\n\\x 5\nsigned 1\n"]
    rubbish += [b"\nlease \\d\\q\nsigned 1\n", b"\npid \\N{nothing}\nsigned 1\n", b"\xff\n" * 50]
    if seed < len(rubbish):
        claim.write_bytes(rubbish[seed])
    else:
        claim.write_bytes(random.Random(seed).randbytes(3000) + b"\nsigned 1\n")
    assert cache.get_or_create("key", lambda: "built") == "built"
    assert leftovers(cache.directory) == []
