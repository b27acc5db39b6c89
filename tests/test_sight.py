"""What a cache shows: its entries, the builds under way, counts, events and the log."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from atomcache import (
    BuildTimeout,
    Cache,
    CircularBuildError,
    Counts,
    DontStore,
    Event,
    KeyTypeError,
    OptionError,
    StorageError,
    _ending,
    _watch,
    current_build,
)
from atomcache._door import Door
from atomcache._keys import digest
from atomcache._layout import META
from atomcache._statistics import Statistics
from atomcache._watch import KINDS

from .crew import PATIENCE, leftovers, sleepers, until
from .test_freshness import Clock

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# -- helpers ---------------------------------------------------------------------------


def claim_of(cache, key="key", kind=b"v"):
    return cache._layout.entry(digest(kind, key)) + ".temp"


def ask(line, cache, key="key", **options):
    """Ask for a value; as builder, say so and wait for the word."""

    def factory():
        line.tell("building")
        line.hear("go on")
        return "built"

    return cache.get_or_create(key, factory, **options)


@pytest.fixture(autouse=True)
def _alone():
    """Forget other tests' caches: their folders may be gone, and who logs that disturbs."""
    _ending._to_write.clear()


def hit(cache, key="key", number=1):
    for _ in range(number):
        assert cache.get_or_create(key, never) == "built"


def never():
    raise AssertionError("this should have been a hit")


def make(cache, key="key", **options):
    return cache.get_or_create(key, lambda: "built", **options)


def everyone(cache):
    return cache.stats().everyone


def ended(member):
    """Return a process's result, once the process is gone."""
    result = member.result()
    member.process.join(PATIENCE)
    assert member.process.exitcode is not None
    return result


@pytest.fixture
def events(cache):
    """Return the list of what happens in `cache` from now on."""
    seen = []
    cache.on(seen.append)
    return seen


def kinds(events):
    return [event.kind for event in events]


def only(events, kind):
    [event] = [event for event in events if event.kind == kind]
    return event


def run_program(tmp_path, program, *args):
    """Run a program in a process of its own; return what it said."""
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", str(script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": HERE},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done


def damage(path):
    """Change the last byte of a file, and nothing else of it."""
    content, found = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def busy():
    """Take long enough for a clock to tell."""
    time.sleep(0.01)
    return "built"


# -- entries ---------------------------------------------------------------------------


def test_a_listing_tells_all_about_a_value(cache):
    took = []

    def factory():
        began = time.monotonic()
        busy()
        took.append(time.monotonic() - began)
        return ["page"]

    before = time.time()
    cache.get_or_create(("page", 1), factory, codec="json", max_age=3600, tags=("a", "b"))
    after = time.time()
    [entry] = cache.entries()
    assert (entry.key, entry.kind, entry.codec) == ("('page', 1)", "value", "json")
    assert (entry.tags, entry.function) == (("a", "b"), "")
    assert entry.path.is_file()
    assert entry.size == entry.path.stat().st_size
    assert before - 0.01 <= entry.created <= after + 0.01
    assert entry.expires == pytest.approx(entry.created + 3600, abs=after - before + 0.01)
    assert took[0] <= entry.build_seconds + 1e-6 <= after - before + 0.01
    assert before - 1 <= entry.last_used <= after + 1


def test_a_listing_tells_the_size_of_a_folder_with_all_that_is_in_it(cache):
    def build(target):
        (target / "inner").mkdir(parents=True)
        (target / "one").write_bytes(bytes(1000))
        (target / "inner" / "two").write_bytes(bytes(2000))

    made = cache.get_or_create_path("key", build, name="made", tags=("big",))
    [entry] = cache.entries()
    assert (entry.key, entry.kind, entry.path) == ("key", "path", made)
    assert (entry.size, entry.codec, entry.tags) == (3000, "", ("big",))
    assert entry.expires is None


def test_a_value_and_a_path_of_one_key_are_two_entries_of_the_listing(cache):
    make(cache)
    cache.get_or_create_path("key", lambda target: target.write_text("made"), name="made")
    listed = sorted((entry.kind, entry.key) for entry in cache.entries())
    assert listed == [("path", "key"), ("value", "key")]


def test_what_a_factory_says_of_its_build_is_listed(cache):
    def factory():
        current_build().max_age = 60
        current_build().tag("late")
        return "built"

    cache.get_or_create("key", factory, tags=("early",), max_age=None)
    [entry] = cache.entries()
    assert sorted(entry.tags) == ["early", "late"]
    assert 0 <= entry.expires - entry.created <= 61


def double(number):
    return 2 * number


def test_a_listing_names_the_function_that_made_an_entry(cache):
    cache.memoize(double)(4)
    [entry] = cache.entries()
    assert entry.function == f"{__name__}.double"


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("text", "text"),
        ("two\nlines", r"'two\nlines'"),
        (b"bytes", "b'bytes'"),
        ("x" * 1001, f"'{'x' * 999}... (1003 characters)"),
    ],
    ids=["text", "lines", "bytes", "long"],
)
def test_a_listing_shows_a_key_as_given_or_as_repr_shows_it(cache, key, shown):
    make(cache, key)
    assert [entry.key for entry in cache.entries()] == [shown]


def grow_old(entry, seconds):
    """Let an entry be made and used so many seconds ago."""
    then = time.time() - seconds
    os.utime(entry.path, (then, then))
    return then


def test_a_hit_after_an_hour_is_listed_as_use(crew, cache):
    make(cache)
    [entry] = cache.entries()
    then = grow_old(entry, 7200)
    ended(crew.start(hit_in_process, cache, 3))
    [entry] = cache.entries()
    assert entry.last_used > then + 3600


