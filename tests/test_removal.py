"""What is removed stays removed, and what is refreshed is never missing."""

import asyncio
import contextlib
import errno
import gc
import os
import sys
import threading
from itertools import count

import pytest

from atomcache import Cache, DontStore, OptionError, StorageError, _claim, current_build
from atomcache._door import Door
from atomcache._flight import Flight
from atomcache._keys import digest

from .crew import PATIENCE, leftovers, sleepers, until
from .test_freshness import (
    ALL,
    SYNC,
    AsyncValue,
    Clock,
    File,
    Folder,
    Gate,
    Maker,
    Value,
    in_threads,
    name_of,
)

needs_locks = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)
each_kind = pytest.mark.parametrize("kind", ALL, ids=name_of)
each_sync_kind = pytest.mark.parametrize("kind", SYNC, ids=name_of)

WAYS = {
    "remove": lambda cache: cache.remove("key"),
    "tagged": lambda cache: cache.remove_tagged("tag"),
    "clear": lambda cache: cache.clear(),
}
each_way = pytest.mark.parametrize("way", WAYS)
TAGGED = {"tags": ["tag"]}


@pytest.fixture
def cache(tmp_path):
    cache = Cache(tmp_path / "cache", durable=False)
    yield cache
    until(lambda: not cache._protocol.flights._flights, "every build ends")


def claim_of(cache, kind):
    return cache._layout.entry(digest(kind.letter, "key")) + ".temp"


# -- removal in every phase of a build -----------------------------------------------------


class Meddler(Door):
    """The real door, at one call of which somebody else does something.

    Parameters
    ----------
    number
        Of the call, from 0, among those that the test's own thread makes while armed.
    after
        Whether it is done after the call or before it.
    """

    STEPS = (
        "open",
        "close",
        "read",
        "write",
        "fstat",
        "stat",
        "lstat",
        "link",
        "rename",
        "replace",
        "exchange",
        "unlink",
        "mkdir",
        "listdir",
        "utime",
        "lseek",
        "lock_exclusive",
        "unlock",
        "close_kept",
        "remove_tree",
        "start_heartbeat",
        "stop_heartbeat",
    )
    upkeep = False  # whose calls come after the entry is there, and have nothing to do with it

    def __init__(self, number, after, *, can_exchange) -> None:
        super().__init__()
        self.number = number
        self.after = after
        self.can_exchange = can_exchange
        self.calls = []
        self.meddle = None
        for name in self.STEPS:
            setattr(self, name, self._step(name, getattr(self, name)))

    def exchange(self, one, other):
        if not self.can_exchange:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), one)
        super().exchange(one, other)

    def _step(self, name, function):
        def call(*args, **options):
            if self.meddle is None:
                return function(*args, **options)
            self.calls.append(name)
            if len(self.calls) - 1 != self.number:
                return function(*args, **options)
            meddle, self.meddle = self.meddle, None
            if not self.after:
                meddle()
            try:
                return function(*args, **options)
            finally:
                if self.after:
                    meddle()

        return call


