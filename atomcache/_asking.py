"""Asking for values and paths: a hit is answered right here, a miss is told by `_protocol`.

What it is for: this is the hot path.  A hit costs an `open`, a `read` and a `close`, or for a path
two stats; what can be remembered of a key, such as its digest, is.  Everything else, such as
inputs that have to be hashed first, stands beside it.

Who calls it: `Cache` and decorated functions, with options that are checked.  What may go wrong is
listed with the methods of `Cache`.
"""

from __future__ import annotations

import os

from ._errors import AtomcacheError, OptionError, access_error
from ._freshness import FIRST, USUAL, Want, note_use
from ._keys import describe, digest
from ._log import logger
from ._options import Options
from ._publish import LARGE, MISS
from ._recall import exact, small
from ._value import ValueEntry, read, read_remembered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import Any, TypeVar

    from ._codec_table import CodecTable
    from ._ending import Ending
    from ._inputs import Snapshot
    from ._memory import MemoryTier
    from ._path import PathEntry
    from ._protocol import Protocol

    T = TypeVar("T")

_MOST_PLACES = 10_000
"""Keys whose digest is remembered: some 4 MB, at most 10, for a tenth of a hit's time."""

VALUE = b"v"
PATH = b"p"
"""What stands in a digest for the kind of entry."""


