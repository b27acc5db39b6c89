"""How long one caller has waited, for what, and how long it still may.

What it is for: the time limit of a call, the pauses of those who can't sleep in the
kernel, and for how long a claim has shown no sign of life.  All of it is told by this
process's own monotonic clock; nobody else's is asked.

Who calls it: the protocol, once per miss.  What may go wrong: `BuildTimeout`.
"""

from __future__ import annotations

from ._claim import appearance
from ._errors import BuildTimeout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from ._door import Door
    from ._protocol import Entry
    from ._record import Record
    from ._waiting import Wait, Waiting

SHORTEST_PAUSE = 0.001
LONGEST_PAUSE = 1.0
"""Seconds between two looks at a claim whose lock can't be slept on."""

PAUSE_SHARE = 8
"""A pause is this fraction of the time already waited, so a poller is late by an eighth
of the build at most, and looks a few dozen times per build rather than thousands."""


everywhere: list[Callable[[Waiting], object]] = []
"""Told of the waits of every cache in this process, as `show_waiting` wants."""


class Patience:
    """How long one caller has waited, for what, and how long it still may."""

    def __init__(
        self, door: Door, entry: Entry, on_wait: Callable[[Waiting], object] | None = None
    ) -> None:
        self._door = door
        self._entry = entry
        self._on_wait = on_wait
        self._wait: Wait | None = None
        self.gave_up: BuildTimeout | None = None
        self._began = door.monotonic()
        self._looks: tuple[int, ...] | None = None
        self._looks_so_since = self._began
        self._claim: tuple[int, ...] | None = None
        self._claim_since = self._began

    def left(self) -> float | None:
        """Return how many seconds the caller may still wait; `None` for no limit."""
        timeout = self._entry.options.timeout
        if timeout is None:
            return None
        waited: float = self._door.monotonic() - self._began
        return timeout - waited

    def any_left(self) -> bool:
        """Tell whether the caller waits at all."""
        left = self.left()
        return left is None or left > 0

    def begin(self) -> None:
        """Have it told that the caller waits, if anybody wants to know."""
        if self._wait is None and (self._on_wait is not None or everywhere):
            from ._waiting import begin

            self._wait = begin(self._entry, self._on_wait)

    def end(self) -> None:
        """Have it told that the caller waits no more."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.end()

    def unchanged(self, found: os.stat_result) -> float:
        """Return for how many seconds a claim has shown no sign of life, by our own clock."""
        now: float = self._door.monotonic()
        looks = appearance(found)
        if looks != self._looks:
            self._looks = looks
            self._looks_so_since = now
        if looks[:2] != self._claim:
            self._claim = looks[:2]
            self._claim_since = now
        return now - self._looks_so_since

    def pause(
        self, found: os.stat_result | None, record: Record | None, longest: float = LONGEST_PAUSE
    ) -> None:
        """Sleep a while, the longer the longer this claim has been waited for."""
        left = self.left()
        if left is not None and left <= 0:
            raise self.ended(record)
        self.begin()
        waited = 0.0 if found is None else self._door.monotonic() - self._claim_since
        pause = min(max(waited / PAUSE_SHARE, SHORTEST_PAUSE), longest)
        jitter = int.from_bytes(self._door.urandom(1)) / 255  # 0 to 1
        pause *= 0.5 + jitter
        self._door.sleep(pause if left is None else min(pause, left))

    def ended(self, record: Record | None) -> BuildTimeout:
        """Return the error that says who is still building."""
        owner = "somebody else"
        if record is not None:
            age = max(0.0, self._door.time() - record.started)
            owner = f"process {record.pid} on {record.host}, for {age:.1f} s so far,"
        error = BuildTimeout(
            f"{self._entry.what()} is still being built by {owner} after waiting "
            f"{self._entry.options.timeout} s, in {self._entry.path}. Raise timeout=, or ask "
            "again later"
        )
        error.entry = self._entry.path
        self.gave_up = error
        return error
