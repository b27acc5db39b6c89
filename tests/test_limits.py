"""A cache stays within its limits and clean by itself, and nobody is ever harmed by that."""

import asyncio
import contextlib
import errno
import os
import pickle
import random
import sys
import threading
import time

import pytest

from atomcache import Cache, KeyTypeError, MissingEntryError, OptionError, _eviction, _upkeep
from atomcache._door import APPEND, Door
from atomcache._keys import digest
from atomcache._layout import HELD, META, is_entry
from atomcache._options import seconds

from .crew import PATIENCE, leftovers, sleepers, until

needs_locks_table = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")

HOUR = 3600.0
DAY = 24 * HOUR


class Clock(Door):
    """The system, with clocks that the test moves on, and a record of what it is asked for.

    Pauses are told by a clock that nothing else moves, however long the test takes.
    """

    def __init__(self):
        super().__init__()
        self.ahead = 0.0
        self.began = time.monotonic()
        self.uses = 0
        self.walks = 0

    def time(self):
        return time.time() + self.ahead

    def monotonic(self):
        return self.began + self.ahead

    def utime(self, path, *given, **named):
        self.uses += isinstance(path, int)  # a use is recorded in the file that was opened
        os.utime(path, *given, **named)

    def scandir(self, path):
        self.walks += len(os.path.basename(path)) == 2
        return super().scandir(path)


@pytest.fixture(autouse=True)
def nobody_is_too_slow_to_evict(monkeypatch):
    """Who publishes stops evicting when it takes too long, which is not what is tested here."""
    monkeypatch.setattr(_upkeep, "_EVICTING", PATIENCE)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timed(tmp_path, clock):
    """Return a cache with a clock that can be moved."""
    return over(Cache(tmp_path / "cache"), clock)


def over(cache, door):
    """Have a cache go through a door of the test's."""
    cache._open(door)
    return cache


def make_file(target):
    target.write_bytes(b"x" * 1000)


def make_folder(target):
    target.mkdir()
    for part in range(4):
        (target / str(part)).write_bytes(b"x" * 250)


def ask_value(cache, key):
    return cache.get_or_create(key, lambda: b"x" * 1000)


def ask_value_from_a_loop(cache, key):
    async def make():
        return b"x" * 1000

    return asyncio.run(cache.aget_or_create(key, make))


def ask_file(cache, key):
    return cache.get_or_create_path(key, make_file, name="made", durable=False)


def ask_folder(cache, key):
    return cache.get_or_create_path(key, make_folder, name="made", durable=False)


def ask_file_from_a_loop(cache, key):
    return asyncio.run(cache.aget_or_create_path(key, make_file, name="made", durable=False))


ASK = {
    "value": ask_value,
    "value, from a loop": ask_value_from_a_loop,
    "file": ask_file,
    "file, from a loop": ask_file_from_a_loop,
    "folder": ask_folder,
}
VALUES = (ask_value, ask_value_from_a_loop)
ways = pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
paths = pytest.mark.parametrize("ask", [ask_file, ask_folder], ids=["file", "folder"])


def keys(cache):
    return sorted(entry.key for entry in cache.entries())


def taken(cache):
    return sum(entry.size for entry in cache.entries())


def at_rest():
    """Tell whether no thread of the library's own is at work in this process."""
    return all(each.name != "atomcache" for each in threading.enumerate())


def rest():
    until(at_rest, "the threads behind end")


def mark(cache, name):
    return os.path.join(cache._layout.upkeep, name)


def entry_of(cache, key, kind=b"v"):
    return cache._layout.entry(digest(kind, key))


def last_used(cache):
    return {entry.key: entry.last_used for entry in cache.entries()}


def set_last_use(cache, key, when, kind=b"v"):
    path = entry_of(cache, key, kind)
    path = os.path.join(path, META) if os.path.isdir(path) else path
    os.utime(path, (when, os.stat(path).st_mtime))


# -- what is recorded of uses ------------------------------------------------------------


@ways
@pytest.mark.parametrize("memory", [None, "1MB"], ids=["", "with a memory tier"])
def test_a_use_is_recorded_once_an_hour_and_not_otherwise(tmp_path, clock, ask, memory):
    cache = over(Cache(tmp_path / "cache", memory=memory), clock)
    ask(cache, "key")
    for _ in range(100):
        ask(cache, "key")
    clock.uses = 0  # the first hit may find that the making was not noted as a use
    clock.ahead += HOUR - 60
    for _ in range(100):
        ask(cache, "key")
    assert clock.uses == 0
    for hour in range(1, 4):
        clock.ahead += HOUR + 60
        for _ in range(100):
            ask(cache, "key")
        assert clock.uses == hour
        assert last_used(cache)["key"] == pytest.approx(clock.time(), abs=60)


def test_a_use_that_another_process_recorded_is_not_recorded_again(tmp_path, clock):
    caches = [over(Cache(tmp_path / "cache"), clock) for _ in range(3)]
    ask_value(caches[0], "key")
    clock.ahead += 2 * HOUR
    for cache in caches:
        ask_value(cache, "key")
    assert clock.uses == 1


