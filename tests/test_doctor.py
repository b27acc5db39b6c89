"""What `atomcache doctor` says of a filesystem is so, also of one that lies or hangs.

Filesystems that lie are made here: `serve` answers the kernel (FUSE), keeps everything in
memory, and has the manners that it is told to have.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import atomcache
from atomcache import Cache
from atomcache._ground import (
    FAILS,
    HOLDS,
    PREFIX,
    UNKNOWN,
    examine,
    exclusion,
    filesystem_of,
    shared_files,
)

from .crew import PATIENCE, Crew, until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="mounts and terminals of POSIX")
as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount"
)

# -- a filesystem with manners -----------------------------------------------------------

REQUEST = struct.Struct("<IIQQIIIHH")
REPLY = struct.Struct("<IiQ")
TRANSFER = struct.Struct("<QQIIQII")
LOCK = struct.Struct("<QQQQIIII")
(LOOKUP, GETATTR, SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE) = (
    1, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15, 16,
)  # fmt: skip
(STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, SETLK, SETLKW) = (
    17, 18, 20, 25, 26, 27, 28, 29, 30, 32, 33,
)  # fmt: skip
CREATE, INTERRUPT, DESTROY, RENAME2 = 35, 36, 38, 45
NO_REPLY = (2, 42)
LARGEST = 1 << 17


class Node:
    """A file, or a folder if it has names in it."""

    def __init__(self, number, mode, maker) -> None:
        self.number = number
        self.mode = mode
        self.maker = maker
        self.made = time.monotonic()
        self.data = bytearray()
        self.names = {} if stat.S_ISDIR(mode) else None
        self.given = {}
        self.links = 1
        self.uses = 0
        self.times = [time.time_ns()] * 3
        self.writer = None
        self.locks = {}


def process_of(thread):
    with open(f"/proc/{thread}/status") as status:
        return next(int(row.split()[1]) for row in status if row.startswith("Tgid:"))


class Refused(Exception):
    """An error number, for whoever asked the kernel."""


class Strange:
    """A filesystem in memory.

    Parameters
    ----------
    manners : dict
        How it differs from one that is as it should be; see where `self.manners` is asked.
    """

    def __init__(self, manners) -> None:
        self.manners = manners.get
        self.root = Node(1, stat.S_IFDIR | 0o755, 0)
        self.nodes = {1: self.root}
        self.asleep = {}
        self.gone = {}
        self.numbers = 1

    # -- what the kernel is told -----------------------------------------------------

    def attributes(self, node):
        number = node.number
        if self.manners("forgets"):  # who a file is
            self.numbers += 1
            number = self.numbers + 1000
        grain = self.manners("grain", 1)
        first = self.manners("first", 0)
        times = [max(each // grain * grain, first) for each in node.times]
        mode = node.mode
        if self.manners("mode"):
            mode = stat.S_IFMT(mode) | self.manners("mode")
        size = len(node.data)
        return struct.pack(
            "<6Q10I",
            *(number, size, size // 512 + 1),
            *(each // 10**9 for each in times),
            *(each % 10**9 for each in times),
            *(mode, node.links, self.manners("owner", 0), 0, 0, 4096, 0),
        )

    def entry(self, node):
        return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + self.attributes(node)

    def spelled(self, name):
        name = name.rstrip(b"\0")
        if len(name) > self.manners("longest", 255):
            raise Refused(errno.ENAMETOOLONG)
        return name.lower() if self.manners("folds") else name

    def child(self, folder, name):
        node = folder.names.get(self.spelled(name))
        if node is None:
            raise Refused(errno.ENOENT)
        return node

    def make(self, folder, name, mode, maker):
        node = Node(max(self.nodes) + 1, mode, maker)
        self.nodes[node.number] = node
        self.put(folder, name, node)
        return node

    def put(self, folder, name, node):
        folder.names[self.spelled(name)] = node
        folder.given[self.spelled(name)] = name.rstrip(b"\0")

    # -- what it asks ----------------------------------------------------------------

    def answer(self, opcode, node, pid, body):
        """Return the answer to one request; `None` for one that gets none now."""
        name = body
        if opcode == INIT:
            flags = 1 << 5 | 1 << 22 | (1 << 10 if self.manners("locks") else 0)
            version = (7, 31, LARGEST, flags, 16, 12, LARGEST, 1, LARGEST // 4096, 0, 0)
            return struct.pack("<IIIIHHIIHHI28x", *version)
        if opcode == LOOKUP:
            if self.gone.get((node.number, self.spelled(name)), 0) > time.monotonic():
                raise Refused(errno.ENOENT)
            found = self.child(node, name)
            late = self.manners("late")  # in showing to others which files one has made
            young = time.monotonic() - found.made < (late or 0)
            if young and found.names is None and found.maker != pid:
                raise Refused(errno.ENOENT)
            return self.entry(found)
        if opcode in (GETATTR, SETATTR):
            if opcode == SETATTR:
                self.set(node, body)
            return struct.pack("<QII", 0, 0, 0) + self.attributes(node)
        if opcode in (MKDIR, MKNOD):
            mode = struct.unpack_from("<I", body)[0]
            mode |= stat.S_IFDIR if opcode == MKDIR else 0
            return self.entry(self.make(node, body[8 if opcode == MKDIR else 16 :], mode, pid))
        if opcode == CREATE:
            mode = struct.unpack_from("<I", body, 4)[0]
            made = self.make(node, body[16:], mode, pid)
            made.uses += 1
            return self.entry(made) + struct.pack("<QII", 0, 0, 0)
        if opcode == LINK:
            if self.manners("no_links"):
                raise Refused(self.manners("no_links"))
            number = struct.unpack_from("<Q", body)[0]
            name = self.spelled(body[8:])
            if name in node.names:
                raise Refused(errno.EEXIST)
            self.put(node, body[8:], self.nodes[number])
            self.nodes[number].links += 1
            return self.entry(self.nodes[number])
        if opcode in (UNLINK, RMDIR):
            found = self.child(node, name)
            if found.names:
                raise Refused(errno.ENOTEMPTY)
            if self.manners("busy") and found.uses:
                raise Refused(errno.EBUSY)
            found.links -= 1
            del node.names[self.spelled(name)]
            return b""
        if opcode in (RENAME, RENAME2):
            return self.rename(opcode, node, body)
        return self.use(opcode, node, pid, body)

    def rename(self, opcode, node, body):
        folder, flags = struct.unpack_from("<QI", body)
        if opcode == RENAME2 and (flags != 2 or self.manners("no_exchange")):
            raise Refused(errno.EINVAL)
        target = self.nodes[folder]
        old, name = body[8 if opcode == RENAME else 16 :].rstrip(b"\0").split(b"\0")
        old, new = self.spelled(old), self.spelled(name)
        over = target.names.get(new)
        if opcode == RENAME2:
            node.names[old], target.names[new] = over, node.names[old]
            return b""
        if over is not None and over.names and not self.manners("renames_over"):
            raise Refused(errno.ENOTEMPTY)
        self.put(target, name, node.names.pop(old))
        if over is not None and self.manners("rename_hides"):
            self.gone[target.number, new] = time.monotonic() + self.manners("rename_hides")
        return b""

    def use(self, opcode, node, pid, body):
        if opcode in (OPEN, OPENDIR):
            node.uses += 1
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            offset, length = TRANSFER.unpack_from(body)[1:3]
            return bytes(node.data[offset : offset + length])
        if opcode == WRITE:
            offset, length = TRANSFER.unpack_from(body)[1:3]
            if self.manners("appends_over") and node.writer not in (None, pid):
                offset = max(0, offset - length)
            node.writer = pid
            node.data[offset : offset + length] = body[TRANSFER.size :]
            node.times[1:] = [time.time_ns()] * 2
            return struct.pack("<II", length, 0)
        if opcode == READDIR:
            return self.listing(node, struct.unpack_from("<Q", body, 8)[0])
        if opcode == STATFS:
            free = self.manners("blocks", 1 << 20)
            return struct.pack("<5Q4I24x", 1 << 20, free, free, 0, 0, 4096, 255, 4096, 0)
        if opcode in (SETLK, SETLKW):
            return self.lock(opcode, node, pid, body)
        if opcode == FSYNCDIR and self.manners("no_fsyncdir"):
            raise Refused(self.manners("no_fsyncdir"))
        if opcode in (RELEASE, RELEASEDIR):
            node.uses -= 1
            if self.manners("locks") != "kept":
                node.locks.pop(struct.unpack_from("<Q", body, 16)[0], None)
                self.wake(node)
            return b""
        if opcode == FLUSH and self.manners("locks") == "record":
            node.locks.pop(process_of(pid), None)  # with the first file that it closes
            self.wake(node)
        if opcode in (FLUSH, FSYNC, FSYNCDIR, DESTROY):
            return b""
        raise Refused(errno.ENOSYS)

    def set(self, node, body):
        valid = struct.unpack_from("<I", body)[0]
        size = struct.unpack_from("<Q", body, 16)[0]
        seconds = struct.unpack_from("<3Q", body, 32)
        parts = struct.unpack_from("<3I", body, 56)
        mode = struct.unpack_from("<I", body, 68)[0]
        if valid & 1:
            if self.manners("mode"):
                raise Refused(errno.EPERM)
            node.mode = mode
        if valid & 8:
            node.data[size:] = bytes(max(0, size - len(node.data)))
        for which, (told, now) in enumerate([(1 << 4, 1 << 7), (1 << 5, 1 << 8)]):
            if valid & (told | now) and self.manners("no_times"):
                raise Refused(errno.EPERM)
            if valid & now:
                node.times[which] = time.time_ns()
            elif valid & told and not (which == 0 and self.manners("no_atime")):
                node.times[which] = seconds[which] * 10**9 + parts[which]

    def listing(self, node, offset):
        answer = b""
        for place, (name, each) in enumerate(list(node.names.items())[offset:], offset + 1):
            name = name.upper() if self.manners("shouts") else node.given[name]
            row = struct.pack("<QQII", each.number, place, len(name), 0) + name
            row += bytes(-len(row) % 8)
            if len(answer) + len(row) > 4096:
                break
            answer += row
        return answer

    def lock(self, opcode, node, pid, body):
        owner, kind = (LOCK.unpack_from(body)[each] for each in (1, 4))
        manner = self.manners("locks")
        if manner == "none":
            raise Refused(errno.ENOLCK)
        if manner == "granted":
            return b""
        owner = process_of(pid) if manner == "record" else owner
        if kind == 2:
            node.locks.pop(owner, None)
            self.wake(node)
            return b""
        others = [each for whose, each in node.locks.items() if whose != owner]
        if 1 in others or (kind == 1 and others):
            if opcode == SETLKW:
                return None
            raise Refused(errno.EAGAIN)
        node.locks[owner] = kind
        return b""

    def wake(self, node):
        for unique, (sleeper, pid, body) in list(self.asleep.items()):
            if sleeper is node and self.lock(SETLKW, node, pid, body) is not None:
                del self.asleep[unique]
                self.reply(unique, b"")

    # -- the wire --------------------------------------------------------------------

    def reply(self, unique, answer, trouble=0):
        with contextlib.suppress(FileNotFoundError):  # who asked was killed meanwhile
            os.writev(self.device, (REPLY.pack(REPLY.size + len(answer), trouble, unique), answer))

    def serve(self, place, ready):
        libc = ctypes.CDLL(None, use_errno=True)
        self.device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self.device},rootmode=40755,user_id=0,group_id=0,allow_other"
        if libc.mount(b"strange", os.fsencode(place), b"fuse.strange", 6, options.encode()):
            return os.strerror(ctypes.get_errno())
        ready()
        while True:
            try:
                request = os.read(self.device, LARGEST + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return None  # unmounted
            _, opcode, unique, number, _, _, pid, *_ = REQUEST.unpack_from(request)
            body = request[REQUEST.size :]
            if opcode in NO_REPLY or opcode in self.manners("hangs", ()):
                continue
            if opcode == INTERRUPT:
                asleep = struct.unpack_from("<Q", body)[0]
                if self.asleep.pop(asleep, None):
                    self.reply(asleep, b"", -errno.EINTR)
                continue
            node = self.nodes.get(number)
            try:
                answer = self.answer(opcode, node, pid, body)
            except Refused as why:
                self.reply(unique, b"", -why.args[0])
            else:
                if answer is None:
                    self.asleep[unique] = (node, pid, body)
                else:
                    self.reply(unique, answer)


def serve(line, place, manners):
    """Serve a filesystem until it is unmounted; say so when it is there."""
    why = Strange(manners).serve(place, lambda: line.tell("ready"))
    if why is not None:
        line.tell(why)


@contextlib.contextmanager
def strange(place, **manners):
    """Mount a filesystem with these manners."""
    place.mkdir()
    with Crew() as crew:
        said = crew.start(serve, place, manners).hear()
        if said != "ready":
            pytest.skip(f"no filesystem can be made here: {said}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True, timeout=PATIENCE)


@contextlib.contextmanager
def mounted(place, kind, options, source="none"):
    """Mount what the kernel has, if it has it."""
    place.mkdir()
    command = ["mount", "-t", kind, "-o", options, str(source), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        pytest.skip(f"{kind} can't be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=PATIENCE)


@contextlib.contextmanager
def on_a_disk(folder, kind, *how, size=64 << 20):
    """Make a filesystem of a kind in a file and mount it."""
    make = f"mkfs.{kind}"
    if shutil.which(make) is None:
        pytest.skip(f"there is no {make}")
    image = folder / "image"
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([make, *how, str(image)], check=True, capture_output=True, timeout=PATIENCE)
    with mounted(folder / "mounted", kind, "loop", image) as place:
        yield place


# -- the doctor --------------------------------------------------------------------------

MARK = "ATOMCACHE_TEST_OF_DOCTOR"

CORE = (
    "writing",
    "exclusive creation",
    "locks between processes",
    "locks within a process",
    "sleep on a lock",
    "locks after a kill",
    "rename over a file",
    "rename of folders",
    "removal of open files",
    "length of names",
    "memory mapping",
    "identity of files",
)
"""What holds on any disk on which tests are run."""


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "atomcache", "doctor", *map(str, arguments)]


def environment(mark="", **more):
    found = {name: value for name, value in os.environ.items() if name != "ATOMCACHE_DIR"}
    home = str(Path(atomcache.__file__).parent.parent)
    return {**found, "PYTHONPATH": home, MARK: str(mark), **more}


def doctor(*arguments, status, mark="", **more):
    """Run the command on a pipe; return what it said on its two streams."""
    done = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(mark, **more),
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def verdicts(report):
    return {each.name: each.verdict for each in report.findings}


def left_in(folder):
    return [each.name for each in folder.iterdir() if each.name.startswith(PREFIX)]


def processes(mark):
    """Return the processes that a doctor with this mark has started, and itself."""
    found = []
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in each.read_bytes().split(b"\0"):
                found.append(int(each.parent.name))
    return found


# -- where all is well -------------------------------------------------------------------


def test_on_a_pipe_each_finding_is_a_line_and_the_verdict_the_last(tmp_path):
    told, complaints = doctor(tmp_path, status=0)
    head, empty, *lines, blank, verdict = told.splitlines()
    assert head == f"Trying {tmp_path}"
    assert empty == blank == complaints == ""
    assert verdict.endswith(".")
    names = []
    for line in lines:
        found = re.fullmatch(r"(holds|does not hold|unknown) +(\w.*?)  +(\S.*)", line)
        if found:
            names.append(found[2])
        else:
            assert re.fullmatch(r" {15}\S.*\.", line), line
    assert set(CORE) <= set(names)
    assert len(names) == len(set(names))


def test_all_that_the_protocol_needs_holds_on_a_disk_and_is_told_to_programs(tmp_path):
    told, complaints = doctor("--json", tmp_path, status=0)
    found = json.loads(told)
    assert complaints == ""
    assert found["directory"] == found["asked"] == str(tmp_path)
    assert (found["ok"], found["left"]) == (True, None)
    assert list(tmp_path.iterdir()) == []
    assert found["verdict"].startswith(("Everything the protocol needs holds", "A cache works"))
    assert {frozenset(each) for each in found["findings"]} == {
        frozenset(["name", "verdict", "detail", "meaning"])
    }
    told = {each["name"]: each["verdict"] for each in found["findings"]}
    assert set(told.values()) <= {HOLDS, FAILS, UNKNOWN}
    assert {name: told.get(name) for name in CORE} == dict.fromkeys(CORE, HOLDS)
    if found["filesystem"] is not None:
        assert set(found["filesystem"]) == {"kind", "mounted", "source", "shared"}


def test_a_cache_that_is_not_there_yet_is_tried_where_it_would_be_made(tmp_path):
    place = tmp_path / "not" / "yet"
    told, _ = doctor(status=0, ATOMCACHE_DIR=str(place))
    assert told.startswith(f"{place} is not there yet. Trying {tmp_path}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "file", "file/inside", ""])
def test_a_folder_that_is_not_there_is_a_mistake_on_the_command_line(tmp_path, name):
    (tmp_path / "file").touch()
    told, complaint = doctor(name and tmp_path / name, status=2)
    assert told == ""
    assert complaint.startswith("atomcache doctor: ")
    assert len(complaint.splitlines()) == 1
    assert name in complaint


def test_a_reader_that_goes_away_leaves_nothing_behind(tmp_path):
    with subprocess.Popen(
        command(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(tmp_path),
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(PATIENCE)
    until(lambda: not processes(tmp_path), "the end of the helpers")
    assert list(tmp_path.iterdir()) == []


# -- filesystems that differ ---------------------------------------------------------------


@as_root
def test_a_filesystem_in_memory_is_told_also_where_its_path_has_blanks(tmp_path):
    with mounted(tmp_path / "a place\tof tmpfs", "tmpfs", "size=9m,mode=755") as place:
        report = examine(place, patience=PATIENCE)
    found = report.filesystem
    assert (found.kind, found.mounted, found.shared) == ("tmpfs", str(place), False)
    assert "gone after a restart" in report.findings[0].meaning
    assert report.ok
    assert verdicts(report)["room"] == FAILS
    assert "there is little room" in report.verdict


@as_root
def test_times_to_the_second_are_told(tmp_path):
    with on_a_disk(tmp_path, "ext4", "-q", "-F", "-I", "128") as place:
        report = examine(place, patience=PATIENCE)
    found = {each.name: each for each in report.findings}["times of change"]
    assert (found.verdict, found.detail) == (FAILS, "kept to 1 s")
    assert report.ok


@as_root
def test_a_cache_on_fat_works_with_what_the_doctor_says(tmp_path):
    with on_a_disk(tmp_path, "vfat") as place:
        report = examine(place, patience=PATIENCE)
        cache = Cache(place / "cache")
        assert cache.get_or_create("key", lambda: "built") == "built"
    found = verdicts(report)
    for name in ("hard links", "upper and lower case", "times of change", "modes"):
        assert found[name] == FAILS, name
    assert report.ok


@as_root
def test_where_nothing_can_be_written_the_doctor_says_so(tmp_path):
    with mounted(tmp_path / "mounted", "tmpfs", "size=1m,ro") as place:
        told, complaints = doctor(place, status=1)
    assert complaints == ""
    assert "does not hold  writing" in told
    assert told.splitlines()[-1] == (
        "Do not put a cache here: nothing can be written (Read-only file system)."
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into Linux's /proc")
def test_where_no_folder_can_be_made_nothing_can_be_written():
    told, complaints = doctor("--json", "/proc", status=1)
    found = json.loads(told)
    assert [each["verdict"] for each in found["findings"]] == [HOLDS, FAILS]
    assert found["verdict"].startswith("Do not put a cache here: nothing can be written (")
    assert (found["filesystem"]["kind"], found["ok"], complaints) == ("proc", False, "")


# -- filesystems that lie ------------------------------------------------------------------


@as_root
def test_what_a_filesystem_lacks_is_told_and_that_a_cache_works_there(tmp_path):
    manners = {
        "locks": "none",
        "no_links": errno.EPERM,
        "no_exchange": True,
        "folds": True,
        "longest": 143,
        "grain": 2 * 10**9,
        "first": 315532800 * 10**9,
        "no_atime": True,
        "mode": 0o777,
        "owner": 4711,
        "blocks": 100,
    }
    with strange(tmp_path / "mounted", **manners) as place:
        report = examine(place, patience=PATIENCE)
        assert list(place.iterdir()) == []
    lacking = {each.name: each.detail for each in report.findings if each.verdict == FAILS}
    expected = {
        "locks between processes": "there are none: No locks available",
        "exchange of two names": "it can't be done here: Invalid argument",
        "hard links": "there are none: Operation not permitted",
        "upper and lower case": "'a' and 'A' are one name",
        "length of names": "143 bytes",
        "times of change": "kept to 2 s",
        "times long ago": "1970 can't be kept",
        "times of access": "not kept",
        "modes": "asked for 0600, got 0777; asked for 0700, got 0777",
        "owner": "what user 0 makes belongs to user 4711",
        "a place for pickles": f"{place} belongs to user 4711",
        "room": "only 0.4 MB left",
    }
    assert lacking == expected
    untried = {each.name for each in report.findings if each.verdict == UNKNOWN}
    assert untried == {
        "filesystem",
        "locks within a process",
        "sleep on a lock",
        "locks after a kill",
    }
    assert report.ok
    assert report.filesystem.shared
    assert all(each.meaning for each in report.findings if each.verdict == FAILS)


@as_root
def test_what_a_filesystem_breaks_is_told_and_that_no_cache_should_be_there(tmp_path):
    manners = {
        "locks": "granted",
        "renames_over": True,
        "rename_hides": 0.002,
        "no_links": errno.EACCES,
        "appends_over": True,
        "longest": 60,
        "no_times": True,
        "no_fsyncdir": errno.EIO,
    }
    with strange(tmp_path / "mounted", **manners) as place:
        report = examine(place, patience=PATIENCE)
        assert list(place.iterdir()) == []
    broken = {each.name for each in report.findings if each.grave}
    assert broken == {
        "locks between processes",
        "rename of folders",
        "hard links",
        "length of names",
        "times of change",
        "forcing onto the disk",
    }
    assert {name for name, verdict in verdicts(report).items() if verdict == FAILS} == {
        *broken,
        "rename over a file",
        "appending",
        "times of access",
    }
    assert not report.ok
    assert report.verdict.startswith("Do not put a cache here: locks lie, ")


@as_root
def test_a_lock_that_outlives_its_owner_is_told(tmp_path, monkeypatch):
    trial = exclusion._locks_of_dead

    def impatient(crew, path):
        monkeypatch.setattr(exclusion, "PROMPT", 0.5)
        return trial(crew, path)

    monkeypatch.setattr(exclusion, "_locks_of_dead", impatient)  # the only one to wait in vain
    with strange(tmp_path / "mounted", locks="kept") as place:
        report = examine(place, patience=PATIENCE)
        assert list(place.iterdir()) == []
    assert [each.name for each in report.findings if each.grave] == ["locks after a kill"]
    assert "others wait for ever" in report.verdict


@as_root
def test_a_lock_that_a_process_loses_by_looking_again_and_files_that_stay_are_told(tmp_path):
    with strange(tmp_path / "mounted", locks="record", busy=True) as place:
        report = examine(place, patience=PATIENCE)
    assert [each.name for each in report.findings if each.grave] == [
        "locks within a process",
        "removal of open files",
    ]


@as_root
def test_files_that_change_their_identity_and_names_are_told(tmp_path):
    with strange(tmp_path / "mounted", forgets=True) as place:
        report = examine(place, patience=PATIENCE)
        assert list(place.iterdir()) == []
        with pytest.raises(TimeoutError):  # as the doctor says
            Cache(place / "cache", timeout=0.2).get_or_create("key", lambda: "built")
    assert [each.name for each in report.findings if each.grave] == ["identity of files"]


@as_root
def test_exclusive_creation_that_several_win_is_told(tmp_path):
    with strange(tmp_path / "mounted", late=0.5) as place:
        report = examine(place, patience=PATIENCE)
    assert verdicts(report)["exclusive creation"] == FAILS
    assert not report.ok


IN_TWO_STEPS = """
import os
from atomcache._door import Door

