"""How something finished is put in its place: atomically, and only by the first.

What it is for: a scratch becomes the entry by one step that either happens or does not.
The step fails if somebody else was first, so that no lock is needed for what readers
see (rule: locks save work, they never protect data).

- A file where nothing is: a hard link, which is atomic and refuses to replace (on Windows
  a rename does).  Where there are no hard links, a look and a rename; then the claim's
  lock has to do.
- A folder where nothing is: a rename, which refuses to replace a folder that is filled.
- Something that was found expired or damaged: only if it is still the same.

Who calls it: the two kinds of entry.  What may go wrong: `OSError`; on Windows a reader
that has the file open makes a replacement fail, which is tried again for a while.
"""

from __future__ import annotations

import errno

from ._log import logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._door import Door

PUBLISH_TRIES = 10
"""How often publishing starts over when the folder is deleted under it."""

_BLOCKED_TRIES = 60
"""How often to try again what an open file blocks (Windows): some five seconds."""

_UNSEEN_TRIES = 12
"""How often to try again what an entry blocks that can't be seen: some four seconds."""

STAGED = "01"
"""What a path's scratch adds to its name when it stands ready to be published."""
REVOKED = "02"
"""What it adds once the entry was removed during the build, so that it can't be published."""
REPLACED = "00"
"""What that adds to its name which was replaced, until it is removed."""

_NO_EXCHANGE = (
    errno.ENOSYS,
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EEXIST,
    errno.ENOTEMPTY,
)
"""What is said where two names can't change places; the last two of a filesystem that does not
heed that it was asked to exchange them, and won't rename over a folder that is filled."""

_NO_LINKS = (
    errno.EPERM,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EMLINK,
    errno.EXDEV,
    errno.EINVAL,
)

Identity = tuple[int, int, int, int]


class Revoked(Exception):
    """The entry was removed while it was built, so what was built must not be published."""


class _Answer:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


MISS: Any = _Answer("MISS")
"""What looking for an entry returns when there is none; no factory can return it."""

LARGE: Any = _Answer("LARGE")
"""What looking for an entry returns when it is too large to be read just now."""


def identify(door: Door, path: str) -> Identity | None:
    """Return what tells the thing at `path` from whatever may come after it."""
    try:
        found = door.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def install_file(
    door: Door, scratch: str, path: str, seen: Identity | None, *, always: bool = False
) -> bool:
    """Move a file into place; `False` if somebody was first.

    The scratch may still be there afterwards; it is the caller's to discard.

    Parameters
    ----------
    seen
        The identity of the expired or damaged entry that may be replaced; `None` if
        there was none.
    always
        Replace whatever is there.
    """
    if always or (seen is not None and identify(door, path) == seen):
        persist(door, lambda: door.replace(scratch, path))
        return True
    return seen is None and _create(door, scratch, path)


def install_folder(door: Door, scratch: str, path: str, seen: Identity | None, trash: str) -> bool:
    """Move a folder into place; `False`, and it is still there, if somebody was first.

    Where two names can be exchanged in one step, there is no moment without an entry, and
    what is replaced is at `scratch` afterwards; else it is at `trash`.
    """
    if seen is not None:
        if identify(door, path) != seen:
            return False
        try:
            if _exchange(door, scratch, path):
                return True
            persist(door, lambda: door.rename(path, trash))
        except FileNotFoundError:
            if identify(door, path) is not None or identify(door, scratch) is None:
                raise
            # It was evicted since we looked: nothing is in the way.
    for attempt in range(_UNSEEN_TRIES):
        try:
            door.rename(scratch, path)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES):
                raise
            if identify(door, path) is not None:
                return False
            unseen = error
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # It was removed since, or another machine put it there and it is not seen here yet.
        door.sleep(0.001 * 2**attempt)
    raise unseen


def _exchange(door: Door, scratch: str, path: str) -> bool:
    try:
        door.exchange(scratch, path)
    except OSError as error:
        if error.errno in _NO_EXCHANGE:
            return False
        raise
    return True


def remove(door: Door, path: str, trash: str) -> bool:
    """Remove an entry in one step; `False` if there is none."""
    try:
        persist(door, lambda: door.rename(path, trash))
    except (FileNotFoundError, NotADirectoryError):
        return False
    discard(door, trash)
    return True


def discard(door: Door, path: str) -> None:
    """Remove what nobody needs; what can't be removed is logged and left for `reap`."""
    try:
        door.remove_tree(path)
    except OSError as error:
        logger().warning("something is left for reap() to remove: %s: %s", path, error)


def persist(door: Door, step: Callable[[], None]) -> None:
    """Do `step`; where open files block it, go on trying for a while."""
    tries = _BLOCKED_TRIES if door.open_files_block else 1
    for attempt in range(tries):
        try:
            step()
            return
        except PermissionError:
            if attempt + 1 == tries:
                raise
        door.sleep(min(0.1, 0.001 * 2**attempt))


def _create(door: Door, scratch: str, path: str) -> bool:
    """Give a file its second name, or on Windows its new one; `False` if that is taken."""
    try:
        if door.open_files_block:
            # A rename refuses to replace there, and the scratch's name of a link could not
            # be removed while a reader has the file open.
            door.rename(scratch, path)
            return True
        door.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if identify(door, path) is not None:
            return False
        door.rename(scratch, path)
    return True
