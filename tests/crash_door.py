"""A real door at which a process is killed, or a call fails, at one chosen call.

What it is for: `trial` plays one case on the real thing.  A *tester* process acts on a
cache over an `Interceptor`; at one call it dies or is refused.  Then a *fresh* process,
over the untouched door, has to get the whole value and leave nothing behind.  Whatever
is not as it must be comes back as a list of complaints.

Calls that a method of the door makes inside (the `flock` of a lock, every `unlink` of a
`remove_tree`) are points of their own, so a process also dies in the middle of these.

`Players` runs many cases in a few members of a crew: processes without threads that have
everything loaded, so forking a tester takes a millisecond.  Every wait is bounded.
"""

import contextlib
import errno
import faulthandler
import gc
import json
import logging  # noqa: F401
import os
import select
import shutil
import signal
import tempfile
import threading
import time
import traceback
import unittest.mock
import uuid  # noqa: F401
from dataclasses import dataclass, field, replace
from pathlib import Path

from atomcache import (  # noqa: F401 - all is loaded before the first fork
    AtomcacheError,
    Cache,
    _claim,
    _door,
    _failure,
    _heartbeat,
    _inert,
    _layout,
    _listing,
    _path,
    _protocol,
    _publish,
)
from atomcache._door import Door
from atomcache._keys import digest
from atomcache._layout import is_entry

from .crew import PATIENCE, Crew, leftovers

try:
    import fcntl
except ImportError:  # Windows, where none of this is run
    fcntl = None

BOUND = PATIENCE / 3
"""Seconds after which a step counts as a hang, so that a case tells where before its player is
taken for hung; it should take milliseconds."""

ERRNOS = [
    getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES", "EMFILE", "EDQUOT", "EINTR")
]

_LEAVES = [
    "open",
    "close",
    "read",
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
    "lseek",
    "fsync",
    "utime",
    "urandom",
    "map",
    "start_heartbeat",
    "stop_heartbeat",
]
_COMPOUNDS = [
    "write",
    "remove_tree",
    "sync_tree",
    "sync_folder",
    "lock_exclusive",
    "lock_shared",
    "wait_shared",
    "unlock",
    "close_kept",
    "boot_id",
]
_INSIDE = [
    "open",
    "close",
    "read",
    "write",
    "fsync",
    "unlink",
    "rmdir",
    "scandir",
    "lstat",
    "stat",
    "fstat",
    "chmod",
    "dup",
]

CHANGES = ("link", "rename", "replace", "exchange", "unlink", "mkdir", "open", "utime")
"""Calls that a network filesystem may carry out and then report as failed."""

NEVER_FAILS = ("urandom", "stop_heartbeat", "factory")
"""Points at which a process may die, but where no call can be refused."""


# -- the door --------------------------------------------------------------------------


