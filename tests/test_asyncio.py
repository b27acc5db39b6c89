"""Tasks of event loops: one builds for all who ask, nobody blocks, whatever is cancelled."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import atomcache
from atomcache import (
    BuilderError,
    BuildTimeout,
    Cache,
    CircularBuildError,
    CodecError,
    DontStore,
    StorageError,
)
from atomcache._claim import living_record
from atomcache._door import Door
from atomcache._keys import digest

from .crew import PATIENCE, leftovers, sleepers, until

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)

LONG = PATIENCE
"""Seconds after which a wait inside of a loop counts as a hang."""


# -- helpers ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def asyncio_has_nothing_to_complain_of(request, caplog):
    """Nothing forgotten, no exception that nobody took, no thread that stays."""
    cache = request.getfixturevalue("cache") if "cache" in request.fixturenames else None
    yield
    if cache is not None:
        asyncio.run(when(lambda: not flights(cache), "the threads of the library end"))
    gc.collect()
    if request.node.get_closest_marker("usefixtures") is None:
        records = [*caplog.get_records("setup"), *caplog.get_records("call")]
        assert [each.getMessage() for each in records if each.name == "asyncio"] == []


@pytest.fixture
def loops_are_left_open():
    """For tests that close a loop under its tasks, of which asyncio rightly complains."""


def flights(cache):
    """Return how many threads build, or wait for other processes, in this one."""
    return len(cache._protocol.flights._flights)


def refuse_threads(patch, refuse):
    patch.setattr(threading.Thread, "start", refuse)
    patch.setattr("atomcache._tasks.start_new_thread", refuse, raising=False)


def run(main, **options):
    async def bounded():
        async with asyncio.timeout(LONG):
            return await main

    return asyncio.run(bounded(), **options)


async def when(condition, what="the condition"):
    """Look until `condition()` is true, and let other tasks run meanwhile."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came true"
        await asyncio.sleep(0.002)  # a pause between looks, not a guess at how long it takes


async def heard(member, *expected):
    """Hear a member of a crew without blocking the loop."""
    await when(member.connection.poll, f"a process says {expected}")
    return member.hear(*expected)


def entry_of(cache, key="key", kind=b"v"):
    return cache._layout.entry(digest(kind, key))


def claim_of(cache, key="key", kind=b"v"):
    return entry_of(cache, key, kind) + ".temp"


def followers(cache, key="key", kind=b"v"):
    """Return how many tasks and threads wait for a build of this process."""
    flight = cache._protocol.flights._flights.get(entry_of(cache, key, kind))
    return 0 if flight is None else len(flight.bells)


def in_threads(*steps):
    """Run each step in a thread; return their results, or raise the first error."""
    results = [None] * len(steps)
    errors = []

    def work(place, step):
        try:
            results[place] = step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG + 5)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return results


async def never():
    raise AssertionError("a factory was called where there should be a hit")


class OddError(Exception):
    """An error whose state is not in its arguments."""

    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


class Kind:
    """One of the ways to write a factory; builds count in `builds`, and end on the word."""

    def __init__(self, name):
        self.name = name
        self.builds = []
        self.may_end = threading.Event()

    def factory(self):
        def plain():
            self.builds.append(threading.get_ident())
            assert self.may_end.wait(LONG)
            return self.make()

        async def coroutine():
            self.builds.append(threading.get_ident())
            await when(self.may_end.is_set)
            return self.make()

        return {"function": plain, "coroutine": coroutine, "lambda": lambda: coroutine()}[
            self.name
        ]

    def make(self):
        return ["built"]


KINDS = ["coroutine", "function", "lambda"]


@pytest.fixture(params=KINDS)
def kind(request):
    return Kind(request.param)


# What other processes do.


def hold(line, cache, *keys, **options):
    """Build several keys at once; end on the word."""

    def build(place=0):
        if place == len(keys):
            line.tell("building")
            line.hear("go on")
            return "unused"
        key = keys[place]
        cache.get_or_create(key, lambda: (build(place + 1), ("held", key))[1], **options)
        return None

    build()
    return [cache.get(key) for key in keys]


def hold_path(line, cache):
    def build(target):
        line.tell("building")
        target.write_text("half")
        line.hear("go on")
        target.write_text("whole")

    return cache.get_or_create_path("key", build, name="made")


def hold_in_a_task(line, cache):
    """Build with a coroutine; end on the word."""

    async def build():
        line.tell("building")
        await when(line.connection.poll)
        line.hear("go on")
        return ["built", os.getpid()]

    return run(cache.aget_or_create("key", build))


def ask_in_a_task(line, cache, key="key"):
    async def build():
        line.tell("building")
        return ["built", os.getpid()]

    return run(cache.aget_or_create(key, build))


# -- once for all ----------------------------------------------------------------------


def test_of_many_tasks_one_builds_and_each_gets_an_object_of_its_own(cache, kind):
    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(30)
        ]
        await when(lambda: kind.builds and followers(cache) == 29, "all others follow")
        assert flights(cache) == 1
        kind.may_end.set()
        return await asyncio.gather(*tasks)

    answers = run(main())
    assert answers == [["built"]] * 30
    assert len({id(answer) for answer in answers}) == 30
    assert len(kind.builds) == 1
    assert leftovers(cache.directory) == []


def test_a_coroutine_runs_on_the_loop_that_asked_and_a_function_does_not(cache, kind):
    kind.may_end.set()
    run(cache.aget_or_create("key", kind.factory()))
    on_the_loop = kind.builds == [threading.get_ident()]
    assert on_the_loop == (kind.name != "function")


@pytest.mark.parametrize("leader", ["task", "thread"])
def test_tasks_of_several_loops_and_threads_share_one_build(cache, kind, leader):
    def loop():
        async def main():
            return await asyncio.gather(
                *(cache.aget_or_create("key", kind.factory()) for _ in range(5))
            )

        return run(main())

    def thread():
        def factory():
            kind.builds.append(threading.get_ident())
            assert kind.may_end.wait(LONG)
            return ["built"]

        return [cache.get_or_create("key", factory)]

    def lead():
        return loop() if leader == "task" else thread()

    def follow(step):
        until(lambda: kind.builds, "the leader builds")
        return step()

    def end():
        expected = 15 + 3 + (4 if leader == "task" else 0)
        until(lambda: followers(cache) == expected, "all tasks and threads follow")
        kind.may_end.set()
        return []

    others = [functools.partial(follow, step) for step in [loop] * 3 + [thread] * 3]
    answers = [each for some in in_threads(lead, *others, end) for each in some]
    assert answers == [["built"]] * (15 + 3 + (5 if leader == "task" else 1))
    assert len({id(answer) for answer in answers}) == len(answers)
    assert len(kind.builds) == 1
    assert leftovers(cache.directory) == []


