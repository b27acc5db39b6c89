"""Factories that would wait for themselves.

What it is for: a factory that asks for its own result, and two that each wait for what the other
builds, get an error instead of a sleep without end.  Whoever waits inside of a build writes into
that build's claim what it waits for, before it looks; so of those who close a circle the last one
at least finds it closed, in whatever processes they run.  A thread that runs an event loop and
sleeps makes all builds wait that a coroutine of that loop is at.

Who calls it: the protocol, before each wait; for event loops, `_tasks`.  What may go wrong:
`CircularBuildError`, which is what it is for.  What a factory's own threads ask for is not
known to be part of its build, unless they were given its context.
"""

from __future__ import annotations

from ._at_work import TELLING, has_lock, is_at_others, is_at_work
from ._build import running
from ._claim import claim_path, living_record
from ._errors import CircularBuildError
from ._layout import CLAIM
from ._loops import fall_asleep, running_loop, wake

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._build import Build
    from ._layout import Layout
    from ._protocol import Entry


unclaimed: dict[str, Build] = {}
"""The builds of this process that have no claim because their cache can't be written, by the path
of what would be their claim: a circle may lead through several caches."""


class Circles:
    """Who waits for whom, as seen from one cache.

    Attributes
    ----------
    handed
        Tokens of the claims of builds that wait for this process as a whole.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.handed: frozenset[str] = frozenset()

    def refuse_own_key(self, entry: Entry) -> None:
        """Raise if this code runs in a build of that very entry."""
        path = claim_path(entry.path)
        for build in running.get():
            if build.path == path and not build.over:
                raise CircularBuildError(
                    f"the factory of {entry.what()} asked for its own result, in {path}. "
                    "Let it compute the value, or ask for another key"
                )
        if is_at_work(self._layout.door, entry.path):
            raise CircularBuildError(
                f"this very thread is at {entry.what()}, in {path}, and what came in between "
                "asked for the same: a signal handler, a finalizer or a callback. Let it ask for "
                "another key"
            )

    def waiting(self, path: str, *, stops_loop: bool) -> _Waiting:
        """Return what announces, as a context, that the builds that run here wait for a claim.

        Parameters
        ----------
        stops_loop
            Whether the thread sleeps, so that an event loop that it runs stands still.
        """
        return _Waiting(path, running_loop() if stops_loop else None)

    def check(self, entry: Entry, waiting: _Waiting) -> None:
        """Raise if what we are about to wait for waits for one of our own builds.

        Whoever waits has announced it before it comes here, so of those who close a
        circle the last one at least finds it closed.
        """
        door = self._layout.door
        if is_at_work(door, TELLING):
            raise CircularBuildError(
                f"a callback that is told of waits can't wait itself, for {entry.what()}, in "
                f"{self._layout.directory}: those that it is told of may have to wait for it. "
                "Let it ask in another thread"
            )
        if has_lock():
            raise CircularBuildError(
                f"what came in between, such as a signal handler or a finalizer, can't wait for "
                f"{entry.what()}, in {self._layout.directory}: this very thread has a lock that "
                "its builder may need. Ask again later, or in another thread"
            )
        mine = [build for build in waiting.builds if not build.over]
        tokens = {build.claim.token: build for build in mine if build.claim is not None}
        ahead: list[tuple[str, tuple[str, ...]]] = (
            [(waiting.path, ())] if mine or self.handed or is_at_others(door, waiting.path) else []
        )
        visited = set()
        while ahead:
            path, chain = ahead.pop()
            if path in visited:
                continue
            visited.add(path)
            apart = unclaimed.get(path)
            record = None if apart is not None else living_record(door, path)
            closed: Build | None
            if record is not None:
                chain = (*chain, f"{record.what} (process {record.pid} on {record.host})")
                waits, closed = record.waits_for, tokens.get(record.token)
                found = closed is not None or record.token in self.handed
            elif apart is not None:
                chain = (*chain, f"what {path} would be the claim of (this process)")
                waits, closed = list(apart.waits), apart if apart in mine else None
                found = closed is not None
            else:
                waits, closed, found = [], None, False
            # What came in between, as a signal handler or a finalizer does, runs in no build of
            # the thread that it keeps from going on.
            if found or (path != waiting.path and is_at_work(door, path[: -len(CLAIM)])):
                what = f"waiting for {entry.what()}, in {self._layout.directory}, would never end"
                raise CircularBuildError(_say(what, ", then ".join(chain), closed))
            ahead += [(each, chain) for each in waits]


def _say(what: str, chain: str, closed: Build | None) -> str:
    """Return the text of an error, by what of ours, or of whom we run for, would have to go on."""
    if closed is None or closed in running.get():
        return (
            f"{what}: it is built by whoever waits, in turn, for {chain}. Let one of these "
            "factories do without the other"
        )
    return (
        f"{what}: it needs {chain}, built by a coroutine of the event loop that runs in this "
        "thread and would stand still. Await the call instead, as aget_or_create, or ask from "
        "another thread, as with asyncio.to_thread"
    )


class _Waiting:
    """One wait for a claim, by the builds that stand still for as long."""

    def __init__(self, path: str, loop: object | None) -> None:
        self.path = path
        self.builds: tuple[Build, ...] = ()
        self._loop = loop

    def __enter__(self) -> _Waiting:
        builds = running.get()
        try:
            if self._loop is not None:
                needed = fall_asleep(self._loop)
                builds += tuple(build for build in needed if build not in builds)
            self.builds = builds
            for build in builds:
                build.waits.append(self.path)
                if build.claim is not None:
                    build.claim.tell_waiting(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            wake(self._loop)
        for build in self.builds:
            if self.path in build.waits:
                build.waits.remove(self.path)
            if build.claim is not None:
                build.claim.tell_waited(self.path)
