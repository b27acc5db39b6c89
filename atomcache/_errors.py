"""Every error that the library raises on its own account.

Each derives from `AtomcacheError`, so one ``except`` catches the family, and from
the built-in error that fits, so code that knows nothing of this library still does
the right thing.  A message says what happened, to which key, where, and what to do.

Who calls it: every other module raises from here; users import the names from
`atomcache`.  Nothing here touches the disk.
"""

from __future__ import annotations

import errno


class AtomcacheError(Exception):
    """Base of all errors that atomcache raises itself."""


class BuildTimeout(AtomcacheError, TimeoutError):
    """Somebody else was still building when ``timeout`` seconds had passed."""

    entry: str | None = None
    """Path of the entry that was waited for."""


class CircularBuildError(AtomcacheError, RuntimeError):
    """A factory waits, directly or through other builders, for its own result.

    So does a call that is not awaited, on the thread of an event loop, for what a coroutine of
    that loop builds.
    """


class BuilderError(AtomcacheError, RuntimeError):
    """A builder of a path left nothing at its target, or a symlink or special file."""


class BuildFailedError(AtomcacheError, RuntimeError):
    """A factory failed in another process with an exception unknown to this one.

    Raised only where the original type can't be named here, because its module was
    never imported in this process.  The text names the type; ``__cause__`` holds the
    remote traceback.
    """


class RemoteTraceback(AtomcacheError):
    """The traceback of a factory that failed elsewhere; found as ``__cause__``."""


class CodecError(AtomcacheError, TypeError):
    """A value that the codec can't store so that it comes back equal, in type too."""


class NoBuildError(AtomcacheError, RuntimeError):
    """`current_build` was called where no factory runs."""


class MissingEntryError(AtomcacheError, KeyError):
    """An entry was to be held that is not there."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError shows its message in quotes


class KeyTypeError(AtomcacheError, TypeError):
    """A key that is not plain data, so that no stable digest of it exists."""


class OptionError(AtomcacheError, ValueError):
    """An option of the wrong type, sign or spelling."""


class EntryNameError(AtomcacheError, ValueError):
    """A path entry's file name is unusable, or its key is stored under another name."""


class StorageError(AtomcacheError, OSError):
    """The cache folder could not be read or written; ``errno`` says why."""


class LayoutError(AtomcacheError, RuntimeError):
    """The folder holds a layout that this version of the library does not know."""


class UnsafeDirectoryError(AtomcacheError, PermissionError):
    """Pickles were asked for from a place that somebody else could have written.

    Attributes
    ----------
    reason : str
        Who could have, and where.
    """

    reason = ""


class InputError(AtomcacheError, OSError):
    """An input file can't be read, or keeps changing while it is used."""


class MissingInputError(InputError, FileNotFoundError):
    """An input file is not there, or a pattern of inputs matches nothing."""


class DontStore(AtomcacheError):
    """Raised by a factory, to return a value to those who ask without storing it.

    Callers in this process who wait for the same build get it too; those of other processes
    build themselves.  For a path, whatever was made at the target is returned, from a
    temporary folder that is removed when the process ends.

    Parameters
    ----------
    value : object
        What the call returns.

    Examples
    --------
    >>> import tempfile
    >>> from atomcache import Cache
    >>> cache = Cache(tempfile.mkdtemp())
    >>> def look_up():
    ...     raise DontStore("not known yet")
    >>> cache.get_or_create("capital", look_up)
    'not known yet'
    >>> "capital" in cache
    False
    """

    def __init__(self, value: object = None) -> None:
        super().__init__("a factory asked for its value not to be stored")
        self.value = value


def storage_error(what: str, path: str, error: OSError) -> StorageError:
    """Say why what is built can't be kept, for which key, where, and what to do."""
    return StorageError(
        error.errno or errno.EIO,
        f"{what} can't be kept: {error.strerror or error}. {remedy_for(error)}, or pass "
        "on_store_error='bypass' to build without storing",
        error.filename or path,
    )


def access_error(what: str, path: str, error: OSError) -> StorageError:
    """Say what can't be read or changed where nothing is built, so that no bypass helps."""
    return StorageError(
        error.errno or errno.EIO,
        f"{what} can't be read or changed: {error.strerror or error}. {remedy_for(error)}",
        error.filename or path,
    )


class Access:
    """A block that builds nothing, whose errors of the system become those of the library.

    Parameters
    ----------
    what, path
        What is read or changed in it, and where that is.
    """

    def __init__(self, what: str, path: str) -> None:
        self._what = what
        self._path = path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise access_error(self._what, self._path, error) from error


def remedy_for(error: OSError) -> str:
    """Say what to do about an error of the system."""
    return _REMEDIES.get(error.errno or 0, "Look at the folder")


_REMEDIES = {
    errno.ENOSPC: "Make room on the disk",
    errno.EDQUOT: "Make room within your quota",
    errno.EROFS: "Choose a folder on a filesystem that can be written",
    errno.EACCES: "Choose a folder that this user can write to",
    errno.EPERM: "Choose a folder that this user can write to",
    errno.EMFILE: "Close files or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Close files or raise the system's limit of open files",
    errno.ENOTDIR: "Choose a folder; a part of this path is a file",
    errno.EEXIST: "Choose a folder; a part of this path is a file, or a link that leads nowhere",
    errno.ENAMETOOLONG: "Choose a folder with a shorter path",
    errno.ENOENT: "See who deletes the folder",
}