def replace_in_two_steps(self, source, target):
    os.unlink(target)
    os.sched_yield()  # a disk would take a while, too
    os.rename(source, target)

def exchange_in_two_steps(self, one, other):
    os.rename(other, one + ".moved")
    os.sched_yield()
    os.rename(one, other)

Door.replace = replace_in_two_steps
Door.exchange = exchange_in_two_steps
"""
"""What Python loads at its start in the helpers."""


@pytest.fixture
def memory():
    """Return a folder in memory, where all is done before another process gets a processor."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no filesystem in memory")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_what_is_done_in_two_steps_is_told_also_where_all_is_quick(memory, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(IN_TWO_STEPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    report = examine(memory, patience=PATIENCE)
    for name in ("rename over a file", "exchange of two names"):
        [found] = [each for each in report.findings if each.name == name]
        assert found.verdict == FAILS, found
        assert "nothing" in found.detail


def test_a_filesystem_in_memory_is_seen_to_change(memory):
    report = examine(memory, patience=PATIENCE)
    found = {each.name: each for each in report.findings}
    for name in ("rename over a file", "exchange of two names"):
        assert found[name].verdict == HOLDS, found[name]


class Told:
    """Stands for a crew whose helpers have answered."""

    patience = PATIENCE

    def __init__(self, times, *seen) -> None:
        self.keeper = self
        self.others = [self]
        self.ask = lambda *_: times
        self.start = lambda *_: None
        self.answer = lambda: seen


def test_of_too_few_changes_that_were_seen_nothing_is_claimed():
    def finding(*told):
        return shared_files._watched(Told(*told), "place", "task", "name", "meaning", "brief")

    found = finding(301, 1, 0, 0, 0)
    assert found.verdict == UNKNOWN
    assert found.detail == (
        "301 times while another process read 1 time, which saw it change 0 times"
    )
    assert finding(301, 900, 0, 0, 4).verdict == UNKNOWN
    assert finding(301, 900, 0, 0, 5).verdict == HOLDS
    assert finding(1, 2, 1, 0, 1).detail == (
        "1 time while another process read 2 times, of which 1 time nothing"
    )


# -- what the library does there, as the doctor says ---------------------------------------


def ask(line, place):
    """Ask for what takes until the test says so."""

    def build():
        line.tell("builds")
        line.hear("go on")
        return os.getpid()

    line.tell("asks")
    value = Cache(place, lease=PATIENCE).get_or_create("key", build)
    line.tell("done")
    return value


def builds_alone(place):
    """Tell whether nobody builds what somebody is building, and all get that."""
    with Crew() as crew:
        builder = crew.start(ask, place)
        builder.hear("asks")
        builder.hear("builds")
        others = [crew.start(ask, place) for _ in range(2)]
        for each in others:
            each.hear("asks")
        builder.tell("go on")
        alone = all(each.hear("builds", "done") == "done" for each in others)
        return alone and crew.results() == [builder.pid] * 3


@as_root
def test_where_there_are_no_locks_one_builds_as_the_doctor_says(tmp_path):
    with strange(tmp_path / "mounted", locks="none") as place:
        assert builds_alone(place / "cache")


@as_root
def test_where_locks_lie_several_build_and_the_first_result_is_kept_as_the_doctor_says(tmp_path):
    with strange(tmp_path / "mounted", locks="granted") as place, Crew() as crew:
        members = []
        for _ in range(2):
            members.append(crew.start(ask, place / "cache"))
            members[-1].hear("asks")
            members[-1].hear("builds")
        for each in reversed(members):
            each.tell("go on")
            each.hear("done")
        assert crew.results() == [members[-1].pid] * 2


@as_root
def test_the_filesystem_of_these_tests_is_as_it_should_be_unless_it_is_told_otherwise(tmp_path):
    with strange(tmp_path / "mounted", locks="honest") as place:
        report = examine(place, patience=PATIENCE)
        assert builds_alone(place / "cache")
    assert [each for each in report.findings if each.verdict != HOLDS] == [report.findings[0]]


# -- a filesystem that hangs ---------------------------------------------------------------


@as_root
def test_a_filesystem_that_hangs_is_told_and_the_doctor_ends(tmp_path):
    with strange(tmp_path / "mounted", hangs=[LINK]) as place:
        told, complaint = doctor("--timeout", 2, place, status=1, mark=tmp_path)
    # Who looks for himself meanwhile whether anything is left hangs as well.
    assert "no answer within 2 s" in told
    assert told.splitlines()[-1] == "Do not put a cache here: the filesystem does not answer."
    if "does not hold  hard links" in told:
        assert f"remove {place}/{PREFIX}" in complaint
    until(lambda: not processes(tmp_path), "the end of those who hung")


# -- an end before the end -----------------------------------------------------------------


def take_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def on_a_terminal(*given, program=None, **more):
    """Run the command on a terminal of 70 columns; yield it and the terminal's other end."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 70, 0, 0))
    try:
        process = subprocess.Popen(
            program or command(*given),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=take_terminal,
            env=environment(**more),
        )
    finally:
        os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(ours)


def read_terminal(terminal):
    """Return all that is written to a terminal until nobody has it open."""
    told = b""
    while True:
        try:
            told += os.read(terminal, 4096)
        except OSError:  # what Linux says at the end
            return told.decode()


@pytest.mark.parametrize("how", ["Ctrl-C", "hangup", signal.SIGTERM, signal.SIGKILL])
def test_a_doctor_that_is_interrupted_leaves_nothing_behind(tmp_path, how):
    with on_a_terminal(tmp_path, mark=tmp_path) as (process, terminal):
        until(lambda: left_in(tmp_path), "the beginning of the trials")
        if how == "Ctrl-C":
            os.write(terminal, b"\x03")
        elif how == "hangup":
            process.send_signal(signal.SIGHUP)
        else:
            process.send_signal(how)
        told = read_terminal(terminal)
        process.wait(PATIENCE)
    until(lambda: not processes(tmp_path), "the end of the helpers")
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in told
    if how == "Ctrl-C":
        assert process.returncode == 130


# -- on a terminal -------------------------------------------------------------------------

NO_RICH = """
import sys
sys.modules["rich"] = None
from atomcache.cli import main
sys.exit(main(["doctor", *sys.argv[1:]]))
"""


def test_on_a_terminal_without_rich_lines_are_folded_to_its_width(tmp_path):
    program = [sys.executable, "-W", "error", "-c", NO_RICH, str(tmp_path)]
    with on_a_terminal(program=program, TERM="xterm") as (process, terminal):
        told = read_terminal(terminal)
        assert process.wait(PATIENCE) == 0, told
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) < 70 + len(str(tmp_path))
    assert "holds          exclusive creation        3 processes raced" in told


def test_on_a_terminal_with_rich_verdicts_have_colours(tmp_path):
    pytest.importorskip("rich")
    colours = {"TERM": "xterm-256color", "NO_COLOR": ""}
    with on_a_terminal(tmp_path, **colours) as (process, terminal):
        told = read_terminal(terminal)
        assert process.wait(PATIENCE) == 0, told
    assert "\x1b[32mholds\x1b[0m          exclusive creation" in told
    assert told.rstrip().endswith("\x1b[0m")


def test_the_help_tells_the_exit_status_and_gives_examples():
    told, complaints = doctor("--help", status=0)
    assert complaints == ""
    for part in ("exit status:", "examples:", "DIR", "--timeout", "--json"):
        assert part in told


def test_a_timeout_of_nothing_is_a_mistake(tmp_path):
    told, complaint = doctor("--timeout", "0", tmp_path, status=2)
    assert (told, complaint) == ("", "atomcache doctor: --timeout must be more than 0\n")


def test_a_filesystem_is_named_without_being_touched():
    if not os.path.exists("/proc/self/mountinfo"):
        assert filesystem_of("/") is None
        pytest.skip("this system does not tell")
    found = filesystem_of("/proc/self/no such thing")
    assert (found.kind, found.mounted) == ("proc", "/proc")


@as_root
def test_a_filesystem_that_syncs_folders_by_itself_stores_durable_paths(tmp_path):
    with strange(tmp_path / "mounted", no_fsyncdir=errno.EINVAL) as place:
        cache = Cache(place / "cache")
        path = cache.get_or_create_path("key", lambda target: target.mkdir(), name="made")
        assert path.is_dir()
        assert verdicts(examine(place, patience=PATIENCE))["forcing onto the disk"] == HOLDS
