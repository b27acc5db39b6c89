"""`Cache`, the face of the library.

What it is for: users call these methods.  A hit is answered right here, by reading the
entry; a miss is told by `_protocol`.

Who calls it: users, and the module-level `get_or_create`.  What may go wrong is listed
with each method; every error of the library's own derives from `AtomcacheError`.
"""

from __future__ import annotations

import os

from ._codec_table import CodecTable
from ._door import door as real_door
from ._errors import AtomcacheError, OptionError
from ._keys import describe, digest
from ._layout import CLAIM, Layout
from ._options import Options, seconds, size
from ._protocol import Protocol, storage_error
from ._publish import MISS, remove
from ._value import ValueEntry, read, read_remembered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any, TypeVar, Unpack

    from ._door import Door
    from ._listing import EntryInfo
    from ._memory import MemoryTier
    from ._options import CallOptions

    T = TypeVar("T")

_MOST_PLACES = 10_000
"""Keys whose digest is remembered: some 3 MB, for a tenth of a hit's time."""

_VALUE = b"v"
_PATH = b"p"


class Cache:
    """A folder of values, files and folders, each made once for all processes.

    Making a `Cache` costs nothing and touches no disk; the folder is made when the first
    entry is.  A cache can be shared by threads, pickled and sent to other processes, and
    survives `os.fork`.

    Parameters
    ----------
    directory : str or os.PathLike
        The cache folder.  A relative path is taken from the current folder now.
    allow : sequence of type
        Classes of your own that the codec ``"data"`` may store and rebuild.
    secret : bytes, optional
        At least 16 bytes with which the codec ``"pickle"`` signs its entries, so that
        the folder may be one that others can write to.
    shared : bool
        Give files and folders the modes that the umask allows, for a cache that several
        users share, instead of 0600 and 0700.
    lease : float or timedelta
        Seconds that a builder may show no sign of life where its lock can't be seen
        (another machine, a filesystem without locks) before another one takes over.
    memory : int or str, optional
        Bytes, such as ``"64MB"``, of values to keep decoded in this process; each is
        validated by one stat, so that another process's change is seen at once.  Only
        values that can't be changed in place are kept.  `None`, the default: none.
    **options
        Defaults for every call: `max_age`, `timeout`, `on_error`, `on_store_error`,
        `codec`, `durable` and `tags`, as documented in `Options`.

    Raises
    ------
    OptionError
        For an option of the wrong name, type or sign.

    Examples
    --------
    >>> import tempfile
    >>> cache = Cache(tempfile.mkdtemp())
    >>> cache.get_or_create("answer", lambda: 6 * 7)
    42
    >>> cache.get_or_create("answer", lambda: "not called again")
    42
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        allow: Sequence[type] = (),
        secret: bytes | None = None,
        shared: bool = False,
        lease: Any = 30.0,
        memory: int | str | None = None,
        **options: Unpack[CallOptions],
    ) -> None:
        place: Any = directory if isinstance(directory, str) else _path_of(directory)
        if not isinstance(place, str) or not place or "\0" in place or not _encodable(place):
            raise OptionError(f"directory must be the path of a folder, not {describe(directory)}")
        if isinstance(allow, str | bytes | type) or not hasattr(allow, "__iter__"):
            raise OptionError(
                f"allow must be several classes, as a list or tuple, not {describe(allow)}"
            )
        self._given = {
            "directory": os.path.abspath(place),
            "allow": tuple(allow),
            "secret": secret,
            "shared": shared,
            "lease": lease,
            "memory": memory,
            **options,
        }
        self._open(real_door)

    def _open(self, door: Door) -> None:
        """Build what follows from the parameters, over a given door."""
        given: dict[str, Any] = dict(self._given)
        directory = given.pop("directory")
        self._codecs = CodecTable(directory, given.pop("allow"), given.pop("secret"))
        self._door = door
        shared = given.pop("shared")
        if not isinstance(shared, bool):
            raise OptionError(f"shared must be True or False, not {describe(shared)}")
        self._layout = Layout(door, directory, shared)
        lease = seconds("lease", given.pop("lease"))
        if not lease or lease > 86_400:
            raise OptionError("lease must be more than 0 seconds and at most a day")
        limit = size("memory", given.pop("memory"))
        self._memory = None if limit is None else _memory_tier(limit)
        self._options = Options(self._codecs.find("data")).changed(given, self._codecs.find)
        self._path_places: dict[str, tuple[str, bytes, str, str, Path]] = {}
        self._places: dict[str, tuple[bytes, str]] = {}
        if "tags" in self._given:
            self._given["tags"] = self._options.tags
        self._protocol = Protocol(door, self._layout, lease)

    @classmethod
    def for_app(cls, name: str, **parameters: Any) -> Cache:
        """Return a cache in the user's cache folder, as the system wants it.

        Parameters
        ----------
        name
            The application's name: a plain folder name, such as ``"thumbnails"``.
        **parameters
            As for `Cache`.

        Raises
        ------
        OptionError
            If the name is not a plain folder name.
        """
        from platformdirs import user_cache_dir

        if (
            not isinstance(name, str)
            or not name
            or name in (".", "..")
            or set(name) & set("/\\\0")
        ):
            raise OptionError(f"name must be a plain folder name, not {describe(name)}")
        return cls(user_cache_dir(name, appauthor=False), **parameters)

    @property
    def directory(self) -> Path:
        """The cache folder."""
        from pathlib import Path

        return Path(self._layout.directory)

    # -- ask -------------------------------------------------------------------------

    def get_or_create(
        self, key: object, factory: Callable[[], T], **options: Unpack[CallOptions]
    ) -> T:
        """Return the value of `key`; if there is none, one of all who ask makes it.

        Parameters
        ----------
        key
            Text, bytes, or any plain data: numbers, dates, paths, tuples, lists, dicts,
            sets, dataclasses, numpy arrays.
        factory
            Called without arguments, by one caller of all processes and threads that ask
            at the same time.  The others sleep until the value is there.
        **options
            As documented in `Options`.

        Returns
        -------
        object
            The value: what `factory` returned, or an equal object read from the cache.

        Raises
        ------
        Exception
            Whatever the factory raises; also in those who waited for it, with the remote
            traceback as its cause.  The next caller tries anew.
        BuildTimeout
            If somebody else is still building after `timeout` seconds.
        CircularBuildError
            If the factory asks, directly or through others, for its own result.
        CodecError
            If the codec can't store what the factory returned.
        KeyTypeError
            If the key is not plain data.
        OptionError
            If an option has the wrong name, type or sign.
        StorageError
            If the folder can't be read or written, unless ``on_store_error="bypass"``.
        UnsafeDirectoryError
            If ``codec="pickle"`` is asked to trust a folder that others can write.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> cache.get_or_create(("squares", 4), lambda: [n * n for n in range(4)])
        [0, 1, 4, 9]
        """
        chosen = self._options if not options else self._changed(options)
        name, path = self._place(key)
        try:
            value: T = self._read(path, name, chosen)
        except OSError as error:
            entry = ValueEntry(self._layout, name, key, chosen, factory)
            value = self._unreadable(entry, error)
        if value is MISS:
            _check_callable("factory", factory)
            value = self._missed(ValueEntry(self._layout, name, key, chosen, factory))
        return value

    def get_or_create_path(
        self,
        key: object,
        build: Callable[[Path], object],
        *,
        name: str,
        **options: Unpack[CallOptions],
    ) -> Path:
        """Return the path of a file or folder; if there is none, one of all who ask makes it.

        What is built is published whole or not at all, and lies where it is until it is
        replaced or removed.  Treat it as read-only: others use it too.

        Parameters
        ----------
        key
            As for `get_or_create`.  A value and a path under one key are two entries.
        build
            Called with the path at which it has to make a regular file or a folder.  The
            folder around it is private to this build; what else is left there is removed.
        name
            What the file or folder is to be called, such as ``"report.pdf"``.
        **options
            As documented in `Options`.

        Returns
        -------
        pathlib.Path
            The path of what was built; its last part is `name`.

        Raises
        ------
        BuilderError
            If the builder made nothing, or left a symlink or a special file.
        EntryNameError
            If `name` can't be a file name, or the key is stored under another name.
        Exception
            As for `get_or_create`.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> path = cache.get_or_create_path(
        ...     "greeting", lambda target: target.write_text("hello"), name="greeting.txt"
        ... )
        >>> path.name, path.read_text()
        ('greeting.txt', 'hello')
        """
        from ._path import PathEntry, find

        chosen = self._options if not options else self._changed(options)
        place = self._path_places.get(key) if type(key) is str else None
        if place is None or type(name) is not str or place[0] != name:
            place = self._path_place(key, name)
        _, digested, target, meta, found = place
        try:
            if find(self._door, target, meta, chosen):
                return found
        except OSError as error:
            entry = PathEntry(self._layout, digested, key, name, chosen, build)
            unstored: Path = self._unreadable(entry, error)
            return unstored
        _check_callable("build", build)
        missed: Path = self._missed(PathEntry(self._layout, digested, key, name, chosen, build))
        return missed

    # -- look ------------------------------------------------------------------------

    def get(self, key: object, default: Any = None, **options: Unpack[CallOptions]) -> Any:
        """Return the value of `key`, or `default` if there is no fresh one.

        Raises
        ------
        StorageError
            If there is an entry that can't be read.
        KeyTypeError, OptionError, UnsafeDirectoryError
            As for `get_or_create`.
        """
        chosen = self._options if not options else self._changed(options)
        name, path = self._place(key)
        try:
            value = self._read(path, name, chosen)
        except OSError as error:
            raise self._storage_error(_VALUE, key, error) from error
        return default if value is MISS else value

    def get_path(
        self, key: object, default: Any = None, **options: Unpack[CallOptions]
    ) -> Path | Any:
        """Return the path that was built for `key`, or `default` if there is no fresh one.

        Raises
        ------
        StorageError
            If there is an entry that can't be read.
        KeyTypeError, OptionError
            As for `get_or_create`.
        """
        from pathlib import Path

        from ._path import META, find, stored_name

        chosen = self._options if not options else self._changed(options)
        path = self._layout.entry(digest(_PATH, key))
        try:
            name = stored_name(self._door, path)
            if name is None:
                return default
            target, meta = os.path.join(path, name), os.path.join(path, META)
            return Path(target) if find(self._door, target, meta, chosen) else default
        except OSError as error:
            raise self._storage_error(_PATH, key, error) from error

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a fresh value or path of `key`."""
        return self.get(key, MISS) is not MISS or self.get_path(key) is not None

    def entries(self) -> Iterator[EntryInfo]:
        """Yield what is known of each entry, in no particular order.

        Entries that come or go meanwhile may or may not be seen; damaged ones are left out.
        """
        from ._listing import scan

        return scan(self._layout)

    # -- change ----------------------------------------------------------------------

    def set(self, key: object, value: Any, **options: Unpack[CallOptions]) -> None:
        """Store `value` under `key`, in the place of whatever is there.

        A build of the same key that is under way is not disturbed; it finds this value
        published and returns it.

        Raises
        ------
        CodecError
            If the codec can't store the value.
        StorageError
            If the folder can't be written, unless ``on_store_error="bypass"``.
        KeyTypeError, OptionError, UnsafeDirectoryError
            As for `get_or_create`.
        """
        chosen = self._options if not options else self._changed(options)
        entry = ValueEntry(self._layout, digest(_VALUE, key), key, chosen, lambda: value)
        try:
            entry.replace(self._new_scratch(entry.path), value)
        except OSError as error:
            self._unreadable(entry, error)

    def remove(self, key: object) -> bool:
        """Remove the value and the path of `key`; tell whether there was one.

        Who has a file of a removed path open keeps it, on POSIX.

        Raises
        ------
        StorageError
            If an entry can't be removed.
        KeyTypeError
            If the key is not plain data.
        """
        had_value = self._remove(_VALUE, key)
        had_path = self._remove(_PATH, key)
        return had_value or had_path

    def clear(self) -> int:
        """Remove all entries and return how many there were.

        Builds under way are not disturbed, and publish when they are done.

        Raises
        ------
        StorageError
            If an entry can't be removed.
        """
        from ._listing import clear

        try:
            return clear(self._layout, self._new_scratch)
        except OSError as error:
            raise storage_error("the cache", self._layout.directory, error) from error

    def reap(self) -> int:
        """Remove what dead builders left behind and return how many things that was.

        Whoever asks for a key reaps its claim anyway; this is for keys that nobody asks
        for again.  What a living builder owns is not touched, nor what belongs to a
        builder that can't be seen (on another machine) and has shown a sign of life within
        the last five minutes.

        Raises
        ------
        StorageError
            If something can't be removed.
        """
        from ._listing import sweep

        try:
            return sweep(self._layout)
        except OSError as error:
            raise storage_error("the cache", self._layout.directory, error) from error

    # -- inside ----------------------------------------------------------------------

    def _read(self, path: str, name: bytes, chosen: Options) -> Any:
        if self._memory is None:
            return read(self._door, path, name, chosen)
        return read_remembered(self._memory, self._door, path, name, chosen)

    def _place(self, key: object) -> tuple[bytes, str]:
        """Return digest and path of a key's value, remembered for keys that are text."""
        if type(key) is not str:
            name = digest(_VALUE, key)
            return name, self._layout.entry(name)
        place = self._places.get(key)
        if place is None:
            name = digest(_VALUE, key)
            place = name, self._layout.entry(name)
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            self._places[key] = place
        return place

    def _path_place(self, key: object, name: str) -> tuple[str, bytes, str, str, Path]:
        """Return name, digest, target, meta and result of a path, remembered as `_place` does."""
        from pathlib import Path

        from ._path import META, check_name

        digested = digest(_PATH, key)
        folder = self._layout.entry(digested)
        target = os.path.join(folder, check_name(name))
        place = name, digested, target, os.path.join(folder, META), Path(target)
        if type(key) is str:
            if len(self._path_places) >= _MOST_PLACES:
                self._path_places.clear()
            self._path_places[key] = place
        return place

    def _changed(self, options: CallOptions) -> Options:
        return self._options.changed(options, self._codecs.find)

    def _missed(self, entry: Any) -> Any:
        return self._protocol.get(entry, self._door.time())

    def _unreadable(self, entry: Any, error: OSError) -> Any:
        return self._protocol.get_unstored(entry, error)

    def _storage_error(self, kind: bytes, key: object, error: OSError) -> OSError:
        if isinstance(error, AtomcacheError):
            return error
        what = f"the {'value' if kind == _VALUE else 'path'} of key {describe(key)}"
        return storage_error(what, self._layout.entry(digest(kind, key)), error)

    def _new_scratch(self, path: str) -> str:
        return f"{path}{CLAIM}.{self._door.urandom(8).hex()}"

    def _remove(self, kind: bytes, key: object) -> bool:
        path = self._layout.entry(digest(kind, key))
        try:
            return remove(self._door, path, self._new_scratch(path))
        except OSError as error:
            raise self._storage_error(kind, key, error) from error

    def __getstate__(self) -> dict[str, Any]:
        return self._given

    def __setstate__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._open(real_door)

    def __repr__(self) -> str:
        return f"Cache({self._layout.directory!r})"


def _memory_tier(limit: int) -> MemoryTier:
    from ._memory import MemoryTier

    return MemoryTier(limit)


def _path_of(directory: object) -> object:
    return os.fspath(directory) if isinstance(directory, os.PathLike) else None


def _encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _check_callable(what: str, given: object) -> None:
    if not callable(given):
        raise OptionError(f"{what} must be callable, not {describe(given)}")