def test_looking_at_a_listing_is_no_use(cache):
    make(cache)
    [entry] = cache.entries()
    then = grow_old(entry, 7200)
    for _ in range(2):
        [entry] = cache.entries()
        assert entry.last_used == pytest.approx(then, abs=1)


# -- builds ----------------------------------------------------------------------------


def report(line, cache, *progress):
    def factory():
        line.tell("building")
        line.hear("report")
        current_build().progress(*progress)
        line.tell("reported")
        line.hear("go on")
        return "built"

    return cache.get_or_create("key", factory, tags=("a", "b"))


def test_a_build_is_listed_from_its_begin_to_its_end(crew, cache):
    assert list(cache.builds()) == []
    before = time.time()
    builder = crew.start(report, cache, 3, 10, "page 3")
    builder.hear("building")
    [build] = cache.builds()
    assert (build.key, build.kind, build.pid) == ("key", "value", builder.pid)
    assert build.host == socket.gethostname()
    assert before - 1 <= build.started <= time.time() + 1
    assert (build.done, build.total, build.note) == (None, None, "")
    assert (build.tags, build.function) == (("a", "b"), "")
    builder.tell("report")
    builder.hear("reported")
    [build] = cache.builds()
    assert (build.done, build.total, build.note) == (3, 10, "page 3")
    builder.tell("go on")
    builder.result()
    assert list(cache.builds()) == []


@pytest.mark.parametrize(
    "progress",
    [(1, None, ""), (0.5, 1, "50 % done\nhalf"), (7, None, " spaces  kept "), (1e300, 2e300, "é")],
    ids=["bare", "percent", "spaces", "large"],
)
def test_progress_is_told_as_it_was_reported(crew, cache, progress):
    builder = crew.start(report, cache, *progress)
    builder.hear("building")
    builder.tell("report")
    builder.hear("reported")
    [build] = cache.builds()
    assert (build.done, build.total, build.note) == progress
    builder.tell("go on")
    builder.result()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((np.int64(3), 10), (3, 10)),
        ((np.float32(0.5), np.int32(1)), (0.5, 1)),
        ((10**400, None), (math.inf, None)),
        ((-(10**400), Decimal("1.5")), (-math.inf, 1.5)),
    ],
    ids=repr,
)
def test_any_kind_of_number_is_told_as_progress(cache, given, told):
    seen = []

    def factory():
        current_build().progress(*given)
        seen.extend((build.done, build.total) for build in cache.builds())
        return "built"

    assert cache.get_or_create("key", factory) == "built"
    assert seen == [told]


@pytest.mark.parametrize("given", ["3", None, True, 1j, b"1", [1], np.ones(2)], ids=repr)
def test_what_is_no_number_is_refused_as_progress(cache, given):
    with pytest.raises(OptionError, match="progress"):
        cache.get_or_create("key", lambda: current_build().progress(given))


def test_of_many_reports_the_last_is_told_if_it_says_done(cache):
    told = []

    def factory():
        for number in range(1, 1001):
            current_build().progress(number, 1000)
        told.extend(cache.builds())
        return "built"

    cache.get_or_create("key", factory)
    assert [build.done for build in told] == [1000]


@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}], ids=["patient", "with a timeout"])
def test_a_build_tells_how_many_processes_wait_for_it(crew, cache, options):
    builder = crew.start(ask, cache)
    other = crew.start(ask, cache, "other")
    for each in (builder, other):
        each.hear("building")
    assert {build.key: build.waiting for build in cache.builds()} == {"key": 0, "other": 0}
    waiters = [crew.start(ask_with, cache, options) for _ in range(3)]
    until(lambda: sleepers(claim_of(cache)) == 3, "all wait")
    assert {build.key: build.waiting for build in cache.builds()} == {"key": 3, "other": 0}
    waiters[0].kill()
    until(lambda: sleepers(claim_of(cache)) == 2, "one is gone")
    assert {build.key: build.waiting for build in cache.builds()} == {"key": 2, "other": 0}
    for each in (builder, other):
        each.tell("go on")


def ask_with(line, cache, options):
    return ask(line, cache, **options)


def test_where_the_system_can_not_tell_who_waits_the_number_is_none(crew, cache, monkeypatch):
    builder = crew.start(ask, cache)
    builder.hear("building")
    real_open = open

    def no_table(file, *args, **options):
        if file == "/proc/locks":
            raise FileNotFoundError(file)
        return real_open(file, *args, **options)

    monkeypatch.setattr("builtins.open", no_table)
    [build] = cache.builds()
    assert (build.pid, build.waiting) == (builder.pid, None)


def test_a_dead_builder_is_not_listed(crew, cache):
    builder = crew.start(ask, cache)
    builder.hear("building")
    builder.kill()
    assert leftovers(cache.directory) != []
    assert list(cache.builds()) == []


def build_before_a_restart(line, directory):
    door = Door()
    door.boot_id = lambda: "an earlier life of this machine"
    cache = Cache(directory)
    cache._open(door)
    cache.get_or_create("key", lambda: line.tell("building") or line.hear())


def test_a_builder_that_can_not_be_seen_is_listed_for_as_long_as_it_shows_signs_of_life(
    crew, cache
):
    builder = crew.start(build_before_a_restart, cache.directory)
    builder.hear("building")
    assert [build.key for build in cache.builds()] == ["key"]
    builder.kill()
    claim = cache._layout.entry(digest(b"v", "key")) + ".temp"
    week_ago = time.time() - 7 * 86_400
    os.utime(claim, (week_ago, week_ago))
    assert list(cache.builds()) == []


