"""How things are called in a bucket, and what the object of an entry looks like.

What it is for: an entry is one object that holds what a reader judges it by, and a small content
too; a large one stands in an object of its own that is named in there, so that it can be
streamed and still be published in one step.  Claims and what is written down of removals are
small objects too, in JSON.

Who calls it: whatever deals with a bucket.  What may go wrong: `Damaged` for an object that is no
entry, or not this key's; a bucket is other people's ground.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from ._header import NEVER, Damaged, parse, read_meta

if TYPE_CHECKING:
    from typing import Any

    from ._header import Header

FOLDER = "v1"
"""The prefix of this layout of the bucket."""

REMOVED = f"{FOLDER}/removed/"
"""The prefix of what is written down of removals."""

INLINE = 262_144
"""Bytes of content up to which an entry is one object: one request less per hit."""

GONE = b"atomcache: removed\n"
"""What stands for an entry that was removed while it was published: stores don't delete under a
condition, but they do put under one."""

_DIGEST = 20

_LATEST = 1e11
"""A time that no clock shows (seconds since the epoch)."""

_MAGIC = b"atomcache remote 1\n"
_LENGTH = struct.Struct("<I")


class Found:
    """An entry as it stands in the bucket.

    Attributes
    ----------
    etag
        Names its version.
    head
        What stands before the payload in the entry's local file.
    header
        The same, parsed.
    content
        What comes after the head; empty if it is in an object of its own.
    blob, total
        That object's name, if there is one, and the content's checksum.
    meta
        What the head says for people and listings.
    """

    def __init__(self, data: bytes, etag: str, digest: bytes) -> None:
        self.etag = etag
        start = len(_MAGIC) + _LENGTH.size
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise Damaged("it does not begin as an entry of this format")
        (size,) = _LENGTH.unpack_from(data, len(_MAGIC))
        try:
            about = json.loads(data[start : start + size])
            head_end = start + size + int(about["head"])
            self.blob = str(about["blob"])
            self.total = str(about["sum"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise Damaged("its first part can't be read") from error
        self.head = data[start + size : head_end]
        self.content = data[head_end:]
        self.header: Header = parse(self.head)
        if self.header.digest != digest:
            raise Damaged("it is the entry of another key")
        if self.blob and not self.blob.startswith(f"{object_name(digest)}."):
            raise Damaged("its content is said to be elsewhere")
        created, expires = self.header.created, self.header.expires
        if not (0 <= created < _LATEST and (0 <= expires < _LATEST or expires == NEVER)):
            raise Damaged("its times make no sense")
        try:
            self.meta = read_meta(self.head, self.header)
        except ValueError as error:
            raise Damaged("what it says of itself can't be read") from error


def entry_object(head: bytes, body: bytes | bytearray, blob: str, total: str) -> bytes:
    """Return the object of an entry; `Found` reads it."""
    told = json.dumps({"head": len(head), "blob": blob, "sum": total}).encode()
    return b"".join([_MAGIC, _LENGTH.pack(len(told)), told, head, body])


def object_name(digest: bytes) -> str:
    """Return the name of an entry's object."""
    name = digest.hex()
    return f"{FOLDER}/{name[:2]}/{name}"


def digest_of(name: str) -> bytes | None:
    """Return the digest that a name from the bucket stands for, if it is one."""
    try:
        digest = bytes.fromhex(name)
    except ValueError:
        return None
    return digest if len(digest) == _DIGEST else None


def tag_name(tag: str, digest: bytes) -> str:
    """Return the name of the empty object that says of an entry that it carries a tag."""
    from hashlib import blake2b

    told = tag.encode("utf-8", "surrogatepass")  # a file's name may be a tag
    return f"{tags_folder()}{blake2b(told, digest_size=16).hexdigest()}/{digest.hex()}"


def tags_folder() -> str:
    """Return the prefix of all labels."""
    return f"{FOLDER}/tags/"


def write_record(record: dict[str, Any]) -> bytes:
    """Return what stands in a claim, or is written down of a removal."""
    return json.dumps(record).encode()


def read_record(data: bytes) -> dict[str, Any]:
    """Return what `write_record` wrote; nothing, for what it did not."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
