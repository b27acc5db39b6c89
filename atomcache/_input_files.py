"""Which files a set of inputs stands for.

What it is for: a path stands for a file, or for a folder with all that is below it; a pattern
stands for the files that match.  Each is looked at once, by one stat, and handed on under its name
together with what was seen.  A cache may stand among its own inputs: what it keeps there changes
with each build, and does not count.

Who calls it: `_inputs`, at each look.  What may go wrong: `MissingInputError` for what is not
there, `InputError` for what can't be read or is no file.
"""

from __future__ import annotations

import errno
import os
import stat

from ._errors import InputError, MissingInputError
from ._keys import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Thing = tuple[str, bytes | os.stat_result]
    """A name with slashes on every system, and what the file of that name is like; or, where it
    is no file but counts, what stands for its content."""


_PATTERN = frozenset("*?[")


def things_of(inputs: Iterable[str], own: str) -> Iterator[Thing]:
    """Yield all files that some paths and patterns stand for, by names as given or as found.

    Parameters
    ----------
    own
        The folder of the cache's entries, which only counts where an input is inside.
    """
    for given in inputs:
        if not _PATTERN.isdisjoint(given) and not os.path.lexists(given):
            yield from _matching(given, own + os.sep)
            continue
        found = look(given)
        if stat.S_ISDIR(found.st_mode):
            yield from walk(given, _stat(own))
        else:
            yield _slashes(given), found


def _matching(pattern: str, own: str) -> Iterator[Thing]:
    from glob import iglob  # takes long to load, and most inputs are no patterns

    number = 0
    inside = os.path.abspath(pattern).startswith(own)
    for name in iglob(pattern, recursive=True):
        if not inside and os.path.abspath(name).startswith(own):
            continue
        found = _stat_file(name)
        if found is not None:
            number += 1
            yield _slashes(name), found
    if not number:
        raise _missing(pattern, "matches no file")


def look(given: str) -> os.stat_result:
    """Return what an input is like."""
    try:
        return os.stat(given)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise _missing(given, "is not there") from None
    except OSError as error:
        raise unreadable(given, error) from error


def _stat_file(name: str) -> os.stat_result | None:
    """Return what a file is like; `None` for anything else."""
    found = _stat(name)
    return found if found is not None and stat.S_ISREG(found.st_mode) else None


def _stat(name: str) -> os.stat_result | None:
    try:
        return os.stat(name)
    except OSError:
        return None


def walk(folder: str, own: os.stat_result | None = None) -> Iterator[Thing]:
    """Yield what is below a folder; for an empty folder, the folder with a slash.

    A link to a file counts as that file.  Any other counts by where it points to: what is
    there may be anything, such as a folder around this one.
    """
    try:
        with os.scandir(folder) as scanned:
            below = [each for each in scanned if own is None or not _is_folder(each, own)]
    except OSError as error:
        raise unreadable(folder, error) from error
    if not below:
        yield _slashes(folder) + "/", b""
    for each in below:
        if each.is_dir(follow_symlinks=False):
            yield from walk(each.path, own)
        elif each.is_symlink():
            found = _stat_file(each.path)
            yield _slashes(each.path), found or _hash_link(each.path)
        else:
            try:
                yield _slashes(each.path), os.stat(each.path)
            except OSError as error:
                raise unreadable(each.path, error) from error


def _is_folder(entry: os.DirEntry[str], other: os.stat_result) -> bool:
    """Tell whether a folder is another one, which its number rules out without a stat."""
    if not entry.is_dir(follow_symlinks=False) or entry.inode() != other.st_ino:
        return False
    found = _stat(entry.path)
    return found is not None and os.path.samestat(found, other)


def _hash_link(name: str) -> bytes:
    """Return a hash of where a link points to, which is that of no file's content."""
    try:
        target = os.fsencode(os.readlink(name))
    except OSError as error:
        raise unreadable(name, error) from error
    return blake2b(target, digest_size=20, person=b"link").digest()


def _slashes(name: str) -> str:
    """Return a name with slashes, and without parts that lead nowhere.

    ``..`` stays: after a link it leads elsewhere than back.
    """
    name = name.replace(os.sep, "/")
    first, *rest = name.split("/")
    if first != "." and not {".", ""} & set(rest):
        return name
    from pathlib import PurePath  # takes long to load, and hardly a name is like that

    return PurePath(name).as_posix()


def absolute(name: str) -> str:
    """Return a name from the root that leads to the same file; see `_slashes` on ``..``."""
    return os.path.abspath(name) if os.name == "nt" else os.path.join(os.getcwd(), name)


def refuse_around(name: str, own: str) -> None:
    """Raise if a folder holds the entries of the cache, so that it never stays as it was."""
    if os.path.realpath(own).startswith(os.path.join(os.path.realpath(name), "")):
        raise InputError(
            errno.EINVAL,
            f"the input {name!r} changes with each build, because the cache is in it. Name the "
            "files and folders beside the cache one by one, or put it elsewhere",
            name,
        )


def unreadable(name: str, error: OSError) -> InputError:
    """Return the error of an input that can't be read, or is gone."""
    if isinstance(error, FileNotFoundError):
        return _missing(name, "was there a moment ago, and is gone")
    return InputError(
        error.errno or errno.EIO,
        f"the input {name!r} can't be read: {error.strerror or error}. Make it readable, or "
        "leave it out of the inputs",
        absolute(name),
    )


def no_file(name: str) -> InputError:
    """Return the error of an input that is something else, such as a device."""
    return InputError(
        errno.EINVAL,
        f"the input {name!r} is neither a file nor a folder. Leave it out of the inputs",
        absolute(name),
    )


def _missing(name: str, why: str) -> MissingInputError:
    return MissingInputError(
        errno.ENOENT,
        f"the input {name!r} {why}. Make it first, or leave it out of the inputs",
        absolute(name),
    )
