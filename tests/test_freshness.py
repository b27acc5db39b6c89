"""How old an answer may be, and what is served when no newer one can be had."""

import asyncio
import contextvars
import errno
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from atomcache import (
    BuilderError,
    BuildTimeout,
    Cache,
    CircularBuildError,
    CodecError,
    DontStore,
    MissingInputError,
    NoBuildError,
    OptionError,
    StorageError,
    current_build,
)
from atomcache._build import running
from atomcache._door import Door
from atomcache._keys import digest

from .crew import PATIENCE, leftovers, sleepers, until

DAY = 86_400.0


# -- a clock that is moved, and three kinds of entries -----------------------------------


class Clock(Door):
    """The real door, over clocks that a test moves."""

    def __init__(self, ahead=0.0) -> None:
        super().__init__()
        self.wall = time.time
        self.ahead = ahead
        self.passed = 0.0
        self.behind = []

    def time(self):
        return self.wall() + self.ahead

    def monotonic(self):
        return time.monotonic() + self.passed

    def stop(self):
        """Have the clock on the wall stand still, unless a test moves it: ages are exact then."""
        now = time.time()
        self.wall = lambda: now

    def go_on(self, seconds):
        """Let time pass, as every clock shows."""
        self.ahead += seconds
        self.passed += seconds

    def jump(self, seconds):
        """Set the clock on the wall, which nothing else knows of."""
        self.ahead += seconds

    def start_thread(self, function, *, daemon=False):
        ended = threading.Event()

        def run():
            try:
                function()
            finally:
                ended.set()

        super().start_thread(run, daemon=daemon)
        if not daemon:
            self.behind.append(ended)

    def rest(self):
        """Return once nothing is done in the background: a build is noted after its flight."""
        while self.behind:
            assert self.behind.pop().wait(PATIENCE), "a thread hangs"


def at(cache, ahead):
    """Have a cache, in whatever process, live `ahead` seconds from now."""
    cache._open(Clock(ahead))
    return cache


class Value:
    """Ask for a value."""

    letter = b"v"

    def get(self, cache, make, **options):
        return cache.get_or_create("key", make, **options)

    def refresh(self, cache, make, **options):
        return cache.refresh("key", make, **options)

    def peek(self, cache, **options):
        return cache.get("key", **options)


class AsyncValue(Value):
    """Ask for a value from an event loop, with a coroutine to make it."""

    def get(self, cache, make, **options):
        async def making():
            return make()

        return asyncio.run(cache.aget_or_create("key", making, **options))


class File:
    """Ask for a file."""

    letter = b"p"

    def builder(self, make):
        return lambda target: target.write_text(make())

    def read(self, path):
        return path.read_text()

    def get(self, cache, make, **options):
        build = self.builder(make)
        return self.read(cache.get_or_create_path("key", build, name="made", **options))

    def refresh(self, cache, make, **options):
        return self.read(cache.refresh_path("key", self.builder(make), name="made", **options))

    def peek(self, cache, **options):
        path = cache.get_path("key", **options)
        return None if path is None else self.read(path)


class AsyncFile(File):
    """Ask for a file from an event loop."""

    def get(self, cache, make, **options):
        build = self.builder(make)
        asking = cache.aget_or_create_path("key", build, name="made", **options)
        return self.read(asyncio.run(asking))


class Folder(File):
    """Ask for a folder."""

    def builder(self, make):
        def build(target):
            target.mkdir()
            (target / "part").write_text(make())

        return build

    def read(self, path):
        return (path / "part").read_text()


SYNC = [Value(), File(), Folder()]
ALL = [*SYNC, AsyncValue(), AsyncFile()]


def name_of(kind):
    return type(kind).__name__.lower()


each_kind = pytest.mark.parametrize("kind", ALL, ids=name_of)
each_sync_kind = pytest.mark.parametrize("kind", SYNC, ids=name_of)


class Maker:
    """A factory that counts: it makes "1", "2" and so on."""

    def __init__(self) -> None:
        self.made = 0
        self.error = None

    def __call__(self):
        self.made += 1
        if self.error is not None:
            raise self.error
        return str(self.made)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(tmp_path, clock):
    cache = Cache(tmp_path / "cache", durable=False)
    cache._open(clock)
    yield cache
    until(lambda: not cache._protocol.flights._flights, "every build in the background ends")


@pytest.fixture
def make():
    return Maker()


@pytest.fixture
def events(cache):
    """Collect what the cache tells its subscribers."""
    told = []
    cache.on(told.append)
    return told


def kinds_of(events):
    return [event.kind for event in events]


def claim_of(cache, kind):
    return cache._layout.entry(digest(kind.letter, "key")) + ".temp"


def in_threads(*steps):
    """Run each step in a thread; return their results, or raise the first error."""
    results = [None] * len(steps)
    errors = []

    def run(number):
        try:
            results[number] = steps[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a caller hangs"
    if errors:
        raise errors[0]
    return results


# -- max_age -----------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    "age", [60, 60.0, timedelta(minutes=1), "60s", "1m", "0.5m 30s"], ids=lambda age: str(age)
)
def test_an_entry_older_than_max_age_is_built_anew(cache, clock, make, kind, age):
    clock.stop()
    assert kind.get(cache, make, max_age=age) == "1"
    clock.go_on(59)
    assert kind.get(cache, make, max_age=age) == "1"
    clock.go_on(2)
    assert kind.get(cache, make, max_age=age) == "2"
    clock.go_on(59)
    assert kind.get(cache, make, max_age=age) == "2"


@pytest.mark.parametrize("where", ["call", "decorator", "cache"])
def test_max_age_means_the_same_on_a_call_a_decorator_and_a_cache(tmp_path, clock, make, where):
    clock.stop()
    option = {"max_age": "1m"}
    cache = Cache(tmp_path / "cache", **(option if where == "cache" else {}))
    cache._open(clock)
    decorated = cache.memoize(**(option if where == "decorator" else {}))(lambda_of(make))
    path = cache.builder(name="made", **(option if where == "decorator" else {}))(file_of(make))
    ask = {
        "call": lambda: cache.get_or_create("key", make, **option),
        "decorator": decorated,
        "cache": lambda: cache.get_or_create("key", make),
    }
    asks = [ask[where]]
    if where == "decorator":
        asks.append(lambda: path().read_text())
    for each in asks:
        first = each()
        clock.go_on(59)
        assert each() == first
        clock.go_on(2)
        assert each() != first


def lambda_of(make):
    def made():
        return make()

    return made


def file_of(make):
    def made(target):
        target.write_text(make())

    return made


@each_kind
def test_max_age_is_the_askers_whoever_made_the_entry(cache, clock, make, kind):
    clock.stop()
    assert kind.get(cache, make) == "1"
    clock.go_on(100)
    assert kind.peek(cache) == "1"
    assert kind.peek(cache, max_age=60) is None
    assert kind.get(cache, make, max_age="1h") == "1"
    assert kind.get(cache, make, max_age=60) == "2"
    clock.go_on(30)
    assert kind.peek(cache, max_age=20) is None
    assert kind.peek(cache, max_age=40) == "2"
    clock.go_on(31)
    assert kind.peek(cache) is None, "who made it said when it ends"


@each_sync_kind
def test_the_memory_tier_knows_the_age_of_what_it_keeps(tmp_path, clock, make, kind):
    cache = Cache(tmp_path / "cache", memory="1MB", durable=False)
    cache._open(clock)
    for age in (60, None):
        first = kind.get(cache, make, max_age=60)
        assert kind.get(cache, make, max_age=age) == first
        assert kind.get(cache, make, max_age=age) == first
        clock.go_on(61)
        assert kind.get(cache, make, max_age=age) != first
        clock.go_on(1000)


