"""The claim of one machine in a bucket: the right to build, for as long as it is renewed.

What it is for: a put that succeeds only if there is none makes it; updates that succeed only if
nobody else has touched it renew it, from a thread, and take a dead one over.  It is deleted only
while it is certainly ours, because a store deletes whatever is there.

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
    """

    def __init__(self, remote: Remote, name: str, entry: Entry, claim: Claim) -> None:
        self._remote = remote
        self._bucket = remote.bucket
        self._door = remote.door
        self._name = name
        self._etag = ""
        self._told_at = 0.0
        self._count = 0
        self._lost = False
        self._ended = threading.Event()
        self._changing = threading.Lock()
        self._record = {
            "token": claim.token,
            "host": self._door.host(),
            "pid": self._door.getpid(),
            "started": self._door.time(),
            "lease": remote.lease,
            "key": describe(entry.key, 200),
            "state": "building",
        }

    def take(self, etag: str | None) -> bool:
        """Claim; `etag` is that of a dead claim to be taken over."""
        told = self._door.monotonic()
        data = write_record({**self._record, "count": self._count})
        if etag is None:
            mine = self._bucket.put_new(self._name, data)
        else:
            mine = self._bucket.put_if(self._name, data, etag)
        mine = mine or self._put_again(data)
        if mine is None:
            return False
        self._etag, self._told_at = mine, told
        return True

    def start_renewing(self) -> None:
        """Renew it from now on, in a thread."""
        threading.Thread(target=self._renew, name="atomcache", daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(self._remote.lease / RENEWALS):
            try:
                if not self.confirm():
                    return
            except StoreDown as error:
                logger().info("a claim could not be renewed: %s: %s", self._name, error)

    def confirm(self, **changes: Any) -> bool:
        """Renew the claim; `False` if it is another's by now, or was revoked."""
        with self._changing:
            if self._lost:
                return False
            self._count += 1
            told = self._door.monotonic()
            data = write_record({**self._record, **changes, "count": self._count})
            mine = self._bucket.put_if(self._name, data, self._etag) or self._put_again(data)
            if mine is None:
                self._lost = True
                return False
            self._etag, self._told_at = mine, told
            self._lost = bool(changes)  # nothing more is to be said
            return True

    def _put_again(self, data: bytes) -> str | None:
        """Change a claim that is another's or, if a store's answer was lost, still ours."""
        found = self._bucket.get(self._name)
        record = {} if found is None else read_record(found[0])
        if found is None or record.get("token") != self._record["token"]:
            return None
        if record.get("state") != "building":  # revoked
            return None
        return self._bucket.put_if(self._name, data, found[1])

    def end(self, failure: Exception | None = None) -> None:
        """Give the claim up; a failure stays there for those who wait to see."""
        self._ended.set()
        try:
            if failure is not None:
                self.confirm(state="failed", failure=describe_error(failure))
            else:
                self.let_go()
        except StoreDown as error:
            logger().info("a claim is left for others to take over: %s: %s", self._name, error)

    def let_go(self) -> None:
        """Remove the claim while it is certainly ours.

        A store removes whatever is there.  Nobody else takes it over before it has been silent for
        a whole lease, so within a part of that it is ours.
        """
        if self._lost:
            return
        silent = self._door.monotonic() - self._told_at
        if silent > self._remote.lease / RENEWALS and not self.confirm():
            return
        with self._changing:  # not while it is being renewed
            self._lost = True
            self._bucket.delete(self._name)