def test_threads_that_hit_together_keep_the_clock_quiet(timed, clock):
    ask_value(timed, "key")
    clock.ahead += 2 * HOUR
    ask_value(timed, "key")
    clock.uses = 0
    threads = [
        threading.Thread(target=lambda: [ask_value(timed, "key") for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.uses == 0


@ways
def test_making_an_entry_counts_as_its_first_use(cache, ask):
    before = time.time()
    ask(cache, "key")
    assert last_used(cache)["key"] == pytest.approx(before, abs=60)


@paths
def test_a_path_that_expires_in_years_is_not_taken_for_one_used_then(cache, ask):
    make = make_file if ask is ask_file else make_folder
    before = time.time()
    cache.get_or_create_path("key", make, name="made", max_age=3000 * DAY)
    assert last_used(cache)["key"] == pytest.approx(before, abs=60)


def hold_it(cache, key):
    with cache.hold(key):
        pass


@pytest.mark.parametrize(
    ("make", "use"),
    [
        (ask_value, Cache.get),
        (ask_file, Cache.get_path),
        (ask_folder, hold_it),
    ],
    ids=["get", "get_path", "hold"],
)
def test_to_get_an_entry_or_to_hold_it_is_to_use_it(timed, clock, make, use):
    make(timed, "used")
    make(timed, "unused")
    for key in ("used", "unused"):
        make(timed, key)
    clock.ahead += 2 * DAY
    use(timed, "used")
    timed.prune(max_idle="1d")
    assert keys(timed) == ["used"]


def test_a_use_that_cant_be_recorded_harms_nobody(timed, clock, monkeypatch):
    ask_value(timed, "key")
    ask_file(timed, "key")

    def refuse(path, *given, **named):
        raise OSError(errno.EROFS, "read-only file system")

    clock.ahead += 2 * HOUR
    monkeypatch.setattr(clock, "utime", refuse)
    assert ask_value(timed, "key") == b"x" * 1000
    assert ask_file(timed, "key").read_bytes() == b"x" * 1000


# -- what goes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [{"max_entries": 4}, {"max_bytes": 4 * 1300}], ids=["entries", "bytes"]
)
@pytest.mark.parametrize("kind", [*ASK, "all kinds"])
def test_the_least_recently_used_go_first(timed, clock, limits, kind):
    names = [f"key {number}" for number in range(10)]
    kinds = list(ASK.values()) if kind == "all kinds" else [ASK[kind]]
    ask = {name: kinds[number % len(kinds)] for number, name in enumerate(names)}
    for name in names:
        ask[name](timed, name)
    random.Random(7).shuffle(names)
    for name in names:
        clock.ahead += 2 * HOUR
        ask[name](timed, name)
    pruned = timed.prune(**limits)
    assert keys(timed) == sorted(names[-pruned.entries :])
    assert pruned.entries in ((4,) if "max_entries" in limits else (4, 5))
    assert pruned.removed == 10 - pruned.entries
    assert pruned.size == taken(timed)
    assert "max_entries" in limits or pruned.size <= limits["max_bytes"]
    assert leftovers(timed.directory) == []


def test_a_path_just_made_outlives_a_value_used_before(cache):
    ask_value(cache, "old")
    set_last_use(cache, "old", time.time() - DAY)
    ask_file(cache, "new")
    cache.prune(max_entries=1)
    assert keys(cache) == ["new"]


@ways
def test_what_was_not_used_for_long_goes_and_what_was_used_stays(timed, clock, ask):
    for key in ("used", "unused"):
        ask(timed, key)
        ask(timed, key)
    for _ in range(31):
        clock.ahead += DAY
        ask(timed, "used")
    assert timed.prune(max_idle="30d").removed == 1
    assert keys(timed) == ["used"]


@ways
def test_what_has_expired_goes_on_request_and_nothing_else(timed, clock, ask):
    ask(timed, "for ever")
    for key, age in (("short", "500ms"), ("stale", 0), ("long", "1h")):
        with_age = over(Cache(timed.directory, max_age=age, stale_for="1d"), clock)
        ask(with_age, key)
    clock.ahead = 60
    done = timed.prune(expired=True)
    assert (done.removed, done.entries, done.held) == (2, 2, 0)
    assert done.freed >= 2000 <= done.size
    assert keys(timed) == ["for ever", "long"]
    assert timed.prune(expired=True).removed == 0
    assert leftovers(timed.directory) == []


def test_what_has_expired_stays_while_it_is_held(timed, clock):
    timed.get_or_create_path("key", make_file, name="made", max_age="1h")
    with timed.hold("key") as path:
        clock.ahead = 2 * HOUR
        done = timed.prune(expired=True)
        assert (done.removed, done.held, path.exists()) == (0, 1, True)
    assert timed.prune(expired=True).removed == 1


def test_what_took_the_place_of_the_expired_stays(timed, clock):
    timed.get_or_create("key", lambda: "old", max_age=0)
    lstat = clock.lstat

    def lstat_and_refresh(path):
        found = lstat(path)
        clock.lstat = lstat
        timed.refresh("key", lambda: "a new one")
        return found

    clock.lstat = lstat_and_refresh
    assert timed.prune(expired=True).removed == 0
    assert timed.get("key") == "a new one"


def test_a_damaged_entry_is_left_to_who_asks_for_it(timed):
    ask_value(timed, "key")
    with open(entry_of(timed, "key"), "r+b") as file:
        file.write(b"damaged")
    assert timed.prune(expired=True).removed == 0


def test_expired_must_be_a_switch(cache):
    with pytest.raises(OptionError, match="expired"):
        cache.prune(expired="yes")


def test_what_has_expired_and_was_not_used_for_a_month_goes_by_itself(timed, clock):
    ask_value(timed, "for ever")
    timed.get_or_create("expired", lambda: "x", max_age="1d")
    timed.get_or_create("expires late", lambda: "x", max_age="90d")
    clock.ahead = 29 * DAY
    ask_value(timed, "a month is not over")
    rest()
    assert "expired" in keys(timed)
    clock.ahead = 31 * DAY
    ask_value(timed, "a month is over")
    rest()
    assert keys(timed) == ["a month is not over", "a month is over", "expires late", "for ever"]


@ways
def test_nothing_is_idle_that_was_just_made(cache, ask):
    ask(cache, "key")
    assert cache.prune(max_idle="1d").removed == 0
    assert keys(cache) == ["key"]


def look_at_all(cache):
    return list(cache.entries())


def prune_nothing(cache):
    cache.prune(max_bytes="1GB", max_entries=10**6, max_idle="1000d")


@ways
@pytest.mark.parametrize("look", [look_at_all, prune_nothing], ids=["entries", "prune"])
def test_to_look_at_entries_is_not_to_use_them(cache, ask, look):
    """Linux counts reading a file as access, once a day, if the reader does not object."""
    now = time.time()
    for day in (5, 3, 9, 7):
        ask(cache, day)
        set_last_use(cache, day, now - day * DAY, b"v" if ask in VALUES else b"p")
    before = last_used(cache)
    for _ in range(2):
        look(cache)
    assert last_used(cache) == before
    cache.prune(max_entries=2)
    assert keys(cache) == ["3", "5"]


def test_a_use_recorded_less_than_an_hour_late_is_allowed_for(timed, clock):
    """Use is known to the hour, so an entry gets an hour more before it counts as idle."""
    ask_value(timed, "key")
    clock.ahead += DAY + HOUR / 2
    assert timed.prune(max_idle=DAY).removed == 0
    clock.ahead += HOUR
    assert timed.prune(max_idle=DAY).removed == 1


def test_pruning_to_nothing_much_comes_down_to_it_however_alike_the_ages(cache, monkeypatch):
    monkeypatch.setattr(_eviction, "_EXACT", 10)
    for number in range(50):
        cache.set(number, number)
        set_last_use(cache, number, 1.7e9)
    pruned = cache.prune(max_entries=5)
    assert (pruned.entries, len(keys(cache))) == (5, 5)


def test_pruning_tells_what_it_did(cache):
    for number in range(10):
        cache.set(number, b"x" * 1000)
    size = taken(cache)
    events = []
    cache.on(events.append)
    pruned = cache.prune(max_entries=3)
    assert (pruned.removed, pruned.entries, pruned.held) == (7, 3, 0)
    assert (pruned.freed, pruned.size) == (size * 7 // 10, size * 3 // 10)
    assert [event.kind for event in events] == ["evicted"] * 7
    assert sum(event.details["size"] for event in events) == pruned.freed
    assert cache.stats().process.evictions == 7


def test_prune_without_limits_takes_those_of_the_cache(tmp_path):
    unlimited = Cache(tmp_path / "cache")
    for number in range(10):
        unlimited.set(number, number)
    assert unlimited.prune().removed == 0
    assert Cache(tmp_path / "cache", max_entries=4).prune().removed == 6
    assert len(keys(unlimited)) == 4


def test_pruning_a_cache_that_is_not_there_does_nothing(cache):
    pruned = cache.prune(max_entries=1)
    assert (pruned.removed, pruned.entries) == (0, 0)


def test_what_a_limit_removed_is_built_anew(cache):
    for number in range(5):
        ask_value(cache, number)
        ask_file(cache, number)
    cache.prune(max_entries=1)
    for number in range(5):
        assert ask_value(cache, number) == b"x" * 1000
        assert ask_file(cache, number).read_bytes() == b"x" * 1000


def test_where_there_are_no_locks_paths_are_evicted_all_the_same(cache, monkeypatch):
    door = Door()

    def no_locks(fd):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(door, "lock_exclusive", no_locks)
    monkeypatch.setattr(door, "lock_shared", no_locks)
    over(cache, door)
    for number in range(5):
        ask_file(cache, number)
    cache.prune(max_entries=2)
    assert len(keys(cache)) == 2


@pytest.mark.parametrize("name", ["max_bytes", "max_entries", "max_idle"])
@pytest.mark.parametrize("limit", [-1, "soon", True, 1j, b"1", [], float("nan"), ""])
def test_a_limit_of_the_wrong_type_or_sign_is_refused_at_once(tmp_path, name, limit):
    with pytest.raises(OptionError, match=name):
        Cache(tmp_path / "cache", **{name: limit})
    with pytest.raises(OptionError, match=name):
        Cache(tmp_path / "cache").prune(**{name: limit})
    assert not (tmp_path / "cache").exists()


def test_a_limit_beyond_all_numbers_is_never_reached(tmp_path):
    cache = Cache(tmp_path / "cache", max_entries=10**400)
    ask_value(cache, "key")
    rest()
    assert cache.prune(max_entries=10**400).entries == 1
    assert os.path.exists(mark(cache, "count")), "a thread has come to its end"


NOTHING = [
    {"max_bytes": 0},
    {"max_bytes": "0.1"},
    {"max_bytes": "0.0001KB"},
    {"max_entries": 0},
    {"max_entries": 1.5},
]


@pytest.mark.parametrize("limit", NOTHING)
def test_a_limit_of_nothing_is_refused(tmp_path, limit):
    with pytest.raises(OptionError):
        Cache(tmp_path / "cache", **limit)


def test_a_number_of_bytes_that_is_no_whole_number_is_told_what_to_do(tmp_path):
    with pytest.raises(OptionError, match=r"int\(\)"):
        Cache(tmp_path / "cache", max_bytes=1e9)


def test_limits_go_with_a_pickled_cache(tmp_path):
    unlimited = Cache(tmp_path / "cache")
    for number in range(10):
        unlimited.set(number, number)
    cache = pickle.loads(pickle.dumps(Cache(tmp_path / "cache", max_entries=3)))
    assert cache.prune().entries == 3


# -- by itself ---------------------------------------------------------------------------


def with_set(cache, key):
    cache.set(key, b"x" * 1000)


@pytest.mark.parametrize("ask", [*ASK.values(), with_set], ids=[*ASK, "set"])
@pytest.mark.parametrize(
    "limits", [{"max_entries": 20}, {"max_bytes": 20_000}], ids=["entries", "bytes"]
)
def test_a_cache_keeps_its_limits_by_itself(tmp_path, ask, limits):
    cache = Cache(tmp_path / "cache", **limits)
    for number in range(100):
        ask(cache, number)
        rest()
    assert 0 < len(keys(cache)) <= 22
    assert taken(cache) <= 22_000 or "max_entries" in limits


@pytest.mark.parametrize("ask", [ask_value, ask_folder], ids=["value", "folder"])
@pytest.mark.parametrize("limits", [{"max_entries": 1}, {"max_bytes": 1200}], ids=str)
def test_what_was_just_made_stays_where_the_limit_has_room_for_one(tmp_path, ask, limits):
    cache = Cache(tmp_path / "cache", **limits)
    for number in range(5):
        ask(cache, number)
        rest()
        assert keys(cache) == [str(number)]
        # The kernel's clock ticks every few milliseconds, and the next one comes sooner.
        kind = b"v" if ask is ask_value else b"p"
        set_last_use(cache, number, time.time() - 60, kind)


class InBetween(Clock):
    """Has a thread count the cache after a publisher has told of an eviction, and before it."""

    def __init__(self):
        super().__init__()
        self.behind = []
        self.counted, self.gone = threading.Event(), threading.Event()

    def start_thread(self, run, **_):
        self.behind.append(run)

    def replace(self, source, target):
        super().replace(source, target)
        if os.path.basename(target) == "count" and threading.current_thread().name == "behind":
            self.counted.set()
            assert self.gone.wait(PATIENCE)

    def unlink(self, path, **how):
        if self.behind and is_entry(os.path.basename(path)):
            threading.Thread(target=self.behind.pop(), name="behind", daemon=True).start()
            assert self.counted.wait(PATIENCE)
            super().unlink(path, **how)
            self.gone.set()
        else:
            super().unlink(path, **how)


def test_an_eviction_that_was_told_before_it_happens_takes_nothing_else_along(tmp_path):
    cache = Cache(tmp_path / "cache", max_bytes=1200)
    ask_value(cache, "old")
    rest()
    set_last_use(cache, "old", time.time() - 60)
    door = InBetween()
    cache = over(Cache(cache.directory, max_bytes=1200), door)
    ask_value(cache, "new")
    assert door.gone.is_set()
    until(lambda: all(each.name != "behind" for each in threading.enumerate()), "it is trimmed")
    assert keys(cache) == ["new"]


def test_what_programs_without_a_limit_publish_is_counted_too(tmp_path):
    cache = Cache(tmp_path / "cache", max_entries=20)
    unlimited = Cache(tmp_path / "cache")
    ask_value(cache, "first")
    rest()
    for number in range(100):
        ask_value(unlimited, number)
    ask_value(cache, "last")
    rest()
    assert len(keys(cache)) <= 20


def test_a_limit_on_a_cache_that_is_full_already_is_kept(tmp_path):
    for number in range(100):
        ask_value(Cache(tmp_path / "cache"), number)
    ask_value(Cache(tmp_path / "cache", max_entries=20), "last")
    rest()
    assert len(keys(Cache(tmp_path / "cache"))) <= 20


def test_where_no_limit_is_ever_set_nothing_is_counted(cache):
    ask_value(cache, "key")
    assert not os.path.exists(mark(cache, "count"))


def test_a_refreshed_entry_is_counted_once(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_entries=100), clock)
    for ask in (ask_value, ask_folder):
        ask(cache, "key")
    rest()
    clock.walks = 0
    for number in range(200):
        cache.refresh("key", lambda number=number: number)
        cache.refresh_path("key", make_folder, name="made", durable=False)
        cache.set("key", number)
    rest()
    assert clock.walks == 0
    assert len(keys(cache)) == 2


def publish_and_end(line, directory, number):
    _upkeep._AT_EXIT = PATIENCE  # however slow the machine is
    cache = Cache(directory, max_entries=50)
    for each in range(10):
        ask_value(cache, (number, each))


def test_the_limit_is_kept_though_every_process_ends_at_once(crew, tmp_path):
    for number in range(45):
        ask_value(Cache(tmp_path / "cache"), number)
    for number in range(10):
        member = crew.start(publish_and_end, tmp_path / "cache", number)
        member.result()
        member.process.join(60)
        assert len(keys(Cache(tmp_path / "cache"))) <= 55


def test_a_process_that_ends_lets_its_trim_finish(crew, tmp_path):
    for number in range(45):
        ask_value(Cache(tmp_path / "cache"), number)
    member = crew.start(publish_one_and_end, tmp_path / "cache")
    member.result()
    member.process.join(60)
    assert len(keys(Cache(tmp_path / "cache"))) <= 10


def publish_one_and_end(line, directory):
    _upkeep._AT_EXIT = PATIENCE
    ask_value(Cache(directory, max_entries=10), "last")


def test_what_can_not_be_brought_down_is_left_alone_for_a_while(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_bytes=1500), clock)
    with cache.hold("a", make_file, name="made"), cache.hold("b", make_file, name="made"):
        rest()  # who is at work already would not see that there is more
        ask_value(cache, "more")
        rest()
        started = []
        start = clock.start_thread
        clock.start_thread = lambda *given, **named: (started.append(1), start(*given, **named))
        for number in range(10):
            ask_value(cache, number)
            rest()
        assert not started
        clock.ahead += 60
        ask_value(cache, "later")
        rest()
        assert started


@pytest.mark.parametrize("way", ["prune", "by itself"])
def test_a_use_noted_by_a_clock_that_was_ahead_makes_nothing_immortal(tmp_path, way):
    cache = Cache(tmp_path / "cache", max_entries=5)
    for number in range(5):
        ask_value(cache, number)
    rest()
    set_last_use(cache, 2, time.time() + 100 * DAY)
    if way == "prune":
        cache.prune(max_entries=4)
    else:
        cache._keep_up()[0]._trim = lambda: None
        for number in range(5, 8):
            ask_value(cache, number)
            rest()
    assert "2" not in keys(cache)


def test_idle_entries_go_by_themselves(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_idle="30d"), clock)
    ask_value(cache, "unused")
    rest()
    clock.ahead += 32 * DAY
    ask_value(cache, "new")
    rest()
    assert "unused" not in keys(cache)