def ask_late(line, cache, kind, options):
    """Ask when the entry has ended; as builder, say so and wait for the word."""
    at(cache, 100)

    def make():
        line.tell("building")
        line.hear("go on")
        return f"by {os.getpid()}"

    return kind.get(cache, make, **options)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="counts sleepers")
@pytest.mark.parametrize("kind", [Value(), Folder(), AsyncValue()], ids=name_of)
def test_of_many_processes_one_builds_what_has_ended_and_the_others_wait(crew, cache, kind):
    kind.get(cache, lambda: "old")
    members = [crew.start(ask_late, cache, kind, {"max_age": 60}) for _ in range(6)]
    builder = crew.first_to_speak(members)
    builder.hear("building")
    until(lambda: sleepers(claim_of(cache, kind)) == 5, "the others wait")
    builder.tell("go on")
    assert crew.results() == [f"by {builder.pid}"] * 6
    assert leftovers(cache.directory) == []


def test_of_many_threads_and_tasks_one_builds_what_has_ended(cache, clock, make):
    entered, go_on = threading.Event(), threading.Event()

    def slow():
        entered.set()
        assert go_on.wait(PATIENCE)
        return make()

    async def tasks():
        async with asyncio.timeout(PATIENCE):
            asking = [cache.aget_or_create("key", slow, max_age=60) for _ in range(10)]
            return await asyncio.gather(*asking)

    def release():
        assert entered.wait(PATIENCE)
        go_on.set()

    cache.get_or_create("key", lambda: "old")
    clock.go_on(61)
    ask = [lambda: cache.get_or_create("key", slow, max_age=60)] * 10
    *answers, tasked, _ = in_threads(*ask, lambda: asyncio.run(tasks()), release)
    assert answers == tasked == ["1"] * 10


# -- stale_for ---------------------------------------------------------------------------


class Gate:
    """A factory that waits for the word."""

    def __init__(self, result="new") -> None:
        self.result = result
        self.began = threading.Semaphore(0)
        self.open = threading.Event()
        self.calls = 0

    def __call__(self):
        self.calls += 1
        self.began.release()
        assert self.open.wait(PATIENCE)
        return self.result


@each_sync_kind
def test_the_old_one_is_served_at_once_while_it_is_built_anew(cache, clock, events, kind):
    options = {"max_age": 60, "stale_for": 60}
    gate = Gate()
    kind.get(cache, lambda: "old", **options)
    clock.go_on(90)
    events.clear()
    assert kind.get(cache, gate, **options) == "old"
    assert gate.began.acquire(timeout=PATIENCE)
    assert [kind.get(cache, gate, **options) for _ in range(20)] == ["old"] * 20
    gate.open.set()
    until(lambda: kind.peek(cache, max_age=60) == "new", "the new one is published")
    assert kind.get(cache, gate, **options) == "new"
    assert gate.calls == 1
    assert kinds_of(events).count("stale") == 21
    until(lambda: kinds_of(events).count("build_finished") == 1, "the end is told, once")


@pytest.mark.parametrize("coroutine", [False, True], ids=["function", "coroutine"])
def test_a_task_gets_the_old_one_at_once_while_its_loop_builds_anew(cache, clock, coroutine):
    options = {"max_age": 60, "stale_for": 60}
    gate = Gate()

    async def slow():
        gate.calls += 1
        while not gate.open.is_set():
            await asyncio.sleep(0.002)
        return "new"

    async def main():
        factory = slow if coroutine else gate
        async with asyncio.timeout(PATIENCE):
            for _ in range(20):
                assert await cache.aget_or_create("key", factory, **options) == "old"
            gate.open.set()
            while cache.get("key", max_age=60) != "new":
                await asyncio.sleep(0.002)
            assert await cache.aget_or_create("key", factory, **options) == "new"

    cache.get_or_create("key", lambda: "old", **options)
    clock.go_on(90)
    asyncio.run(main())
    assert gate.calls == 1


TENANT = contextvars.ContextVar("tenant", default="nobody")


@each_sync_kind
def test_what_is_built_in_the_background_sees_the_context_of_its_caller(cache, clock, kind):
    options = {"max_age": 60, "stale_for": 60}
    kind.get(cache, lambda: "old", **options)
    clock.go_on(90)
    answered = threading.Event()

    def tenant():
        assert answered.wait(PATIENCE)
        return TENANT.get()

    token = TENANT.set("acme")
    try:
        assert kind.get(cache, tenant, **options) == "old"
    finally:
        TENANT.reset(token)
        answered.set()
    until(lambda: kind.peek(cache, max_age=60), "it is built anew")
    assert kind.peek(cache, max_age=60) == "acme"


@pytest.mark.parametrize("coroutine", [False, True], ids=["function", "coroutine"])
def test_what_is_built_behind_a_task_sees_its_context(cache, clock, coroutine):
    options = {"max_age": 60, "stale_for": 60}

    async def tenant():
        return TENANT.get()

    async def main():
        TENANT.set("acme")
        factory = tenant if coroutine else TENANT.get
        async with asyncio.timeout(PATIENCE):
            assert await cache.aget_or_create("key", factory, **options) == "old"
            while cache.get("key", max_age=60) is None:
                await asyncio.sleep(0.002)

    cache.get_or_create("key", lambda: "old", **options)
    clock.go_on(90)
    asyncio.run(main())
    assert cache.get("key", max_age=60) == "acme"


def test_what_is_built_in_the_background_is_no_part_of_the_build_that_asked(cache, clock):
    options = {"max_age": 60, "stale_for": 60}
    cache.get_or_create("part", lambda: "old", **options)
    clock.go_on(90)

    def whole():
        def part():
            return [each.path for each in running.get()]

        assert cache.get_or_create("part", part, **options) == "old"
        until(lambda: cache.get("part", max_age=60), "the part is built anew")
        return cache.get("part", max_age=60)

    assert len(cache.get_or_create("whole", whole)) == 1


def test_an_attribute_that_a_build_does_not_have_is_an_error_and_not_ignored(cache):
    def make():
        current_build().maxage = 5

    with pytest.raises(AttributeError, match="maxage"):
        cache.get_or_create("key", make)


def test_the_class_of_lengths_of_time_is_none(cache):
    with pytest.raises(OptionError, match="max_age"):
        cache.get_or_create("key", int, max_age=timedelta)


@each_kind
def test_beyond_stale_for_those_who_ask_wait_for_the_new_one(cache, clock, make, kind):
    kind.get(cache, make)
    clock.go_on(121)
    assert kind.get(cache, make, max_age=60, stale_for=60) == "2"


@each_kind
def test_a_look_gets_what_a_call_would_get_at_once(cache, clock, make, kind):
    clock.stop()
    kind.get(cache, make, max_age=60)
    clock.go_on(100)
    assert kind.peek(cache) is None
    assert kind.peek(cache, stale_for=30) is None
    assert kind.peek(cache, stale_for=60) == "1"
    assert make.made == 1


@each_sync_kind
def test_stale_for_begins_at_the_end_that_the_builder_gave(cache, clock, make, kind):
    gate = Gate()
    kind.get(cache, make, max_age=60)
    clock.go_on(90)
    assert kind.get(cache, gate, stale_for=60) == "1"
    gate.open.set()
    until(lambda: kind.peek(cache) == "new", "it is built anew")


