"""An interrupt may come between any two lines, and harms nobody but its own caller."""

import dis
import linecache
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial, wraps

import pytest

import atomcache
from atomcache import Cache, CircularBuildError, _heartbeat
from atomcache._build import running
from atomcache._claim import Claim
from atomcache._door import Door
from atomcache._flight import Flight, Flights
from atomcache._patience import Patience

from .crew import PATIENCE, leftovers, until

LIBRARY = os.path.dirname(atomcache.__file__)


class Interrupt(BaseException):
    """Comes out of nowhere, as `KeyboardInterrupt` does."""


def in_time(step):
    """Do something in a thread, and return what it returns, within bounds."""
    results = []
    thread = threading.Thread(target=lambda: results.append(step()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "a caller hangs"
    return results[0]


def apart(test):
    """Run a test in a thread of its own.

    What is raised by a trace function within an ``except`` leaves the thread, for good, with the
    exception that was handled there.
    """

    @wraps(test)
    def run(**given):
        raised = []

        def attempt():
            try:
                test(**given)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join()
        if raised:
            raise raised.pop()

    return run


class Tracer:
    """Raises `Interrupt` at the n-th line of the library that this thread comes to."""

    def __init__(self, number):
        self.left = number
        self.where = None

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        if event == "line" and self.where is None and self.is_possible(frame):
            self.left -= 1
            if self.left < 0:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                raise Interrupt(self.where)
        return self

    def is_possible(self, frame):
        """Tell whether an interrupt would come up here.

        Python looks for one when a call has returned, and so not between the last line within a
        ``with`` and the release of its lock, nor at the word ``try``, which belongs to no block:
        raised there, it would skip the release.  In a finalizer it swallows what is raised.
        """
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if line.strip().startswith(("with ", "try:")):
            return False
        while frame is not None:
            if frame.f_code.co_name == "__del__":
                return False
            frame = frame.f_back
        return True


def interrupted_at(tracer, step):
    """Do something, interrupted once; return where that was, if it was anywhere."""
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        step()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)
    return tracer.where


def ask_value(cache, key):
    return cache.get_or_create(key, lambda: "made")


def ask_path(cache, key):
    return cache.get_or_create_path(key, lambda target: target.write_text("made"), name="n")


@pytest.mark.parametrize("ask", [ask_value, ask_path])
@apart
def test_an_interrupt_at_any_line_of_a_miss_leaves_the_key_to_others(tmp_path, ask):
    cache = Cache(tmp_path / "cache", durable=False)
    ask(cache, "warm up")
    number = 0
    while where := interrupted_at(Tracer(number), partial(ask, cache, number)):
        assert cache._protocol.flights._flights == {}, where
        assert _heartbeat._heart.periods == {}, where
        assert [build for build in running.get() if not build.over] == [], where
        assert in_time(partial(ask, cache, number)) is not None, where
        ask(cache, number)  # in this context, whose builds must not seem to go on
        number += 1
    assert number > 100  # it was interrupted at many places, until there were no more
    cache.reap()
    assert leftovers(cache.directory) == []


@apart
def test_an_interrupt_at_any_line_of_a_wait_leaves_those_alone_who_wait_too(tmp_path):
    class Telling(Door):
        asleep = threading.Event()

        def wait_shared(self, fd, timeout):
            self.asleep.set()
            return super().wait_shared(fd, timeout)

    door = Telling()
    cache = Cache(tmp_path / "cache", durable=False)
    number = 0
    where = ""
    while where is not None:
        cache._open(door)
        owner = Cache(tmp_path / "cache", durable=False)
        begun, go_on = threading.Event(), threading.Event()

        def hold(*_, begun=begun, go_on=go_on):
            begun.set()
            assert go_on.wait(PATIENCE)
            return "held"

        key = ("waited for", number)
        building = threading.Thread(target=owner.get_or_create, args=(key, hold), daemon=True)
        building.start()
        assert begun.wait(PATIENCE)
        door.asleep.clear()
        wake = threading.Thread(
            target=lambda go_on=go_on: (door.asleep.wait(PATIENCE), go_on.set())
        )
        wake.start()
        where = interrupted_at(Tracer(number), partial(cache.get_or_create, key, hold))
        door.asleep.set()
        wake.join(PATIENCE)
        building.join(PATIENCE)
        assert cache._protocol.flights._flights == {}, where
        assert in_time(partial(cache.get_or_create, key, hold)) == "held", where
        number += 7  # each costs some milliseconds
    assert number > 50
    assert leftovers(cache.directory) == []


def test_a_finalizer_or_signal_handler_may_ask_in_the_middle_of_asking(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    made = Flight.__init__
    nested = []

    def make(self, *args):
        made(self, *args)
        if not nested:
            nested.append(True)
            cache.remove("another")
            nested.append(cache.get_or_create("third", lambda: "made"))

    monkeypatch.setattr(Flight, "__init__", make)
    assert in_time(lambda: cache.get_or_create("key", lambda: "made")) == "made"
    assert nested == [True, "made"]


class Alarmed:
    """A lock whose holder is interrupted as it wakes."""

    def __init__(self, lock):
        self.lock = lock
        self.taken = 0

    def acquire(self, *args, **kwargs):
        taken = self.lock.acquire(*args, **kwargs)
        self.taken += 1
        if self.taken == 2:  # the first time is its own making
            raise Interrupt
        return taken

    def __getattr__(self, name):
        return getattr(self.lock, name)


def test_a_follower_interrupted_as_it_wakes_strands_no_other(tmp_path):
    cache = Cache(tmp_path / "cache")
    begun, go_on = threading.Event(), threading.Event()

    def hold():
        begun.set()
        assert go_on.wait(PATIENCE)
        return "held"

    leader = threading.Thread(target=cache.get_or_create, args=("key", hold), daemon=True)
    leader.start()
    assert begun.wait(PATIENCE)
    [flight] = cache._protocol.flights._flights.values()
    allocate = flight._allocate_lock
    answers = []

    def follow():
        try:
            answers.append(cache.get_or_create("key", hold))
        except Interrupt:
            answers.append("interrupted")

    followers = [threading.Thread(target=follow, daemon=True) for _ in range(4)]
    for number, follower in enumerate(followers):
        flight._allocate_lock = (lambda: Alarmed(allocate())) if number == 0 else allocate
        follower.start()
        until(lambda number=number: len(flight.bells) == number + 1, "it follows")
    go_on.set()
    for follower in followers:
        follower.join(PATIENCE)
        assert not follower.is_alive()
    assert sorted(answers) == ["held", "held", "held", "interrupted"]


def test_an_interrupt_as_a_wait_ends_leaves_no_flight_behind(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    end = Patience.end
    ends = []

    def interrupt(self):
        ends.append(end(self))
        if len(ends) == 1:
            raise Interrupt

    monkeypatch.setattr(Patience, "end", interrupt)
    with pytest.raises(Interrupt):
        cache.get_or_create("key", lambda: "made")
    assert in_time(lambda: cache.get_or_create("key", lambda: "made")) == "made"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_forked_as_a_claim_is_opened_does_not_keep_it_alive(tmp_path):
    """Whether another thread's fork comes before, within or after the opening."""

    class Forking(Door):
        def open(self, path, flags, mode=0o777):
            fd = os.open(path, flags, mode)
            if path.endswith(".temp") and not children:
                fork.set()  # the other thread forks now, or as soon as it may
                until(lambda: forking or children, "it forks")
            return fd

    children, forking, fork = [], [], threading.Event()
    read, write = os.pipe()
    ready, say_ready = os.pipe()

    def other_thread():
        assert fork.wait(PATIENCE)
        forking.append(True)
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.write(say_ready, b"x")  # it has closed by now what it has to
            os.read(read, 1)  # lives until the test ends
            os._exit(0)
        children.append(pid)

    thread = threading.Thread(target=other_thread)
    thread.start()
    cache = Cache(tmp_path / "cache")
    cache._open(Forking())
    cache._protocol.layout.make_room(cache._protocol.layout.entry(b"\0" * 20))

    def build():
        assert os.read(ready, 1) == b"x"
        until(lambda: children, "the child is known")
        [claim] = map(str, (tmp_path / "cache").rglob("*.temp"))
        held = [os.readlink(f"/proc/{children[0]}/fd/{fd}") for fd in _descriptors(children[0])]
        assert claim not in held
        return "built"

    try:
        assert cache.get_or_create("key", build) == "built"
    finally:
        for fd in (read, write, ready, say_ready):
            os.close(fd)
        thread.join(PATIENCE)
        for pid in children:
            os.waitpid(pid, 0)


def _descriptors(pid):
    return [fd for fd in os.listdir(f"/proc/{pid}/fd") if os.path.lexists(f"/proc/{pid}/fd/{fd}")]


def test_a_circle_through_a_cache_that_cant_be_written_is_found(tmp_path):
    (tmp_path / "a file").write_text("in the way")
    apart = Cache(tmp_path / "a file" / "cache", on_store_error="bypass")
    cache = Cache(tmp_path / "cache")
    both = threading.Barrier(2, timeout=PATIENCE)
    answers = []

    def one():
        both.wait()
        return cache.get_or_create("two", lambda: "two by itself")

    def two():
        both.wait()
        return apart.get_or_create("one", lambda: "one by itself")

    def ask(of, key, factory):
        try:
            answers.append(of.get_or_create(key, factory))
        except CircularBuildError:
            answers.append("a circle")

    threads = [
        threading.Thread(target=ask, args=(apart, "one", one), daemon=True),
        threading.Thread(target=ask, args=(cache, "two", two), daemon=True),
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "both wait for each other"
    assert time.monotonic() - began < PATIENCE
    assert "a circle" in answers


def test_a_leader_interrupted_as_it_wakes_those_who_follow_strands_none(tmp_path):
    cache = Cache(tmp_path / "cache")
    followers, answers, rung = [], [], []

    def ring():
        rung.append(True)
        if len(rung) == 1:
            raise Interrupt

    def build():
        [flight] = cache._protocol.flights._flights.values()
        for number in range(3):
            follower = threading.Thread(
                target=lambda: answers.append(cache.get_or_create("key", lambda: "never")),
                daemon=True,
            )
            followers.append(follower)
            follower.start()
            until(lambda number=number: len(flight.bells) == number + 1, "it follows")
        flight.when_over(ring)
        return "built"

    with pytest.raises(Interrupt):
        cache.get_or_create("key", build)
    for follower in followers:
        follower.join(PATIENCE)
        assert not follower.is_alive()
    assert answers == ["built"] * 3


class AfterCalls(Tracer):
    """Raises where Python itself does: when a call has returned, begins, or a loop goes round.

    It keeps the error, as whoever handles it does, and with it all that the frames refer to.
    """

    POINTS = ("CALL", "RESUME", "JUMP_BACKWARD", "POP_JUMP_BACKWARD")

    def __init__(self, number):
        super().__init__(number)
        self.before = {}
        self.error = None

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self.before[id(frame)] = "RESUME"
        elif event == "opcode":
            here = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            before, self.before[id(frame)] = self.before.get(id(frame), ""), here
            if before.startswith(self.POINTS) and here != "PUSH_EXC_INFO":
                self.come_by(frame)
        return self

    def come_by(self, frame):
        if self.where is None and self.is_possible(frame):
            self.left -= 1
            if self.left < 0:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                self.error = Interrupt(self.where)
                raise self.error


@apart
def test_an_interrupt_leaves_the_key_to_others_also_while_it_is_handled(tmp_path):
    """As in ``with ThreadPoolExecutor()``, whose end waits for those who wait for the key."""
    cache = Cache(tmp_path / "cache", durable=False)
    ask_value(cache, "warm up")
    number = 0
    tracer = AfterCalls(number)
    while where := interrupted_at(tracer, partial(ask_value, cache, number)):
        assert cache._protocol.flights._flights == {}, where
        assert in_time(partial(ask_value, cache, number)) == "made", where
        number += 1
        tracer = AfterCalls(number)
    assert number > 100


def test_a_claim_interrupted_as_it_is_made_is_closed_once(tmp_path, monkeypatch):
    """Closed twice, it would be another thread's file the second time."""
    cache = Cache(tmp_path / "cache")
    made = Claim.__init__

    def interrupt(self, *given):
        made(self, *given)
        monkeypatch.undo()
        raise Interrupt

    monkeypatch.setattr(Claim, "__init__", interrupt)
    with pytest.raises(Interrupt):
        cache.get_or_create("key", lambda: "made")
    assert in_time(lambda: cache.get_or_create("key", lambda: "made")) == "made"
    assert leftovers(cache.directory) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signals")
def test_a_signal_handler_may_ask_at_whatever_moment_of_asking(tmp_path):
    """It runs in the thread that it interrupts, so it must wait for no lock of that thread."""
    code = f"""if True:
        import faulthandler, itertools, signal, threading
        from atomcache import BuildTimeout, Cache, CircularBuildError, current_build
        faulthandler.dump_traceback_later({PATIENCE}, exit=True)
        cache = Cache({str(tmp_path / "cache")!r}, memory=5000)
        owner = Cache({str(tmp_path / "cache")!r})
        begun, go_on = threading.Event(), threading.Event()
        def hold():
            begun.set()
            go_on.wait()
        thread = threading.Thread(target=owner.get_or_create, args=("held", hold), daemon=True)
        thread.start()
        begun.wait()
        numbers = itertools.count()
        inside = []
        def ask(*_):
            if inside:
                return
            inside.append(True)
            cache.get_or_create(next(numbers), lambda: 1)
            cache.get_or_create("warm", lambda: 1)
            try:
                cache.get_or_create("held", hold, timeout=0.0001)
            except (BuildTimeout, CircularBuildError):
                pass  # refused, where its thread has a lock that the owner may need
            inside.clear()
        def build():
            for number in range(20):
                current_build().tag(str(number))
            return 1
        ask()  # so that all modules are loaded
        signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        for number in range(1500):
            cache.get_or_create(("outer", number), build)
            cache.get_or_create("warm", build)
        signal.setitimer(signal.ITIMER_REAL, 0)
        go_on.set()
        thread.join()
        print("done")
    """
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=2 * PATIENCE
    )
    assert ran.stdout == "done\n", ran.stderr


def test_of_the_threads_of_a_forked_child_none_follows_a_leader_of_its_parent():
    class Forked(Door):
        pid = 1

        def getpid(self):
            return self.pid

    class Raced(Flights):
        """One where another thread comes in as the first of the child forgets the parent's."""

        def __setattr__(self, name, value):
            if name == "_flights" and door.pid == 2 and not boarded:
                boarded.append(None)
                boarded[:] = [self.board("entry")]
            super().__setattr__(name, value)

    door, boarded = Forked(), []
    flights = Raced(door)
    parents, lead = flights.board("entry")
    assert lead is not None
    door.pid = 2
    boarded_too = flights.board("entry")
    assert parents not in [flight for flight, _ in [*boarded, boarded_too]]