def test_idle_entries_go_though_nothing_is_published_any_more(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_idle="30d"), clock)
    ask_value(cache, "unused")
    ask_value(cache, "used")
    rest()
    for _ in range(40):
        clock.ahead += DAY
        ask_value(cache, "used")
        rest()
    assert keys(cache) == ["used"]


def test_a_limit_of_idleness_alone_does_not_walk_the_cache_at_each_publication(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_idle="30d"), clock)
    for number in range(30):
        ask_value(cache, number)
        rest()
    clock.walks = 0
    for number in range(30, 60):
        ask_value(cache, number)
        rest()
    assert clock.walks == 0


def test_a_cache_that_is_far_from_its_limit_is_not_walked(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_bytes="1TB", max_entries=10**9), clock)
    ask_value(cache, "the first one has it counted")
    rest()
    clock.walks = 0
    for number in range(100):
        ask_value(cache, number)
        rest()
    assert clock.walks == 0


def test_who_publishes_does_not_wait_for_the_trimming(tmp_path):
    door = Door()
    walking, go_on = threading.Event(), threading.Event()

    def scandir(path):
        if threading.current_thread().name == "atomcache":
            walking.set()
            assert go_on.wait(60)
        return os.scandir(path)

    door.scandir = scandir
    cache = over(Cache(tmp_path / "cache", max_entries=5), door)
    try:
        for number in range(20):
            ask_value(cache, number)
        assert walking.wait(60)
        for number in range(20, 40):
            ask_value(cache, number)
        assert len(keys(cache)) == 5, "they evict themselves"
        assert "39" in keys(cache)
    finally:
        go_on.set()
    rest()
    ask_value(cache, "one more")
    rest()
    assert len(keys(cache)) <= 6


