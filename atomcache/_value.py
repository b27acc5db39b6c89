"""A value entry: one file, header and payload.

What it is for: `read` is the hit: open, one read, close, and nothing else.  `ValueEntry`
is what the protocol needs to know of a value on a miss: how to look, to build and to
publish it.

Who calls it: `Cache` calls `read` first and hands a `ValueEntry` to the protocol on a
miss.  What may go wrong: a file that is torn, truncated, altered, of another key or of
another codec is a miss; damage is logged.  `OSError` comes as the system gives it.
"""

from __future__ import annotations

from itertools import pairwise
from time import time

from xxhash import xxh3_64_intdigest

from ._door import CREATE, READ
from ._errors import AtomcacheError
from ._header import (
    NEVER,
    SEAL_SIZE,
    Damaged,
    assemble,
    parse,
    payload_start,
    read_rows,
)
from ._keys import describe
from ._log import logger
from ._publish import MISS, PUBLISH_TRIES, Identity, discard, identify, install_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from typing import Any

    from ._codecs import AnyCodec, Buffer
    from ._door import Door
    from ._header import Header
    from ._layout import Layout
    from ._memory import MemoryTier
    from ._options import Options

ONE_READ = 131_072
"""Bytes that a hit asks for at once, without asking first how large the file is, which
would cost a fifth of a small hit.  glibc's malloc serves so many from the heap; of
262,144 it maps fresh pages each time, which was measured to take five times as long."""

RACY_SECONDS = 2.0
"""A file changed so recently may be changed again without its times telling, where they
have a coarse grain (FAT's is 2 s); git's index distrusts such files likewise."""

_MOST_VERIFIED = 4096
_verified: dict[str, tuple[int, ...]] = {}
"""The mapped files that this process has verified: path, and what identifies its content."""

CLOCK_SLACK = 5.0
"""Seconds that an entry's time of creation may lie ahead before it is taken for a clock
that jumped: machines that share a folder agree to about a second."""


def read_remembered(
    memory: MemoryTier, door: Door, path: str, digest: bytes, options: Options
) -> Any:
    """Return the value of an entry from memory if its file is the one it was read from.

    Otherwise the file is read, and the value is kept if it is one that can be.
    """
    try:
        found = door.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return MISS
    kept = memory.get(path, found, options.codec)
    if kept is None:
        return read(door, path, digest, options, memory=memory)
    value, created, expires = kept
    if options.max_age is None and expires == NEVER:
        return value
    return value if fresh(door, created, expires, options.max_age, None) else MISS


def read(
    door: Door,
    path: str,
    digest: bytes,
    options: Options,
    started: float | None = None,
    memory: MemoryTier | None = None,
) -> Any:
    """Return the value of an entry, or `MISS`.

    Parameters
    ----------
    memory
        Where to keep the value, if it can be kept.
    started
        When the call began (seconds since the epoch), for those with an age limit:
        what was made since then is fresh however short the limit.  `None`: now.
    """
    try:
        fd = door.open(path, READ)
    except (FileNotFoundError, NotADirectoryError):
        return MISS
    try:
        data = door.read(fd, ONE_READ)
        header = parse(data)
        start = payload_start(header)
        found = None
        if header.buffers or len(data) == ONE_READ or options.codec.guarded or memory:
            found = door.fstat(fd)
            payload, buffers = _read_parts(door, fd, path, found, data, header, start)
        else:
            payload = data[start:]
            buffers = ()
            if len(payload) != header.payload_size:
                raise Damaged("it does not end where its payload does")
            if xxh3_64_intdigest(payload) != header.payload_sum:
                raise Damaged("the checksum of its payload is wrong")
        if header.digest != digest:
            raise Damaged("it is the entry of another key")
        codec = options.codec
        if header.codec != codec.stored_name:
            return MISS
        if (header.expires != NEVER or options.max_age is not None) and not fresh(
            door, header.created, header.expires, options.max_age, started
        ):
            return MISS
        if found is not None and codec.guarded:
            codec.check_origin(path, found, header, payload, buffers)
        value = _unpack(codec, header.form, payload, buffers)
        if memory is not None and found is not None:
            memory.put(path, found, codec, value, header.created, header.expires)
        return value
    except (Damaged, IsADirectoryError) as why:
        logger().warning("a damaged entry is built anew: %s: %s", path, why)
        return MISS
    finally:
        door.close(fd)


