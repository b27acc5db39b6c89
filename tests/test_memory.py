"""The memory tier: kept values are seen to change, and only what can't be changed is kept."""

import decimal
import os

import pytest

from atomcache import Cache, OptionError, _memory

from .crew import context


@pytest.fixture(autouse=True)
def _fine_times(monkeypatch):
    """Trust the times of files at once, which are fine enough on what tests run on."""
    monkeypatch.setattr(_memory, "RACY_SECONDS", -1.0)


@pytest.fixture
def remembering(tmp_path):
    return Cache(tmp_path / "cache", memory="1MB")


def test_a_file_so_young_that_another_could_look_the_same_is_not_trusted(remembering, monkeypatch):
    monkeypatch.setattr(_memory, "RACY_SECONDS", 60.0)
    remembering.set("key", "value")
    assert remembering.get("key") == "value"
    assert "read" in reads(remembering)


def test_a_context_of_decimals_which_can_be_changed_is_not_kept(tmp_path):
    cache = Cache(tmp_path / "cache", codec="pickle", secret=bytes(16), memory="1MB")
    cache.set("key", decimal.Context(prec=5))
    cache.get("key").prec = 3
    assert cache.get("key").prec == 5


def reads(cache):
    """Return the calls that a look at the key makes."""
    calls = []
    door = cache._door

    class Watched:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(door, name)

    cache._asking._door = Watched()
    try:
        cache.get("key")
    finally:
        cache._asking._door = door
    return calls


@pytest.mark.parametrize("value", [b"bytes", "text", 1, None, (1, ("two", 3.0)), frozenset([1])])
def test_a_kept_value_costs_one_stat_and_is_the_same_object(remembering, value):
    remembering.set("key", value)
    first = remembering.get("key", "none")
    assert first == value
    assert reads(remembering) == ["stat"]
    assert remembering.get("key", "none") is first


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, ([1],), bytearray(b"x")])
def test_what_could_be_changed_in_place_is_not_kept(remembering, value):
    remembering.set("key", value)
    first = remembering.get("key")
    assert first == value
    assert remembering.get("key") is not first
    assert "read" in reads(remembering)


def change(line, cache, value):
    if value is None:
        cache.remove("key")
    else:
        cache.set("key", value)


@pytest.mark.parametrize("value", [b"after!", b"a longer one", None])
def test_another_processs_change_is_seen_at_once(crew, remembering, value):
    remembering.set("key", b"before")
    assert remembering.get("key") == b"before"
    crew.start(change, remembering, value).result()
    assert remembering.get("key") == value


def test_the_least_recently_used_goes_first_and_the_limit_holds(tmp_path):
    cache = Cache(tmp_path / "cache", memory=20_000)
    for key in "abc":
        cache.set(key, os.urandom(5000))
        cache.get(key)
    cache.get("a")
    cache.set("d", os.urandom(5000))
    cache.get("d")
    kept = [key for key in "abcd" if cache._asking.place(key)[1] in cache._memory._kept]
    assert kept == ["a", "c", "d"]
    assert cache._memory.size <= 20_000


def test_an_age_limit_holds_for_kept_values(remembering):
    remembering.set("key", b"value")
    assert remembering.get("key") == b"value"
    assert remembering.get("key", max_age=1e-9) is None


def test_a_kept_value_of_another_codec_is_not_returned(remembering):
    remembering.set("key", b"value", codec="bytes")
    assert remembering.get("key", codec="bytes") == b"value"
    assert remembering.get("key", codec="data") is None


@pytest.mark.parametrize("memory", [0, -1, 1.5, True, "", "MB", "12 parsecs", "nan", [], "-1MB"])
def test_a_wrong_size_is_an_option_error_when_the_cache_is_made(tmp_path, memory):
    with pytest.raises(OptionError, match="memory"):
        Cache(tmp_path, memory=memory)


def test_workers_of_a_pickled_cache_keep_values_too(remembering):
    remembering.set("key", b"value")
    with context.Pool(1) as pool:
        assert pool.apply(remembering.get, ("key",)) == b"value"
