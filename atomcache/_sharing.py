"""How the processes of one test run share a fixture: who builds, who uses it, who ends it.

What it is for: a fixture is built by one worker, which keeps it alive for all others and ends
it when nobody can need it any more.  The cache elects the builder, `_workers` knows who may
still ask; this module knows the rest.  It knows it from files like those of `_workers`::

    <folder>/fixtures/<id>.0.alive  locked by the builder, until it has ended the fixture
    <folder>/fixtures/<id>.0.gw3    locked by a worker that uses it
    <folder>/fixtures/<id>.0.over   not locked: it is being ended, so nobody may begin to use it

The number counts how often a fixture had to be built: if its builder was killed, or somebody
asks after it was ended, the next number is built anew.

A builder ends a fixture when every worker is over, so that nobody can ask any more, and no
worker uses it.  It is over itself before it waits, and a worker ends and lets go in the
reverse order in which it began; so of all who wait, the one that began last waits for
nobody, and no two builders can wait for each other.

Who calls it: the pytest plugin.  What may go wrong: whatever the fixture raises, which is kept
and raised in every worker; `BuildTimeout`, `CodecError`; `OSError` where the temporary folder
knows no locks.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from time import monotonic

from ._errors import CodecError
from ._keys import describe
from ._workers import OVER, Lock, is_taken, touch, wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._cache import Cache
    from ._workers import Workers

_MISSING = object()


class Build:
    """What came of building a fixture, in the process that did.

    Parameters
    ----------
    value
        What the fixture returned or yielded.
    end
        Ends it; `None` if there is nothing to end.
    error
        What it raised instead.
    told
        What is told of the error to other workers: plain data.
    """

    def __init__(
        self,
        value: Any = None,
        *,
        end: Callable[[], None] | None = None,
        error: BaseException | None = None,
        told: Any = None,
    ) -> None:
        self.value = value
        self.end = end
        self.error = error
        self.told = told
        self.seconds = 0.0


class Wanted:
    """A fixture that somebody asks for.

    Parameters
    ----------
    name
        For people to read.
    identity
        Tells it from all others of this run: letters and digits.
    place
        Where it was found, for people to read.
    build
        Builds it.  An error that all workers are to see is returned, any other raised.
    describe
        Returns what is told of an error to other workers.
    values
        Returns the cache for its value, in a folder that is given.
    timeout
        As in `Options`.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        place: str,
        build: Callable[[], Build],
        describe: Callable[[BaseException], Any],
        values: Callable[[str], Cache],
        timeout: Any,
    ) -> None:
        self.name = name
        self.identity = identity
        self.place = place
        self.build = build
        self.describe = describe
        self.values = values
        self.timeout = timeout