def publish(line, directory, first, number, size, limits):
    cache = Cache(directory, **limits)
    for each in range(first, first + number):
        cache.get_or_create(each, lambda: bytes(size))
    rest()
    line.tell("published")
    line.hear("end")


def du(directory):
    """Return the bytes in the cache, as they are at the moment; a link counts once."""
    sizes = {}
    for folder, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def publish_together(crew, cache, number=300, size=10_000, limit="1MB"):
    return [
        crew.start(publish, cache.directory, 1000 * each, number, size, {"max_bytes": limit})
        for each in range(4)
    ]


def all_published(members):
    return all(member.connection.poll(0) for member in members)


def let_end(members):
    for member in members:
        member.hear("published")
        member.tell("end")
        member.result()


def test_once_processes_that_published_together_rest_the_cache_is_within_its_limit(crew, cache):
    members = publish_together(crew, cache)
    until(lambda: all_published(members), "all have published, and their threads have ended")
    assert 500_000 < taken(cache) <= 1_100_000
    let_end(members)
    assert leftovers(cache.directory) == []


def test_while_processes_publish_together_the_cache_is_never_a_tenth_over_its_limit(crew, cache):
    # A cache of few entries that take no time to make fills while others look for the processor.
    members = publish_together(crew, cache, 500, 30_000, "20MB")
    most = 0

    def look():
        nonlocal most
        most = max(most, du(cache.directory))
        return all_published(members)

    until(look, "all have published")
    let_end(members)
    assert most <= 22_000_000


@needs_fork
def test_a_child_forked_while_its_parent_trims_keeps_the_limit_too(tmp_path):
    door = Door()
    walking, go_on = threading.Event(), threading.Event()

    def scandir(path):
        if threading.current_thread().name == "atomcache":
            walking.set()
            assert go_on.wait(60)
        return os.scandir(path)

    door.scandir = scandir
    cache = over(Cache(tmp_path / "cache", max_entries=5), door)
    for number in range(20):
        ask_value(cache, number)
    assert walking.wait(60)
    with forked() as report:
        pid = os.fork()
        if pid == 0:
            report.run(lambda: publish_in_child(cache))
    go_on.set()
    rest()
    report.tell("the parent is done")
    assert report.result(pid) == "fine"
    assert len(keys(cache)) <= 6


def publish_in_child(cache):
    """Publish many, under a limit that nobody else minds any more."""
    cache._door.scandir = os.scandir
    for number in range(100, 140):
        ask_value(cache, number)
        rest()


class forked:  # noqa: N801 - reads as a verb
    """Pipes to a forked child, which waits for a word before it runs."""

    def __enter__(self):
        self.to_child, self.from_child = os.pipe(), os.pipe()
        return self

    def __exit__(self, *_):
        os.close(self.to_child[0])
        os.close(self.from_child[1])

    def run(self, step):
        """Run a step in the child, tell how it went, and end."""
        word = b"interrupted"
        try:
            os.close(self.to_child[1])
            os.read(self.to_child[0], 100)
            step()
            word = b"fine"
        except BaseException as error:
            word = repr(error).encode()
        finally:
            os.write(self.from_child[1], word)
            os._exit(0)

    def tell(self, word):
        os.write(self.to_child[1], word.encode())
        os.close(self.to_child[1])

    def result(self, pid):
        """Return what the child said; a child that hangs is killed."""
        timer = threading.Timer(60, os.kill, (pid, 9))
        timer.start()
        said = os.read(self.from_child[0], 10_000).decode()
        os.close(self.from_child[0])
        os.waitpid(pid, 0)
        timer.cancel()
        return said


