"""Who asks for what in a simulated world, and what must hold of every history.

A `Scenario` sets contenders on one key and knows what they may return.  `check` is asked
at the end of a history; what can only be seen while it happens (two builders at once, a
published entry replaced or torn) is noted by the world as it happens.
"""

from __future__ import annotations

import os

from atomcache import Cache
from atomcache._door import CREATE
from atomcache._errors import AtomcacheError, StorageError
from atomcache._header import Damaged, assemble, parse, payload_start
from atomcache._keys import digest
from atomcache._path import META

from .world import World

DIRECTORY = "/cache"
MAX_AGE = 1_000_000.0
SHARD_ENTRIES = {kind: digest(kind, "key").hex() for kind in (b"v", b"p")}


class FactoryError(Exception):
    """What failing factories raise."""


class Scenario:
    """Contenders on one key.

    Parameters
    ----------
    roles
        What each contender does: the name of one of the methods that begin with `do_`.
    personality, machines
        Of the world; contenders are dealt out to the machines in turn.
    threads
        Whether all contenders are threads of one process.
    prompt
        Whether every process is quick: the clock only moves when all wait.  Then even
        where only heartbeats show life, nobody who lives is ever taken for dead.
    skew
        Seconds by which the clocks of two machines differ.  An age limit needs clocks that
        agree (docs/correctness.md), so where there is one they differ little.
    options
        Of the caches.
    """

    def __init__(
        self,
        roles=("get", "get"),
        personality="posix",
        machines=1,
        *,
        threads=False,
        prompt=False,
        made=True,
        skew=1000.0,
        **options,
    ):
        self.roles = roles
        self.personality = personality
        self.machines = machines
        self.threads = threads
        self.prompt = prompt
        self.made = made
        self.skew = min(skew, 2.0) if "refresh" in roles else skew
        self.options = {"codec": "bytes", **options}
        self.path = any("path" in role or "folder" in role for role in roles)
        self.single = personality in ("posix", "windows") or (personality == "nfs" and prompt)
        """Whether two builders at once are a fault."""
        self.stable = not set(roles) & {"set", "remove"}
        """Whether what is published once stays."""
        self.most_builds = None if set(roles) & {"fail", "set", "remove"} else 1
        """How many builds may begin if nobody is killed and no call fails."""

    # -- setting up --------------------------------------------------------------------

    def set_up(self):
        world = World(self.personality, self.machines, self.skew)
        world.scenario = self
        world.completed = set()
        world.began = {}
        world.removals = []
        world.ticks = 0
        world.builders = []
        world.tokens = 0
        world.mkdir(DIRECTORY)
        if self.made:
            world.mkdir(f"{DIRECTORY}/v1")
            for name in {name[:2] for name in SHARD_ENTRIES.values()}:
                world.mkdir(f"{DIRECTORY}/v1/{name}")
        world.entry_names = set(SHARD_ENTRIES.values())
        world.watch_publish = lambda *args: self.watch_publish(world, *args)
        world.kills = world.pauses = world.begun = 0
        if "refresh" in self.roles:
            self.put_expired_entry(world)
        first = None
        for place, role in enumerate(self.roles):
            function = getattr(self, f"do_{role}")
            process = world.start(
                "ABCDEFGH"[place], function, place % self.machines, first if self.threads else None
            )
            first = first or process
            if place == 0 or not self.threads:
                process.door.cache = self.cache(process.door)
        return world

    def cache(self, door):
        cache = Cache.__new__(Cache)
        cache._given = {
            "directory": DIRECTORY,
            "allow": (),
            "secret": None,
            "shared": False,
            "lease": 30.0,
            "memory": None,
            **self.options,
            "remote": None,
            "remote_options": {},
            "remote_timeout": 10.0,
            "read_only": False,
            "write": "sync",
        }
        cache._open(door)
        return cache

    def put_expired_entry(self, world):
        value = b"expired long ago"
        world.completed.add(value)
        parts = assemble(
            digest=bytes.fromhex(SHARD_ENTRIES[b"v"]),
            codec=b"bytes".ljust(24, b"\0"),
            form=0,
            created=world.now - 2 * MAX_AGE,
            expires=world.now - MAX_AGE,
            took=0.0,
            meta=[("key", "key")],
            payload=value,
            seal=bytes(32),
        )
        name = SHARD_ENTRIES[b"v"]
        folder = world.find(f"{DIRECTORY}/v1/{name[:2]}")
        world.expired = folder.folder[name] = world._inode(False)
        world.expired.data = b"".join(parts)

    # -- roles -------------------------------------------------------------------------

    def do_get(self, process):
        return process.door.cache.get_or_create("key", lambda: self.build(process))

    def do_fail(self, process):
        return process.door.cache.get_or_create("key", lambda: self.build(process, fail=True))

    def do_set(self, process):
        value = f"set by {process.name}".encode()
        process.world.completed.add(value)
        process.door.cache.set("key", value)
        return value

    def do_remove(self, process):
        world = process.world
        began = self.tick(process)
        process.door.cache.remove("key")
        world.removals.append(began)

    def do_reap(self, process):
        process.door.cache.reap()

    def do_refresh(self, process):
        return process.door.cache.get_or_create(
            "key", lambda: self.build(process), max_age=MAX_AGE
        )

    def do_get_slow(self, process):
        """Get by a factory that takes longer than several leases."""

        def factory():
            return self.build(process, slow=True)

        return process.door.cache.get_or_create("key", factory)

    def do_loop(self, process):
        """Get by the document's loop instead of the library; the control."""
        return document_loop(process.door, lambda write: write(self.build(process)))

    def do_get_path(self, process):
        path = process.door.cache.get_or_create_path(
            "key", lambda target: self.build_file(process, str(target)), name="made"
        )
        return self.read_made(process, str(path))

    def do_get_folder(self, process):
        def build(target):
            process.door.mkdir(str(target))
            self.build_file(process, f"{target}/inside")

        path = process.door.cache.get_or_create_path("key", build, name="made")
        return self.read_made(process, f"{path}/inside")

    def read_made(self, process, path):
        """Return what was made, or `None` if somebody removed it since."""
        try:
            return read_whole(process.world, path)
        except FileNotFoundError:
            if "remove" not in self.roles:
                raise
            return None

    def build(self, process, fail=False, slow=False):
        """Be a factory: begin, take a while, end."""
        world = process.world
        self.begin(process)
        began = self.tick(process)
        try:
            process.door.step("factory", "begins")
            if slow:
                process.door.sleep(100.0)
            process.door.step("factory", "ends")
            if fail:
                raise FactoryError(process.name)
            world.tokens += 1
            value = f"by {process.name}, number {world.tokens}".encode()
            world.completed.add(value)
            world.began[value] = began
            process.past = hash((process.past, value))
        finally:
            process.building = False
        return value

    def build_file(self, process, target):
        value = self.build(process)
        fd = process.door.open(target, CREATE)
        try:
            process.door.write(fd, value)
        finally:
            process.door.close(fd)

    def tick(self, process):
        """Return a number that orders beginnings of builds and of removals."""
        process.world.ticks += 1
        process.past = hash((process.past, process.world.ticks))
        return process.world.ticks

    def begin(self, process):
        process.building = True
        world = process.world
        world.begun += 1
        at_it = [each.name for each in world.processes if each.building and each.alive]
        if len(at_it) > 1 and self.single:
            world.faults.append(f"two builders at once: {' and '.join(at_it)}")

    # -- checks ------------------------------------------------------------------------

    def watch_publish(self, world, process, name, inode, old):
        try:
            content = inode.data if "loop" in self.roles else whole(inode)
        except (Damaged, KeyError) as why:
            world.faults.append(f"{process.name} published something torn: {why}")
            return
        if content not in world.completed:
            world.faults.append(f"{process.name} published what nobody completed: {content!r}")
        self.check_removed(world, process.name, content)
        expected = getattr(world, "expired", None)
        if old is not None and old is not expected and self.stable and not world.hostile:
            world.faults.append(f"{process.name} replaced what was published")

    def check_removed(self, world, name, content):
        """Note it if a removal that has ended did not keep an older build from the entry."""
        if self.machines > 1:
            return  # another machine's word in the claim may be seen too late
        began = world.began.get(content)
        if began is not None and any(began < removal for removal in world.removals):
            world.faults.append(f"{name} brought back what was removed: {content!r}")

    def check(self, world):
        """Return what is wrong with a history that has come to its end."""
        faults = list(world.faults)
        returned = []
        for process in world.processes:
            if not process.alive:
                continue
            if process.error is not None:
                if not self.may_raise(world, process.error):
                    faults.append(f"{process.name} raised {process.error!r}")
            elif process.result is not None:
                returned.append(process.result)
                if process.result not in world.completed:
                    faults.append(f"{process.name} returned {process.result!r}: nobody made that")
        if self.most_builds and self.single and not world.failures_made:
            allowed = self.most_builds + world.kills
            if world.blocking and world.pauses:
                allowed += world.begun  # see `may_raise`
            if world.begun > allowed:
                faults.append(f"{world.begun} builds began, and {world.kills} were killed")
        for name in world.entry_names if "remove" in self.roles else ():
            shard = world.find(f"{DIRECTORY}/v1").folder.get(name[:2])
            entry = None if shard is None else shard.folder.get(name)
            if entry is not None and "loop" not in self.roles:
                self.check_removed(world, "somebody", whole(entry))
        faults += [fault for fault in world.faults if fault not in faults]
        last = self.read_at_rest(world, faults)
        if self.stable and self.personality != "hostile":
            for value in set(returned) - {last}:
                faults.append(f"some got {value!r}, later callers {last!r}")
        self.check_tidy(world, faults)
        return faults

    def may_raise(self, world, error):
        if isinstance(error, StorageError) and world.blocking and world.pauses:
            return True  # a paused reader has the file open that was to be replaced
        if isinstance(error, StorageError) and world.hostile:
            return True  # builders that can't see each other took each other's scratch away
        if isinstance(error, OSError):
            return world.failures_made > 0
        if isinstance(error, FactoryError):
            return "fail" in self.roles
        return isinstance(error, AtomcacheError) and error.__class__.__name__ == "BuildTimeout"

    def read_at_rest(self, world, faults):
        """Ask once more on each machine when all is quiet; all must get the same."""
        fixed = ("get_path", "get_folder", "refresh", "loop")
        role = next((r for r in self.roles if r in fixed), "get")
        answers = []
        if world.hostile and "remove" in self.roles:
            # Whoever is let into a dead builder's claim reads there that the entry was removed,
            # and once more does not keep what it builds.
            process = world.start("next", getattr(self, f"do_{role}"), 0)
            process.door.cache = self.cache(process.door)
            run_alone(world, process, faults)
        for machine in range(self.machines):
            process = world.start(f"late {machine}", getattr(self, f"do_{role}"), machine)
            process.door.cache = self.cache(process.door)
            run_alone(world, process, faults)
            answers.append(process.result)
        if len(set(answers)) > 1:
            faults.append(f"callers after the last publish got {answers}")
        if answers[0] not in world.completed:
            faults.append(f"a late caller got {answers[0]!r}: nobody made that")
        return answers[0]

    def check_tidy(self, world, faults):
        for machine in range(self.machines):
            process = world.start(f"reaper {machine}", self.do_reap, machine)
            process.door.cache = self.cache(process.door)
            run_alone(world, process, faults)
        for shard in world.find(f"{DIRECTORY}/v1").folder.values():
            left = [name for name in shard.folder if ".temp" in name]
            if left:
                faults.append(f"left over when all is quiet: {', '.join(left)}")


