"""`Cache`, the face of the library.

What it is for: users call these methods.  They check what they are given; `_asking` answers, and
where nothing is there yet `_protocol` tells the story.

Who calls it: users, and the module-level `get_or_create`.  What may go wrong is listed
with each method; every error of the library's own derives from `AtomcacheError`.
"""

from __future__ import annotations

import os
import sys

from . import _forks  # noqa: F401  # it has to be there before the program forks
from ._asking import PATH, VALUE, Asking, check_callable
from ._codec_table import CodecTable
from ._door import door as real_door
from ._ending import Ending
from ._errors import Access, MissingEntryError, OptionError
from ._keys import describe, digest
from ._layout import Layout
from ._log import logger
from ._options import Options, flag, number, remote_settings, seconds, size
from ._protocol import Protocol
from ._value import ValueEntry
from ._watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path
    from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, overload

    from ._decorate import Memoizer, PathMemoizer
    from ._door import Door
    from ._eviction import Pruned
    from ._hold import Holding
    from ._listing import BuildInfo, EntryInfo
    from ._memoize import AsyncMemoized, Memoized
    from ._memory import MemoryTier
    from ._options import CallOptions, DecoratorOptions, Inputs
    from ._protocol import Entry
    from ._statistics import Statistics, Stats
    from ._upkeep import Upkeep
    from ._waiting import Waiting
    from ._watch import Event

    P = ParamSpec("P")
    S = TypeVar("S")
    T = TypeVar("T")
else:

    def overload(function):
        """Stand in for `typing.overload`, whose module would be half of the import."""
        return function