def one_removal(folder, kind, way, number, after, *, old, can_exchange):
    """Remove at one call of a build; return what is wrong then, or `None` if it has fewer."""
    door = Meddler(number, after, can_exchange=can_exchange)
    cache = Cache(folder, durable=False)
    cache._open(door)
    other = Cache(folder, durable=False)
    if old:
        kind.get(other, lambda: "before", **TAGGED)
    removed = []
    builds = []

    def make():
        builds.append("begun after" if removed else "begun before")
        return f"{builds[-1]}, {len(builds)}"

    def meddle():
        published = kind.peek(other) not in (None, "before")
        WAYS[way](other)
        removed.append(published)

    door.meddle = meddle
    try:
        got = kind.refresh(cache, make, **TAGGED) if old else kind.get(cache, make, **TAGGED)
    except FileNotFoundError:  # of a path that was published and removed before it was read
        assert kind.letter == b"p"
        assert removed == [True]
        got = builds[-1]
    door.meddle = None
    if not removed:
        return None
    where = f" {'after' if after else 'before'} call {number}, {door.calls[-3:]}"
    wrong = []
    if not got.startswith("begun"):
        wrong.append(f"its caller got {got!r}")
    kept = kind.peek(cache)
    if kept is not None and not kept.startswith("begun after"):
        wrong.append(f"there is {kept!r}")
    if len(builds) > 2:
        wrong.append(f"there were {len(builds)} builds")
    left = leftovers(folder)
    if left:
        wrong.append(f"left over is {[os.path.basename(each)[40:] for each in left]}")
    asked = kind.get(other, lambda: "begun after, asked", **TAGGED)
    if not asked.startswith("begun after"):
        wrong.append(f"who asked then got {asked!r}")
    return [each + where for each in wrong]


@each_way
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("old", "can_exchange"),
    [(False, True), (True, True), (True, False)],
    ids=["first", "refresh", "refresh without exchange"],
)
@each_sync_kind
def test_at_whatever_call_of_a_build_the_entry_is_removed_it_does_not_come_back(
    tmp_path, kind, way, after, old, can_exchange
):
    complaints = []
    for number in count():
        place = tmp_path / str(number)
        wrong = one_removal(place, kind, way, number, after, old=old, can_exchange=can_exchange)
        if wrong is None:
            break
        complaints += wrong
    assert number > 20, "there is more than that to be done for a build"
    assert complaints == []


# -- removal while others build, wait and ask ---------------------------------------------


def build_when_told(line, cache, kind, options):
    """Ask; as builder, say so and wait for what to make, or for an error."""

    def make():
        line.tell("building")
        word = line.hear()
        if word == "fail":
            raise ConnectionError(f"raised by {os.getpid()}")
        return word

    return kind.get(cache, make, **options)


@needs_locks
@each_way
@each_kind
def test_a_build_that_began_before_a_removal_is_its_callers_and_nobody_elses(
    crew, cache, kind, way
):
    builder = crew.start(build_when_told, cache, kind, TAGGED)
    builder.hear("building")
    waiter = crew.start(build_when_told, cache, kind, TAGGED)
    until(lambda: sleepers(claim_of(cache, kind)) == 1, "one waits")
    WAYS[way](cache)
    late = crew.start(build_when_told, cache, kind, TAGGED)
    until(lambda: sleepers(claim_of(cache, kind)) == 2, "two wait")
    builder.tell("begun before")
    assert builder.result() == "begun before"
    next_one = crew.first_to_speak([waiter, late])
    next_one.hear("building")
    assert kind.peek(cache) is None
    next_one.tell("begun after")
    assert [waiter.result(), late.result()] == ["begun after"] * 2
    assert kind.peek(cache) == "begun after"
    for member in crew.members:
        member.process.join(PATIENCE)
    assert leftovers(cache.directory) == []


@needs_locks
@each_way
@pytest.mark.parametrize("kind", [Value(), AsyncValue(), Folder()], ids=name_of)
def test_who_asks_after_a_removal_is_not_told_the_error_of_an_earlier_build(
    crew, cache, kind, way
):
    builder = crew.start(build_when_told, cache, kind, TAGGED)
    builder.hear("building")
    WAYS[way](cache)
    late = crew.start(build_when_told, cache, kind, TAGGED)
    until(lambda: sleepers(claim_of(cache, kind)) == 1, "the late one waits")
    builder.tell("fail")
    with pytest.raises(ConnectionError):
        builder.result()
    late.hear("building")
    late.tell("begun after")
    assert late.result() == "begun after"


