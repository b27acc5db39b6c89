"""The one narrow door to the operating system.

What it is for: every file call, lock, clock, sleep and random number of the protocol
goes through an object with the methods below, and through nothing else.  The real
door, `Door`, is as thin as a door can be: most of its methods *are* the functions of
`os`.  The simulator in the tests stands a different door in the same place and tries
every interleaving, crash and filesystem manner.

Who calls it: the protocol and the modules that read and write entries.  Factories,
builders and codecs never do; what they touch is theirs.

What may go wrong: every method may raise `OSError`.  `lock_exclusive` and
`wait_shared` raise it where the filesystem has no locks; callers fall back to
heartbeats.

On POSIX the locks are `fcntl.flock` itself rather than `filelock.lock_descriptor`,
which makes the same call: waiters need the shared mode, which that function lacks, and
importing filelock costs each waiter more processor time than all of its waiting (see
docs/decisions.md).  On Windows, where locking is hard to get right, filelock does it.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from _thread import RLock, allocate_lock, get_ident, start_new_thread
from time import monotonic, sleep
from time import time as wall_time

from ._at_work import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterator
    from typing import Any

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_CONTENDED = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
_O_BINARY = getattr(os, "O_BINARY", 0)

_O_NOATIME = getattr(os, "O_NOATIME", 0)
_O_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a FIFO planted in a file's place never blocks

READ = os.O_RDONLY | _O_BINARY | _O_NONBLOCK
"""Flags to read an entry."""
PROBE = os.O_RDWR | _O_BINARY | _O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
"""Flags to look at somebody's claim."""
NOTE = os.O_WRONLY | os.O_CREAT | _O_BINARY | getattr(os, "O_NOFOLLOW", 0)
"""Flags to write a file that always has the same content, whoever writes it."""
APPEND = os.O_APPEND
"""Flag to write whole lines at the end of a claim, whoever else does so at the same time."""
ADD = os.O_RDWR | os.O_CREAT | os.O_APPEND | _O_BINARY | getattr(os, "O_NOFOLLOW", 0)
"""Flags to add to a file that all processes add to or lock; where locks are those of records, as
on NFS, a shared one needs a file that can be read."""
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY | getattr(os, "O_NOFOLLOW", 0)  # mode 'x'
"""Flags of exclusive creation, the primitive lock of the whole protocol."""

_REMOVE_TRIES = 5
"""How often to start over a removal into which somebody writes."""

_POLL_SECONDS = 0.01

_inherited: set[int] = set()
"""Descriptors that a forked child must close: they keep the parent's claims alive."""

_forking = RLock()
"""Held while one of these is opened or closed, and by who forks, so that a child knows of each."""

_FORK_PATIENCE = 1.0
"""Seconds after which a thread forks although another one's `open` does not come back."""