def fresh(
    door: Door, created: float, expires: float, max_age: float | None, started: float | None
) -> bool:
    """Tell whether an entry is young enough for a call that began at `started`."""
    now = door.time()
    if created > now + CLOCK_SLACK:
        return False  # the clock was set back since: how old it is can't be told
    since = now if started is None else started
    return since < expires and (max_age is None or since - created <= max_age)


def _read_parts(
    door: Door,
    fd: int,
    path: str,
    found: os.stat_result,
    data: bytes,
    header: Header,
    start: int,
) -> tuple[Buffer, Sequence[memoryview]]:
    """Get payload and buffers of a file of which `data` is the beginning, and verify them."""
    size = found.st_size
    if header.buffers:
        whole = len(data) == size and size < ONE_READ
        view = memoryview(bytearray(data)) if whole else door.map(fd, size)
        return _split(view, header, path, found)
    if start + header.payload_size != size:
        raise Damaged("it does not end where its payload does")
    if len(data) == size:
        payload = data[start:]
    else:
        door.lseek(fd, start, 0)
        payload = _read_exactly(door, fd, header.payload_size)
    if xxh3_64_intdigest(payload) != header.payload_sum:
        raise Damaged("the checksum of its payload is wrong")
    return payload, ()


def _read_exactly(door: Door, fd: int, size: int) -> bytes:
    data: bytes = door.read(fd, size)
    if len(data) < size:  # Linux reads at most 2 GiB at once
        parts = [data]
        missing = size - len(data)
        while missing > 0:
            parts.append(door.read(fd, missing))
            if not parts[-1]:
                raise Damaged("it ends before its payload does")
            missing -= len(parts[-1])
        data = b"".join(parts)
    return data


def _split(
    view: memoryview, header: Header, path: str, found: os.stat_result
) -> tuple[Buffer, list[memoryview]]:
    """Cut payload and buffers out of a whole file and verify each.

    A file is never changed once it is published, and one that was verified by this process
    is not summed again while it is the same file with the same times: summing a mapped
    array would read all of it, and the point of mapping is not to.
    """
    version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    known = _verified.get(path) == version
    rows = read_rows(view, header)
    starts = [payload_start(header), *(at for at, _, _ in rows), len(view)]
    sums = [header.payload_sum, *(checksum for _, _, checksum in rows)]
    sizes = [header.payload_size, *(size for _, size, _ in rows)]
    parts = []
    for part, (begin, end) in enumerate(pairwise(starts)):
        if not starts[0] <= begin <= begin + sizes[part] <= end <= len(view):
            raise Damaged("its buffers are not where they should be")
        if not (known and part) and xxh3_64_intdigest(view[begin:end]) != sums[part]:
            raise Damaged("the checksum of its payload is wrong")
        parts.append(view[begin : begin + sizes[part]])
    if not known and time() - found.st_ctime > RACY_SECONDS:
        if len(_verified) >= _MOST_VERIFIED:
            _verified.clear()
        _verified[path] = version
    return bytes(parts[0]), parts[1:]


def _unpack(codec: AnyCodec, form: int, payload: Buffer, buffers: Sequence[memoryview]) -> Any:
    try:
        return codec.unpack(form, payload, buffers)
    except AtomcacheError:
        raise
    except Exception as error:  # whatever a codec says of bytes that it can't read
        raise Damaged(f"codec {codec.name!r} can't read it: {error!r}") from error


