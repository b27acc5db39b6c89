"""A filesystem, its locks, its clocks and its processes, all in one Python process.

A `World` holds what a kernel would: names, inodes, open files, locks, the time.  Each
contender is a greenlet that runs the library's own code over a `SimDoor`.  Every call
through the door that another process could notice is a *step*: the greenlet hands
control to the scheduler, which decides who goes on, who dies and what fails.  Between
two steps nothing else happens, so a list of the scheduler's choices is the whole
history, and the same choices give the same history.

Personalities differ in the few ways in which real filesystems do:

posix      locks die with their owner, open files can be removed, inodes are reused
windows    an open file can't be removed, renamed or replaced; no shared waiting
nfs        machines share files but no locks; sizes and times are seen late; clocks differ
hostile    as nfs, every lock is granted, and exclusive creation does not exclude
"""

from __future__ import annotations

import errno
import os
import stat

from greenlet import getcurrent, greenlet

S_FILE = stat.S_IFREG | 0o600
S_FOLDER = stat.S_IFDIR | 0o700

ATTRIBUTES_STALE = 3.0
"""Seconds for which an nfs client may show old sizes and times (acregmin in nfs(5))."""


class Stat:
    __slots__ = ("st_dev", "st_ino", "st_mode", "st_mtime", "st_mtime_ns", "st_size", "st_uid")

    def __init__(self, inode, device):
        self.st_dev = device
        self.st_ino = inode.number
        self.st_mode = inode.mode
        self.st_size = len(inode.data)
        self.st_mtime = inode.mtime
        self.st_mtime_ns = int(inode.mtime * 1_000_000_000)
        self.st_uid = 0

    def seen(self):
        return (self.st_ino, self.st_size, self.st_mtime)


class Inode:
    __slots__ = (
        "creator",
        "data",
        "folder",
        "links",
        "lock",
        "mode",
        "mtime",
        "number",
        "opened",
        "shown",
    )

    def __init__(self, number, folder, now):
        self.number = number
        self.folder = {} if folder else None
        self.mode = S_FOLDER if folder else S_FILE
        self.data = b""
        self.creator = None
        self.links = 1
        self.lock = {}  # lock domain (machine, or 0 for all): {open file: "EX" or "SH"}
        self.mtime = now
        self.opened = 0
        self.shown = {}  # machine: (Stat, until when it is shown), where attributes lag


class OpenFile:
    __slots__ = ("append", "inode", "offset", "path", "process", "written")

    def __init__(self, inode, process, path, append):
        self.append = append
        self.inode = inode
        self.process = process
        self.path = path
        self.offset = 0
        self.written = 0


class Machine:
    def __init__(self, number, clock_offset=0.0):
        self.number = number
        self.boot = f"boot-{number}"
        self.clock_offset = clock_offset


class Dead(BaseException):
    """Raised in what is left of a killed process when Python cleans it up."""


class Process:
    """One contender, or one of several threads of one, as the scheduler sees it."""

    def __init__(self, world, name, machine, function, sibling=None):
        self.world = world
        self.name = name
        self.machine = machine
        self.pid = sibling.pid if sibling else 100 + len(world.processes)
        self.files = sibling.files if sibling else {}
        self.siblings = sibling.siblings if sibling else []
        self.siblings.append(self)
        self.counter = sibling.counter if sibling else [0]
        self.door = sibling.door if sibling else SimDoor(world, self)
        self.alive = True
        self.done = False
        self.paused = False
        self.enabled = None  # a condition to wait for, if any
        self.wakes = None  # the time at which the wait ends in any case
        self.pending = "start"
        self.argument = ""
        self.fault = None
        self.result = None
        self.error = None
        self.building = False
        self.past = 0  # a hash of all that it has seen, which determines its state
        self.greenlet = greenlet(lambda: self._run(function))

    def _run(self, function):
        try:
            self.result = function(self)
        except Dead:
            return
        except Exception as error:
            self.error = error
        self.done = True

    def ready(self):
        return (
            self.alive
            and not self.done
            and not self.paused
            and (self.enabled is None or self.woken() or self.enabled())
        )

    def woken(self):
        return self.wakes is not None and self.wakes <= self.world.now

    def asleep(self):
        """Tell whether only the clock can make it go on."""
        return (
            self.alive
            and not self.done
            and not self.paused
            and self.wakes is not None
            and not self.woken()
            and not self.enabled()
        )


