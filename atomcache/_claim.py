"""The life of a claim: who may do what to ``data.temp``, and when.

A claim says "I am building this entry".  It is made by exclusive creation and stays
locked for as long as its owner lives, so a claim that can be locked has no owner::

    take      create it exclusively, lock it, make sure that the name still leads to it
    sign      write who the owner is
    build     hold it; the heartbeat touches it for those who can't see the lock
    tell      write what went wrong, for those who have it open
    release   remove it, let go, close it: whoever sleeps on it wakes

- Whole lines are appended to a claim, by its owner, or by somebody who removes the entry and
  tells the owner that what it builds is not to be kept (`revoke`).
- Only who holds the lock on the very file that the name leads to may remove the name.
- A claim is never taken over: it is removed, and the next owner makes a new one.

Between creation and signature a claim looks abandoned.  It is being born; `reap` leaves
the young alone for `NEWBORN_GRACE`.  If the owner was paused in that gap and lost its
claim, it finds out before it builds, because the name no longer leads to its file.

The first byte is never read: Windows locks it, and a locked byte can't be read there.

Who calls it: the protocol and `Cache.reap`.  What may go wrong: `OSError` from the door;
a claim with rubbish in it counts as one that is being born.
"""

from __future__ import annotations

import errno

from ._door import APPEND, CREATE, PROBE, READ
from ._failure import describe
from ._layout import CLAIM
from ._lines import read_lines, write_lines
from ._publish import REPLACED, REVOKED, STAGED, discard
from ._record import read_all, read_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Container, Iterable, Sequence
    from typing import TypeAlias

    from ._door import Door
    from ._layout import Layout
    from ._record import Record

    Wanted: TypeAlias = Callable[[str, Sequence[str]], bool]

LEASE = 30.0
"""Seconds without a heartbeat after which an owner that can't be seen counts as dead.
Long enough for a machine that swaps or a server that restarts, as in etcd's and Consul's
session defaults; nothing waits for it where the kernel's lock can be seen."""

BEATS_PER_LEASE = 3
"""Two lost heartbeats are an accident, three are a pattern."""

NEWBORN_GRACE = 0.1
"""Seconds that an unsigned claim is left alone.  Creation to signature takes some 50 us;
this is long for a crowded machine and short for whoever waits after a crash."""

_ROOM_TRIES = 10
"""How often a folder that vanishes under us is made anew before the error is shown."""

_CROWDED = 1 << 19
"""Bytes of a claim beyond which its build is given up rather than told of one more tag: not all
of a larger one would be read."""

_BLOCKED_TRIES = 5
"""How often to try to remove a claim that somebody has open at the moment (Windows)."""

NO_LOCKS = (
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EBADF,
)
"""What a filesystem says that has no locks, or none for a file open as ours is."""