# -- one at a time, and what a killed one leaves ------------------------------------------


def stop_at(line, door, step, wanted):
    """Have a door say when a step is first taken, and wait for the word to take it."""
    real = getattr(door, step)

    def stopped(path, *given, **named):
        if wanted(path):
            setattr(door, step, real)
            line.tell("stopped")
            line.hear("go on")
        return real(path, *given, **named)

    setattr(door, step, stopped)


def anything(path):
    return True


def is_count(path):
    return path.endswith("count.new")


def prune_slowly(line, directory, step, wanted=anything):
    door = Door()
    cache = over(Cache(directory, max_entries=100), door)
    stop_at(line, door, step, wanted)
    return cache.prune(max_entries=2).entries


def prune(line, directory):
    return Cache(directory).prune(max_entries=2).entries


def fill_with_all_kinds(cache):
    for number in range(4):
        for ask in (ask_value, ask_file, ask_folder):
            ask(cache, (number, ask.__name__))


@needs_locks_table
def test_who_prunes_waits_asleep_for_who_is_at_it(crew, cache):
    fill_with_all_kinds(cache)
    first = crew.start(prune_slowly, cache.directory, "scandir")
    first.hear("stopped")
    crew.start(prune, cache.directory)
    until(lambda: sleepers(mark(cache, "prune.temp")) == 1, "the second one sleeps")
    assert len(keys(cache)) == 12
    first.tell("go on")
    assert crew.results() == [2, 2]
    assert leftovers(cache.directory) == []


def test_nobody_trims_in_the_background_what_somebody_is_trimming(crew, tmp_path, clock):
    cache = over(Cache(tmp_path / "cache", max_entries=5), clock)
    fill_with_all_kinds(Cache(tmp_path / "cache"))
    first = crew.start(prune_slowly, cache.directory, "scandir")
    first.hear("stopped")
    for number in range(20):
        ask_value(cache, number)
    rest()
    assert len(keys(cache)) > 12, "what is there is not known before it is walked over"
    first.tell("go on")
    assert first.result() == 2


KILLED_AT = {
    "unlocked": ("lock_exclusive", anything),
    "unsigned": ("write", anything),
    "walking": ("scandir", anything),
    "before a value goes": ("unlink", anything),
    "before a path goes": ("rename", anything),
    "before what was a path is removed": ("remove_tree", anything),
    "before the count is put right": ("replace", is_count),
}


@pytest.mark.parametrize("where", KILLED_AT.values(), ids=KILLED_AT)
def test_when_a_pruner_is_killed_another_takes_over(crew, cache, where):
    fill_with_all_kinds(cache)
    victim = crew.start(prune_slowly, cache.directory, *where)
    victim.hear("stopped")
    victim.kill()
    assert crew.start(prune, cache.directory).result() == 2
    cache.reap()
    assert leftovers(cache.directory) == []
    assert len(keys(cache)) == 2


@pytest.mark.parametrize("where", KILLED_AT.values(), ids=KILLED_AT)
def test_when_a_pruner_is_killed_the_cache_still_keeps_its_limit(crew, tmp_path, where):
    cache = Cache(tmp_path / "cache", max_entries=12)
    fill_with_all_kinds(Cache(tmp_path / "cache"))
    victim = crew.start(prune_slowly, cache.directory, *where)
    victim.hear("stopped")
    victim.kill()

    def trimmed():
        ask_value(cache, f"{time.monotonic_ns()}")
        rest()
        return len(keys(cache)) <= 13 and leftovers_of_claims(cache) == []

    for _ in range(30):
        ask_value(cache, f"{time.monotonic_ns()}")
        rest()
    until(trimmed, "the cache is trimmed")


def leftovers_of_claims(cache):
    return [path for path in leftovers(cache.directory) if path.endswith(".temp")]


def prune_before_a_restart(line, directory):
    door = Door()
    door.boot_id = lambda: "an earlier life of this machine"
    cache = over(Cache(directory, lease=0.2), door)
    stop_at(line, door, "scandir", anything)
    cache.prune(max_entries=2)


def test_a_pruner_that_a_power_cut_ended_is_replaced_after_its_lease(crew, cache):
    fill_with_all_kinds(cache)
    victim = crew.start(prune_before_a_restart, cache.directory)
    victim.hear("stopped")
    victim.kill()
    assert crew.start(prune, cache.directory).result() == 2


# -- holding -----------------------------------------------------------------------------


def is_whole(path):
    if path.is_dir():
        return [len((path / str(part)).read_bytes()) for part in range(4)] == [250] * 4
    return path.read_bytes() == b"x" * 1000


@paths
def test_what_is_held_is_not_evicted_until_it_is_let_go(cache, ask):
    for key in ("held", "other"):
        ask(cache, key)
    with cache.hold("held") as path:
        assert path == ask(cache, "held")
        pruned = cache.prune(max_bytes=1)
        assert (pruned.removed, pruned.held, pruned.entries) == (1, 1, 1)
        assert is_whole(path)
    assert cache.prune(max_bytes=1).removed == 1
    assert not path.exists()


@paths
def test_what_is_held_is_not_evicted_for_being_idle(timed, clock, ask):
    for key in ("held", "other"):
        ask(timed, key)
    with timed.hold("held") as path:
        clock.ahead += 2 * DAY
        pruned = timed.prune(max_idle="1d")
        assert (pruned.removed, pruned.held) == (1, 1)
        assert is_whole(path)
    assert timed.prune(max_idle="1d").removed == 1


def test_a_hold_makes_what_is_not_there(cache):
    with cache.hold("key", make_file, name="made") as path:
        assert is_whole(path)
        cache.prune(max_bytes=1)
        assert is_whole(path)
    with cache.hold("key", never, name="made") as again:
        assert again == path


def never(target):
    raise AssertionError("made a second time")


WRONG_HOLDS = {
    "key": ((object(),), {}, KeyTypeError),
    "option": (("key",), {"maxage": 5}, OptionError),
    "no name": (("key", make_file), {}, OptionError),
    "no builder": (("key", "make"), {"name": "made"}, OptionError),
}


@pytest.mark.parametrize("wrong", WRONG_HOLDS.values(), ids=WRONG_HOLDS)
def test_a_hold_is_checked_at_the_call(cache, wrong):
    given, named, error = wrong
    with pytest.raises(error):
        cache.hold(*given, **named)


def test_a_hold_of_nothing_says_so(cache):
    with pytest.raises(MissingEntryError, match="nothing here"), cache.hold("nothing here"):
        pass
    with pytest.raises(OptionError, match="name"), cache.hold("key", make_file):
        pass
    ask_value(cache, "a value")
    with pytest.raises(MissingEntryError), cache.hold("a value"):
        pass


def test_a_hold_ends_with_its_block_also_by_an_error(cache):
    ask_file(cache, "key")
    with pytest.raises(ZeroDivisionError), cache.hold("key"):
        1 / 0  # noqa: B018
    assert cache.prune(max_bytes=1).removed == 1


def test_of_two_holds_the_last_one_counts(cache):
    ask_file(cache, "key")
    with cache.hold("key"):
        with cache.hold("key"):
            pass
        assert cache.prune(max_bytes=1).removed == 0
    assert cache.prune(max_bytes=1).removed == 1