def test_tasks_wait_for_another_process_with_one_thread_and_their_loop_runs_on(crew, cache):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")

    async def main():
        tasks = [asyncio.create_task(cache.aget_or_create("key", never)) for _ in range(20)]
        await when(lambda: followers(cache) == 19 and sleepers(claim_of(cache)) == 1)
        assert flights(cache) == 1
        builder.tell("go on")  # from this loop: were it blocked, nobody would
        return await asyncio.gather(*tasks)

    assert run(main()) == [("held", "key")] * 20


def test_200_tasks_on_50_keys_that_another_process_holds_all_get_the_value(crew, cache):
    keys = [f"key {number}" for number in range(50)]
    builder = crew.start(hold, cache, *keys)
    builder.hear("building")

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create(key, never)) for key in keys for _ in range(4)
        ]
        await when(lambda: all(sleepers(claim_of(cache, key)) == 1 for key in keys))
        await when(lambda: all(followers(cache, key) == 3 for key in keys))
        builder.tell("go on")
        return await asyncio.gather(*tasks)

    assert run(main()) == [("held", key) for key in keys for _ in range(4)]
    assert builder.result() == [("held", key) for key in keys]
    assert leftovers(cache.directory) == []


class Blocking:
    """What a folder's code calls in this thread that may put it to sleep, however shortly."""

    SLEEPS = ("sleep", "fsync", "fdatasync", "wait4", "waitpid")

    def __init__(self, folder):
        self.calls = []
        self._folder = os.path.join(folder, "")

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, frame, event, what):
        if event == "call":
            name = frame.f_code.co_name
            sleeps = name == "wait_shared"  # the door's, on somebody's claim
        elif event == "c_call":
            name = what.__name__
            sleeps = name in self.SLEEPS or (name == "acquire" and what.__self__.locked())
        else:
            return
        while sleeps and frame is not None:
            if frame.f_code.co_filename.startswith(self._folder):
                self.calls.append(name)
                return
            frame = frame.f_back


def test_what_may_block_a_thread_is_noticed():
    """The control of the next test."""
    lock = threading.Lock()
    with Blocking(os.path.dirname(__file__)) as blocking:
        lock.acquire()
        lock.acquire(timeout=0.001)
        time.sleep(0)
    assert blocking.calls == ["acquire", "sleep"]


@pytest.mark.parametrize("builder", ["process", "killed", *KINDS])
def test_who_waits_calls_nothing_on_a_loops_thread_that_could_block_it(crew, cache, builder):
    keys = [f"key {number}" for number in range(5)]
    own = Kind(builder)
    if builder not in KINDS:
        holder = crew.start(hold, cache, *keys)
        holder.hear("building")

    def all_wait():
        if any(followers(cache, key) != 3 for key in keys):
            return False
        if builder in KINDS:
            return len(own.builds) == len(keys)
        return all(sleepers(claim_of(cache, key)) for key in keys)

    def factory():
        return own.factory() if builder in KINDS else lambda: "built"

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create(key, factory()))
            for key in keys
            for _ in range(4)
        ]
        await when(all_wait)
        with pytest.raises(BuildTimeout):
            await cache.aget_or_create(keys[0], never, timeout=0.001)
        if builder in KINDS:
            own.may_end.set()
        elif builder == "process":
            holder.tell("go on")
        else:
            holder.kill()
        await asyncio.gather(*tasks)

    async def watched():
        with Blocking(os.path.dirname(atomcache.__file__)) as blocking:
            await main()
        return blocking.calls

    assert run(watched()) == []


def test_other_processes_wait_for_the_coroutine_of_a_task(crew, cache):
    builder = crew.start(hold_in_a_task, cache)
    builder.hear("building")
    for _ in range(3):
        crew.start(ask_in_a_task, cache)
    until(lambda: sleepers(claim_of(cache)) == 3, "the others sleep")
    builder.tell("go on")
    assert crew.results() == [["built", builder.pid]] * 4
    assert leftovers(cache.directory) == []


def test_when_the_process_that_builds_is_killed_one_task_takes_over(crew, cache):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")
    builds = []

    async def build():
        builds.append(1)
        await asyncio.sleep(0)
        return "heir"

    async def main():
        tasks = [asyncio.create_task(cache.aget_or_create("key", build)) for _ in range(10)]
        await when(lambda: followers(cache) == 9 and sleepers(claim_of(cache)) == 1)
        builder.kill()
        return await asyncio.gather(*tasks)

    assert run(main()) == ["heir"] * 10
    assert builds == [1]
    assert leftovers(cache.directory) == []


def test_a_coroutine_may_ask_for_other_keys(cache):
    async def inner(number):
        await asyncio.sleep(0)
        return number

    async def outer():
        return sum(
            await asyncio.gather(
                *(
                    cache.aget_or_create(("inner", number), functools.partial(inner, number))
                    for number in range(10)
                )
            )
        )

    assert run(cache.aget_or_create("outer", outer)) == 45


def test_contextvars_reach_the_factory(cache):
    user = contextvars.ContextVar("user")

    async def coroutine():
        await asyncio.sleep(0)
        return user.get()

    async def ask(name, factory):
        user.set(name)
        return await cache.aget_or_create(name, factory)

    async def main():
        return await asyncio.gather(
            asyncio.create_task(ask("Ada", coroutine)),
            asyncio.create_task(ask("Ben", user.get)),
            asyncio.create_task(ask("Cleo", lambda: coroutine())),
        )

    assert run(main()) == ["Ada", "Ben", "Cleo"]


def test_a_task_that_a_factory_left_running_may_ask_for_that_key_later(cache):
    left = []

    async def later():
        await when(lambda: "key" in cache and not leftovers(cache.directory))
        cache.remove("key")
        return await cache.aget_or_create("key", lambda: "anew")

    async def build():
        left.append(asyncio.create_task(later()))
        return "built"

    async def main():
        assert await cache.aget_or_create("key", build) == "built"
        return await left[0]

    assert run(main()) == "anew"


# -- hits ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, "1MB"])
def test_a_small_hit_starts_no_thread_and_does_not_leave_the_loop(tmp_path, monkeypatch, memory):
    cache = Cache(tmp_path / "cache", memory=memory)

    @cache.memoize()
    async def double(number):
        return number * 2

    @cache.builder(name="made")
    async def page(target, number):
        target.write_text(str(number))

    def refuse(*_, **__):
        raise AssertionError("a hit needs no thread")

    async def main():
        key = ("a", 1)
        made = await cache.aget_or_create_path(key, lambda target: target.touch(), name="made")
        await cache.aget_or_create(key, lambda: b"x" * 200_000)
        await double(4)
        paged = await page(7)
        refuse_threads(monkeypatch, refuse)
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
        for question, answer in [
            (cache.aget_or_create(key, never), b"x" * 200_000),
            (cache.aget_or_create(key, never, max_age=60), b"x" * 200_000),
            (cache.aget_or_create_path(key, never, name="made"), made),
            (double(4), 8),
            (page(7), paged),
        ]:
            with pytest.raises(StopIteration) as caught:
                question.send(None)  # where a future would come out if it had to wait
            assert caught.value.value == answer
        monkeypatch.undo()

    run(main())