def hit_often(line, cache, kind, place):
    """Hit an old entry many times; builds leave a line in a file and wait for another."""
    at(cache, 90)
    options = {"max_age": 60, "stale_for": DAY}

    def make():
        with open(place / "builds", "a") as log:
            log.write("x")
        until((place / "go on").exists, "the word to go on")
        return "new"

    answers = {kind.get(cache, make, **options) for _ in range(30)}
    line.tell(answers)
    until(lambda: kind.get(cache, make, **options) == "new", "the new one is there")


@each_sync_kind
def test_many_old_answers_in_many_processes_start_one_build(crew, cache, tmp_path, kind):
    kind.get(cache, lambda: "old")
    members = [crew.start(hit_often, cache, kind, tmp_path) for _ in range(5)]
    assert [member.hear() for member in members] == [{"old"}] * 5
    until((tmp_path / "builds").exists, "somebody builds")
    (tmp_path / "go on").touch()
    crew.results()
    for member in members:
        member.process.join(PATIENCE)
    assert (tmp_path / "builds").read_text() == "x"
    assert leftovers(cache.directory) == []


ENDING = """
import sys, threading, time
from atomcache import Cache

def make():
    sys.stdin.readline()
    deadline = time.monotonic() + 30
    while threading.main_thread().is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    return "new"

def build(target):
    target.mkdir()
    (target / "part").write_text("half")
    (target / "part").write_text(make())

cache = Cache(sys.argv[1], max_age=60, stale_for=3600)
if sys.argv[2] == "value":
    print(cache.get_or_create("key", make), flush=True)
else:
    path = cache.get_or_create_path("key", build, name="made")
    print((path / "part").read_text(), flush=True)
{ending}
"""


def start_script(script, *args):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4)],
    ids=["end", "exit", "raise"],
)
@pytest.mark.parametrize("kind", [Value(), Folder()], ids=name_of)
def test_a_process_that_ends_right_after_an_old_answer_finishes_the_new_one(
    cache, clock, kind, ending, code
):
    clock.jump(-90)
    kind.get(cache, lambda: "old")
    clock.jump(90)
    with start_script(ENDING.format(ending=ending), cache.directory, name_of(kind)) as process:
        assert process.stdout.readline() == "old\n"
        assert kind.peek(cache, max_age=60) is None
        rest = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, rest) == (code, ("", ""))
    assert kind.peek(cache, max_age=60) == "new"
    assert leftovers(cache.directory) == []


LOOP_AND_FUNCTION = """
import asyncio, sys, threading, time
from atomcache import Cache

def make():
    sys.stdin.readline()
    deadline = time.monotonic() + 30
    while threading.main_thread().is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    return "new"

cache = Cache(sys.argv[1], max_age=60, stale_for=3600)
print(asyncio.run(cache.aget_or_create("key", make)), flush=True)
while not list(cache.builds()):
    time.sleep(0.002)
"""


def test_a_loop_that_ends_right_after_an_old_answer_finishes_what_a_function_makes(cache, clock):
    clock.jump(-90)
    cache.get_or_create("key", lambda: "old")
    clock.jump(90)
    with start_script(LOOP_AND_FUNCTION, cache.directory) as process:
        assert process.stdout.readline() == "old\n"
        rest = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, rest) == (0, ("", ""))
    assert cache.get("key", max_age=60) == "new"
    assert leftovers(cache.directory) == []


LOOP = """
import asyncio, sys, time
from atomcache import Cache

cache = Cache(sys.argv[1], max_age=60, stale_for=3600)

async def never():
    print("building", flush=True)
    await asyncio.sleep(3600)

async def main():
    print(await cache.aget_or_create("key", never), flush=True)
    if sys.argv[2] == "begun":
        while not list(cache.builds()):
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.05)  # the more of the build is under way, the better

asyncio.run(main())
deadline = time.monotonic() + 30
while cache._protocol.flights._flights and time.monotonic() < deadline:
    time.sleep(0.002)
print("the loop has ended", flush=True)
"""


@pytest.mark.parametrize("when", ["begun", "at once"])
def test_a_loop_that_ends_right_after_an_old_answer_leaves_nothing_and_says_nothing(
    cache, clock, when
):
    clock.jump(-90)
    cache.get_or_create("key", lambda: "old")
    clock.jump(90)
    with start_script(LOOP, cache.directory, when) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert out.splitlines()[0] == "old"
    assert out.splitlines()[-1] == "the loop has ended"
    assert err == ""
    assert leftovers(cache.directory) == []
    assert cache.get_or_create("key", lambda: "new", max_age=60) == "new"


def hit_and_stay(line, cache, kind):
    """Hit an old entry; builds in the background say so and wait for the word."""
    at(cache, 90)
    heard = threading.Event()

    def make():
        line.tell("building")
        line.hear("go on")
        heard.set()
        return f"by {os.getpid()}"

    got = kind.get(cache, make, max_age=60, stale_for=DAY)
    assert heard.wait(PATIENCE)
    return got


@pytest.mark.parametrize("kind", [Value(), Folder()], ids=name_of)
def test_when_the_background_builder_is_killed_another_takes_over(crew, cache, clock, kind):
    kind.get(cache, lambda: "old")
    first = crew.start(hit_and_stay, cache, kind)
    first.hear("building")
    first.kill()
    clock.go_on(90)
    assert kind.peek(cache, max_age=60) is None
    second = crew.start(hit_and_stay, cache, kind)
    second.hear("building")
    second.tell("go on")
    assert second.result() == "old"
    until(lambda: kind.peek(cache, max_age=60) == f"by {second.pid}", "the new one is there")
    second.process.join(PATIENCE)
    assert leftovers(cache.directory) == []


def test_what_fails_in_the_background_is_logged_and_rests_for_retry_after(
    crew, cache, clock, make, caplog
):
    options = {"max_age": 60, "stale_for": DAY, "retry_after": 3600}
    cache.get_or_create("key", make, **options)
    clock.go_on(90)
    make.error = ConnectionError("the source is down")
    mark = claim_of(cache, Value()).replace(".temp", ".failed")
    assert cache.get_or_create("key", make, **options) == "1"
    clock.rest()
    assert make.made == 2
    assert "the source is down" in caplog.text
    assert "key key" in caplog.text
    assert [cache.get_or_create("key", make, **options) for _ in range(10)] == ["1"] * 10
    clock.rest()
    assert make.made == 2
    assert crew.start(count_late_builds, cache, 95, options).result() == ("1", 0)
    clock.go_on(3601)
    assert cache.get_or_create("key", make, **options) == "1"
    clock.rest()
    assert make.made == 3, "it is tried anew"
    make.error = None
    clock.go_on(3601)
    assert cache.get_or_create("key", make, **options) == "1"
    clock.rest()
    assert cache.get("key", max_age=60) == "4", "at last it is built"
    assert not os.path.exists(mark)


def count_late_builds(line, cache, ahead, options):
    """Ask for an old value in a process of its own; return it, and how often it was built."""
    make = Maker()
    make.error = ConnectionError("still down")
    at(cache, ahead)
    answer = cache.get_or_create("key", make, **options)
    until(lambda: not cache._protocol.flights._flights)
    return answer, make.made


def test_where_no_thread_can_be_had_the_old_value_is_served_all_the_same(tmp_path, make):
    class Threadless(Clock):
        def start_thread(self, function, *, daemon=False):
            raise RuntimeError("can't start new thread")

    clock = Threadless()
    cache = Cache(tmp_path / "cache", max_age=60, stale_for=60)
    cache._open(clock)
    cache.get_or_create("key", make)
    clock.go_on(90)
    assert cache.get_or_create("key", make) == "1"
    clock.go_on(90)
    assert cache.get_or_create("key", make) == "2", "and nothing is left claimed"