def hold(line, directory):
    with Cache(directory).hold("key") as path:
        line.tell("held")
        line.hear("go on")
        return is_whole(path)


@paths
def test_a_hold_counts_in_all_processes_and_a_crash_ends_it(crew, cache, ask):
    ask(cache, "key")
    first, second = (crew.start(hold, cache.directory) for _ in range(2))
    for holder in (first, second):
        holder.hear("held")
    assert cache.prune(max_bytes=1).held == 1
    first.tell("go on")
    assert first.result()
    assert cache.prune(max_bytes=1).held == 1
    second.kill()
    assert cache.prune(max_bytes=1).removed == 1
    assert leftovers(cache.directory) == []


@needs_fork
def test_a_forked_child_does_not_keep_its_parents_hold(cache):
    ask_file(cache, "key")
    with cache.hold("key"), forked() as report:
        pid = os.fork()
        if pid == 0:
            report.run(lambda: None)
    try:
        assert cache.prune(max_bytes=1).removed == 1
    finally:
        report.tell("end")
        assert report.result(pid) == "fine"


@needs_fork
def test_a_forked_child_that_leaves_the_block_harms_neither_itself_nor_the_hold(cache, tmp_path):
    ask_file(cache, "key")
    with forked() as report:
        manager = cache.hold("key")
        path = manager.__enter__()
        pid = os.fork()
        if pid == 0:
            report.run(lambda: leave(manager, tmp_path))
    report.tell("leave")
    assert report.result(pid) == "fine"
    assert cache.prune(max_bytes=1).held == 1
    assert is_whole(path)
    manager.__exit__(None, None, None)
    assert cache.prune(max_bytes=1).removed == 1


def leave(manager, folder):
    """Leave the block of a parent; what the child itself has open must stay open."""
    own = [os.open(folder, os.O_RDONLY) for _ in range(64)]
    manager.__exit__(None, None, None)
    for fd in own:
        os.fstat(fd)


@paths
def test_a_new_one_under_a_held_path_is_kept_as_well(cache, ask):
    ask(cache, "key")
    make = make_file if ask is ask_file else make_folder
    with cache.hold("key") as path:
        assert cache.refresh_path("key", make, name="made") == path
        cache.prune(max_bytes=1)
        assert is_whole(path)


def test_what_is_put_in_the_place_of_what_is_evicted_can_be_held_at_once(cache):
    """A refresh comes between the pruner's opening of the lock and its locking it."""
    ask_file(cache, "key")
    holder = cache.hold("key")
    other = Cache(cache.directory)
    held = []
    door = Door()

    def lock_exclusive(fd):
        if not held and os.readlink(f"/proc/self/fd/{fd}").endswith(HELD):
            other.refresh_path("key", make_file, name="made")
            held.append(holder.__enter__())
        return Door.lock_exclusive(door, fd)

    door.lock_exclusive = lock_exclusive
    over(Cache(cache.directory), door).prune(max_bytes=1)
    assert is_whole(held[0])
    holder.__exit__(None, None, None)


def hold_until_told(line, directory, kind):
    cache = Cache(directory)
    make = make_file if kind == "file" else make_folder
    number = 0
    while number < 300 or not line.connection.poll(0):
        with cache.hold(number % 3, make, name="made", durable=False) as path:
            assert is_whole(path)
            os.sched_yield()
            assert is_whole(path)
        number += 1


def prune_until_told(line, directory, enough):
    """Prune until the test says so; tell when enough was removed."""
    cache = Cache(directory)
    removed, told = 0, False
    while not line.connection.poll(0):
        removed += cache.prune(max_bytes=1).removed
        if removed > enough and not told:
            line.tell("enough")
            told = True


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_holding_and_evicting_in_a_race_gives_whole_paths_or_new_ones(crew, cache, kind):
    pruners = [crew.start(prune_until_told, cache.directory, 3) for _ in range(2)]
    holders = [crew.start(hold_until_told, cache.directory, kind) for _ in range(3)]
    for pruner in pruners:  # the race is one: entries go and come back
        pruner.hear("enough")
    for members in (holders, pruners):
        for member in members:
            member.tell("stop")
        for member in members:
            member.result()
    assert leftovers(cache.directory) == []


def test_threads_that_hold_and_evict_in_a_race_see_whole_paths(cache):
    wrong = []
    stop = threading.Event()

    def use():
        try:
            for number in range(200):
                with cache.hold(number % 2, make_folder, name="made", durable=False) as path:
                    assert is_whole(path)
        except BaseException as error:
            wrong.append(error)

    def evict():
        while not stop.is_set():
            cache.prune(max_bytes=1)

    users = [threading.Thread(target=use) for _ in range(3)]
    pruner = threading.Thread(target=evict)
    for thread in (*users, pruner):
        thread.start()
    for thread in users:
        thread.join()
    stop.set()
    pruner.join()
    assert wrong == []
    assert leftovers(cache.directory) == []


# -- others, meanwhile -------------------------------------------------------------------


def read_and_check(line, directory, seed):
    import numpy as np

    cache = Cache(directory)
    chance = random.Random(seed)
    kept = []
    rounds = 0
    while rounds < 400 or not line.connection.poll(0):
        rounds += 1
        number = chance.randrange(20)
        text = f"value {number} " * 50
        assert cache.get_or_create(number, lambda text=text: text) == text
        key = ("array", number)
        array = cache.get_or_create(
            key, lambda number=number: np.full(20_000, number, dtype=np.int64)
        )
        kept = [*kept[-20:], (number, array)]
        for known, each in kept:  # a mapped array outlives its entry
            assert int(each[0]) == int(each[-1]) == known
        with cache.hold(("path", number), make_folder, name="n", durable=False) as path:
            assert is_whole(path)


def test_who_reads_and_publishes_never_notices_the_pruning(crew, cache):
    pruner = crew.start(prune_until_told, cache.directory, 60)
    readers = [crew.start(read_and_check, cache.directory, seed) for seed in range(3)]
    pruner.hear("enough")
    for members in (readers, [pruner]):
        for member in members:
            member.tell("stop")
        for member in members:
            member.result()
    assert leftovers(cache.directory) == []


# -- what dead builders leave --------------------------------------------------------------


def die_building(line, directory, key):
    cache = Cache(directory)

    def build(target):
        make_folder(target)
        line.tell("building")
        line.hear("never")

    cache.get_or_create_path(key, build, name="made")


def start_and_kill(crew, cache, number):
    victims = [crew.start(die_building, cache.directory, f"dead {n}") for n in range(number)]
    for victim in victims:
        victim.hear("building")
    for victim in victims:
        victim.kill()
    assert len(leftovers(cache.directory)) == 2 * number


def test_reap_sweeps_what_dead_builders_left_of_keys_that_nobody_asks_for(crew, cache):
    start_and_kill(crew, cache, 3)
    living = crew.start(die_building, cache.directory, "living")
    living.hear("building")
    ask_value(cache, "key")
    assert cache.reap() == 3
    assert len(leftovers(cache.directory)) == 2
    assert [build.key for build in cache.builds()] == ["living"]
    assert keys(cache) == ["key"]
    living.kill()
    assert cache.reap() == 1
    assert leftovers(cache.directory) == []


