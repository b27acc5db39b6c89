"""What goes up into a bucket: the labels, the content and the object of an entry.

What it is for: a large content goes up in parts first; then one put that succeeds only if nobody
was first publishes the entry, while the claim is ours; `set` puts it there whatever there is.

Who calls it: `Remote`, after a build; `Cache.set`.  What may go wrong: a store that fails is left
alone, and what was built stays on this machine.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from ._bucket import PIECE, StoreDown
from ._log import logger
from ._object import INLINE, entry_object, object_name, tag_name
from ._removals import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ._bucket_claim import RemoteClaim
    from ._build import Build
    from ._protocol import Entry
    from ._remote import Remote


class Uploads:
    """The way up into one bucket.

    Parameters
    ----------
    remote
        Whose bucket it is.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._bucket = remote.bucket

    def tell_tags(self, entry: Entry) -> None:
        """Say what tags a build carries, for `remove_tagged` elsewhere to revoke it."""
        try:
            self._put_tags(entry, entry.tags_of(None))
        except StoreDown as error:
            self._remote.outage.note(error)

    def _put_tags(self, entry: Entry, tags: set[str]) -> None:
        for tag in tags:
            self._bucket.put(tag_name(tag, entry.digest), b"")

    def publish(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, content: Iterator[Any]
    ) -> None:
        """Put what was built into the bucket, unless somebody was first; let go of the claim."""
        try:
            revoked = not self._remote.behind and build.revoked()
            if revoked or not mine.confirm() or not self._put(entry, build, mine, head, content):
                build.lost_claim = True
        except StoreDown as error:
            self._remote.outage.note(error)
        finally:
            mine.end()

    def _put(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, content: Iterator[Any]
    ) -> bool:
        """Return whether what was built is now the entry, or can't be: nobody was first."""
        name = object_name(entry.digest)
        prepared = self._prepare(entry, head, content)
        if prepared is None:
            return True
        data, blob = prepared
        self._put_tags(entry, entry.tags_of(build) - entry.tags_of(None))
        won = None
        if mine.confirm():  # it takes a while until all of a large content is there
            if entry.replaces:
                won = self._bucket.put_if(name, data, entry.replaces)
            else:
                won = self._bucket.put_new(name, data)
            if won is None and self._is_there(name, data):
                won = "its answer was lost"
        if won is None:
            if blob:
                self._bucket.delete(blob)
            return False
        if not mine.confirm():  # removed, or taken over, in the very moment of publishing
            self._bucket.delete(name, *([blob] if blob else []))
            return False
        entry.shared = build.ended
        if entry.replaced_blob:
            self._bucket.delete(entry.replaced_blob)
        if entry.anew:  # for others to drop the old one
            self._remote.removals.tell_surely({"digest": entry.digest.hex()})
        return True

    def _is_there(self, name: str, data: bytes) -> bool:
        found = self._bucket.get(name)
        return found is not None and found[0] == data

    def _prepare(
        self, entry: Entry, head: bytes, content: Iterator[Any]
    ) -> tuple[bytes, str] | None:
        """Return an entry's object, and the name of the one that its content went to."""
        from ._archive import Unfit

        blob = ""
        checksum = xxh3_128()

        def summed() -> Iterator[Any]:
            for part in content:
                for start in range(0, len(part), PIECE):
                    piece = part[start : start + PIECE]
                    checksum.update(piece)
                    yield piece

        pieces = summed()
        body = bytearray()
        try:
            for piece in pieces:
                body += piece
                if len(body) > INLINE:
                    blob = f"{object_name(entry.digest)}.{self._remote.door.urandom(8).hex()}"
                    self._bucket.put(blob, chain([bytes(body)], pieces))
                    body.clear()
        except Unfit as why:
            logger().warning("%s is not shared with other machines: %s", entry.what(), why)
            return None
        return entry_object(head, body, blob, checksum.hexdigest()), blob

    def replace(self, entry: Entry, value: Any) -> None:
        """Put a value into the bucket, whatever is there, and have others drop the old one."""
        if self._remote.read_only or not self._remote.outage.usable():
            return
        head, content, _ = entry.send(value, 0.0, None)
        try:
            prepared = self._prepare(entry, head, content)
            if prepared is None:
                return
            name = object_name(entry.digest)
            self._put_tags(entry, entry.tags_of(None))
            old = self._bucket.get(name)
            self._bucket.put(name, prepared[0])
            blob = "" if old is None else parts_of(old, entry.digest)[0]
            if blob:
                self._bucket.delete(blob)
            self._remote.removals.tell_surely({"digest": entry.digest.hex()})
        except StoreDown as error:
            self._remote.outage.note(error)
