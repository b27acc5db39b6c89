"""The claim of one machine in a bucket: the right to build, for as long as it is renewed.

What it is for: a put that succeeds only if there is none makes it; updates that succeed only if
nobody else has touched it renew it, from a thread, take a dead one over, and end it.  What is
over stays there for the next one to take; `prune_remote` removes it.

Who calls it: `Remote`, which builds under one; `_turn`, which waits for another machine's.  What
may go wrong: `StoreDown`; a claim that is lost meanwhile, which `confirm` tells.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ._bucket import StoreDown
from ._failure import describe as describe_error
from ._keys import describe
from ._log import logger
from ._object import read_record, write_record

if TYPE_CHECKING:
    from typing import Any

    from ._claim import Claim
    from ._protocol import Entry
    from ._remote import Remote

RENEWALS = 3
"""How often a claim is renewed per lease."""

_MOST_REVOKED = 8
"""How many attempts that were revoked a claim tells of: as many as may still be under way."""


class RemoteClaim:
    """A claim in the bucket that this machine wants, or has.

    Parameters
    ----------
    remote
        Whose it is.
    name
        The object's name.
    entry, claim
        What it is for, and the local claim that goes with it.

    Attributes
    ----------
    seen
        What stood there when this claim could not be had: content and version.
    fate
        ``"revoked"`` once the entry was removed meanwhile, ``"taken"`` once another machine has
        the claim.
    """

    def __init__(self, remote: Remote, name: str, entry: Entry, claim: Claim) -> None:
        self._remote = remote
        self._bucket = remote.bucket
        self._door = remote.door
        self._name = name
        self._etag = ""
        self._count = 0
        self._failures = 0
        self._over = False
        self._ended = threading.Event()
        self._changing = threading.Lock()
        self.seen: tuple[bytes, str] | None = None
        self.fate = ""
        self._record: dict[str, Any] = {
            "token": claim.token,
            "host": self._door.host(),
            "machine": remote.machine,
            "pid": self._door.getpid(),
            "started": self._door.time(),
            "lease": remote.lease,
            "key": describe(entry.key, 200),
            "state": "building",
        }

    def take(self, there: tuple[bytes, str] | None) -> bool:
        """Claim; `there` is a claim that is over or dead and to be taken over."""
        if there is not None:
            self._record["revoked"] = _revoked(read_record(there[0]))
        data = write_record({**self._record, "count": self._count})
        if there is None:
            mine = self._bucket.put_new(self._name, data)
        else:
            mine = self._bucket.put_if(self._name, data, there[1])
        mine = mine or self._put_again(data)
        if mine is None:
            return False
        self._etag = mine
        return True

    def start_renewing(self) -> None:
        """Renew it from now on, in a thread."""
        try:
            threading.Thread(target=self._renew, name="atomcache", daemon=True).start()
        except RuntimeError as error:  # no more threads to be had
            logger().warning("a claim is not renewed, other machines may build too: %s", error)

    def _renew(self) -> None:
        period, took = self._remote.lease / RENEWALS, 0.0
        while not self._ended.wait(max(0.0, period - took)):
            began = self._door.monotonic()
            try:
                if not self.confirm():
                    return
            except StoreDown as error:
                logger().info("a claim could not be renewed: %s: %s", self._name, error)
            took = self._door.monotonic() - began  # all of a period, where the store is silent

    def confirm(self, **changes: Any) -> bool:
        """Renew the claim; `False` if it is another's by now, or was revoked."""
        self._bucket.check_process()  # before a lock that a fork may have left locked
        failures = self._failures
        with self._changing:
            if self._over:
                return False
            if self._failures != failures:  # of the renewal that we waited for just now
                raise StoreDown("it did not answer just now")
            self._count += 1
            data = write_record({**self._record, **changes, "count": self._count})
            try:
                mine = self._bucket.put_if(self._name, data, self._etag) or self._put_again(data)
            except StoreDown:
                self._failures += 1
                raise
            if mine is None:
                self._over = True
                self.fate = self._lost_to()
                return False
            self._etag = mine
            self._over = bool(changes)  # nothing more is to be said
            return True

    def _put_again(self, data: bytes) -> str | None:
        """Change a claim that is another's or, if a store's answer was lost, still ours."""
        self.seen = found = self._bucket.get(self._name)
        if found is None:
            return None
        if found[0] == data:
            return found[1]
        record = read_record(found[0])
        if record.get("token") != self._record["token"] or record.get("state") != "building":
            return None
        return self._bucket.put_if(self._name, data, found[1])

    def _lost_to(self) -> str:
        """Return what became of a claim that is ours no more, by what stands there instead."""
        record = {} if self.seen is None else read_record(self.seen[0])
        return "revoked" if not record or self._record["token"] in _revoked(record) else "taken"

    def end(self, state: str = "over", failure: Exception | None = None) -> bool:
        """Give the claim up; tell whether it was ours till now.

        It is not deleted: a store deletes whatever is there, which may be another machine's by
        then.  A failure stays there for those who wait to see.
        """
        self._ended.set()
        if self._over or not self._remote.outage.usable():
            return False
        told = {} if failure is None else {"failure": describe_error(failure)}
        try:
            return self.confirm(state="failed" if told else state, **told)
        except StoreDown as error:
            logger().info("a claim is left for others to take over: %s: %s", self._name, error)
            return False

    def abandon(self) -> None:
        """Leave the claim to whoever takes it over, for a store that does not answer."""
        self._ended.set()
        self._over = True


def _revoked(record: dict[str, Any]) -> list[str]:
    """Return the last attempts whose result must not be kept, by what a claim says."""
    before = record.get("revoked")
    tokens = [str(token) for token in before] if isinstance(before, list) else []
    if record.get("state") == "revoked":
        tokens.append(str(record.get("token")))
    return tokens[-_MOST_REVOKED:]