@each_sync_kind
def test_an_entry_that_is_missing_is_not_old(cache, make, kind):
    assert kind.get(cache, make, max_age=60, stale_for=60, stale_on_error=60) == "1"


@each_sync_kind
def test_a_refresh_is_never_content_with_the_old_one(cache, clock, make, kind):
    options = {"max_age": 60, "stale_for": 60, "stale_on_error": 600}
    kind.get(cache, make, **options)
    clock.go_on(90)
    assert kind.refresh(cache, make, **options) == "2"
    make.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        kind.refresh(cache, make, **options)
    assert kind.peek(cache) == "2"


# -- jitter ------------------------------------------------------------------------------


class Frozen(Door):
    """A clock that stands still."""

    now = 2_000_000_000.0

    def time(self):
        return self.now


@pytest.mark.parametrize("as_path", [False, True], ids=["value", "file"])
def test_entries_made_together_do_not_end_together_and_never_beyond_max_age(tmp_path, as_path):
    door = Frozen()
    cache = Cache(tmp_path / "cache", max_age=600, jitter="1m", durable=False)
    cache._open(door)
    for number in range(60):
        if as_path:
            cache.get_or_create_path(number, lambda target: target.write_text(""), name="made")
        else:
            cache.get_or_create(number, lambda: 0)
    early = sorted(door.now + 600 - entry.expires for entry in cache.entries())
    assert len(set(early)) > 50
    assert early[0] >= 0
    assert early[-1] <= 60
    assert early[0] < 15  # each fails once in 10 million runs
    assert early[-1] > 45


@each_sync_kind
def test_with_jitter_nothing_outlives_max_age_nor_ends_before_the_jitter(
    tmp_path, clock, make, kind
):
    clock.stop()
    cache = Cache(tmp_path / "cache", max_age=60, jitter=20, durable=False)
    cache._open(clock)
    for number in range(1, 6):
        assert kind.get(cache, make) == str(number)
        clock.go_on(39)
        assert kind.peek(cache) == str(number)
        clock.go_on(22)
        assert kind.peek(cache) is None


def test_jitter_may_be_as_long_as_max_age_and_works_for_what_a_factory_sets(cache, clock, make):
    def short():
        current_build().max_age = 10
        return make()

    assert cache.get_or_create("key", make, max_age=60, jitter=60) == "1"
    for _ in range(5):
        clock.go_on(61)
        before = make.made
        assert cache.get_or_create("key", short, max_age=60, jitter=60) == str(before + 1)
        clock.go_on(11)
        assert cache.get("key") is None


# -- clocks that jump --------------------------------------------------------------------


@each_sync_kind
@pytest.mark.parametrize("asker", [{}, {"max_age": 60}, {"max_age": DAY}], ids=str)
@pytest.mark.parametrize("jump", [60.0, DAY, 3650 * DAY])
def test_an_entry_from_the_future_is_not_immortal(cache, clock, make, kind, asker, jump):
    clock.jump(jump)
    assert kind.get(cache, make, max_age=60) == "1"
    clock.jump(-jump)
    assert kind.get(cache, make, **asker) == "2"
    assert kind.get(cache, make, **asker) == "2"


@each_sync_kind
def test_a_clock_that_is_a_little_behind_is_no_reason_to_build(cache, clock, make, kind):
    kind.get(cache, make, max_age=60)
    clock.jump(-3)
    assert kind.get(cache, make, max_age=60) == "1"


@each_sync_kind
@pytest.mark.parametrize("own", [False, True], ids=["given", "own"])
def test_what_never_expires_is_a_hit_whatever_the_clock_shows(
    cache, clock, make, tmp_path, kind, own
):
    (tmp_path / "input").write_text("read")

    def making():
        current_build().input(tmp_path / "input")  # so that a path's meta is read, too
        if own:
            current_build().max_age = None
        return make()

    clock.jump(DAY)
    assert kind.get(cache, making) == "1"
    clock.jump(-DAY)
    assert kind.get(cache, making, max_age=60 if own else None) == "1"
    assert kind.peek(cache) is not None


@each_sync_kind
def test_what_a_clock_in_the_future_made_is_served_neither_stale(cache, clock, make, kind):
    clock.jump(DAY)
    kind.get(cache, make, max_age=60)
    clock.jump(-DAY)
    options = {"max_age": 60, "stale_for": 600, "stale_on_error": 600}
    assert kind.get(cache, make, **options) == "2"


@each_sync_kind
@pytest.mark.parametrize("jump", [3.0, DAY])
@pytest.mark.parametrize("options", [{}, {"max_age": 60}], ids=["ageless", "aged"])
def test_a_refresh_makes_anew_what_a_clock_ahead_has_made(cache, clock, make, kind, jump, options):
    clock.jump(jump)
    kind.get(cache, make, **options)
    clock.jump(-jump)
    assert kind.refresh(cache, make, **options) == "2"
    assert kind.get(cache, make, **options) == "2"


@each_sync_kind
@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_clock_that_is_set_during_a_build_costs_no_second_build(cache, clock, kind, jump):
    gate = Gate()
    entry = claim_of(cache, kind).removesuffix(".temp")

    def ask():
        return kind.get(cache, gate, max_age=60)

    def jump_and_go_on():
        assert gate.began.acquire(timeout=PATIENCE)
        until(lambda: cache._protocol.watch.counts()["miss"] == 4, "all have asked")
        assert entry in cache._protocol.flights._flights
        clock.jump(jump)
        gate.open.set()

    assert in_threads(*[ask] * 4, jump_and_go_on)[:4] == ["new"] * 4
    assert gate.calls == 1


def test_a_failure_in_the_future_keeps_nobody_from_trying(cache, clock, make):
    options = {"max_age": 60, "stale_on_error": 10 * DAY, "retry_after": 30}
    cache.get_or_create("key", make, **options)
    clock.go_on(DAY + 61)
    make.error = ConnectionError("down")
    assert cache.get_or_create("key", make, **options) == "1"
    make.error = None
    clock.jump(-DAY)
    cache._protocol.stale._failed.clear()  # as in another process
    assert cache.get_or_create("key", make, **options) == "3"


# -- stale_on_error ----------------------------------------------------------------------


@each_kind
def test_if_building_anew_fails_the_old_one_is_served_and_that_is_told(
    cache, clock, make, kind, events, caplog
):
    options = {"max_age": 60, "stale_on_error": 3600}
    kind.get(cache, make, **options)
    clock.go_on(100)
    make.error = ConnectionError("the source is down")
    events.clear()
    assert kind.get(cache, make, **options) == "1"
    assert make.made == 2
    assert kinds_of(events) == ["miss", "build_started", "build_failed", "stale"]
    assert events[-1].error is make.error
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "the source is down" in caplog.text
    assert leftovers(cache.directory) == []


@each_kind
def test_beyond_stale_on_error_the_error_is_raised(cache, clock, make, kind):
    clock.stop()
    options = {"max_age": 60, "stale_on_error": 3600}
    kind.get(cache, make, **options)
    make.error = ConnectionError("down")
    clock.go_on(3650)
    assert kind.get(cache, make, **options) == "1"
    clock.go_on(20)
    with pytest.raises(ConnectionError):
        kind.get(cache, make, **options)


