"""Whose turn it is to build, of the machines that share a bucket.

What it is for: the owner of a local claim takes the claim in the bucket, or waits for the machine
that has it: it looks less and less often, until what that one builds is there, or it has failed,
or has shown no sign of life for a whole lease, by our own clock.

Who calls it: `Remote`.  What may go wrong: `StoreDown`; `BuildTimeout`; the failure of the machine
that was waited for, which is raised here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._bucket import StoreDown
from ._bucket_claim import RemoteClaim
from ._failure import restore
from ._layout import CLAIM
from ._object import Found, object_name, read_record
from ._record import Record

if TYPE_CHECKING:
    from typing import Any

    from ._claim import Claim
    from ._patience import Patience
    from ._protocol import Entry
    from ._remote import Remote

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 5.0
PAUSE_SHARE = 4
"""A waiter pauses a quarter of the time waited so far, within these bounds (seconds) and
a quarter of the lease: it is late by a quarter at most, and asks some twenty times in the first
minute."""

_OVER = ("over", "failed", "revoked", "alone")
"""States of a claim that nobody builds under; ``"alone"`` if what was built can't be shared."""

_MOST_SEEN = 10_000


class Turns:
    """The claims in one bucket, as this process sees them.

    Parameters
    ----------
    remote
        Whose bucket it is.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._door = remote.door
        self._seen: dict[str, tuple[str, float]] = {}

    def take(
        self, entry: Entry, claim: Claim, started: float, patience: Patience
    ) -> RemoteClaim | Found | None:
        """Return a claim of this machine, or what another machine has published.

        Nothing, where the one that was waited for made what can't be shared: then none has to
        wait for another.
        """
        name = object_name(entry.digest) + CLAIM
        began = self._door.monotonic()
        tokens: set[str] = set()  # of the attempts that we have waited for
        there = self._remote.bucket.get(name) if entry.replaces else None
        tries = 0
        while True:
            mine = RemoteClaim(self._remote, name, entry, claim)
            if there is None:
                if mine.take(None):
                    return self._look_again(entry, started, mine)
                there = mine.seen
            if there is None:  # it has gone between two requests
                found = self._remote.look(entry, started)
                if found is not None:
                    return found
                tries += 1
                if tries > 1:  # many are at it, or the store contradicts itself
                    self._wait(entry, patience, self._door.monotonic() - began, {})
                continue
            record = read_record(there[0])
            if record.get("state") in _OVER and record.get("token") in tokens:
                if record["state"] == "alone":
                    return None
                self._raise_failure(entry, record)
                found = self._remote.look(entry, started)
                if found is not None:
                    return found
            if self._is_free(name, there[1], record):
                if mine.take(there):
                    return self._look_again(entry, started, mine)
                there = mine.seen
                continue
            tokens.add(str(record.get("token")))
            self._wait(entry, patience, self._door.monotonic() - began, record)
            there = self._remote.bucket.get(name)

    def _raise_failure(self, entry: Entry, record: dict[str, Any]) -> None:
        """Raise the failure of an attempt that was waited for, if it failed."""
        if record["state"] == "failed" and entry.options.on_error == "raise":
            error = restore(str(record.get("failure", "")))
            if error is not None:
                raise error

    def _is_free(self, name: str, etag: str, record: dict[str, Any]) -> bool:
        """Tell whether a claim may be taken over."""
        if record.get("state") in _OVER:
            return True
        if record.get("machine") and record["machine"] == self._remote.machine:
            return True  # its owner has lost the local claim, which is ours now
        return self._silent(name, etag) >= self._may_be_silent(record)

    def _may_be_silent(self, record: dict[str, Any]) -> float:
        return max(self._remote.lease, _seconds(record.get("lease")))

    def _silent(self, name: str, etag: str) -> float:
        """Return for how many seconds a claim has not changed, by our own clock.

        It is kept from call to call: those with a short `timeout` would never see a whole lease.
        """
        now = self._door.monotonic()
        seen = self._seen.get(name)
        if seen is None or seen[0] != etag:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            seen = self._seen[name] = etag, now
        return now - seen[1]

    def _look_again(self, entry: Entry, started: float, mine: RemoteClaim) -> RemoteClaim | Found:
        try:
            found = self._remote.look(entry, started)
        except StoreDown:
            mine.abandon()
            raise
        except BaseException:
            mine.end()
            raise
        if found is None:
            return mine
        mine.end()
        return found

    def _wait(
        self, entry: Entry, patience: Patience, waited: float, record: dict[str, Any]
    ) -> None:
        left = patience.left()
        if left is not None and left <= 0:
            raise patience.ended(_owner(record))
        patience.begin()
        longest = min(LONGEST_PAUSE, self._may_be_silent(record) / PAUSE_SHARE)
        pause = min(max(waited / PAUSE_SHARE, FIRST_PAUSE), longest)
        pause *= 0.5 + self._door.random()
        self._door.sleep(pause if left is None else min(pause, left))
        self._remote.bucket.renew_budget()  # what is lost by waiting is not the store's fault


def _seconds(told: object) -> float:
    """Return a lease as another machine told it, if it makes sense."""
    return float(told) if isinstance(told, int | float) and 0 < told <= 86_400 else 0.0


def _owner(record: dict[str, Any]) -> Record | None:
    """Return what a claim says, as that of a folder does; `None` if it can't be understood."""
    told = {name: str(record.get(name, "")) for name in ("token", "pid", "host", "started")}
    local = {"what": "", "boot": "", "device": "0", "locked": "0", "lease": "1"}
    try:
        return Record({**told, **local})
    except ValueError:
        return None