def test_a_factory_that_raises_stop_iteration_where_nothing_is_stored_ends_its_task(tmp_path):
    (tmp_path / "in the way").write_text("no folder")
    cache = Cache(tmp_path / "in the way" / "cache", on_store_error="bypass")

    async def main():
        return await cache.aget_or_create("key", lambda: next(iter(())))

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        run(main())
    assert isinstance(caught.value.__cause__, StopIteration)


def test_a_large_value_is_read_in_the_pool(cache, monkeypatch):
    value = random.Random(1).randbytes(1_000_000)
    readers = []
    door = cache._door

    class Watched:
        def __getattr__(self, name):
            readers.append(threading.get_ident())
            return getattr(door, name)

    async def main():
        await cache.aget_or_create("key", lambda: value)
        await cache.aget_or_create("key", never)  # the first hit of an hour notes the use
        cache._asking._door = Watched()
        return await cache.aget_or_create("key", never)

    assert run(main()) == value
    here = threading.get_ident()
    # The loop reads the beginning, to learn how large it is: open, read, close.
    assert readers[:3] == [here] * 3
    assert set(readers[3:]) - {here}
    assert here not in readers[3:]


def test_tasks_that_followed_the_build_of_a_large_value_get_all_of_it(cache):
    value = random.Random(2).randbytes(1_000_000)
    kind = Kind("coroutine")
    kind.make = lambda: value

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(8)
        ]
        await when(lambda: kind.builds and followers(cache) == 7)
        kind.may_end.set()
        return await asyncio.gather(*tasks)

    assert run(main()) == [value] * 8
    assert len(kind.builds) == 1


def test_an_array_comes_back_as_it_was(cache):
    numpy = pytest.importorskip("numpy")
    value = numpy.arange(100_000)

    async def main():
        await cache.aget_or_create("key", lambda: value)
        return await cache.aget_or_create("key", never)

    assert numpy.array_equal(run(main()), value)


# -- who waits is cancelled ------------------------------------------------------------


def test_cancelling_one_that_follows_cancels_only_that_one(cache, kind):
    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(6)
        ]
        await when(lambda: kind.builds and followers(cache) == 5)
        for task in tasks[2:4]:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        with pytest.raises(asyncio.CancelledError):
            await tasks[3]
        assert followers(cache) == 3
        kind.may_end.set()
        return await asyncio.gather(*tasks[:2], *tasks[4:])

    assert run(main()) == [["built"]] * 4
    assert len(kind.builds) == 1


@pytest.mark.parametrize("ending", ["published", "killed"])
def test_cancelling_the_task_whose_thread_waits_leaves_the_others_waiting(crew, cache, ending):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")
    builds = []

    def factory(name):
        async def build():
            builds.append(name)
            return ["built by", name]

        return build

    async def main():
        first = asyncio.create_task(cache.aget_or_create("key", factory("first")))
        await when(lambda: sleepers(claim_of(cache)) == 1)
        others = [
            asyncio.create_task(cache.aget_or_create("key", factory(name))) for name in range(3)
        ]
        await when(lambda: followers(cache) == 3)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert sleepers(claim_of(cache)) == 1  # on behalf of the others
        if ending == "killed":
            builder.kill()
        else:
            builder.tell("go on")
        return await asyncio.gather(*others)

    answers = run(main())
    if ending == "killed":
        assert len(builds) == 1
        assert builds[0] != "first"
        assert answers == [["built by", builds[0]]] * 3
    else:
        assert builds == []
        assert answers == [("held", "key")] * 3
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("is_path", [False, True], ids=["value", "path"])
def test_nothing_is_built_for_tasks_that_were_all_cancelled(crew, cache, kind, is_path):
    builder = crew.start(hold_path, cache) if is_path else crew.start(hold, cache, "key")
    builder.hear("building")
    claim = claim_of(cache, kind=b"p" if is_path else b"v")
    kind.may_end.set()

    def ask():
        if is_path:
            return cache.aget_or_create_path("key", lambda _: kind.factory()(), name="made")
        return cache.aget_or_create("key", kind.factory())

    async def main():
        tasks = [asyncio.create_task(ask()) for _ in range(5)]
        await when(lambda: sleepers(claim) == 1)
        for task in tasks:
            task.cancel()
        done, pending = await asyncio.wait(tasks)
        assert all(task.cancelled() for task in done)
        builder.kill()
        await when(lambda: not flights(cache), "the thread finds that nobody is left")

    run(main())
    assert kind.builds == []
    assert leftovers(cache.directory) == []
    assert list(cache.entries()) == []


def test_a_task_that_asks_after_others_were_cancelled_gets_the_value(crew, cache):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")

    async def main():
        for _ in range(10):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await cache.aget_or_create("key", never)
            assert flights(cache) == 1  # impatient callers share it
        task = asyncio.create_task(cache.aget_or_create("key", never))
        await when(lambda: followers(cache) == 1)
        builder.tell("go on")
        return await task

    assert run(main()) == ("held", "key")


EXITING = """
import asyncio, sys
from atomcache import Cache

async def main(how):
    cache = Cache(sys.argv[1])
    task = asyncio.create_task(cache.aget_or_create("key", lambda: "built"))
    other = asyncio.create_task(cache.aget_or_create("key", lambda: "built"))
    for line in sys.stdin:  # until the test has seen the thread sleep
        break
    await asyncio.sleep(0)
    if how == "cancel":
        task.cancel()
        other.cancel()
        await asyncio.wait([task, other])
    print("leaving", flush=True)

how = sys.argv[2]
asyncio.run(main(how))
"""


@pytest.mark.parametrize("how", ["cancel", "leave"])
def test_a_thread_that_waits_does_not_keep_the_interpreter_from_exiting(crew, cache, how):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")
    # Reading standard input blocks the loop, so the thread is started before.
    script = EXITING.replace("    for line", "    await asyncio.sleep(0)\n    for line")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(cache.directory), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: sleepers(claim_of(cache)) == 1, "its thread sleeps")
        out, err = process.communicate("go on\n", timeout=LONG)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "leaving\n", "")
    builder.tell("go on")
    assert builder.result() == [("held", "key")]


# -- who builds is cancelled -----------------------------------------------------------


class Cleaning:
    """A coroutine that takes some turns of the loop to clean up."""

    def __init__(self):
        self.started = []
        self.cleaned = []

    async def __call__(self, target=None):
        self.started.append(1)
        try:
            if target is not None:
                target.mkdir()
                (target / "half").write_text("half")
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0.001)
            self.cleaned.append(1)


def ask_for(cache, is_path, factory):
    if is_path:
        return cache.aget_or_create_path("key", factory, name="made")
    return cache.aget_or_create("key", factory)


