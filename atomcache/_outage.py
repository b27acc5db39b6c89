"""A store that can't be used is left alone for a while, with one warning.

What it is for: a store that is down costs the first call its time limit, and those after it
nothing.  It is tried again after some seconds, and after longer the more often that fails.

Who calls it: whatever asks a bucket.  What may go wrong: `StorageError` for what has to be told to
other machines and can't be.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ._bucket import StoreDown
from ._log import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from ._door import Door

    T = TypeVar("T")

FIRST_REST = 5.0
LONGEST_REST = 120.0
"""Seconds for which a store that failed is left alone; twice as long after each failure."""

QUIET = 600.0
"""Seconds between two warnings, of a store that comes and goes."""


_noting = threading.RLock()  # a finalizer that asks may come in between


class Outage:
    """Whether one store is worth a try."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self.over_at = 0.0
        self._rest = 0.0
        self._quiet_until = 0.0

    def usable(self) -> bool:
        """Tell whether the store is worth a try: not for a while after it failed."""
        return self._door.monotonic() >= self.over_at

    def note(self, error: StoreDown) -> None:
        """Leave the store alone for a while; warn once until it works again."""
        now = self._door.monotonic()
        with _noting:
            if now >= self.over_at:  # or several threads met the same failure
                self._rest = min(max(2 * self._rest, FIRST_REST), LONGEST_REST)
                self.over_at = now + self._rest
            quiet = now < self._quiet_until
            if not quiet:
                self._quiet_until = now + QUIET
        tell = logger().info if quiet else logger().warning
        tell("the bucket can't be used, so everything is built and kept locally: %s", error)

    def end(self) -> None:
        """Note that the store has answered."""
        if self._rest:
            logger().info("the bucket can be used again")
            self._rest = 0.0

    def insist(self, step: Callable[[], T]) -> T:
        """Do what has to be told to others, or raise."""
        from ._errors import StorageError

        try:
            return step()
        except StoreDown as error:
            self.note(error)
            raise StorageError(
                5, f"the bucket can't be changed: {error}. Try again when it can be reached", ""
            ) from error


def _after_fork_in_child() -> None:
    global _noting
    _noting = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
