"""The story of `get_or_create`, in the order in which things happen.

A caller looks; this module takes over when there is nothing to be seen::

    elect     of the threads of this process that want the same entry, one leads
    claim     exclusive creation of data.temp, locked for as long as its owner lives
    look      once more: somebody may have published before the claim was had
    build     run the factory; what it makes goes into a scratch of its own
    publish   move the scratch into place, if nobody else was first
    fail      tell those who wait, so that one attempt fails once for all
    wait      sleep on somebody else's claim; on waking, look again
    reap      a claim whose owner is dead is removed, and the story starts over

What holds however locks behave: readers only ever see published entries, and publishing
is one atomic step that the first wins.  Locks only save work.

Who calls it: `Cache`, on a miss.  What may go wrong: `BuildTimeout`,
`CircularBuildError`, `StorageError`, and whatever the factory raises.
"""

from __future__ import annotations

import errno
from contextvars import ContextVar

from ._claim import (
    LEASE,
    NEWBORN_GRACE,
    claim_path,
    leads_to,
    living_record,
    open_claim,
    read_failure,
    read_record,
    reap,
    take,
)
from ._errors import AtomcacheError, CircularBuildError, StorageError
from ._failure import again
from ._flight import Flights, Outcome
from ._log import logger
from ._patience import Patience
from ._publish import MISS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any, TypeAlias

    from ._claim import Claim, Record
    from ._door import Door
    from ._flight import Flight
    from ._layout import Layout
    from ._path import PathEntry
    from ._publish import Identity
    from ._value import ValueEntry

    Entry: TypeAlias = ValueEntry | PathEntry

RACE_PAUSE = 0.002
"""Seconds within which those who woke together to one dead owner spread out."""

_REBUILDS = 3
"""How often a build whose folder was deleted under it is started anew."""

_building: ContextVar[tuple[Claim | str, ...]] = ContextVar("atomcache_building", default=())
"""The claims of the builds that this code runs in, outermost first; where a build has no
claim, because the cache can't be written, the path of the claim that it would have."""