@needs_locks
@each_way
@pytest.mark.parametrize("kind", [Value(), Folder()], ids=name_of)
def test_when_the_builder_is_killed_after_a_removal_another_builds_anew(crew, cache, kind, way):
    builder = crew.start(build_when_told, cache, kind, TAGGED)
    builder.hear("building")
    WAYS[way](cache)
    late = crew.start(build_when_told, cache, kind, TAGGED)
    until(lambda: sleepers(claim_of(cache, kind)) == 1, "the late one waits")
    builder.kill()
    late.hear("building")
    late.tell("begun after")
    assert late.result() == "begun after"
    assert kind.peek(cache) == "begun after", "nobody has removed this one"
    late.process.join(PATIENCE)
    assert leftovers(cache.directory) == []


class Turns:
    """A factory whose first call waits for the word and whose later ones don't."""

    def __init__(self, first="begun before") -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.first = first
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls > 1:
            return "begun after"
        self.began.set()
        assert self.go_on.wait(PATIENCE)
        if isinstance(self.first, Exception):
            raise self.first
        return self.first


def frames():
    """Return what each thread of this process is at.

    Before Python 3.12 a collection of garbage in the midst of it stops the process for ever
    (python/cpython#106883).
    """
    gc.disable()
    try:
        return sys._current_frames().values()
    finally:
        gc.enable()


def somebody_waits(cache, kind):
    """Return once a thread or task waits for a build, of its own process or of any."""

    def found():
        flight = cache._protocol.flights._flights.get(claim_of(cache, kind)[: -len(".temp")])
        return (
            sleepers(claim_of(cache, kind))
            or (flight is not None and flight.bells)
            or any(frame.f_code is Flight.wait.__code__ for frame in frames())
        )

    until(found, "somebody waits")


@needs_locks
@pytest.mark.parametrize("own", [True, False], ids=["this cache", "another cache object"])
@each_way
@each_kind
def test_a_thread_that_asks_after_a_removal_gets_what_was_begun_after_it(cache, kind, way, own):
    turns = Turns()
    late = []

    def ask():
        return kind.get(cache, turns, **TAGGED)

    def ask_late():
        assert turns.began.wait(PATIENCE)
        WAYS[way](cache if own else Cache(cache.directory))
        thread = threading.Thread(target=lambda: late.append(ask()))
        thread.start()
        somebody_waits(cache, kind)
        turns.go_on.set()
        thread.join(PATIENCE)

    assert in_threads(ask, ask_late)[0] == "begun before"
    assert late == ["begun after"]
    assert kind.peek(cache) == "begun after"
    assert turns.calls == 2
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.parametrize("change", ["reap", "clear", "remove_tagged"])
def test_something_strange_in_a_claims_place_keeps_nothing_else_from_going(cache, kind, change):
    cache.get_or_create("key", lambda: "made", tags=["t"])
    strange = cache._layout.entry(bytes(range(20))) + ".temp"
    os.makedirs(os.path.dirname(strange), exist_ok=True)
    if kind == "folder":
        os.mkdir(strange)
    elif kind == "link":
        os.symlink(strange, strange)
    else:
        os.mkfifo(strange)
    orphan = cache._layout.new_scratch(cache._layout.entry(digest(b"v", "key")))
    with open(orphan, "w"):
        pass
    with contextlib.suppress(StorageError):
        cache.remove_tagged("t") if change == "remove_tagged" else getattr(cache, change)()
    assert list(cache.builds()) == []
    if change == "reap":
        assert not os.path.exists(orphan)
    else:
        assert "key" not in cache


def test_a_removal_is_seen_however_much_the_builder_has_said(cache):
    def factory():
        for number in range(2000):
            current_build().tag("a tag of many letters " * 30 + str(number))
        Cache(cache.directory).remove("key")
        return "made"

    assert cache.get_or_create("key", factory) == "made"
    assert "key" not in cache


