"""When an entry is good enough: its age, its inputs, its use.

What it is for: a reader says what it wants, mostly by the options of its call; `fresh` judges
the times in an entry's header, and `holds` the files that a factory named as inputs.
`expiry` says when what is published now will end.

Who calls it: the readers of values and paths, and their publication.  What may go wrong: times
of a clock that jumped, which count as too old.
"""

from __future__ import annotations

from ._door import READ
from ._header import HAS_INPUTS, NEVER, OWN_AGE, SIZE, Damaged, glance
from ._watch import USE_RECORDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ._build import Build
    from ._door import Door
    from ._memory import MemoryTier
    from ._options import Options

    class Times(Protocol):
        """What `fresh` needs to know of an entry."""

        @property
        def created(self) -> float: ...
        @property
        def expires(self) -> float: ...
        @property
        def took(self) -> float: ...
        @property
        def flags(self) -> int: ...


CLOCK_SLACK = 5.0
"""Seconds that an entry's time of creation may lie ahead before it is taken for a clock
that jumped: machines that share a folder agree to about a second."""


RACY_SECONDS = 2.0
"""A file changed so recently may be changed again without its times telling, where they
have a coarse grain (FAT's is 2 s); git's index distrusts such files likewise."""


class Want:
    """What a reader accepts beyond the options of its call, where that is not the usual.

    Parameters
    ----------
    started
        When the call began (seconds since the epoch), for those with an age limit:
        what was made since then is fresh however short the limit.  `None`: now.
    since
        When the value's build must have begun at the earliest (seconds since the epoch).
    tolerate
        Seconds beyond its end for which an entry is accepted.
    largest
        Bytes beyond which a payload is not read: event loops read those in a thread.
    memory
        Where to keep the value, if it can be kept.
    damaged
        Called if there is an entry that is damaged.
    quiet
        Whether damage is not logged, because who asks looks again under a claim.
    """

    __slots__ = ("damaged", "largest", "memory", "quiet", "since", "started", "tolerate")

    def __init__(
        self,
        started: float | None = None,
        *,
        since: float = 0.0,
        tolerate: float = 0.0,
        largest: float = NEVER,
        memory: MemoryTier | None = None,
        damaged: Callable[[], None] | None = None,
        quiet: bool = False,
    ) -> None:
        self.started = started
        self.since = since
        self.tolerate = tolerate
        self.largest = largest
        self.memory = memory
        self.damaged = damaged
        self.quiet = quiet


USUAL = Want()

FIRST = Want(quiet=True)
"""What is wanted by a look after which, if there is nothing, the protocol looks again."""


def fresh(door: Door, header: Times, max_age: float | None, want: Want) -> bool:
    """Tell whether an entry is young enough for what somebody wants.

    Parameters
    ----------
    max_age
        The caller's limit; a limit that the factory set itself stands before it.
    """
    own = bool(header.flags & OWN_AGE)
    if header.expires == NEVER and (max_age is None or own) and not want.since:
        return True  # whatever the clocks show
    now = door.time()
    if header.created > now + CLOCK_SLACK:
        return False  # the clock was set back since: how old it is can't be told
    if want.since and not want.since <= header.created - header.took <= header.created <= now:
        return False
    since = (now if want.started is None else min(want.started, now)) - want.tolerate
    if since >= header.expires:
        return False
    return max_age is None or own or since - header.created <= max_age


def holds(meta: dict[str, Any]) -> bool:
    """Tell whether the files that an entry was made from are as they were."""
    from ._inputs import unchanged

    return unchanged(meta["inputs"])


def expiry(door: Door, now: float, options: Options, build: Build | None) -> float:
    """Return when what is published now expires: earlier by a random part of the jitter."""
    limit = options.max_age if build is None else build.age_limit(options.max_age)
    if limit is None:
        return NEVER
    early = 0.0
    if options.jitter:
        early = options.jitter * int.from_bytes(door.urandom(4), "little") / 2**32
    return now + max(0.0, limit - early)


def said(build: Build | None) -> list[tuple[str, str]]:
    """Return what a factory said of its entry, for the meta."""
    if build is None:
        return []
    inputs = [("input", f"{known.hex()} {name}") for name, known in build.inputs.items()]
    return [*(("tag", tag) for tag in build.tags), *inputs]


def flags_of(build: Build | None) -> int:
    """Return the flags of an entry that is built."""
    if build is None:
        return 0
    return (HAS_INPUTS if build.inputs else 0) | (OWN_AGE if build.has_max_age else 0)


def note_use(door: Door, path: str) -> float:
    """Record that an entry is used, if that was not done lately; return how long it took.

    Parameters
    ----------
    path
        A value, or a path entry's meta.  Its time of last access tells when it was used;
        unlike the system's own idea of that, it is right on filesystems that keep none.
    """
    fd = door.open(path, READ)
    try:
        found = door.fstat(fd)
        took = glance(door.read(fd, SIZE)).took
        now = door.time()
        if abs(now - found.st_atime) >= USE_RECORDED:
            door.utime(fd, ns=(int(now * 1e9), found.st_mtime_ns))
    except (Damaged, PermissionError):  # gone bad since, or another user's
        return 0.0
    finally:
        door.close(fd)
    return took