@pytest.mark.parametrize("is_path", [False, True], ids=["value", "path"])
def test_a_cancelled_coroutine_has_cleaned_up_when_its_caller_is_gone(cache, is_path):
    build = Cleaning()

    async def main():
        task = asyncio.create_task(ask_for(cache, is_path, build))
        await when(lambda: build.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert build.cleaned == [1]
        assert leftovers(cache.directory) == []

    run(main())
    assert list(cache.entries()) == []


@pytest.mark.parametrize("is_path", [False, True], ids=["value", "path"])
def test_when_the_task_that_builds_is_cancelled_another_builds(cache, is_path):
    build = Cleaning()
    heirs = []

    async def inherit(target=None):
        assert build.cleaned == [1]
        heirs.append(1)
        await asyncio.sleep(0)
        if target is not None:
            target.write_text("heir")
        return "heir"

    async def main():
        first = asyncio.create_task(ask_for(cache, is_path, build))
        await when(lambda: build.started)
        others = [asyncio.create_task(ask_for(cache, is_path, inherit)) for _ in range(5)]
        await when(lambda: followers(cache, kind=b"p" if is_path else b"v") == 5)
        first.cancel()
        answers = await asyncio.gather(*others)
        assert first.cancelled()
        return answers

    answers = run(main())
    assert heirs == [1]
    assert [each.read_text() if is_path else each for each in answers] == ["heir"] * 5
    assert leftovers(cache.directory) == []


def test_when_the_task_that_builds_is_cancelled_another_process_builds(crew, cache):
    build = Cleaning()

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: build.started)
        waiters = [crew.start(ask_in_a_task, cache) for _ in range(3)]
        await when(lambda: sleepers(claim_of(cache)) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return waiters

    waiters = run(main())
    answers = [each.result() for each in waiters]
    assert answers == [answers[0]] * 3
    assert answers[0][1] in [each.pid for each in waiters]
    assert leftovers(cache.directory) == []


def test_who_builds_within_a_timeout_is_cancelled_by_it(cache):
    build = Cleaning()

    limit = asyncio.Timeout(None)

    async def late():
        limit.reschedule(asyncio.get_running_loop().time())
        await build()

    async def main():
        with pytest.raises(TimeoutError):
            async with limit:
                await cache.aget_or_create("key", late)
        assert build.cleaned == [1]
        return await cache.aget_or_create("key", lambda: "anew")

    assert run(main()) == "anew"


def test_a_second_cancellation_ends_the_wait_and_the_build_still_ends_well(cache):
    may_clean = threading.Event()
    started = []

    async def build():
        started.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            await when(may_clean.is_set)

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: started)
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_clean.set()
        return await cache.aget_or_create("key", lambda: "anew")

    assert run(main()) == "anew"
    assert leftovers(cache.directory) == []


def test_when_a_loop_ends_each_coroutine_is_cancelled_once_and_cleans_up(cache):
    builds = [Cleaning() for _ in range(10)]

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create(number, build))
            for number, build in enumerate(builds)
        ]
        await when(lambda: all(build.started for build in builds))
        return len(tasks)

    run(main())
    assert [build.cleaned for build in builds] == [[1]] * 10
    assert leftovers(cache.directory) == []


def test_what_a_coroutine_returns_in_spite_of_its_cancellation_is_kept(cache):
    started = []

    async def build():
        started.append(1)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "all the same"

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert cache.get("key") == "all the same"


@pytest.mark.parametrize("is_path", [False, True], ids=["value", "path"])
def test_a_function_whose_task_is_cancelled_ends_and_is_published(cache, is_path):
    started = []
    may_end = threading.Event()

    def build(target=None):
        started.append(1)
        assert may_end.wait(LONG)
        if target is not None:
            target.write_text("built")
        return "built"

    async def main():
        first = asyncio.create_task(ask_for(cache, is_path, build))
        await when(lambda: started)
        second = asyncio.create_task(ask_for(cache, is_path, never))
        await when(lambda: followers(cache, kind=b"p" if is_path else b"v") == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first  # before the function has ended
        may_end.set()
        answer = await second
        return answer.read_text() if is_path else answer

    assert run(main()) == "built"
    assert started == [1]
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("with_inputs", [False, True], ids=["plain", "inputs"])
def test_a_coroutine_made_for_a_caller_that_is_gone_is_closed(cache, tmp_path, with_inputs):
    started = []
    may_end = threading.Event()
    (tmp_path / "input").write_text("input")
    options = {"inputs": [tmp_path / "input"]} if with_inputs else {}

    async def coroutine():
        raise AssertionError("nobody is left to want it")

    def build():
        started.append(1)
        assert may_end.wait(LONG)
        return coroutine()

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build, **options))
        await when(lambda: started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()
        await when(lambda: not flights(cache))

    run(main())
    assert leftovers(cache.directory) == []


def test_a_coroutine_that_is_cancelled_before_its_first_step_is_closed(cache):
    started = []
    may_end = threading.Event()

    async def coroutine():
        raise AssertionError("it was cancelled before")

    def build():
        started.append(1)
        assert may_end.wait(LONG)
        return coroutine()

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: started)
        may_end.set()
        until(lambda: loop._ready, "the thread wants this loop, which is busy, to start it")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("factory_is", ["coroutine", "function"])
def test_a_factory_that_cancels_itself_cancels_its_caller_and_another_builds(cache, factory_is):
    started = []
    may_end = threading.Event()

    async def coroutine():
        started.append(1)
        await when(may_end.is_set)
        raise asyncio.CancelledError

    def function():
        started.append(1)
        assert may_end.wait(LONG)
        raise asyncio.CancelledError

    async def main():
        build = coroutine if factory_is == "coroutine" else function
        first = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: started)
        others = [asyncio.create_task(cache.aget_or_create("key", lambda: "heir")) for _ in "abc"]
        await when(lambda: followers(cache) == 3)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await asyncio.gather(*others)

    assert run(main()) == ["heir"] * 3
    assert leftovers(cache.directory) == []


def interrupted(line, cache):
    async def build():
        line.tell("building")
        try:
            await asyncio.Event().wait()
        finally:
            line.tell("cleaned")

    try:
        run(cache.aget_or_create("key", build))
    except KeyboardInterrupt:
        return "interrupted"


def test_control_c_ends_a_coroutine_that_builds_and_another_takes_over(crew, cache):
    builder = crew.start(interrupted, cache)
    builder.hear("building")

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", lambda: "heir"))
        await when(lambda: sleepers(claim_of(cache)) == 1)
        os.kill(builder.pid, signal.SIGINT)
        return await task

    assert run(main()) == "heir"
    builder.hear("cleaned")
    assert builder.result() == "interrupted"
    assert leftovers(cache.directory) == []


# -- loops that end --------------------------------------------------------------------


