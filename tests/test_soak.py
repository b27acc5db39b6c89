"""Long runs: processes that ask, build, fail, are killed, stopped and continued at random.

Entries are removed and expire meanwhile.  All of it is logged and checked afterwards as one
history (see `history`); the check is shown to find each fault in histories that have it.

A run takes 20 seconds, two minutes with ``--thorough``, and as many seconds as the environment
variable ``ATOMCACHE_SOAK_SECONDS`` says.
"""

import contextlib
import heapq
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from atomcache import Cache
from atomcache._layout import is_entry

from . import document_loop
from .crew import PATIENCE, leftovers
from .history import Log, check, fill, load, read

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL, SIGSTOP and SIGCONT")

WORKERS = 4
MAX_AGE = 0.25
KEYS = [f"{kind}-{max_age}" for kind in ("value", "file", "folder") for max_age in (None, MAX_AGE)]
PARTS = ("one", "two", "three")
SIZES = (10, 5000, 70_000, 300_000)
GONE = object()


class FactoryFailed(Exception):
    """What a factory raises on purpose; its argument names the build."""


# -- a worker ----------------------------------------------------------------------------


class Worker:
    """One thread's work: it asks for keys at random and logs what comes of it.

    Parameters
    ----------
    ask
        Called with the worker, the key and the options; returns which build was returned.
    """

    def __init__(self, log, name, ask) -> None:
        self.log = log
        self.name = name
        self.ask_for = ask
        self.dice = random.Random(name)
        self.numbers = itertools.count()
        self.asked = ""

    def work(self, stop):
        while not os.path.exists(stop):
            self.ask(self.dice.choice(KEYS))
            time.sleep(self.dice.random() * 0.002)

    def ask(self, key):
        self.asked = f"{self.name}-{next(self.numbers)}"
        options = {
            "max_age": MAX_AGE if key.endswith(str(MAX_AGE)) else None,
            "timeout": self.dice.choice((None, None, None, 0.05)),
        }
        self.log.note("ask", ask=self.asked, key=key, **options)
        try:
            build = self.ask_for(self, key, options)
        except Exception as error:
            told = error.args[0] if isinstance(error, FactoryFailed) else None
            self.log.note("raise", ask=self.asked, error=repr(error)[:300], build=told)
        else:
            if build is GONE:
                self.log.note("gone", ask=self.asked)
            else:
                self.log.note("return", ask=self.asked, build=build)

    def build(self, key, write):
        """Run a factory: call `write` with some pieces of text, and log it."""
        build = f"build-{self.asked}-{next(self.numbers)}"
        self.log.note("begin", build=build, key=key, ask=self.asked)
        size = self.dice.choice(SIZES)
        longest = self.dice.choice((0, 0.002, 0.01))
        for part in PARTS:
            text = fill(key, build, size)
            write(part, text[: size // 2])
            time.sleep(self.dice.random() * longest)
            write(part, text[size // 2 :])
        if self.dice.random() < 0.1:
            self.log.note("fail", build=build)
            raise FactoryFailed(build)
        self.log.note("end", build=build)


def ask_library(cache):
    """Return how a worker asks for a key of the library."""

    def ask(worker, key, options):
        options = {**options, "on_error": worker.dice.choice(("raise", "raise", "retry"))}
        kind = key.partition("-")[0]
        if kind == "value":
            return read_parts(
                key, cache.get_or_create(key, lambda: build_value(worker, key), **options)
            )

        def build(target):
            if kind == "folder":
                target.mkdir()
            worker.build(key, lambda part, text: append(target, kind, part, text))

        options["durable"] = worker.dice.random() < 0.1
        path = cache.get_or_create_path(key, build, name="built", **options)
        try:
            return read_path(path, kind, key)
        except FileNotFoundError:
            return GONE

    return ask


def build_value(worker, key):
    parts = dict.fromkeys(PARTS, "")

    def write(part, text):
        parts[part] += text

    worker.build(key, write)
    return parts


def append(target, kind, part, text):
    """Write a piece of a part: in a folder a file of its own, in a file a line."""
    with open(target / part if kind == "folder" else target, "a") as file:
        file.write(text if kind == "folder" else line_of(text))


def line_of(text):
    """End the line where a piece ends its part."""
    return text + "\n" * text.endswith(".")


def read_path(path, kind, key):
    """Read a file or folder through one descriptor, so that all is of one generation."""
    if kind == "file":
        return read_parts(key, dict(zip(PARTS, path.read_text().splitlines(), strict=False)))
    folder = os.open(path, os.O_RDONLY)
    try:
        parts = {}
        for part in PARTS:
            with open(os.open(part, os.O_RDONLY, dir_fd=folder)) as file:
                parts[part] = file.read()
    finally:
        os.close(folder)
    return read_parts(key, parts)


def read_parts(key, parts):
    """Return which build made all parts; `None` if they are not whole, or not of one build."""
    builds = {read(parts.get(part, ""), key) for part in PARTS}
    return builds.pop() if len(builds) == 1 else None


def ask_loop(place):
    """Return how a worker asks for a key by the document's loop."""

    def ask(worker, key, options):
        folder = os.path.join(place, key)
        os.makedirs(folder, exist_ok=True)

        def build(file):
            def write(_, text):
                file.write(line_of(text))
                file.flush()

            worker.build(key, write)

        text = document_loop.get_or_create(folder, build)
        return read_parts(key, dict(zip(PARTS, text.splitlines(), strict=False)))

    return ask


def work(line, name, by_loop, place, logs, stop):
    """Be one process of the run: one or two threads that ask until `stop` exists."""
    log = Log(logs, name)
    ask = ask_loop(place) if by_loop else ask_library(Cache(place))
    workers = [Worker(log, f"{name}.{n}", ask) for n in range(1 + int(name[1:]) % 2)]
    others = [threading.Thread(target=each.work, args=(stop,)) for each in workers[1:]]
    for thread in others:
        thread.start()
    workers[0].work(stop)
    for thread in others:
        thread.join()
    log.close()


# -- the conductor -----------------------------------------------------------------------


class Conductor:
    """Starts the workers and disturbs them."""

    def __init__(self, crew, tmp_path, *, by_loop=False) -> None:
        self.crew = crew
        self.by_loop = by_loop
        self.place = tmp_path / "cache"
        self.logs = tmp_path / "logs"
        self.logs.mkdir()
        self.stop = tmp_path / "stop"
        self.cache = Cache(self.place)
        self.log = Log(self.logs, "conductor")
        self.dice = random.Random(7)
        self.names = (f"w{n}" for n in itertools.count())
        self.numbers = itertools.count()
        self.workers = {}
        self.stopped = []

    def start(self):
        name = next(self.names)
        arguments = (name, self.by_loop, str(self.place), str(self.logs), str(self.stop))
        self.workers[name] = self.crew.start(work, *arguments)

    def run(self, seconds, actions):
        """Disturb the workers for so many seconds, then let them end, and return the events."""
        for _ in range(WORKERS):
            self.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.go_on(time.monotonic())
            getattr(self, self.dice.choices(list(actions), list(actions.values()))[0])()
            time.sleep(self.dice.random() * 0.03)
        self.go_on(float("inf"))
        self.stop.touch()
        for worker in self.workers.values():
            worker.result()  # bounded: a worker that hangs is a failure
            worker.process.join(PATIENCE)
        self.log.close()
        return load(self.logs)

    def pick(self):
        return self.dice.choice(list(self.workers))

    def kill(self):
        name = self.pick()
        worker = self.workers.pop(name)
        self.log.note("kill", whom=name)
        worker.kill()
        self.crew.members.remove(worker)
        worker.connection.close()
        self.start()

    def pause(self):
        name = self.pick()
        self.log.note("stop", whom=name)
        os.kill(self.workers[name].pid, signal.SIGSTOP)
        until = time.monotonic() + self.dice.random() * 0.3
        heapq.heappush(self.stopped, (until, next(self.numbers), name))

    def go_on(self, now):
        while self.stopped and self.stopped[0][0] <= now:
            name = heapq.heappop(self.stopped)[2]
            if name in self.workers:
                self.log.note("continue", whom=name)
                os.kill(self.workers[name].pid, signal.SIGCONT)

    def remove(self):
        key = self.dice.choice(KEYS)
        with self.removal(key):
            if self.by_loop:
                Path(self.place, key, "data").unlink(missing_ok=True)
            else:
                self.cache.remove(key)

    def clear(self):
        with self.removal(None):
            self.cache.clear()

    @contextlib.contextmanager
    def removal(self, key):
        number = next(self.numbers)
        self.log.note("removing", removal=number, key=key)
        yield
        self.log.note("removed", removal=number)

    def reap(self):
        self.log.note("reaping")
        self.cache.reap()
        self.log.note("reaped")


def figures(events):
    counts = Counter(event["event"] for event in events)
    return ", ".join(f"{n} {what}" for what, n in counts.most_common())


# -- the run -----------------------------------------------------------------------------


@pytest.fixture
def seconds(thorough):
    return float(os.environ.get("ATOMCACHE_SOAK_SECONDS", "120" if thorough else "20"))


def test_kills_stops_removals_and_expiry_never_show_in_what_is_returned(crew, tmp_path, seconds):
    conductor = Conductor(crew, tmp_path)
    events = conductor.run(
        seconds, {"kill": 25, "pause": 25, "remove": 35, "clear": 3, "reap": 12}
    )
    print(figures(events))
    assert check(events) == []
    happened = {event["event"] for event in events}
    assert happened >= {"return", "begin", "end", "fail", "raise", "kill", "stop", "removed"}

    conductor.cache.reap()
    assert leftovers(conductor.place) == []
    shards = list((conductor.place / "v1").glob("??"))
    assert all(is_entry(each.name) for shard in shards for each in shard.iterdir())
    assert {info.key for info in conductor.cache.entries()} <= set(KEYS)


# -- the controls ------------------------------------------------------------------------


def test_the_check_catches_the_documents_loop(crew, tmp_path):
    events = Conductor(crew, tmp_path, by_loop=True).run(
        2, {"kill": 20, "pause": 30, "remove": 50}
    )
    faults = Counter(kind for kind, _ in check(events))
    print(figures(events), dict(faults))
    assert faults["overlapping builds"]  # and torn reads, expired and unknown values at times


def forge(*events):
    """Write a history by hand: at each whole second, one event, its facts and its author."""
    defaults = {"key": "k", "max_age": None, "timeout": None, "error": "Error()", "build": None}
    return [
        {**defaults, "at": at, "event": event, "who": who, **facts}
        for at, (who, event, facts) in enumerate(events)
    ]


def built(who, ask, build):
    """Return the events of somebody who asks and builds."""
    return [
        (who, "ask", {"ask": ask}),
        (who, "begin", {"ask": ask, "build": build}),
        (who, "end", {"build": build}),
        (who, "return", {"ask": ask, "build": build}),
    ]


REMOVAL = [("c", "removing", {"removal": 1}), ("c", "removed", {"removal": 1})]
ASK = ("b", "ask", {"ask": "b1"})


def returned(build):
    return ("b", "return", {"ask": "b1", "build": build})


SOUND = {
    "a hit": [*built("a", "a1", "x"), ASK, returned("x")],
    "a rebuild after a removal": [*built("a", "a1", "x"), *REMOVAL, *built("b", "b1", "y")],
    "a removal during the build": [
        *built("a", "a1", "x")[:2],
        *REMOVAL,
        *built("a", "a1", "x")[2:],
        ASK,
        returned("x"),
    ],
    "a removal after the asking": [ASK, *built("a", "a1", "x"), *REMOVAL, returned("x")],
    "a build after a kill": [
        *built("a", "a1", "x")[:2],
        ("c", "kill", {"whom": "a"}),
        *built("b", "b1", "y"),
    ],
    "an error of a build that was waited for": [
        *built("a", "a1", "x")[:2],
        ASK,
        ("a", "fail", {"build": "x"}),
        ("a", "raise", {"ask": "a1", "build": "x"}),
        ("b", "raise", {"ask": "b1", "build": "x"}),
    ],
    "a path that was removed after it was returned": [
        *built("a", "a1", "x"),
        ASK,
        *REMOVAL,
        ("b", "gone", {"ask": "b1"}),
    ],
    "a wait that was too long": [
        *built("a", "a1", "x")[:2],
        ("b", "ask", {"ask": "b1", "timeout": 0.1}),
        ("b", "raise", {"ask": "b1", "error": "BuildTimeout()"}),
        *built("a", "a1", "x")[2:],
    ],
}

FAULTY = {
    "overlapping builds": [
        *built("a", "a1", "x")[:2],
        *built("b", "b1", "y"),
        *built("a", "a1", "x")[2:],
    ],
    "overlapping builds, one of them stopped": [
        *built("a", "a1", "x")[:2],
        ("c", "stop", {"whom": "a"}),
        *built("b", "b1", "y"),
        ("c", "continue", {"whom": "a"}),
        *built("a", "a1", "x")[2:],
    ],
    "overlapping builds, one of them killed later": [
        *built("a", "a1", "x")[:2],
        *built("b", "b1", "y"),
        ("c", "kill", {"whom": "a"}),
    ],
    "torn": [*built("a", "a1", "x"), ASK, returned(None)],
    "unknown value, of no build": [ASK, returned("x")],
    "unknown value, of a build that was killed": [
        *built("a", "a1", "x")[:2],
        ("c", "kill", {"whom": "a"}),
        ASK,
        returned("x"),
    ],
    "unknown value, before its build ended": [
        *built("a", "a1", "x")[:2],
        ASK,
        returned("x"),
        *built("a", "a1", "x")[2:],
    ],
    "removed value": [*built("a", "a1", "x"), *REMOVAL, ASK, returned("x")],
    "removed value, all keys": [
        *built("a", "a1", "x"),
        ("c", "removing", {"removal": 1, "key": None}),
        ("c", "removed", {"removal": 1}),
        ASK,
        returned("x"),
    ],
    "expired value": [
        *built("a", "a1", "x"),
        *REMOVAL[:1],
        ("b", "ask", {"ask": "b1", "max_age": 1.5}),
        returned("x"),
    ],
    "no answer": [*built("a", "a1", "x"), ASK],
    "vanished path": [*built("a", "a1", "x"), *REMOVAL, ASK, ("b", "gone", {"ask": "b1"})],
    "unknown error": [ASK, ("b", "raise", {"ask": "b1", "build": "x"})],
    "old error": [
        *built("a", "a1", "x")[:2],
        ("a", "fail", {"build": "x"}),
        ("a", "raise", {"ask": "a1", "build": "x"}),
        ASK,
        ("b", "raise", {"ask": "b1", "build": "x"}),
    ],
    "unexpected error": [ASK, ("b", "raise", {"ask": "b1", "error": "OSError()"})],
}


@pytest.mark.parametrize("name", SOUND)
def test_the_check_finds_nothing_in_a_sound_history(name):
    assert check(forge(*SOUND[name])) == []


@pytest.mark.parametrize("name", FAULTY)
def test_the_check_finds_the_fault_in_a_forged_history(name):
    faults = check(forge(*FAULTY[name]))
    assert [kind for kind, _ in faults] == [name.partition(",")[0]]


def test_content_that_lacks_any_part_is_not_taken_for_whole():
    text = fill("k", "x", 40)
    assert read(text, "k") == "x"
    assert read(text, "another") is None
    assert not any(read(text[:end], "k") for end in range(len(text)))
    assert not any(read(text[:at] + "?" + text[at + 1 :], "k") for at in range(len(text)))