class Protocol:
    """Gets entries of one cache, each built by one of all who ask.

    Parameters
    ----------
    door, layout
        The way to the operating system, and the names in the cache folder.
    lease
        Seconds that an owner may be silent where its lock can't be seen.
    """

    def __init__(self, door: Door, layout: Layout, lease: float = LEASE) -> None:
        self.door = door
        self.layout = layout
        self.lease = lease
        self.flights = Flights(door)

    def get(self, entry: Entry, started: float) -> Any:
        """Return an entry's value or path, built now if need be, once for all who ask."""
        self._refuse_own_key(entry)
        patience = Patience(self.door, entry)
        while True:
            flight, leading = self.flights.board(entry.path)
            if leading:
                outcome = self._lead(entry, flight, started, patience)
            else:
                outcome = self._follow(entry, flight, started, patience)
            if outcome is not None:
                return outcome.result()

    def get_unstored(self, entry: Entry, error: OSError) -> Any:
        """Build an entry that `error` keeps from being read, or raise, as the caller chose."""
        if isinstance(error, AtomcacheError):
            raise error
        self._refuse_own_key(entry)
        return self._without_storing(entry, error).result()

    # -- elect -----------------------------------------------------------------------

    def _lead(
        self, entry: Entry, flight: Flight, started: float, patience: Patience
    ) -> Outcome | None:
        outcome = None
        try:
            outcome = self._attempt(entry, started, patience)
        finally:
            self.flights.land(entry.path, flight, outcome)
        return outcome

    def _follow(
        self, entry: Entry, flight: Flight, started: float, patience: Patience
    ) -> Outcome | None:
        path = claim_path(entry.path)
        self._announce(path)
        try:
            self._check_circle(entry, path)
            if not flight.wait(patience.left()):
                raise patience.ended(living_record(self.door, path))
        finally:
            self._announce(None)
        outcome = flight.outcome
        if outcome is None:
            return None  # the leader gave up: elect another
        if outcome.error is not None:
            return (
                None if entry.options.on_error == "retry" else Outcome(error=again(outcome.error))
            )
        if not outcome.stored:
            return outcome
        return self._look(entry, started)  # an object of its own: values can be mutable

    # -- claim, or wait --------------------------------------------------------------

    def _attempt(self, entry: Entry, started: float, patience: Patience) -> Outcome:
        builds = 0
        try:
            while True:
                claim = take(self.door, self.layout, entry.path, self.lease)
                if claim is None:
                    outcome = self._wait(entry, started, patience)
                else:
                    outcome = self._build(entry, claim, started)
                    builds += 1
                if outcome is not None:
                    return outcome
                if builds == _REBUILDS:
                    raise FileNotFoundError(
                        errno.ENOENT, "the cache folder keeps vanishing", entry.path
                    )
        except AtomcacheError:
            raise
        except OSError as error:
            return self._without_storing(entry, error)

    # -- look once more, build -------------------------------------------------------

    def _build(self, entry: Entry, claim: Claim, started: float) -> Outcome | None:
        """Build under a claim; `None` if the story has to start over."""
        try:
            seen = entry.identity()
            published = None if seen is None else self._look(entry, started)
            if published is not None:
                return published
            claim.sign(entry.what())
            entry.prepare(claim.scratch)
            claim.scratch_made = True
            began = self.door.monotonic()
            running = _building.set((*_building.get(), claim))
            try:
                made = entry.build(claim.scratch)
            except Exception as error:
                if entry.lost(claim.scratch):
                    return None
                if entry.options.on_store_error == "bypass" and entry.is_full(error):
                    raise  # to build once more, elsewhere
                return self._fail(claim, error)
            finally:
                _building.reset(running)
            took = self.door.monotonic() - began
            if not claim.is_mine():
                return Outcome(made, stored=False)  # a child forked by the factory
            return self._publish(entry, claim, made, took, seen, started)
        finally:
            try:
                claim.release()
            except OSError as error:
                logger().warning("a claim is left for others to reap: %s: %s", claim.path, error)

    # -- publish, or fail ------------------------------------------------------------

    def _publish(
        self,
        entry: Entry,
        claim: Claim,
        made: Any,
        took: float,
        seen: Identity | None,
        started: float,
    ) -> Outcome | None:
        try:
            won, value = entry.publish(claim.scratch, made, took, seen)
        except OSError as error:
            if isinstance(error, AtomcacheError):
                return self._fail(claim, error)
            if entry.lost(claim.scratch):
                return None
            if entry.options.on_store_error == "bypass":
                logger().warning("%s is not stored: %s", entry.what(), error)
                return Outcome(entry.keep_apart(made), stored=False)
            return self._fail(claim, storage_error(entry.what(), entry.path, error))
        except Exception as error:  # a codec's, for a value that it can't store
            return self._fail(claim, error)
        return Outcome(value) if won else self._look(entry, started)

    def _fail(self, claim: Claim, error: Exception) -> Outcome:
        """Tell those who sleep on the claim."""
        if claim.is_mine():
            try:
                claim.tell_failure(error)
            except OSError as trouble:
                logger().warning("those who wait will try themselves: %s", trouble)
        return Outcome(error=error)

    def _without_storing(self, entry: Entry, error: OSError) -> Outcome:
        """Decide what to do where no claim can be had."""
        if entry.options.on_store_error != "bypass":
            return Outcome(error=storage_error(entry.what(), entry.path, error))
        logger().warning("%s is built without storing it: %s", entry.what(), error)
        running = _building.set((*_building.get(), claim_path(entry.path)))
        try:
            return Outcome(entry.build_apart(), stored=False)
        except Exception as failure:
            return Outcome(error=failure)
        finally:
            _building.reset(running)

    # -- wait, reap ------------------------------------------------------------------

    def _wait(self, entry: Entry, started: float, patience: Patience) -> Outcome | None:
        """Sleep until the owner is done or dead; `None` if the story has to start over."""
        door = self.door
        path = claim_path(entry.path)
        fd = open_claim(door, path)
        if fd is None:
            published = self._look(entry, started)
            if published is None:
                patience.pause(None, None)
            return published
        try:
            found = door.fstat(fd)
            record = read_record(door, fd)
            dead = False
            if record is not None and door.can_wait and record.lock_is_proof(door, found):
                if door.lock_shared(fd):
                    door.unlock(fd)
                    dead = leads_to(door, path, found)
                else:
                    self._sleep(entry, path, fd, record, patience)
                if not dead:  # the attempt has ended: what came of it?
                    published = self._look(entry, started)
                    if published is not None or entry.options.on_error == "retry":
                        return published
                    failure = read_failure(door, fd, found, record)
                    return None if failure is None else Outcome(error=failure)
        finally:
            door.close_claim(fd)
        self._reap(path, found, record, dead, patience)
        return self._look(entry, started)

    def _look(self, entry: Entry, started: float) -> Outcome | None:
        value = entry.look(started)
        return None if value is MISS else Outcome(value)

    def _sleep(self, entry: Entry, path: str, fd: int, record: Record, patience: Patience) -> None:
        """Sleep on the owner's lock."""
        self._announce(path)
        try:
            self._check_circle(entry, path)
            left = patience.left()
            if (left is not None and left <= 0) or not self.door.wait_shared(fd, left):
                raise patience.ended(record)
        finally:
            self._announce(None)

    def _reap(
        self,
        path: str,
        found: os.stat_result,
        record: Record | None,
        dead: bool,
        patience: Patience,
    ) -> None:
        """Remove the claim if its owner is known to be dead, else let some time pass."""
        may_be_silent = NEWBORN_GRACE if record is None else record.lease
        silent = patience.unchanged(found) >= may_be_silent
        if dead or silent or self.door.open_files_block:
            if reap(self.door, path, found, silent=silent):
                return
            if dead:  # somebody else is at it
                patience.pause(found, record, RACE_PAUSE)
                return
        patience.pause(found, record)

    # -- circles ---------------------------------------------------------------------

    def _refuse_own_key(self, entry: Entry) -> None:
        path = claim_path(entry.path)
        for build in _building.get():
            if (build if isinstance(build, str) else build.path) == path:
                raise CircularBuildError(
                    f"the factory of {entry.what()} asked for its own result, in {path}. "
                    "Let it compute the value, or ask for another key"
                )

    def _announce(self, path: str | None) -> None:
        """Write into the claims of the builds that wait here what they wait for."""
        for build in _building.get():
            if not isinstance(build, str):
                build.tell_waiting(path)

    def _check_circle(self, entry: Entry, path: str | None) -> None:
        """Raise if what we are about to wait for waits for one of our own builds.

        Whoever waits has announced it before it comes here, so of those who close a
        circle the last one at least finds it closed.
        """
        mine = {build.token for build in _building.get() if not isinstance(build, str)}
        chain: list[str] = []
        visited = set()
        while mine and path is not None and path not in visited:
            visited.add(path)
            record = living_record(self.door, path)
            if record is None:
                return
            chain.append(f"{record.what} (process {record.pid} on {record.host})")
            if record.token in mine:
                raise CircularBuildError(
                    f"waiting for {entry.what()}, in {self.layout.directory}, would never end: "
                    f"it is built by whoever waits, in turn, for {', then '.join(chain)}. "
                    "Let one of these factories do without the other"
                )
            path = record.waits_for


def storage_error(what: str, path: str, error: OSError) -> StorageError:
    """Say what could not be read or written, for which key, where, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "Look at the folder")
    return StorageError(
        error.errno or errno.EIO,
        f"{what} can't be kept: {error.strerror or error}. {remedy}, or pass "
        "on_store_error='bypass' to build without storing",
        error.filename or path,
    )


_REMEDIES = {
    errno.ENOSPC: "Make room on the disk",
    errno.EDQUOT: "Make room within your quota",
    errno.EROFS: "Choose a folder on a filesystem that can be written",
    errno.EACCES: "Choose a folder that this user can write to",
    errno.EPERM: "Choose a folder that this user can write to",
    errno.EMFILE: "Close files or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Close files or raise the system's limit of open files",
    errno.ENOTDIR: "Choose a folder; a part of this path is a file",
    errno.EEXIST: "Choose a folder; a part of this path is a file",
    errno.ENAMETOOLONG: "Choose a folder with a shorter path",
    errno.ENOENT: "See who deletes the folder",
}
