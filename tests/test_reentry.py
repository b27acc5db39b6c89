"""What comes in between any two lines may use the cache too, and nobody waits for itself.

Signal handlers, finalizers, log handlers and callbacks run in the midst of the library, in the
very thread that may have a lock or lead a build.
"""

import logging
import os
import subprocess
import sys
import threading
from functools import partial

import pytest

from atomcache import Cache, CircularBuildError, CodecError, _memory
from atomcache._door import Door

from .crew import PATIENCE, leftovers
from .test_interrupts import LIBRARY, ask_path, ask_value, in_time


class Between:
    """Does something, once, before the n-th line of the library that this thread comes to."""

    def __init__(self, number, step):
        self.left = number
        self.step = step
        self.where = None
        self.answer = None

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line" and self.where is None:
            self.left -= 1
            if self.left < 0:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                try:
                    self.answer = self.step()
                except Exception as error:
                    self.answer = error
        return self


def all_of(number, step, between):
    """Do something with something else before its n-th line; return what came of both."""
    tracer = Between(number, between)

    def run():
        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            return step()
        finally:
            sys.settrace(before)

    answer = in_time(run)
    return tracer.where, answer, tracer.answer


def use(cache, number):
    """Use a cache for whatever is not what is being built."""
    assert cache.get_or_create(("other", number), lambda: "other") == "other"
    assert ask_path(cache, ("other", number)).read_text() == "made"
    assert cache.get("warm up") == "made"
    end = cache.on(lambda event: None)
    cache.remove(("other", number))
    end()
    cache.stats()
    return "used"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "RACY_SECONDS", -1.0)  # what is just made is remembered too
    cache = Cache(tmp_path / "cache", durable=False, memory="1MB")
    ask_value(cache, "warm up")
    ask_path(cache, "warm up")
    return cache


def hit(cache, number):
    return ask_value(cache, "warm up")


def subscribe(cache, number):
    end = cache.on(lambda event: None)
    cache.get_or_create(("subscribed", number), lambda: "made")
    end()
    return "ended"


@pytest.mark.parametrize(
    ("ask", "pace"), [(ask_value, 3), (ask_path, 5), (hit, 1), (subscribe, 7)]
)
def test_whatever_comes_in_between_may_use_the_cache(cache, ask, pace):
    number = 0
    while True:
        where, answer, between = all_of(
            number, partial(ask, cache, number), partial(use, cache, number)
        )
        if where is None:
            break
        assert answer is not None, where
        assert between == "used", (where, between)
        number += pace
    assert number > 20
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("same", [True, False], ids=["same cache", "another of the folder"])
@pytest.mark.parametrize(("ask", "pace"), [(ask_value, 3), (ask_path, 5)])
def test_what_asks_in_between_for_the_same_key_gets_it_or_an_error(cache, ask, pace, same):
    number = refused = 0
    while True:
        asked = cache if same else Cache(cache.directory, durable=False)
        where, answer, between = all_of(
            number, partial(ask, cache, number), partial(ask, asked, number)
        )
        if where is None:
            break
        assert answer is not None, where
        if isinstance(between, Exception):
            assert isinstance(between, CircularBuildError), (where, between)
            refused += 1
        number += pace
    assert refused > 20
    assert number > 100
    assert leftovers(cache.directory) == []


def test_what_waits_in_between_for_another_thread_gets_an_answer_or_an_error(cache):
    """Also where its own thread has a lock that the other one needs to go on."""
    asked = threading.Event()

    def wait(key, build):
        asked.set()
        return cache.get_or_create(key, build)

    number = refused = 0
    while True:
        begun, key = threading.Event(), ("of another thread", number)
        asked.clear()

        def build(begun=begun, number=number):
            begun.set()
            assert asked.wait(PATIENCE)
            return ask_value(cache, ("within", number))

        other = threading.Thread(target=cache.get_or_create, args=(key, build))
        other.start()
        assert begun.wait(PATIENCE)
        where, answer, between = all_of(
            number, partial(ask_value, cache, number), partial(wait, key, build)
        )
        asked.set()
        other.join(PATIENCE)
        if where is None:
            break
        assert answer == "made", where
        if isinstance(between, Exception):
            assert isinstance(between, CircularBuildError), (where, between)
            refused += 1
        number += 2
    assert number > 100
    assert refused > 0
    assert leftovers(cache.directory) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("ask", [ask_value, subscribe])
