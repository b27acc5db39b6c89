"""What has ended and may still be served, while it is built anew or because it can't be.

What it is for: ``stale_for`` gives callers the old value at once and has it rebuilt by a thread of
one process; ``stale_on_error`` and ``timeout`` give it to them in the place of an error.  That a
rebuild failed is written down as the time of an empty file, for all processes to wait before the
next try.

Who calls it: the protocol, when nothing fresh is there and when it has failed to get any; for
event loops, `_tasks`.  What may go wrong: an old value that can't be read counts as none, and is
logged.
"""

from __future__ import annotations

from contextvars import copy_context

from ._build import running
from ._door import NOTE
from ._errors import (
    BuilderError,
    BuildTimeout,
    CircularBuildError,
    CodecError,
    EntryNameError,
    OptionError,
)
from ._flight import GivenUp, Outcome
from ._freshness import CLOCK_SLACK
from ._header import NEVER
from ._layout import failure_mark
from ._log import logger
from ._patience import Patience
from ._publish import MISS, discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._protocol import Entry, Protocol

_MISTAKES = (CircularBuildError, CodecError, OptionError, EntryNameError, BuilderError)
"""Errors that say something about the program and not about its sources: never papered over."""

_REBUILD_PAUSE = 1.0
"""Seconds for which a process leaves a stale entry to another one that rebuilds it."""

_MOST_RESTING = 10_000


