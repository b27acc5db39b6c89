"""Calls that are not awaited on a loop whose tasks build, and loops that nobody runs any more."""

import asyncio
import os
import threading

import pytest

from atomcache import BuildTimeout, Cache, CircularBuildError, _loops, _tasks
from atomcache._claim import living_record

from .crew import leftovers, sleepers, until
from .test_asyncio import (
    LONG,
    asyncio_has_nothing_to_complain_of,
    claim_of,
    hold,
    hold_then_ask,
    never,
    run,
    when,
)

__all__ = ["asyncio_has_nothing_to_complain_of"]  # a fixture

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)


class Building:
    """A task of the running loop that builds a key, and ends on the word."""

    def __init__(self, cache):
        self.may_end = asyncio.Event()
        self.begun = asyncio.Event()
        self.cancelled = 0
        self.task = asyncio.create_task(cache.aget_or_create("key", self._build))

    async def _build(self):
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "by the task"

    async def end(self):
        self.may_end.set()
        return await self.task


def waits_for(cache, key, other):
    """Tell whether the build of a key says that it waits for another one."""
    record = living_record(cache._door, claim_of(cache, key))
    return record is not None and claim_of(cache, other) in record.waits_for


def in_a_thread(step, *given):
    """Begin a step in a thread that is not one of the loop's, which end with the loop."""
    thread = threading.Thread(target=step, args=given, daemon=True)
    thread.start()
    return thread


# -- a call that would stop the loop that has to build ---------------------------------


def test_a_call_that_would_stop_the_loop_that_builds_is_an_error_with_a_remedy(cache):
    async def main():
        building = Building(cache)
        await building.begun.wait()
        with pytest.raises(CircularBuildError, match=r"key.*Await .*asyncio\.to_thread"):
            cache.get_or_create("key", never, timeout=LONG)
        other = cache.get_or_create("other", lambda: "unharmed")
        return await building.end(), other

    assert run(main()) == ("by the task", "unharmed")
    assert leftovers(cache.directory) == []


def test_a_call_that_does_not_wait_times_out_though_its_loop_builds(cache):
    async def main():
        building = Building(cache)
        await building.begun.wait()
        with pytest.raises(BuildTimeout):
            cache.get_or_create("key", never, timeout=0)
        return await building.end()

    assert run(main()) == "by the task"


def test_a_call_that_would_stop_the_loop_is_an_error_also_where_nothing_can_be_stored(tmp_path):
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file" / "cache", on_store_error="bypass")

    async def main():
        building = Building(cache)
        await building.begun.wait()
        with pytest.raises(CircularBuildError):
            cache.get_or_create("key", never, timeout=LONG)
        return await building.end()

    assert run(main()) == "by the task"


def test_a_call_waits_for_what_the_loop_of_another_thread_builds(cache):
    begun, may_end = threading.Event(), threading.Event()

    async def build():
        begun.set()
        await when(may_end.is_set)
        return "by the other loop"

    async def main():
        await when(begun.is_set)
        in_a_thread(lambda: (until(lambda: _loops._asleep), may_end.set()))
        return cache.get_or_create("key", never, timeout=LONG)

    other = in_a_thread(lambda: run(cache.aget_or_create("key", build)))
    assert run(main()) == "by the other loop"
    other.join(LONG)


@pytest.mark.parametrize("first", ["thread", "loop"])
def test_a_circle_through_a_thread_that_waits_for_the_loop_is_an_error(cache, first):
    begun = threading.Event()

    def build():
        begun.set()
        if first == "loop":
            until(lambda: waits_for(cache, "key", "b"), "the loop stands still")
        return cache.get_or_create("key", never, timeout=LONG)

    async def main():
        building = Building(cache)
        await building.begun.wait()
        thread = asyncio.create_task(asyncio.to_thread(cache.get_or_create, "b", build))
        await when(begun.is_set)
        if first == "thread":
            await when(lambda: waits_for(cache, "b", "key"))
        with pytest.raises(CircularBuildError):
            cache.get_or_create("b", never, timeout=LONG)
        await building.end()
        return (await asyncio.gather(thread, return_exceptions=True))[0]

    answer = run(main())
    if first == "thread":  # who found the circle is out of it
        assert answer == "by the task"
    else:
        assert isinstance(answer, CircularBuildError)
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("first", ["process", "loop"])
def test_a_circle_through_a_process_that_waits_for_the_loop_is_an_error(crew, cache, first):
    holder = crew.start(hold_then_ask, cache, "b", "key")
    holder.hear("building")

    def ask_later():
        until(lambda: waits_for(cache, "key", "b"), "the loop stands still")
        holder.tell("ask")

    async def main():
        building = Building(cache)
        await building.begun.wait()
        if first == "process":
            holder.tell("ask")
            await when(lambda: waits_for(cache, "b", "key"))
        else:
            in_a_thread(ask_later)
        with pytest.raises(CircularBuildError):
            cache.get_or_create("b", never, timeout=LONG)
        await building.end()

    run(main())
    if first == "process":
        assert holder.result() == "by the task"
    else:
        assert "would never end" in holder.result()
    assert leftovers(cache.directory) == []