class ValueEntry:
    """One value in the cache, as the protocol sees it.

    Parameters
    ----------
    digest, key
        Of the entry; the key is kept for messages and listings.
    factory
        Called without arguments by whoever builds; its result is the value.
    """

    kind = "value"

    def __init__(
        self,
        layout: Layout,
        digest: bytes,
        key: object,
        options: Options,
        factory: Callable[[], Any],
    ) -> None:
        self.layout = layout
        self.door = layout.door
        self.digest = digest
        self.key = key
        self.options = options
        self.factory = factory
        self.path = layout.entry(digest)

    def what(self) -> str:
        """Say which entry this is, for messages and records."""
        return f"the value of key {describe(self.key)}"

    def look(self, started: float) -> Any:
        """Return the value if there is a fresh one, else `MISS`."""
        return read(self.door, self.path, self.digest, self.options, started)

    def identity(self) -> Identity | None:
        """Return what tells the present entry from any later one; `None` if none is there."""
        return identify(self.door, self.path)

    def prepare(self, scratch: str) -> None:
        """Make what the factory needs: nothing, for a value."""

    def build(self, scratch: str) -> Any:
        """Run the factory."""
        return self.factory()

    def build_apart(self) -> Any:
        """Run the factory where the cache can't be written."""
        return self.factory()

    def lost(self, scratch: str) -> bool:
        """Tell whether what was built is gone: never, a value is in memory."""
        return False

    def is_full(self, error: Exception) -> bool:
        """Tell whether a factory failed because the cache has no room: it doesn't write there."""
        return False

    def keep_apart(self, value: Any) -> Any:
        """Return the value that could not be stored."""
        return value

    def publish(
        self, scratch: str, value: Any, took: float, seen: Identity | None
    ) -> tuple[bool, Any]:
        """Write the value into the scratch and move it into place.

        Returns whether this entry is now the published one, and the value.
        """
        parts = self._assemble(value, took)
        return self._install(
            scratch, parts, lambda: install_file(self.door, scratch, self.path, seen)
        ), value

    def replace(self, scratch: str, value: Any) -> None:
        """Write the value and put it in the place of whatever is there."""
        try:
            self._replace(scratch, value)
        finally:
            discard(self.door, scratch)

    def _replace(self, scratch: str, value: Any) -> None:
        parts = self._assemble(value, 0.0)
        self._install(
            scratch, parts, lambda: install_file(self.door, scratch, self.path, None, always=True)
        )

    def _assemble(self, value: Any, took: float) -> list[Buffer]:
        options = self.options
        form, payload, buffers = options.codec.pack(value)
        now = self.door.time()
        return assemble(
            digest=self.digest,
            codec=options.codec.stored_name,
            form=form,
            created=now,
            expires=NEVER if options.max_age is None else now + options.max_age,
            took=took,
            meta=[("key", describe(self.key)), *(("tag", tag) for tag in options.tags)],
            payload=payload,
            buffers=buffers,
            seal=options.codec.seal(self.digest, form, [payload, *buffers]).ljust(
                SEAL_SIZE, b"\0"
            ),
        )

    def _install(self, scratch: str, parts: list[Buffer], install: Callable[[], bool]) -> bool:
        """Write the scratch and install it, anew if the folder is deleted meanwhile."""
        for attempt in range(PUBLISH_TRIES):
            try:
                self._write(scratch, parts)
                return install()
            except FileNotFoundError:
                if attempt + 1 == PUBLISH_TRIES:
                    raise
                self.door.remove_tree(scratch)
                self.layout.make_room(self.path)
        raise AssertionError("unreachable")

    def _write(self, scratch: str, parts: list[Buffer]) -> None:
        fd = self.door.open(scratch, CREATE, self.layout.file_mode)
        try:
            if sum(map(len, parts)) <= ONE_READ:
                self.door.write(fd, b"".join(parts))
            else:
                for part in parts:
                    self.door.write(fd, part)
        finally:
            self.door.close(fd)