class Claim:
    """A claim that this process owns; made by `take`."""

    released = True
    """Whether there is nothing to let go of, as before `take` hands it the descriptor."""

    def __init__(
        self,
        door: Door,
        path: str,
        fd: int,
        found: os.stat_result,
        locked: bool,
        lease: float,
    ) -> None:
        self.door = door
        self.path = path
        self.fd = fd
        self.found = found
        self.locked = locked
        self.lease = lease
        self.pid = door.getpid()
        self.token = door.urandom(8).hex()
        self.scratch = f"{path}.{self.token}"
        self.scratch_made = False
        self._waits_for: list[str] = []
        self._beating = False
        self._size = 0
        # A finalizer or a signal handler that waits, within this build, may come in between.
        self._writing = door.allocate_rlock()

    def sign(
        self,
        what: str,
        *,
        kind: str = "value",
        key: str = "",
        tags: Iterable[str] = (),
        function: str = "",
    ) -> None:
        """Write who owns the claim, and let the heart beat from now on."""
        door = self.door
        fields = {
            "token": self.token,
            "pid": str(self.pid),
            "host": door.host(),
            "boot": door.boot_id(),
            "device": str(self.found.st_dev),
            "locked": "1" if self.locked else "0",
            "lease": repr(self.lease),
            "started": repr(door.time()),
            "what": what,
            "kind": kind,
            "key": key,
            "function": function,
            "signed": "1",
        }
        told = [("tag", tag) for tag in tags]
        self._write(b"\n" + write_lines([*fields.items(), *told]))
        door.show(self.fd)
        self._beating = True  # first: an interrupt may come as soon as it does
        door.start_heartbeat(self.fd, self.lease / BEATS_PER_LEASE)

    def tell_waiting(self, claim: str) -> None:
        """Write that the owner waits for another claim too, so that circles can be found."""
        if self.is_mine():
            with self._writing:
                self._waits_for.append(claim)
                self._write_waits()

    def tell_waited(self, claim: str) -> None:
        """Write that the owner does not wait for another claim any more."""
        if self.is_mine():
            with self._writing:
                if claim in self._waits_for:
                    self._waits_for.remove(claim)
                    self._write_waits()

    def _write_waits(self) -> None:
        waits = "\0".join(sorted(set(self._waits_for)))
        self._write(write_lines([("waits-for", waits)]))

    def tell_failure(self, error: Exception) -> None:
        """Write what went wrong, for those who sleep on the claim."""
        now = self.door.time()
        lines = write_lines([("failed-at", repr(now)), ("failure", describe(error))])
        with self._writing:
            self._write(lines)

    def revoked(self, tags: Container[str] = ()) -> bool:
        """Tell whether somebody removed the entry since the claim was made.

        Whoever does so writes into the claim, so it is longer than what its owner wrote.  What
        another machine wrote may be seen late, and what the owner wrote too; and where
        exclusive creation excludes nobody, a claim may have two owners who write into it.

        Parameters
        ----------
        tags
            All tags of the entry: a factory may have given one only after entries that carry
            it were removed, of what it had read before.
        """
        if self.door.fstat(self.fd).st_size <= self._size:
            return False
        said = read_lines(read_all(self.door, self.fd, largest=None))
        return any(
            name == "revoked" or (name == "untagged" and value in tags) for name, value in said
        )

    def tell(self, lines: Iterable[tuple[str, str]]) -> None:
        """Write what the factory says, for those who look at builds."""
        told = write_lines(lines)
        if self.is_mine():
            with self._writing:
                self._write(told)

    def _write(self, lines: bytes) -> None:
        """Append lines, unless the claim is closed and its descriptor somebody else's."""
        if not self.released:
            self.door.write(self.fd, lines)
            self._size += len(lines)

    def is_mine(self) -> bool:
        """Tell whether this process made the claim, and is not a child forked later."""
        return self.pid == self.door.getpid()

    def release(self) -> None:
        """Remove the claim and let go, so that every sleeper wakes; then the scratch."""
        if self.released or not self.is_mine():
            return
        door = self.door
        try:
            self._stop_beating()
            if not door.open_files_block and leads_to(door, self.path, self.found):
                door.unlink(self.path)
        finally:
            self._stop_beating()  # if that was interrupted
            with self._writing:
                self._let_go()
            if door.open_files_block:
                _unlink_closed(door, self.path)
            if self.scratch_made:
                discard(door, self.scratch)

    def _stop_beating(self) -> None:
        if self._beating:
            self.door.stop_heartbeat(self.fd)
            self._beating = False

    def _let_go(self) -> None:
        try:
            if self.locked:
                self.door.unlock(self.fd)
        finally:
            self.released = True  # from here on, the number may be another file's
            self.door.close_kept(self.fd)

    def __del__(self) -> None:
        """Release what an interrupt between two lines would have left claimed for ever."""
        if not self.released:
            self.release()


