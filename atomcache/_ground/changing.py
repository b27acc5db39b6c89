"""Tasks that change files which others use: written, replaced, exchanged, linked, added to.

What it is for: one helper changes a file again and again, by the same calls as the protocol,
while another one reads it and counts what it should not have seen.

Who calls it: the helper's program, for each task that the crew gives out.  What may go wrong:
`OSError`, which is the answer then.
"""

from __future__ import annotations

import errno
import os
from time import monotonic, sleep
from typing import TYPE_CHECKING

from .._door import ADD, CREATE, READ, door
from .._publish import persist

if TYPE_CHECKING:
    from collections.abc import Callable

SHOWN_BLOCK = 8192
"""Bytes of a file that is read while it is replaced, all of them the same."""

LONG_ENOUGH = 1.5
"""Seconds after which a trial that is slow on this filesystem is content with what it has."""

_RENAMES = 150
_CHANGES = 50

_READS = 10
_BLINK = 0.0001
"""Seconds for which a reader sleeps after so many reads: who wakes interrupts who works, in the
midst of a change too, where both have one processor."""

_PAUSE = 0.002
"""Seconds between two changes once there were many: a reader that gets no processor is to find
some when it does, and what is replaced takes room until then."""

_LAST = b"last"
_BEGUN = "-begun"


def write(path: str, text: str) -> None:
    """Make a file with a text in it."""
    fill(path, text.encode())


def fill(path: str, content: bytes) -> None:
    """Make a file with some bytes in it."""
    fd = os.open(path, CREATE, 0o600)
    try:
        door.write(fd, content)
    finally:
        os.close(fd)


def make_folder(path: str) -> None:
    """Make a folder with a file in it."""
    os.mkdir(path, 0o700)
    fill(os.path.join(path, "made"), b"-" * SHOWN_BLOCK)


def watch(path: str, seen: str, limit: float) -> tuple[int, int, int, int]:
    """Read a file until it says that it is the last; count what was missing or mixed.

    Parameters
    ----------
    seen
        Made as soon as the file was seen to change often enough, and with `_BEGUN` after it when
        it is read for the first time.

    Returns
    -------
    int, int, int, int
        How often it was read, missing, mixed, and something else than before.
    """
    write(seen + _BEGUN, "begun")
    reads = missing = mixed = changes = 0
    told = False
    last = b"-" * SHOWN_BLOCK
    end = monotonic() + limit
    while monotonic() < end:
        reads += 1
        if not reads % _READS:
            sleep(_BLINK)
        try:
            fd = os.open(path, READ)
        except FileNotFoundError:
            missing += 1
            continue
        except PermissionError:  # being replaced (Windows)
            continue
        try:
            content = os.read(fd, 2 * SHOWN_BLOCK)
        finally:
            os.close(fd)
        if content == _LAST:
            break
        if len(content) != SHOWN_BLOCK or len(set(content)) != 1:
            mixed += 1
        changes += content != last
        last = content
        if changes >= _CHANGES and not told:
            write(seen, "enough")
            told = True
    return reads, missing, mixed, changes


def replace_often(path: str, made: str, seen: str) -> int:
    """Replace a file by a rename, many times."""

    def step(turn: int, content: bytes) -> None:
        scratch = f"{path}.{turn}"
        fill(scratch, content)
        persist(door, lambda: door.replace(scratch, path))

    return _often(step, seen)


def exchange_often(path: str, made: str, seen: str) -> int:
    """Exchange two folders, many times, one of them new each time.

    What is replaced stays, so that who is on the way into it finds what was there.
    """

    def step(turn: int, content: bytes) -> None:
        scratch = f"{path}.{turn}"
        os.mkdir(scratch, 0o700)
        fill(os.path.join(scratch, made), content)
        door.exchange(scratch, path)

    return _often(step, seen)


def _often(step: Callable[[int, bytes], None], seen: str) -> int:
    """Do a step with changing content until it was seen, then with the last one.

    In memory all steps together take less time than another process needs to begin, so that is
    waited for; where files are shown late to others, in vain.
    """
    end = monotonic() + LONG_ENOUGH
    while not os.path.exists(seen + _BEGUN) and monotonic() < end:
        sleep(_PAUSE)
    end = monotonic() + LONG_ENOUGH
    turn = 0
    while monotonic() < end and not (turn >= _RENAMES and os.path.exists(seen)):
        turn += 1
        step(turn, b"ab"[turn % 2 :][:1] * SHOWN_BLOCK)
        if turn > 2 * _RENAMES:
            sleep(_PAUSE)
    step(0, _LAST)
    return turn + 1


def rename_folders(path: str) -> str:
    """Rename folders as paths are published; return what is wrong with it."""
    scratch, entry, moved = path, f"{path}-entry", f"{path}-moved"
    for folder in (scratch, entry):
        make_folder(folder)
    try:
        door.rename(scratch, entry)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES):
            return f"over a filled folder: {error.strerror}"
    else:
        return "a filled folder is replaced"
    try:
        door.rename(scratch, moved)
    except OSError as error:
        return f"to a new name: {error.strerror}"
    if os.path.lexists(scratch) or not os.path.exists(os.path.join(moved, "made")):
        return "it does not move what is inside"
    return ""


def link(path: str) -> str:
    """Give a file a second name; return what is wrong with that."""
    second = f"{path}-2"
    write(path, "linked")
    os.link(path, second)
    one, other = os.stat(path), os.stat(second)
    if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
        return "a link is another file"
    os.unlink(path)
    with open(second, "rb") as file:
        return "" if file.read() == b"linked" else "a link loses its content"


def append(path: str, count: int) -> None:
    """Add lines to a file that others add to."""
    fd = os.open(path, ADD, 0o600)
    try:
        for turn in range(count):
            os.write(fd, b"%d %d %s\n" % (os.getpid(), turn, b"x" * 60))
    finally:
        os.close(fd)


def count_lines(path: str) -> tuple[int, int]:
    """Return how many lines there are, and how many of them are whole and there once."""
    with open(path, "rb") as file:
        lines = file.read().splitlines()
    good = {line for line in lines if line.endswith(b" " + b"x" * 60)}
    return len(lines), sum(line.count(b" ") == 2 for line in good)


def remove_and_list(path: str) -> list[str]:
    """Remove a file, make and remove another of its name; return what is left of it."""
    folder = os.path.dirname(path)
    before = set(os.listdir(folder)) - {os.path.basename(path)}
    os.unlink(path)
    left = sorted(set(os.listdir(folder)) - before)
    write(path, "another")
    os.unlink(path)
    return left