@needs_locks
@pytest.mark.parametrize("first", ["error", "not kept"])
@pytest.mark.parametrize("own", [True, False], ids=["this cache", "another cache object"])
@each_way
@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "task"])
def test_a_removal_also_ends_what_is_not_kept_anyway(cache, way, own, first, is_async):
    error = ConnectionError("down") if first == "error" else DontStore("begun before")
    turns = Turns(error)
    kind = AsyncValue() if is_async else Value()
    late = []

    def ask():
        with contextlib.suppress(ConnectionError):
            return kind.get(cache, turns, **TAGGED)
        return "begun before"

    def ask_late():
        assert turns.began.wait(PATIENCE)
        WAYS[way](cache if own else Cache(cache.directory))
        thread = threading.Thread(target=lambda: late.append(ask()))
        thread.start()
        somebody_waits(cache, kind)
        turns.go_on.set()
        thread.join(PATIENCE)

    assert in_threads(ask, ask_late)[0] == "begun before"
    assert late == ["begun after"]


@each_way
def test_a_task_that_asks_after_a_removal_gets_what_was_begun_after_it(cache, way):
    async def main():
        began, go_on = asyncio.Event(), asyncio.Event()
        calls = []

        async def make():
            calls.append(1)
            if len(calls) > 1:
                return "begun after"
            began.set()
            await go_on.wait()
            return "begun before"

        async with asyncio.timeout(PATIENCE):
            first = asyncio.create_task(cache.aget_or_create("key", make, **TAGGED))
            await began.wait()
            await asyncio.to_thread(WAYS[way], cache)
            late = [
                asyncio.create_task(cache.aget_or_create("key", make, **TAGGED)) for _ in range(5)
            ]
            for _ in range(5):
                await asyncio.sleep(0)
            go_on.set()
            assert await first == "begun before"
            assert await asyncio.gather(*late) == ["begun after"] * 5
        return len(calls)

    assert asyncio.run(main()) == 2
    assert cache.get("key") == "begun after"
    assert leftovers(cache.directory) == []


@each_way
@each_sync_kind
def test_a_refresh_that_began_before_a_removal_does_not_bring_anything_back(cache, kind, way):
    turns = Turns()
    kind.get(cache, lambda: "old", **TAGGED)

    def remove():
        assert turns.began.wait(PATIENCE)
        WAYS[way](cache)
        assert kind.peek(cache) is None
        turns.go_on.set()

    got, _ = in_threads(lambda: kind.refresh(cache, turns, **TAGGED), remove)
    assert got == "begun before"
    assert kind.peek(cache) is None
    assert list(cache.entries()) == []
    assert leftovers(cache.directory) == []


@needs_locks
@each_way
@each_sync_kind
def test_a_build_in_the_background_does_not_bring_back_what_is_removed(cache, kind, way):
    clock = Clock()
    cache._open(clock)
    options = {"max_age": 60, "stale_for": 60, **TAGGED}
    kind.get(cache, lambda: "old", **options)
    clock.go_on(90)
    gate = Gate("begun before")
    assert kind.get(cache, gate, **options) == "old"
    assert gate.began.acquire(timeout=PATIENCE)
    WAYS[way](cache)
    late = []
    asking = threading.Thread(
        target=lambda: late.append(kind.get(cache, lambda: "begun after", **options))
    )
    asking.start()
    somebody_waits(cache, kind)
    gate.open.set()
    asking.join(PATIENCE)
    assert late == ["begun after"]
    assert kind.peek(cache) == "begun after"


@each_way
def test_after_a_removal_nothing_old_is_served_for_an_error_or_a_timeout(cache, way):
    clock = Clock()
    cache._open(clock)
    options = {"max_age": 60, "stale_for": 600, "stale_on_error": 600, "retry_after": 600}
    make = Maker()
    cache.get_or_create("key", make, **options, **TAGGED)
    clock.go_on(90)
    make.error = ConnectionError("down")
    assert cache.get_or_create("key", make, **options, **TAGGED) == "1"
    until(lambda: not cache._protocol.flights._flights, "it fails")
    WAYS[way](cache)
    with pytest.raises(ConnectionError):
        cache.get_or_create("key", make, **options, **TAGGED)
    make.error = None
    assert cache.get_or_create("key", make, **options, **TAGGED) == str(make.made)