class Loan:
    """What a worker gets when it asks for a fixture.

    Attributes
    ----------
    build
        The value, or what was raised.
    leave
        To be called when this worker has finished using it.
    end
        To be called at the end of this worker's session, for what was built by it just now.
    """

    def __init__(
        self,
        build: Build,
        *,
        leave: Callable[[], None] | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        self.build = build
        self.leave = leave
        self.end = end


class Sharing:
    """The fixtures of one run, seen from one of its processes.

    Parameters
    ----------
    folder
        Of the run; `None` if this process is the only one: then nothing is written.
    workers
        The processes of the run.
    note
        Called with what the summary is to tell.
    waiting
        Called before a builder waits for others.
    long, silent
        Called with the fixture's name and theirs if that takes long, and if it gives up.
    """

    def __init__(
        self,
        folder: str | None,
        workers: Workers | None,
        note: Callable[..., None],
        waiting: Callable[[], None],
        long: Callable[[str, list[str]], None],
        silent: Callable[[str, list[str]], None],
    ) -> None:
        self._workers = workers
        self._note = note
        self._waiting = waiting
        self._long = long
        self._silent = silent
        self._here: dict[str, Build] = {}
        self._numbers: dict[str, int] = {}
        self._cache: Cache | None = None
        if folder is not None:
            from ._cache import Cache

            self._folder = os.path.join(folder, "fixtures")
            self._values = os.path.join(folder, "values")
            self._cache = Cache(self._values)

    def get(self, wanted: Wanted) -> Loan:
        """Return a fixture, built now if no process of the run has it."""
        known = self._here.get(wanted.identity)
        if known is not None:
            return Loan(known)
        if self._cache is None or self._workers is None:
            return self._get_alone(wanted)
        self._workers.ask()
        while True:
            loan = self._get_shared(wanted, self._cache, self._workers.name)
            if loan is not None:
                return loan
            self._numbers[wanted.identity] = self._numbers.get(wanted.identity, 0) + 1

    def _get_alone(self, wanted: Wanted) -> Loan:
        build = self._here[wanted.identity] = _timed(wanted)
        self._tell("built", wanted, build.seconds, told=build.told)
        if build.end is None:
            return Loan(build)
        return Loan(build, end=lambda: self._end(wanted, build, None))

    def _get_shared(self, wanted: Wanted, cache: Cache, worker: str) -> Loan | None:
        """Return a fixture as often built as we know of; `None` if that one is no more."""
        number = self._numbers.get(wanted.identity, 0)
        path = os.path.join(self._folder, f"{wanted.identity}.{number}")
        # Without the parameters: a set's text, or a dict's, differs between workers.
        plain = wanted.name.partition("[")[0]
        value_key = f"fixture {plain} ({wanted.identity[:12]}, {number})"
        mine: list[tuple[Build, Lock | None]] = []

        def make() -> dict[str, Any]:
            build, alive = self._build(wanted, value_key, path)
            mine.append((build, alive))
            return {"seconds": build.seconds, "lives": alive is not None, "told": build.told}

        try:
            record = cache.get_or_create(f"{value_key} made", make, timeout=wanted.timeout)
        except BaseException:
            for build, alive in mine:  # that it was made could not be stored
                _discard(build, alive)
            raise
        if mine:
            [(build, alive)] = mine
            self._here[wanted.identity] = build
            if alive is None:
                return Loan(build)
            return Loan(build, end=lambda: self._end(wanted, build, (path, alive)))
        use = None
        if record["told"] is None and record["lives"]:
            use = Lock(f"{path}.{worker}")
            if os.path.exists(path + OVER) or not is_taken(path + ".alive"):
                use.end()
                wait(lambda: {"it": 0.0} if is_taken(path + ".alive") else {})  # is being ended
                return None
        if record["told"] is not None:
            build = self._here[wanted.identity] = Build(told=record["told"])
            return Loan(build)
        with ExitStack() as stack:
            if use is not None:
                stack.callback(use.end)
            value = _read(wanted, wanted.values(self._values), value_key)
            if value is _MISSING:  # removed by somebody
                return None
            stack.pop_all()
        self._tell("used", wanted, record["seconds"])
        return Loan(Build(value), leave=None if use is None else use.end)

    def _build(self, wanted: Wanted, value_key: str, path: str) -> tuple[Build, Lock | None]:
        """Build a fixture and store its value; return the lock that says that it is alive."""
        os.makedirs(self._folder, 0o700, exist_ok=True)
        with ExitStack() as stack:
            alive = Lock(path + ".alive")
            stack.callback(alive.end)
            build = _timed(wanted)
            if build.error is None:
                build = _store(wanted, wanted.values(self._values), value_key, build)
            self._tell("built", wanted, build.seconds, told=build.told)
            if build.end is None:
                return build, None
            stack.pop_all()
            return build, alive

    def _tell(self, what: str, wanted: Wanted, took: float, told: Any = None) -> None:
        number = self._numbers.get(wanted.identity, 0)
        named = {"identity": wanted.identity, "number": number, "place": wanted.place}
        self._note(what, wanted.name, took, told=told, **named)

    def _end(self, wanted: Wanted, build: Build, shared: tuple[str, Lock] | None) -> None:
        """End a fixture that this process built, once nobody can need it any more."""
        with ExitStack() as stack:
            if shared is not None:
                stack.callback(shared[1].end)
            stack.callback(self._here.pop, wanted.identity, None)
            if build.end is not None:
                stack.callback(build.end)  # also if waiting is interrupted
            if shared is not None and self._workers is not None:
                self._await_others(wanted, self._workers, shared[0])

    def _await_others(self, wanted: Wanted, workers: Workers, path: str) -> None:
        workers.over()
        if workers.others_at_work():
            self._waiting()
        notice = partial(self._long, wanted.name)
        silent = wait(workers.others_at_work, notice)
        touch(path + OVER)
        silent += wait(lambda: dict.fromkeys(self._users(path), 0.0), notice)
        if silent:
            self._silent(wanted.name, sorted(set(silent)))

    def _users(self, path: str) -> list[str]:
        prefix = os.path.basename(path) + "."
        names = [name for name in os.listdir(self._folder) if name.startswith(prefix)]
        users = [name for name in names if not name.endswith((".alive", OVER))]
        return [
            name.removeprefix(prefix)
            for name in users
            if is_taken(os.path.join(self._folder, name))
        ]


def _timed(wanted: Wanted) -> Build:
    began = monotonic()
    build = wanted.build()
    build.seconds = monotonic() - began
    return build


def _read(wanted: Wanted, values: Cache, value_key: str) -> Any:
    """Return a fixture's value, or that it is missing; one that can't be read is not missing."""
    value = values.get(value_key, _MISSING)
    if value is _MISSING and any(each.key == describe(value_key) for each in values.entries()):
        raise CodecError(
            f"the value of the shared fixture {wanted.name!r} was stored, but codec "
            f"{values._options.codec.name!r} can't read it here; the log tells why"
        )
    return value


def _store(wanted: Wanted, values: Cache, value_key: str, build: Build) -> Build:
    """Store a fixture's value; one that can't be stored is ended, and the error is its own.

    It is read once, since what no worker could read would be built by each of them.
    """
    try:
        values.set(value_key, build.value)
        try:
            _read(wanted, values, value_key)
        except CodecError as error:
            codec = values._options.codec
            try:
                codec.unpack(*codec.pack(build.value))
            except Exception as why:  # whatever a codec says of bytes that it can't read
                raise error from why
            raise
    except BaseException as error:
        _discard(build, None)
        if not isinstance(error, Exception):
            raise
        unstored = Build(error=error, told=wanted.describe(error))
        unstored.seconds = build.seconds
        return unstored
    return build


def _discard(build: Build, alive: Lock | None) -> None:
    """End what nobody has been given."""
    try:
        if build.end is not None:
            build.end()
    finally:
        if alive is not None:
            alive.end()
