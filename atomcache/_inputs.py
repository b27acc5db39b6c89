"""Files whose content is part of a key.

What it is for: ``inputs=["data/*.csv", "template.tex"]`` makes an entry depend on what
stands in those files, so that it is built anew when they change.  Each file is hashed
(BLAKE2b: whoever can write an input must not be able to forge another's hash), and the
hash is remembered under device, inode, size, mtime and ctime, in this process and, as
one table per set of inputs, in the cache folder, so that a second look costs one stat
per file.  A file changed so recently that it could change again without its times telling is
hashed each time; git's index treats such files alike ("racy git" in its documentation).

A build may only be kept under the content that it has read: if an input changes before
the factory begins, the call starts over with the new content; if it changes while the
factory runs, the result is returned but not stored.

Which files a set of inputs stands for is told by `_input_files`.

Who calls it: `Cache` and decorated functions, for calls with ``inputs``.  What may go
wrong: `MissingInputError` for what is not there, `InputError` for what can't be read.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from time import time

from ._errors import DontStore, InputError
from ._flight import GivenUp
from ._freshness import RACY_SECONDS
from ._input_files import look, no_file, things_of, unreadable, walk
from ._keys import blake2b, describe
from ._log import logger
from ._publish import MISS
from ._value import ValueEntry, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import Any

    from ._layout import Layout
    from ._options import Options

    Version = tuple[int, int, int, int, int]

TRIES = 10
"""How often a call starts over because an input changed before the build began."""

_PIECE = 1 << 18

_ROW = struct.Struct("<3Q2q20s")
"""A `Version` and a hash, as tables have them; the codec "data" would take longer to load."""

_MOST_KNOWN = 100_000
_known: dict[Version, bytes] = {}
"""Hashes of files by what identifies their content: some 25 MB when full."""


class InputsChanged(GivenUp):
    """An input changed between the look and the build: the call starts over with a new key."""


def still_changing(inputs: Iterable[str]) -> InputError:
    """Return the error of a call whose inputs change faster than it can begin to build."""
    return InputError(
        errno.EBUSY,
        f"the inputs {list(inputs)} changed {TRIES} times while a build was about to begin. "
        "Ask again when whoever writes them is done, and leave out what the cache itself writes",
    )


class InputKey:
    """A key together with the content of input files, as `Cache` and `key` make it."""

    __slots__ = ("files", "key")

    def __init__(self, key: object, files: tuple[tuple[str, bytes], ...]) -> None:
        self.key = key
        self.files = files

    @property
    def function(self) -> str:
        """Name of the decorated function that the key belongs to, if any."""
        return getattr(self.key, "function", "")

    def __atomcache_key__(self) -> object:
        """Return what identifies the entry."""
        return self.key, self.files

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InputKey):
            return NotImplemented
        return self.key == other.key and self.files == other.files

    def __hash__(self) -> int:
        return hash(self.files)

    def __repr__(self) -> str:
        content = blake2b(repr(self.files).encode("utf-8", "surrogateescape"), digest_size=5)
        return f"{describe(self.key)} [inputs {content.hexdigest()}]"


InputKey.__module__ = "atomcache"  # part of the key: the class may move, its entries stay


class Snapshot:
    """What a set of inputs holds at one moment.

    Parameters
    ----------
    layout
        Of the cache, where hashes are remembered.
    options
        Those of the cache, with the codec "bytes" for the table of hashes.
    inputs
        Paths of files and folders, and patterns; relative ones from the current folder.

    Raises
    ------
    MissingInputError
        If a file or folder is not there, or a pattern matches nothing.
    InputError
        If a file can't be read.
    """

    def __init__(self, layout: Layout, options: Options, inputs: Iterable[str]) -> None:
        self._layout = layout
        self._options = options
        self._inputs = tuple(inputs)
        self.files = self._look()

    def key(self, key: object) -> InputKey:
        """Return `key` with the content of the inputs in it."""
        return InputKey(key, self.files)

    def changed(self) -> bool:
        """Tell whether the inputs hold something else by now, or can't be read."""
        try:
            return self._look() != self.files
        except InputError:
            return True

    def guard(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Return a factory that keeps what it made only if its inputs stayed as they were."""

        def guarded(*given: Any) -> Any:
            from inspect import isawaitable  # takes long to load, and a hit does not come here

            if self.changed():
                raise InputsChanged
            made = make(*given)
            return _Finished(made, keep) if isawaitable(made) else keep(made)

        def keep(made: Any) -> Any:
            if self.changed():
                logger().warning(
                    "not stored, because an input changed during the build: %s", self._inputs
                )
                raise DontStore(made)
            return made

        return guarded

    def _look(self) -> tuple[tuple[str, bytes], ...]:
        table = _Table(self._layout, self._options, self._inputs)
        found = {}
        for name, thing in things_of(self._inputs, self._layout.root):
            found[name] = thing if isinstance(thing, bytes) else table.hash(name, thing)
        table.save()
        return tuple(sorted(found.items()))


def hash_input(path: str) -> bytes:
    """Return one hash for a file, or for a folder with the names and files in it."""
    found = look(path)
    if not stat.S_ISDIR(found.st_mode):
        return _hash_known(path, found)
    whole = _hasher()
    for name, thing in sorted(walk(path), key=lambda each: each[0]):
        known = thing if isinstance(thing, bytes) else _hash_known(name, thing)
        whole.update(os.fsencode(name) + b"\0" + known + b"\0")
    digest: bytes = whole.digest()
    return digest


def unchanged(inputs: dict[str, bytes]) -> bool:
    """Tell whether what an entry was made from still holds what it held."""
    try:
        return all(hash_input(path) == known for path, known in inputs.items())
    except InputError:
        return False


def _hash_known(name: str, found: os.stat_result) -> bytes:
    """Return a file's hash, from this process's memory if the file is as it was."""
    known = _known.get(_version(found))
    return _hash_anew(name, found)[0] if known is None else known


class _Finished:
    """What a coroutine returns, looked at in a thread, for hashing may take a while."""

    def __init__(self, making: Any, keep: Callable[[Any], Any]) -> None:
        self._making = making
        self._keep = keep

    def __await__(self) -> Generator[Any, None, Any]:
        from asyncio import to_thread

        made = yield from self._making.__await__()
        return (yield from to_thread(self._keep, made).__await__())

    def close(self) -> None:
        """Close the coroutine, if it never ran."""
        if hasattr(self._making, "close"):
            self._making.close()


class _Table:
    """Hashes of one set of inputs, as remembered by this process and by the cache folder."""

    def __init__(self, layout: Layout, options: Options, inputs: tuple[str, ...]) -> None:
        where = blake2b(digest_size=20)
        for given in inputs:
            where.update(os.fsencode(os.path.abspath(given)) + b"\0")
        self._entry = ValueEntry(layout, where.digest(), "inputs", options, lambda: None)
        self._entry.path = os.path.join(layout.inputs, where.hexdigest())
        self._loaded = False
        self._rows: dict[Version, bytes] = {}
        self._new = False

    def hash(self, name: str, found: os.stat_result) -> bytes:
        """Return the hash of a file's content, from memory if the file is as it was."""
        known = _known.get(_version(found)) or self._remembered(found)
        if known is None:
            known, found = _hash_anew(name, found)
            self._new = self._new or _version(found) in _known
        self._rows[_version(found)] = known
        return known

    def _remembered(self, found: os.stat_result) -> bytes | None:
        if not self._loaded:
            self._loaded = True
            entry = self._entry
            try:
                rows = read(entry.door, entry.path, entry.digest, entry.options)
            except OSError as error:
                logger().warning("hashes of inputs can't be read: %s", error)
                rows = MISS
            if rows is not MISS:
                for *version, known in _ROW.iter_unpack(
                    rows[: len(rows) // _ROW.size * _ROW.size]
                ):
                    _remember(tuple(version), known)
        return _known.get(_version(found))

    def save(self) -> None:
        """Write the hashes down for other processes, if there are new ones."""
        if not self._new:
            return
        entry = self._entry
        rows = [_ROW.pack(*row, known) for row, known in self._rows.items() if row in _known]
        try:
            entry.replace(entry.layout.new_scratch(entry.path), b"".join(rows))
        except OSError as error:
            logger().warning("hashes of inputs are not kept for other processes: %s", error)


def _remember(version: Version, known: bytes) -> None:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[version] = known


def _hash_anew(name: str, found: os.stat_result) -> tuple[bytes, os.stat_result]:
    """Do as `_hash`, and remember it unless a change while it was read could go untold."""
    if not stat.S_ISREG(found.st_mode):
        raise no_file(name)
    began = time()
    try:
        known, found = _hash(name)
    except OSError as error:
        raise unreadable(name, error) from error
    if began - max(found.st_mtime, found.st_ctime) > RACY_SECONDS:
        _remember(_version(found), known)
    return known, found


def _hash(name: str) -> tuple[bytes, os.stat_result]:
    """Return the hash of a file's content, and what the file was like when it was read."""
    whole = _hasher()
    piece = memoryview(bytearray(_PIECE))
    with open(name, "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        while size := file.readinto(piece):
            whole.update(piece[:size])
    return whole.digest(), found


def _hasher() -> Any:
    return blake2b(digest_size=20)


def _version(found: os.stat_result) -> Version:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
