"""A disk whose power can be cut: every write and every flush of a filesystem, recorded.

The recorder is a process that serves one regular file by FUSE; a loop device stands on that
file and a filesystem is mounted from it.  So what arrives here is what a real disk would be
sent: block writes in the order of their completion, and flushes.  From the recording the
disk can be had as it would have been if the power had failed right after any one record:

- what a flush covered is there;
- of the 4096-byte blocks written since, all, none or any part may be there, as with a disk
  whose write cache is volatile and written out in an order of its own;
- what the filesystem or a program still held in memory is gone.

That is stricter than copying an image file while it is written to, which keeps everything
that ever reached the device, and a moment in time, which such a copy is not.

Run as a program, this module is the recorder.  It imports nothing of the library.
"""

import contextlib
import ctypes
import errno
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

BLOCK = 4096
LONGEST_WRITE = 1 << 20
RECORD = struct.Struct("<dqq")
"""When (`time.monotonic`, before the disk says that it is done), offset, length.  A flush
has the offset -1 and no length."""

FLUSH = -1
WAIT = 60.0


# -- the recorder ------------------------------------------------------------------------

_REQUEST = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_TRANSFER = struct.Struct("<QQIIQII")
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY = (
    3,
    4,
    14,
    15,
    16,
    18,
    20,
    25,
    26,
    38,
)
_NO_REPLY = (2, 42)  # forget, and many of them


def serve(image, place, recording):
    """Serve the content of `image` as the file `place` until that is unmounted."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # end with whoever started us
    libc.prctl(57, 1, 0, 0, 0)  # the kernel must not wait for this disk on our behalf
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=100644,user_id=0,group_id=0"
    if libc.mount(b"power", os.fsencode(place), b"fuse.power", 6, options.encode()):
        raise OSError(ctypes.get_errno(), "no FUSE mount")
    os.write(1, b"ready")
    disk = os.open(image, os.O_RDWR)
    size = os.fstat(disk).st_size
    tape = os.open(recording, os.O_WRONLY | os.O_APPEND)
    while True:
        try:
            request = os.read(device, LONGEST_WRITE + BLOCK)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            if error.errno == errno.ENODEV:  # unmounted
                return
            raise
        opcode, unique = struct.unpack_from("<IQ", request, 4)
        if opcode in _NO_REPLY:
            continue
        answer, trouble = b"", 0
        body = _REQUEST.size
        if opcode == _INIT:
            version = (7, 31, LONGEST_WRITE, 1 << 5 | 1 << 22)  # big writes, of many pages
            answer = struct.pack(
                "<IIIIHHIIHHI28x", *version, 16, 12, LONGEST_WRITE, 1, LONGEST_WRITE // BLOCK, 0, 0
            )
        elif opcode in (_GETATTR, _SETATTR):
            answer = struct.pack(
                "<QII6Q10I", 3600, 0, 0, 1, size, size // 512, *[0] * 6, 0o100600, 1, *[0] * 3,
                BLOCK, 0,
            )  # fmt: skip
        elif opcode == _OPEN:
            answer = struct.pack("<QII", 1, 2, 0)  # what the kernel keeps of it stays valid
        elif opcode == _READ:
            _, offset, length = _TRANSFER.unpack_from(request, body)[:3]
            answer = os.pread(disk, length, offset)
        elif opcode == _WRITE:
            _, offset, length = _TRANSFER.unpack_from(request, body)[:3]
            data = request[body + _TRANSFER.size :]
            assert len(data) == length
            os.pwrite(disk, data, offset)
            os.writev(tape, (RECORD.pack(time.monotonic(), offset, length), data))
            answer = struct.pack("<II", length, 0)
        elif opcode == _FSYNC:
            os.write(tape, RECORD.pack(time.monotonic(), FLUSH, 0))
        elif opcode not in (_FLUSH, _RELEASE, _DESTROY):
            trouble = -errno.ENOSYS
        os.writev(device, (_REPLY.pack(_REPLY.size + len(answer), trouble, unique), answer))


# -- the filesystem on the disk ----------------------------------------------------------


class NoPower(Exception):
    """What has to be done can't be done on this machine; says why."""