_REMOTE = ("remote", "remote_options", "remote_timeout", "read_only", "write")


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
    max_bytes : int or str, optional
        Bytes, such as ``"10GB"``, beyond which the least recently used entries are removed, in
        a thread and by one process at a time.
    max_entries : int, optional
        Number of entries beyond which, likewise.
    max_idle : float, timedelta or str, optional
        Seconds, or such as ``"30d"``, without use after which an entry is removed.  Use is
        known to the hour, so an entry goes an hour later at the earliest, when a process that
        goes on publishes or hits.
    on_wait : callable, optional
        Called with a `Waiting` some ten times a second, from a thread, while anything in this
        process waits for somebody else's build, and once more, with ``over`` set, when it has
        ended.  Is not carried along when the cache is pickled.
    remote : str or obstore store, optional
        A bucket that machines share, such as ``"s3://bucket/prefix"``, with this folder as what
        each of them keeps at hand.  What is built on one is built on none of the others.
    remote_options : dict, optional
        Settings of the bucket, as `obstore.store.from_url` takes them, such as credentials; for
        an address only.
    remote_timeout : float, timedelta or str
        Seconds after which a bucket that does not answer is left alone for a while, and
        everything is built locally.  Of large contents, 5 MB have to pass in that time.
    read_only : bool
        Only look into the bucket: nothing goes there, and nothing there is removed.
    write : {"sync", "async"}
        Whether what is built goes to the bucket before its caller has it, or in a thread.
    **options
        Defaults for every call, as documented in `Options`: `max_age`, `stale_for`,
        `stale_on_error`, `retry_after`, `jitter`, `timeout`, `on_error`, `on_store_error`,
        `codec`, `durable`, `tags` and `inputs`.

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

    _on_wait: Callable[[Waiting], object] | None = None

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        allow: Sequence[type] = (),
        secret: bytes | None = None,
        shared: bool = False,
        lease: Any = 30.0,
        memory: int | str | None = None,
        max_bytes: int | str | None = None,
        max_entries: int | None = None,
        max_idle: float | timedelta | str | None = None,
        on_wait: Callable[[Waiting], object] | None = None,
        remote: Any = None,
        remote_options: Mapping[str, Any] | None = None,
        remote_timeout: Any = 10.0,
        read_only: bool = False,
        write: Literal["sync", "async"] = "sync",
        **options: Unpack[CallOptions],
    ) -> None:
        place: Any = directory if isinstance(directory, str) else _path_of(directory)
        if not isinstance(place, str) or not place or "\0" in place or not _encodable(place):
            raise OptionError(f"directory must be the path of a folder, not {describe(directory)}")
        if isinstance(directory, str) and "://" in directory:
            raise OptionError(
                f"directory must be the path of a folder, not {describe(directory)}. A bucket is "
                "given as remote=, beside a folder of this machine"
            )
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
            "max_bytes": max_bytes,
            "max_entries": max_entries,
            "max_idle": max_idle,
            "remote": remote,
            "remote_options": _copy(remote_options),
            "remote_timeout": remote_timeout,
            "read_only": read_only,
            "write": write,
            **options,
        }
        if on_wait is not None:
            check_callable("on_wait", on_wait)
            self._on_wait = on_wait
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
        settings = remote_settings({name: given.pop(name) for name in _REMOTE})
        self._codecs.shared = settings["remote"] is not None
        given_limits = {
            name: given.pop(name, None) for name in ("max_bytes", "max_entries", "max_idle")
        }
        self._memory = None if limit is None else _memory_tier(limit)
        self._options = Options(self._codecs.find("data")).changed(given, self._codecs.find)
        for name in {"tags", "inputs"} & self._given.keys():  # iterators can be read once
            self._given[name] = getattr(self._options, name)
        self._limits = (
            size("max_bytes", given_limits["max_bytes"]),
            number("max_entries", given_limits["max_entries"]),
            seconds("max_idle", given_limits["max_idle"]),
        )
        self._watch = Watch(door)
        self._protocol = Protocol(door, self._layout, self._watch, lease)
        self._protocol.on_wait = self._on_wait
        if settings["remote"] is not None:
            from ._remote import open_remote

            self._protocol.remote = open_remote(self._protocol, settings)
        self._kept_up: tuple[Upkeep, Statistics] | None = None
        self._ending = Ending(door, self._layout, self._watch)
        self._statistics = self._ending.statistics
        self._asking = Asking(self._protocol, self._codecs, self._memory, self._ending)
        self._value = self._asking.value
        self._file = self._asking.file
        if door.upkeep:
            self._protocol.published = self._published
            if self._limits[2] is not None:
                self._protocol.used = self._used

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
        if (
            not isinstance(name, str)
            or not name
            or name in (".", "..")
            or set(name) & set("/\\\0")
        ):
            raise OptionError(f"name must be a plain folder name, not {describe(name)}")
        return cls(_user_cache_dir(name), **parameters)

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
        if not chosen.inputs:
            return self._value(key, factory, chosen)
        value: T = self._asking.with_inputs(key, factory, chosen, self._value)
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
        chosen = self._options if not options else self._changed(options)
        if chosen.inputs:
            return self._asking.with_inputs(key, build, chosen, self._file, name=name)
        return self._file(key, build, chosen, name=name)

    def refresh(self, key: object, factory: Callable[[], T], **options: Unpack[CallOptions]) -> T:
        """Make the value of `key` anew, now, and return it.

        Until the new value is published, everybody else gets the old one.  Of those who
        refresh at the same time, one makes it.

        Parameters, results and errors are those of `get_or_create`.
        """
        chosen = self._options if not options else self._changed(options)
        if not chosen.inputs:
            return self._value(key, factory, chosen, anew=True)
        value: T = self._asking.with_inputs(key, factory, chosen, self._value, anew=True)
        return value

    def refresh_path(
        self,
        key: object,
        build: Callable[[Path], object],
        *,
        name: str,
        **options: Unpack[CallOptions],
    ) -> Path:
        """Make the file or folder of `key` anew, now, and return its path.

        Parameters, results and errors are those of `get_or_create_path`.
        """
        chosen = self._options if not options else self._changed(options)
        if chosen.inputs:
            return self._asking.with_inputs(key, build, chosen, self._file, name=name, anew=True)
        return self._file(key, build, chosen, name=name, anew=True)

    # -- ask, from an event loop -----------------------------------------------------

    @overload
    async def aget_or_create(
        self, key: object, factory: Callable[[], Awaitable[T]], **options: Unpack[CallOptions]
    ) -> T: ...
    @overload
    async def aget_or_create(
        self, key: object, factory: Callable[[], T], **options: Unpack[CallOptions]
    ) -> T: ...

    async def aget_or_create(
        self, key: object, factory: Callable[[], Any], **options: Unpack[CallOptions]
    ) -> Any:
        """Return the value of `key`, as `get_or_create` does, without blocking the loop.

        Of all tasks, threads and processes that ask at the same time one runs its factory.  A
        small value that is there is returned without leaving the loop.

        Parameters
        ----------
        key
            As for `get_or_create`.
        factory
            A function or a coroutine function, called without arguments.  A coroutine runs
            on this loop; a function runs in a thread.
        **options
            As documented in `Options`.

        Raises
        ------
        asyncio.CancelledError
            If the task is cancelled.  A task that waits just leaves; a coroutine that builds is
            cancelled too, and another caller builds; a function that runs in a thread runs to its
            end, and what it made is stored.
        RuntimeError
            If no thread can be started to wait in.
        Exception
            As for `get_or_create`.

        Examples
        --------
        >>> import asyncio, tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> async def fetch():
        ...     return "page"
        >>> asyncio.run(cache.aget_or_create("page", fetch))
        'page'
        """
        chosen = self._options if not options else self._changed(options)
        ask = self._asking.avalue
        if chosen.inputs:
            return await self._asking.awith_inputs(key, factory, chosen, ask)
        return await ask(key, factory, chosen)

    async def aget_or_create_path(
        self,
        key: object,
        build: Callable[[Path], object],
        *,
        name: str,
        **options: Unpack[CallOptions],
    ) -> Path:
        """Return the path of a file or folder, without blocking the loop.

        Parameters
        ----------
        key, name, **options
            As for `get_or_create_path`.
        build
            A function or a coroutine function, called with the path at which it has to make
            a regular file or a folder.

        Raises
        ------
        asyncio.CancelledError, RuntimeError
            As for `aget_or_create`.
        Exception
            As for `get_or_create_path`.
        """
        chosen = self._options if not options else self._changed(options)
        if chosen.inputs:
            return await self._asking.awith_inputs(
                key, build, chosen, self._asking.afile, name=name
            )
        return await self._asking.afile(key, build, chosen, name=name)

    # -- decorate --------------------------------------------------------------------

    @overload
    def memoize(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, T]], /
    ) -> AsyncMemoized[P, T]: ...
    @overload
    def memoize(self, function: Callable[P, T], /) -> Memoized[P, T]: ...
    @overload
    def memoize(
        self,
        *,
        key: Callable[..., object] | None = None,
        ignore: Sequence[str] = (),
        version: str | int | None = None,
        **options: Unpack[DecoratorOptions],
    ) -> Memoizer: ...

    def memoize(  # type: ignore[misc]
        self,
        function: Any = None,
        /,
        *,
        key: Callable[..., object] | None = None,
        ignore: Sequence[str] = (),
        version: str | int | None = None,
        **options: Unpack[DecoratorOptions],
    ) -> Any:
        """Decorate a function, so that each call with equal arguments runs once.

        Use it bare or with options, on functions, methods, static and class methods and coroutine
        functions.  Put it above ``@staticmethod`` and ``@classmethod``: below the latter, Python
        3.13 and newer keep the class from ``key``, ``cached`` and the other questions, which then
        raise `TypeError`.

        What identifies a call is the function's name (module and qualified name; for a script or a
        notebook, its path) and its arguments.  So:

        - **An edited function keeps its old results** unless `version` changes, or is
          ``"source"``.
        - **What a function defined in another one has captured is no part of the key**: hand it
          over as an argument, or return it from `key`.
        - **With** ``ignore=("self",)`` **all objects share their results**, also those that would
          give others: let `key` return what tells them apart.
        - **Programs without a path share one name**: what is typed at a prompt, comes from a pipe,
          or is a notebook whose kernel does not know it (JupyterLab and VS Code tell it).  Give
          each a `version` of its own.

        Parameters
        ----------
        function
            What is decorated, in the bare form.
        key : callable, optional
            Called with the arguments of each call, defaults filled in; returns plain data that
            identifies it.
        ignore : sequence of str
            Names of parameters that don't identify a call, such as ``("self", "verbose")``.
        version : str or int, optional
            Part of every key: change it when the function computes something else.
            ``"source"`` stands for a hash of the function's source and of the module-level
            functions, classes and constants of the same package that it names; not of what it
            reaches through objects (``self.helper()``), by imports in functions, or as a closure.
        **options
            As documented in `Options`; `inputs` may be a function of the arguments, as `key` is.

        Returns
        -------
        Memoized or AsyncMemoized
            The decorated function, with methods ``key``, ``cached``, ``peek``, ``refresh``,
            ``forget`` and ``forget_all``.

        Raises
        ------
        OptionError
            For options of the wrong name or type, a lambda, or a generator function.
        KeyTypeError
            From calls: for an argument that can't be part of a key.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> @cache.memoize(max_age=3600)
        ... def parse(text, *, lang="en"):
        ...     return text.split()
        >>> parse("to be")
        ['to', 'be']
        >>> parse.cached("to be", lang="en")
        True
        """
        from ._decorate import memoizer

        decorate = memoizer(self, key, ignore, version, dict(options))
        return decorate if function is None else decorate(function)

    @overload
    def builder(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Path, P], Coroutine[Any, Any, object]], /
    ) -> AsyncMemoized[P, Path]: ...
    @overload
    def builder(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[Path, P], object], /
    ) -> Memoized[P, Path]: ...
    @overload
    def builder(  # type: ignore[overload-overlap]
        self, function: Callable[Concatenate[S, Path, P], Coroutine[Any, Any, object]], /
    ) -> AsyncMemoized[Concatenate[S, P], Path]: ...
    @overload
    def builder(
        self, function: Callable[Concatenate[S, Path, P], object], /
    ) -> Memoized[Concatenate[S, P], Path]: ...
    @overload
    def builder(
        self,
        *,
        name: str | None = None,
        key: Callable[..., object] | None = None,
        ignore: Sequence[str] = (),
        version: str | int | None = None,
        **options: Unpack[DecoratorOptions],
    ) -> PathMemoizer: ...

    def builder(  # type: ignore[misc]
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        key: Callable[..., object] | None = None,
        ignore: Sequence[str] = (),
        version: str | int | None = None,
        **options: Unpack[DecoratorOptions],
    ) -> Any:
        """Decorate a function that makes a file or folder at the path given to it first.

        Calls leave that first parameter out and return the path of what was made.  For a
        method, it comes after ``self`` or ``cls``.  Put it above ``@staticmethod`` and
        ``@classmethod``.

        Parameters
        ----------
        function
            What is decorated, in the bare form.
        name : str, optional
            What the file or folder is to be called; the function's name by default.
        key, ignore, version, **options
            As for `memoize`.

        Returns
        -------
        Memoized or AsyncMemoized
            As for `memoize`; its results are paths.

        Raises
        ------
        EntryNameError
            If `name` can't be a file name.
        OptionError, KeyTypeError
            As for `memoize`.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> @cache.builder(name="greeting.txt")
        ... def greet(target, who):
        ...     target.write_text(f"hello {who}")
        >>> greet("world").read_text()
        'hello world'
        """
        from ._decorate import builder

        decorate = builder(self, name, key, ignore, version, dict(options))
        return decorate if function is None else decorate(function)

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
        if chosen.inputs:
            key = self._asking.input_key(key, chosen)
        return self._asking.peek(key, chosen, default)

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
        chosen = self._options if not options else self._changed(options)
        if chosen.inputs:
            key = self._asking.input_key(key, chosen)
        return self._asking.peek_file(key, chosen, default)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a fresh value or path of `key`; nothing comes from the bucket."""
        chosen = self._options
        if chosen.inputs:
            key = self._asking.input_key(key, chosen)
        return self._asking.has(key, chosen)

    def entries(self) -> Iterator[EntryInfo]:
        """Yield what is known of each entry, in no particular order.

        Entries that come or go meanwhile may or may not be seen; damaged ones are left out.

        Raises
        ------
        StorageError
            If the folder can't be read.
        """
        from ._listing import scan

        with self._access():
            yield from scan(self._layout)

    def builds(self) -> Iterator[BuildInfo]:
        """Yield what is being built at the moment, by whom, since when, how far.

        Builds of other machines are seen too, for as long as they show signs of life.

        Raises
        ------
        StorageError
            If the folder can't be read.
        """
        from ._listing import builds

        with self._access():
            yield from builds(self._layout)

    def stats(self) -> Stats:
        """Return what this process and all processes have counted.

        Counts of other processes are those that they wrote down last: when they ended, every ten
        seconds while they build, and every minute while they hit.  A process that is killed
        takes with it what it has counted since.
        """
        from ._statistics import Stats

        statistics = self._statistics()
        return Stats(statistics.counts(), statistics.everyone())

    def on(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Have `callback` called with an `Event` whenever something happens in this process.

        It is called in the thread in which it happens, and should be quick.  What it raises
        is logged.

        Returns
        -------
        callable
            Ends the subscription.

        Raises
        ------
        OptionError
            If `callback` can't be called.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> end = cache.on(lambda event: print(event.kind))
        >>> cache.get_or_create("answer", lambda: 42)
        miss
        build_started
        build_finished
        42
        >>> end()
        """
        check_callable("callback", callback)
        return self._watch.subscribe(callback)

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
        if chosen.inputs:
            key = self._asking.input_key(key, chosen)
        entry = ValueEntry(self._layout, digest(VALUE, key), key, chosen, lambda: value)
        try:
            self._protocol.set(entry, value)
        except OSError as error:
            self._protocol.get_unstored(entry, error)
            return
        self._protocol.published(entry)
        if self._protocol.remote is not None:
            self._protocol.remote.uploads.replace(entry, value)

    def remove(self, key: object, *, inputs: Inputs | None = None) -> bool:
        """Remove the value and the path of `key`; tell whether there was one.

        A build that is under way goes on, and its caller gets the result; but it is not kept,
        and whoever asks after this gets one whose build began after it.  Who has a file of a
        removed path open keeps it, on POSIX.

        Parameters
        ----------
        key
            As for `get_or_create`.
        inputs
            As for `get_or_create`: the entry made from what these files hold now.

        Raises
        ------
        StorageError
            If an entry can't be removed.
        KeyTypeError
            If the key is not plain data.
        """
        chosen = self._options if inputs is None else self._changed({"inputs": inputs})
        if chosen.inputs:
            key = self._asking.input_key(key, chosen)
        had_value = self._remove(VALUE, key)
        had_path = self._remove(PATH, key)
        return had_value or had_path

    def remove_tagged(self, tag: str) -> int:
        """Remove all entries that carry a tag and return how many there were.

        Looks at every entry.  Builds under way that carry the tag, or whose factories give it
        later, go on, but what they make is not kept.

        Raises
        ------
        OptionError
            If `tag` is not a non-empty string.
        StorageError
            If an entry can't be removed.
        """
        from ._listing import remove_where

        if not isinstance(tag, str) or not tag:
            raise OptionError(f"tag must be a non-empty string, not {describe(tag)}")
        elsewhere = self._remove_elsewhere(tag)
        with self._access():
            here = remove_where(self._protocol, lambda name, tags: tag in tags, tag=tag)
            return elsewhere + here

    def clear(self) -> int:
        """Remove all entries and return how many there were.

        Builds under way are not disturbed, but what they make is not kept.

        Raises
        ------
        StorageError
            If an entry can't be removed.
        """
        from ._listing import clear

        if self._protocol.remote is not None:
            self._protocol.remote.removals.clear()
        with self._access():
            self._statistics().clear()
            return clear(self._protocol)

    def prune(
        self,
        *,
        max_bytes: int | str | None = None,
        max_entries: int | None = None,
        max_idle: float | timedelta | str | None = None,
        expired: bool = False,
    ) -> Pruned:
        """Remove the least recently used entries beyond some limits, now.

        Entries that somebody holds stay.  If another process is pruning, waits until it is
        done.

        Parameters
        ----------
        max_bytes, max_entries, max_idle
            As for `Cache`; those of the cache if nothing is given.
        expired
            Remove all entries whose age limit, as it was when they were made, has passed; also
            what `stale_for` or `stale_on_error` could still have served.

        Returns
        -------
        Pruned
            How much was removed and how much there is.

        Raises
        ------
        OptionError
            For a limit of the wrong type or sign.
        StorageError
            If the folder can't be read or written.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> for number in range(5):
        ...     cache.set(number, number)
        >>> cache.prune(max_entries=3).removed
        2
        """
        from ._eviction import Limits

        limits = Limits(
            size("max_bytes", max_bytes),
            number("max_entries", max_entries),
            seconds("max_idle", max_idle),
            expired=flag("expired", expired),
        )
        with self._access():
            return self._keep_up()[0].prune(limits if limits.any() else Limits(*self._limits))

    def prune_remote(
        self,
        *,
        max_bytes: int | str | None = None,
        max_age: float | timedelta | str | None = None,
    ) -> Pruned:
        """Remove the oldest entries of the bucket beyond some limits, now.

        What killed processes left there goes too.  A listing of the whole bucket is read.

        Parameters
        ----------
        max_bytes
            Bytes, or such as ``"100GB"``, that the entries may take.
        max_age
            Seconds, or such as ``"30d"``, since an entry was made.

        Returns
        -------
        Pruned
            How much was removed and how much there is.

        Raises
        ------
        OptionError
            For a limit of the wrong type or sign, or if there is no bucket.
        StorageError
            If the bucket can't be reached.
        """
        remote = self._protocol.remote
        if remote is None or remote.read_only:
            raise OptionError("prune_remote needs remote= and no read_only=")
        return remote.prune(size("max_bytes", max_bytes), seconds("max_age", max_age))

    def hold(
        self,
        key: object,
        build: Callable[[Path], object] | None = None,
        *,
        name: str | None = None,
        **options: Unpack[CallOptions],
    ) -> Holding:
        """Keep a file or folder from being evicted for as long as a ``with`` block runs.

        A crash ends the hold.  `remove` and `clear` are not kept from anything, and a refresh puts
        the new one under the same path, where it is held too; the old one is not deleted before
        the hold ends.

        Parameters
        ----------
        key
            As for `get_or_create_path`.
        build, name, **options
            As for `get_or_create_path`, to make it if there is none.

        Returns
        -------
        Holding
            A context manager; what its block gets is the path of what is held.

        Raises
        ------
        OptionError, KeyTypeError
            At once, for an argument that can't be right.
        MissingEntryError
            At the start of the block, if there is none, and no `build` is given.
        Exception
            At the start of the block, as for `get_or_create_path`.

        Examples
        --------
        >>> import tempfile
        >>> cache = Cache(tempfile.mkdtemp())
        >>> def greet(target):
        ...     target.write_text("hello")
        >>> with cache.hold("greeting", greet, name="greeting.txt") as path:
        ...     path.read_text()
        'hello'
        """
        from ._hold import Hold, Holding

        if build is not None:
            check_callable("build", build)
            if name is None:
                raise OptionError("hold needs a name= for what build= makes")
        self._changed(options)
        digest(PATH, key)

        def hold() -> tuple[Path, Hold]:
            while True:
                if build is None or name is None:
                    path = self.get_path(key, **options)
                else:
                    path = self.get_or_create_path(key, build, name=name, **options)
                if path is None:
                    raise MissingEntryError(
                        f"there is no path of key {describe(key)} to be held, in "
                        f"{self._layout.directory}. Make it first, or pass build= and name="
                    )
                place = self._layout.entry(digest(PATH, key))
                held = Hold(self._layout.door, place, self._layout.file_mode)
                if held.share():
                    return path, held

        return Holding(hold)

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

        with self._access():
            reaped = sweep(self._layout)
            if reaped:
                self._watch.tell("reaped", number=reaped)
            return reaped

    # -- inside ----------------------------------------------------------------------

    def _access(self) -> Access:
        return Access("the cache", self._layout.directory)

    def _forget(self, function: str) -> int:
        from ._entry import function_tag
        from ._listing import remove_where

        elsewhere = self._remove_elsewhere(function_tag(function))
        with self._access():
            return elsewhere + remove_where(self._protocol, lambda name, tags: name == function)

    def _remove_elsewhere(self, tag: str) -> int:
        """Remove what carries a tag from the bucket; return how much of it is not here too."""
        remote = self._protocol.remote
        if remote is None:
            return 0
        paths = map(self._layout.entry, remote.removals.remove_tagged(tag))
        return sum(not os.path.lexists(path) for path in paths)

    def _changed(self, options: CallOptions, defaults: Options | None = None) -> Options:
        return (defaults or self._options).changed(options, self._codecs.find)

    def _keep_up(self) -> tuple[Upkeep, Statistics]:
        if self._kept_up is None:
            from ._eviction import Limits
            from ._upkeep import Upkeep

            statistics = self._statistics()
            upkeep = Upkeep(self._protocol, Limits(*self._limits), statistics.add_up)
            self._kept_up = upkeep, statistics
        return self._kept_up

    def _published(self, entry: Entry) -> None:
        try:
            upkeep, statistics = self._keep_up()
        except OSError as error:  # no descriptor left even to read a module
            logger().warning("the cache's upkeep failed: %s", error)
            return
        self._ending.arm()
        upkeep.published(entry)
        statistics.write_sometimes()
        if self._protocol.remote is not None:
            self._protocol.remote.follow()

    def _used(self) -> None:
        """See to idle entries also where nothing is published any more."""
        try:
            self._keep_up()[0].used()
        except OSError as error:
            logger().warning("the cache's upkeep failed: %s", error)

    def _remove(self, kind: bytes, key: object) -> bool:
        name = digest(kind, key)
        try:
            remote = self._protocol.remote  # first: what comes down now is looked for again
            elsewhere = remote is not None and remote.removals.remove(name)
        finally:
            try:
                removed = self._protocol.remove(self._layout.entry(name))
            except OSError as error:
                raise self._asking.trouble(kind, key, error) from error
        return removed or elsewhere

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


def _user_cache_dir(name: str) -> str:
    """Return what `platformdirs.user_cache_dir` does.

    A replayed command would take half as long again if that were loaded for it.
    """
    if sys.platform == "linux" and "ANDROID_DATA" not in os.environ:
        given, home = os.environ.get("XDG_CACHE_HOME", ""), os.environ.get("HOME", "")
        if given.startswith("/"):  # others are to be ignored, as the specification has it
            return os.path.join(given, name)
        if home.startswith("/"):
            return os.path.join(home.rstrip("/") + "/.cache", name)
    from platformdirs import user_cache_dir

    return user_cache_dir(name, appauthor=False)


def _path_of(directory: object) -> object:
    return os.fspath(directory) if isinstance(directory, os.PathLike) else None


def _copy(options: Mapping[str, Any] | None) -> Any:
    if options is None:
        return {}
    return dict(options) if hasattr(options, "keys") else options


def _encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True