def take(door: Door, layout: Layout, entry: str, lease: float) -> Claim | None:
    """Claim an entry; `None` if somebody else has it, or had it a moment ago."""
    path = claim_path(entry)
    fd = _create(door, layout, entry, path)
    if fd is None:
        return None
    claim: Claim | None = None
    locked: bool | None = False
    try:
        locked = _try_lock(door, fd)
        if locked is not False:
            found = door.fstat(fd)
            if leads_to(door, path, found):
                claim = Claim(door, path, fd, found, bool(locked), lease)
                claim.released = False
    except BaseException:
        if claim is not None and not claim.released:  # which sees to all of this itself
            raise
        # No grace for others to wait out: the name is ours to remove while we hold the lock.
        try:
            if locked is not False and leads_to(door, path, door.fstat(fd)):
                door.unlink(path)
        finally:
            _let_go(door, fd, bool(locked))
        raise
    if claim is None:
        _let_go(door, fd, bool(locked))
    return claim


def claim_path(entry: str) -> str:
    """Return the path of an entry's claim."""
    return entry + CLAIM


def open_claim(door: Door, path: str) -> int | None:
    """Open somebody's claim to look at it; `None` if it is gone."""
    try:
        return door.open_kept(path, PROBE)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except PermissionError:  # another user's, in a shared cache
        try:
            return door.open_kept(path, READ)
        except FileNotFoundError:
            return None
        except PermissionError:
            if door.open_files_block:  # being removed
                return None
            raise


def living_record(door: Door, path: str) -> Record | None:
    """Read the claim at `path`; `None` if there is none or its owner is known to be dead."""
    import stat

    fd = open_claim(door, path) if path.endswith(CLAIM) else None
    if fd is None:
        return None
    try:
        found = door.fstat(fd)
        record = read_record(door, fd) if stat.S_ISREG(found.st_mode) else None
        if record is None or not door.can_wait or not record.lock_is_proof(door, found):
            return record
        if not door.lock_shared(fd):
            return record
        door.unlock(fd)
        return None
    finally:
        door.close_kept(fd)


def revoke(door: Door, path: str, wanted: Wanted | None = None, *, tag: str | None = None) -> bool:
    """Tell the owner of a claim that what it builds is not to be kept; `False` if none is there.

    The owner looks whether it was told when what it publishes stands ready under a name that
    has its token in it, and then makes that the entry in one step.  Telling it first and
    then taking that name away leaves no moment in between: an owner that was not told in
    time has published before this returns, or finds nothing to publish.

    Parameters
    ----------
    wanted
        Asked whether a claim is meant, by its function and tags, if not every one is.
    tag
        Told to the owner of a claim that is not meant, for it may come to carry that yet.
    """
    try:
        fd = door.open_kept(path, PROBE | APPEND)
    except (FileNotFoundError, ValueError):
        return False
    try:
        record = read_record(door, fd)
        if tag is not None and not (record is not None and wanted and wanted(*_named(record))):
            _tell_untagged(door, fd, tag)
            # A tag that was given before that line is seen now, one given later by the owner.
            record = read_record(door, fd)
        if wanted is not None and (record is None or not wanted(*_named(record))):
            return False
        door.write(fd, b"\n" + write_lines([("revoked", "1")]))
        record = record or read_record(door, fd)
    finally:
        door.close_kept(fd)
    if record is not None:
        scratch = f"{path}.{record.token}"
        _take_away(door.rename, scratch + STAGED, scratch + REVOKED)
        # A value's scratch is what is published; a path's is a folder that is still built in.
        _take_away(door.unlink, scratch)
    return True


def _named(record: Record) -> tuple[str, Sequence[str]]:
    return record.function, record.tags


def _tell_untagged(door: Door, fd: int, tag: str) -> None:
    """Tell the owner of a claim that entries with a tag are removed, unless it says so."""
    told = read_all(door, fd)
    line = ("untagged", tag) if len(told) < _CROWDED else ("revoked", "1")
    if line not in read_lines(told):
        door.write(fd, b"\n" + write_lines([line]))


def _take_away(step: Callable[..., None], *names: str) -> None:
    try:
        step(*names)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        return  # nothing stands ready there