@pytest.mark.usefixtures("loops_are_left_open")
@pytest.mark.parametrize("moment", ["building", "about to build", "in a function"])
def test_when_a_loop_is_closed_during_a_build_others_build(cache, moment):
    started = []
    may_end = threading.Event()

    async def coroutine():
        started.append(1)
        await asyncio.Event().wait()

    def function():
        started.append(1)
        assert may_end.wait(LONG)
        return coroutine() if moment == "about to build" else "built"

    loop = asyncio.new_event_loop()
    build = coroutine if moment == "building" else function
    task = loop.create_task(cache.aget_or_create("key", build))
    loop.run_until_complete(when(lambda: started))
    if moment == "about to build":
        may_end.set()
        until(lambda: loop._ready, "the thread wants the loop to run the coroutine")
    loop.close()
    may_end.set()
    answer = cache.get_or_create("key", lambda: "heir", timeout=LONG)
    assert answer == ("built" if moment == "in a function" else "heir")
    assert not task.done()
    assert leftovers(cache.directory) == []


@pytest.mark.usefixtures("loops_are_left_open")
def test_who_waits_builds_though_the_coroutine_of_a_closed_loop_awaits_in_its_cleanup(cache):
    build = Cleaning()
    loop = asyncio.new_event_loop()
    task = loop.create_task(cache.aget_or_create("key", build))
    loop.run_until_complete(when(lambda: build.started))

    def close():
        until(lambda: followers(cache) == 1, "somebody waits")
        loop.close()

    answers = in_threads(lambda: cache.get_or_create("key", lambda: "heir"), close)
    assert answers == ["heir", None]
    assert not task.done()
    assert leftovers(cache.directory) == []


def test_a_coroutine_that_begins_behind_its_task_when_its_loop_ends_is_no_complaint(cache):
    ending, begun = threading.Event(), threading.Event()

    class Loop(asyncio.SelectorEventLoop):
        """Ends as `asyncio.run` has it: this comes after all its tasks were cancelled."""

        async def shutdown_asyncgens(self):
            ending.set()
            await when(begun.is_set)
            await super().shutdown_asyncgens()

    async def coroutine():
        begun.set()
        await asyncio.Event().wait()

    def late():
        assert ending.wait(LONG)
        return coroutine()

    cache.get_or_create("key", lambda: "old")
    with asyncio.Runner(loop_factory=Loop) as runner:
        asking = cache.aget_or_create("key", late, max_age=0, stale_for=3600)
        assert runner.run(asking) == "old"
    until(lambda: not flights(cache), "the build ends")
    gc.collect()  # asyncio complains of what is forgotten
    assert leftovers(cache.directory) == []


def test_a_new_loop_gets_what_the_thread_of_an_ended_one_waits_for(crew, cache):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")

    async def leave():
        asyncio.get_running_loop().left = asyncio.create_task(cache.aget_or_create("key", never))
        await when(lambda: sleepers(claim_of(cache)) == 1)

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", never))
        await when(lambda: followers(cache) == 1)
        builder.tell("go on")
        return await task

    run(leave())
    assert run(main()) == ("held", "key")


def test_where_no_thread_can_be_started_the_error_is_told_and_nothing_is_stuck(cache, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    async def main():
        with monkeypatch.context() as patch:
            refuse_threads(patch, refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await cache.aget_or_create("key", never)
        return await cache.aget_or_create("key", lambda: "built")

    assert run(main()) == "built"
    assert leftovers(cache.directory) == []


# -- timeouts --------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_a_timeout_names_key_builder_and_remedy_and_disturbs_nobody(crew, cache, timeout):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")

    async def main():
        patient = asyncio.create_task(cache.aget_or_create("key", never))
        await when(lambda: sleepers(claim_of(cache)) == 1)
        tasks = [cache.aget_or_create("key", never, timeout=timeout) for _ in range(5)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        builder.tell("go on")
        return errors, await patient

    errors, answer = run(main())
    assert [type(error) for error in errors] == [BuildTimeout] * 5
    for part in ("key", str(builder.pid), str(cache.directory), "timeout="):
        assert part in str(errors[0])
    assert answer == ("held", "key")


def test_when_the_task_whose_thread_waits_times_out_those_who_followed_wait_on(crew, cache):
    builder = crew.start(hold, cache, "key")
    builder.hear("building")

    async def main():
        first = asyncio.create_task(cache.aget_or_create("key", never, timeout=0.3))
        others = [asyncio.create_task(cache.aget_or_create("key", never)) for _ in range(5)]
        await asyncio.sleep(0)  # one turn, in which the first leads, and the others follow it
        assert followers(cache) == 5
        with pytest.raises(BuildTimeout):
            await first
        await when(lambda: followers(cache) == 4, "another one leads")
        builder.tell("go on")
        return await asyncio.gather(*others)

    assert run(main()) == [("held", "key")] * 5


def test_a_timeout_holds_for_those_who_wait_for_a_task_of_their_own_process(cache, kind):
    async def main():
        first = asyncio.create_task(cache.aget_or_create("key", kind.factory(), timeout=0.001))
        await when(lambda: kind.builds)
        with pytest.raises(BuildTimeout, match=str(os.getpid())):
            await cache.aget_or_create("key", never, timeout=0.02)
        with pytest.raises(BuildTimeout):
            await asyncio.to_thread(cache.get_or_create, "key", never, timeout=0.02)
        kind.may_end.set()
        return await first  # who builds is not limited

    assert run(main()) == ["built"]


# -- failures --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coroutine", "function"])
def test_a_failing_factory_fails_all_with_an_error_of_their_own_and_the_next_tries_anew(
    cache, name
):
    kind = Kind(name)

    def fail():
        raise OddError(7)

    kind.make = fail

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(8)
        ]
        await when(lambda: kind.builds and followers(cache) == 7)
        kind.may_end.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        return errors, await cache.aget_or_create("key", lambda: "anew")

    errors, answer = run(main())
    assert [(type(error), error.code, str(error)) for error in errors] == [
        (OddError, 7, "code 7")
    ] * 8
    assert len({id(error) for error in errors}) == 8
    assert len(kind.builds) == 1
    assert answer == "anew"
    assert leftovers(cache.directory) == []


def fail_in_a_task(line, cache):
    async def build():
        line.tell("building")
        await when(line.connection.poll)
        line.hear("go on")
        raise OddError(3)

    with pytest.raises(OddError):
        run(cache.aget_or_create("key", build))


def test_tasks_get_the_error_of_another_process(crew, cache):
    builder = crew.start(fail_in_a_task, cache)
    builder.hear("building")

    async def main():
        tasks = [asyncio.create_task(cache.aget_or_create("key", never)) for _ in range(4)]
        await when(lambda: followers(cache) == 3 and sleepers(claim_of(cache)) == 1)
        builder.tell("go on")
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = run(main())
    builder.result()
    assert [(type(error), error.code) for error in errors] == [(OddError, 3)] * 4
    assert len({id(error) for error in errors}) == 4


def test_the_group_of_errors_of_a_task_group_reaches_all(cache):
    kind = Kind("coroutine")

    async def fail(code):
        raise OddError(code)

    async def build():
        kind.builds.append(1)
        await when(kind.may_end.is_set)
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(1))
            group.create_task(fail(2))

    async def main():
        tasks = [asyncio.create_task(cache.aget_or_create("key", build)) for _ in range(3)]
        await when(lambda: kind.builds and followers(cache) == 2)
        kind.may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = run(main())
    assert [[each.code for each in error.exceptions] for error in errors] == [[1, 2]] * 3
    assert len({id(error) for error in errors}) == 3


def test_with_on_error_retry_tasks_build_one_after_another(cache):
    builds = []
    running = []

    async def build():
        assert not running, "two at the same time"
        running.append(1)
        await when(lambda: followers(cache) == 4 - len(builds), "the others follow")
        builds.append(1)
        running.clear()
        if len(builds) < 4:
            raise OddError(len(builds))
        return "at last"

    async def main():
        tasks = [cache.aget_or_create("key", build, on_error="retry") for _ in range(5)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(main())
    assert sorted(each.code for each in answers if isinstance(each, OddError)) == [1, 2, 3]
    assert [each for each in answers if not isinstance(each, OddError)] == ["at last"] * 2
    assert len(builds) == 4


def test_a_value_that_cant_be_stored_is_an_error_for_all_who_wait(cache):
    kind = Kind("coroutine")
    kind.make = object

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(3)
        ]
        await when(lambda: kind.builds and followers(cache) == 2)
        kind.may_end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(error) for error in run(main())] == [CodecError] * 3
    assert leftovers(cache.directory) == []