# -- what is meant by a tag ----------------------------------------------------------------


@each_kind
def test_a_build_that_tags_itself_is_removed_by_that_tag(cache, kind):
    def make():
        current_build().tag("said")
        in_threads(lambda: Cache(cache.directory).remove_tagged("said"))
        return "made"

    assert kind.get(cache, make, **TAGGED) == "made"
    assert kind.peek(cache) is None


@each_kind
def test_a_build_that_gives_a_tag_after_its_removal_is_not_kept(cache, kind):
    def make():
        in_threads(lambda: Cache(cache.directory).remove_tagged("said"))
        current_build().tag("said")
        return "made"

    assert kind.get(cache, make, **TAGGED) == "made"
    assert kind.peek(cache) is None
    assert leftovers(cache.directory) == []


@each_kind
def test_who_waits_for_a_build_that_gives_a_tag_after_its_removal_builds_anew(crew, cache, kind):
    builder = crew.start(tag_late, cache, kind)
    builder.hear("building")
    assert cache.remove_tagged("said") == 0
    builder.tell("go on")
    assert kind.get(cache, lambda: "begun after") == "begun after"
    assert builder.result() == "begun before"
    assert kind.peek(cache) == "begun after"


def tag_late(line, cache, kind):
    def make():
        line.tell("building")
        line.hear("go on")
        current_build().tag("said")
        return "begun before"

    return kind.get(cache, make, **TAGGED)


@each_sync_kind
def test_at_whatever_call_of_a_build_a_late_tag_is_removed_it_does_not_come_back(tmp_path, kind):
    for number, after in ((call, after) for call in count() for after in (False, True)):
        cache = Cache(tmp_path / f"{number}{after}", durable=False)
        door = Meddler(number, after, can_exchange=True)
        cache._open(door)
        other = Cache(cache.directory, durable=False)
        removed = []

        def make(removed=removed):
            began_before = not removed
            current_build().tag("said")
            return "before" if began_before else "after"

        def meddle(other=other, removed=removed):
            removed.append(other.remove_tagged("said"))

        door.meddle = meddle
        with contextlib.suppress(FileNotFoundError):  # published and removed before it is read
            kind.get(cache, make, **TAGGED)
        door.meddle = None
        if not removed:
            break
        assert kind.peek(cache) in (None, "after"), door.calls
        assert leftovers(cache.directory) == []
    assert number > 20


def test_a_build_that_is_told_of_very_many_tags_is_given_up_and_not_its_removal(
    cache, monkeypatch
):
    monkeypatch.setattr(_claim, "_CROWDED", 2000)

    def make():
        other = Cache(cache.directory)
        in_threads(lambda: [other.remove_tagged(f"tag {number}") for number in range(200)])
        assert os.stat(claim_of(cache, Value())).st_size < 3000
        current_build().tag("tag 199")
        return "made"

    assert cache.get_or_create("key", make) == "made"
    assert cache.get("key") is None


@each_kind
def test_builds_and_entries_with_other_tags_are_left_alone(cache, kind):
    def make():
        current_build().tag("said")
        assert in_threads(lambda: Cache(cache.directory).remove_tagged("other")) == [1]
        assert in_threads(lambda: Cache(cache.directory).remove_tagged("sai")) == [0]
        assert in_threads(lambda: Cache(cache.directory).remove("another key")) == [True]
        return "made"

    cache.set("another key", 1)
    cache.set("other", 1, tags=["other", "more"])
    assert kind.get(cache, make, **TAGGED) == "made"
    assert kind.peek(cache) == "made"