def test_reap_removes_what_a_killed_pruner_and_what_killed_processes_left(crew, tmp_path):
    cache = Cache(tmp_path / "cache")
    fill_with_all_kinds(cache)
    victim = crew.start(prune_slowly, cache.directory, "scandir")
    victim.hear("stopped")
    os.makedirs(cache._layout.statistics, exist_ok=True)
    left = [os.path.join(cache._layout.statistics, ".1-ab"), mark(cache, "count.new")]
    young = os.path.join(cache._layout.statistics, ".2-cd")
    for path in (*left, young):
        with open(path, "wb"):
            pass
    for path in left:
        os.utime(path, (time.time() - DAY, time.time() - DAY))
    assert cache.reap() == 2
    assert os.path.exists(mark(cache, "prune.temp")), "it lives"
    victim.kill()
    assert cache.reap() == 1
    assert not any(map(os.path.exists, [*left, mark(cache, "prune.temp")]))
    assert os.path.exists(young)


def die_before_a_restart(line, directory, host):
    door = Door()
    door.boot_id = lambda: "an earlier life"
    door.host = lambda: host
    over(Cache(directory), door).get_or_create("key", lambda: line.tell("building") or line.hear())


@pytest.mark.parametrize("ahead", [-DAY, DAY], ids=["long ago", "ahead"])
def test_a_claim_from_before_a_restart_is_reaped_whatever_its_time(crew, cache, ahead):
    own = Door().host()
    for host, reaped in ((own, 1), ("another", int(ahead < 0))):
        victim = crew.start(die_before_a_restart, cache.directory, host)
        victim.hear("building")
        victim.kill()
        (claim,) = leftovers_of_claims(cache)
        os.utime(claim, (time.time() + ahead, time.time() + ahead))
        assert cache.reap() == reaped


def test_a_sweep_that_fails_is_tried_again_before_a_day_is_over(crew, timed, clock):
    ask_value(timed, "first")
    rest()
    start_and_kill(crew, timed, 1)
    clock.ahead += DAY + 1
    add_up = timed._statistics().add_up

    def fail():
        raise OSError(errno.EIO, "the disk has a bad day")

    timed._keep_up()[0]._add_up = fail
    ask_value(timed, "second")
    rest()
    timed._keep_up()[0]._add_up = add_up
    marked = os.stat(mark(timed, "swept")).st_mtime
    clock.ahead += 2 * HOUR
    ask_value(timed, "third")
    rest()
    assert os.stat(mark(timed, "swept")).st_mtime - marked > DAY / 2


def test_reap_leaves_what_is_held_though_it_was_replaced(cache):
    ask_file(cache, "key")
    with cache.hold("key") as path, path.open("rb") as file:
        cache.refresh_path("key", make_folder, name="made")
        cache.reap()
        assert file.read() == b"x" * 1000
    cache.reap()
    assert leftovers(cache.directory) == []


def refresh_and_die(line, directory):
    class Deadly(Door):
        def exchange(self, one, other):
            super().exchange(one, other)
            line.tell("exchanged")
            line.hear("never")

    over(Cache(directory), Deadly()).refresh_path("key", make_folder, name="made")


WAYS_TO_FIND_THE_DEAD = {
    "reap": lambda cache: cache.reap(),
    "refresh": lambda cache: cache.refresh_path("key", make_folder, name="made", durable=False),
}


@pytest.mark.skipif(sys.platform == "win32", reason="names can't be exchanged there")
@pytest.mark.parametrize("way", WAYS_TO_FIND_THE_DEAD)
def test_what_is_held_outlives_who_is_killed_while_replacing_it(crew, cache, way):
    ask_folder(cache, "key")
    with cache.hold("key") as path:
        folder = os.open(path, os.O_RDONLY)
        victim = crew.start(refresh_and_die, cache.directory)
        victim.hear("exchanged")
        victim.kill()
        WAYS_TO_FIND_THE_DEAD[way](cache)
        assert sorted(os.listdir(folder)) == ["0", "1", "2", "3"]
        os.close(folder)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "moved away"])