@each_kind
def test_without_an_old_one_the_error_is_raised(cache, make, kind):
    make.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        kind.get(cache, make, max_age=60, stale_on_error=3600, stale_for=60)


def test_what_fails_is_tried_no_more_often_than_retry_after_by_all_processes(
    crew, cache, clock, make
):
    options = {"max_age": 60, "stale_on_error": DAY, "retry_after": 3600}
    cache.get_or_create("key", make, **options)
    clock.go_on(100)
    make.error = ConnectionError("down")
    for _ in range(10):
        assert cache.get_or_create("key", make, **options) == "1"
    assert make.made == 2
    others = [crew.start(count_late_builds, cache, 110, options) for _ in range(3)]
    assert [each.result() for each in others] == [("1", 0)] * 3
    later = [crew.start(count_late_builds, cache, 3701, options) for _ in range(3)]
    answers = [each.result() for each in later]
    assert [answer for answer, _ in answers] == ["1"] * 3
    assert sum(made for _, made in answers) == 1
    clock.go_on(3602)
    made = make.made
    assert cache.get_or_create("key", make, **options) == "1"
    assert make.made == made, "what others tried counts here too"


@each_sync_kind
@pytest.mark.parametrize("who", ["itself", "another"])
@pytest.mark.parametrize("way", ["refresh", "get"])
def test_what_could_be_built_since_it_failed_is_tried_at_once_when_it_ends(
    cache, clock, make, kind, who, way
):
    options = {"max_age": 60, "stale_on_error": 3600, "retry_after": 600}
    kind.get(cache, make, **options)
    clock.go_on(61)
    make.error = ConnectionError("down")
    assert kind.get(cache, make, **options) == "1"
    make.error = None
    builder = cache
    if who == "another":
        builder = Cache(cache.directory, durable=False)
        builder._open(clock)
    assert getattr(kind, way)(builder, make, max_age=60) == "3"  # and asks for nothing old
    clock.go_on(61)
    assert kind.get(cache, make, **options) == "4"


def fail_when_told(line, cache, options):
    at(cache, 100)

    def make():
        line.tell("building")
        line.hear("go on")
        raise ConnectionError("down")

    return cache.get_or_create("key", make, **options)


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="counts sleepers")
def test_those_who_wait_for_a_build_that_fails_get_the_old_one_too(crew, cache):
    options = {"max_age": 60, "stale_on_error": 3600}
    cache.get_or_create("key", lambda: "old")
    builder = crew.start(fail_when_told, cache, options)
    builder.hear("building")
    for _ in range(4):
        crew.start(fail_when_told, cache, options)
    until(lambda: sleepers(claim_of(cache, Value())) == 4, "the others wait")
    builder.tell("go on")
    assert crew.results() == ["old"] * 5


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="counts sleepers")
def test_those_who_were_to_try_one_after_another_leave_it_at_one_failure(crew, cache):
    options = {"max_age": 60, "stale_on_error": 3600, "on_error": "retry"}
    cache.get_or_create("key", lambda: "old")
    builder = crew.start(fail_when_told, cache, options)
    builder.hear("building")
    others = [crew.start(fail_when_told, cache, options) for _ in range(4)]
    until(lambda: sleepers(claim_of(cache, Value())) == 4, "the others wait")
    builder.tell("go on")
    assert [each.connection.poll(PATIENCE) and each.connection.recv() for each in others] == [
        ("returned", "old")
    ] * 4, "nobody says that they build"
    assert builder.result() == "old"


@pytest.mark.parametrize("options", [{"stale_on_error": 3600}, {"stale_for": 3600}], ids=str)
def test_that_a_build_failed_is_written_down_before_another_can_begin(cache, clock, make, options):
    options = {"max_age": 60, **options}
    cache.get_or_create("key", make, **options)
    clock.go_on(90)
    make.error = ConnectionError("down")
    claim = claim_of(cache, Value())
    mark = claim.replace(".temp", ".failed")
    unlink = clock.unlink
    marked = []

    def look_at_mark(path):
        if path == claim:
            marked.append(os.path.exists(mark))
        unlink(path)

    clock.unlink = look_at_mark
    assert cache.get_or_create("key", make, **options) == "1"
    until(lambda: marked and not cache._protocol.flights._flights, "the build fails")
    assert marked == [True]


def test_a_background_build_that_is_not_to_be_stored_rests_for_retry_after(cache, clock):
    options = {"max_age": 60, "stale_for": 1000, "retry_after": 30}
    builds = []

    def not_now():
        builds.append(1)
        raise DontStore("not now")

    def ask():
        assert cache.get_or_create("key", not_now, **options) == "old"
        until(lambda: not cache._protocol.flights._flights, "the build ends")

    cache.get_or_create("key", lambda: "old", **options)
    clock.go_on(90)
    for _ in range(5):
        ask()
    assert len(builds) == 1
    clock.go_on(31)
    for _ in range(5):
        ask()
    assert len(builds) == 2


def test_a_success_ends_the_rest_after_a_failure(cache, clock, make):
    options = {"max_age": 60, "stale_on_error": 3600, "retry_after": 3600}
    cache.get_or_create("key", make, **options)
    clock.go_on(61)
    make.error = ConnectionError("down")
    assert cache.get_or_create("key", make, **options) == "1"
    make.error = None
    assert cache.refresh("key", make, **options) == "3"
    clock.go_on(61)
    assert cache.get_or_create("key", make, **options) == "4"


def asks_for_itself(cache):
    return cache.get_or_create("key", lambda: asks_for_itself(cache), max_age=60)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("stale", [{}, {"stale_for": 10}], ids=["on error", "both"])
def test_mistakes_of_the_program_are_never_papered_over(cache, clock, stale, is_async):
    options = {"max_age": 60, "stale_on_error": 3600, **stale}

    def ask(make):
        if is_async:
            return asyncio.run(cache.aget_or_create("key", make, **options))
        return cache.get_or_create("key", make, **options)

    def ask_path(build):
        if is_async:
            asking = cache.aget_or_create_path("key", build, name="made", **options)
            return asyncio.run(asking)
        return cache.get_or_create_path("key", build, name="made", **options)

    def asks_itself():
        return cache.get_or_create("key", int, **options)

    def input_of_wrong_type():
        current_build().tag("")

    ask(lambda: "old")
    ask_path(lambda target: target.write_text("old"))
    clock.go_on(100)
    for _ in range(2):
        with pytest.raises(CodecError):
            ask(object)
        with pytest.raises(CircularBuildError):
            ask(asks_itself)
        with pytest.raises(OptionError):
            ask(input_of_wrong_type)
        with pytest.raises(BuilderError):
            ask_path(lambda target: None)
        with pytest.raises(BuilderError):
            ask_path(lambda target: target.symlink_to("elsewhere"))


def test_a_mistake_made_in_the_background_is_raised_as_soon_as_stale_for_is_over(cache, clock):
    clock.stop()
    options = {"max_age": 60, "stale_for": 10, "stale_on_error": 3600, "retry_after": 600}
    cache.get_or_create("key", lambda: "old", **options)
    clock.go_on(65)
    assert cache.get_or_create("key", object, **options) == "old"
    clock.rest()
    clock.go_on(10)
    with pytest.raises(CodecError):
        cache.get_or_create("key", object, **options)


