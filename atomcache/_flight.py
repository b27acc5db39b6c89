"""The threads of one process elect one of themselves.

What it is for: of all threads that miss the same entry at the same moment, one leads: it
claims, builds or waits for another process.  The others follow: they sleep without a
file or a lock of the system, and learn the outcome from the leader.  A process thus
has at most one claim per entry, and a hundred threads cost the machine one wait.

Who calls it: the protocol; for the tasks of event loops, which follow in the same way without
a thread that sleeps, `_tasks`.  What may go wrong: a leader that gives up (its timeout, a
`KeyboardInterrupt`) leaves no outcome; one of the followers then leads.
"""

from __future__ import annotations

from . import _at_work
from ._header import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import Any

    from ._door import Door


class Outcome:
    """How an attempt to get an entry ended.

    Attributes
    ----------
    value
        The result, if there is one.
    error
        What the factory or the storage raised, if that is how it ended.
    stored
        Whether the result can be read from the cache.
    alone
        Whether it is for the caller who built it only, because the entry was removed meanwhile.
    new
        Whether this attempt published it.
    at
        When an error was told (seconds since the epoch): who asks after that tries anew.
    """

    __slots__ = ("alone", "at", "error", "new", "stored", "value")

    def __init__(
        self,
        value: Any = None,
        *,
        error: Exception | None = None,
        stored: bool = True,
        alone: bool = False,
        new: bool = False,
        at: float = NEVER,
    ) -> None:
        self.value = value
        self.error = error
        self.stored = stored
        self.alone = alone
        self.new = new
        self.at = at

    def result(self) -> Any:
        """Return the value or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class GivenUp(BaseException):
    """A build ends without a result and without a failure, and somebody else may build.

    No `Exception`, because it is not the factory's failure and nobody is told of it.
    """


LOOK = Outcome()
"""The outcome of a follower that has to look for itself."""


class Flight:
    """One attempt under way in this process."""

    __slots__ = ("_allocate_lock", "bells", "outcome", "over")

    def __init__(self, allocate_lock: Callable[[], LockType]) -> None:
        self._allocate_lock = allocate_lock
        self.outcome: Outcome | None = None
        self.bells: list[Callable[[], None]] = []
        self.over = False

    def wait(self, timeout: float | None) -> bool:
        """Sleep until the leader is done; `False` if `timeout` seconds passed first."""
        bell = self._allocate_lock()
        bell.acquire()

        def ring() -> None:
            try:
                bell.release()
            except RuntimeError:  # it was rung already
                return

        self.when_over(ring)
        try:
            rung = bell.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            self.forget_bell(ring)
        return rung or self.over

    def when_over(self, ring: Callable[[], None]) -> None:
        """Have `ring` called, in whatever thread, once the flight has ended; or at once.

        It may be called twice.
        """
        self.bells.append(ring)
        if self.over and self.forget_bell(ring):
            ring()

    def forget_bell(self, ring: Callable[[], None]) -> bool:
        """Take a bell back, for who will not wait any longer; `False` if it rings already."""
        try:
            self.bells.remove(ring)
        except ValueError:
            return False
        return True

    def end(self, outcome: Outcome | None) -> None:
        """Wake everybody, each by a bell of its own, so that who is interrupted harms no other."""
        self.outcome = outcome
        self.over = True
        self.ring()

    def ring(self) -> None:
        """Wake those who are not awake yet."""
        while self.bells:
            try:
                ring = self.bells[-1]
            except IndexError:  # taken back meanwhile
                return
            ring()  # before it is taken away: an interrupt in between would strand its owner
            self.forget_bell(ring)


class Lead:
    """The leader's hold on its flight, which lands when this is gone at the latest."""

    __slots__ = ("_entry", "_flights", "_place", "flight")

    def __init__(self, flights: Flights, entry: str, flight: Flight) -> None:
        self.flight = flight
        self._entry = entry
        self._flights = flights
        self.begin()

    def begin(self) -> None:
        """Note that the calling thread leads from now on."""
        self._place = (self._flights.thread(), self._entry)
        _at_work.begin(self._place, self.flight)

    def leave(self) -> None:
        """Note that the calling thread does not lead, but another one."""
        _at_work.end((self._flights.thread(), self._entry), self.flight)

    def land(self, outcome: Outcome | None) -> None:
        """End the flight: everybody on it learns `outcome`; `None` means none came."""
        if self.flight.over:
            self.flight.ring()  # those whom an interrupt kept from being woken
        else:
            self._flights.land(self._entry, self.flight, outcome)
        _at_work.end(self._place, self.flight)

    def __del__(self) -> None:
        """Land what an interrupt between two lines would have left in the air for ever."""
        if hasattr(self, "_place"):  # else its constructor was interrupted
            self.land(None)


class Flights:
    """All flights of one process, by entry.

    Nothing here takes a lock: a signal handler or a finalizer may come in between any two lines,
    in the very thread that would hold it.  Single steps of `dict` and `list` are atomic.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self.thread = door.thread
        self._pid = door.getpid()
        self._flights: dict[str, Flight] = {}

    def board(self, entry: str) -> tuple[Flight, Lead | None]:
        """Return the flight for an entry, and if the caller is to lead it, its hold on that."""
        if self._pid != self._door.getpid():  # the leaders stayed in the parent
            self._flights = {}
            self._pid = self._door.getpid()  # last: another thread goes by it
        lead = Lead(self, entry, Flight(self._door.allocate_lock))
        try:
            flight = self._flights.setdefault(entry, lead.flight)
            if flight is lead.flight:
                return flight, lead
            lead.leave()
            return flight, None
        except BaseException:  # an interrupt, whose traceback may be kept, and the hold with it
            lead.land(None)
            raise

    def land(self, entry: str, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight; later callers start another one."""
        if self._flights.get(entry) is flight:
            self._flights.pop(entry, None)
        flight.end(outcome)

    def detach(self, entry: str | None = None) -> None:
        """Have later callers start a flight of their own; of every entry, if none is given."""
        if entry is None:
            self._flights.clear()
        else:
            self._flights.pop(entry, None)
