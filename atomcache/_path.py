"""A path entry: a folder that holds the file or folder that was built, and its meta.

What it is for: `find` is the hit: one stat of what was built and one of its meta, whose
modification time is the entry's expiry (0 for never).  `PathEntry` is what the protocol
needs to know of a path on a miss.

Other programs use what was built without this library in between, so its content is not
verified on a hit.  Instead it is forced onto the disk before it is published, unless
``durable=False``.

Who calls it: `Cache` calls `find` first and hands a `PathEntry` to the protocol on a
miss.  What may go wrong: `BuilderError` for a builder that leaves nothing, a symlink or
a special file; `EntryNameError` for an unusable name; `OSError` from the system.
"""

from __future__ import annotations

import errno
import os
import stat

from ._door import CREATE, READ
from ._entry import Entry
from ._errors import BuilderError, DontStore, EntryNameError
from ._freshness import USUAL, Want, expiry, flags_of, fresh, holds, said
from ._header import HAS_INPUTS, NEVER, Damaged, assemble, glance, parse, read_meta
from ._hold import discard_replaced
from ._keys import describe, describe_entry
from ._layout import META
from ._log import logger
from ._publish import (
    MISS,
    REPLACED,
    REVOKED,
    STAGED,
    Identity,
    Revoked,
    discard,
    identify,
    install_folder,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from ._build import Build
    from ._door import Door
    from ._header import Header
    from ._layout import Layout
    from ._options import Options

_LOOK_INSIDE = 86_400.0
"""Modification time of a meta that says more than its expiry."""

_CODEC = b"path".ljust(24, b"\0")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_LARGEST_META = 1 << 20
_LONGEST_NAME = 255
_WINDOWS_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))]
)


def check_name(name: object) -> str:
    """Return `name` if it can be the name of what is built, else raise."""
    if not isinstance(name, str):
        raise EntryNameError(f"name must be a str, not {describe(name)}")
    why = None
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        length = 0
        why = "it has characters that no file name can have"
    if not name or name in (".", ".."):
        why = "it names no file"
    elif "/" in name or "\0" in name or os.sep in name or (os.altsep and os.altsep in name):
        why = "it must be a single name without separators"
    elif name == META:
        why = "the library keeps its own file there"
    elif length > _LONGEST_NAME:
        why = f"filesystems allow {_LONGEST_NAME} bytes and it has {length}"
    elif os.name == "nt" and (
        any(c in '<>:"|?*' or ord(c) < 32 for c in name)
        or name[-1] in ". "
        or name.split(".")[0].upper() in _WINDOWS_DEVICES
    ):
        why = "Windows does not allow it"
    if why is not None:
        raise EntryNameError(
            f"{describe(name, 80)!r} can't be the name of a path entry: {why}. "
            "Choose a plain file name"
        )
    return name


def find(
    door: Door,
    target: str,
    meta: str,
    options: Options,
    want: Want = USUAL,
) -> bool:
    """Tell whether a fresh entry holds what was built, by the paths of that and of its meta."""
    try:
        door.stat(target)
        expires = door.stat(meta).st_mtime
        if not expires and options.max_age is None and not want.since:
            return True
        header, told = read_header(door, meta)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except Damaged as why:
        if not want.quiet:
            logger().warning("a damaged entry is built anew: %s: %s", meta, why)
        if want.damaged is not None:
            want.damaged()
        return False
    if not fresh(door, header, options.max_age, want):
        return False
    return not header.flags & HAS_INPUTS or holds(told)


def read_header(
    door: Door, meta: str, *, unnoticed: bool = False
) -> tuple[Header, dict[str, Any]]:
    """Return header and content of a path entry's meta."""
    fd = door.open_unnoticed(meta) if unnoticed else door.open(meta, READ)
    try:
        data = door.read(fd, _LARGEST_META)
    finally:
        door.close(fd)
    header = parse(data)
    if header.digest.hex() != os.path.basename(os.path.dirname(meta)):
        raise Damaged("it is the meta of another key")
    return header, read_meta(data, header)


def stored_name(door: Door, path: str) -> str | None:
    """Return under which name the entry holds what was built, if there is an entry."""
    name = _stored(door, path).get("name")
    return name if isinstance(name, str) else None


def _stored(door: Door, path: str) -> dict[str, Any]:
    """Return what the meta of an entry says, if there is one."""
    try:
        meta = read_header(door, os.path.join(path, META))[1]
        check_name(meta.get("name"))
        return meta
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (Damaged, ValueError) as why:  # also for a name that would lead elsewhere
        logger().warning("a damaged entry is built anew: %s: %s", path, why)
        return {}