class Asking:
    """How one cache is asked for its entries.

    Parameters
    ----------
    protocol
        For what is not there.
    codecs
        For the codec of remembered input hashes.
    memory
        Values that are kept decoded, if any.
    ending
        Told before something is counted.
    """

    def __init__(
        self, protocol: Protocol, codecs: CodecTable, memory: MemoryTier | None, ending: Ending
    ) -> None:
        self._protocol = protocol
        self._door = protocol.door
        self._layout = protocol.layout
        self._watch = protocol.watch
        self._codecs = codecs
        self._memory = memory
        self._ending = ending
        self._path_places: dict[object, tuple[str, bytes, str, str, Path]] = {}
        self._places: dict[object, tuple[bytes, str]] = {}

    def value(
        self, key: object, factory: Callable[[], T], chosen: Options, *, anew: bool = False
    ) -> T:
        """Answer `Cache.get_or_create`, and with `anew` `Cache.refresh`."""
        name, path = self.place(key)
        value: T = MISS
        try:
            if not anew:
                if self._memory is None:
                    value = read(self._door, path, name, chosen, FIRST)
                else:
                    value = self._read(path, name, chosen, FIRST)
        except OSError as error:
            entry = ValueEntry(self._layout, name, key, chosen, factory)
            value = self._protocol.get_unstored(entry, error)
        if value is MISS:
            check_callable("factory", factory)
            self._ending.arm()
            entry = ValueEntry(self._layout, name, key, chosen, factory, anew=anew)
            value = self._protocol.get(entry, self._door.time())
        elif self._watch.hit(path, key):
            self.note_use(path, path)
        return value

    async def avalue(
        self, key: object, factory: Callable[[], Any], chosen: Options, *, anew: bool = False
    ) -> Any:
        """Answer `Cache.aget_or_create`."""
        from ._tasks import FIRST_INLINE, Errand, get, get_unstored

        name, path = self.place(key)
        value = MISS
        try:
            if not anew:
                value = self._read(path, name, chosen, FIRST_INLINE)
                if value is LARGE:
                    value = await _in_pool(self._read, path, name, chosen, FIRST)
        except OSError as error:
            errand = Errand(factory)
            entry = ValueEntry(self._layout, name, key, chosen, errand)
            value = await get_unstored(self._protocol, entry, errand, error)
        if value is MISS:
            check_callable("factory", factory)
            self._ending.arm()
            errand = Errand(factory)
            entry = ValueEntry(self._layout, name, key, chosen, errand, anew=anew)
            value = await get(self._protocol, entry, errand, self._door.time())
        elif self._watch.hit(path, key):
            self.note_use(path, path)
        return value

    def file(
        self,
        key: object,
        build: Callable[[Path], object],
        chosen: Options,
        *,
        name: str,
        anew: bool = False,
    ) -> Path:
        """Answer `Cache.get_or_create_path`, and with `anew` `Cache.refresh_path`."""
        from ._path import PathEntry, find

        _, digested, target, meta, found = self._path_place(key, name)
        made: Path
        try:
            if not anew and find(self._door, target, meta, chosen, FIRST):
                if self._watch.hit(target, key):
                    self.note_use(target, meta)
                return found
        except OSError as error:
            entry = PathEntry(self._layout, digested, key, name, chosen, build)
            made = self._protocol.get_unstored(entry, error)
            return made
        check_callable("build", build)
        self._ending.arm()
        entry = PathEntry(self._layout, digested, key, name, chosen, build, anew=anew)
        made = self._protocol.get(entry, self._door.time())
        return made

    async def afile(
        self,
        key: object,
        build: Callable[[Path], object],
        chosen: Options,
        *,
        name: str,
        anew: bool = False,
    ) -> Path:
        """Answer `Cache.aget_or_create_path`."""
        from ._path import PathEntry, find
        from ._tasks import Errand, get, get_unstored

        _, digested, target, meta, found = self._path_place(key, name)
        errand = Errand(build)
        entry = PathEntry(self._layout, digested, key, name, chosen, errand, anew=anew)
        made: Path
        try:
            if not anew and find(self._door, target, meta, chosen, FIRST):
                if self._watch.hit(target, key):
                    self.note_use(target, meta)
                return found
        except OSError as error:
            made = await get_unstored(self._protocol, entry, errand, error)
            return made
        check_callable("build", build)
        self._ending.arm()
        made = await get(self._protocol, entry, errand, self._door.time())
        return made

    def peek(self, key: object, chosen: Options, default: Any, *, here: bool = False) -> Any:
        """Return a value that is fresh, here or in the bucket too, and build nothing."""
        name, path = self.place(key)
        try:
            value = self._read(path, name, chosen, _peeking(chosen))
        except OSError as error:
            raise self.trouble(VALUE, key, error) from error
        if value is MISS:
            if here or self._protocol.remote is None:
                return default
            entry = ValueEntry(self._layout, name, key, chosen, _nothing)
            return self._protocol.fetch(entry, default)
        if self._watch.due(path):
            self.note_use(path, path, hit=False)
        return value

    def peek_file(self, key: object, chosen: Options, default: Any, *, here: bool = False) -> Any:
        """Return a path that is fresh, here or in the bucket too, and build nothing."""
        from pathlib import Path

        from ._layout import META
        from ._path import find, stored_name

        path = self._layout.entry(digest(PATH, key))
        try:
            name = stored_name(self._door, path)
            if name is None:
                return default if here else self._fetch_file(key, chosen, default)
            target, meta = os.path.join(path, name), os.path.join(path, META)
            if not find(self._door, target, meta, chosen, _peeking(chosen)):
                return default if here else self._fetch_file(key, chosen, default)
            if self._watch.due(target):
                self.note_use(target, meta, hit=False)
            return Path(target)
        except OSError as error:
            raise self.trouble(PATH, key, error) from error

    def has(self, key: object, chosen: Options) -> bool:
        """Tell whether there is a fresh value or path, here or in the bucket."""
        for peek in (self.peek, self.peek_file):
            if peek(key, chosen, MISS, here=True) is not MISS:
                return True
        remote = self._protocol.remote
        if remote is None:
            return False
        value = ValueEntry(self._layout, self.place(key)[0], key, chosen, _nothing)
        if remote.has(value):
            return True
        path = self._path_in_bucket(key, chosen)
        return path is not None and remote.has(path)

    def inputs(self, chosen: Options) -> Snapshot:
        """Look at the input files."""
        from ._inputs import Snapshot

        table = Options(self._codecs.find("bytes"))
        return Snapshot(self._layout, table, chosen.inputs)

    def input_key(self, key: object, chosen: Options) -> object:
        """Return a key with the content of the inputs in it, if that is not yet so."""
        from ._inputs import InputKey

        return key if isinstance(key, InputKey) else self.inputs(chosen).key(key)

    def with_inputs(
        self,
        key: object,
        make: Callable[..., Any],
        chosen: Options,
        ask: Callable[..., T],
        **how: Any,
    ) -> T:
        """Ask under the key that the inputs make, anew if they change before the build."""
        from ._inputs import TRIES, InputsChanged, still_changing

        for _ in range(TRIES):
            seen = self.inputs(chosen)
            try:
                return ask(seen.key(key), seen.guard(make), chosen, **how)
            except InputsChanged:
                continue
        raise still_changing(chosen.inputs)

    async def awith_inputs(
        self,
        key: object,
        make: Callable[..., Any],
        chosen: Options,
        ask: Callable[..., Awaitable[T]],
        **how: Any,
    ) -> T:
        """Do as `with_inputs`; files are hashed in a thread."""
        from ._inputs import TRIES, InputsChanged, still_changing

        for _ in range(TRIES):
            seen = await _in_pool(self.inputs, chosen)
            try:
                return await ask(seen.key(key), seen.guard(make), chosen, **how)
            except InputsChanged:
                continue
        raise still_changing(chosen.inputs)

    def _read(self, path: str, name: bytes, chosen: Options, want: Want) -> Any:
        if self._memory is None:
            return read(self._door, path, name, chosen, want)
        return read_remembered(self._memory, self._door, path, name, chosen, want)

    def place(self, key: object) -> tuple[bytes, str]:
        """Return digest and path of a key's value, remembered for keys that are small."""
        known = exact(key)
        place = self._places.get(known)
        if place is None:
            name = digest(VALUE, key)
            place = name, self._layout.entry(name)
            if known is not None and small(key):
                if len(self._places) >= _MOST_PLACES:
                    self._places.clear()
                self._places[known] = place
        return place

    def _path_place(self, key: object, name: str) -> tuple[str, bytes, str, str, Path]:
        """Return name, digest, target, meta and result of a path, remembered as `place` does."""
        known = exact(key)
        place = self._path_places.get(known)
        if place is not None and type(name) is str and place[0] == name:
            return place
        from pathlib import Path

        from ._layout import META
        from ._path import check_name

        digested = digest(PATH, key)
        folder = self._layout.entry(digested)
        target = os.path.join(folder, check_name(name))
        place = name, digested, target, os.path.join(folder, META), Path(target)
        if known is not None and small(key):
            if len(self._path_places) >= _MOST_PLACES:
                self._path_places.clear()
            self._path_places[known] = place
        return place

    def note_use(self, path: str, file: str, *, hit: bool = True) -> None:
        """Look whether it is to be recorded that an entry is used, as it is once an hour."""
        took = 0.0
        if self._protocol.remote is not None:
            self._protocol.remote.follow()
        if self._door.upkeep:
            self._ending.arm()
            try:
                took = note_use(self._door, file)
            except OSError as error:  # gone since, or a filesystem that can't be written
                logger().info("the use of an entry is not recorded: %s: %s", path, error)
            self._ending.write_sometimes()
            self._protocol.used()
        self._watch.used(path, took, hit=hit)

    def _fetch_file(self, key: object, chosen: Options, default: Any) -> Any:
        """Bring a path from the bucket, if it is there."""
        entry = self._path_in_bucket(key, chosen)
        return default if entry is None else self._protocol.fetch(entry, default)

    def _path_in_bucket(self, key: object, chosen: Options) -> PathEntry | None:
        """Return the path of a key by the name that it has in the bucket, if it is there."""
        from ._path import PathEntry

        remote = self._protocol.remote
        digested = digest(PATH, key)
        name = None if remote is None else remote.name_of(digested)
        if name is None:
            return None
        return PathEntry(self._layout, digested, key, name, chosen, _nothing)

    def trouble(self, kind: bytes, key: object, error: OSError) -> OSError:
        """Say what could not be read or written, if the error does not say so already."""
        if isinstance(error, AtomcacheError):
            return error
        what = f"the {'value' if kind == VALUE else 'path'} of key {describe(key)}"
        return access_error(what, self._layout.entry(digest(kind, key)), error)


def _peeking(chosen: Options) -> Want:
    """Return what a look accepts that builds nothing: what a call would return at once."""
    return USUAL if chosen.stale_for is None else Want(tolerate=chosen.stale_for)


def _nothing(*_: object) -> Any:
    """Stand in for the factory of an entry that is only looked for."""
    raise AssertionError("it is not to be built")


async def _in_pool(step: Callable[..., T], *given: Any) -> T:
    """Run what may take a while, but never waits for others, in the loop's pool of threads."""
    import asyncio

    return await asyncio.to_thread(step, *given)


def check_callable(what: str, given: object) -> None:
    """Raise if something that is to be called can't be."""
    if not callable(given):
        raise OptionError(f"{what} must be callable, not {describe(given)}")