class World:
    """What a kernel knows.

    Parameters
    ----------
    personality
        One of the names in the module's docstring.
    machines
        How many there are; locks and kernels are shared within each.
    skew
        Seconds by which their clocks differ.
    """

    def __init__(self, personality="posix", machines=1, skew=1000.0):
        self.personality = personality
        self.posix = personality == "posix"
        self.blocking = personality == "windows"
        self.lagging = personality in ("nfs", "hostile")
        self.hostile = personality == "hostile"
        self.machines = [Machine(n, skew * n) for n in range(machines)]
        self.now = 1000.0
        self.numbers = 0
        self.free_numbers = []
        self.root = self._inode(True)
        self.processes = []
        self.heartbeats = {}
        self.history = []
        self.recording = False
        self.hub = None
        self.published = {}  # entry name: inode that stands there
        self.faults = []  # violations found while running
        self.entry_names = set()

    # -- names -----------------------------------------------------------------------

    def _inode(self, folder):
        if self.free_numbers:
            number = self.free_numbers.pop()  # reused at once, as ext4 does
        else:
            self.numbers += 1
            number = self.numbers
        return Inode(number, folder, self.now)

    def find(self, path):
        inode = self.root
        for part in path.split("/"):
            if not part:
                continue
            if inode.folder is None:
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
            inode = inode.folder.get(part)
            if inode is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return inode

    def parent(self, path):
        folder, _, name = path.rpartition("/")
        inode = self.find(folder)
        if inode.folder is None:
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
        return inode, name

    def _drop(self, inode):
        inode.links -= 1
        self._forget_if_unused(inode)

    def _forget_if_unused(self, inode):
        if inode.links <= 0 and not inode.opened:
            self.free_numbers.append(inode.number)
            if inode.folder:
                for child in inode.folder.values():
                    self._drop(child)
                inode.folder = {}

    def _blocked(self, inode, path):
        if self.blocking and self._opened_within(inode):
            raise PermissionError(errno.EACCES, "the file is open", path)

    def _opened_within(self, inode):
        if inode.opened:
            return True
        return bool(inode.folder) and any(map(self._opened_within, inode.folder.values()))

    # -- what a door does ------------------------------------------------------------

    def open(self, process, path, flags, mode):
        folder, name = self.parent(path)
        inode = folder.folder.get(name)
        if flags & os.O_CREAT:
            if inode is not None and flags & os.O_EXCL and not self._seen_late(process, inode):
                raise FileExistsError(errno.EEXIST, "it exists", path)
            if inode is None:
                inode = folder.folder[name] = self._inode(False)
                inode.creator = (process.machine.number, self.now)
                folder.mtime = self.now
        elif inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        file = OpenFile(inode, process, path, bool(flags & os.O_APPEND))
        inode.opened += 1
        inode.shown.pop(process.machine.number, None)  # opening refreshes attributes
        fd = 3
        while fd in process.files:
            fd += 1
        process.files[fd] = file
        return fd

    def _seen_late(self, process, inode):
        """Tell whether a machine may create what another created a moment ago."""
        if not self.hostile or inode.creator is None:
            return False
        machine, when = inode.creator
        return machine != process.machine.number and self.now - when < 1.0

    def close(self, process, fd):
        file = process.files.pop(fd, None)
        if file is None:
            raise OSError(errno.EBADF, "bad descriptor")
        self._unlock(file)
        file.inode.opened -= 1
        self._forget_if_unused(file.inode)

    def show(self, process, inode):
        """Return attributes as a machine sees them, late where they lag."""
        device = 7 + process.machine.number if self.lagging else 7
        if not self.lagging:
            return Stat(inode, device)
        shown = inode.shown.get(process.machine.number)
        if shown is None or shown[1] <= self.now:
            shown = (Stat(inode, device), self.now + ATTRIBUTES_STALE)
            inode.shown[process.machine.number] = shown
        return shown[0]

    def rename(self, process, source, target, replace):
        from_folder, from_name = self.parent(source)
        inode = from_folder.folder.get(from_name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        to_folder, to_name = self.parent(target)
        old = to_folder.folder.get(to_name)
        self._blocked(inode, source)
        if old is not None:
            if inode.folder is not None and (old.folder is None or old.folder):
                raise OSError(errno.ENOTEMPTY, "folder not empty", target)
            if inode.folder is None and old.folder is not None:
                raise IsADirectoryError(errno.EISDIR, "a folder", target)
            if self.blocking and not replace:
                raise FileExistsError(errno.EEXIST, "it exists", target)
            self._blocked(old, target)
        del from_folder.folder[from_name]
        self._place(process, to_folder, to_name, inode, target)
        if old is not None:
            self._drop(old)

    def exchange(self, process, one, other):
        if self.blocking:
            raise OSError(errno.ENOSYS, "names can't be exchanged here", one)
        folders = [self.parent(path) for path in (one, other)]
        for (folder, name), path in zip(folders, (one, other), strict=True):
            if name not in folder.folder:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
        (first, a), (second, b) = folders
        mine, theirs = first.folder[a], second.folder[b]
        self._place(process, first, a, theirs, one)
        self._place(process, second, b, mine, other)

    def link(self, process, source, target):
        inode = self.find(source)
        folder, name = self.parent(target)
        if name in folder.folder:
            raise FileExistsError(errno.EEXIST, "it exists", target)
        inode.links += 1
        self._place(process, folder, name, inode, target)

    def _place(self, process, folder, name, inode, target):
        if name in self.entry_names:
            self.watch_publish(process, name, inode, folder.folder.get(name))
        folder.folder[name] = inode
        folder.mtime = self.now

    def watch_publish(self, process, name, inode, old):
        """Be told of each thing that appears under an entry's name; for the checks."""

    def unlink(self, process, path):
        folder, name = self.parent(path)
        inode = folder.folder.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        if inode.folder is not None:
            raise IsADirectoryError(errno.EISDIR, "a folder", path)
        self._blocked(inode, path)
        del folder.folder[name]
        self._drop(inode)

    def remove_tree(self, process, path):
        try:
            folder, name = self.parent(path)
        except FileNotFoundError:
            return
        inode = folder.folder.get(name)
        if inode is not None:
            self._blocked(inode, path)
            del folder.folder[name]
            self._drop(inode)

    def mkdir(self, path):
        folder, name = self.parent(path)
        if name in folder.folder:
            raise FileExistsError(errno.EEXIST, "it exists", path)
        folder.folder[name] = self._inode(True)
        folder.mtime = self.now

    # -- locks -----------------------------------------------------------------------

    def _table(self, file):
        domain = file.process.machine.number if self.lagging else 0
        return file.inode.lock.setdefault(domain, {})

    def may_lock(self, file, how):
        if self.hostile:
            return True
        held = [mode for owner, mode in self._table(file).items() if owner is not file]
        return not held if how == "EX" else "EX" not in held

    def lock(self, file, how):
        if not self.may_lock(file, how):
            return False
        self._table(file)[file] = how
        return True

    def _unlock(self, file):
        for table in file.inode.lock.values():
            table.pop(file, None)

    # -- life and death --------------------------------------------------------------

    def start(self, name, function, machine=0, sibling=None):
        process = Process(self, name, self.machines[machine], function, sibling)
        self.processes.append(process)
        return process

    def kill(self, process):
        """End a process with all its threads: its files close, its locks go."""
        for each in process.siblings:
            each.alive = False
            each.building = False
            each.pending = "killed"
        for fd in list(process.files):
            self.close(process, fd)
        for key in [key for key in self.heartbeats if key[0] == process.pid]:
            del self.heartbeats[key]

    def bury(self):
        """Let Python clean up after killed and unfinished processes."""
        for process in self.processes:
            for each in process.siblings:
                each.alive = False
            if not process.greenlet.dead and process.greenlet:
                process.greenlet.throw(Dead)

    def advance(self, until):
        """Let time pass; hearts beat meanwhile."""
        for (pid, fd), beat in self.heartbeats.items():
            owner, inode, period, due = beat
            if any(each.paused for each in owner.siblings):
                continue
            while due <= until:
                inode.mtime = due
                due += period
            self.heartbeats[(pid, fd)] = (owner, inode, period, due)
        self.now = until

    # -- state -----------------------------------------------------------------------

    def state(self):
        """Return a hash of everything that can make a difference from now on."""
        return hash(
            (
                self.now,
                self._state_of(self.root),
                tuple(
                    (p.past, p.alive, p.done, p.paused, p.pending, p.argument, p.wakes)
                    for p in self.processes
                ),
                tuple(self.free_numbers),
            )
        )

    def _state_of(self, inode):
        locks = ()
        if inode.lock:
            locks = tuple(
                sorted(
                    (domain, owner.process.pid, mode)
                    for domain, table in inode.lock.items()
                    for owner, mode in table.items()
                )
            )
        if inode.folder is None:
            return (inode.number, inode.data, inode.mtime, locks, inode.opened)
        return (
            inode.number,
            inode.mtime,
            tuple(sorted((n, self._state_of(i)) for n, i in inode.folder.items())),
        )


class SimLock:
    """A lock between threads of one simulated process."""

    def __init__(self, door):
        self.door = door
        self.held = False

    def acquire(self, blocking=True, timeout=-1):
        if self.held and blocking:
            door = self.door
            door.wait("thread lock", lambda: not self.held, None if timeout < 0 else timeout)
        if self.held:
            return False
        self.held = True
        return True

    def release(self):
        assert self.held
        self.held = False

    def locked(self):
        return self.held

    __enter__ = acquire

    def __exit__(self, *_):
        self.release()


class SimRLock(SimLock):
    """One that its holder may take again."""

    def __init__(self, door):
        super().__init__(door)
        self.owner = None
        self.depth = 0

    def acquire(self, blocking=True, timeout=-1):
        me = self.door.me()
        if self.owner is not me and not super().acquire(blocking, timeout):
            return False
        self.owner = me
        self.depth += 1
        return True

    def release(self):
        self.depth -= 1
        if not self.depth:
            self.owner = None
            super().release()

    __enter__ = acquire


class SimDoor:
    """A door that opens on a `World`; see `atomcache._door.Door` for what each call means."""

    upkeep = False
    start_thread = None

    def __init__(self, world, process):
        self.world = world
        self.owner = process
        self.can_wait = not world.blocking
        self.open_files_block = world.blocking

    # -- stepping --------------------------------------------------------------------

    def me(self):
        """Return which thread of this process is running."""
        siblings = self.owner.siblings
        if len(siblings) == 1:
            return siblings[0]
        current = getcurrent()
        return next(each for each in siblings if each.greenlet is current)

    def step(self, name, argument=""):
        """Let the scheduler decide; return when it is our turn."""
        me = self.me()
        if not me.alive:
            raise Dead
        me.pending = name
        me.argument = argument
        self.world.hub.switch()
        if not me.alive:
            raise Dead
        if me.fault is not None:
            number, me.fault = me.fault, None
            me.past = hash((me.past, "fault", number))
            raise OSError(number, "made to fail", str(argument))
        return me

    def wait(self, name, enabled, timeout):
        """Block until `enabled()`; tell whether that came before the timeout."""
        me = self.me()
        me.enabled = enabled
        me.wakes = None if timeout is None else self.world.now + max(0.0, timeout)
        try:
            self.step(name)
        finally:
            me.enabled = me.wakes = None
        return self.saw(me, enabled())

    def saw(self, me, result):
        """Remember what a process learned: it determines what it does next."""
        me.past = hash((me.past, me.pending, result))
        return result

    def _attempt(self, me, function, *args):
        try:
            result = function(*args)
        except OSError as error:
            me.past = hash((me.past, me.pending, error.errno))
            raise
        return result

    # -- files -----------------------------------------------------------------------

    def open(self, path, flags, mode=0o777):
        me = self.step("open x" if flags & os.O_CREAT else "open", path)
        return self.saw(me, self._attempt(me, self.world.open, self.owner, path, flags, mode))

    def close(self, fd):
        if self.world.blocking:
            self.step("close", self.owner.files[fd].path)
        elif not self.owner.alive:
            raise Dead
        self.world.close(self.owner, fd)

    close_kept = close

    def read(self, fd, size):
        me = self.step("read", self.owner.files[fd].path)
        file = self.owner.files[fd]
        data = file.inode.data[file.offset : file.offset + size]
        file.offset += len(data)
        return self.saw(me, data)

    def lseek(self, fd, offset, whence):
        self.owner.files[fd].offset = offset

    def write(self, fd, data):
        """Append in two steps, so that a crash can come between."""
        data = bytes(data)
        file = self.owner.files[fd]
        half = len(data) // 2 if ".temp." in file.path else 0
        for part in (data[:half], data[half:]) if half else (data,):
            me = self.step("write", file.path)
            at = len(file.inode.data) if file.append else file.written
            file.inode.data = file.inode.data[:at] + part + file.inode.data[at + len(part) :]
            file.written = at + len(part)
            file.inode.mtime = self.world.now
            self.saw(me, len(part))

    def fstat(self, fd):
        me = self.me()
        if not me.alive:
            raise Dead
        found = self.world.show(self.owner, self.owner.files[fd].inode)
        self.saw(me, found.seen())
        return found

    def lstat(self, path):
        me = self.step("stat", path)
        inode = self._attempt(me, self.world.find, path)
        found = self.world.show(self.owner, inode)
        self.saw(me, found.seen())
        return found

    stat = lstat

    def link(self, source, target):
        me = self.step("link", target)
        self._attempt(me, self.world.link, self.owner, source, target)

    def rename(self, source, target):
        me = self.step("rename", target)
        self._attempt(me, self.world.rename, self.owner, source, target, False)

    def replace(self, source, target):
        me = self.step("replace", target)
        self._attempt(me, self.world.rename, self.owner, source, target, True)

    def exchange(self, one, other):
        me = self.step("exchange", other)
        self._attempt(me, self.world.exchange, self.owner, one, other)

    def unlink(self, path):
        me = self.step("unlink", path)
        self._attempt(me, self.world.unlink, self.owner, path)

    def remove_tree(self, path):
        me = self.step("remove", path)
        self._attempt(me, self.world.remove_tree, self.owner, path)

    def mkdir(self, path, mode=0o777):
        me = self.step("mkdir", path)
        self._attempt(me, self.world.mkdir, path)

    def listdir(self, path):
        me = self.step("list", path)
        inode = self._attempt(me, self.world.find, path)
        if inode.folder is None:
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", path)
        return list(self.saw(me, tuple(inode.folder)))

    def move(self, source, target):
        self.rename(source, target)

    def temporary_folder(self):
        folder = f"/apart-{self.owner.name}-{self.urandom(4).hex()}"
        self.mkdir(folder)
        return folder

    def utime(self, path, times):
        self._attempt(self.me(), self.world.find, path).mtime = times[1]

    def sync_tree(self, path):
        self.step("sync", path)

    sync_folder = sync_tree

    def fsync(self, fd):
        self.step("sync", self.owner.files[fd].path)

    # -- locks -----------------------------------------------------------------------

    def lock_exclusive(self, fd):
        file = self.owner.files[fd]
        me = self.step("lock", file.path)
        return self.saw(me, self.world.lock(file, "EX"))

    def lock_shared(self, fd):
        file = self.owner.files[fd]
        me = self.step("lock shared", file.path)
        return self.saw(me, self.world.lock(file, "SH"))

    def wait_shared(self, fd, timeout):
        file = self.owner.files[fd]
        world = self.world
        # It is let go at once, but for one step it is held: others' tries then fail.
        granted = self.wait("wait", lambda: world.may_lock(file, "SH"), timeout)
        if granted:
            world.lock(file, "SH")
            self.unlock(fd)
        return granted

    def unlock(self, fd):
        self.step("unlock", self.owner.files[fd].path)
        self.world._unlock(self.owner.files[fd])

    def open_kept(self, path, flags, mode=0o600):
        return self.open(path, flags, mode)

    # -- clocks and life -------------------------------------------------------------

    def show(self, fd):
        pass

    def start_heartbeat(self, fd, period):
        self.world.heartbeats[(self.owner.pid, fd)] = (
            self.owner,
            self.owner.files[fd].inode,
            period,
            self.world.now + period,
        )

    def stop_heartbeat(self, fd):
        self.world.heartbeats.pop((self.owner.pid, fd), None)

    def time(self):
        return self.saw(self.me(), self.world.now + self.owner.machine.clock_offset)

    def monotonic(self):
        return self.saw(self.me(), self.world.now - 17.0 * self.owner.machine.number)

    def sleep(self, seconds):
        self.wait("sleep", lambda: False, seconds)

    def urandom(self, size):
        self.owner.counter[0] += 1
        number = self.owner.pid * 1000 + self.owner.counter[0]
        return number.to_bytes(8, "little")[:size]

    def getpid(self):
        return self.owner.pid if self.owner.alive else -1

    def host(self):
        return f"machine-{self.owner.machine.number}"

    def boot_id(self):
        return self.owner.machine.boot

    def allocate_lock(self):
        return SimLock(self)

    def allocate_rlock(self):
        return SimRLock(self)

    def thread(self):
        return id(self.me())