# -- timeout -----------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.05])
@each_kind
def test_with_a_timeout_an_old_one_is_better_than_an_error(
    crew, cache, clock, events, kind, timeout
):
    kind.get(cache, lambda: "old")
    builder = crew.start(ask_late, cache, kind, {"max_age": 60})
    builder.hear("building")
    clock.go_on(100)
    events.clear()
    assert kind.get(cache, lambda: "wrong", max_age=60, timeout=timeout) == "old"
    assert kinds_of(events)[-1] == "stale"
    assert isinstance(events[-1].error, BuildTimeout)
    if not isinstance(kind, (AsyncValue, AsyncFile)):
        with pytest.raises(BuildTimeout, match=str(builder.pid)):
            kind.refresh(cache, lambda: "wrong", max_age=60, timeout=timeout)
    builder.tell("go on")
    assert builder.result() == f"by {builder.pid}"


def test_threads_and_tasks_that_follow_get_the_old_one_at_their_timeout(cache, clock):
    gate = Gate()
    options = {"max_age": 60, "timeout": 0.02}
    cache.get_or_create("key", lambda: "old")
    clock.go_on(100 * DAY)

    async def follow():
        return await cache.aget_or_create("key", gate, **options)

    def others():
        assert gate.began.acquire(timeout=PATIENCE)
        try:
            got = [cache.get_or_create("key", gate, **options), asyncio.run(follow())]
        finally:
            gate.open.set()
        return got

    ask = [lambda: cache.get_or_create("key", gate, max_age=60), others]
    assert in_threads(*ask) == ["new", ["old", "old"]]


def test_without_an_old_one_a_timeout_is_an_error(crew, cache, clock):
    kind = Value()
    builder = crew.start(ask_late, cache, kind, {"max_age": 60})
    builder.hear("building")
    with pytest.raises(BuildTimeout, match=str(builder.pid)):
        cache.get_or_create("key", lambda: "wrong", max_age=60, timeout=0.02)
    builder.tell("go on")
    builder.result()


def test_a_timeout_inside_of_a_factory_is_the_factorys_own_error(crew, cache, clock, make):
    cache.get_or_create("outer", make)
    builder = crew.start(ask_late, cache, Value(), {})
    builder.hear("building")
    clock.go_on(100)
    inner = lambda_of(lambda: cache.get_or_create("key", lambda: "wrong", timeout=0))
    with pytest.raises(BuildTimeout):
        cache.get_or_create("outer", inner, max_age=60)
    assert cache.get_or_create("outer", inner, max_age=60, stale_on_error=3600) == "1"
    builder.tell("go on")
    builder.result()


# -- what a factory can say --------------------------------------------------------------


def says(step, make):
    """Return a factory that does `step` with its build first."""

    def saying():
        step(current_build())
        return make()

    return saying


@each_kind
@pytest.mark.parametrize("age", [60, "1m", timedelta(minutes=1)], ids=str)
def test_a_factory_says_for_how_long_its_entry_is_good(cache, clock, make, kind, age):
    clock.stop()
    saying = says(lambda build: setattr(build, "max_age", age), make)
    assert kind.get(cache, saying) == "1"
    clock.go_on(59)
    assert kind.get(cache, saying) == "1"
    clock.go_on(2)
    assert kind.get(cache, saying) == "2"


@each_sync_kind
def test_what_a_factory_says_replaces_max_age_for_its_entry(cache, clock, make, kind):
    clock.stop()
    shorter = says(lambda build: setattr(build, "max_age", 30), make)
    assert kind.get(cache, shorter, max_age=60) == "1"
    clock.go_on(31)
    assert kind.get(cache, shorter, max_age=60) == "2"
    [entry] = cache.entries()
    assert entry.expires == pytest.approx(clock.time() + 30, abs=0.001)
    ageless = says(lambda build: setattr(build, "max_age", None), make)
    clock.go_on(31)
    assert kind.get(cache, ageless, max_age=60) == "3"
    [entry] = cache.entries()
    assert entry.expires is None


@each_kind
def test_a_factory_adds_tags_to_those_of_the_call(cache, kind):
    seen = []

    def step(build):
        build.tag("from the factory", "another")
        build.tag("another")
        seen.extend(cache.builds())

    assert kind.get(cache, says(step, lambda: "1"), tags=["from the call"]) == "1"
    [entry] = cache.entries()
    assert sorted(entry.tags) == ["another", "from the call", "from the factory"]
    assert sorted(seen[0].tags) == sorted(entry.tags)
    assert cache.remove_tagged("nobody's") == 0
    assert cache.remove_tagged("another") == 1
    assert kind.peek(cache) is None


@each_kind
@pytest.mark.parametrize("memory", [None, "1MB"], ids=["disk", "memory"])
def test_an_entry_is_built_anew_when_a_file_changes_that_its_factory_read(
    tmp_path, clock, kind, memory
):
    cache = Cache(tmp_path / "cache", memory=memory, durable=False)
    cache._open(clock)
    source = tmp_path / "source"
    source.write_text("first")
    builds = []

    def read():
        builds.append(1)
        current_build().input(source)
        return source.read_text()

    def get():
        return kind.get(cache, read)

    assert [get(), get(), get()] == ["first"] * 3
    assert len(builds) == 1
    source.write_text("other")
    assert [get(), get(), get()] == ["other"] * 3
    assert len(builds) == 2
    source.unlink()
    assert kind.peek(cache) is None
    with pytest.raises(MissingInputError):
        get()
    source.write_text("other")
    assert get() == "other"


@each_sync_kind
def test_a_factory_can_read_whole_folders(cache, tmp_path, make, kind):
    folder = tmp_path / "sources"
    (folder / "deep").mkdir(parents=True)
    (folder / "one").write_text("1")
    (folder / "deep" / "two").write_text("2")
    reading = says(lambda build: build.input(folder), make)
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["1", "1"]
    (folder / "deep" / "two").write_text("22")
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["2", "2"]
    (folder / "one").unlink()
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["3", "3"]


@each_sync_kind
def test_a_factory_can_read_more_files_than_a_hit_reads_at_once(cache, tmp_path, make, kind):
    sources = [tmp_path / f"{'long' * 20}-{number}" for number in range(1500)]
    for source in sources:
        source.touch()

    def read_all(build):
        for source in sources:
            build.input(source)

    reading = says(read_all, make)
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["1", "1"]
    sources[-1].write_text("changed")
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["2", "2"]


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "filled"])
def test_a_file_that_comes_into_a_folder_that_was_read_counts_too(cache, tmp_path, make, empty):
    folder = tmp_path / "sources"
    folder.mkdir()
    if not empty:
        (folder / "one").write_text("1")
    reading = says(lambda build: build.input(folder), make)
    assert [cache.get_or_create("key", reading), cache.get_or_create("key", reading)] == ["1", "1"]
    (folder / "two").write_text("2")
    assert cache.get_or_create("key", reading) == "2"


@each_sync_kind
@pytest.mark.parametrize("name", ["two\nlines", "a = b \\ c", "ä ∞", b"\xff\xfe"], ids=repr)
def test_inputs_of_any_name_are_known_again(cache, tmp_path, make, kind, name):
    source = tmp_path / os.fsdecode(name)
    source.write_text("first")
    reading = says(lambda build: build.input(source), make)
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["1", "1"]
    source.write_text("other")
    assert [kind.get(cache, reading), kind.get(cache, reading)] == ["2", "2"]


@each_sync_kind
def test_what_was_made_of_another_input_is_not_served_as_old_either(cache, tmp_path, make, kind):
    source = tmp_path / "source"
    source.write_text("first")
    reading = says(lambda build: build.input(source), make)
    kind.get(cache, reading)
    source.write_text("other")
    make.error = ConnectionError("down")
    with pytest.raises(ConnectionError):
        kind.get(cache, reading, stale_for=60, stale_on_error=60)


