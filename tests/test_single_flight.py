"""One builder for all who ask, whatever happens to it."""

import contextlib
import os
import signal
import threading

import pytest

from atomcache import (
    BuildFailedError,
    BuildTimeout,
    Cache,
    CircularBuildError,
    RemoteTraceback,
)
from atomcache._door import Door
from atomcache._flight import Flight
from atomcache._keys import digest

from .crew import PATIENCE, leftovers, sleepers, until

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)


def claim_of(cache, key="key", kind=b"v"):
    return cache._layout.entry(digest(kind, key)) + ".temp"


def ask(line, cache, key="key", **options):
    """Ask for a value; as builder, say so and wait for the word."""

    def factory():
        line.tell("building")
        line.hear("go on")
        return ("built by", os.getpid())

    return cache.get_or_create(key, factory, **options)


def ask_path(line, cache, as_folder):
    def build(target):
        line.tell("building")
        if as_folder:
            target.mkdir()
            target = target / "inside"
        target.write_text("half")
        line.hear("go on")
        target.write_text(f"whole, by {os.getpid()}")

    path = cache.get_or_create_path("key", build, name="made")
    return (path / "inside" if as_folder else path).read_text()


def start_and_sleep(crew, cache, number, function=ask, *args, **kind):
    """Start a builder and `number` others; return when all of these sleep."""
    builder = crew.start(function, cache, *args)
    builder.hear("building")
    waiters = [crew.start(function, cache, *args) for _ in range(number)]
    claim = claim_of(cache, **kind)
    until(lambda: sleepers(claim) == number, "all waiters sleep")
    return builder, waiters


def test_of_32_processes_one_builds_and_all_get_the_same(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 31)
    builder.tell("go on")
    answers = crew.results()
    assert answers == [("built by", builder.pid)] * 32
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_nobody_sees_a_path_before_it_is_whole(crew, cache, as_folder):
    builder, waiters = start_and_sleep(crew, cache, 7, ask_path, as_folder, kind=b"p")
    assert cache.get_path("key") is None
    builder.tell("go on")
    assert crew.results() == [f"whole, by {builder.pid}"] * 8
    assert leftovers(cache.directory) == []


@pytest.mark.parametrize("reap", [True, False], ids=["reaped", "zombie"])
def test_when_the_builder_is_killed_another_takes_over(crew, cache, reap):
    builder, waiters = start_and_sleep(crew, cache, 8)
    builder.kill(reap=reap)
    heir = crew.first_to_speak(waiters)
    heir.hear("building")
    until(lambda: sleepers(claim_of(cache)) == 7, "the others sleep again")
    heir.tell("go on")
    assert [each.result() for each in waiters] == [("built by", heir.pid)] * 8
    assert leftovers(cache.directory) == []


def test_a_killed_path_builder_leaves_nothing_behind(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 3, ask_path, True, kind=b"p")
    builder.kill()
    heir = crew.first_to_speak(waiters)
    heir.hear("building")
    heir.tell("go on")
    assert [each.result() for each in waiters] == [f"whole, by {heir.pid}"] * 3
    assert leftovers(cache.directory) == []


def test_builders_killed_one_after_another_are_each_replaced(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 5)
    while waiters:
        builder.kill()
        builder = crew.first_to_speak(waiters)
        builder.hear("building")
        waiters.remove(builder)
    builder.tell("go on")
    assert builder.result() == ("built by", builder.pid)
    assert leftovers(cache.directory) == []


def test_a_stopped_builder_is_alive_and_is_waited_for(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 3)
    os.kill(builder.pid, signal.SIGSTOP)
    with pytest.raises(BuildTimeout, match=str(builder.pid)):
        cache.get_or_create("key", lambda: "a second build", timeout=0.05)
    os.kill(builder.pid, signal.SIGCONT)
    builder.tell("go on")
    assert crew.results() == [("built by", builder.pid)] * 4


class OddError(Exception):
    """An error whose state is not in its arguments."""

    def __init__(self, code):
        super().__init__(f"code {code}")
        self.code = code


