"""Tasks that look at what a filesystem makes of a file: its name, times, identity, rights, room.

What it is for: each makes what it needs and returns what it saw; the trials say what it means.

Who calls it: the helper's program, for each task that the crew gives out.  What may go wrong:
`OSError`, which is the answer then.
"""

from __future__ import annotations

import errno
import os
from time import monotonic

from .._door import READ, door
from .._errors import UnsafeDirectoryError
from .._layout import CLAIM
from .._watch import USE_RECORDED
from .changing import LONG_ENOUGH, SHOWN_BLOCK, fill, write

NO_FOLDER = (FileNotFoundError, NotADirectoryError)
"""How the system says that there is no such folder."""

LONGEST_NAME = 255
"""Bytes of a name that users may give to a path entry."""

_EPOCH = 1_600_000_000 * 10**9
_GRAINS = (1, 100, 1000, 10**6, 10**7, 10**9, 2 * 10**9)
"""Nanoseconds: of most, NTFS, UDF, some network filesystems, exFAT, HFS+ and ext3, and FAT."""


def find(directory: str, exact: bool) -> tuple[str, str]:
    """Return the folder, or the nearest one above it, and where it really stands."""
    place = directory
    while True:
        try:
            os.stat(place)
            break
        except NO_FOLDER:
            if exact or place == os.path.dirname(place):
                raise
        place = os.path.dirname(place)
    if exact and not os.path.isdir(place):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return place, os.path.realpath(place)


def spell(path: str) -> tuple[bool, list[str]]:
    """Return whether case makes no difference, and names that are listed otherwise."""
    os.mkdir(path, 0o700)
    given = ["ab", "a" * 40 + CLAIM, "Mixed-Case", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
    made = []
    for name in given:
        try:
            write(os.path.join(path, name), name)
            made.append(name)
        except (OSError, UnicodeError):
            if name.isascii():
                raise
    one = os.path.lexists(os.path.join(path, "AB"))
    listed = os.listdir(path)
    return one, [name for name in made if name not in listed]


def longest_name(path: str) -> int:
    """Return how long a name may be, up to what anybody needs."""
    os.mkdir(path, 0o700)
    fits, fails = 1, LONGEST_NAME + 1
    length = LONGEST_NAME
    while fits + 1 < fails:
        name = os.path.join(path, "n" * length)
        try:
            write(name, "")
            os.unlink(name)
            fits = length
        except OSError:
            fails = length
        length = (fits + fails) // 2
    return fits


def longest_path(path: str) -> int | None:
    """Return how long the system says that a path may be."""
    try:
        return os.pathconf(path, "PC_PATH_MAX")
    except (AttributeError, OSError, ValueError):
        return None


def times(path: str) -> tuple[int | None, bool, int | None, float]:
    """Return the grain of times that are set, whether 1970 is kept, and of two writes.

    The last is how many seconds the filesystem's clock is ahead.
    """
    from time import time

    before = time()
    write(path, "new")
    made = os.stat(path).st_mtime
    after = time()
    ahead = made - after if made > after else min(0.0, made - before)
    grain = next((step for step in _GRAINS if _keeps(path, _EPOCH + step)), None)
    natural = None if grain is None or grain >= 10**9 else _natural(path)
    return grain, _keeps(path, 0), natural, ahead


def _keeps(path: str, time: int) -> bool:
    try:
        os.utime(path, ns=(time, time))
    except OSError:
        return False
    return os.stat(path).st_mtime_ns == time


def _natural(path: str) -> int | None:
    """Return by how many nanoseconds the times of two writes differ at least."""
    least = None
    fd = os.open(path, os.O_WRONLY)
    try:
        last = None
        end = monotonic() + 0.05
        while monotonic() < end:
            os.write(fd, b"x")
            now = os.fstat(fd).st_mtime_ns
            if last is not None and now > last:
                least = now - last if least is None else min(least, now - last)
            last = now
    finally:
        os.close(fd)
    return least


def access(path: str) -> float | None:
    """Return by how much a time of access that is set is wrong; `None` if it can't be set."""
    from time import time

    used = time() - 50 * USE_RECORDED
    fd = os.open(path, READ)
    try:
        os.utime(fd, ns=(int(used * 1e9), os.fstat(fd).st_mtime_ns))
    except OSError:
        return None
    finally:
        os.close(fd)
    return abs(os.stat(path).st_atime - used)


def map_file(path: str) -> str:
    """Map a file as a hit does; return what is wrong with it."""
    content = os.urandom(3 * SHOWN_BLOCK)
    fill(path, content)
    fd = os.open(path, READ)
    try:
        view = door.map(fd, len(content))
    finally:
        os.close(fd)
    if view != content:
        return "a mapped file has other bytes than the file"
    view[0] ^= 255
    with open(path, "rb") as file:
        return "" if file.read() == content else "a private mapping changes the file"


def identity(path: str) -> list[tuple[int, int]]:
    """Return what tells a file from others: by its name, and by a descriptor."""
    fd = os.open(path, READ)
    try:
        return [(found.st_dev, found.st_ino) for found in (os.lstat(path), os.fstat(fd))]
    finally:
        os.close(fd)


def sync(path: str) -> float:
    """Return how long it takes to force a file onto the disk, and try it with a folder."""
    from statistics import median

    os.mkdir(path, 0o700)
    took: list[float] = []
    while len(took) < 7 and sum(took) < LONG_ENOUGH:
        name = os.path.join(path, str(len(took)))
        fill(name, bytes(4096))
        began = monotonic()
        door.sync_tree(name)
        took.append(monotonic() - began)
    door.sync_tree(path)
    door.sync_folder(path)
    return median(took)


def rights(path: str) -> tuple[int | None, int | None, str | None]:
    """Return whose a new file is, who this user is, and which mode is not as asked for."""
    os.mkdir(path, 0o700)
    name = os.path.join(path, "file")
    write(name, "")
    if not hasattr(os, "geteuid"):
        return None, None, None
    owner = os.lstat(name).st_uid
    wrong = []
    for each, mode in ((name, 0o600), (path, 0o700)):
        found = os.lstat(each).st_mode & 0o777
        if found != mode:
            wrong.append(f"asked for {mode:04o}, got {found:04o}")
    if not wrong:
        for mode in (0o640, 0o600):
            try:
                os.chmod(name, mode)
            except OSError as error:
                wrong.append(f"they can't be changed: {error.strerror}")
                break
            found = os.lstat(name).st_mode & 0o777
            if found != mode:
                wrong.append(f"changed to {mode:04o}, is {found:04o}")
    return owner, os.geteuid(), "; ".join(wrong)


def pickles(directory: str, folder: str) -> tuple[str | None, str | None]:
    """Return why pickles would be refused in a folder, and in a private one inside it."""
    from .._pickle import check_private, check_private_file

    def refusal(place: str) -> str | None:
        try:
            check_private(place, place)
            check_private_file(folder, os.lstat(os.path.join(folder, "file")))
        except UnsafeDirectoryError as error:
            return error.reason
        return None

    return refusal(directory), refusal(folder)


def room(path: str) -> tuple[int | None, int | None]:
    """Return how many bytes, and if that is limited how many files, have room."""
    if not hasattr(os, "statvfs"):
        import shutil

        return shutil.disk_usage(path).free, None
    found = os.statvfs(path)
    if not found.f_blocks:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