def test_what_was_replaced_under_a_hold_goes_with_the_last_hold(cache, monkeypatch, exchange):
    door = Door()
    if not exchange:

        def refuse(one, other):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(door, "exchange", refuse)
    over(cache, door)
    ask_folder(cache, "key")
    with cache.hold("key") as path:
        folder = os.open(path, os.O_RDONLY)
        with cache.hold("key"):
            for _ in range(3):
                cache.refresh_path("key", make_folder, name="made", durable=False)
        assert sorted(os.listdir(folder)) == ["0", "1", "2", "3"]
        assert len(leftovers(cache.directory)) == 3, "what was replaced"
        os.close(folder)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("step", ["open_kept", "write"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_hold_that_ends_while_it_is_told_what_was_replaced_leaves_nothing(cache, step, after):
    door = Door()
    over(cache, door)
    ask_folder(cache, "key")
    manager = Cache(cache.directory).hold("key")
    manager.__enter__()
    held = entry_of(cache, "key", b"p") + HELD
    real = getattr(door, step)
    told = []

    def meddle(target, given, *more):
        is_it = given[:9] == b"\nreplaced" if step == "write" else more == ()
        is_it = is_it and (step == "write" or (target == held and given & APPEND))
        told.append(is_it)
        if is_it and not after:
            manager.__exit__(None, None, None)
        done = real(target, given, *more)
        if is_it and after:
            manager.__exit__(None, None, None)
        return done

    setattr(door, step, meddle)
    cache.refresh_path("key", make_folder, name="made", durable=False)
    assert sum(map(bool, told)) == 1
    assert leftovers(cache.directory) == []


def test_a_trash_that_a_killed_pruner_left_is_swept_by_itself(crew, timed, clock):
    fill_with_all_kinds(timed)
    victim = crew.start(prune_slowly, timed.directory, "remove_tree")
    victim.hear("stopped")
    victim.kill()
    assert leftovers(timed.directory) != []
    clock.ahead += DAY + 1
    ask_value(timed, "a day later")
    rest()
    assert leftovers(timed.directory) in ([], [mark(timed, "prune.temp")])


def test_the_dead_are_swept_once_a_day_without_anybody_asking_for_it(crew, timed, clock):
    ask_value(timed, "first")
    start_and_kill(crew, timed, 2)
    clock.ahead += DAY / 2
    ask_value(timed, "half a day later")
    rest()
    assert len(leftovers(timed.directory)) == 4
    clock.ahead += DAY / 2 + 1
    ask_value(timed, "a day later")
    rest()
    assert leftovers(timed.directory) == []


def test_the_dead_are_swept_once_by_all_processes_together(crew, tmp_path, clock):
    caches = [over(Cache(tmp_path / "cache"), clock) for _ in range(3)]
    ask_value(caches[0], "first")
    clock.ahead += DAY + 1
    swept = []
    for number, cache in enumerate(caches):
        cache.on(lambda event, number=number: swept.append((number, event.kind)))
    start_and_kill(crew, caches[0], 2)
    for cache in caches:
        ask_value(cache, f"key {id(cache)}")
        rest()
    assert [each for each in swept if each[1] == "reaped"] == [(0, "reaped")]


def test_a_mark_from_the_future_does_not_keep_the_dead_for_ever(crew, timed):
    ask_value(timed, "first")
    start_and_kill(crew, timed, 1)
    later = time.time() + 1000 * DAY
    os.utime(mark(timed, "swept"), (later, later))
    timed = Cache(timed.directory)
    ask_value(timed, "second")
    rest()
    assert leftovers(timed.directory) == []


def test_a_sweep_that_is_due_while_the_cache_is_trimmed_is_not_left_for_a_day(crew, tmp_path):
    cache = Cache(tmp_path / "cache", max_entries=3)
    for number in range(3):
        ask_value(cache, number)
        rest()
    start_and_kill(crew, cache, 1)
    yesterday = time.time() - 2 * DAY
    os.utime(mark(cache, "swept"), (yesterday, yesterday))
    clock, behind = Clock(), []
    clock.start_thread = lambda run, **_: behind.append(run)  # each is at it throughout a call
    cache = over(Cache(cache.directory, max_entries=3), clock)
    for number in range(10, 15):
        ask_value(cache, number)
        assert len(behind) == 1, "the cache is trimmed"
        behind.pop()()
        clock.ahead += HOUR
    assert leftovers(cache.directory) == []


def test_what_is_remembered_of_inputs_goes_when_nobody_used_it_for_a_month(tmp_path, clock):
    cache = over(Cache(tmp_path / "cache"), clock)
    for name in ("used", "unused"):
        given = tmp_path / name
        given.write_text(name)
        os.utime(given, (1.7e9, 1.7e9))
        until(lambda given=given: cache_inputs(cache, given), "the hash is written down")
    tables = {each.name: each for each in os.scandir(cache._layout.inputs)}
    assert len(tables) == 2
    old = time.time() - 31 * DAY
    unused, used = (tables[name].path for name in sorted(tables))
    os.utime(unused, (old, old))
    os.utime(used, (time.time(), old))
    clock.ahead += DAY + 1
    ask_value(cache, "a day later")
    rest()
    assert os.path.exists(used)
    assert not os.path.exists(unused)


def cache_inputs(cache, given):
    """Ask with an input until its hash is remembered, which a file just made is too young for."""
    before = len(os.listdir(cache._layout.inputs)) if os.path.isdir(cache._layout.inputs) else 0
    cache.get_or_create(f"{time.monotonic_ns()}", lambda: 1, inputs=[given])
    names = os.listdir(cache._layout.inputs) if os.path.isdir(cache._layout.inputs) else []
    return len(names) > before


# -- trouble -------------------------------------------------------------------------------


def test_upkeep_that_cant_write_its_folder_fails_no_publication(tmp_path):
    cache = Cache(tmp_path / "cache", max_entries=3, max_idle="1d")
    cache._layout.make_room(entry_of(cache, "key"))
    with open(cache._layout.upkeep, "wb"):
        pass  # a file where the folder should be
    for number in range(10):
        for ask in (ask_value, ask_file):
            ask(cache, number)
            ask(cache, number)
    rest()
    assert len(keys(cache)) == 20


TROUBLE = {
    "full": OSError(errno.ENOSPC, "no space left on device"),
    "forbidden": PermissionError(errno.EACCES, "permission denied"),
    "read-only": OSError(errno.EROFS, "read-only file system"),
    "too many open files": OSError(errno.EMFILE, "too many open files"),
}
STEPS = ("open", "stat", "utime", "replace", "scandir")


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
@pytest.mark.parametrize("step", STEPS)
def test_upkeep_that_fails_fails_no_publication(tmp_path, trouble, step):
    door = Door()
    cache = over(Cache(tmp_path / "cache", max_entries=3, max_idle="1d"), door)
    real = getattr(door, step)
    failed = []

    def fail(path, *given, **named):
        if str(path).startswith(cache._layout.upkeep) or step == "scandir":
            failed.append(path)
            raise trouble
        return real(path, *given, **named)

    setattr(door, step, fail)
    for number in range(10):
        assert ask_value(cache, number) == b"x" * 1000
        ask_file(cache, number)
        rest()
    if step == "utime":
        assert cache.reap() == 0
    else:
        assert failed
    setattr(door, step, real)
    ask_value(cache, "afterwards")
    rest()
    cache.prune()
    assert len(keys(cache)) <= 3


def test_where_no_thread_can_be_started_the_trimming_is_left_for_later(tmp_path):
    door = Door()

    def no_threads(function, *, daemon=False):
        raise RuntimeError("can't start new thread")

    door.start_thread = no_threads
    cache = over(Cache(tmp_path / "cache", max_entries=3), door)
    for number in range(10):
        ask_value(cache, number)
        set_last_use(
            cache, number, time.time() - 60 + number
        )  # the kernel's clock is a coarse one
    assert keys(cache) == ["7", "8", "9"], "who publishes evicts"
    del door.start_thread
    ask_value(cache, "one more")
    rest()
    assert len(keys(cache)) <= 3


def test_an_entry_that_cant_be_removed_does_not_keep_the_rest(cache, monkeypatch):
    door = Door()
    for number in range(6):
        cache.set(number, number)
    stubborn = entry_of(cache, 3)

    def unlink(path):
        if path == stubborn:
            raise PermissionError(errno.EPERM, "operation not permitted", path)
        os.unlink(path)

    door.unlink = unlink
    pruned = over(Cache(cache.directory), door).prune(max_bytes=1)
    assert keys(cache) == ["3"]
    assert (pruned.removed, pruned.entries) == (5, 1)


@paths
def test_an_entry_that_lost_its_meta_goes_too(cache, ask):
    ask(cache, "key")
    os.unlink(os.path.join(entry_of(cache, "key", b"p"), META))
    cache.prune(max_bytes=1, max_idle="1d")
    assert not os.path.exists(entry_of(cache, "key", b"p"))


def test_a_refresh_whose_old_entry_is_evicted_at_that_moment_publishes_the_new_one(cache):
    class Evicting(Door):
        def exchange(self, one, other):
            Cache(cache.directory).prune(max_bytes=1)
            super().exchange(one, other)

    cache.get_or_create_path("key", lambda target: target.write_text("old"), name="made")
    cache._open(Evicting())
    path = cache.refresh_path("key", lambda target: target.write_text("new"), name="made")
    assert path.read_text() == "new"
    assert cache.get_path("key") == path


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("90s", 90),
        ("1h30m", 5400),
        ("1 d 12 h", 129_600),
        ("2W", 1_209_600),
        ("1s500ms", 1.5),
        ("10m", 600),
    ],
)
def test_a_length_of_time_may_be_text(text, length):
    assert seconds("max_age", text) == length


@pytest.mark.parametrize(
    "text", ["", " ", "90", "s", "ms", "1y", "1.2.3s", "1h30", "-1s", "1sm", "1e3s", "1mss", "s1"]
)
def test_a_text_that_is_no_length_of_time_is_refused(text):
    with pytest.raises(OptionError, match="'500ms', '90s'"):
        seconds("max_age", text)