def fail(line, cache, **options):
    def factory():
        line.tell("building")
        line.hear("go on")
        raise OddError(7)

    return cache.get_or_create("key", factory, **options)


def test_everybody_who_waits_gets_the_factorys_error_and_the_next_caller_tries_anew(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 7, fail)
    builder.tell("go on")
    for member in crew.members:  # a second attempt would say "building" and never end
        with pytest.raises(OddError, match="code 7") as caught:
            member.result()
        assert caught.value.code == 7
    assert leftovers(cache.directory) == []
    assert cache.get_or_create("key", lambda: "anew") == "anew"


def catch(line, cache):
    try:
        return fail(line, cache)
    except OddError as error:
        return type(error.__cause__), str(error.__cause__)


def test_a_remote_error_has_the_remote_traceback_as_its_cause(crew, cache):
    builder, [waiter] = start_and_sleep(crew, cache, 1, catch)
    builder.tell("go on")
    kind, text = waiter.result()
    assert kind is RemoteTraceback
    assert "in factory" in text
    assert "_protocol.py" not in text  # what the library did before is of no interest
    assert "raise OddError(7)" in text
    assert builder.result()[0] is type(None)


def test_who_asks_when_the_build_has_failed_already_tries_anew(crew, cache):
    """Also beside a thread of this process that waited for it and is late to learn of it."""
    builder = crew.start(fail, cache)
    builder.hear("building")
    late, go_on = threading.Event(), threading.Event()

    class Late(Door):
        def wait_shared(self, fd, timeout):
            woken = super().wait_shared(fd, timeout)
            late.set()
            assert go_on.wait(PATIENCE)
            return woken

    cache._open(Late())
    answers = {}

    def ask_here(name):
        try:
            answers[name] = cache.get_or_create("key", lambda: f"made by {name}")
        except OddError as error:
            answers[name] = error

    first = threading.Thread(target=ask_here, args=("first",))
    first.start()
    until(lambda: sleepers(claim_of(cache)) == 1, "a thread waits")
    builder.tell("go on")
    assert late.wait(PATIENCE)
    second = threading.Thread(target=ask_here, args=("second",))
    second.start()
    [flight] = cache._protocol.flights._flights.values()
    until(lambda: flight.bells, "another one follows it")
    go_on.set()
    for thread in (first, second):
        thread.join(PATIENCE)
    assert isinstance(answers["first"], OddError)
    assert answers["second"] == "made by second"


def fail_with_paths(line, cache, paths):
    def factory():
        line.tell("building")
        line.hear("go on")
        raise OSError(2, "no such thing", *paths)

    try:
        return cache.get_or_create("key", factory)
    except OSError as error:
        return type(error).__name__, error.errno, error.filename, error.filename2


@pytest.mark.parametrize("paths", [(), ("a file",), ("a file", None, "another")], ids=len)
def test_an_error_of_the_system_reaches_all_with_its_paths(crew, cache, paths):
    builder, [waiter] = start_and_sleep(crew, cache, 1, fail_with_paths, paths)
    builder.tell("go on")
    name, other = (*paths[:1], None)[0], (*paths[2:], None)[0]
    assert waiter.result() == builder.result() == ("FileNotFoundError", 2, name, other)


def fail_locally(line, cache):
    class LocalError(ValueError):
        pass

    def factory():
        line.tell("building")
        line.hear("go on")
        raise LocalError("unknown elsewhere")

    try:
        cache.get_or_create("key", factory)
    except LocalError:
        return "its own"
    except BuildFailedError as error:
        return str(error)


def test_an_error_of_a_type_unknown_here_is_a_build_failed_error_that_names_it(crew, cache):
    builder, [waiter] = start_and_sleep(crew, cache, 1, fail_locally)
    builder.tell("go on")
    assert builder.result() == "its own"
    assert "LocalError: unknown elsewhere" in waiter.result()


def retry(line, cache):
    return fail(line, cache, on_error="retry")


