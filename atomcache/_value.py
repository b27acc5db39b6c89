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

from ._door import CREATE, PROBE, READ
from ._entry import Entry
from ._errors import AtomcacheError, DontStore
from ._freshness import RACY_SECONDS, USUAL, Want, expiry, flags_of, fresh, holds, said
from ._header import (
    HAS_INPUTS,
    NEVER,
    SEAL_SIZE,
    Damaged,
    assemble,
    head_size,
    parse,
    payload_start,
    read_meta,
    read_rows,
)
from ._keys import describe_entry
from ._log import logger
from ._publish import (
    LARGE,
    MISS,
    PUBLISH_TRIES,
    Identity,
    Revoked,
    discard,
    install_file,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ._build import Build
    from ._codecs import AnyCodec, Buffer
    from ._door import Door
    from ._header import Header
    from ._layout import Layout
    from ._memory import MemoryTier
    from ._options import Options

ONE_READ = 16_384
"""Bytes that a hit asks for at once, without asking first how large the file is, which
would cost a fifth of a small hit.  Of a file that turns out to be larger the size is remembered,
and all of it asked for next time, up to `_MOST_AT_ONCE`."""

_MOST_AT_ONCE = 126_976
"""Bytes beyond which a payload is read by a second call, into an object of its own.  From 128 KiB
on glibc's malloc maps fresh pages for each object, unless the process has by chance freed
something larger before, and cutting the payload out would take longer than the second call."""

_MOST_SIZES = 10_000
_sizes: dict[str, int] = {}
"""What to ask for where `ONE_READ` is not enough: one byte more than the file had."""

MAPPED_FROM = 131_072
"""Bytes of a file from which its buffers are mapped and not copied: a process may have only
65,530 mappings (Linux's vm.max_map_count)."""

_ONE_WRITE = 131_072
"""Bytes up to which an entry is written in one call."""

_MOST_VERIFIED = 4096
_verified: dict[str, tuple[int, ...]] = {}
"""The mapped files that this process has verified: path, and what identifies its content."""


def read_remembered(
    memory: MemoryTier, door: Door, path: str, digest: bytes, options: Options, want: Want
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
        from copy import copy

        keeping = copy(want)
        keeping.memory = memory
        return read(door, path, digest, options, keeping)
    value, header = kept
    if options.max_age is None and header.expires == NEVER:
        return value
    return value if fresh(door, header, options.max_age, want) else MISS


def read(
    door: Door,
    path: str,
    digest: bytes,
    options: Options,
    want: Want = USUAL,
) -> Any:
    """Return the value of an entry, or `MISS`, or `LARGE`."""
    try:
        fd = door.open(path, READ)
    except (FileNotFoundError, NotADirectoryError):
        return MISS
    try:
        asked = _sizes.get(path, ONE_READ)
        data = door.read(fd, asked)
        all_read = len(data) < asked
        if not all_read:
            data = _whole_head(door, fd, data)
        header = parse(data)
        start = payload_start(header)
        largest, memory = want.largest, want.memory
        if header.payload_size > largest or (header.buffers and largest != NEVER):
            return LARGE
        found = None
        if header.buffers or not all_read or options.codec.guarded or memory:
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
            if not want.quiet:
                _tell_codec(path, header, codec)
            return MISS
        if (header.expires != NEVER or options.max_age is not None or want.since) and not fresh(
            door, header, options.max_age, want
        ):
            return MISS
        if header.flags & HAS_INPUTS and not _inputs_hold(data, header):
            return MISS
        if found is not None and codec.guarded:
            codec.check_origin(path, found, header, payload, buffers)
        try:
            value = codec.unpack(header.form, payload, buffers)
        except AtomcacheError:
            raise
        except Exception as error:  # whatever a codec says of bytes that it can't read
            raise Damaged(f"codec {codec.name!r} can't read it: {_told(error)}") from error
        if memory is not None and found is not None and not header.flags & HAS_INPUTS:
            memory.put(path, found, codec, value, header)
        return value
    except (Damaged, IsADirectoryError) as why:
        if not want.quiet:
            logger().warning("a damaged entry is built anew: %s: %s", path, why)
        if want.damaged is not None:
            want.damaged()
        return MISS
    finally:
        door.close(fd)


def _inputs_hold(data: Buffer, header: Header) -> bool:
    try:
        meta = read_meta(data, header)
    except ValueError as error:
        raise Damaged("what it says of itself can't be read") from error
    return holds(meta)


def _told(error: Exception) -> str:
    try:
        return repr(error)
    except Exception:  # one that holds what came of deep rubbish
        return type(error).__name__


def _tell_codec(path: str, header: Header, codec: AnyCodec) -> None:
    """Say why an entry counts as none: two that differ for ever would build for ever."""
    stored = header.codec.rstrip(b"\0").decode("ascii", "replace")
    logger().warning(
        "an entry of codec %r is not read by codec %r, and built anew: %s. Ask for one key with "
        "one codec",
        stored,
        codec.name,
        path,
    )


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
        if size >= MAPPED_FROM:
            return _split(door.map(fd, size), header, path, found)
        if len(data) < size:
            data += _read_exactly(door, fd, size - len(data))
        return _split(memoryview(bytearray(data)), header, path, found)
    if start + header.payload_size != size:
        raise Damaged("it does not end where its payload does")
    if ONE_READ <= size <= _MOST_AT_ONCE:
        if len(_sizes) >= _MOST_SIZES:
            _sizes.clear()
        _sizes[path] = size + 1
    if len(data) == size:
        payload = data[start:]
    else:
        door.lseek(fd, start, 0)
        payload = _read_exactly(door, fd, header.payload_size)
    if xxh3_64_intdigest(payload) != header.payload_sum:
        raise Damaged("the checksum of its payload is wrong")
    return payload, ()


def _whole_head(door: Door, fd: int, data: bytes) -> bytes:
    """Return `data` with all that comes before the payload: many inputs take a lot of room."""
    missing = head_size(data) - len(data)
    if missing <= 0:
        return data
    if head_size(data) > door.fstat(fd).st_size:
        raise Damaged("it ends before its payload")
    return data + _read_exactly(door, fd, missing)


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


class ValueEntry(Entry):
    """One value in the cache, as the protocol sees it.

    Parameters
    ----------
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
        *,
        anew: bool = False,
    ) -> None:
        super().__init__(layout, digest, key, options, anew=anew)
        self.factory = factory
        self._parts: list[Buffer] | None = None

    def find(self, want: Want) -> Any:
        """Return the value if there is one that is good enough, else `MISS` or `LARGE`."""
        return read(self.door, self.path, self.digest, self.options, want)

    def prepare(self, scratch: str) -> None:
        """Make the scratch: a new file takes longest of all that those who wait would wait for."""
        self.door.close(self.door.open(scratch, CREATE, self.layout.file_mode))

    def build(self, scratch: str) -> Any:
        """Run the factory."""
        return self.finished(self.factory())

    def build_apart(self) -> Any:
        """Run the factory where the cache can't be written."""
        try:
            return self.finished(self.factory())
        except DontStore as answer:
            return answer.value

    def lost(self, scratch: str) -> bool:
        """Tell whether what was built is gone: never, a value is in memory."""
        return False

    # -- to and from the bucket --------------------------------------------------------

    def fits(self, header: Header, meta: dict[str, Any]) -> bool:
        """Tell whether what stands in the bucket is of the kind that is wanted."""
        return header.codec == self.options.codec.stored_name

    def send(
        self, value: Any, took: float, build: Build | None
    ) -> tuple[bytes, Iterator[Buffer], int]:
        """Return head, content and the content's size of what was built."""
        self._parts = self._assemble(value, took, build)
        return b"".join(self._parts[:3]), self.content(), sum(map(len, self._parts[3:]))

    def content(self) -> Iterator[Buffer]:
        """Yield what was built, as it was stored."""
        parts = self._parts or []
        return (memoryview(part).cast("B") for part in parts[3:] if len(part))

    def receive(self, scratch: str, head: bytes, pieces: Iterator[bytes]) -> Any:
        """Write what comes down into the scratch, verify it, and return the value."""
        fd = self._open_scratch(scratch)
        try:
            self.door.write(fd, head)
            self.size = len(head)
            for piece in pieces:
                self.door.write(fd, piece)
                self.size += len(piece)
        finally:
            self.door.close(fd)
        value = read(self.door, scratch, self.digest, self.options, Want(tolerate=NEVER))
        if value is MISS:
            raise Damaged("it can't be read")
        return value

    def forget_received(self, scratch: str) -> None:
        """Remove what came down, if anything did."""
        discard(self.door, scratch)

    def is_full(self, error: Exception) -> bool:
        """Tell whether a factory failed because the cache has no room: it doesn't write there."""
        return False

    def unstored(self, scratch: str, value: Any) -> Any:
        """Return the value of a factory that asked for it not to be stored."""
        return value

    def keep_apart(self, value: Any) -> Any:
        """Return the value that could not be stored."""
        return value

    def keep_revoked(self, scratch: str, value: Any) -> Any:
        """Return the value whose entry was removed while it was built."""
        return value

    def publish(
        self, scratch: str, value: Any, took: float, seen: Identity | None, build: Build
    ) -> tuple[bool, Any]:
        """Write the value into the scratch and move it into place, unless it was revoked.

        Returns whether this entry is now the published one, and the value.
        """

        def install() -> bool:
            if build.revoked():
                raise Revoked
            return install_file(self.door, scratch, self.path, seen)

        if build.fetched:
            return install(), value
        parts = self._parts or self._assemble(value, took, build)
        return self._install(scratch, parts, install), value

    def replace(self, scratch: str, value: Any) -> None:
        """Write the value and put it in the place of whatever is there."""
        try:
            self._replace(scratch, value)
        finally:
            discard(self.door, scratch)

    def _replace(self, scratch: str, value: Any) -> None:
        parts = self._assemble(value, 0.0)
        self.identity()  # to know how much it replaces
        self._install(
            scratch, parts, lambda: install_file(self.door, scratch, self.path, None, always=True)
        )

    def _assemble(self, value: Any, took: float, build: Build | None = None) -> list[Buffer]:
        options = self.options
        form, payload, buffers = options.codec.pack(value)
        now = self.door.time() if build is None else build.ended
        return assemble(
            digest=self.digest,
            codec=options.codec.stored_name,
            form=form,
            created=now,
            flags=flags_of(build),
            expires=expiry(self.door, now, options, build),
            took=took,
            meta=[*describe_entry(self.key, options.tags), *said(build)],
            payload=payload,
            buffers=buffers,
            seal=options.codec.seal(self.digest, form, [payload, *buffers]).ljust(
                SEAL_SIZE, b"\0"
            ),
        )

    def _install(self, scratch: str, parts: list[Buffer], install: Callable[[], bool]) -> bool:
        """Write the scratch and install it, anew if the folder is deleted meanwhile."""
        self.size = sum(map(len, parts))
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
        fd = self._open_scratch(scratch)
        try:
            if self.size <= _ONE_WRITE:
                self.door.write(fd, b"".join(parts))
            else:
                for part in parts:
                    self.door.write(fd, part)
        finally:
            self.door.close(fd)

    def _open_scratch(self, scratch: str) -> int:
        """Open the scratch, or make it where `prepare` did not, or somebody has removed it."""
        try:
            fd: int = self.door.open(scratch, PROBE)
        except FileNotFoundError:
            fd = self.door.open(scratch, CREATE, self.layout.file_mode)
        return fd
