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
    """

    __slots__ = ("alone", "error", "new", "stored", "value")

    def __init__(
        self,
        value: Any = None,
        *,
        error: Exception | None = None,
        stored: bool = True,
        alone: bool = False,
        new: bool = False,
    ) -> None:
        self.value = value
        self.error = error
        self.stored = stored
        self.alone = alone
        self.new = new

    def result(self) -> Any:
        """Return the value or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class GivenUp(BaseException):
    """A build ends without a result and without a failure, and somebody else may build.

    No `Exception`, because it is not the factory's failure and nobody is told of it.
    """


class Absent(GivenUp):
    """Another machine has not made it either, and the caller does not want it built."""


LOOK = Outcome()
"""The outcome of a follower that has to look for itself."""


class Flight:
    """One attempt under way in this process."""

    __slots__ = ("bells", "landed", "outcome", "over")

    def __init__(self, landed: LockType) -> None:
        self.landed = landed
        self.landed.acquire()
        self.outcome: Outcome | None = None
        self.bells: list[Callable[[], None]] = []
        self.over = False

    def wait(self, timeout: float | None) -> bool:
        """Sleep until the leader is done; `False` if `timeout` seconds passed first."""
        if not self.landed.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            return False
        self.landed.release()  # wakes the next follower
        return True


class Flights:
    """All flights of one process, by entry."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.forget()

    def board(self, entry: str) -> tuple[Flight, bool]:
        """Return the flight for an entry, and whether the caller is to lead it."""
        if self._pid != self._door.getpid():
            self.forget()
        with self._lock:
            flight = self._flights.get(entry)
            if flight is not None:
                return flight, False
            flight = self._flights[entry] = Flight(self._door.allocate_lock())
            return flight, True

    def land(self, entry: str, flight: Flight, outcome: Outcome | None) -> None:
        """End a flight: everybody on it learns `outcome`; `None` means none came."""
        flight.outcome = outcome
        with self._lock:
            if self._flights.get(entry) is flight:
                del self._flights[entry]
            bells, flight.bells = flight.bells, []
            flight.over = True
        flight.landed.release()
        for ring in bells:
            ring()

    def detach(self, entry: str | None = None) -> None:
        """Have later callers start a flight of their own; of every entry, if none is given."""
        with self._lock:
            if entry is None:
                self._flights.clear()
            else:
                self._flights.pop(entry, None)

    def when_landed(self, flight: Flight, ring: Callable[[], None]) -> None:
        """Have `ring` called, in whatever thread, once the flight has ended; or at once."""
        with self._lock:
            if not flight.over:
                flight.bells.append(ring)
                return
        ring()

    def forget_bell(self, flight: Flight, ring: Callable[[], None]) -> None:
        """Take back what was given to `when_landed`, for who will not wait any longer."""
        with self._lock:
            if ring in flight.bells:
                flight.bells.remove(ring)

    def forget(self) -> None:
        """Start afresh in a forked child, where the leaders did not come along."""
        self._pid = self._door.getpid()
        self._lock = self._door.allocate_lock()
        self._flights: dict[str, Flight] = {}