def run_alone(world, process, faults, most=2000):
    """Let one process run to its end."""
    for _ in range(most):
        if process.done:
            break
        if not process.ready():
            if process.wakes is None:
                faults.append(f"{process.name} waits for ever")
                return
            world.advance(process.wakes)
        process.greenlet.switch()
    else:
        faults.append(f"{process.name} does not come to an end")
    if process.error is not None:
        faults.append(f"{process.name}, alone, raised {process.error!r}")


def whole(inode):
    """Return what an entry holds; raise if it is not whole."""
    if inode.folder is None:
        header = parse(inode.data)
        payload = inode.data[payload_start(header) :]
        if len(payload) != header.payload_size:
            raise Damaged("the payload is not whole")
        return payload
    parse(inode.folder[META].data)
    made = inode.folder["made"]
    return (made if made.folder is None else made.folder["inside"]).data


def read_whole(world, path):
    """Return a file's content as another program would read it."""
    return world.find(path).data


def document_loop(door, build):
    """Play the document's loop through a door; see `tests/document_loop.py`."""
    shard = SHARD_ENTRIES[b"v"][:2]
    data = f"{DIRECTORY}/v1/{shard}/{SHARD_ENTRIES[b'v']}"
    temp = f"{data}.temp"
    for _ in range(200):
        try:
            door.unlink(temp)
        except FileNotFoundError:
            try:
                fd = door.open(data, 0)
            except FileNotFoundError:
                pass
            else:
                content = door.read(fd, 1000)
                door.close(fd)
                return content
        except PermissionError:
            door.sleep(0.1)
            continue
        try:
            fd = door.open(temp, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            door.sleep(0.1)
            continue
        build(lambda content, fd=fd: write_by_halves(door, fd, content))
        door.close(fd)
        try:
            door.replace(temp, data)
        except FileNotFoundError:
            continue
    raise AssertionError("the loop does not end")


def write_by_halves(door, fd, content):
    door.write(fd, content[:5])
    door.write(fd, content[5:])