def test_with_on_error_retry_waiters_build_one_after_another(crew, cache):
    builder, waiters = start_and_sleep(crew, cache, 3, retry)
    builder.tell("go on")
    left = list(waiters)
    while left:
        builder = crew.first_to_speak(left)
        builder.hear("building")
        left.remove(builder)
        until(lambda: sleepers(claim_of(cache)) == len(left), "the others sleep")
        builder.tell("go on")
    for member in crew.members:
        with pytest.raises(OddError):
            member.result()


def interrupted(line, cache, error):
    def factory():
        line.tell("building")
        if line.hear() == "go on":
            return "built"
        raise error("stop")

    return cache.get_or_create("key", factory)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_builder_hands_over(crew, cache, error):
    builder, waiters = start_and_sleep(crew, cache, 2, interrupted, error)
    builder.tell("stop")
    with pytest.raises(error):
        builder.result()
    heir = crew.first_to_speak(waiters)
    heir.hear("building")
    heir.tell("go on")
    assert [each.result() for each in waiters] == ["built", "built"]
    assert leftovers(cache.directory) == []


def ask_until_interrupted(line, cache):
    try:
        return ask(line, cache)
    except KeyboardInterrupt:
        return "interrupted"


def test_control_c_ends_a_sleeping_waiter_and_disturbs_nobody(crew, cache):
    builder, [first, second] = start_and_sleep(crew, cache, 2, ask_until_interrupted)
    os.kill(first.pid, signal.SIGINT)
    assert first.result() == "interrupted"
    builder.tell("go on")
    assert second.result() == builder.result() == ("built by", builder.pid)