def test_a_coroutine_may_ask_for_its_value_not_to_be_stored(cache):
    kind = Kind("coroutine")

    def decline():
        raise DontStore("for now")

    kind.make = decline

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory())) for _ in range(3)
        ]
        await when(lambda: kind.builds and followers(cache) == 2)
        kind.may_end.set()
        return await asyncio.gather(*tasks)

    assert run(main()) == ["for now"] * 3
    assert len(kind.builds) == 1
    assert "key" not in cache


# -- circles ---------------------------------------------------------------------------


def test_a_coroutine_that_asks_for_its_own_key_gets_an_error_not_a_deadlock(cache):
    async def build():
        return await cache.aget_or_create("key", build)

    with pytest.raises(CircularBuildError, match="key"):
        run(cache.aget_or_create("key", build))
    assert leftovers(cache.directory) == []


def test_a_task_that_a_coroutine_waits_for_counts_as_the_coroutine(cache):
    async def build():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(cache.aget_or_create("key", never))
        return task.result()

    async def main():
        with pytest.raises(ExceptionGroup) as caught:
            await cache.aget_or_create("key", build)
        assert isinstance(caught.value.exceptions[0], CircularBuildError)

    run(main())


def test_a_function_that_asks_for_its_own_key_gets_an_error_not_a_deadlock(cache):
    with pytest.raises(CircularBuildError, match="key"):
        run(cache.aget_or_create("key", lambda: cache.get_or_create("key", never)))


def circle(cache, links, **options):
    """Let each key's coroutine ask for others, all at once; return how each ended."""
    building = set()

    def factory(key):
        async def build():
            building.add(key)
            await when(lambda: len(building) == len(links), "all build")
            asked = [
                cache.aget_or_create(other, factory(other), **options) for other in links[key]
            ]
            return await asyncio.gather(*asked)

        return build

    async def main():
        tasks = [cache.aget_or_create(key, factory(key), **options) for key in links]
        return await asyncio.gather(*tasks, return_exceptions=True)

    return run(main())


@pytest.mark.parametrize("number", [2, 3, 5])
def test_coroutines_that_wait_for_each_other_get_an_error_not_a_deadlock(cache, number):
    links = {place: [(place + 1) % number] for place in range(number)}
    assert {type(error) for error in circle(cache, links)} == {CircularBuildError}
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("through", ["first", "second", "both"])
def test_a_circle_is_found_through_any_of_the_keys_that_a_coroutine_gathers(cache, through):
    others = {
        "first": {"b": ["a"], "c": []},
        "second": {"b": [], "c": ["a"]},
        "both": {"b": ["a"], "c": ["a"]},
    }
    answers = dict(zip("abc", circle(cache, {"a": ["b", "c"], **others[through]}), strict=True))
    assert isinstance(answers["a"], CircularBuildError)
    for key, asked in others[through].items():
        if asked:
            assert isinstance(answers[key], CircularBuildError)
        else:
            assert answers[key] == []
    assert leftovers(cache.directory) == []


