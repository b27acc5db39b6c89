"""Every error that the library raises on its own account.

Each derives from `AtomcacheError`, so one ``except`` catches the family, and from
the built-in error that fits, so code that knows nothing of this library still does
the right thing.  A message says what happened, to which key, where, and what to do.

Who calls it: every other module raises from here; users import the names from
`atomcache`.  Nothing here touches the disk.
"""

from __future__ import annotations


class AtomcacheError(Exception):
    """Base of all errors that atomcache raises itself."""


class BuildTimeout(AtomcacheError, TimeoutError):
    """Somebody else was still building when ``timeout`` seconds had passed."""


class CircularBuildError(AtomcacheError, RuntimeError):
    """A factory waits, directly or through other builders, for its own result."""


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
    """Pickles were asked for from a place that somebody else could have written."""