def test_a_timeout_names_key_builder_and_remedy_and_disturbs_nobody(crew, cache):
    builder, _ = start_and_sleep(crew, cache, 0)
    for timeout in (0, 0.01):
        with pytest.raises(BuildTimeout) as caught:
            cache.get_or_create("key", lambda: "not me", timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
        for part in ("key", str(builder.pid), str(cache.directory), "timeout="):
            assert part in str(caught.value)
    builder.tell("go on")
    assert builder.result() == ("built by", builder.pid)
    assert cache.get("key") == ("built by", builder.pid)


def test_a_wait_with_a_timeout_ends_with_the_build(crew, cache):
    builder = crew.start(ask, cache)
    builder.hear("building")
    answers = []
    waiter = threading.Thread(
        target=lambda: answers.append(cache.get_or_create("key", lambda: "wrong", timeout=60))
    )
    waiter.start()
    until(lambda: sleepers(claim_of(cache)) == 1, "the waiter sleeps")
    builder.tell("go on")
    waiter.join(60)
    assert answers == [("built by", builder.pid)]


def test_impatient_callers_share_one_sleeping_thread(crew, cache):
    builder, _ = start_and_sleep(crew, cache, 0)

    def ask_in_vain(timeout):
        with pytest.raises(BuildTimeout):
            cache.get_or_create("key", lambda: "not me", timeout=timeout)

    # Whose time is up before it comes to wait starts no thread.
    until(lambda: ask_in_vain(0.1) or sleepers(claim_of(cache)), "one sleeps")
    for _ in range(20):
        ask_in_vain(0.01)
    until(lambda: sleepers(claim_of(cache)) == 1, "one only")


def test_threads_of_one_process_elect_one_and_each_gets_an_object_of_its_own(cache):
    builds = []
    may_end = threading.Event()
    answers = []

    def factory():
        builds.append(threading.get_ident())
        assert may_end.wait(60)
        return ["built"]

    threads = [
        threading.Thread(target=lambda: answers.append(cache.get_or_create("key", factory)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    until(lambda: builds, "somebody builds")
    assert len([name for name in leftovers(cache.directory) if name.endswith(".temp")]) == 1
    may_end.set()
    for thread in threads:
        thread.join(60)
    assert len(builds) == 1
    assert answers == [["built"]] * 16
    assert len({id(answer) for answer in answers}) == 16


def test_threads_that_wait_get_the_error_of_the_one_that_built(cache, monkeypatch):
    builds = []
    may_end = threading.Event()
    errors = []

    def factory():
        builds.append(1)
        assert may_end.wait(60)
        raise OddError(3)

    def run():
        with pytest.raises(OddError) as caught:
            cache.get_or_create("key", factory)
        errors.append(caught.value)

    first = threading.Thread(target=run)
    first.start()
    until(lambda: builds, "somebody builds")
    followers = [threading.Thread(target=run) for _ in range(4)]
    asleep = []
    wait = Flight.wait
    monkeypatch.setattr(
        Flight, "wait", lambda self, timeout: (asleep.append(1), wait(self, timeout))[1]
    )
    for thread in followers:
        thread.start()
    until(lambda: len(asleep) == 4, "the others follow")
    may_end.set()
    for thread in [first, *followers]:
        thread.join(PATIENCE)
    assert builds == [1]
    assert [error.code for error in errors] == [3] * 5
    assert len({id(error) for error in errors}) == 5


def test_a_factory_that_asks_for_its_own_key_gets_an_error_not_a_deadlock(cache):
    def factory():
        return cache.get_or_create("key", factory)

    with pytest.raises(CircularBuildError, match="key"):
        cache.get_or_create("key", factory)
    assert leftovers(cache.directory) == []


def test_a_factory_may_ask_for_other_keys(cache):
    def outer():
        return cache.get_or_create("inner", lambda: 1) + cache.get_or_create("other", lambda: 2)

    assert cache.get_or_create("outer", outer) == 3


def build_in_circle(line, cache, own, other):
    def factory():
        line.tell("building")
        line.hear("ask")
        return cache.get_or_create(other, lambda: "from outside")

    try:
        return cache.get_or_create(own, factory)
    except CircularBuildError as error:
        return str(error)


@pytest.mark.parametrize("number", [2, 3])
def test_processes_that_wait_for_each_other_get_an_error_not_a_deadlock(crew, cache, number):
    keys = [f"key {n}" for n in range(number)]
    for place, key in enumerate(keys):
        crew.start(build_in_circle, cache, key, keys[(place + 1) % number])
    for member in crew.members:
        member.hear("building")
    for place, member in enumerate(crew.members[:-1]):
        member.tell("ask")
        until(lambda: sleepers(claim_of(cache, keys[place + 1])) == 1, "it sleeps")  # noqa: B023
    crew.members[-1].tell("ask")
    answers = crew.results()
    assert all("would never end" in answer for answer in answers), answers
    assert leftovers(cache.directory) == []


def test_threads_that_wait_for_each_other_get_an_error_not_a_deadlock(cache):
    both_build = threading.Barrier(2)
    errors = []

    def run(own, other):
        def factory():
            both_build.wait(60)
            return cache.get_or_create(other, lambda: "from outside")

        with pytest.raises(CircularBuildError) as caught:
            cache.get_or_create(own, factory)
        errors.append(caught.value)

    threads = [threading.Thread(target=run, args=pair) for pair in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 2
    assert leftovers(cache.directory) == []


def fork_and_build(line, cache):
    def factory():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        line.tell(child)
        line.hear("go on")
        return "built"

    return cache.get_or_create("key", factory)


def test_a_forked_child_does_not_keep_its_dead_parents_claim_alive(crew, cache):
    builder = crew.start(fork_and_build, cache)
    child = builder.hear()
    builder.kill()
    try:
        os.kill(child, 0)  # it lives on
        assert cache.get_or_create("key", lambda: "heir", timeout=30) == "heir"
    finally:
        os.kill(child, signal.SIGKILL)


def fork_and_let_the_child_return(line, cache):
    forked = []

    def factory():
        forked.append(os.fork())
        if forked[0] == 0:
            return "the child's"
        os.waitpid(forked[0], 0)
        line.tell("child is gone")
        line.hear("go on")
        return "the parent's"

    value = cache.get_or_create("key", factory)
    if forked[0] == 0:
        os._exit(0 if value == "the child's" else 1)
    return value


def test_a_forked_child_neither_releases_nor_removes_its_parents_claim(crew, cache):
    builder = crew.start(fork_and_let_the_child_return, cache)
    builder.hear("child is gone")
    with pytest.raises(BuildTimeout):
        cache.get_or_create("key", lambda: "not me", timeout=0)
    builder.tell("go on")
    assert builder.result() == "the parent's"
    assert leftovers(cache.directory) == []


def fork_with_a_busy_cache(line, cache):
    held = threading.Event()
    done = threading.Event()

    def factory():
        held.set()
        done.wait(60)
        return "by the thread"

    thread = threading.Thread(target=lambda: cache.get_or_create("busy", factory))
    thread.start()
    held.wait(60)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        answer = cache.get_or_create("free", lambda: "in the child")
        with contextlib.suppress(BuildTimeout):
            cache.get_or_create("busy", lambda: "wrong", timeout=0)
            answer = "the child found the parent's claim free"
        os.write(write, answer.encode())
        os._exit(0)
    os.waitpid(child, 0)
    done.set()
    thread.join(60)
    return os.read(read, 1000).decode(), cache.get("busy")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_cache_survives_fork_while_another_thread_builds(crew, cache):
    assert crew.start(fork_with_a_busy_cache, cache).result() == (
        "in the child",
        "by the thread",
    )


def test_who_publishes_first_wins_and_the_builder_returns_that(crew, cache):
    builder, [waiter] = start_and_sleep(crew, cache, 1)
    cache.set("key", "was faster")
    builder.tell("go on")
    assert builder.result() == waiter.result() == cache.get("key") == "was faster"
    assert leftovers(cache.directory) == []


def test_what_is_set_while_something_expired_is_built_anew_stays(tmp_path):
    directory = tmp_path / "cache"
    Cache(directory).set("key", "old", max_age=0)

    class SetMeanwhile(Door):
        def replace(self, source, target):
            if target.endswith(entry_name):  # the last moment before it is published
                Cache(directory).set("key", "set meanwhile")
            super().replace(source, target)

    cache = Cache(directory)
    entry_name = os.path.basename(claim_of(cache)).removesuffix(".temp")
    cache._open(SetMeanwhile())
    assert cache.get_or_create("key", lambda: "built") == "set meanwhile"
    assert Cache(directory).get("key") == "set meanwhile"
    assert leftovers(directory) == []


def test_a_hit_takes_no_lock_and_writes_nothing(crew, cache, tmp_path):
    cache.get_or_create("key", lambda: b"value")
    cache.get_or_create("key", lambda: b"other")  # the first hit of an hour looks whether to note
    before = {path: path.lstat() for path in tmp_path.rglob("*")}
    opened = []
    door = cache._door

    class Watched:
        def __getattr__(self, name):
            opened.append(name)
            return getattr(door, name)

    cache._asking._door = Watched()
    assert cache.get_or_create("key", lambda: b"other") == b"value"
    assert opened == ["open", "read", "close"]
    assert {path: path.lstat() for path in tmp_path.rglob("*")} == before


def test_a_cache_can_be_pickled_and_sent_to_a_worker(crew, tmp_path):
    cache = Cache(tmp_path / "cache", codec="pickle", secret=b"0123456789abcdef", timeout=5)
    worker = crew.start(ask, cache)
    worker.hear("building")
    worker.tell("go on")
    assert worker.result() == cache.get("key") == ("built by", worker.pid)


def test_a_claim_of_before_a_restart_is_swept_when_it_has_long_been_silent(crew, cache):
    builder, _ = start_and_sleep(crew, cache, 0)
    builder.kill()
    claim = claim_of(cache)
    with open(claim, "rb") as file:
        content = file.read()
    before_restart = content.replace(cache._door.boot_id().encode(), b"another-boot")
    assert before_restart != content
    with open(claim, "wb") as file:
        file.write(before_restart)
    assert cache.reap() == 0
    assert os.path.exists(claim)
    os.utime(claim, (os.stat(claim).st_mtime - 301,) * 2)
    assert cache.reap() == 1
    assert leftovers(cache.directory) == []