def size_of(door: Door, path: str) -> int:
    """Return how many bytes a file, or a folder with all that is in it, takes."""
    found = door.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        return int(found.st_size)
    return sum(size_of(door, os.path.join(path, name)) for name in door.listdir(path))


class PathEntry(Entry):
    """One path in the cache, as the protocol sees it.

    Parameters
    ----------
    name
        What the file or folder is to be called.
    builder
        Called with the path at which it has to make a file or a folder.
    """

    kind = "path"
    asynchronous = "aget_or_create_path"

    def __init__(
        self,
        layout: Layout,
        digest: bytes,
        key: object,
        name: str,
        options: Options,
        builder: Callable[[Path], object],
        *,
        anew: bool = False,
    ) -> None:
        super().__init__(layout, digest, key, options, anew=anew)
        self.name = name
        self.builder = builder
        self._head = b""

    # -- to and from the bucket --------------------------------------------------------

    def fits(self, header: Header, meta: dict[str, Any]) -> bool:
        """Tell whether what stands in the bucket is of the kind that is wanted."""
        return meta.get("name") == self.name

    def send(
        self, target: str, took: float, build: Build | None
    ) -> tuple[bytes, Iterator[bytes], int]:
        """Return meta, archive and about how large that is of what was built."""
        from ._archive import pack

        assert build is not None
        self._check_built(target)
        self.size = size_of(self.door, target)
        self._head = self._meta(took, build)
        return self._head, pack(target), self.size

    def content(self) -> Iterator[bytes]:
        """Yield what was built, as an archive of what is published.

        Another process may replace it meanwhile; then part of this is of the other one.
        """
        from ._archive import Unfit, pack

        try:
            yield from pack(os.path.join(self.path, self.name))
        except Unfit:
            self._check_ours()
            raise
        self._check_ours()

    def _check_ours(self) -> None:
        if identify(self.door, self.path) != self.stands:
            raise Revoked

    def receive(self, scratch: str, head: bytes, pieces: Iterator[bytes]) -> str:
        """Unpack what comes down into the scratch and return its path."""
        from ._archive import Unfit, unpack

        try:
            unpack(pieces, scratch, self.name)
        except Unfit as why:
            raise Damaged(str(why)) from why
        self._head = head
        return os.path.join(scratch, self.name)

    def set_aside(self, scratch: str) -> None:
        """Keep what was built beside what is about to come down instead."""
        self.door.rename(os.path.join(scratch, self.name), self._aside(scratch))

    def take_back(self, scratch: str) -> None:
        """Have what was built again, because nothing came down."""
        self.door.rename(self._aside(scratch), os.path.join(scratch, self.name))

    def _aside(self, scratch: str) -> str:
        return os.path.join(scratch, ".aside" if self.name != ".aside" else ".beside")

    def forget_received(self, scratch: str) -> None:
        """Remove what came down, if anything did."""
        self._head = b""
        discard(self.door, os.path.join(scratch, self.name))

    def find(self, want: Want) -> Any:
        """Return the path if there is one that is good enough, else `MISS`."""
        from pathlib import Path

        target, meta = os.path.join(self.path, self.name), os.path.join(self.path, META)
        return Path(target) if find(self.door, target, meta, self.options, want) else MISS

    def identity(self) -> Identity | None:
        """Return what tells the present entry from any later one; `None` if none is there.

        Raises
        ------
        EntryNameError
            If the key is stored under another name.
        """
        found = super().identity()
        stored = {} if found is None else _stored(self.door, self.path)
        self.size_before = None if found is None else int(stored.get("bytes", 0))
        name = stored.get("name")
        if isinstance(name, str) and name != self.name:
            raise EntryNameError(
                f"{self.what()} is stored in {self.path} under the name {name!r}, but asked "
                f"for as {self.name!r}. Use one name per key, or remove the key first"
            )
        return found

    def prepare(self, scratch: str) -> None:
        """Make the scratch folder."""
        self.door.mkdir(scratch, self.layout.folder_mode)

    def build(self, scratch: str) -> str:
        """Run the builder."""
        from pathlib import Path

        target = os.path.join(scratch, self.name)
        self.finished(self.builder(Path(target)))
        return target

    def build_apart(self) -> Path:
        """Build in a temporary folder, which is removed when the process ends."""
        from contextlib import suppress
        from pathlib import Path

        target = os.path.join(self.door.temporary_folder(), self.name)
        with suppress(DontStore):  # nothing is stored here anyway
            self.finished(self.builder(Path(target)))
        self._check_built(target)
        return Path(target)

    def is_full(self, error: Exception) -> bool:
        """Tell whether a builder failed because the cache that it writes to has no room."""
        return isinstance(error, OSError) and error.errno in _NO_ROOM

    def lost(self, scratch: str) -> bool:
        """Tell whether what was built is gone, because somebody deleted the cache."""
        try:
            return identify(self.door, scratch) is None
        except OSError:
            return False  # it can't be told; the error that made us ask is the one to raise

    def unstored(self, scratch: str, value: object) -> Path:
        """Return what a builder made that asked for it not to be stored."""
        target = os.path.join(scratch, self.name)
        self._check_built(target)
        return self.keep_apart(target)

    def keep_apart(self, target: str) -> Path:
        """Move what could not be stored to a temporary folder of this process."""
        from pathlib import Path

        kept = os.path.join(self.door.temporary_folder(), self.name)
        self.door.move(target, kept)
        return Path(kept)

    def keep_revoked(self, scratch: str, target: str) -> Path:
        """Keep what was built for its caller, whose entry was removed meanwhile."""
        try:
            self.door.rename(scratch + STAGED, scratch)
        except FileNotFoundError:  # whoever removed the entry took it away in time
            self.door.rename(scratch + REVOKED, scratch)
        return self.keep_apart(target)

    def publish(
        self, scratch: str, target: str, took: float, seen: Identity | None, build: Build
    ) -> tuple[bool, Path]:
        """Add the meta, force it onto the disk and move it into place, unless it was revoked.

        Returns whether this entry is now the published one, and its path.
        """
        from pathlib import Path

        door = self.door
        self._check_built(target)
        for name in door.listdir(scratch):  # what the builder left beside its target
            if name != self.name:
                discard(door, os.path.join(scratch, name))
        self.size = size_of(door, scratch)
        self._write_meta(os.path.join(scratch, META), self._head or self._meta(took, build))
        if self.options.durable:
            door.sync_tree(scratch)
        staged = scratch + STAGED
        try:
            door.rename(scratch, staged)
            if build.revoked():
                raise Revoked
            won = install_folder(door, staged, self.path, seen, scratch + REPLACED)
        except OSError:
            try:
                door.rename(staged, scratch)  # whoever keeps it elsewhere looks for it there
            except FileNotFoundError:
                if build.revoked():
                    raise Revoked from None
            raise
        finally:
            if seen is not None:
                discard_replaced(door, self.path, scratch + REPLACED)
        names = (staged, scratch + REVOKED)
        if not won:
            for name in names:
                discard(door, name)
        elif seen is not None:  # what was exchanged
            discard_replaced(door, self.path, *names)
        if won and self.options.durable:
            self._sync_names()
        return won, Path(os.path.join(self.path, self.name))

    def _sync_names(self) -> None:
        """Force the names that lead to the entry onto the disk; any of them may be new."""
        shard = os.path.dirname(self.path)
        try:
            for folder in (shard, self.layout.root, self.layout.directory):
                self.door.sync_folder(folder)
        except OSError as error:  # it is published: others have it already
            logger().warning("a power cut may undo %s: %s", self.path, error)

    def _check_built(self, target: str) -> None:
        try:
            mode = self.door.lstat(target).st_mode
        except FileNotFoundError:
            self.door.stat(os.path.dirname(target))  # or was the whole cache deleted?
            raise BuilderError(
                f"the builder of {self.what()} made nothing at {target}. It must make a file or "
                "a folder at the path that it is given"
            ) from None
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return
        found, advice = "a special file, such as a pipe or a socket,", ""
        if stat.S_ISLNK(mode):
            found, advice = "a symlink", "; copy what the link leads to"
        raise BuilderError(
            f"the builder of {self.what()} left {found} at {target}. It must make a regular "
            f"file or a folder there{advice}"
        )

    def _meta(self, took: float, build: Build) -> bytes:
        """Return what stands in the meta of what was built."""
        options = self.options
        parts = assemble(
            digest=self.digest,
            codec=_CODEC,
            form=0,
            flags=flags_of(build),
            created=build.ended,
            expires=expiry(self.door, build.ended, options, build),
            took=took,
            meta=[
                *describe_entry(self.key, options.tags),
                ("name", self.name),
                ("bytes", str(self.size)),
                *said(build),
            ],
            payload=b"",
            seal=bytes(32),
        )
        return b"".join(parts)

    def _write_meta(self, path: str, meta: bytes) -> None:
        fd = self.door.open(path, CREATE, self.layout.file_mode)
        try:
            self.door.write(fd, meta)
        finally:
            self.door.close(fd)
        header = glance(meta)
        mark = 0.0 if header.expires == NEVER else header.expires
        mark = _LOOK_INSIDE if header.flags else mark
        self.door.utime(path, (self.door.time(), mark))  # made is used