def test_removals_tell_how_many_there_were(cache):
    for number in range(3):
        cache.set(number, number, tags=["tag"])
        File().get(cache, str, tags=["tag", "file"])
    assert cache.remove_tagged("file") == 1
    assert cache.remove_tagged("tag") == 3
    assert cache.remove_tagged("tag") == 0
    cache.set("key", 1)
    File().get(cache, str)
    assert cache.remove("key") is True
    assert cache.remove("key") is False
    cache.set("key", 1)
    File().get(cache, str)
    assert cache.clear() == 2
    assert cache.clear() == 0


@pytest.mark.parametrize("tag", ["", None, 5, b"tag", ["tag"]], ids=repr)
def test_a_tag_that_is_none_is_an_option_error(cache, tag):
    with pytest.raises(OptionError, match="tag"):
        cache.remove_tagged(tag)


# -- refresh -------------------------------------------------------------------------------


@each_sync_kind
def test_until_a_refresh_is_done_everybody_else_gets_the_old_one(cache, kind):
    turns = Turns("new")
    kind.get(cache, lambda: "old")

    def look():
        assert turns.began.wait(PATIENCE)
        seen = [kind.get(cache, turns), kind.peek(cache), kind.get(Cache(cache.directory), turns)]
        turns.go_on.set()
        return seen

    assert in_threads(lambda: kind.refresh(cache, turns), look) == ["new", ["old"] * 3]
    assert kind.get(cache, turns) == "new"
    assert turns.calls == 1


@each_sync_kind
def test_a_refresh_makes_what_is_not_there_yet(cache, kind):
    assert kind.refresh(cache, lambda: "new") == "new"
    assert kind.peek(cache) == "new"


@needs_locks
@each_sync_kind
def test_a_refresh_is_not_content_with_a_build_that_began_before_it(cache, kind):
    turns = Turns()

    def refresh():
        assert turns.began.wait(PATIENCE)
        thread_answer = []
        thread = threading.Thread(target=lambda: thread_answer.append(kind.refresh(cache, turns)))
        thread.start()
        somebody_waits(cache, kind)
        turns.go_on.set()
        thread.join(PATIENCE)
        return thread_answer

    got, refreshed = in_threads(lambda: kind.get(cache, turns), refresh)
    if kind.letter == b"v":  # what stands at a path may be the next one by the time it is read
        assert got == "begun before"
    assert refreshed == ["begun after"]
    assert kind.peek(cache) == "begun after"
    assert turns.calls == 2


def refresh_when_told(line, cache, kind):
    def make():
        line.tell("building")
        line.hear("go on")
        return f"by {os.getpid()}"

    return kind.refresh(cache, make)


@needs_locks
@pytest.mark.parametrize("kind", [Value(), Folder()], ids=name_of)
def test_of_those_who_refresh_at_once_no_more_build_than_have_to(crew, cache, kind):
    kind.get(cache, lambda: "old")
    first = crew.start(refresh_when_told, cache, kind)
    first.hear("building")
    others = [crew.start(refresh_when_told, cache, kind) for _ in range(4)]
    until(lambda: sleepers(claim_of(cache, kind)) == 4, "the others wait")
    first.tell("go on")
    assert first.result() == f"by {first.pid}"
    second = crew.first_to_speak(others)  # the first began before they asked
    second.hear("building")
    until(lambda: sleepers(claim_of(cache, kind)) == 3, "the others wait again")
    second.tell("go on")
    assert [each.result() for each in others] == [f"by {second.pid}"] * 4


@each_sync_kind
def test_a_refresh_that_fails_leaves_what_was_there(cache, kind):
    def fail():
        raise ConnectionError("down")

    kind.get(cache, lambda: "old")
    with pytest.raises(ConnectionError):
        kind.refresh(cache, fail)
    assert kind.peek(cache) == "old"
    assert leftovers(cache.directory) == []