def build_slowly(line, cache, is_async):
    def step():
        build = current_build()
        build.progress(1, 4, "reading part-1")
        line.tell("reported")
        line.hear("go on")
        build.progress(4, 4)
        line.tell("reported")
        line.hear("go on")
        return "made"

    async def coroutine():
        return step()

    if is_async:
        return asyncio.run(cache.aget_or_create("key", coroutine))
    return cache.get_or_create("key", step)


@pytest.mark.parametrize("is_async", [False, True], ids=["function", "coroutine"])
def test_progress_is_seen_by_whoever_looks_at_builds(crew, cache, is_async):
    builder = crew.start(build_slowly, cache, is_async)
    builder.hear("reported")
    [seen] = cache.builds()
    assert (seen.key, seen.pid) == ("key", builder.pid)
    assert (seen.done, seen.total, seen.note) == (1, 4, "reading part-1")
    builder.tell("go on")
    builder.hear("reported")
    [seen] = cache.builds()
    assert (seen.done, seen.total, seen.note) == (4, 4, "")
    builder.tell("go on")
    assert builder.result() == "made"
    assert list(cache.builds()) == []


def test_notes_of_any_text_come_through_and_reports_are_not_all_written(cache, clock):
    note = "half \n of \\ it = \0 ä ∞ 'x'"
    now = clock.monotonic()
    clock.monotonic = lambda: now
    seen = []

    def factory():
        build = current_build()
        build.progress(0.5, note=note)
        seen.extend(cache.builds())
        for done in range(100_000):
            build.progress(done, 200_000)
        size = os.stat(build.path).st_size
        build.progress(200_000, 200_000, "x" * 10_000)
        seen.extend(cache.builds())
        return size

    assert cache.get_or_create("key", factory) < 5000
    assert (seen[0].done, seen[0].total, seen[0].note) == (0.5, None, note)
    assert (seen[1].done, seen[1].total) == (200_000, 200_000)
    assert len(seen[1].note) < 1000


def test_outside_of_a_factory_there_is_no_build(cache):
    errors = []

    def in_thread():
        try:
            current_build()
        except NoBuildError as error:
            errors.append(error)

    def factory():
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join(PATIENCE)
        return current_build()

    with pytest.raises(NoBuildError, match="factory"):
        current_build()
    with pytest.raises(CodecError):
        cache.get_or_create("key", factory)
    assert len(errors) == 1, "a thread of the factory has to be handed the build"
    with pytest.raises(NoBuildError):
        current_build()

    async def main():
        with pytest.raises(NoBuildError):
            current_build()
        await cache.aget_or_create("key", lambda: 1)
        with pytest.raises(NoBuildError):
            current_build()

    asyncio.run(main())


def test_the_current_build_is_the_innermost_one(cache):
    def outer():
        cache.get_or_create("inner", inner)
        current_build().tag("outer")
        return 1

    def inner():
        current_build().tag("inner")
        return 2

    cache.get_or_create("outer", outer)
    assert {entry.key: entry.tags for entry in cache.entries()} == {
        "outer": ("outer",),
        "inner": ("inner",),
    }


def test_tasks_of_one_loop_each_have_their_own_build(cache):
    async def main():
        def factory_of(number):
            async def factory():
                for _ in range(3):
                    await asyncio.sleep(0)
                    current_build().tag(f"tag {number}")
                return number

            return factory

        asking = [cache.aget_or_create(n, factory_of(n)) for n in range(20)]
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*asking)

    asyncio.run(main())
    assert {entry.key: entry.tags for entry in cache.entries()} == {
        str(n): (f"tag {n}",) for n in range(20)
    }


BAD_WORDS = [
    lambda build, _: setattr(build, "max_age", "10 parsecs"),
    lambda build, _: setattr(build, "max_age", -1),
    lambda build, _: setattr(build, "max_age", True),
    lambda build, _: setattr(build, "max_age", float("nan")),
    lambda build, _: setattr(build, "max_age", [1]),
    lambda build, _: setattr(build, "max_age", timedelta(days=-1)),
    lambda build, _: build.tag(5),
    lambda build, _: build.tag(""),
    lambda build, _: build.tag("good", None),
    lambda build, _: build.progress("half"),
    lambda build, _: build.progress(True),
    lambda build, _: build.progress(1, "all"),
    lambda build, _: build.progress(1, 2, None),
    lambda build, _: build.progress(None),
]


@pytest.mark.parametrize("number", range(len(BAD_WORDS)))
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_what_a_factory_says_is_checked_as_it_says_it(cache, tmp_path, number, is_async):
    caught = []

    def factory():
        with pytest.raises(OptionError) as error:
            BAD_WORDS[number](current_build(), tmp_path)
        caught.append(error.value)
        return "made"

    async def coroutine():
        return factory()

    if is_async:
        assert asyncio.run(cache.aget_or_create("key", coroutine)) == "made"
    else:
        assert cache.get_or_create("key", factory) == "made"
    assert len(caught) == 1
    [entry] = cache.entries()
    assert (entry.tags, entry.expires) == ((), None), "nothing of it has come true"


@pytest.mark.parametrize("path", [5, None, b"bytes", ["a"], "", "a\0b"], ids=repr)
def test_an_input_that_is_no_path_is_an_option_error(cache, path):
    with pytest.raises(OptionError):
        cache.get_or_create("key", lambda: current_build().input(path))


def test_a_build_in_the_background_has_its_say_too(cache, clock, make, tmp_path):
    clock.stop()
    source = tmp_path / "source"
    source.write_text("")

    def step(build):
        build.max_age = 60
        build.tag("said")
        build.input(source)
        build.progress(1, 1)

    saying = says(step, make)
    cache.get_or_create("key", saying, stale_for=60)
    clock.go_on(90)
    assert cache.get_or_create("key", saying, stale_for=60) == "1"
    until(lambda: cache.get("key") == "2", "it is built anew")
    [entry] = cache.entries()
    assert entry.tags == ("said",)
    assert entry.expires == pytest.approx(clock.time() + 60, abs=0.001)
    source.write_text("changed")
    assert cache.get("key") is None


# -- not to be stored --------------------------------------------------------------------


@each_kind
def test_a_factory_may_ask_for_its_answer_not_to_be_kept(cache, kind):
    def make():
        if kind.letter == b"v":
            raise DontStore("a passing answer")
        return "a passing answer"

    class Passing(type(kind)):
        def builder(self, make):
            build = super().builder(make)

            def passing(target):
                build(target)
                raise DontStore

            return passing

    assert Passing().get(cache, make) == "a passing answer"
    assert kind.peek(cache) is None
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []
    assert kind.get(cache, lambda: "kept") == "kept"


def test_those_who_wait_in_this_process_get_an_answer_that_is_not_kept(cache):
    gate = Gate()

    def passing():
        raise DontStore(gate())

    def release():
        assert gate.began.acquire(timeout=PATIENCE)
        until(lambda: cache._protocol.watch.counts()["miss"] == 4, "all have asked")
        gate.open.set()

    ask = [lambda: cache.get_or_create("key", passing)] * 4
    assert in_threads(*ask, release)[:4] == ["new"] * 4


def test_an_answer_that_is_not_kept_leaves_what_was_there(cache, clock):
    def passing():
        raise DontStore("passing")

    def passing_path(target):
        target.write_text("passing")
        raise DontStore

    cache.get_or_create("key", lambda: "old")
    File().get(cache, lambda: "old")
    assert cache.refresh("key", passing) == "passing"
    assert cache.refresh_path("key", passing_path, name="made").read_text() == "passing"
    assert cache.get("key") == "old"
    assert cache.get_path("key").read_text() == "old"
    clock.go_on(100)
    assert cache.get_or_create("key", passing, max_age=60) == "passing"
    assert cache.get("key") == "old"
    assert leftovers(cache.directory) == []