class Stale:
    """The old values of one cache, as one process sees them."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._door = protocol.door
        self._resting: dict[str, float] = {}
        self._failed: dict[str, tuple[float, bool]] = {}

    def serve(self, entry: Entry, start_thread: Callable[[Callable[[], None]], None]) -> Any:
        """Return a value that has ended and may still be served while it is built anew."""
        options = entry.options
        if entry.anew or (options.stale_for is None and options.stale_on_error is None):
            return MISS
        failed = self._failed_lately(entry)
        old = MISS
        if options.stale_for is not None:
            old = self._look_for_old(entry, options.stale_for)
            if old is not MISS and not failed:
                self._rebuild(entry, start_thread)
        if old is MISS and failed and options.stale_on_error is not None:
            old = self._look_for_old(entry, options.stale_on_error)
        if old is not MISS:
            self._protocol.watch.tell("stale", entry.key)
        return old

    def rescue(self, entry: Entry, error: Exception) -> Any:
        """Return a value that has ended and is better than the error; `MISS` if there is none."""
        options = entry.options
        if entry.anew or isinstance(error, _MISTAKES):
            return MISS
        old = MISS
        if isinstance(error, BuildTimeout) and error.entry == entry.path:
            old = self._look_for_old(entry, NEVER)
        elif options.stale_on_error is not None:
            old = self._look_for_old(entry, options.stale_on_error)
            if old is not MISS:
                self._note_failure(entry, error)
        if old is not MISS:
            self._protocol.watch.tell("stale", entry.key, error=error)
        return old

    def _look_for_old(self, entry: Entry, tolerate: float) -> Any:
        try:
            return entry.look_for_old(tolerate)
        except OSError as error:
            logger().warning("%s can't be read: %s", entry.what(), error)
            return MISS

    def _rebuild(self, entry: Entry, start_thread: Callable[[Callable[[], None]], None]) -> None:
        """Build an entry anew in a thread, unless somebody is at it; the caller does not wait.

        A process that ends waits for the thread; one that is killed leaves what any killed
        builder leaves, and another takes over.
        """
        protocol = self._protocol
        now = self._door.monotonic()
        if self._resting.get(entry.path, now) > now:
            return
        _, lead = protocol.flights.board(entry.path)
        if lead is None:
            return
        from copy import copy

        behind = copy(entry)
        behind.options = entry.options.without_waiting()

        def build() -> None:
            running.set(())  # the build is no part of the one that its caller may be in
            error: Exception | None = None
            try:
                patience = Patience(self._door, behind)
                outcome = protocol.lead(behind, lead, self._door.time(), patience)
                error = None if outcome is None else outcome.error
            except BuildTimeout:  # another process is at it
                self._rest(entry.path, _REBUILD_PAUSE)
            except GivenUp:  # whoever asks next sees to it
                return
            except Exception as raised:
                error = raised
            if isinstance(error, _MISTAKES):
                logger().error("%s can't be built anew: %s", entry.what(), error)
                self._rest(entry.path, entry.options.retry_after)
            elif error is not None:
                self._note_failure(entry, error)

        # What a factory takes from its caller's context is not part of the key, but must be the
        # same whether the caller waits or not.
        context = copy_context()
        try:
            start_thread(lambda: context.run(build))
            lead.leave()
        except RuntimeError as error:  # no more threads to be had, or the interpreter ends
            lead.land(None)
            logger().warning("%s is not built anew yet: %s", entry.what(), error)
        except BaseException:
            lead.land(None)
            raise

    def under_claim(self, entry: Entry) -> Outcome | None:
        """Return the old value if somebody failed to build it anew since the caller looked.

        Those who were to build it one after another would else each fail by themselves.
        """
        tolerate = self._tolerated(entry)
        if tolerate is None or not self._failed_lately(entry):
            return None
        old = self._look_for_old(entry, tolerate)
        if old is MISS:
            return None
        self._protocol.watch.tell("stale", entry.key)
        return Outcome(old)

    def not_stored(self, entry: Entry) -> None:
        """Note that a factory asked not to be stored; it would be asked anew by each who asks."""
        if entry.options.stale_for is not None:
            self._rest(entry.path, entry.options.retry_after)

    def failed(self, entry: Entry, error: Exception) -> None:
        """Write down, under the claim, that a rebuild failed, so that all processes wait."""
        if self._tolerated(entry) is None or isinstance(error, _MISTAKES):
            return
        try:
            if entry.identity() is not None:
                self._mark(entry)
        except OSError as trouble:
            logger().warning("other processes will try at once: %s", trouble)

    def _tolerated(self, entry: Entry) -> float | None:
        """Return how old an answer a caller takes that does not come to build."""
        given = (entry.options.stale_for, entry.options.stale_on_error)
        known = [each for each in given if each is not None]
        return None if entry.anew or not known else max(known)

    def _note_failure(self, entry: Entry, error: Exception) -> None:
        """Log that a rebuild failed, and see to it that nobody tries again at once."""
        logger().warning("%s could not be built anew: %r", entry.what(), error)
        if len(self._failed) >= _MOST_RESTING:
            self._failed.clear()
        marked = True
        try:
            if not self._marked_lately(entry):
                self._mark(entry)
        except OSError as trouble:
            marked = False
            logger().warning("other processes will try at once: %s", trouble)
        self._failed[entry.path] = self._door.monotonic() + entry.options.retry_after, marked

    def _mark(self, entry: Entry) -> None:
        now = self._door.time()
        fd = self._door.open(failure_mark(entry.path), NOTE, self._protocol.layout.file_mode)
        try:
            self._door.utime(fd, (now, now))
        finally:
            self._door.close(fd)

    def _failed_lately(self, entry: Entry) -> bool:
        """Tell whether a rebuild failed less than `retry_after` seconds ago."""
        if self._marked_lately(entry):
            return True
        until, marked = self._failed.get(entry.path, (0.0, False))
        over = marked and self._marked(entry) is None  # who built it since has removed the mark
        return until > self._door.monotonic() and not over

    def _marked_lately(self, entry: Entry) -> bool:
        """Tell whether any process wrote so down."""
        failed = self._marked(entry)
        if failed is None:
            return False
        return -CLOCK_SLACK <= self._door.time() - failed < entry.options.retry_after

    def _marked(self, entry: Entry) -> float | None:
        """Return when a process wrote down that a rebuild failed; `None` if none counts."""
        try:
            failed: float = self._door.stat(failure_mark(entry.path)).st_mtime
        except OSError:
            return None
        return failed

    def _rest(self, path: str, seconds: float) -> None:
        if len(self._resting) >= _MOST_RESTING:
            self._resting.clear()
        self._resting[path] = self._door.monotonic() + seconds

    def rebuilt(self, entry: Entry, *, replaced: bool) -> None:
        """Note that an entry could be built, so that no failure counts any more.

        Parameters
        ----------
        replaced
            Whether an old one was there; else hardly anybody has written down a failure.
        """
        self._resting.pop(entry.path, None)
        self._failed.pop(entry.path, None)
        if replaced or self._tolerated(entry) is not None:
            discard(self._door, failure_mark(entry.path))

    def forget(self, path: str) -> None:
        """Note that an entry is removed, and with it what is known of failures."""
        self._resting.pop(path, None)
        self._failed.pop(path, None)
        discard(self._door, failure_mark(path))