def test_a_circle_without_a_folder_to_write_is_an_error_not_a_deadlock(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", on_store_error="bypass")
    answers = circle(cache, {"a": ["b"], "b": ["a"]})
    assert {type(error) for error in answers} == {CircularBuildError}


def hold_then_ask(line, cache, own, other):
    def build():
        line.tell("building")
        line.hear("ask")
        return cache.get_or_create(other, lambda: "from outside", timeout=LONG)

    try:
        return cache.get_or_create(own, build)
    except CircularBuildError as error:
        return str(error)


@pytest.mark.parametrize("through", ["b", "c"])
def test_a_circle_through_another_process_is_found_through_any_of_several_keys(
    crew, cache, through
):
    holders = {key: crew.start(hold_then_ask, cache, key, "a") for key in "bc"}
    for holder in holders.values():
        holder.hear("building")
    free = next(key for key in "bc" if key != through)

    async def build():
        await asyncio.gather(*(cache.aget_or_create(key, never) for key in "bc"))

    async def main():
        task = asyncio.create_task(cache.aget_or_create("a", build))
        await when(lambda: all(sleepers(claim_of(cache, key)) == 1 for key in "bc"))
        holders[through].tell("ask")
        with pytest.raises(CircularBuildError):
            await task

    run(main())
    assert "would never end" in holders[through].result()
    holders[free].tell("ask")
    assert holders[free].result() == "from outside"


class PausingDoor(Door):
    """Pauses in front of a write of what a build waits for, until told or for a while.

    Where the library keeps others from overtaking such a write, nobody can tell it.
    """

    def __init__(self, holds):
        super().__init__()
        self.holds = holds
        self.held = threading.Event()
        self.go_on = threading.Event()

    def write(self, fd, data):
        if b"waits-for" in data and not self.held.is_set() and self.holds(data):
            self.held.set()
            self.go_on.wait(0.5)
        super().write(fd, data)


def paused(cache, holds):
    cache._open(PausingDoor(holds))
    return cache._door


def test_two_threads_that_wait_for_one_build_do_not_overwrite_each_others_note(crew, cache):
    """A circle is found by these notes: where one is lost, a circle is not found."""
    holder = crew.start(hold, cache, "b", "c")
    holder.hear("building")
    door = paused(cache, lambda data: True)

    async def build():
        first = asyncio.create_task(cache.aget_or_create("b", never))
        await when(door.held.is_set, "the first is about to write")
        second = asyncio.create_task(cache.aget_or_create("c", never))
        await when(lambda: sleepers(claim_of(cache, "c")) == 1 or sleepers(claim_of(cache, "b")))
        door.go_on.set()
        await when(lambda: sleepers(claim_of(cache, "b")) and sleepers(claim_of(cache, "c")))
        found = living_record(door, claim_of(cache, "a"))
        holder.tell("go on")
        await asyncio.gather(first, second)
        return sorted(found.waits_for)

    answer = run(cache.aget_or_create("a", build))
    assert answer == sorted([claim_of(cache, "b"), claim_of(cache, "c")])


def test_a_thread_that_waited_never_writes_into_a_file_that_is_not_the_claim(
    crew, cache, tmp_path
):
    """A cancelled build closes its claim; the next file that is opened has its number."""
    holder = crew.start(hold, cache, "b")
    holder.hear("building")
    door = paused(cache, lambda data: claim_of(cache, "b").encode() not in data)

    async def build():
        return await cache.aget_or_create("b", never)

    async def main():
        task = asyncio.create_task(cache.aget_or_create("a", build))
        await when(lambda: sleepers(claim_of(cache, "b")) == 1)
        holder.tell("go on")
        await when(door.held.is_set, "its thread is about to write that it waits no more")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with contextlib.ExitStack() as stack:
            for number in range(16):
                stack.enter_context(open(tmp_path / f"other {number}", "wb"))
            door.go_on.set()
            await when(lambda: not flights(cache))

    run(main())
    assert {path.read_bytes() for path in tmp_path.glob("other *")} == {b""}
    assert leftovers(cache.directory) == []


# -- paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coroutine", "function", "lambda"])
@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_a_path_is_built_once_and_nobody_sees_it_before_it_is_whole(cache, name, as_folder):
    kind = Kind(name)
    targets = []

    def write(target, text):
        if as_folder:
            target.mkdir(exist_ok=True)
            target = target / "inside"
        target.write_text(text)

    def plain(target):
        targets.append(target)
        write(target, "half")
        assert kind.may_end.wait(LONG)
        write(target, "whole")

    async def coroutine(target):
        targets.append(target)
        write(target, "half")
        await when(kind.may_end.is_set)
        write(target, "whole")

    build = {"function": plain, "coroutine": coroutine, "lambda": lambda to: coroutine(to)}[name]

    async def main():
        tasks = [
            asyncio.create_task(cache.aget_or_create_path("key", build, name="made"))
            for _ in range(6)
        ]
        await when(lambda: targets and followers(cache, kind=b"p") == 5)
        assert cache.get_path("key") is None
        kind.may_end.set()
        return await asyncio.gather(*tasks)

    paths = run(main())
    assert len(set(paths)) == len(targets) == 1
    assert (paths[0] / "inside" if as_folder else paths[0]).read_text() == "whole"
    assert cache.get_path("key") == paths[0]
    assert leftovers(cache.directory) == []


def test_a_coroutine_that_makes_nothing_is_a_builder_error(cache):
    async def build(target):
        await asyncio.sleep(0)

    with pytest.raises(BuilderError, match="made nothing"):
        run(cache.aget_or_create_path("key", build, name="made"))
    assert leftovers(cache.directory) == []


# -- age and decorators ----------------------------------------------------------------


def test_an_entry_beyond_its_age_is_built_anew_by_one_task(cache):
    kind = Kind("coroutine")
    kind.make = lambda: "new"

    async def main():
        assert await cache.aget_or_create("key", lambda: "old", max_age=3600) == "old"
        tasks = [
            asyncio.create_task(cache.aget_or_create("key", kind.factory(), max_age=0))
            for _ in range(5)
        ]
        await when(lambda: kind.builds and followers(cache) == 4)
        assert await cache.aget_or_create("key", never) == "old"
        kind.may_end.set()
        return await asyncio.gather(*tasks)

    assert run(main()) == ["new"] * 5
    assert len(kind.builds) == 1


def test_a_decorated_coroutine_runs_once_for_all_and_anew_on_refresh(cache):
    runs = []
    may_end = threading.Event()

    @cache.memoize()
    async def square(number, *, offset=0):
        runs.append(number)
        await when(may_end.is_set)
        return [number * number + offset, len(runs)]

    async def main():
        tasks = [asyncio.create_task(square(3)) for _ in range(4)]
        tasks += [asyncio.create_task(square(3, offset=0)) for _ in range(2)]
        await when(lambda: runs)
        may_end.set()
        assert await asyncio.gather(*tasks) == [[9, 1]] * 6
        may_end.clear()
        tasks = [asyncio.create_task(square.refresh(3)) for _ in range(4)]
        await when(lambda: len(runs) == 2)
        assert await square(3) == [9, 1]  # the old one, until there is the new one
        may_end.set()
        assert await asyncio.gather(*tasks) == [[9, 2]] * 4
        assert await square(3) == [9, 2]

    run(main())
    assert runs == [3, 3]


def test_a_decorated_builder_builds_once_for_all_and_anew_on_refresh(cache):
    runs = []

    @cache.builder(name="page.html")
    async def page(target, number):
        runs.append(number)
        await asyncio.sleep(0)
        target.write_text(f"{number}, {len(runs)}")

    async def main():
        paths = await asyncio.gather(*(page(5) for _ in range(4)))
        assert [path.read_text() for path in paths] == ["5, 1"] * 4
        path = await page.refresh(5)
        assert path.read_text() == "5, 2"
        assert (await page(5)).read_text() == "5, 2"

    run(main())
    assert runs == [5, 5]


def test_a_decorated_method_that_is_a_coroutine_can_be_awaited_and_cancelled(cache):
    started = []

    class Shop:
        def __init__(self, name):
            self.name = name

        @cache.memoize(key=lambda self, number: (self.name, number))
        async def price(self, number):
            started.append(number)
            if number == 1:
                await asyncio.Event().wait()
            return f"{self.name} {number}"

    async def main():
        shop = Shop("corner")
        assert await shop.price(2) == "corner 2"
        task = asyncio.create_task(shop.price(1))
        await when(lambda: 1 in started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await shop.price(2) == "corner 2"

    run(main())
    assert started == [2, 1]
    assert leftovers(cache.directory) == []


# -- storage that fails ----------------------------------------------------------------


@pytest.fixture(params=["unwritable", "unreadable"])
def broken_place(request, tmp_path):
    """Return a cache folder that can't be written, or can't be looked into, also by root."""
    if request.param == "unwritable":
        (tmp_path / "file").touch()
        return tmp_path / "file" / "cache"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path / "loop" / "cache"


def test_a_folder_that_cant_be_used_is_a_storage_error_for_all(broken_place, kind):
    cache = Cache(broken_place)
    kind.may_end.set()

    async def main():
        values = [cache.aget_or_create("key", kind.factory()) for _ in range(4)]
        paths = [
            cache.aget_or_create_path("key", lambda _: kind.factory()(), name="made")
            for _ in range(4)
        ]
        return await asyncio.gather(*values, *paths, return_exceptions=True)

    errors = run(main())
    assert [type(error) for error in errors] == [StorageError] * 8
    assert len({id(error) for error in errors}) == 8
    assert kind.builds == []


def test_a_folder_that_cant_be_used_is_bypassed_if_wished(broken_place, kind):
    cache = Cache(broken_place, on_store_error="bypass")
    kind.may_end.set()

    def build(target):
        target.write_text("built")
        return kind.factory()()

    async def main():
        values = [cache.aget_or_create("key", kind.factory()) for _ in range(4)]
        path = await cache.aget_or_create_path("key", build, name="made")
        return await asyncio.gather(*values), path.read_text()

    assert run(main()) == ([["built"]] * 4, "built")


def test_a_coroutine_that_bypasses_the_cache_can_be_cancelled(broken_place):
    cache = Cache(broken_place, on_store_error="bypass")
    build = Cleaning()

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: build.started)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert build.cleaned == [1]
        return await cache.aget_or_create("key", lambda: "another")

    assert run(main()) == "another"


# -- at every moment -------------------------------------------------------------------


@pytest.mark.parametrize("is_path", [False, True], ids=["value", "path"])
def test_whoever_is_cancelled_after_however_many_turns_the_other_gets_the_value(cache, is_path):
    """The first of two tasks is cancelled after 0, 1, 2... turns of the loop."""
    for turns in range(60):
        running, built = [], []

        async def build(target=None):
            assert not running, "two at the same time"  # noqa: B023
            running.append(1)  # noqa: B023
            try:
                for _ in range(5):
                    await asyncio.sleep(0)
                if target is not None:
                    target.write_text("built")
                built.append(1)  # noqa: B023
                return "built"
            finally:
                running.clear()  # noqa: B023

        async def main(turns):
            def ask():
                if is_path:
                    return cache.aget_or_create_path(turns, build, name="made", durable=False)
                return cache.aget_or_create(turns, build)

            first, second = asyncio.create_task(ask()), asyncio.create_task(ask())
            for _ in range(turns):
                await asyncio.sleep(0.0001 if turns % 2 else 0)
            first.cancel()
            await asyncio.wait([first])
            answer = await second
            return answer.read_text() if is_path else answer

        assert run(main(turns), debug=turns % 2 == 0) == "built"
        assert built == [1], turns
    assert leftovers(cache.directory) == []


def test_a_loop_that_makes_no_task_of_a_factory_is_an_error_and_leaves_nobody_waiting(cache):
    """As one does with a task factory that knows no contexts, as they were before Python 3.11."""

    async def build():
        raise AssertionError("it has no task to run in")

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        asks = [asyncio.ensure_future(cache.aget_or_create("key", build)) for _ in range(2)]
        ended, waiting = await asyncio.wait(asks, timeout=PATIENCE)
        assert not waiting
        return [type(ask.exception()) for ask in ended]

    assert run(main()) == [TypeError] * 2
    assert leftovers(cache.directory) == []


class Rush:
    """Tasks and threads that ask for the same keys and are cancelled at random moments."""

    def __init__(self, cache, journal, seed):
        self.cache = cache
        self.journal = journal
        self.random = random.Random(seed)

    def write(self, line):
        fd = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def alone(self, key):
        """Fail if anybody, in whatever process, builds the same key now."""
        mark = f"{self.journal}.{key}"
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        try:
            yield
        finally:
            os.unlink(mark)

    def value(self, key):
        return [key] * 1000

    def factory(self, key):
        turns, as_coroutine = self.random.randrange(6), self.random.random() < 0.7

        async def coroutine():
            with self.alone(key):
                for _ in range(turns):
                    await asyncio.sleep(0.0005)
                self.write(f"built {key}")
                return self.value(key)

        def function():
            with self.alone(key):
                time.sleep(turns / 2000)
                self.write(f"built {key}")
                return self.value(key)

        return coroutine if as_coroutine else function

    async def canceller(self, task):
        for _ in range(self.random.randrange(8)):
            await asyncio.sleep(self.random.choice([0, 0, 0.0002, 0.002]))
        task.cancel()
        if self.random.random() < 0.2:
            await asyncio.sleep(0)
            task.cancel()

    async def tasks(self, keys):
        kept, doomed, cancelling = [], [], []
        for _ in range(6):
            for key in keys:
                task = asyncio.create_task(self.cache.aget_or_create(key, self.factory(key)))
                if self.random.random() < 0.6:
                    doomed.append(task)
                    cancelling.append(asyncio.create_task(self.canceller(task)))
                else:
                    kept.append((key, task))
            await asyncio.sleep(self.random.choice([0, 0.0005]))
        await asyncio.gather(*cancelling)
        await asyncio.wait(doomed or [asyncio.create_task(asyncio.sleep(0))])
        for task in doomed:
            if not task.cancelled():
                task.result()
        for key, task in kept:
            assert await task == self.value(key), "torn"

    def threads(self, keys):
        for key in keys:

            def function(key=key):
                with self.alone(key):
                    self.write(f"built {key}")
                    return self.value(key)

            assert self.cache.get_or_create(key, function, timeout=LONG) == self.value(key)


def rush(line, cache, journal, seed, rounds):
    """Rush through keys, each round together with the other processes."""
    for number in range(rounds):
        mine = [Rush(cache, journal, f"{seed} {number} {part}") for part in range(3)]
        keys = [f"{number}-{letter}" for letter in "abc"]
        line.tell(number)
        line.hear("go on")
        in_threads(
            lambda: run(mine[0].tasks(keys)),  # noqa: B023
            lambda: run(mine[1].tasks(keys)),  # noqa: B023
            lambda: mine[2].threads(keys),  # noqa: B023
        )
        until(lambda: not flights(cache), "the threads of the library end")
    gc.collect()
    return rounds


def test_in_a_rush_of_cancelled_tasks_no_key_is_built_twice_none_is_torn_nobody_is_stuck(
    crew, cache, tmp_path, thorough
):
    rounds = 200 if thorough else 12
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    journal = str(tmp_path / "journal")
    members = [crew.start(rush, cache, journal, f"{seed} {place}", rounds) for place in range(3)]
    for number in range(rounds):
        for member in members:
            member.hear(number)
        for member in members:
            member.tell("go on")
    assert crew.results() == [rounds] * 3
    with open(journal) as file:
        lines = file.read().split("\n")[:-1]
    assert sorted(lines) == sorted(
        f"built {number}-{letter}" for number in range(rounds) for letter in "abc"
    )
    assert leftovers(cache.directory) == []
