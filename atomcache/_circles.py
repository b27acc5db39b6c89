"""Factories that would wait for themselves.

What it is for: a factory that asks for its own result, and two that each wait for what the other
builds, get an error instead of a sleep without end.  Whoever waits inside of a build writes into
that build's claim what it waits for, before it looks; so of those who close a circle the last one
at least finds it closed, in whatever processes they run.

Who calls it: the protocol, before each wait; for event loops, `_tasks`.  What may go wrong:
`CircularBuildError`, which is what it is for.  What a factory's own threads ask for is not
known to be part of its build, unless they were given its context.
"""

from __future__ import annotations

from ._build import running
from ._claim import claim_path, living_record
from ._errors import CircularBuildError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._build import Build
    from ._layout import Layout
    from ._protocol import Entry


class Circles:
    """Who waits for whom, in one cache.

    Attributes
    ----------
    unclaimed
        The builds of this process that have no claim, because the cache can't be written.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.unclaimed: dict[str, Build] = {}

    def refuse_own_key(self, entry: Entry) -> None:
        """Raise if this code runs in a build of that very entry."""
        path = claim_path(entry.path)
        for build in running.get():
            if build.path == path and not build.over:
                raise CircularBuildError(
                    f"the factory of {entry.what()} asked for its own result, in {path}. "
                    "Let it compute the value, or ask for another key"
                )

    def announce(self, path: str) -> None:
        """Write into the claims of the builds that wait here what they wait for."""
        for build in running.get():
            build.waits.append(path)
            if build.claim is not None:
                build.claim.tell_waiting(path)

    def announce_end(self, path: str) -> None:
        """Write into the claims of the builds that waited here that they do no more."""
        for build in running.get():
            build.waits.remove(path)
            if build.claim is not None:
                build.claim.tell_waited(path)

    def check(self, entry: Entry, path: str) -> None:
        """Raise if what we are about to wait for waits for one of our own builds.

        Whoever waits has announced it before it comes here, so of those who close a
        circle the last one at least finds it closed.
        """
        mine = [build for build in running.get() if not build.over]
        tokens = {build.claim.token for build in mine if build.claim is not None}
        ahead: list[tuple[str, tuple[str, ...]]] = [(path, ())] if mine else []
        visited = set()
        while ahead:
            path, chain = ahead.pop()
            if path in visited:
                continue
            visited.add(path)
            unclaimed = self.unclaimed.get(path)
            record = None if unclaimed is not None else living_record(self._layout.door, path)
            if record is not None:
                chain = (*chain, f"{record.what} (process {record.pid} on {record.host})")
                waits, closed = record.waits_for, record.token in tokens
            elif unclaimed is not None:
                chain = (*chain, f"what {path} would be the claim of (this process)")
                waits, closed = list(unclaimed.waits), unclaimed in mine
            else:
                continue
            if closed:
                raise CircularBuildError(
                    f"waiting for {entry.what()}, in {self._layout.directory}, would never end: "
                    f"it is built by whoever waits, in turn, for {', then '.join(chain)}. "
                    "Let one of these factories do without the other"
                )
            ahead += [(each, chain) for each in waits]