def test_a_builder_is_known_to_wait_only_while_its_loop_does(crew, cache):
    holder = crew.start(hold, cache, "b")
    holder.hear("building")

    def go_on():
        until(lambda: waits_for(cache, "key", "b"), "the loop stands still")
        holder.tell("go on")

    async def main():
        building = Building(cache)
        await building.begun.wait()
        in_a_thread(go_on)
        assert cache.get_or_create("b", never, timeout=LONG) == ("held", "b")
        assert not waits_for(cache, "key", "b")
        return await building.end()

    assert run(main()) == "by the task"
    assert (_loops._asleep, _loops._needed) == ([], {})


def test_a_coroutine_is_not_begun_on_a_loop_that_waits_for_it(crew, cache):
    holder = crew.start(hold, cache, "key")
    holder.hear("building")

    def kill_later():
        until(lambda: _loops._asleep, "the loop stands still")
        holder.kill()

    async def build():
        raise AssertionError("it can't run before the call is over")

    async def main():
        task = asyncio.create_task(cache.aget_or_create("key", build))
        await when(lambda: sleepers(claim_of(cache)) == 1)
        in_a_thread(kill_later)
        answer = cache.get_or_create("key", lambda: "by the call", timeout=LONG)
        return answer, await task

    assert run(main()) == ("by the call", "by the call")
    assert leftovers(cache.directory) == []


# -- loops that nobody runs any more ---------------------------------------------------


def test_what_a_stopped_loop_builds_is_built_by_who_asks_and_found_by_its_task(cache, monkeypatch):
    monkeypatch.setattr(_tasks, "_LOOK_AT_LOOP", 0.01)

    async def begin():
        building = Building(cache)
        await building.begun.wait()
        return building

    loop = asyncio.new_event_loop()
    building = loop.run_until_complete(begin())
    assert cache.get_or_create("key", lambda: "by the call", timeout=LONG) == "by the call"
    assert leftovers(cache.directory) == []
    assert loop.run_until_complete(building.task) == "by the call"
    assert building.cancelled == 1
    loop.close()


@pytest.mark.parametrize("moment", ["last turn", "stopped"])
def test_a_coroutine_that_a_stopped_loop_has_not_begun_is_never_begun(cache, monkeypatch, moment):
    """It is to begin when the loop stops: in its last turn, or later."""
    monkeypatch.setattr(_tasks, "_LOOK_AT_LOOP", 0.01)
    called, stopped, begun = threading.Event(), threading.Event(), []

    async def build():
        begun.append(1)

    def factory():
        called.set()
        assert moment == "last turn" or stopped.wait(LONG)
        return build()

    async def begin():
        task = asyncio.create_task(cache.aget_or_create("key", factory))
        await asyncio.sleep(0)
        assert called.wait(LONG)  # without a turn of the loop
        if moment == "last turn":
            until(lambda: loop._ready, "the thread wants the loop to begin it")
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    stopped.set()
    assert cache.get_or_create("key", lambda: "by the call", timeout=LONG) == "by the call"
    assert loop.run_until_complete(task) == "by the call"
    assert begun == [], "begun after it was given up"
    loop.close()


def test_a_loop_that_is_turned_now_and_then_does_not_stand_still():
    async def nothing():
        return None

    loop = asyncio.new_event_loop()
    making = _tasks._Making(loop, nothing())
    for _ in range(4 * _tasks._STANDSTILL):
        assert not making._stands_still()
        loop.run_until_complete(asyncio.sleep(0))
    assert [making._stands_still() for _ in range(_tasks._STANDSTILL + 2)][-1]
    making._making.close()
    loop.close()