def test_a_stopped_builder_is_listed(crew, cache):
    builder = crew.start(ask, cache)
    builder.hear("building")
    os.kill(builder.pid, signal.SIGSTOP)
    assert [build.pid for build in cache.builds()] == [builder.pid]


def build_by_function(line, cache):
    def slow(target, number):
        line.tell("building")
        line.hear("go on")
        target.write_text(str(number))

    return str(cache.builder(slow)(7))


def test_a_build_of_a_decorated_function_is_listed_with_its_name(crew, cache):
    builder = crew.start(build_by_function, cache)
    builder.hear("building")
    [build] = cache.builds()
    assert build.kind == "path"
    assert build.function == f"{__name__}.build_by_function.<locals>.slow"
    builder.tell("go on")
    builder.result()
    [entry] = cache.entries()
    assert (entry.key, entry.function) == (build.key, build.function)


def test_a_build_of_a_task_is_listed(cache):
    told = []

    async def factory():
        told.extend(cache.builds())
        return "built"

    asyncio.run(cache.aget_or_create("key", factory))
    assert [(build.key, build.pid) for build in told] == [("key", os.getpid())]
    assert list(cache.builds()) == []


# -- counts ----------------------------------------------------------------------------


def test_hits_misses_builds_and_failures_are_counted(cache):
    make(cache)
    hit(cache, number=3)
    cache.get_or_create_path("key", lambda target: target.write_text("made"), name="made")
    cache.get_or_create_path("key", never, name="made")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_create("failing", lambda: 1 // 0)
    process, all_together = cache.stats()
    assert process == all_together
    whole = process._replace(seconds_saved=0.0, seconds_built=0.0)
    assert whole == Counts(hits=4, misses=3, builds=2, failures=1)
    assert process.seconds_built == pytest.approx(sum(e.build_seconds for e in cache.entries()))


def test_a_cache_that_is_not_used_counts_nothing_and_makes_no_folder(cache):
    assert cache.stats() == (Counts(), Counts())
    assert not cache.directory.exists()


def build_seconds(cache, key="key"):
    [seconds] = [entry.build_seconds for entry in cache.entries() if entry.key == key]
    return seconds


def test_each_hit_saves_what_the_build_of_its_entry_took(cache):
    cache.get_or_create("one", busy)
    cache.get_or_create("two", busy)
    hit(cache, "one", 5)
    hit(cache, "two", 2)
    saved = 5 * build_seconds(cache, "one") + 2 * build_seconds(cache, "two")
    assert cache.stats().process.seconds_saved == pytest.approx(saved, rel=1e-6)
    assert everyone(cache).seconds_saved == pytest.approx(saved, rel=1e-6)


def test_each_hit_saves_what_the_build_took_that_it_found(cache):
    cache.get_or_create("key", busy)
    hit(cache, number=3)
    saved = 3 * build_seconds(cache)

    def longer():
        time.sleep(0.05)
        return "built"

    cache.refresh("key", longer)
    hit(cache, number=2)
    saved += 2 * build_seconds(cache)
    assert cache.stats().process.seconds_saved == pytest.approx(saved, rel=1e-6)


def run_threads(number, step):
    """Run `step` in threads that start together."""
    together = threading.Barrier(number)
    errors = []

    def run():
        together.wait(PATIENCE)
        try:
            step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def restless():
    """Have threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_of_8_threads_with_1000_hits_each_8000_are_counted(cache):
    make(cache)
    run_threads(8, lambda: hit(cache, number=1000))
    assert cache.stats().process.hits == 8000
    assert everyone(cache).hits == 8000


def test_threads_that_hit_an_entry_for_the_first_time_together_are_all_counted(cache, monkeypatch):
    for key in range(10):
        make(cache, key)

    class Slow(_watch._Use):
        __slots__ = ()

        def __init__(self, *given):
            time.sleep(0.005)  # lets the other threads run, at the worst of moments
            super().__init__(*given)

    monkeypatch.setattr(_watch, "_Use", Slow)
    run_threads(8, lambda: [hit(cache, key) for key in range(10)])
    assert cache.stats().process.hits == 80


@pytest.mark.usefixtures("restless")
def test_hits_of_more_entries_than_are_remembered_are_all_counted(cache, monkeypatch):
    monkeypatch.setattr("atomcache._watch._MOST_USES", 10)
    for key in range(50):
        make(cache, key)
    run_threads(4, lambda: [hit(cache, key) for _ in range(10) for key in range(50)])
    assert cache.stats().process.hits == 2000


def hit_in_process(line, cache, number):
    hit(cache, number=number)


def test_a_process_that_only_hits_is_counted_after_its_end(crew, cache):
    make(cache)
    ended(crew.start(hit_in_process, cache, 7))
    assert cache.stats().process.hits == 0
    assert everyone(cache).hits == 7
    assert everyone(cache).seconds_saved == pytest.approx(7 * build_seconds(cache), rel=1e-6)


def be_killed_in_between(line, cache):
    make(cache)
    hit(cache, number=5)

    class Killed(Door):
        def remove_tree(self, path):
            if os.path.basename(path).startswith(str(os.getpid())):
                os._exit(1)
            super().remove_tree(path)

    statistics = cache._statistics()
    statistics.write()
    statistics._door = Killed()
    statistics.end()


def test_who_is_killed_between_adding_to_the_total_and_the_end_is_counted_once(crew, cache):
    member = crew.start(be_killed_in_between, cache)
    member.process.join(PATIENCE)
    assert member.process.exitcode == 1
    for builds in (1, 2, 3):
        assert (everyone(cache).hits, everyone(cache).builds) == (5, builds)
        ended(crew.start(make_in_process, cache, builds))


def make_in_process(line, cache, key):
    make(cache, key)


def hit_for_long(line, cache):
    clock = Clock()
    cache._open(clock)
    hit(cache, number=3)
    clock.go_on(61)
    hit(cache, number=4)
    line.tell("hit")
    line.hear("end")


def test_a_process_that_goes_on_hitting_is_counted_before_its_end(crew, cache):
    make(cache)
    member = crew.start(hit_for_long, cache)
    member.hear("hit")
    until(lambda: everyone(cache).hits >= 4, "its counts are seen")
    member.tell("end")
    ended(member)
    assert everyone(cache).hits == 7


def fail_in_process(line, cache):
    for _ in range(3):
        with contextlib.suppress(ZeroDivisionError):
            cache.get_or_create("key", lambda: 1 // 0)


def test_a_process_that_only_fails_is_counted_after_its_end(crew, cache):
    ended(crew.start(fail_in_process, cache))
    assert everyone(cache)[:4] == (0, 3, 0, 3)


def test_processes_that_only_waited_are_counted_after_their_end(crew, cache):
    builder = crew.start(ask, cache)
    builder.hear("building")
    waiters = [crew.start(ask, cache) for _ in range(3)]
    until(lambda: sleepers(claim_of(cache)) == 3, "all wait")
    builder.tell("go on")
    for member in crew.members:
        ended(member)
    counts = everyone(cache)
    assert len(waiters) == 3
    assert (counts.misses, counts.builds, counts.waits, counts.hits) == (4, 1, 3, 0)


def build_and_hit(line, cache, number):
    make(cache, ("own", number))
    hit(cache, ("own", number), 10)
    hit(cache, "common", 5)
    line.tell("done")
    line.hear("end")


def test_of_several_processes_each_is_counted_once(crew, cache):
    make(cache, "common")
    members = [crew.start(build_and_hit, cache, number) for number in range(6)]
    for member in members:
        member.hear("done")
    assert everyone(cache).builds == 7  # each wrote its first build down
    for member in members:
        member.tell("end")
    for member in members:
        ended(member)
    for _ in range(3):
        counts = everyone(cache)
        assert (counts.hits, counts.misses, counts.builds) == (90, 7, 7)
    assert everyone(Cache(cache.directory)).hits == 90


def test_a_process_that_is_killed_loses_only_what_it_had_not_written(crew, cache):
    make(cache, "common")
    builder = crew.start(build_and_hit, cache, 1)
    builder.hear("done")
    builder.kill()
    assert everyone(cache).builds == 2
    assert everyone(cache).hits in (0, 15)


def test_what_a_killed_process_left_is_added_up_later_and_counted_once(crew, cache):
    make(cache, "common")
    builder = crew.start(build_and_hit, cache, 1)
    builder.hear("done")
    builder.kill()
    counts = everyone(cache)
    folder = Path(cache._layout.root, "stats")
    [left] = folder.glob(f"{builder.pid}-*")
    os.utime(left, (time.time() - 100_000,) * 2)
    cache._keep_up()[1].add_up()
    assert not left.exists()
    assert everyone(cache) == counts


FORKS = """
    import multiprocessing, os, sys
    from atomcache import Cache

    def hits(cache, number):
        for _ in range(number):
            assert cache.get_or_create("key", lambda: 1 / 0) == "built"

    if __name__ == "__main__":
        cache = Cache(sys.argv[1])
        cache.get_or_create("key", lambda: "built")
        hits(cache, 2)
        if sys.argv[2] == "os.fork":
            for _ in range(3):
                if os.fork() == 0:
                    hits(cache, 5)
                    sys.exit()
                os.wait()
        else:
            context = multiprocessing.get_context(sys.argv[2])
            children = [context.Process(target=hits, args=(cache, 5)) for _ in range(3)]
            for child in children:
                child.start()
            for child in children:
                child.join()
                assert child.exitcode == 0
        hits(cache, 1)
"""


@pytest.mark.parametrize("way", ["os.fork", "fork", "forkserver", "spawn"])
def test_children_and_their_parent_are_each_counted_once(tmp_path, cache, way):
    run_program(tmp_path, FORKS, cache.directory, way)
    counts = everyone(cache)
    assert (counts.hits, counts.misses, counts.builds) == (18, 1, 1)


def test_a_forked_child_starts_at_zero(crew, cache):
    assert ended(crew.start(count_in_a_fork, cache)) == (1, 2)


def count_in_a_fork(line, cache):
    make(cache)
    hit(cache, number=2)
    read, write = os.pipe()
    if os.fork() == 0:
        hit(cache)
        os.write(write, str(cache.stats().process.hits).encode())
        os._exit(0)
    os.wait()
    return int(os.read(read, 100)), cache.stats().process.hits


POOL = """
    import multiprocessing, sys
    from atomcache import Cache

    def task(cache, key):
        cache.get_or_create(key % 4, lambda: "built")

    if __name__ == "__main__":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            pool.starmap(task, [(Cache(sys.argv[1]), key) for key in range(40)])
            pool.close()
            pool.join()
"""


def test_caches_that_are_sent_to_the_workers_of_a_pool_are_all_counted(tmp_path, cache):
    run_program(tmp_path, POOL, cache.directory)
    counts = everyone(cache)
    assert counts.hits + counts.misses == 40
    assert counts.builds == 4


def hit_by_short_lived_caches(line, cache):
    for _ in range(4):
        hit(Cache(cache.directory))
        gc.collect()


def test_what_a_cache_has_counted_that_is_gone_before_its_process_is_not_lost(crew, cache):
    make(cache)
    ended(crew.start(hit_by_short_lived_caches, cache))
    assert everyone(cache).hits == 4


def test_nobody_waits_for_another_process_that_adds_up(crew, cache):
    make(cache)
    everyone(cache)
    with open(Path(cache._layout.root, "stats", "lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended(crew.start(hit_in_process, cache, 3))  # ends though the lock is taken
        assert everyone(cache).hits == 3
    ended(crew.start(hit_in_process, cache, 4))
    assert everyone(cache).hits == 7


@pytest.mark.parametrize("total", [False, True], ids=["first to end", "not first"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_who_ends_while_others_add_up_is_counted_once(crew, cache, monkeypatch, moment, total):
    make(cache, "common")
    if total:
        ended(crew.start(build_in_process, cache, "earlier"))
    member = crew.start(build_and_hit, cache, 1)
    member.hear("done")
    before = everyone(cache).builds
    real_read = Statistics._read

    def read(self, name):
        """Have the process end just before or after its own file is read."""
        its_own = name.startswith(f"{member.pid}-")
        if its_own and moment == "before":
            leave()
        counts = real_read(self, name)
        if its_own and moment == "after":
            leave()
        return counts

    def leave():
        if member.process.is_alive():
            member.tell("end")
            ended(member)

    monkeypatch.setattr(Statistics, "_read", read)
    assert everyone(cache).builds == before == (3 if total else 2)
    assert not member.process.is_alive()


def build_in_process(line, cache, key):
    make(cache, key)


def test_a_cache_that_is_cleared_counts_from_zero(crew, cache):
    make(cache)
    ended(crew.start(hit_in_process, cache, 3))
    assert everyone(cache).hits == 3
    Cache(cache.directory).clear()
    assert everyone(Cache(cache.directory)).hits == 0


def as_folder(path):
    path.mkdir()


def as_loop(path):
    path.symlink_to(path)


def as_content(content):
    return lambda path: path.write_bytes(content)


DAMAGE = {
    "empty": as_content(b""),
    "garbage": as_content(bytes(range(256)) * 10),
    "torn": as_content(b"hits 12\nmisses 3"),
    "no number": as_content(b"hits many\nmisses 1\n"),
    "unknown": as_content(b"wonders 7\n"),
    "too long a number": as_content(b"hits " + b"9" * 10_000 + b"\n"),
    "a folder": as_folder,
    "a loop": as_loop,
}


@pytest.mark.parametrize("name", ["total", "1-abc"])
@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_damaged_counts_harm_nobody(crew, cache, harm, name):
    make(cache)
    folder = Path(cache._layout.root, "stats")
    (folder / name).unlink(missing_ok=True)
    harm(folder / name)
    hit(cache, number=2)
    assert cache.stats().process.hits == 2
    ended(crew.start(hit_in_process, cache, 3))
    counts = everyone(cache)
    assert counts.hits in (5, 17)  # with the lines of the torn file that are whole
    assert counts.seconds_saved >= 0


def test_counts_that_can_not_be_written_harm_nobody(crew, cache, caplog):
    make(cache)
    folder = Path(cache._layout.root, "stats")
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    folder.write_text("not a folder")
    hit(cache, number=2)
    make(cache, "other")
    ended(crew.start(hit_in_process, cache, 3))
    assert cache.stats().process.hits == 2
    assert folder.read_text() == "not a folder"
    assert {each.levelno for each in caplog.records} <= {logging.WARNING}


# -- events ----------------------------------------------------------------------------


def test_the_documentation_names_every_kind_of_event_and_no_other():
    named = re.findall(r'``"(\w+)"``', Event.__doc__)
    assert sorted(set(named)) == sorted(KINDS)


def test_a_miss_a_build_and_a_hit_are_told_in_their_order(cache):
    seen = []

    def look(event):
        under_way = [build.key for build in cache.builds()]
        seen.append((event.kind, event.key, under_way, "key" in cache))

    cache.on(look)
    cache.get_or_create("key", lambda: seen.append("the factory runs") or "built")
    hit(cache)
    assert seen == [
        ("miss", "key", [], False),
        ("build_started", "key", ["key"], False),
        "the factory runs",
        ("build_finished", "key", ["key"], True),
        ("hit", "key", [], True),
    ]


def test_a_finished_build_tells_how_long_it_took(cache, events):
    cache.get_or_create(("page", 1), busy)
    event = only(events, "build_finished")
    assert event.key == "('page', 1)"
    assert event.seconds == pytest.approx(build_seconds(cache, event.key), rel=1e-6)
    assert event.error is None


def test_a_failed_build_tells_the_error_and_how_long_it_took(cache, events):
    failure = ValueError("broken")
    inner = []

    def factory():
        began = time.monotonic()
        busy()
        inner.append(time.monotonic() - began)
        raise failure

    with pytest.raises(ValueError, match="broken"):
        cache.get_or_create("key", factory)
    assert kinds(events) == ["miss", "build_started", "build_failed"]
    event = only(events, "build_failed")
    assert (event.key, event.error) == ("key", failure)
    assert event.seconds is not None
    assert event.seconds >= inner[0]


def overtaken(cache, key):
    """Build what is set during the build, so that the build was in vain."""

    def factory():
        busy()
        cache.set(key, "set")
        return "built"

    return cache.get_or_create(key, factory)


def test_a_build_that_somebody_overtook_is_told_as_a_duplicate_and_counted(crew, cache, events):
    assert overtaken(cache, "key") == "set"
    assert kinds(events) == ["miss", "build_started", "duplicate"]
    event = only(events, "duplicate")
    assert event.key == "key"
    assert event.seconds > 0
    ended(crew.start(overtaken_in_process, cache, "other"))
    assert (cache.stats().process.duplicates, everyone(cache).duplicates) == (1, 2)
    assert everyone(cache).builds == 0


def overtaken_in_process(line, cache, key):
    return overtaken(cache, key)


def test_what_duplicates_mean_is_logged_once_per_process(cache, caplog, monkeypatch):
    monkeypatch.setattr(_watch, "_warned", [])
    for key in range(3):
        assert overtaken(cache, key) == "set"
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for part in ("0 was built", str(cache.directory), "machines", "stats()"):
        assert part in record.getMessage()


def test_a_path_tells_the_same_events_as_a_value(cache, events):
    for _ in range(2):
        cache.get_or_create_path("key", lambda target: target.write_text("made"), name="made")
    assert kinds(events) == ["miss", "build_started", "build_finished", "hit"]
    assert {event.key for event in events} == {"key"}


def wait_here(crew, cache, builder, claim, number, ask_once):
    """Ask in threads; return when all are done, after the builder was told to go on."""
    threads = [threading.Thread(target=ask_once) for _ in range(number)]
    for thread in threads:
        thread.start()
    until(lambda: sleepers(claim) == 1, "this process waits")
    assert [thread.is_alive() for thread in threads] == [True] * number
    builder.tell("go on")
    for thread in threads:
        thread.join(PATIENCE)


def test_who_waited_for_another_process_tells_so_at_the_end_of_the_build(crew, cache):
    builder = crew.start(ask, cache)
    builder.hear("building")
    seen = []
    cache.on(lambda event: seen.append((event, "key" in cache)))
    wait_here(crew, cache, builder, claim_of(cache), 1, lambda: make(cache))
    assert [(event.kind, event.key, there) for event, there in seen] == [
        ("miss", "key", False),
        ("waited", "key", True),
    ]
    assert seen[1][0].seconds > 0
    assert cache.stats().process.waits == 1


def test_who_waited_for_another_thread_tells_so(cache, events):
    building, may_end = threading.Event(), threading.Event()

    def factory():
        building.set()
        assert may_end.wait(PATIENCE)
        return "built"

    first = threading.Thread(target=cache.get_or_create, args=("key", factory))
    first.start()
    assert building.wait(PATIENCE)
    flight = next(iter(cache._protocol.flights._flights.values()))
    second = threading.Thread(target=cache.get_or_create, args=("key", never))
    real_wait = type(flight).wait
    asleep = threading.Event()

    def wait(self, timeout):
        asleep.set()
        return real_wait(self, timeout)

    type(flight).wait = wait
    try:
        second.start()
        assert asleep.wait(PATIENCE)
        may_end.set()
        for thread in (first, second):
            thread.join(PATIENCE)
    finally:
        type(flight).wait = real_wait
    told = ["build_finished", "build_started", "miss", "miss", "waited"]
    assert sorted(kinds(events)) == told
    assert only(events, "waited").seconds > 0


def test_a_wait_that_ends_in_a_timeout_is_told(crew, cache, events):
    builder = crew.start(ask, cache)
    builder.hear("building")
    with pytest.raises(BuildTimeout):
        make(cache, timeout=0.01)
    assert kinds(events) == ["miss", "waited"]
    assert only(events, "waited").seconds > 0


def test_who_takes_over_from_a_dead_builder_tells_so_before_it_builds(crew, cache, events):
    builder = crew.start(ask, cache)
    builder.hear("building")
    builder.kill()
    assert make(cache) == "built"
    told = [kind for kind in kinds(events) if kind != "waited"]  # for the kernel to tell of it
    assert told == ["miss", "taken_over", "build_started", "build_finished"]
    assert only(events, "taken_over").key == "key"
    assert cache.stats().process.takeovers == 1


def test_what_was_reaped_is_told_with_its_number(crew, cache, events):
    builders = [crew.start(ask, cache, key) for key in "ab"]
    for builder in builders:
        builder.hear("building")
    assert cache.reap() == 0
    assert events == []
    for builder in builders:
        builder.kill()
    reaped = cache.reap()
    event = only(events, "reaped")
    assert reaped >= 2
    assert (event.key, event.details) == ("", {"number": reaped})


def test_each_evicted_entry_is_told_with_its_size(cache, events):
    for key in range(5):
        make(cache, key)
    paths = {str(entry.path): entry.size for entry in cache.entries()}
    events.clear()
    pruned = cache.prune(max_entries=2)
    assert kinds(events) == ["evicted"] * 3
    assert sum(event.details["size"] for event in events) == pruned.freed
    for event in events:
        assert paths[event.details["path"]] == event.details["size"]
        assert not os.path.exists(event.details["path"])
    assert cache.stats().process.evictions == 3


def make_file(cache):
    return cache.get_or_create_path(
        "key", lambda target: target.write_text("made"), name="made", max_age=3600
    )


@pytest.mark.parametrize("get", [make, make_file], ids=["value", "path"])
def test_a_damaged_entry_is_told_once_before_it_is_built_anew(cache, events, get):
    get(cache)
    [entry] = cache.entries()
    damage(entry.path if get is make else entry.path.parent / META)
    events.clear()
    get(cache)
    assert kinds(events) == ["miss", "corrupt", "build_started", "build_finished"]
    assert {event.key for event in events} == {"key"}
    assert cache.stats().process.corrupt == 1


def test_an_old_value_that_is_served_is_told(cache, events):
    make(cache, max_age=0)
    events.clear()
    assert make(cache, max_age=0, stale_for=3600) == "built"
    until(lambda: not cache._protocol.flights._flights, "the build behind ends")
    assert sorted(kinds(events)) == ["build_finished", "build_started", "miss", "stale"]
    assert (only(events, "stale").key, only(events, "stale").error) == ("key", None)
    assert cache.stats().process.stale == 1


def test_an_old_value_that_is_served_for_an_error_is_told_with_the_error(cache, events):
    make(cache, max_age=0)
    events.clear()
    failure = OSError("the source is gone")

    def factory():
        raise failure

    assert cache.get_or_create("key", factory, max_age=0, stale_on_error=3600) == "built"
    assert kinds(events) == ["miss", "build_started", "build_failed", "stale"]
    assert only(events, "stale").error is failure


@pytest.mark.parametrize("way", ["raise", "bypass"])
def test_a_folder_that_can_not_be_read_is_told_as_an_error(tmp_path, way):
    (tmp_path / "cache").write_text("not a folder")
    cache = Cache(tmp_path / "cache", on_store_error=way)
    events = []
    cache.on(events.append)
    if way == "raise":
        with pytest.raises(StorageError):
            make(cache)
    else:
        assert make(cache) == "built"
    event = only(events, "error")
    assert event.key == "key"
    assert isinstance(event.error, OSError)


def test_errors_are_counted_though_the_folder_can_not_be_read(tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    cache = Cache(tmp_path / "cache", on_store_error="bypass")
    assert make(cache) == "built"
    assert cache.stats().process.errors == 1


def store_too_much(line, cache, way):
    events = []
    cache.on(events.append)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        cache.get_or_create("key", lambda: b"x" * 200_000, codec="bytes", on_store_error=way)
    except StorageError:
        assert way == "raise"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return [(event.kind, event.key, isinstance(event.error, OSError)) for event in events]


@pytest.mark.parametrize("way", ["raise", "bypass"])
def test_a_value_that_can_not_be_written_is_told_as_an_error(crew, cache, way):
    events = crew.start(store_too_much, cache, way).result()
    assert ("error", "key", True) in events


def test_the_calls_of_tasks_tell_the_same_events(cache, events):
    async def factory():
        return "built"

    async def fail():
        raise ZeroDivisionError

    async def main():
        await cache.aget_or_create("key", factory)
        await cache.aget_or_create("key", factory)
        with contextlib.suppress(ZeroDivisionError):
            await cache.aget_or_create("failing", fail)
        await cache.aget_or_create_path("key", lambda to: to.write_text("made"), name="made")
        await cache.aget_or_create_path("key", never, name="made")

    asyncio.run(main())
    assert [(event.kind, event.key) for event in events] == [
        ("miss", "key"),
        ("build_started", "key"),
        ("build_finished", "key"),
        ("hit", "key"),
        ("miss", "failing"),
        ("build_started", "failing"),
        ("build_failed", "failing"),
        ("miss", "key"),
        ("build_started", "key"),
        ("build_finished", "key"),
        ("hit", "key"),
    ]
    assert cache.stats().process[:4] == (2, 3, 2, 1)


def test_a_task_that_waits_for_another_tells_so(cache, events):
    async def main():
        may_end = asyncio.Event()
        building = asyncio.Event()

        async def factory():
            building.set()
            await may_end.wait()
            return "built"

        first = asyncio.create_task(cache.aget_or_create("key", factory))
        await building.wait()
        second = asyncio.create_task(cache.aget_or_create("key", never))
        while kinds(events).count("miss") < 2:
            await asyncio.sleep(0)
        may_end.set()
        return await asyncio.gather(first, second)

    async def bounded():
        return await asyncio.wait_for(main(), PATIENCE)

    assert asyncio.run(bounded()) == ["built", "built"]
    assert sorted(kinds(events)) == ["build_finished", "build_started", "miss", "miss", "waited"]
    assert only(events, "waited").key == "key"


def test_decorated_functions_tell_events_under_the_key_that_is_listed(cache, events):
    decorated = cache.memoize(double)
    assert [decorated(4), decorated(4)] == [8, 8]
    assert kinds(events) == ["miss", "build_started", "build_finished", "hit"]
    [entry] = cache.entries()
    assert {event.key for event in events} == {entry.key}


def test_a_call_that_is_refused_tells_nothing(cache, events):
    with pytest.raises(KeyTypeError):
        make(cache, object())
    assert events == []
    assert cache.stats().process == Counts()


def test_a_subscriber_that_raises_is_logged_and_harms_nobody(cache, caplog):
    def fail(event):
        raise RuntimeError(f"at {event.kind}")

    seen = []
    cache.on(fail)
    cache.on(seen.append)
    make(cache)
    hit(cache)
    assert kinds(seen) == ["miss", "build_started", "build_finished", "hit"]
    told = [each for each in caplog.records if "subscriber" in each.message]
    assert [each.levelno for each in told] == [logging.WARNING] * 4
    assert [str(each.exc_info[1]) for each in told] == [f"at {kind}" for kind in kinds(seen)]
    assert cache.stats().process[:3] == (1, 1, 1)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("moment", ["miss", "build_started", "build_finished"])
def test_a_subscriber_that_is_interrupted_leaves_nothing_behind(cache, moment):
    def interrupt(event):
        if event.kind == moment:
            raise KeyboardInterrupt

    end = cache.on(interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(cache)
    end()
    assert leftovers(cache.directory) == []
    assert make(cache) == "built"


def test_subscribers_may_leave_and_join_while_they_are_called(cache):
    seen = []

    def first(event):
        seen.append(("first", event.kind))
        end_first()
        cache.on(second)

    def second(event):
        seen.append(("second", event.kind))

    end_first = cache.on(first)
    make(cache)
    end_first()  # once more does no harm
    assert seen == [
        ("first", "miss"),
        ("second", "build_started"),
        ("second", "build_finished"),
    ]


def test_a_subscription_that_has_ended_hears_nothing(cache):
    seen = []
    end = cache.on(seen.append)
    make(cache)
    end()
    heard = len(seen)
    hit(cache)
    assert len(seen) == heard == 3


def test_two_subscriptions_of_one_callback_end_one_by_one(cache):
    seen = []

    def callback(event):
        seen.append(event)

    end_first, end_second = cache.on(callback), cache.on(callback)
    end_first()
    make(cache)
    assert kinds(seen) == ["miss", "build_started", "build_finished"]
    end_second()
    hit(cache)
    assert len(seen) == 3


@pytest.mark.usefixtures("restless")
def test_threads_that_subscribe_together_are_all_heard(cache):
    heard = [[] for _ in range(400)]
    left = list(heard)
    run_threads(8, lambda: [cache.on(left.pop().append) for _ in range(50)])
    make(cache)
    assert [len(each) for each in heard] == [3] * 400


def test_a_subscriber_may_use_the_cache(cache):
    seen = []

    def look(event):
        if event.kind == "build_finished" and event.key == "key":
            seen.append(make(cache, "from the callback"))

    cache.on(look)
    make(cache)
    assert seen == ["built"]
    assert leftovers(cache.directory) == []


def test_a_subscriber_that_asks_for_what_is_being_built_gets_an_error_and_no_deadlock(cache):
    errors = []

    def ask_again(event):
        if event.kind == "build_started":
            with pytest.raises(CircularBuildError) as caught:
                make(cache)
            errors.append(caught.value)

    cache.on(ask_again)
    assert make(cache) == "built"
    assert len(errors) == 1


def test_events_of_one_cache_are_not_told_to_the_subscribers_of_another(cache, events):
    make(Cache(cache.directory))
    assert events == []


def test_a_build_that_is_not_to_be_stored_is_not_told_as_finished(cache, events):
    def factory():
        raise DontStore("unknown")

    assert cache.get_or_create("key", factory) == "unknown"
    assert kinds(events) == ["miss", "build_started", "not_stored"]
    assert only(events, "not_stored").seconds >= 0
    assert cache.stats().process[:4] == (0, 1, 0, 0)
    assert (cache.stats().process.not_stored, everyone(cache).not_stored) == (1, 1)


def test_a_build_whose_entry_was_removed_meanwhile_is_told_as_not_stored(cache, events):
    def factory():
        Cache(cache.directory).remove("key")
        return "built"

    assert cache.get_or_create("key", factory) == "built"
    assert kinds(events) == ["miss", "build_started", "not_stored"]


def test_an_event_shows_what_it_tells():
    event = Event("evicted", "key", 1.5, path="x", size=3)
    assert repr(event) == "Event('evicted', key='key', seconds=1.5, path='x', size=3)"
    assert repr(Event("hit")) == "Event('hit')"


# -- the log ---------------------------------------------------------------------------


TROUBLE = """
    import logging, pathlib, sys
    from atomcache import Cache

    if sys.argv[2] == "listen":
        logging.basicConfig(format="%(name)s %(levelname)s %(message)s")
    cache = Cache(sys.argv[1])

    def fail(event):
        raise RuntimeError("a subscriber's")

    cache.get_or_create("key", lambda: "built")
    for entry in cache.entries():
        content = entry.path.read_bytes()
        entry.path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cache.get_or_create("key", lambda: "built") == "built"  # a damaged entry
    end = cache.on(fail)
    cache.get_or_create("key", lambda: 1 / 0)
    end()
    pathlib.Path(sys.argv[1], "v1", "stats", "1-abc").write_bytes(b"hits many\\n")
    cache.stats()
"""


def test_the_library_is_silent_by_default(tmp_path, cache):
    done = run_program(tmp_path, TROUBLE, cache.directory, "by default")
    assert (done.stdout, done.stderr) == ("", "")


def test_who_listens_is_warned_of_damage_and_failing_subscribers(tmp_path, cache):
    done = run_program(tmp_path, TROUBLE, cache.directory, "listen")
    said = [line for line in done.stderr.splitlines() if line.startswith("atomcache ")]
    assert {line.split()[1] for line in said} == {"WARNING"}
    for what in ("a damaged entry is built anew", "a subscriber", "counted can't be read"):
        assert any(what in line for line in said), said
    assert "RuntimeError: a subscriber's" in done.stderr


def test_what_goes_well_is_not_worth_a_warning(cache, caplog):
    caplog.set_level(logging.DEBUG)
    make(cache)
    hit(cache, number=3)
    cache.get_or_create_path("key", lambda target: target.write_text("made"), name="made")
    with pytest.raises(ZeroDivisionError):  # its caller hears of it
        cache.get_or_create("failing", lambda: 1 // 0)
    cache.prune(max_entries=1)
    cache.stats()
    cache.clear()
    assert [each for each in caplog.records if each.levelno > logging.INFO] == []


def test_what_was_removed_while_it_was_built_is_worth_a_note_and_no_warning(cache, caplog):
    caplog.set_level(logging.DEBUG)

    def factory():
        cache.remove("key")
        return "built"

    assert cache.get_or_create("key", factory) == "built"
    assert [(each.name, each.levelno) for each in caplog.records] == [("atomcache", logging.INFO)]