@each_sync_kind
def test_a_refresh_whose_builder_is_killed_leaves_what_was_there(crew, cache, kind):
    kind.get(cache, lambda: "old")
    builder = crew.start(refresh_when_told, cache, kind)
    builder.hear("building")
    builder.kill()
    assert kind.peek(cache) == "old"
    assert kind.refresh(cache, lambda: "new") == "new"
    assert leftovers(cache.directory) == []


def test_decorated_functions_and_coroutines_can_be_refreshed_and_forgotten(cache):
    made = []

    @cache.memoize
    def tally(n):
        made.append(n)
        return len(made)

    @cache.memoize
    async def atally(n):
        made.append(n)
        return len(made)

    assert [tally(1), tally.refresh(1), tally(1)] == [1, 2, 2]
    assert tally.forget(1) is True
    assert tally(1) == 3

    async def main():
        return [await atally(1), await atally.refresh(1), await atally(1)]

    assert asyncio.run(main()) == [4, 5, 5]


READS = 300


def content(number):
    return f"{number:04}" * 5000


def read_strictly(line, path, stop):
    """Open a path again and again; return how often it was seen whole and torn."""
    path = str(path)
    whole = torn = missing = 0
    latest = 0
    while not os.path.exists(stop):
        try:
            with open(path) as file:
                text = file.read()
        except FileNotFoundError:
            missing += 1
            continue
        number = int(text[:4] or 0)
        if text == content(number) and number >= latest:
            if not whole:
                line.tell("reading")
            whole += 1
            latest = number
        else:
            torn += 1
    if missing:
        raise FileNotFoundError(f"missing {missing} times, seen {whole} times")
    return whole, torn


def refresh_often(cache, kind, times):
    def refresh(number):
        def build(target):
            if isinstance(kind, Folder):
                target.mkdir()
                target = target / "part"
            target.write_text(content(number))

        return cache.refresh_path("key", build, name="made")

    path = refresh(0)
    yield path / "part" if isinstance(kind, Folder) else path
    for number in range(1, times):
        refresh(number)


@pytest.mark.skipif(not os.path.exists("/proc"), reason="exchange is tried on Linux only")
@pytest.mark.parametrize("kind", [File(), Folder()], ids=name_of)
def test_a_path_that_is_refreshed_is_never_missing_nor_torn(crew, cache, tmp_path, kind):
    refreshing = refresh_often(cache, kind, READS)
    path = next(refreshing)
    stop = tmp_path / "stop"
    reader = crew.start(read_strictly, path, stop)
    reader.hear("reading")
    for _ in refreshing:
        pass
    stop.touch()
    whole, torn = reader.result()
    assert torn == 0
    assert whole > 0
    assert path.read_text() == content(READS - 1)
    assert leftovers(cache.directory) == []


class NoExchange(Door):
    """A door to a filesystem where two names can't change places."""

    def exchange(self, one, other):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), one)


def ask_in_a_loop(line, cache, stop):
    """Ask the cache for a path that others refresh; whoever finds none builds one."""
    cache._open(NoExchange())
    asked = 0
    while not os.path.exists(stop):
        path = cache.get_or_create_path(
            "key", lambda target: target.write_text(content(9999)), name="made"
        )
        asked += path.name == "made"
        if asked == 1:
            line.tell("asking")
    return asked


def test_where_names_can_not_be_exchanged_a_refresh_comes_out_right(crew, cache, tmp_path):
    cache._open(NoExchange())
    refreshing = refresh_often(cache, File(), 100)
    path = next(refreshing)
    stop = tmp_path / "stop"
    reader = crew.start(read_in_pieces, path, stop)
    asker = crew.start(ask_in_a_loop, cache, stop)
    reader.hear("reading")
    asker.hear("asking")
    for _ in refreshing:
        pass
    stop.touch()
    assert reader.result()
    assert asker.result() > 0
    assert cache.refresh_path(
        "key", lambda target: target.write_text(content(100)), name="made"
    ).read_text() == content(100)
    for member in crew.members:
        member.process.join(PATIENCE)
    assert leftovers(cache.directory) == []


