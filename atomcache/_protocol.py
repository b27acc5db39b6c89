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

from ._build import Build, enter, running
from ._circles import Circles, unclaimed
from ._claim import (
    LEASE,
    NEWBORN_GRACE,
    claim_path,
    leads_to,
    living_record,
    open_claim,
    reap,
    revoke,
    take,
)
from ._errors import (
    AtomcacheError,
    DontStore,
    StorageError,
    storage_error,
)
from ._failure import again
from ._flight import LOOK, Flights, Outcome
from ._keys import describe, function_of
from ._log import logger
from ._patience import Patience
from ._publish import MISS, Revoked, identify, remove
from ._record import read_failure, read_record
from ._stale import Stale

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from ._claim import Claim
    from ._door import Door
    from ._flight import Flight, Lead
    from ._layout import Layout
    from ._path import PathEntry
    from ._publish import Identity
    from ._record import Record
    from ._remote import Remote
    from ._value import ValueEntry
    from ._waiting import Waiting
    from ._watch import Watch

    Entry: TypeAlias = ValueEntry | PathEntry

RACE_PAUSE = 0.002
"""Seconds within which those who woke together to one dead owner spread out."""

_REBUILDS = 3
"""How often a build whose folder was deleted under it is started anew."""


class Protocol:
    """Gets entries of one cache, each built by one of all who ask.

    Parameters
    ----------
    door, layout
        The way to the operating system, and the names in the cache folder.
    watch
        Told of what happens.
    lease
        Seconds that an owner may be silent where its lock can't be seen.
    """

    def __init__(self, door: Door, layout: Layout, watch: Watch, lease: float = LEASE) -> None:
        self.door = door
        self.layout = layout
        self.watch = watch
        self.lease = lease
        self.flights = Flights(door)
        self.circles = Circles(layout)
        self.stale = Stale(self)
        self.published: Callable[[Entry], None] = lambda entry: None
        self.used: Callable[[], None] = lambda: None
        self.start_behind: Callable[[Callable[[], None]], None] = door.start_thread
        self.remote: Remote | None = None
        self.on_wait: Callable[[Waiting], object] | None = None

    def get(self, entry: Entry, started: float) -> Any:
        """Return an entry's value or path, built now if need be, once for all who ask."""
        self.miss(entry)
        old = self.stale.serve(entry, self.start_behind)
        if old is not MISS:
            return old
        try:
            return self._get(entry, started)
        except Exception as error:
            old = self.stale.rescue(entry, error)
            if old is MISS:
                raise
            return old

    def miss(self, entry: Entry) -> None:
        """Begin to get an entry that there is none of, or none that is fresh."""
        self.circles.refuse_own_key(entry)
        self.watch.tell("miss", entry.key)
        entry.damaged = lambda: self.watch.tell("corrupt", entry.key)

    def _get(self, entry: Entry, started: float) -> Any:
        patience = Patience(self.door, entry, self.on_wait)
        while True:
            flight, lead = self.flights.board(entry.path)
            if lead is not None:
                try:
                    outcome = self.lead(entry, lead, started, patience)
                finally:  # an interrupt may have come before its first line, or in its last
                    lead.land(None)
            else:
                outcome = self._follow(entry, flight, started, patience)
            if outcome is not None:
                return outcome.result()

    def fetch(self, entry: Entry, default: Any) -> Any:
        """Return what another machine has made, if the bucket has it."""
        from ._bring import bring

        return bring(self, entry, self.door.time(), default)

    def get_unstored(self, entry: Entry, error: OSError) -> Any:
        """Build an entry that `error` keeps from being read, or raise, as the caller chose."""
        self.circles.refuse_own_key(entry)
        return self.get_apart(entry, error).result()

    def get_apart(self, entry: Entry, error: OSError) -> Outcome:
        """Do as `get_unstored`, for whoever has asked already."""
        if isinstance(error, AtomcacheError):
            raise error
        return self._without_storing(entry, error)

    # -- elect -----------------------------------------------------------------------

    def lead(self, entry: Entry, lead: Lead, started: float, patience: Patience) -> Outcome | None:
        """Get the entry for all of this process who want it; they learn the outcome."""
        outcome = None
        try:
            lead.begin()
            outcome = self._attempt(entry, started, patience)
        finally:
            try:
                patience.end()
            finally:
                lead.land(None if outcome is None or outcome.alone else outcome)
        if outcome is not None and outcome.new:
            self.published(entry)  # last, because nobody waits for it
        return outcome

    def _follow(
        self, entry: Entry, flight: Flight, started: float, patience: Patience
    ) -> Outcome | None:
        path = claim_path(entry.path)
        began = self.door.monotonic()
        try:
            with self.circles.waiting(path, stops_loop=patience.any_left()) as waiting:
                self.circles.check(entry, waiting)
                patience.begin()
                if not flight.wait(patience.left()):
                    raise patience.ended(living_record(self.door, path))
        finally:
            patience.end()
            self.watch.tell("waited", entry.key, seconds=self.door.monotonic() - began)
        outcome = self.learn(entry, flight, started)
        # The leader's object is its own: values can be mutable.
        try:
            return self._look(entry, started) if outcome is LOOK else outcome
        except OSError as error:
            return self.get_apart(entry, error)

    def learn(self, entry: Entry, flight: Flight, started: float) -> Outcome | None:
        """Return what a flight's outcome is to a follower: an outcome, `LOOK`, or `None`."""
        outcome = flight.outcome
        if outcome is None:
            return None  # the leader gave up: elect another
        if outcome.error is not None:
            if entry.options.on_error == "retry" or outcome.at < started:
                return None
            return Outcome(error=again(outcome.error), at=outcome.at)
        if outcome.stored:
            return LOOK
        return None if entry.anew else outcome  # it may have begun before this caller asked

    # -- claim, or wait --------------------------------------------------------------

    def _attempt(self, entry: Entry, started: float, patience: Patience) -> Outcome:
        builds = 0
        try:
            while True:
                claim = take(self.door, self.layout, entry.path, self.lease)
                if claim is None:
                    outcome = self._wait(entry, started, patience)
                else:
                    try:
                        patience.end()
                        outcome = self._build(entry, claim, started, patience)
                    finally:  # an interrupt's traceback may be kept, and the claim with it
                        self._let_go(claim)
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

    def _let_go(self, claim: Claim) -> None:
        try:
            claim.release()
        except OSError as error:
            logger().warning("a claim is left for others to reap: %s: %s", claim.path, error)

    # -- look once more, build -------------------------------------------------------

    def _build(
        self, entry: Entry, claim: Claim, started: float, patience: Patience
    ) -> Outcome | None:
        """Build under a claim; `None` if the story has to start over."""
        build: Build | None = None
        try:
            seen = entry.identity()
            published = None if seen is None else self._look(entry, started)
            if published is None and seen is not None:
                published = self.stale.under_claim(entry)
            if published is not None:
                return published
            claim.sign(
                entry.what(),
                kind=entry.kind,
                key=describe(entry.key),
                tags=entry.options.tags,
                function=function_of(entry.key),
            )
            entry.prepare(claim.scratch)
            claim.scratch_made = True
            began = self.door.monotonic()
            build = Build(self.door, claim.path, claim, entry.options.tags)
            outer = None

            def run() -> Any:
                self.watch.tell("build_started", entry.key)
                return entry.build(claim.scratch)

            try:
                outer = enter(build)
                if self.remote is None:
                    made = run()
                else:
                    made = self.remote.make(entry, claim, build, started, patience, run)
            except DontStore as answer:
                made = entry.unstored(claim.scratch, answer.value)
                self.stale.not_stored(entry)
                seconds = self.door.monotonic() - began
                self.watch.tell("not_stored", entry.key, seconds=seconds)
                return Outcome(made, stored=False, alone=build.revoked())
            except Exception as error:
                if error is patience.gave_up:
                    raise
                if entry.lost(claim.scratch):
                    self._tell_lost(entry, claim, self.door.monotonic() - began, seen)
                    return None
                if entry.options.on_store_error == "bypass" and entry.is_full(error):
                    raise  # to build once more, elsewhere
                return self._fail(entry, build, error, self.door.monotonic() - began)
            finally:
                build.over = True
                if outer is not None:
                    running.reset(outer)
            took = self.door.monotonic() - began if build.took is None else build.took
            build.ended = build.ended or self.door.time()
            if not claim.is_mine():
                return Outcome(made, stored=False)  # a child forked by the factory
            return self._publish(entry, claim, build, made, took, seen, started)
        finally:
            if build is not None:
                build.over = True  # also where the line above was interrupted
                if build.behind is not None:
                    build.behind(False)

    # -- publish, or fail ------------------------------------------------------------

    def _publish(
        self,
        entry: Entry,
        claim: Claim,
        build: Build,
        made: Any,
        took: float,
        seen: Identity | None,
        started: float,
    ) -> Outcome | None:
        try:
            won, value = entry.publish(claim.scratch, made, took, seen, build)
        except Revoked:
            published = self._look(entry, started) if entry.kind == "value" else None
            if published is not None:
                return published  # it was set meanwhile
            logger().info("not kept, because it was removed meanwhile: %s", entry.what())
            made = entry.keep_revoked(claim.scratch, made)
            if not build.fetched:
                self.watch.tell("not_stored", entry.key, seconds=took)
            return Outcome(made, stored=False, alone=True)
        except OSError as error:
            if isinstance(error, AtomcacheError):
                return self._fail(entry, build, error, took)
            if entry.lost(claim.scratch):
                self._tell_lost(entry, claim, took, seen)
                return None
            self.watch.tell("error", entry.key, error=error)
            if entry.options.on_store_error == "bypass":
                logger().warning("%s is not stored: %s", entry.what(), error)
                if not build.fetched:
                    self.watch.tell("not_stored", entry.key, seconds=took)
                return Outcome(entry.keep_apart(made), stored=False)
            return self._fail(entry, build, storage_error(entry.what(), entry.path, error), took)
        except Exception as error:  # a codec's, for a value that it can't store
            return self._fail(entry, build, error, took)
        if not won:
            if not build.fetched:
                self.watch.duplicate(entry.key, entry.what(), entry.path, took)
            return self._look(entry, started)
        if self.remote is not None:
            self.remote.published(self, entry)
        self.watch.rebuilt(entry.path)
        self.watch.tell("fetched" if build.fetched else "build_finished", entry.key, seconds=took)
        self.stale.rebuilt(entry, replaced=seen is not None)
        if build.behind is not None:
            publish, build.behind = build.behind, None
            try:
                self.door.start_thread(lambda: publish(True))
            except RuntimeError:  # no more threads to be had, or the interpreter ends
                publish(True)
        return Outcome(value, new=True)

    def _tell_lost(self, entry: Entry, claim: Claim, took: float, seen: Identity | None) -> None:
        """Tell of a build whose scratch was removed by who took its owner for dead.

        Where the whole cache folder was deleted, nobody else has built it, or is about to.
        """
        there = identify(self.door, entry.path)
        taken = not leads_to(self.door, claim.path, claim.found)
        if there not in (None, seen) or (taken and identify(self.door, claim.path) is not None):
            self.watch.duplicate(entry.key, entry.what(), entry.path, took)

    def _fail(self, entry: Entry, build: Build, error: Exception, took: float) -> Outcome:
        """Tell those who sleep on the claim."""
        self.watch.tell("build_failed", entry.key, seconds=took, error=error)
        self.stale.failed(entry, error)
        claim = build.claim
        if claim is not None and claim.is_mine():
            try:
                claim.tell_failure(error)
                return Outcome(error=error, alone=build.revoked(), at=self.door.time())
            except OSError as trouble:
                logger().warning("those who wait will try themselves: %s", trouble)
        return Outcome(error=error)

    def _without_storing(self, entry: Entry, error: OSError) -> Outcome:
        """Decide what to do where no claim can be had."""
        self.watch.tell("error", entry.key, error=error)
        if entry.options.on_store_error != "bypass":
            return Outcome(error=storage_error(entry.what(), entry.path, error))
        if self.remote is not None:
            found = self.fetch(entry, MISS)
            if found is not MISS:
                return Outcome(found, stored=False)
        logger().warning("%s is built without storing it: %s", entry.what(), error)
        build = Build(self.door, claim_path(entry.path), None)
        outer = None
        try:
            outer = enter(build)
            unclaimed[build.path] = build
            return Outcome(entry.build_apart(), stored=False)
        except Exception as failure:
            return Outcome(error=failure)
        finally:
            build.over = True
            unclaimed.pop(build.path, None)
            if outer is not None:
                running.reset(outer)

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
                self._sleep(entry, path, fd, record, patience)
                published = self._look(entry, started)
                if published is not None:
                    return published
                # Who ends an attempt takes the claim away; who dies leaves it.
                dead = leads_to(door, path, found)
                if not dead:
                    if entry.options.on_error == "retry":
                        return None
                    told = read_failure(door, fd, found, record)
                    if told is None or told[1] < started or self._may_do_without(entry, told[0]):
                        return None
                    return Outcome(error=told[0], at=told[1])
        finally:
            door.close_kept(fd)
        self._reap(entry, path, found, record, dead, patience)
        return self._look(entry, started)

    def _may_do_without(self, entry: Entry, failure: Exception) -> bool:
        """Tell whether what failed is only that the builder could not store its result."""
        return isinstance(failure, StorageError) and entry.options.on_store_error == "bypass"

    def _look(self, entry: Entry, started: float) -> Outcome | None:
        value = entry.look(started)
        return None if value is MISS else Outcome(value)

    def _sleep(self, entry: Entry, path: str, fd: int, record: Record, patience: Patience) -> None:
        """Sleep until the owner lets go of its lock, or is dead."""
        began = self.door.monotonic()
        try:
            with self.circles.waiting(path, stops_loop=patience.any_left()) as waiting:
                self.circles.check(entry, waiting)
                left = patience.left()
                if left is not None and left <= 0:
                    let_go = self.door.lock_shared(fd)
                    if let_go:
                        self.door.unlock(fd)
                else:
                    patience.begin()
                    let_go = self.door.wait_shared(fd, left)
                if not let_go:
                    raise patience.ended(record)
        finally:
            self.watch.tell("waited", entry.key, seconds=self.door.monotonic() - began)

    def _reap(
        self,
        entry: Entry,
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
                self.watch.tell("taken_over", entry.key)
                return
            if dead:  # somebody else is at it
                patience.pause(found, record, RACE_PAUSE)
                return
        patience.pause(found, record)

    # -- set, remove -----------------------------------------------------------------

    def set(self, entry: ValueEntry, value: Any) -> None:
        """Put a value in the place of whatever is there.

        Who builds to replace something could replace this too, if it was not told.
        """
        if identify(self.door, entry.path) is not None:
            revoke(self.door, claim_path(entry.path))
        entry.replace(self.layout.new_scratch(entry.path), value)

    def remove(self, path: str) -> bool:
        """Remove an entry, if there is one; no build that is under way brings it back."""
        self.flights.detach(path)
        revoke(self.door, claim_path(path))
        self.stale.forget(path)
        return remove(self.door, path, self.layout.new_scratch(path))
