"""The processes of one test run, as they see each other: who lives, who is at work.

What it is for: whoever keeps something alive for others has to know when nobody can ask for
it any more.  It is told by files that the kernel holds locked while their owners live::

    <folder>/main             by the first process, as long as it replaces lost workers
    <folder>/workers/gw0      by a worker, for as long as it lives
    <folder>/workers/gw0.over not locked: this worker asks for nothing any more

A worker that was killed counts as at work until the first process has said whether it is
replaced: else a builder could take the moment between the two for the end of the run.

Who calls it: the pytest plugin and `_sharing`.  What may go wrong: `OSError` where the
temporary folder knows no locks.
"""

from __future__ import annotations

import os
from time import monotonic, sleep

from ._door import NOTE, READ, door

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SILENCE = 3600.0
"""Seconds for which a builder waits for workers that show no sign of life: none of them ends a
test, none ends.  Only a worker that hangs is silent that long, and then something has to end."""

NOTICE = 5.0
"""Seconds of waiting after which it is told who is waited for."""

_LONGEST_PAUSE = 0.05

OVER = ".over"
"""What the name of a mark ends in."""


class Lock:
    """A file that this process holds locked until it lets go, or dies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._owner = os.getpid()
        self._fd = door.open_kept(path, NOTE)
        pauses = _Pauses()
        while not door.lock_exclusive(self._fd):  # somebody is looking whether it is taken
            pauses.sleep()

    def beat(self) -> None:
        """Show a sign of life."""
        os.utime(self._path)

    def end(self) -> None:
        """Let go; a forked child has nothing to let go of, for its copy is closed."""
        if self._owner == os.getpid():
            self._owner = 0
            door.unlock(self._fd)
            door.close_kept(self._fd)


def is_taken(path: str) -> bool:
    """Tell whether a living process holds a lock."""
    try:
        fd = door.open(path, READ)
    except FileNotFoundError:
        return False
    try:
        if not door.lock_shared(fd):
            return True
        door.unlock(fd)
        return False
    finally:
        door.close(fd)


class Workers:
    """The processes of one run, seen from one of them.

    Parameters
    ----------
    folder
        Of the run, private to this user.
    name
        Of this worker; `None` in the first process, which starts the others.
    """

    def __init__(self, folder: str, name: str | None) -> None:
        self._folder = os.path.join(folder, "workers")
        self._main = os.path.join(folder, "main")
        self._owed: list[str] = []
        self.name = name or ""
        if name is None:
            os.mkdir(self._folder, 0o700)
            self._lock = Lock(self._main)
        else:
            self._lock = Lock(self._file(name))

    def end(self) -> None:
        """Let go: this process ends, or is the first one and replaces no more workers.

        From then on a worker whose lock is free is over, whatever the marks say.
        """
        self._lock.end()

    # -- in the first process ---------------------------------------------------------

    def expect(self, name: str) -> None:
        """Count a worker as being at work, before it is started."""
        touch(self._file(name))
        if self._owed:
            os.unlink(self._owed.pop())

    def lost(self, name: str, *, replaced: bool) -> None:
        """Count a worker that died as over; another one is about to be expected if `replaced`."""
        if replaced:
            self._owed.append(self._file(f"instead of {name}"))
            touch(self._owed[-1])
        touch(self._file(name) + OVER)

    # -- in a worker ------------------------------------------------------------------

    def beat(self) -> None:
        """Show that this worker gets on."""
        self._lock.beat()

    def ask(self) -> None:
        """Be at work, again if need be: a plugin may run the last test once more."""
        if self._over():
            os.unlink(self._file(self.name) + OVER)

    def over(self) -> None:
        """Tell the others that this worker asks for nothing any more."""
        try:
            touch(self._file(self.name) + OVER)
        except FileNotFoundError:  # the run ended without waiting for this worker
            return

    def others_at_work(self) -> dict[str, float]:
        """Return the other workers that may still ask, each with its last sign of life."""
        names = set(os.listdir(self._folder))
        names = {name for name in names if not name.endswith(OVER) and name + OVER not in names}
        if not is_taken(self._main):  # nobody is replaced any more: locks tell all
            names = {name for name in names if is_taken(self._file(name))}
        found = {}
        for name in names - {self.name}:
            try:
                found[name] = os.stat(self._file(name)).st_mtime
            except FileNotFoundError:  # its place was taken
                continue
        return found

    def _over(self) -> bool:
        return os.path.exists(self._file(self.name) + OVER)

    def _file(self, name: str) -> str:
        return os.path.join(self._folder, name.replace(os.sep, "_"))


class _Pauses:
    """The pauses between looks, each longer than the one before."""

    def __init__(self) -> None:
        self._next = 0.001

    def sleep(self) -> None:
        sleep(self._next)
        self._next = min(2 * self._next, _LONGEST_PAUSE)


def wait(
    look: Callable[[], dict[str, float]], notice: Callable[[list[str]], None] | None = None
) -> list[str]:
    """Wait until there is nothing to be seen; return what was there, unchanged, all the time.

    If that takes long, `notice` is called once with what is seen.
    """
    pauses = _Pauses()
    last: dict[str, float] = {}
    began = since = monotonic()
    while True:
        seen = look()
        if seen != last:
            last, since = seen, monotonic()
        if not seen or monotonic() - since > SILENCE:
            return list(seen)
        if notice is not None and monotonic() - began > NOTICE:
            notice(sorted(seen))
            notice = None
        pauses.sleep()


def touch(path: str) -> None:
    """Set a mark."""
    door.close(door.open(path, NOTE, 0o600))