def test_a_child_that_another_thread_forks_at_any_time_may_use_the_cache(cache, ask):
    def fork():
        """Use the cache in a child whose parent's thread stands at some line."""
        statuses = []

        def other_thread():
            pid = os.fork()
            if pid == 0:
                end = threading.Timer(PATIENCE, os._exit, [9])
                end.daemon = True
                end.start()
                try:
                    os._exit(0 if use(cache, "child") == "used" else 1)
                finally:
                    os._exit(2)
            statuses.append(os.waitpid(pid, 0)[1])

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join(PATIENCE)
        return statuses

    number = 0
    while True:
        where, answer, statuses = all_of(number, partial(ask, cache, number), fork)
        if where is None:
            break
        assert answer is not None, where
        assert statuses == [0], where
        number += 17
    assert number > 100


@pytest.mark.parametrize("kind", ["build_failed", "error", "miss"])
def test_a_subscriber_may_ask_for_what_its_event_is_about(cache, kind):
    answers = []

    def see(event):
        if event.kind == kind and not answers:
            answers.append(None)
            try:
                answers[0] = cache.get_or_create("key", lambda: "subscriber's")
            except CircularBuildError as error:
                answers[0] = error

    cache.on(see)
    if kind == "error":
        cache._layout.make_room(cache._protocol.layout.entry(b"\0" * 20))

        class Full(Door):
            def open_kept(self, path, flags, mode=0o600):
                raise OSError(28, "full")

        cache._open(Full())
        cache.on(see)

    def ask():
        try:
            return cache.get_or_create("key", object)  # which the codec can't store
        except (CodecError, OSError) as error:
            return error

    in_time(ask)
    assert answers == ["subscriber's"] or isinstance(answers[0], CircularBuildError)


def test_a_subscriber_that_prunes_while_the_cache_is_pruned_is_refused(cache):
    answers = []

    def see(event):
        if event.kind == "evicted":
            try:
                answers.append(cache.prune(max_entries=1))
            except CircularBuildError as error:
                answers.append(error)

    for number in range(4):
        cache.set(number, number)
    cache.on(see)
    assert in_time(partial(cache.prune, max_entries=1)).removed == len(answers) > 0
    assert all(isinstance(answer, CircularBuildError) for answer in answers)
    assert in_time(partial(cache.prune, max_entries=1)).removed == 0


def test_a_log_handler_may_build_while_the_heartbeat_is_lost(cache, monkeypatch):
    from atomcache import _heartbeat

    told, answers = threading.Event(), []

    class Building(logging.Handler):
        def emit(self, record):
            if "heartbeat" in record.getMessage():
                other = threading.Thread(
                    target=lambda: answers.append(ask_value(cache, "logged")), daemon=True
                )
                other.start()
                other.join(PATIENCE)
                told.set()

    def fail(fd):
        raise OSError(5, "lost")

    handler = Building()
    logger = logging.getLogger("atomcache")
    logger.addHandler(handler)
    try:
        heart = _heartbeat._Heart()
        monkeypatch.setattr(_heartbeat, "_heart", heart)
        monkeypatch.setattr(os, "utime", fail)
        heart.start(-1, 0.001)
        assert told.wait(PATIENCE)
    finally:
        logger.removeHandler(handler)
    assert answers == ["made"]