def reap(door: Door, path: str, seen: os.stat_result, *, silent: bool) -> bool:
    """Remove a dead owner's claim and scratch; `False` if it may not be done, or was.

    Parameters
    ----------
    path
        The claim.
    seen
        What it looked like when it was found abandoned.
    silent
        Whether it has stayed exactly so for as long as its owner may be silent.  Needed
        where a free lock proves nothing: unsigned claims, and owners that another kernel
        runs.
    """
    fd = open_claim(door, path)
    if fd is None:
        return False
    if door.open_files_block:
        return _remove_unopened(door, path, fd)
    locked: bool | None = False
    try:
        locked = _try_lock(door, fd)
        if locked is False:
            return False  # the owner lives, or somebody else is reaping
        found = door.fstat(fd)
        if not leads_to(door, path, found):
            return False
        record = read_record(door, fd)
        proof = bool(locked) and record is not None and record.lock_is_proof(door, found)
        if not proof and not (silent and appearance(found) == appearance(seen)):
            return False
        door.unlink(path)
    except FileNotFoundError:
        return False  # where locks prove nothing somebody else may have been faster
    finally:
        _let_go(door, fd, bool(locked))
    if record is not None:
        _discard_scratch(door, path, record)
    return True


def _discard_scratch(door: Door, path: str, record: Record) -> None:
    """Remove what a dead owner left; last, because it may be large and nobody waits for it.

    If it was killed just after it exchanged a path, what is staged is what somebody may hold.
    """
    from ._hold import discard_replaced

    scratch = f"{path}.{record.token}"
    discard(door, scratch)
    suffixes = (STAGED, REVOKED, REPLACED)
    discard_replaced(door, path[: -len(CLAIM)], *(scratch + suffix for suffix in suffixes))


def _remove_unopened(door: Door, path: str, fd: int) -> bool:
    """Reap where an open file can't be removed: the removal itself is the proof of death."""
    try:
        record = read_record(door, fd)
    finally:
        door.close_kept(fd)
    try:
        door.unlink(path)
    except (PermissionError, FileNotFoundError):
        return False
    if record is not None:
        _discard_scratch(door, path, record)
    return True


def leads_to(door: Door, path: str, found: os.stat_result) -> bool:
    """Tell whether a name still leads to the file that was opened."""
    try:
        named = door.lstat(path)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)


def appearance(found: os.stat_result) -> tuple[int, int, int, int]:
    """Return what changes whenever the owner of a claim shows a sign of life."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def _create(door: Door, layout: Layout, entry: str, path: str) -> int | None:
    for _ in range(_ROOM_TRIES):
        try:
            return door.open_kept(path, CREATE | APPEND, layout.file_mode)
        except FileExistsError:
            return None
        except FileNotFoundError:
            layout.make_room(entry)
        except PermissionError:
            if door.open_files_block and _exists(door, path):  # being removed
                return None
            raise
    return door.open_kept(path, CREATE | APPEND, layout.file_mode)


def _exists(door: Door, path: str) -> bool:
    try:
        door.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _try_lock(door: Door, fd: int) -> bool | None:
    """Try for the lock; `None` where the filesystem has no locks to give."""
    try:
        return door.lock_exclusive(fd)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise


def _let_go(door: Door, fd: int, locked: bool) -> None:
    """Unlock and close, in this order: a forked child may have the file open still."""
    try:
        if locked:
            door.unlock(fd)
    finally:
        door.close_kept(fd)


def _unlink_closed(door: Door, path: str) -> None:
    """Remove a claim that had to be closed first.

    If somebody opened it meanwhile, either they look at it and close it at once, or it is
    the claim of the next owner, which is theirs to remove.
    """
    for attempt in range(_BLOCKED_TRIES):
        try:
            door.unlink(path)
            return
        except FileNotFoundError:
            return
        except PermissionError:
            door.sleep(0.001 * 2**attempt)