class Interceptor(Door):
    """The real door, with one point at which something happens.

    Parameters
    ----------
    number
        Of the call, from 0; `None` only counts and names them, in `calls`.
    when
        ``"before"``, ``"after"`` or ``"half"`` (of a write): die there.  ``"fail"``: the
        call is refused with `error`; ``"half-fail"``: half is written first.  ``"lost"``:
        the call is carried out, and then reported as failed.  ``"fail-then-die"``: the call
        is refused, and if a build starts all the same, the process dies in it.
    """

    def __init__(self, number=None, when="before", error=0) -> None:
        super().__init__()
        self.number = number
        self.when = when
        self.error = error
        self.calls = []
        self.armed = False
        self.reached = False
        self.inside = ""
        self.before_sleep = None
        self.watched = threading.get_ident()
        for name in _LEAVES:
            setattr(self, name, self._leaf(name, getattr(self, name)))
        for name in _COMPOUNDS:
            setattr(self, name, self._compound(name, getattr(self, name)))
        for name in _INSIDE:
            setattr(os, name, self._part(f"os.{name}", getattr(os, name)))
        fcntl.flock = self._part("flock", fcntl.flock)

    def sleep(self, seconds):
        """Sleep long enough for one look after it, so that cases have the same calls."""
        if self._counts():
            if self.before_sleep:
                self.before_sleep()
            seconds = max(seconds, 0.11)
        time.sleep(seconds)

    def note(self, name):
        """Let the factory be a point, too."""
        self._point(name, lambda: None, ())

    def _leaf(self, name, function):
        return lambda *args, **options: self._point(name, function, args, options)

    def _compound(self, name, function):
        def call(*args, **options):
            if not self._counts() or self.inside:
                return function(*args, **options)
            self.inside = name
            try:
                return function(*args, **options)
            finally:
                self.inside = ""

        return call

    def _part(self, name, function):
        def call(*args, **options):
            if not self.inside or not self._counts():
                return function(*args, **options)
            if name == "flock" and args[1] == fcntl.LOCK_SH and self.before_sleep:
                self.before_sleep()
            return self._point(f"{self.inside}>{name}", function, args, options)

        return call

    def _counts(self):
        return self.armed and threading.get_ident() == self.watched

    def _point(self, name, function, args, options=None):
        options = options or {}
        if not self._counts():
            return function(*args, **options)
        number = len(self.calls)
        self.calls.append(name)
        if self.reached and self.when == "fail-then-die" and name == "factory":
            _die()
        if number != self.number:
            return function(*args, **options)
        self.reached = True
        if self.when == "before":
            _die()
        if self.when.startswith("half") and name.endswith("os.write"):
            function(args[0], args[1][: len(args[1]) // 2])
            if self.when == "half":
                _die()
        elif self.when in ("after", "lost") or name.endswith("close"):
            result = function(*args, **options)  # Linux closes even where it reports an error
            if self.when == "after":
                _die()
            if name.endswith("open"):
                os.close(result)
        if name == "start_heartbeat":
            with unittest.mock.patch("atomcache._heartbeat.start_new_thread", _no_thread):
                return function(*args, **options)
        raise OSError(self.error, os.strerror(self.error), *args[:1])


def _no_thread(*_):
    """Say what Python says when the limit of threads is reached."""
    raise RuntimeError("can't start new thread")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    while True:
        signal.pause()


class _PastDoor(Door):
    """The door as it was a while ago."""

    time = staticmethod(lambda: time.time() - 1000)


# -- what is asked of the cache --------------------------------------------------------

OLD = {"version": "old", "rows": list(range(100))}
NEW = {"version": "new", "rows": list(range(200)), "text": "x" * 1000}
LARGE = {"version": "new", "text": "y" * 400_000}
FILE = bytes(range(256)) * 40
TREE = {"index.html": b"<p>" * 500, "data/part-1": FILE, "data/deep/part-2": b"2" * 100, "z": b""}


class Site:
    """One process's view of a case: the cache folder, a log of builds, a door."""

    def __init__(self, place, role, door=None) -> None:
        self.place = Path(place)
        self.role = role
        self.door = door or Door()
        self.log = self.place / "builds"

    def cache(self, **options):
        cache = Cache(self.place / "cache", **options)
        cache._open(self.door)
        return cache

    def build(self):
        fd = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{self.role}\n".encode())
        os.close(fd)
        self.note()

    def note(self):
        if isinstance(self.door, Interceptor):
            self.door.note("factory")

    def builds(self, role):
        return self.log.read_text().split().count(role) if self.log.exists() else 0


class Value:
    """Ask for a value."""

    options = {}  # noqa: RUF012
    value = NEW

    def get(self, site, **options):
        def factory():
            site.build()
            return self.value

        return site.cache().get_or_create("key", factory, **self.options, **options)

    def whole(self, got):
        return got == self.value

    def show(self, got):
        return repr(got)[:80]


class File(Value):
    """Ask for a file."""

    def get(self, site, **options):
        def build(target):
            site.build()
            with open(target, "wb") as file:
                file.write(FILE[:1000])
                file.flush()
                site.note()
                file.write(FILE[1000:])
            site.note()

        got = site.cache().get_or_create_path(
            "key", build, name="report.bin", **self.options, **options
        )
        return got.read_bytes()

    def whole(self, got):
        return got == FILE


class Folder(Value):
    """Ask for a folder."""

    def get(self, site, **options):
        def build(target):
            site.build()
            for name, content in TREE.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                site.note()
            (target.parent / "beside").mkdir()  # not asked for: removed before publishing
            (target.parent / "beside" / "rest").write_bytes(b"rest")

        got = site.cache().get_or_create_path("key", build, name="site", **self.options, **options)
        return {
            str(each.relative_to(got)): each.read_bytes()
            for each in got.rglob("*")
            if each.is_file()
        }

    def whole(self, got):
        return got == TREE


class Scenario:
    """What a tester does to a cache, and how it starts.

    Attributes
    ----------
    ask
        What is asked for, by the tester (unless `act` says otherwise) and after it.
    """

    ask = Value()
    waits = False
    """Whether another process builds while the tester acts."""
    own_error = ()
    tester_builds = 1
    polls = False
    """Whether there are pauses in it, so that a case takes long."""

    def prepare(self, site):
        """Make what the tester finds."""

    def act(self, site, options):
        return self.ask.get(site, **options)

    def right(self, got):
        return self.ask.whole(got)

    def fresh(self, got):
        """Tell whether the next one to ask may get this."""
        return self.ask.whole(got)

    def after(self, site):
        """Say what else is not as it must be in the end."""
        return []


class ValueMade(Scenario):
    pass


class NotesMade(Scenario):
    """The first value of a cache, and the notes that are left in a new folder."""

    def after(self, site):
        return [
            f"{name} holds {found!r}"
            for name, content in _layout._FILES.items()
            if (found := (site.place / "cache" / name).read_bytes()) != content
        ]


class LargeMade(Scenario):
    def __init__(self) -> None:
        self.ask = Value()
        self.ask.value = LARGE


class FileMade(Scenario):
    ask = File()


class FolderMade(Scenario):
    ask = Folder()


class _Refreshed(Scenario):
    def __init__(self) -> None:
        self.ask = type(self).kind()
        self.ask.options = {"max_age": 500}

    def prepare(self, site):
        site.door = _PastDoor()
        if type(self).kind is Value:
            site.cache().set("key", OLD)
        else:
            self.ask.get(site)
        site.log.unlink(missing_ok=True)


class ValueRefreshed(_Refreshed):
    kind = Value


class FileRefreshed(_Refreshed):
    kind = File


class FolderRefreshed(_Refreshed):
    kind = Folder


class ValueHit(Scenario):
    def prepare(self, site):
        self.ask.get(site)
        site.log.unlink()


class FileHit(ValueHit):
    ask = File()


class Failed(Scenario):
    own_error = (ZeroDivisionError,)

    def act(self, site, options):
        def factory():
            site.build()
            return 1 // 0

        return site.cache().get_or_create("key", factory, **options)

    def right(self, got):
        return False


class FailedFolder(Failed):
    ask = Folder()

    def act(self, site, options):
        def build(target):
            (target / "deep").mkdir(parents=True)
            (target / "deep" / "half").write_bytes(b"half")
            site.build()
            return 1 // 0

        return site.cache().get_or_create_path("key", build, name="site", **options)


class _TakenOver(Scenario):
    """A builder died here before."""

    def prepare(self, site):
        def die(number):
            door = Interceptor(number, "half")
            door.armed = True
            self.ask.get(Site(site.place, "dead", door))

        rehearsal = Site(f"{site.place}-rehearsal", "dead")
        shutil.copytree(site.place, rehearsal.place)
        calls = _forked(lambda: _calls(self.ask, rehearsal))
        published = max(n for n, name in enumerate(calls) if name in ("link", "rename"))
        last = max(n for n, name in enumerate(calls[:published]) if name == "write>os.write")
        with contextlib.suppress(EOFError):
            _forked(lambda: die(last))
        shutil.rmtree(rehearsal.place)
        site.log.unlink()
        assert len(leftovers(site.place)) >= 2, "no claim and scratch of a dead builder"


def _calls(ask, site):
    site.door = Interceptor()
    site.door.armed = True
    ask.get(site)
    return site.door.calls


class ValueTakenOver(_TakenOver):
    pass


class FolderTakenOver(_TakenOver):
    ask = Folder()


class NewbornTakenOver(Scenario):
    """A builder died between creating its claim and signing it."""

    polls = True

    def prepare(self, site):
        path = site.cache()._layout.entry(digest(b"v", "key"))
        os.makedirs(os.path.dirname(path))
        Path(f"{path}.temp").touch()


class Reaped(Scenario):
    """Dead builders' claims and scratch, and a scratch whose claim is gone."""

    tester_builds = 0

    def prepare(self, site):
        ValueTakenOver().prepare(site)
        FolderTakenOver().prepare(site)
        site.cache().set("another", OLD)
        orphan = site.cache()._layout.entry(digest(b"p", "orphan"))
        os.makedirs(f"{orphan}.temp.0123456789abcdef/deep")
        Path(f"{orphan}.temp.0123456789abcdef/deep/half").write_bytes(b"half")

    def act(self, site, options):
        return site.cache(**options).reap()

    def right(self, got):
        return isinstance(got, int)


class NewbornReaped(Reaped):
    polls = True

    def prepare(self, site):
        NewbornTakenOver().prepare(site)


class Set(Scenario):
    """A value is put in the place of another."""

    tester_builds = 0

    def prepare(self, site):
        site.cache().set("key", OLD)

    def act(self, site, options):
        return site.cache().set("key", NEW, **options)

    def right(self, got):
        return got is None

    def fresh(self, got):
        return got in (OLD, NEW)


class Removed(Scenario):
    tester_builds = 0

    def prepare(self, site):
        for ask in (Value(), File()):
            ask.get(site)
        site.log.unlink()

    def act(self, site, options):
        return site.cache(**options).remove("key")

    def right(self, got):
        return isinstance(got, bool)


class Waited(Scenario):
    """Another process builds; the tester waits for it."""

    waits = True

    def other(self, site, go):
        def factory():
            site.build()
            go()
            return NEW

        return site.cache().get_or_create("key", factory)


class WaitedInVain(Waited):
    """Another process's build fails while the tester waits for it."""

    own_error = (ZeroDivisionError,)

    def other(self, site, go):
        def factory():
            site.build()
            go()
            return 1 // 0

        with contextlib.suppress(ZeroDivisionError):
            site.cache().get_or_create("key", factory)


SCENARIOS = {
    "value": ValueMade,
    "large value": LargeMade,
    "file": FileMade,
    "folder": FolderMade,
    "refresh value": ValueRefreshed,
    "refresh file": FileRefreshed,
    "refresh folder": FolderRefreshed,
    "value hit": ValueHit,
    "file hit": FileHit,
    "failure": Failed,
    "failure of a folder": FailedFolder,
    "take over value": ValueTakenOver,
    "take over folder": FolderTakenOver,
    "take over newborn": NewbornTakenOver,
    "reap": Reaped,
    "reap newborn": NewbornReaped,
    "set": Set,
    "remove": Removed,
    "wait": Waited,
    "wait for a failure": WaitedInVain,
    "notes": NotesMade,
}


# -- faults to be found: each must make the same check complain ---------------------------


def keep_lock_after_failing_unlink():
    """Release a claim without a ``finally``: a refused unlink keeps the lock."""

    def release(self):
        if self.released:
            return
        self.released = True
        self.door.stop_heartbeat(self.fd)
        self.door.unlink(self.path)
        _claim._let_go(self.door, self.fd, self.locked)

    _claim.Claim.release = release


def publish_in_place():
    """Copy a file into the entry rather than rename a finished folder onto it."""

    def install_folder(door, scratch, path, seen, trash):
        door.mkdir(path, 0o700)
        shutil.copy2(os.path.join(scratch, _path.META), path)
        for name in door.listdir(scratch):
            if name != _path.META:
                fd = door.open(os.path.join(path, name), _door.CREATE, 0o600)
                door.write(fd, Path(scratch, name).read_bytes())
                door.close(fd)
        door.remove_tree(scratch)
        return True

    _path.install_folder = install_folder


def reap_claims_only():
    """Remove a dead builder's claim and forget its scratch, here and in `Cache.reap`."""
    _claim.discard = lambda door, path: None
    _listing._remove_orphan = lambda door, path: False


# -- processes ---------------------------------------------------------------------------


class Hung(Exception):
    """A process did not answer in time; the text says where it stood."""


class Child:
    """A forked process that is told things and tells things, in lines of JSON."""

    def __init__(self, function, *, traces) -> None:
        self.traces = traces
        self.answers, theirs = os.pipe()
        orders, self.orders = os.pipe()
        self.buffer = b""
        self.status = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.answers)
                os.close(self.orders)
                with open(traces, "ab", buffering=0) as trace:
                    faulthandler.register(signal.SIGUSR1, file=trace)
                    function(
                        lambda word: os.write(theirs, json.dumps(word).encode() + b"\n"),
                        lambda: os.read(orders, 1),
                    )
                code = 0
            except BaseException:
                text = traceback.format_exc()
                os.write(theirs, json.dumps({"broke": text}).encode() + b"\n")
            finally:
                os._exit(code)
        os.close(theirs)
        os.close(orders)

    def order(self):
        os.write(self.orders, b"!")

    def hear(self, bound):
        """Return the next word; `None` if the process ended without one."""
        deadline = time.monotonic() + bound
        poll = select.poll()
        poll.register(self.answers, select.POLLIN)
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                raise Hung(self.where())
            data = os.read(self.answers, 65536)
            if not data:
                return None
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        word = json.loads(line)
        if isinstance(word, dict) and "broke" in word:
            raise AssertionError(f"the harness broke:\n{word['broke']}")
        return word

    def where(self):
        """Return the traceback of a process that hangs."""
        os.kill(self.pid, signal.SIGUSR1)
        time.sleep(0.1)
        return Path(self.traces).read_text()[-3000:]

    def end(self):
        """Kill the process if it is still there, and return its wait status."""
        if self.status is None:
            if not self._ended():
                os.kill(self.pid, signal.SIGKILL)
                self.status = os.waitpid(self.pid, 0)[1]
            os.close(self.answers)
            os.close(self.orders)
        return self.status

    def _ended(self):
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.status = status
        return bool(pid)


def _forked(function):
    """Return what a function returns in another process; `EOFError` if it dies."""
    fd, traces = tempfile.mkstemp()
    os.close(fd)
    child = Child(lambda tell, _: tell([function()]), traces=traces)
    try:
        word = child.hear(BOUND)
        if word is None:
            raise EOFError
        return word[0]
    finally:
        child.end()
        os.unlink(traces)


# -- one case ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    scenario: str
    number: int
    name: str = ""
    when: str = "before"
    error: int = 0
    bypass: bool = False
    reap_first: bool = False
    bound: float = BOUND
    mutant: str = ""

    def __str__(self) -> str:
        if self.error:
            how = f"{self.when} with {errno.errorcode[self.error]}"
            how += ", bypass" if self.bypass else ", raise"
        else:
            how = f"killed {self.when} it" if self.when != "half" else "killed half-way"
        then = ", then reap" if self.reap_first else ""
        mutant = f" [{self.mutant}]" if self.mutant else ""
        return f"{self.scenario}, call {self.number} ({self.name}): {how}{then}{mutant}"


@dataclass
class Verdict:
    complaints: list
    recovery: float = 0.0
    reached: bool = False


class Ground:
    """Prepared caches, and a place in which to play cases on copies of them."""

    def __init__(self, base) -> None:
        self.base = Path(base) / f"runner-{os.getpid()}"
        self.base.mkdir()
        self.templates = {}
        self.played = 0
        warm = Site(self.base, "warm").cache()  # what is loaded lazily is loaded before forks
        warm.set("warm", NEW)
        warm.get("warm")
        shutil.rmtree(self.base / "cache")
        gc.collect()
        gc.freeze()

    def lay(self, scenario):
        """Return a new place as the scenario wants it."""
        template = self.templates.get(scenario)
        if template is None:
            template = self.templates[scenario] = self.base / f"template-{len(self.templates)}"
            template.mkdir()
            child_site = Site(template, "before")
            _forked(lambda: SCENARIOS[scenario]().prepare(child_site))
        self.played += 1
        place = self.base / f"case-{self.played}"
        shutil.copytree(template, place)
        return place


def count(ground, scenario, mutant):
    """Return the names of the calls that a scenario makes when nothing happens."""
    place = ground.lay(scenario)
    verdict, calls = _trial(place, Case(scenario, -1, when="count", mutant=mutant))
    assert not verdict.complaints, verdict.complaints
    shutil.rmtree(place)
    return calls


def trial(ground, case):
    """Play one case and return the verdict."""
    place = ground.lay(case.scenario)
    try:
        return _trial(place, case)[0]
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _trial(place, case):
    scenario = SCENARIOS[case.scenario]()
    verdict = Verdict([])
    calls = []
    children = []
    go_read = go_write = None
    traces = place / "traces"

    def start(function):
        children.append(Child(function, traces=traces))
        return children[-1]

    def complain(text):
        verdict.complaints.append(f"{case}: {text}")

    try:
        if scenario.waits:
            go_read, go_write = os.pipe()

            def other(tell, _):
                os.close(go_write)

                def go():
                    tell("building")
                    os.read(go_read, 1)

                scenario.other(Site(place, "other"), go)

            other_child = start(other)
            assert other_child.hear(BOUND) == "building"

        tester = start(lambda tell, wait: _test(tell, wait, scenario, case, place, go_write))
        if scenario.waits:
            os.close(go_read)
            os.close(go_write)
        try:
            told = tester.hear(BOUND)
        except Hung as where:
            complain(f"the tester hangs:\n{where}")
            return verdict, calls
        if told is None:
            status = tester.end()
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                verdict.reached = True
            else:
                complain(f"the tester ended with status {status}")
        else:
            verdict.reached = told["reached"]
            calls = told["calls"]
            for text in told["complaints"]:
                complain(text)

        if scenario.waits:
            try:
                other_child.hear(BOUND)
            except Hung as where:
                complain(f"the other builder hangs:\n{where}")

        site = Site(place, "fresh")
        fresh = start(lambda tell, _: _recover(tell, scenario, case, site))
        try:
            while (word := fresh.hear(case.bound)) != "done":
                if word is None:
                    complain("the fresh process died")
                    break
                if isinstance(word, float):
                    verdict.recovery = word
                else:
                    complain(word)
        except Hung as where:
            complain(f"the fresh process hangs:\n{where}")
            return verdict, calls

        if told is not None:  # the process that was refused a call goes on
            tester.order()
            try:
                for text in tester.hear(BOUND) or ["the tester died later"]:
                    if text:
                        complain(text)
            except Hung as where:
                complain(f"the tester hangs when it asks again:\n{where}")
        expected = {"fresh": 1, "tester": scenario.tester_builds, "other": 1}
        for role, most in expected.items():
            if site.builds(role) > most:
                complain(f"{site.builds(role)} builds by the {role} process, expected {most}")
        if case.when == "count" and not case.scenario.startswith(
            ("failure", "wait for", "remove", "reap")
        ):
            assert site.builds("fresh") == 0
    finally:
        for child in children:
            child.end()
    return verdict, calls


def _test(tell, wait, scenario, case, place, go):
    """Be the tester: act, with something happening at one call; say how it ended."""
    number = None if case.when == "count" else case.number
    tempfile.tempdir = str(place)
    door = Interceptor(number, case.when, case.error)
    if case.mutant:
        globals()[case.mutant]()
    if go is not None:
        door.before_sleep = lambda: os.write(go, b"!")
    site = Site(place, "tester", door)
    options = {"on_store_error": "bypass"} if case.bypass else {}
    complaints = []
    door.armed = True
    try:
        got = scenario.act(site, options)
    except Exception as error:
        door.armed = False
        own = isinstance(error, scenario.own_error)
        allowed = isinstance(error, AtomcacheError) and not case.bypass
        if case.bypass and scenario.tester_builds == 0:
            allowed = isinstance(error, AtomcacheError)  # there is nothing to build instead
        if not own and not (allowed and case.when != "count"):
            last = traceback.extract_tb(error.__traceback__)[-4:]
            where = " < ".join(f"{each.name}:{each.lineno}" for each in reversed(last))
            complaints.append(f"the tester raised {error!r} ({where})")
    else:
        door.armed = False
        if not scenario.right(got):
            complaints.append(f"the tester got {scenario.ask.show(got)}")
    door.armed = False
    if go is not None:
        os.close(go)
    complaints += [f"the tester keeps open {each}" for each in _open_below(place / "cache")]
    tell({"reached": door.reached, "calls": door.calls, "complaints": complaints})
    wait()
    complaints = []
    site.role = "again"
    try:
        got = scenario.ask.get(site)
        if not scenario.fresh(got):
            complaints.append(f"asked again, the tester got {scenario.ask.show(got)}")
    except Exception as error:
        complaints.append(f"asked again, the tester raised {error!r}")
    if site.builds("again"):
        complaints.append("asked again, the tester built what was there")
    tell([*complaints, ""])


def _recover(tell, scenario, case, site):
    """Be the fresh process: get the value, have everything else removed."""
    if case.mutant == "reap_claims_only":
        reap_claims_only()

    def reap():
        site.cache().reap()
        left = leftovers(site.place / "cache")
        if left:
            tell(f"reap() leaves {[os.path.basename(each) for each in left]}")

    try:
        if case.reap_first:
            reap()
        began = time.monotonic()
        got = scenario.ask.get(site)
        tell(time.monotonic() - began)
        if not scenario.fresh(got):
            tell(f"the fresh process got {scenario.ask.show(got)}")
        reap()
        strangers = [
            name
            for shard in (site.place / "cache" / "v1").glob("??")
            for name in os.listdir(shard)
            if not is_entry(name) and ".temp" not in name
        ]
        if strangers:
            tell(f"there are strangers among the entries: {strangers}")
        if not list(site.cache().entries()):
            tell("the entry is not listed")
        for text in scenario.after(site):
            tell(text)
        if not scenario.fresh(scenario.ask.get(site)):
            tell("the fresh process got something else when it asked again")
    except Exception:
        tell(f"the fresh process raised {traceback.format_exc()}")
    tell("done")


def _open_below(folder):
    """Return the open files of this process that lie in a folder (Linux only)."""
    try:
        fds = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return []
    found = []
    for fd in fds:
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith(str(folder)):
                found.append(os.path.basename(target))
    return found


# -- many cases --------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of many cases."""

    played: int = 0
    missed: int = 0
    complaints: list = field(default_factory=list)
    slowest: float = 0.0
    slowest_case: str = ""

    def add(self, case, verdict):
        self.played += 1
        self.missed += not verdict.reached
        self.complaints += verdict.complaints
        if verdict.recovery > self.slowest:
            self.slowest, self.slowest_case = verdict.recovery, str(case)

    def merge(self, other):
        self.played += other.played
        self.missed += other.missed
        self.complaints += other.complaints
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case


def kills(scenario, calls):
    """Return a case for each point of a scenario at which a process can die."""
    cases = []
    for number, name in enumerate(calls):
        case = Case(scenario, number, name)
        cases.append(case)
        if name.endswith("os.write"):
            cases.append(replace(case, when="half"))
        cases.append(replace(case, when="after"))
    return cases


def _errors(name):
    if name == "start_heartbeat":
        return [errno.EAGAIN]
    if name == "boot_id>os.open":
        # A sandbox that hides it does so for good, and then a lease decides, not a lock.
        return [error for error in ERRNOS if error != errno.EACCES]
    return [*ERRNOS, errno.ENOLCK] if name.endswith("flock") else ERRNOS


def refusals(scenario, calls, when="fail"):
    """Return a case for each call of a scenario, each error and each choice of the caller."""
    return [
        Case(scenario, number, name, way, error, bypass)
        for number, name in enumerate(calls)
        if name not in NEVER_FAILS
        for way in ([when, f"half-{when}"] if name.endswith("os.write") else [when])
        for error in _errors(name)
        for bypass in (False, True)
    ]


def serve(line, base):
    """In a member of a crew: count calls and play cases as told; say now and then so."""
    ground = Ground(base)
    while True:
        try:
            what, given = line.connection.recv()[1]
        except EOFError:
            return
        if what == "count":
            line.tell(count(ground, *given))
            continue
        tally = Tally()
        spoken = time.monotonic()
        for case in given:
            tally.add(case, trial(ground, case))
            if time.monotonic() - spoken > 1:
                line.tell(None)
                spoken = time.monotonic()
        line.tell(tally)


class Players:
    """Some members of a crew that play cases at the same time."""

    def __init__(self, crew, base, number=4) -> None:
        self.members = [crew.start(serve, str(base)) for _ in range(number)]

    def count(self, scenario, mutant=""):
        """Return the names of the calls that a scenario makes."""
        self.members[0].tell(("count", (scenario, mutant)))
        return self.members[0].hear()

    def play(self, cases):
        """Play cases and return what came of them."""
        for number, member in enumerate(self.members):
            member.tell(("play", cases[number :: len(self.members)]))
        tally = Tally()
        for member in self.members:
            while (told := member.hear()) is None:
                pass
            tally.merge(told)
        return tally

    def must_pass(self, cases, record_property):
        """Play cases; there must be no complaint, and each must have come to its call."""
        assert cases
        tally = self.play(cases)
        record_property("cases", tally.played)
        record_property("slowest_recovery", round(tally.slowest, 4))
        print(f"{tally.played} cases, slowest {tally.slowest:.3f} s: {tally.slowest_case}")
        count = len(tally.complaints)
        assert not count, f"{count} complaints:\n" + "\n".join(tally.complaints)
        assert not tally.missed, f"{tally.missed} of {tally.played} cases missed their call"


@contextlib.contextmanager
def playing(tmp_path_factory, *, on_disk):
    """Players on the disk, or in memory where waiting for the disk would take too long."""
    memory = Path("/dev/shm")
    if on_disk or not os.access(memory, os.W_OK):
        base = tmp_path_factory.mktemp("players")
    else:
        base = Path(tempfile.mkdtemp(prefix="atomcache-players-", dir=memory))
    try:
        with Crew() as crew:
            yield Players(crew, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