def test_threads_that_ask_for_the_counts_of_everyone_each_get_them_whole(cache):
    expected = cache.stats().everyone.builds
    statistics = cache._statistics()
    attempt, both = statistics._attempt, threading.Barrier(2)

    def together(step):
        if step == statistics._sum_up:
            both.wait(PATIENCE)
        attempt(step)

    statistics._attempt = together
    builds = []
    threads = [
        threading.Thread(target=lambda: builds.append(cache.stats().everyone.builds))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert builds == [expected, expected]


def test_a_callback_that_is_told_of_waits_does_not_wait_itself(crew, cache):
    answers = []

    def tell(waiting):
        if not answers:
            answers.append(None)
            try:
                answers[0] = ask_value(Cache(cache.directory), "key")
            except CircularBuildError as error:
                answers[0] = error
            owner.tell("go on")

    owner = crew.start(hold_key, cache.directory)
    owner.hear("building")
    waiting = Cache(cache.directory, on_wait=tell)
    assert in_time(partial(ask_value, waiting, "key")) == "held"
    assert isinstance(answers[0], CircularBuildError)


def hold_key(line, directory):
    def build():
        line.tell("building")
        line.hear("go on")
        return "held"

    Cache(directory).get_or_create("key", build)


# -- forks beside threads that load modules ---------------------------------------------

FORKS = """
import os, select, sys, threading, time
from atomcache import Cache
cache = Cache(sys.argv[1])
for number in range(4):
    threading.Thread(target=cache.get_or_create, args=(number, list), daemon=True).start()
ends, children = [], []
for number in range(20):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        cache.get_or_create(("child", number), list)
        os._exit(0)
    os.close(write)
    ends.append(read)
    children.append(child)
end = time.monotonic() + float(sys.argv[2])
stuck = [
    read for read in ends if not select.select([read], [], [], max(0, end - time.monotonic()))[0]
]
for child in children:
    os.kill(child, 9)
print(len(stuck))
sys.stdout.flush()
os._exit(0)
"""


def run(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_forked_while_threads_ask_for_the_first_time_is_not_stuck(tmp_path):
    assert run(FORKS, tmp_path / "cache", PATIENCE) == ["0"]


MISSES = """
import asyncio, sys, threading
from atomcache import BuildTimeout, Cache, DontStore, _forks

memoized = Cache(sys.argv[1]).memoize(repr)
_forks._load()
before = set(sys.modules)
cache, other = Cache(sys.argv[1], max_entries=100), Cache(sys.argv[1])


def refuse():
    raise ValueError


def keep_none():
    raise DontStore(1)


def make(target):
    target.mkdir()


asked = [(1, list), (("x", 1), lambda: bytes(1000000)), ("no", refuse), ("", keep_none)]
for key, factory in asked:
    for _ in range(2):
        try:
            cache.get_or_create(key, factory)
        except ValueError:
            pass
for codec, value in [("json", {}), ("text", ""), ("bytes", b""), ("pickle", set())]:
    cache.get_or_create(codec, lambda: value, codec=codec)
cache.get_or_create_path("path", make, name="n")
cache.refresh_path("path", make, name="n")
with cache.hold("path", make, name="n"):
    began, go_on = threading.Event(), threading.Event()


def wait():
    began.set()
    go_on.wait()


builder = threading.Thread(target=cache.get_or_create, args=("slow", wait))
builder.start()
began.wait()
try:
    other.get_or_create("slow", list, timeout=0.01)
except BuildTimeout:
    pass
waiter = threading.Thread(target=other.get_or_create, args=("slow", list))
waiter.start()
go_on.set()
builder.join()
waiter.join()
cache.get_or_create("slow", list, max_age=0, stale_for=1000)
cache.get_or_create("input", list, inputs=[sys.executable])
memoized(1)


async def ask():
    await cache.aget_or_create("task", list)
    await cache.aget_or_create_path("task", make, name="n")


asyncio.run(ask())
cache.remove(1)
cache.prune()
cache.reap()
cache.stats().everyone
cache.clear()
print(*sorted(set(sys.modules) - before))
"""


def test_what_a_process_with_threads_has_loaded_before_it_forks_is_all_that_a_miss_loads(tmp_path):
    assert run(MISSES, tmp_path / "cache") == []