def read_in_pieces(line, path, stop):
    """Read a path that may be missing for a moment; it must never be torn."""
    line.tell("reading")
    while not os.path.exists(stop):
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            text = file.read()
            assert text == content(int(text[:4])), "torn"
    return True


@pytest.mark.parametrize("kind", [File(), Folder()], ids=name_of)
def test_a_file_that_is_open_stays_what_it_was(cache, kind):
    kind.get(cache, lambda: "old")
    path = cache.get_path("key")
    with open(path / "part" if isinstance(kind, Folder) else path) as file:
        kind.refresh(cache, lambda: "new")
        assert file.read() == "old"
        file.seek(0)
        cache.remove("key")
        assert file.read() == "old"


# -- in crowds -----------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("kind", [Value(), File()], ids=name_of)
def test_in_a_crowd_nobody_gets_what_was_removed_before_they_asked(
    crew, cache, tmp_path, kind, way
):
    """The world changes, then the entry is removed, then that is said; who asks then sees it."""
    world, said = tmp_path / "world", tmp_path / "said"
    for each in (world, said):
        each.write_text("0")
    stop = tmp_path / "stop"
    askers = [crew.start(compare_often, cache, kind, world, said, stop) for _ in range(3)]
    for asker in askers:
        asker.hear("asking")
    for number in range(1, 100):
        write_whole(world, str(number))
        WAYS[way](cache)
        write_whole(said, str(number))
    stop.touch()
    assert [asker.result() for asker in askers] == [[]] * 3
    for asker in askers:
        asker.process.join(PATIENCE)
    assert leftovers(cache.directory) == []


def write_whole(path, text):
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    os.replace(new, path)


def compare_often(line, cache, kind, world, said, stop):
    """Ask often; return the answers that were older than what had been said before."""
    line.tell("asking")
    wrong = []
    while not stop.exists():
        least = int(said.read_text())
        try:
            got = int(kind.get(cache, world.read_text, **TAGGED))
        except FileNotFoundError:  # the path was removed between its being had and being read
            assert kind.letter == b"p"
            continue
        if got < least:
            wrong.append((got, least))
    return wrong


# -- where nothing can be changed ----------------------------------------------------------


class ReadOnly(Door):
    """A door to a filesystem that can only be read, once told so."""

    read_only = False

    def _check(self, path):
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def open(self, path, flags, mode=0o777):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            self._check(path)
        return os.open(path, flags, mode)

    def rename(self, old, new):
        self._check(old)
        os.rename(old, new)

    def unlink(self, path):
        self._check(path)
        os.unlink(path)

    def remove_tree(self, path):
        if os.path.lexists(path):
            self._check(path)
        super().remove_tree(path)


@each_way
@each_sync_kind
def test_on_a_read_only_cache_a_removal_is_an_error_and_nothing_hangs(tmp_path, kind, way):
    door = ReadOnly()
    cache = Cache(tmp_path / "cache", durable=False)
    cache._open(door)
    kind.get(cache, lambda: "old", **TAGGED)
    door.read_only = True
    with pytest.raises(StorageError) as caught:
        WAYS[way](cache)
    assert caught.value.errno == errno.EROFS
    with pytest.raises(StorageError):
        kind.refresh(cache, lambda: "new")
    assert kind.refresh(cache, lambda: "new", on_store_error="bypass") == "new"
    assert kind.peek(cache) == "old"
    door.read_only = False
    assert WAYS[way](cache)
    assert kind.peek(cache) is None


@each_way
def test_where_there_is_no_cache_yet_there_is_nothing_to_remove(tmp_path, way):
    cache = Cache(tmp_path / "cache")
    assert not WAYS[way](cache)
    assert not (tmp_path / "cache").exists()
