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

from ._archive import Unfit
from ._bucket import PIECE, StoreDown
from ._log import logger
from ._object import GONE, INLINE, entry_object, object_name, tag_name
from ._publish import Revoked
from ._removals import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from ._bucket_claim import RemoteClaim
    from ._build import Build
    from ._protocol import Entry
    from ._remote import Remote

SHARED, KEPT, BEATEN, REVOKED = "shared", "kept", "beaten", "revoked"
"""What may become of a result; see `Uploads.publish`."""


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

    def tell_tags(self, entry: Entry, tags: Iterable[str]) -> None:
        """Say what tags a build carries, for `remove_tagged` elsewhere to revoke it."""
        if not self._remote.outage.usable():
            return
        try:
            self._put_tags(entry, tags)
        except StoreDown as error:
            self._remote.outage.note(error)

    def _put_tags(self, entry: Entry, tags: Iterable[str]) -> None:
        for tag in tags:
            self._bucket.put(tag_name(tag, entry.digest), b"")

    def publish(
        self,
        entry: Entry,
        build: Build,
        mine: RemoteClaim,
        head: bytes,
        content: Iterator[Any],
        *,
        behind: bool = False,
    ) -> str:
        """Put what was built into the bucket, unless somebody was first; let go of the claim.

        What goes up `behind` its caller has no local claim any more that could be revoked.

        Returns `SHARED`; `REVOKED` if the entry was removed meanwhile; `BEATEN` if another
        machine was first, or is about to be; `KEPT` if it stays on this machine.
        """
        if not self._remote.outage.usable():  # it failed during the build
            mine.abandon()
            return KEPT
        try:
            if not behind and build.revoked():
                mine.end()
                return REVOKED
            return self._publish(entry, build, mine, head, content)
        except Revoked:
            mine.end()
            return REVOKED
        except StoreDown as error:
            mine.abandon()
            self._remote.outage.note(error)
            return KEPT
        except BaseException:
            mine.end()
            raise

    def _publish(
        self, entry: Entry, build: Build, mine: RemoteClaim, head: bytes, content: Iterator[Any]
    ) -> str:
        name = object_name(entry.digest)
        try:
            data, blob = self._prepare(entry, head, content, mine)
        except Unfit as why:
            logger().warning("%s is not shared with other machines: %s", entry.what(), why)
            mine.end("alone")
            return KEPT
        self._put_tags(entry, entry.tags_of(build))  # again: a removal may have taken some away
        won = self._put_first(entry, name, data) if not mine.fate and mine.confirm() else None
        if won is None:
            if blob:
                self._bucket.delete(blob)
            mine.end()
            return REVOKED if mine.fate == "revoked" else BEATEN
        mine.end()
        if mine.fate == "revoked":  # in the very moment of publishing
            self._bucket.put_if(name, GONE, won)
            if blob:
                self._bucket.delete(blob)
            return REVOKED
        entry.shared = build.ended
        if entry.anew:  # for others to drop the old one
            self._remote.removals.tell_surely(_replaced(entry))
        if entry.replaced_blob:
            self._bucket.delete(entry.replaced_blob)
        return SHARED

    def _put_first(self, entry: Entry, name: str, data: bytes) -> str | None:
        """Put an entry's object there, if nobody was first; return its version."""
        try:
            if entry.replaces:
                won = self._bucket.put_if(name, data, entry.replaces)
            else:
                won = self._bucket.put_new(name, data)
        except StoreDown:
            if entry.anew:  # it may be there all the same
                self._remote.removals.tell_later(_replaced(entry))
            raise
        if won is None:
            found = self._bucket.get(name)
            if found is not None and found[0] == data:  # the answer was lost
                return found[1]
        return won

    def _prepare(
        self, entry: Entry, head: bytes, content: Iterator[Any], mine: RemoteClaim | None = None
    ) -> tuple[bytes, str]:
        """Return an entry's object, and the name of the one that its content went to.

        It goes nowhere if the claim turns out to be lost.
        """
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
        for piece in pieces:
            body += piece
            if len(body) > INLINE:
                if mine is not None and not mine.confirm():
                    return b"", ""
                blob = f"{object_name(entry.digest)}.{self._remote.door.urandom(8).hex()}"
                self._bucket.put(blob, chain([bytes(body)], pieces))
                body.clear()
        return entry_object(head, body, blob, checksum.hexdigest()), blob

    def replace(self, entry: Entry, value: Any) -> None:
        """Put a value into the bucket, whatever is there, and have others drop the old one."""
        if self._remote.read_only or not self._remote.outage.usable():
            return
        head, content, _ = entry.send(value, 0.0, None)
        try:
            with self._bucket.budget():
                self._replace(entry, head, content)
        except StoreDown as error:
            self._remote.outage.note(error)

    def _replace(self, entry: Entry, head: bytes, content: Iterator[Any]) -> None:
        data, _ = self._prepare(entry, head, content)
        name = object_name(entry.digest)
        self._put_tags(entry, entry.tags_of(None))
        old = self._bucket.get(name)
        try:
            self._bucket.put(name, data)
        except StoreDown:  # it may be there all the same
            self._remote.removals.tell_later(_replaced(entry))
            raise
        self._remote.removals.tell_surely(_replaced(entry))
        blob = "" if old is None else parts_of(old, entry.digest)[0]
        if blob:
            self._bucket.delete(blob)


def _replaced(entry: Entry) -> dict[str, Any]:
    """Return what is written down for other machines to drop their copies of the old entry."""
    return {"digest": entry.digest.hex()}
