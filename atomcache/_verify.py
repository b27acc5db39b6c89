"""Reading every checksum of a cache, to find what a disk or a program has damaged.

What it is for: `verify` reads all entries, each in pieces, so that it needs no more memory for
a value of ten gigabytes than for a small one.  Of a value every byte is summed; of a path entry
its meta is, and what was built must be there with the size that it had, because its content is
the user's and has no checksum.  `remove_damaged` removes what was found, and never what has been
published in its place meanwhile.

Who calls it: ``atomcache verify``; `check_value` also ``atomcache cat``.  What may go wrong: an
entry that is removed or replaced while it is read is no damage; `OSError` for what this user may
not read, after all the rest was read.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from xxhash import xxh3_64

from ._claim import claim_path, open_claim, reap, take
from ._header import (
    _SUMMED_FROM,
    NEVER,
    SIZE,
    Damaged,
    glance,
    head_size,
    parse,
    read_meta,
    read_rows,
)
from ._layout import META, is_entry
from ._listing import _paths
from ._path import check_name, read_header, size_of
from ._publish import (
    REVOKED,
    STAGED,
    discard,
    identify,
    install_file,
    install_folder,
    persist,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._claim import Claim
    from ._door import Door
    from ._header import Header
    from ._layout import Layout
    from ._protocol import Protocol
    from ._publish import Identity

_PIECE = 1 << 20
"""Bytes that are read and summed at once."""

_TRIES = 10
"""How often an entry is looked at that is replaced each time before the look is over."""


@dataclass(frozen=True, slots=True)
class Damage:
    """An entry that is not what was stored.

    Attributes
    ----------
    path
        The entry's file or folder.
    id
        40 hexadecimal digits that name the entry in its folder.
    key
        As in `EntryInfo`; empty where that can't be read any more.
    kind
        ``"value"`` or ``"path"``.
    reason
        What is wrong with it.
    identity
        What tells it from whatever may come to stand in its place.
    """

    path: Path
    id: str
    key: str
    kind: str
    reason: str
    identity: Identity


@dataclass(slots=True)
class Verified:
    """How much was read so far: `entries`, whole and damaged, and `size`, their bytes."""

    entries: int = 0
    size: int = 0


def verify(layout: Layout, verified: Verified | None = None) -> Iterator[Damage]:
    """Read every entry and yield those that are damaged.

    Parameters
    ----------
    verified
        Counts what was read, as the iteration goes on.

    Raises
    ------
    OSError
        The first that kept an entry from being read, once all others were.
    """
    verified = Verified() if verified is None else verified
    first: OSError | None = None
    for path in _paths(layout, is_entry):
        try:
            damage = _look(layout.door, path, verified)
        except OSError as error:
            first = first or error
            continue
        if damage is not None:
            yield damage
    if first is not None:
        raise first


def remove_damaged(protocol: Protocol, damage: Damage) -> bool:
    """Remove a damaged entry; `False` if it is gone, was replaced, or is being replaced.

    It is moved to the name of a claim's scratch first.  If it turns out to be another, which
    `Cache.set` put there in that instant, it is put back; who removes the entry meanwhile takes
    that away, so that nothing removed comes back (see `revoke`).
    """
    from ._log import logger

    door, path = protocol.door, os.fspath(damage.path)
    claim = _claim(protocol, path)
    if claim is None:
        return False  # who builds it puts a new one in its place
    folder = damage.kind == "path"
    moved = claim.scratch + (STAGED if folder else "")
    try:
        if identify(door, path) != damage.identity:
            return False
        claim.sign("a damaged entry is removed", kind=damage.kind, key=damage.key)
        persist(door, lambda: door.rename(path, moved))
        if identify(door, moved) == damage.identity:
            logger().warning("a damaged entry is removed: %s: %s", path, damage.reason)
            protocol.watch.tell("corrupt", damage.key, path=path, reason=damage.reason)
            return True
        if folder:
            install_folder(door, moved, path, None, claim.scratch)
        else:
            install_file(door, moved, path, None)
        return False
    except (FileNotFoundError, NotADirectoryError):
        return False  # somebody else removed it
    finally:
        claim.release()
        for suffix in ("", STAGED, REVOKED):
            discard(door, claim.scratch + suffix)


def _claim(protocol: Protocol, path: str) -> Claim | None:
    """Claim an entry; a claim that a dead builder left is no hindrance."""
    door = protocol.door
    claim = take(door, protocol.layout, path, protocol.lease)
    if claim is not None:
        return claim
    fd = open_claim(door, claim_path(path))
    if fd is not None:
        try:
            found = door.fstat(fd)
        finally:
            door.close_kept(fd)
        if not reap(door, claim_path(path), found, silent=False):
            return None
    return take(door, protocol.layout, path, protocol.lease)


def _look(door: Door, path: str, verified: Verified) -> Damage | None:
    """Return what is wrong with an entry; `None` for nothing, and for one that is gone."""
    from pathlib import Path

    for _ in range(_TRIES):
        seen = identify(door, path)
        if seen is None:
            return None
        told = {"key": "", "reason": ""}
        try:
            folder = stat.S_ISDIR(door.lstat(path).st_mode)
            size = (_check_path if folder else _check_file)(door, path, told)
        except (Damaged, ValueError) as why:
            size, told["reason"] = 0, str(why)
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed or replaced while we looked
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            size, told["reason"] = 0, "the disk can't read it"
        if identify(door, path) != seen:
            continue
        verified.entries += 1
        verified.size += size
        if not told["reason"]:
            return None
        kind = "path" if folder else "value"
        return Damage(Path(path), os.path.basename(path), told["key"], kind, told["reason"], seen)
    return None


def _check_file(door: Door, path: str, told: dict[str, str]) -> int:
    if not stat.S_ISREG(door.lstat(path).st_mode):
        raise Damaged("it is neither a file nor a folder")
    fd = door.open_unnoticed(path)
    try:
        check_value(door, fd, os.path.basename(path), told)
        return int(door.fstat(fd).st_size)
    finally:
        door.close(fd)


def check_value(door: Door, fd: int, name: str, told: dict[str, str]) -> Header:
    """Sum every byte of a value's file and return its header.

    Parameters
    ----------
    name
        The entry's name, which its header must give too.
    told
        Gets the key, as soon as that can be trusted.

    Raises
    ------
    Damaged
        With the reason, for a file that is not as it was written.
    """
    end = door.fstat(fd).st_size
    door.lseek(fd, 0, 0)
    head = door.read(fd, SIZE)
    start = head_size(head)
    if start > end:
        raise Damaged("it ends before its payload")
    # What the header says of its own length can't be trusted before it is summed, nor read
    # in one piece.
    if _sum(door, fd, _SUMMED_FROM, start) != glance(head).head_sum:
        raise Damaged("the checksum of its header is wrong")
    door.lseek(fd, 0, 0)
    head = b"".join(_pieces(door, fd, start))
    header = parse(head)
    meta = read_meta(head, header)
    if header.digest.hex() != name:
        raise Damaged("it is the entry of another key")
    told["key"] = meta.get("key", "")
    if "name" in meta:
        raise Damaged("it is the meta of a path")
    rows = read_rows(head, header)
    begins = [start, *(at for at, _, _ in rows), end]
    sizes = [header.payload_size, *(size for _, size, _ in rows)]
    sums = [header.payload_sum, *(checksum for _, _, checksum in rows)]
    for part, (begin, until) in enumerate(pairwise(begins)):
        if not start <= begin <= begin + sizes[part] <= until <= end:
            raise Damaged("it does not end where its payload does")
        if not rows and begin + sizes[part] != until:
            raise Damaged("it does not end where its payload does")
        if _sum(door, fd, begin, until) != sums[part]:
            raise Damaged("the checksum of its payload is wrong")
    return header


def _sum(door: Door, fd: int, begin: int, end: int) -> int:
    door.lseek(fd, begin, 0)
    checksum = xxh3_64()
    for piece in _pieces(door, fd, end - begin):
        checksum.update(piece)
    return checksum.intdigest()


def _pieces(door: Door, fd: int, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = door.read(fd, min(size, _PIECE))
        if not piece:
            raise Damaged("it ends before its payload does")
        size -= len(piece)
        yield piece


def _check_path(door: Door, path: str, told: dict[str, str]) -> int:
    """Check a path entry's meta, and that what was built is there as large as it was."""
    meta = os.path.join(path, META)
    try:
        found = door.lstat(meta)
    except FileNotFoundError:
        raise Damaged("it has no meta") from None
    if not stat.S_ISREG(found.st_mode):
        raise Damaged("its meta is no file")
    header, said = read_header(door, meta, unnoticed=True)
    told["key"] = said.get("key", "")
    if "name" not in said or "bytes" not in said:
        raise Damaged("its meta is not that of a path")
    if found.st_mtime == 0 and (header.expires != NEVER or header.flags):
        raise Damaged("the time of its meta says that it never expires")
    target = os.path.join(path, check_name(said["name"]))
    try:
        built = door.lstat(target)
    except FileNotFoundError:
        raise Damaged(f"what was built is gone: {said['name']}") from None
    if not (stat.S_ISREG(built.st_mode) or stat.S_ISDIR(built.st_mode)):
        raise Damaged(f"what was built is neither a file nor a folder: {said['name']}")
    size, was = size_of(door, target), int(said["bytes"])
    if size != was:
        raise Damaged(f"what was built has {size} bytes and had {was}")
    return size