class Door:
    """The operating system, as far as the protocol may see it."""

    can_wait = fcntl is not None
    """Whether `wait_shared` exists here; elsewhere waiters poll."""

    open_files_block = sys.platform == "win32"
    """Whether a file that somebody has open can't be removed or replaced."""

    upkeep = True
    """Whether uses are recorded and limits are kept; the simulator's histories do without."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    read = staticmethod(os.read)
    fstat = staticmethod(os.fstat)
    stat = staticmethod(os.stat)
    lstat = staticmethod(os.lstat)
    link = staticmethod(os.link)
    rename = staticmethod(os.rename)
    replace = staticmethod(os.replace)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    listdir = staticmethod(os.listdir)
    truncate = staticmethod(os.truncate)
    lseek = staticmethod(os.lseek)
    fsync = staticmethod(os.fsync)
    utime = staticmethod(os.utime)
    urandom = staticmethod(os.urandom)
    getpid = staticmethod(os.getpid)
    time = staticmethod(wall_time)
    monotonic = staticmethod(monotonic)
    sleep = staticmethod(sleep)
    allocate_lock = staticmethod(allocate_lock)
    allocate_rlock = staticmethod(RLock)
    thread = staticmethod(get_ident)

    def __init__(self) -> None:
        self._host: str | None = None
        self._boot: str | None = None

    def open_unnoticed(self, path: str) -> int:
        """Open a file to look at it, so that looking is not taken for a use."""
        if _O_NOATIME:
            try:
                return os.open(path, READ | _O_NOATIME)
            except PermissionError:  # another user's
                pass
        return os.open(path, READ)

    def scandir(self, path: str) -> Any:
        """Look into a folder without reading all of it at once."""
        return os.scandir(path)

    # -- whole files ---------------------------------------------------------------

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`; a short write goes on where it stopped."""
        written = os.write(fd, data)
        if written < len(data):
            rest = memoryview(data)
            while written < len(rest):
                written += os.write(fd, rest[written:])

    def map(self, fd: int, size: int) -> memoryview:
        """Map a file copy-on-write: pages are shared until this process changes them."""
        import mmap

        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY))

    def remove_tree(self, path: str) -> None:
        """Remove a folder and all in it, or a file; what is already gone is fine.

        A dead builder's child may still be writing there, and a builder may have left
        folders that not even their owner can write.
        """
        for attempt in range(_REMOVE_TRIES):
            try:
                _remove(path)
            except FileNotFoundError:
                if not os.path.lexists(path):
                    return  # else something in it went before we came to it
                if attempt + 1 == _REMOVE_TRIES:
                    raise
            except OSError:
                if attempt + 1 == _REMOVE_TRIES:
                    raise
                _make_removable(path)
            else:
                return

    def move(self, source: str, target: str) -> None:
        """Move a file or folder, also to another filesystem."""
        import shutil

        shutil.move(source, target)

    def temporary_folder(self) -> str:
        """Make a folder that is removed when the process ends."""
        import atexit
        import tempfile

        folder = tempfile.mkdtemp(prefix="atomcache-")
        maker = os.getpid()

        def remove() -> None:
            if os.getpid() == maker:  # not in a forked child
                self.remove_tree(folder)

        multiprocessing = sys.modules.get("multiprocessing.util")
        if multiprocessing is None:
            atexit.register(remove)
        else:  # its children end without atexit
            multiprocessing.Finalize(None, remove, exitpriority=0)
        return folder

    def sync_tree(self, path: str) -> None:
        """Force a file, or a folder and all in it, onto the disk."""
        for each in _walk(path):
            _sync(each)

    def sync_folder(self, path: str) -> None:
        """Force a folder's list of names onto the disk, where folders can be synced."""
        if sys.platform != "win32":
            _sync(path)

    def exchange(self, one: str, other: str) -> None:
        """Let two names in one filesystem change places, in one step.

        Linux's `renameat2` and macOS's `renamex_np`, which Python does not offer.  `OSError`
        with ``ENOSYS``, ``ENOTSUP`` or ``EINVAL`` where system or filesystem can't.
        """
        from . import _exchange

        _exchange.exchange(one, other)

    # -- locks -----------------------------------------------------------------------

    def lock_exclusive(self, fd: int) -> bool:
        """Try for the exclusive lock without waiting; `False` if somebody holds it."""
        if fcntl is None:
            from filelock import lock_descriptor

            return lock_descriptor(fd, blocking=False)
        return _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def lock_shared(self, fd: int) -> bool:
        """Try for a shared lock without waiting; exclusive where there is no other."""
        if fcntl is None:
            return self.lock_exclusive(fd)
        return _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def wait_shared(self, fd: int, timeout: float | None) -> bool:
        """Sleep until nobody holds the exclusive lock; `False` if `timeout` came first.

        The lock is let go again before this returns: it is a bell, not a possession.
        """
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no shared locks on this platform")
        if timeout is None:
            fcntl.flock(fd, fcntl.LOCK_SH)
            fcntl.flock(fd, fcntl.LOCK_UN)
            return True
        try:
            return _sleepers.wait(fd, timeout)
        except RuntimeError:  # no more threads to be had: poll
            end = monotonic() + timeout
            while not _flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB):
                if monotonic() >= end:
                    return False
                sleep(_POLL_SECONDS)
            fcntl.flock(fd, fcntl.LOCK_UN)
            return True

    def waiting_for_locks(self) -> dict[int, set[int]] | None:
        """Return which processes sleep on locks of each inode number, where the system tells.

        The table changes while it is read, so a line may come twice: hence processes.
        """
        try:
            with open("/proc/locks", encoding="ascii") as table:
                rows = [line.split() for line in table]
        except OSError:
            return None
        sleeping: dict[int, set[int]] = {}
        for row in rows:
            if len(row) > 6 and row[1] == "->" and row[2] == "FLOCK":
                inode = int(row[6].rpartition(":")[2])
                sleeping.setdefault(inode, set()).add(int(row[5]))
        return sleeping

    def unlock(self, fd: int) -> None:
        """Let go of a lock now, even if a forked child still has the file open."""
        if fcntl is None:
            from filelock import unlock_descriptor

            unlock_descriptor(fd)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)

    # -- life of a process -----------------------------------------------------------

    def open_kept(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Open a file that forked children close, so that they can't keep a claim alive."""
        with _forking:
            fd: int = self.open(path, flags, mode)
            _inherited.add(fd)
        return fd

    def close_kept(self, fd: int) -> None:
        """Close what `open_kept` opened."""
        with _forking:
            _inherited.discard(fd)
            os.close(fd)

    def show(self, fd: int) -> None:
        """Have other machines see what an open file says, as they do once it is closed.

        A network filesystem tells its server when a descriptor is closed, whichever of a
        file's it is; elsewhere this does nothing, and takes a microsecond.
        """
        if fcntl is not None:
            with _forking:
                os.close(os.dup(fd))

    def start_heartbeat(self, fd: int, period: float) -> None:
        """Touch the file behind `fd` every `period` seconds until told to stop."""
        from . import _heartbeat

        _heartbeat.start(fd, period)

    def stop_heartbeat(self, fd: int) -> None:
        """Touch `fd` no more; afterwards it may be closed."""
        from . import _heartbeat

        _heartbeat.stop(fd)

    def start_thread(self, function: Callable[[], None], *, daemon: bool = False) -> None:
        """Run `function` in a thread; a process waits for it before it ends, unless `daemon`."""
        from threading import Thread

        Thread(target=function, name="atomcache", daemon=daemon).start()

    def random(self) -> float:
        """Return a number from 0 to 1."""
        return int.from_bytes(os.urandom(4), "little") / 2**32

    def host(self) -> str:
        """Name of this machine, for people to read."""
        if self._host is None:
            self._host = os.uname().nodename if sys.platform != "win32" else _node_name()
        return self._host

    def boot_id(self) -> str:
        """Identify this running kernel: equal ids share one table of locks."""
        if self._boot is None:
            self._boot = _boot_id()
        return self._boot


def _flock(fd: int, operation: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(fd, operation)
    except OSError as error:
        if error.errno in _CONTENDED:
            return False
        raise
    return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except (IsADirectoryError, PermissionError):  # what the systems say of a folder
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
        import shutil

        shutil.rmtree(path)


def _make_removable(path: str) -> None:
    """Give ourselves back the right to change the folders in a tree."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return
    os.chmod(path, 0o700)  # before it is read, which it may not have allowed
    with os.scandir(path) as found:
        for each in found:
            if each.is_dir(follow_symlinks=False):
                _make_removable(each.path)


def _sync(path: str) -> None:
    fd = os.open(path, READ)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some filesystems sync folders by themselves, and refuse to be told.
        if error.errno != errno.EINVAL or not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise
    finally:
        os.close(fd)


def _walk(path: str) -> Iterator[str]:
    mode = os.lstat(path).st_mode
    if stat.S_ISREG(mode):
        yield path
    elif stat.S_ISDIR(mode):
        with os.scandir(path) as found:
            for each in found:
                yield from _walk(each.path)
        if sys.platform != "win32":
            yield path


def _node_name() -> str:
    import platform

    return platform.node()


def _boot_id() -> str:
    """Return the kernel's boot id on Linux; elsewhere the machine's network address.

    A machine without a boot id that restarts keeps its id.  That is harmless: a restart
    frees every lock, so a lock found free still means that its owner is gone.
    """
    try:
        fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        import uuid

        return f"node-{uuid.getnode():012x}"
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


class _Sleepers:
    """Waits for locks with a time limit, which `flock` itself does not have.

    One thread sleeps per claim, however many callers wait for that claim and however
    often they come back after a timeout, so an impatient caller can't pile up threads.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # a finalizer or a signal handler that waits may come in between
        self._bells: dict[tuple[int, int], LockType] = {}

    def wait(self, fd: int, timeout: float) -> bool:
        found = os.fstat(fd)
        claim = (found.st_dev, found.st_ino)
        with self._lock:
            bell = self._bells.get(claim)
            if bell is None:
                bell = allocate_lock()
                bell.acquire()
                with _forking:
                    copy = os.dup(fd)
                    _inherited.add(copy)
                try:
                    start_new_thread(self._sleep, (copy, claim, bell))
                except Exception:  # an interrupt comes when the thread has begun, and sees to it
                    door.close_kept(copy)
                    raise
                self._bells[claim] = bell
        if not bell.acquire(timeout=max(0.0, timeout)):
            return False
        bell.release()  # the next one in line
        return True

    def _sleep(self, fd: int, claim: tuple[int, int], bell: LockType) -> None:
        assert fcntl is not None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            with self._lock:
                self._bells.pop(claim, None)
            door.close_kept(fd)
            bell.release()


_sleepers = _Sleepers()
locks.extend((lambda: _forking, lambda: _sleepers._lock))


_forked_with: list[bool] = []
"""Whether who forks got hold of `_forking`."""


def _before_fork() -> None:
    _forked_with.append(_forking.acquire(timeout=_FORK_PATIENCE))


def _after_fork_in_parent() -> None:
    if _forked_with.pop():
        _forking.release()


def _after_fork_in_child() -> None:
    """Close what would keep the parent's claims alive; forget the parent's threads."""
    global _forking, _sleepers
    _forking = RLock()
    _forked_with.clear()
    _sleepers = _Sleepers()
    for fd in _inherited:
        try:
            os.close(fd)
        except OSError as error:
            if error.errno != errno.EBADF:  # closed by the program itself: as wanted
                raise
    _inherited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )

door = Door()
"""The door that everything uses unless a test puts another in its place."""
