"""Removing from a bucket, and telling the other machines of it.

What it is for: an entry is deleted there, the claim of a build that is under way is revoked, and a
note is left for the other machines to drop their copies (`_following`).  Notes are named by the
store's time, so that nobody has to compare the clocks of two machines.

Who calls it: `Cache`, to remove; `Uploads`, for what was replaced.  What may go wrong:
`StorageError` for a removal that the others can't be told of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._bucket import StoreDown
from ._header import Damaged
from ._layout import CLAIM
from ._log import logger
from ._object import (
    FOLDER,
    GONE,
    REMOVED,
    Found,
    digest_of,
    object_name,
    read_record,
    tag_name,
    write_record,
)

if TYPE_CHECKING:
    from typing import Any

    from ._remote import Remote

_AT_ONCE = 1000
"""Objects that one request of a store removes."""

_OFF = 60.0
"""Seconds by which a clock may differ from the store's before that is seen to."""

_MOST_UNTOLD = 10_000


class Removals:
    """What is removed from one bucket, and written down there for the other machines.

    Parameters
    ----------
    remote
        Whose bucket it is.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._bucket = remote.bucket
        self._ahead: float | None = None
        self._untold: list[dict[str, Any]] = []

    def remove(self, digest: bytes) -> bool:
        """Remove an entry from the bucket, and from the other machines' folders by and by.

        Tells whether there was one.
        """
        if self._remote.read_only:
            return False
        with self._bucket.budget():
            return self._remote.outage.insist(lambda: self._remove(digest, log=True))

    def remove_tagged(self, tag: str) -> set[bytes]:
        """Remove all entries that carry a tag; return the digests of those that were there."""
        removed: set[bytes] = set()
        if self._remote.read_only:
            return removed

        def remove() -> None:
            prefix = tag_name(tag, b"")
            for each in list(self._bucket.list(prefix)):
                digest = digest_of(each.name.rpartition("/")[2])
                if digest is not None and self._remove(digest, log=False):
                    removed.add(digest)
                self._bucket.delete(each.name)
                if digest is not None and self._is_back(digest):
                    self._bucket.put(each.name, b"")
            self.tell({"tag": tag})

        self._remote.outage.insist(remove)
        return removed

    def clear(self) -> None:
        """Remove everything."""
        if self._remote.read_only:
            return

        def clear() -> None:
            names = [each.name for each in self._bucket.list(f"{FOLDER}/")]
            # Claims first: whoever finds its claim gone does not publish, or takes it back.
            names.sort(key=lambda name: not name.endswith(CLAIM))
            names = [name for name in names if not name.startswith(REMOVED)]
            for start in range(0, len(names), _AT_ONCE):
                self._bucket.delete(*names[start : start + _AT_ONCE])
            self.tell({"all": True})

        self._remote.outage.insist(clear)

    def latest(self) -> float:
        """Return when something was removed last, by the store's time; 0 if nothing was."""
        return max((time_of(each.name) for each in self._bucket.list(REMOVED)), default=0.0)

    def since(
        self, when: float, known: set[str]
    ) -> tuple[list[tuple[str, dict[str, Any]]], set[str]]:
        """Return what was removed since a time but for what is known, and the names of all."""
        told, names = [], set()
        for each in self._bucket.list(REMOVED, f"{REMOVED}{int(when * 1000):015d}"):
            names.add(each.name)
            answer = None if each.name in known else self._bucket.get(each.name)
            record = {} if answer is None else read_record(answer[0])
            if record and record.get("by") != self._remote.machine:
                told.append((each.name, record))
        return told, names

    def _is_back(self, digest: bytes) -> bool:
        """Tell whether an entry was built anew since it was removed, or is about to be."""
        name = object_name(digest)
        claim = self._bucket.get(name + CLAIM)
        if claim is not None and read_record(claim[0]).get("state") == "building":
            return True
        found = self._bucket.get(name)
        return found is not None and found[0] != GONE

    def _remove(self, digest: bytes, *, log: bool) -> bool:
        """Remove an entry; first the claim is revoked, so that no build brings it back."""
        name = object_name(digest)
        for _ in range(5):
            claimed = self._bucket.get(name + CLAIM)
            if claimed is None:
                break
            record = read_record(claimed[0])
            if record.get("state") in ("over", "failed", "alone"):
                break
            record["state"] = "revoked"
            if self._bucket.put_if(name + CLAIM, write_record(record), claimed[1]):
                break
        answer = self._bucket.get(name)
        if answer is not None:
            blob, tags = parts_of(answer, digest)
            marks = [tag_name(tag, digest) for tag in tags]
            self._bucket.delete(name, *([blob] if blob else []), *marks)
        if log:
            self.tell({"digest": digest.hex()})
        return answer is not None and answer[0] != GONE

    def tell(self, what: dict[str, Any]) -> None:
        """Write down for the other machines what is to be dropped."""
        name = self._note(what)
        if self._ahead is not None:
            return
        try:
            written = self._bucket.written(name)
        except StoreDown as error:  # what matters has been told
            logger().info("the store's time is not known: %s", error)
            return
        ahead = 0.0 if written is None else self._remote.door.time() - written
        self._ahead = ahead if abs(ahead) > _OFF else 0.0
        if self._ahead:
            self._note(what)
            self._bucket.delete(name)

    def _note(self, what: dict[str, Any]) -> str:
        now = self._remote.door.time() - (self._ahead or 0.0)
        name = f"{REMOVED}{int(now * 1000):015d}-{self._remote.door.urandom(6).hex()}"
        self._bucket.put(name, write_record({**what, "at": now, "by": self._remote.machine}))
        return name

    def tell_surely(self, what: dict[str, Any]) -> None:
        """Do as `tell`, later if it can't be done now: it is about what is published already."""
        try:
            self.tell(what)
        except StoreDown:
            self.tell_later(what)
            raise

    def tell_later(self, what: dict[str, Any]) -> None:
        """Have it told by whoever looks for removals next."""
        if len(self._untold) < _MOST_UNTOLD:
            self._untold.append(what)

    def tell_rest(self) -> None:
        """Tell what could not be told when it happened."""
        while self._untold:
            what = self._untold.pop()
            self.tell_surely(what)


def parts_of(answer: tuple[bytes, str], digest: bytes) -> tuple[str, list[str]]:
    """Return the object that holds an entry's content, if any, and its tags."""
    if answer[0] == GONE:
        return "", []
    try:
        found = Found(*answer, digest)
    except Damaged as why:
        logger().info("the content of a damaged entry is left in the bucket: %s", why)
        return "", []
    return found.blob, found.meta["tags"]


def time_of(name: str) -> float:
    """Return the time that a note's name tells."""
    told = name[len(REMOVED) :].partition("-")[0]
    return int(told) / 1000 if told.isascii() and told.isdecimal() and len(told) == 15 else 0.0
