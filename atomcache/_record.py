"""What a claim says about its owner, and how others read it.

What it is for: whole lines are appended to a claim, by its owner and by whoever removes the entry
meanwhile.  Reading them again gives all that has been said so far.

Who calls it: `_claim`, the protocol, and those who list or show builds.  What may go wrong: a
claim that is not signed yet, or has rubbish in it, says nothing; `OSError` comes from the door.
"""

from __future__ import annotations

from ._failure import restore
from ._header import NEVER
from ._lines import read_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from ._door import Door

_ONE_READ = 65_536
_LARGEST_RECORD = 1 << 20


class Record:
    """What a claim says about its owner.

    Attributes
    ----------
    token
        Names the attempt, and with it the owner's scratch.
    pid, host, started, what
        For people: who builds what, since when (seconds since the epoch).
    boot, device, locked
        Which kernel holds the lock, on which device number, if any lock could be had.
    lease
        Seconds that the owner may stay silent.
    waits_for
        Paths of the claims that the owner waits for at the moment.
    revoked
        Whether the entry was removed since the build began.
    failure, failed_at
        What `_failure.describe` wrote, if the build failed, and when by the owner's clock.
    kind, key, function, tags
        Of the entry, as far as they are known before it is published.
    progress
        Done, total and a note, as `Build.progress` wrote them.
    """

    __slots__ = (
        "boot",
        "device",
        "failed_at",
        "failure",
        "function",
        "host",
        "key",
        "kind",
        "lease",
        "locked",
        "pid",
        "progress",
        "revoked",
        "started",
        "tags",
        "token",
        "waits_for",
        "what",
    )

    def __init__(self, fields: dict[str, str]) -> None:
        self.token = fields["token"]
        int(self.token, 16)  # it becomes part of a path: nothing but hexadecimal digits
        self.pid = int(fields["pid"])
        self.host = fields["host"]
        self.started = float(fields["started"])
        self.what = fields["what"]
        self.boot = fields["boot"]
        self.device = int(fields["device"])
        self.locked = fields["locked"] == "1"
        self.lease = float(fields["lease"])
        if not 0 < self.lease <= 86_400:
            raise ValueError("a lease that nobody would ask for")
        self.waits_for = [path for path in fields.get("waits-for", "").split("\0") if path]
        self.failure = fields.get("failure")
        self.failed_at = float(fields.get("failed-at", "inf"))
        self.revoked = "revoked" in fields
        self.function = fields.get("function", "")
        self.kind = fields.get("kind", "")
        self.key = fields.get("key", "")
        self.progress = fields.get("progress", "")
        self.tags: tuple[str, ...] = ()

    def lock_is_proof(self, door: Door, found: os.stat_result) -> bool:
        """Tell whether a free lock on the claim proves that its owner is dead.

        So it does under the same kernel (boot id) on the same mount (device number).
        """
        return self.locked and self.boot == door.boot_id() and self.device == found.st_dev


def read_record(door: Door, fd: int) -> Record | None:
    """Read a claim; `None` while it is not signed, or if it never will be."""
    try:
        lines = read_lines(read_all(door, fd))
        fields = dict(lines)
        record = Record(fields) if "signed" in fields else None
        if record is not None and "tag" in fields:
            record.tags = tuple(value for name, value in lines if name == "tag")
            if any(name == "untagged" and value in record.tags for name, value in lines):
                record.revoked = True
        return record
    except (KeyError, ValueError):
        return None


def read_all(door: Door, fd: int, largest: int | None = _LARGEST_RECORD) -> bytes:
    """Return all that a claim says, up to a limit, but for the byte that Windows locks."""
    door.lseek(fd, 1, 0)
    data: bytes = door.read(fd, _ONE_READ)
    more = data
    while len(more) == _ONE_READ and (largest is None or len(data) < largest):
        more = door.read(fd, _ONE_READ)
        data += more
    return data


def read_failure(
    door: Door, fd: int, seen: os.stat_result, record: Record
) -> tuple[Exception, float] | None:
    """Return the error that the owner told, and when, if it did and its build still counts.

    Where the owner's clock is another machine's, the time is none that can be compared: never.

    Parameters
    ----------
    seen, record
        What the claim looked like and said before; it is read again if it grew.
    """
    now = record
    if door.fstat(fd).st_size != seen.st_size:
        now = read_record(door, fd) or record
    error = None if now.failure is None or now.revoked else restore(now.failure)
    if error is None:
        return None
    return error, now.failed_at if now.boot == door.boot_id() else NEVER