def run(*command):
    """Run a program; raise with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    if done.returncode:
        raise NoPower(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")


def mount(image, place, *options):
    run("mount", "-o", ",".join(("loop", "noatime", *options)), image, place)


def unmount(place):
    """Unmount what is there, by force if need be; a loop device goes with its mount."""
    for how in ((), ("-l",)):
        with open("/proc/self/mounts") as mounts:
            if all(line.split()[1] != str(place) for line in mounts):
                return
        with contextlib.suppress(NoPower):
            run("umount", *how, place)


class Disk:
    """A recorded disk with a filesystem on it, mounted at `place` in its block.

    Parameters
    ----------
    folder
        Where image and recording are kept; the caller removes it.
    kind, size
        Of the filesystem; bytes of the disk.
    """

    def __init__(self, folder, kind, size) -> None:
        self.folder = Path(folder).resolve()
        self.kind = kind
        self.size = size
        self.place = self.folder / "mounted"
        self.file = self.folder / "disk"
        self.recording = self.folder / "recording"
        self.options = ("nouuid",) if kind == "xfs" else ()
        self.recorder = None

    def __enter__(self):
        image = self.folder / "image"
        with open(image, "wb") as file:
            file.truncate(self.size)
        quick = ("-E", "lazy_itable_init=0,lazy_journal_init=0") if self.kind == "ext4" else ()
        run(f"mkfs.{self.kind}", "-q", *quick, image)
        run("cp", "--sparse=always", image, self.folder / "base")
        self.place.mkdir()
        self.file.touch()
        self.recording.touch()
        try:
            self.recorder = subprocess.Popen(
                [sys.executable, __file__, image, self.file, self.recording],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            if self.recorder.stdout.read(5) != b"ready":
                said = self.recorder.stderr.read().decode().strip()
                raise NoPower(f"FUSE: {said.splitlines()[-1] if said else 'it said nothing'}")
            mount(self.file, self.place, *self.options)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        unmount(self.place)
        unmount(self.file)
        if self.recorder is not None:
            try:
                self.recorder.wait(5)  # it ends with its mount
            except subprocess.TimeoutExpired:
                self.recorder.kill()  # then whoever still waits for the disk gets an error
                self.recorder.wait(WAIT)
            self.recorder.stdout.close()
            self.recorder.stderr.close()

    def records(self):
        """Return (when, offset, length, position of the data) of all that was recorded."""
        found = []
        with open(self.recording, "rb") as tape:
            while head := tape.read(RECORD.size):
                when, offset, length = RECORD.unpack(head)
                found.append((when, offset, length, tape.tell()))
                tape.seek(length, os.SEEK_CUR)
        return found


class Cuts:
    """The disk as it would have been found after the power failed at some record.

    Cuts have to be asked for in the order of time: what was flushed is kept up to date.
    """

    def __init__(self, disk, records) -> None:
        self.disk = disk
        self.records = records
        self.flushed = disk.folder / "base"
        self.done = 0
        self.place = disk.folder / "after"
        self.place.mkdir()

    def image(self, last, survive, seed):
        """Return an image of the disk after record number `last`.

        Parameters
        ----------
        survive : float
            The share of the blocks written since the last flush that are there.
        """
        flush = next(
            (n for n in range(last, self.done - 1, -1) if self.records[n][1] == FLUSH), self.done
        )
        with open(self.disk.recording, "rb") as tape:
            with open(self.flushed, "r+b") as file:
                for record in self.records[self.done : flush]:
                    self._write(tape, file, record, lambda: True)
            self.done = flush
            image = self.disk.folder / "cut"
            image.unlink(missing_ok=True)  # the loop device of the last cut may still close it
            run("cp", "--sparse=always", "--reflink=auto", self.flushed, image)
            dice = random.Random(seed)
            with open(image, "r+b") as file:
                for record in self.records[flush : last + 1]:
                    self._write(tape, file, record, lambda: dice.random() < survive)
        return image

    @staticmethod
    def _write(tape, file, record, survives):
        _, offset, length, position = record
        if offset == FLUSH:
            return
        tape.seek(position)
        for start in range(0, length, BLOCK):
            data = tape.read(min(BLOCK, length - start))
            if survives():
                file.seek(offset + start)
                file.write(data)

    def restart(self, last, survive, seed):
        """Mount the disk after a cut; return where."""
        mount(self.image(last, survive, seed), self.place, *self.disk.options)
        return self.place

    def end(self):
        unmount(self.place)


if __name__ == "__main__":
    serve(*sys.argv[1:])