def test_a_builder_that_asks_for_nothing_to_be_kept_and_made_nothing_is_told(cache):
    def build(target):
        raise DontStore

    with pytest.raises(BuilderError):
        cache.get_or_create_path("key", build, name="made")
    assert leftovers(cache.directory) == []


# -- options -----------------------------------------------------------------------------

LENGTHS = ["max_age", "stale_for", "stale_on_error", "retry_after", "jitter", "timeout"]
NO_LENGTHS = [
    "10 parsecs",
    "10",
    "m",
    "",
    " ",
    "1.2.3s",
    "-5s",
    "1h-5m",
    "nan s",
    "∞s",
    -1,
    -0.001,
    True,
    False,
    float("nan"),
    timedelta(seconds=-1),
    b"10s",
    [10],
    1j,
    object,
]
WRONG = [
    *[(name, value) for name in LENGTHS for value in NO_LENGTHS],
    ("retry_after", None),
    ("retry_after", DAY + 1),
    ("retry_after", "25h"),
    ("retry_after", timedelta(days=2)),
    ("tags", "tag"),
    ("tags", [""]),
    ("tags", [5]),
    ("staleness", 60),
]


def ids_of(value):
    return ascii(value)


@pytest.mark.parametrize(("name", "value"), WRONG, ids=ids_of)
def test_an_option_of_the_wrong_kind_is_refused_where_it_is_given(tmp_path, name, value):
    cache = Cache(tmp_path / "cache")
    cache.set("key", 1)
    option = {name: value}
    with pytest.raises(OptionError, match=name):
        Cache(tmp_path / "cache", **option)
    with pytest.raises(OptionError, match=name):
        cache.memoize(**option)
    with pytest.raises(OptionError, match=name):
        cache.builder(name="made", **option)
    with pytest.raises(OptionError, match=name):
        cache.get_or_create("key", lambda: 1, **option)  # though there is one
    with pytest.raises(OptionError, match=name):
        cache.refresh("key", lambda: 1, **option)
    with pytest.raises(OptionError, match=name):
        cache.get_or_create_path("key", lambda target: None, name="made", **option)
    with pytest.raises(OptionError, match=name):
        cache.refresh_path("key", lambda target: None, name="made", **option)
    with pytest.raises(OptionError, match=name):
        asyncio.run(cache.aget_or_create("key", lambda: 1, **option))
    with pytest.raises(OptionError, match=name):
        cache.get("key", **option)
    gc.collect()


def test_jitter_longer_than_max_age_is_refused_wherever_the_two_meet(tmp_path):
    with pytest.raises(OptionError, match="jitter"):
        Cache(tmp_path / "cache", max_age=60, jitter=61)
    cache = Cache(tmp_path / "cache", jitter="2m")
    with pytest.raises(OptionError, match="jitter"):
        cache.get_or_create("key", lambda: 1, max_age=60)
    with pytest.raises(OptionError, match="jitter"):
        cache.memoize(max_age=60)
    assert cache.get_or_create("key", lambda: 1, max_age="2m") == 1


@pytest.mark.parametrize("length", [0, 1e300, float("inf"), 10**400, "99999999w", timedelta.max])
def test_lengths_of_time_at_the_edge_are_taken_or_refused_at_once(cache, clock, length):
    options = dict.fromkeys(["max_age", "stale_for", "stale_on_error", "timeout"], length)
    try:
        assert cache.get_or_create("key", lambda: 1, **options) == 1
    except OptionError:
        return
    clock.go_on(DAY)
    assert cache.get_or_create("key", lambda: 1, **options) == 1
    assert cache.get("key", max_age=None) == 1 or length == 0


# -- where nothing can be written --------------------------------------------------------


class Unwritable(Clock):
    """A clock over a disk that, once `error` is set, takes nothing more."""

    error = 0

    def _refuse(self, path):
        if self.error:
            raise OSError(self.error, os.strerror(self.error), path)

    def open(self, path, flags, mode=0o777):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            self._refuse(path)
        return os.open(path, flags, mode)

    def mkdir(self, path, mode=0o777):
        self._refuse(path)
        os.mkdir(path, mode)

    def utime(self, *args, **options):
        self._refuse(None)
        os.utime(*args, **options)


def on_bad_ground(tmp_path, **options):
    door = Unwritable()
    cache = Cache(tmp_path / "cache", durable=False, **options)
    cache._open(door)
    return cache, door


BAD_GROUND = pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC, errno.EACCES])


@BAD_GROUND
@each_kind
def test_where_nothing_can_be_written_an_old_one_is_served(tmp_path, make, kind, error):
    cache, door = on_bad_ground(tmp_path, max_age=60, stale_for=60, stale_on_error=600)
    kind.get(cache, make)
    door.go_on(90)
    door.error = error
    for _ in range(3):
        assert kind.get(cache, make) == "1"
        until(lambda: not cache._protocol.flights._flights)
    door.go_on(60)
    for _ in range(3):
        assert kind.get(cache, make) == "1"
    door.go_on(600)
    with pytest.raises(StorageError):
        kind.get(cache, make)
    assert make.made == 1, "nothing is built that can't be kept, unless bypass is asked for"
    made = kind.get(cache, make, on_store_error="bypass")
    assert made == "2"
    with pytest.raises(StorageError):
        kind.refresh(cache, make)


def test_on_a_read_only_cache_retry_after_holds_in_this_process(tmp_path, make):
    cache, door = on_bad_ground(tmp_path, max_age=60, stale_on_error=600, retry_after=30)
    cache.get_or_create("key", make, on_store_error="bypass")
    door.go_on(90)
    door.error = errno.EROFS
    make.error = ConnectionError("down")
    for _ in range(5):
        assert cache.get_or_create("key", make, on_store_error="bypass") == "1"
    assert make.made == 2
    door.go_on(31)
    assert cache.get_or_create("key", make, on_store_error="bypass") == "1"
    assert make.made == 3


@pytest.mark.parametrize("bypass", [False, True], ids=["raise", "bypass"])
def test_what_a_factory_says_on_a_full_disk_does_not_end_its_build(tmp_path, bypass):
    class Full(Clock):
        full = False

        def write(self, fd, data):
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(fd, data)

    door = Full()
    cache = Cache(tmp_path / "cache", on_store_error="bypass" if bypass else "raise")
    cache._open(door)

    def factory():
        door.full = True
        current_build().progress(1, 2)
        current_build().tag("said")
        door.full = bypass
        return "made"

    assert cache.get_or_create("key", factory) == "made"
    door.full = False
    assert cache.get("key") == (None if bypass else "made")


def test_where_nothing_can_be_written_a_factory_can_speak_all_the_same(tmp_path, make):
    cache, door = on_bad_ground(tmp_path, on_store_error="bypass")
    door.error = errno.EROFS
    source = tmp_path / "source"
    source.write_text("")

    def step(build):
        build.max_age = 60
        build.tag("said")
        build.input(source)
        build.progress(1, 2, "half")

    assert cache.get_or_create("key", says(step, make)) == "1"
    saying = File().builder(says(step, make))
    assert cache.get_or_create_path("key", saying, name="made").read_text() == "2"
    with pytest.raises(NoBuildError):
        current_build()
