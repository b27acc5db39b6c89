"""What a filesystem is good for: the trials behind ``atomcache doctor``.

What it is for: `examine` tries, in a private folder, all that the protocol asks of a
filesystem, by the same calls as the protocol, and returns what holds, what does not, and what
the library makes of it there.

Whatever touches the filesystem is done by helpers: processes that run this module as a program
and do one task after another.  The process that called only talks to them, and waits for an
answer no longer than it was told to, so a filesystem that hangs leads to a finding and not to
a hang.  The first helper makes the folder of the trials.  It removes the folder when its input
ends, which it does however the caller ends.

Who calls it: the command line; programs may.  What may go wrong: `FileNotFoundError` and
`NotADirectoryError` for a folder that is none; all else is a finding.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, sleep
from typing import TYPE_CHECKING

from ._claim import LEASE, NO_LOCKS
from ._door import ADD, APPEND, CREATE, PROBE, READ, door
from ._errors import UnsafeDirectoryError, remedy_for
from ._keys import DIGEST_SIZE
from ._layout import CLAIM
from ._patience import LONGEST_PAUSE
from ._publish import _NO_EXCHANGE, _NO_LINKS, STAGED, persist
from ._value import RACY_SECONDS
from ._watch import USE_RECORDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

HOLDS = "holds"
FAILS = "does not hold"
UNKNOWN = "unknown"

PREFIX = ".atomcache-doctor-"
"""How the name of the folder begins in which things are tried."""

PATIENCE = 20.0
"""Seconds for which a filesystem may keep a trial waiting.  Each takes less than one where all is
well; disks that spin up and servers that restart take some ten."""

PROMPT = 5.0
"""Seconds within which those who sleep on a lock have to wake.  They take a few milliseconds; this
is for crowded machines, and short of any lease."""

NEEDED_NAME = 2 * DIGEST_SIZE + len(CLAIM) + 1 + 16 + len(STAGED)
"""Characters of the longest name that the library gives to a file."""

LONGEST_NAME = 255
"""Bytes of a name that users may give to a path entry."""

_GRACE = 1.0
"""Seconds for which those are waited for that were killed, or hang."""

_RACERS = 3
_ROUNDS = 150
_ROUND = 0.0004
"""Seconds from one round of a race to the next, each begun by all at the same moment."""

_RACE = 1.5
"""Seconds after which a trial that is slow on this filesystem is content with what it has."""

_RENAMES = 150
_CHANGES = 20
_LINES = 400
_TRIES = 5
_SHOWN_BLOCK = 8192
_LAST = b"last"

_SHARED = (
    *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2"),
    *("smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs"),
)
"""Filesystems that other machines may have mounted too; those of FUSE come on top."""

_VOLATILE = ("ramfs", "tmpfs")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one trial found.

    Attributes
    ----------
    name
        What was tried.
    verdict
        ``"holds"``, ``"does not hold"``, or ``"unknown"`` where it can't be told.
    detail
        What was measured.
    meaning
        What that means for who puts a cache there; empty if there is nothing to say.
    brief
        Its part of the verdict on the whole, if it has one.
    grave
        Whether it breaks a promise of the library.
    """

    name: str
    verdict: str
    detail: str
    meaning: str = ""
    brief: str = ""
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A filesystem, as the system names it.

    Attributes
    ----------
    kind, mounted, source
        Such as ``"ext4"``, ``"/home"`` and ``"/dev/sda2"``.
    shared
        Whether it is of a kind that several machines can have mounted.
    """

    kind: str
    mounted: str
    source: str
    shared: bool


@dataclass(slots=True)
class Report:
    """All that was found.

    Attributes
    ----------
    asked
        The folder that was asked about, absolute.
    directory
        The folder under which things were tried: that one, or the nearest one above that exists.
    filesystem
        Where it stands, if the system tells.
    findings
        In the order of the trials.
    answered
        Whether the filesystem answered in time.
    left
        The folder of the trials, if it could not be removed.
    """

    asked: str
    directory: str
    filesystem: Filesystem | None = None
    findings: list[Finding] = field(default_factory=list)
    answered: bool = True
    left: str | None = None

    @property
    def ok(self) -> bool:
        """Whether a cache keeps its promises there."""
        return not any(each.grave for each in self.findings)

    @property
    def verdict(self) -> str:
        """What all findings come to, in a sentence."""
        grave = dict.fromkeys(each.brief for each in self.findings if each.grave)
        if grave:
            return f"Do not put a cache here: {'; '.join(grave)}."
        briefs = dict.fromkeys(each.brief for each in self.findings if each.brief)
        if briefs:
            return f"A cache works here, but {'; '.join(briefs)}."
        return "Everything the protocol needs holds here."


class NoAnswer(Exception):
    """A helper did not answer in time, or ended."""


def examine(
    directory: str | os.PathLike[str],
    *,
    exact: bool = True,
    patience: float = PATIENCE,
    tell: Callable[[Report], object] | None = None,
) -> Report:
    """Try what the filesystem under a folder is good for.

    It takes about a second, and leaves nothing behind.

    Parameters
    ----------
    directory
        The folder.
    exact
        Whether it must be there.  If not, the nearest folder above it that is there will do.
    patience
        Seconds after which a filesystem that does not answer counts as hung.
    tell
        Called after each finding, with the report so far.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder, and it must be there.
    """
    asked = os.path.abspath(directory)
    report = Report(asked, asked, filesystem_of(asked))
    crew = _Crew(asked, patience)
    try:
        for finding in _findings(crew, report, exact):
            report.findings.append(finding)
            if tell is not None:
                tell(report)
    finally:
        report.left = crew.end(patience if report.answered else min(patience, _GRACE))
    return report


def _findings(crew: _Crew, report: Report, exact: bool) -> Iterator[Finding]:
    current = _FINDING
    try:
        report.directory, real = crew.keeper.ask("find", crew.asked, exact)
        report.filesystem = filesystem_of(real)
        yield _filesystem(report.filesystem)
        current = "writing"
        crew.folder = crew.keeper.ask("make", report.directory)
        for name in _OLD:
            crew.keeper.ask("write", crew.path(name), name)
        yield Finding(current, HOLDS, "this user can make files and folders")
        for name, trial in TRIALS:
            current = name
            try:
                yield from trial(crew)
            except OSError as error:
                yield _trouble(name, error)
                crew.settle()
    except NoAnswer as why:
        report.answered = False
        yield _hung(current, str(why))
    except OSError as error:
        if exact and current == _FINDING and isinstance(error, _NO_FOLDER):
            raise
        yield _trouble(current, error)


_FINDING = "an answer"

_OLD = ("old", "other")
"""Files that are made first and looked at last: some filesystems forget after a second."""

_NO_FOLDER = (FileNotFoundError, NotADirectoryError)


# -- where it stands -------------------------------------------------------------------


def filesystem_of(path: str) -> Filesystem | None:
    """Tell on which filesystem a path stands, without touching it; `None` if nobody says."""
    found = None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            rows = [line.split() for line in table]
    except OSError:
        return None
    for row in rows:
        mounted = _unescape(row[4])
        inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
        # The last one that was mounted in a place covers those before.
        if inside and (found is None or len(mounted) >= len(found.mounted)):
            kind, source = row[row.index("-") + 1 :][:2]
            found = Filesystem(kind, mounted, _unescape(source), _is_shared(kind))
    return found


def _unescape(text: str) -> str:
    r"""Undo what the kernel does to blanks in paths: ``\040``."""
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _is_shared(kind: str) -> bool:
    return kind in _SHARED or kind == "fuse" or kind.startswith("fuse.")


def _filesystem(found: Filesystem | None) -> Finding:
    name = "filesystem"
    if found is None:
        return Finding(name, UNKNOWN, "this system does not tell which it is")
    detail = f"{found.kind}, mounted at {found.mounted} from {found.source}"
    if found.shared:
        return Finding(
            name,
            UNKNOWN,
            f"{detail}; what other machines see can't be tried from this one",
            "If other machines use this folder too, their waiters can't sleep on the locks of "
            f"this one: they look at the claim, with a growing pause of at most {LONGEST_PAUSE:g} "
            "s. A builder of another machine counts as dead when it has been silent for a lease "
            f"({LEASE:g} s; Cache(lease=...)). The age of an entry is told by the clock of the "
            "machine that made it. Two machines may do the same work; the first result is kept. "
            "Among the processes of one machine all is as told below.",
            "if other machines use it too, work may be done twice and their waiters poll",
        )
    if found.kind in _VOLATILE:
        return Finding(name, HOLDS, detail, "It is kept in memory, and gone after a restart.")
    return Finding(name, HOLDS, detail)


def _hung(name: str, why: str) -> Finding:
    return Finding(
        name,
        FAILS,
        why,
        "Whoever asks for an entry there may hang as this trial did. Look whether a server or a "
        "disk is gone, and try again.",
        "the filesystem does not answer",
        grave=True,
    )


def _trouble(name: str, error: OSError) -> Finding:
    """Say what an error means that no trial expects: the library would pass it on."""
    what = error.strerror or str(error)
    remedy = remedy_for(error)
    if name == "writing":
        return Finding(
            name,
            FAILS,
            f"no folder can be made here: {what}",
            f"What is stored there can be read, but nothing can be stored. {remedy}, or pass "
            "on_store_error='bypass' to build without storing.",
            f"nothing can be written ({what})",
            grave=True,
        )
    if error.errno == errno.ENOENT:
        return Finding(
            name,
            FAILS,
            "what one process makes another one does not find",
            "Work is done more than once, and entries that were just made may seem to be gone.",
            "processes do not see what others make",
            grave=True,
        )
    return Finding(
        name,
        FAILS,
        what,
        f"The library would raise StorageError for the same reason. {remedy}.",
        f"the trial of {name} failed ({what})",
        grave=True,
    )


# -- the trials ------------------------------------------------------------------------


def _creation(crew: _Crew) -> Iterator[Finding]:
    rounds, wrong = crew.race("create")
    name = "exclusive creation"
    if not wrong:
        yield Finding(name, HOLDS, f"{_RACERS} processes raced {rounds} times, one won each time")
        return
    yield Finding(
        name,
        FAILS,
        f"{_RACERS} processes raced {rounds} times, and {wrong} times not exactly one won",
        "Several processes may each take themselves for the one that builds: work is done more "
        "than once. The first result is kept, and nothing torn is ever returned.",
        "several processes can create the same file exclusively, so work is done more than once",
        grave=True,
    )


_LOCKS = "locks between processes"
_LOCKS_OF_ONE = "locks within a process"
_SLEEP = "sleep on a lock"
_LOCKS_OF_DEAD = "locks after a kill"


def _locks(crew: _Crew) -> Iterator[Finding]:
    path = crew.path("lock")
    holder, other, sleeper = crew.others
    crew.keeper.ask("write", path, "locked")
    try:
        yes = holder.ask("lock", path, True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        yield Finding(
            _LOCKS,
            FAILS,
            f"there are none: {error.strerror}",
            f"Waiters look at the claim, with a growing pause of at most {LONGEST_PAUSE:g} s, "
            "instead of sleeping. A builder that was killed is replaced when it has been silent "
            f"for a lease ({LEASE:g} s; Cache(lease=...)). Cache.hold keeps nothing from being "
            "evicted.",
            "there are no locks: waiters poll, and a killed builder is replaced after a lease",
        )
        yield from _untried("there are no locks", _LOCKS_OF_ONE, _SLEEP, _LOCKS_OF_DEAD)
        return
    granted = [how for how in (True, False) if other.ask("lock", path, how)]
    if not yes or granted:
        yield Finding(
            _LOCKS,
            FAILS,
            "granted to two processes at once" if granted else "refused although nobody has it",
            "Waiters take a builder that lives for dead, and build too: work is done more than "
            "once. The first result is kept, and nothing torn is ever returned.",
            "locks lie, so work is done more than once",
            grave=True,
        )
        yield from _untried("locks lie", _LOCKS_OF_ONE, _SLEEP, _LOCKS_OF_DEAD)
        return
    rounds, wrong = crew.race("lock")
    yield Finding(
        _LOCKS,
        FAILS if wrong else HOLDS,
        f"refused while another process had it; {_RACERS} processes raced {rounds} times, "
        + (f"and {wrong} times not exactly one won" if wrong else "one won each time"),
        *(("", "locks are granted to several now and then", True) if wrong else ()),
    )
    alone = _locks_of_one(holder, other, path)
    yield alone
    if alone.grave:
        yield from _untried("a lock is not kept", _SLEEP, _LOCKS_OF_DEAD)
    else:
        yield from _locks_of_dead(crew, holder, other, sleeper, path)


def _untried(why: str, *names: str) -> Iterator[Finding]:
    for name in names:
        yield Finding(name, UNKNOWN, f"not tried: {why}")


def _locks_of_one(holder: _Helper, other: _Helper, path: str) -> Finding:
    again = holder.ask("lock", path, True)
    lost = other.ask("lock", path, True)
    if lost:
        other.ask("let_go", path)
    if not again and not lost:
        return Finding(
            _LOCKS_OF_ONE, HOLDS, "refused to the process that has it; a second look keeps it"
        )
    return Finding(
        _LOCKS_OF_ONE,
        FAILS,
        "given up when the same process looks a second time"
        if lost
        else "granted a second time to the process that has it",
        "A process that uses two Cache objects for one folder builds twice, and may make others "
        "take its builds for dead.",
        "a process does not exclude itself, so work may be done more than once",
        grave=True,
    )


def _locks_of_dead(
    crew: _Crew, holder: _Helper, other: _Helper, sleeper: _Helper, path: str
) -> Iterator[Finding]:
    """Try whether those who sleep wake, when the lock is let go and when its owner is killed."""
    sleeper.start("wait", path)
    early = sleeper.answered(0.05)
    began = monotonic()
    holder.ask("let_go", path)
    woke = sleeper.answered(PROMPT)
    took = monotonic() - began
    if early or not woke:
        yield Finding(
            _SLEEP,
            FAILS,
            "woken while the lock was held" if early else f"not woken within {PROMPT:g} s",
            "Who waits for somebody else's build may "
            + ("build too." if early else "never wake (unless timeout= is given)."),
            "waiters wake early and build too" if early else "waiters never wake",
            grave=True,
        )
        yield from _untried("sleeping does not work", _LOCKS_OF_DEAD)
        crew.replace(sleeper)
        return
    sleeper.answer()
    yield Finding(_SLEEP, HOLDS, f"woke {_ms(took)} after the lock was let go")

    holder.ask("lock", path, True)
    sleeper.start("wait", path)
    sleeper.answered(0.05)
    began = monotonic()
    holder.kill()
    woke = sleeper.answered(PROMPT)
    took = monotonic() - began
    while not (free := other.ask("lock", path, True)) and monotonic() - began < PROMPT:
        sleep(0.001)
    crew.replace(holder)
    if woke and free:
        sleeper.answer()
        other.ask("let_go", path)
        yield Finding(
            _LOCKS_OF_DEAD, HOLDS, f"free, and who slept on it awake, {_ms(took)} after the kill"
        )
        return
    yield Finding(
        _LOCKS_OF_DEAD,
        FAILS,
        f"not {'free' if woke else 'free, and who slept on it not awake,'} {PROMPT:g} s after the "
        "kill of its owner",
        "Who waits for a builder that was killed may wait for ever, unless timeout= is given.",
        "a killed builder keeps its lock, so that others wait for ever",
        grave=True,
    )
    crew.replace(sleeper)


def _renames(crew: _Crew) -> Iterator[Finding]:
    place = crew.path("renamed")
    crew.keeper.ask("write", place, "-" * _SHOWN_BLOCK)
    yield _watched(
        crew,
        place,
        "replace_often",
        "rename over a file",
        "An entry that is replaced may be missed, and built anew though there was no need.",
        "an entry may be missing while it is replaced",
    )
    name = "rename of folders"
    trouble = crew.keeper.ask("rename_folders", crew.path("folders"))
    if not trouble:
        yield Finding(name, HOLDS, "done in one step, refused where a filled folder is")
    else:
        yield Finding(
            name,
            FAILS,
            trouble,
            "Files and folders that are built (get_or_create_path) may not be published, or the "
            "second one to finish may replace the first. Values are not concerned.",
            "folders can't be renamed as paths need it",
            grave=True,
        )


def _watched(
    crew: _Crew, place: str, task: str, name: str, meaning: str, brief: str, made: str = ""
) -> Finding:
    """Let one process read a file while another one replaces it."""
    watcher = crew.others[0]
    seen = f"{place}-seen"
    watcher.start("watch", os.path.join(place, made) if made else place, seen, crew.patience / 2)
    try:
        times = crew.keeper.ask(task, place, made, seen)
    except OSError:
        crew.settle()
        raise
    reads, missing, mixed = watcher.answer()
    told = f"{times} times while another process read {reads} times"
    if mixed:
        return Finding(
            name,
            FAILS,
            f"{told}, of which {mixed} times parts of two",
            "A reader may see half of one entry and half of another. Values have a checksum and "
            "are built anew then; files and folders that are built have none.",
            "readers see parts of two files while one is replaced",
            grave=True,
        )
    if missing:
        return Finding(name, FAILS, f"{told}, of which {missing} times nothing", meaning, brief)
    return Finding(name, HOLDS, f"{told}, always the whole old or the whole new one")


def _exchange(crew: _Crew) -> Iterator[Finding]:
    name = "exchange of two names"
    place = crew.path("exchanged")
    crew.keeper.ask("make_folder", place)
    meaning = (
        "While a file or folder that was built is refreshed, a reader may find nothing for a "
        "moment: the old one is moved away, and then the new one moved in."
    )
    brief = "a path may be missing for a moment while it is refreshed"
    try:
        yield _watched(crew, place, "exchange_often", name, meaning, brief, "made")
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            yield Finding(
                name,
                FAILS,
                str(error.strerror),
                "Refreshing a file or folder that was built raises StorageError.",
                "paths can't be refreshed",
                grave=True,
            )
            return
        yield Finding(name, FAILS, f"it can't be done here: {error.strerror}", meaning, brief)


def _links(crew: _Crew) -> Iterator[Finding]:
    name = "hard links"
    try:
        rounds, wrong = crew.race("link")
        trouble = crew.keeper.ask("link", crew.path("linked"))
    except OSError as error:
        known = error.errno in _NO_LINKS
        yield Finding(
            name,
            FAILS,
            f"there are none: {error.strerror}" if known else str(error.strerror),
            "A value is published by a look and a rename instead. Where work is done twice, the "
            "second result may replace the first."
            if known
            else "Publishing a value raises StorageError.",
            "" if known else "values can't be published",
            not known,
        )
        return
    if wrong or trouble:
        yield Finding(
            name,
            FAILS,
            trouble
            or f"{_RACERS} processes raced {rounds} times for a name, and {wrong} times "
            "not exactly one won",
            "Where work is done twice, the second result may replace the first.",
            "the second result may replace the first where work is done twice",
        )
        return
    yield Finding(
        name,
        HOLDS,
        f"{_RACERS} processes raced {rounds} times for a name, one won each time",
    )


def _appending(crew: _Crew) -> Iterator[Finding]:
    name = "appending"
    path = crew.path("lines")
    crew.all("append", path, _LINES)
    lines, whole = crew.keeper.ask("count_lines", path)
    wanted = _RACERS * _LINES
    if lines == whole == wanted:
        yield Finding(name, HOLDS, f"all {wanted} lines that {_RACERS} processes added are whole")
        return
    yield Finding(
        name,
        FAILS,
        f"of {wanted} lines that {_RACERS} processes added at the same time, {whole} are whole",
        "A builder may miss the word that its entry was removed meanwhile, and bring it back. "
        "Estimates of how full the cache is may be off.",
        "an entry that is removed while it is built may come back",
    )


def _open_files(crew: _Crew) -> Iterator[Finding]:
    name = "removal of open files"
    path = crew.path("open")
    reader = crew.others[0]
    crew.keeper.ask("write", path, "still there")
    reader.ask("hold_open", path)
    try:
        left = crew.keeper.ask("remove_and_list", path)
    except OSError as error:
        usual = door.open_files_block
        yield Finding(
            name,
            FAILS,
            f"refused: {error.strerror}",
            "The library closes what it removes first, and tries again while somebody reads it."
            if usual
            else "Claims are left behind. Taking over from a builder that was killed, refreshing "
            "and removing raise StorageError.",
            "" if usual else "files that somebody has open can't be removed",
            not usual,
        )
        reader.ask("read_held", path)
        return
    try:
        kept = reader.ask("read_held", path) == "still there"
    except OSError:
        kept = False
    if not kept:
        yield Finding(
            name,
            FAILS,
            "what was open can't be read any more",
            "Those who wait for a build that fails may miss its error, and try for themselves. "
            "Reading an entry while it is replaced may fail.",
            "what is removed can't be read by those who have it open",
            grave=True,
        )
    elif left:
        yield Finding(
            name,
            HOLDS,
            f"the filesystem keeps it under another name meanwhile ({left[0]})",
            "Such names vanish when the file is closed; a folder can't be removed before.",
        )
    else:
        yield Finding(name, HOLDS, "who has it open can read it, and its name is free at once")


def _names(crew: _Crew) -> Iterator[Finding]:
    name = "upper and lower case"
    one, changed = crew.keeper.ask("spell", crew.path("names"))
    yield Finding(
        name,
        FAILS if one else HOLDS,
        "'a' and 'A' are one name" if one else "'a' and 'A' are two names",
        "The cache does not mind, its own names are all in lower case. A builder must not make "
        "two files whose names differ in nothing else."
        if one
        else "",
    )
    name = "spelling of names"
    if not changed:
        yield Finding(name, HOLDS, "names are listed as they were given")
    else:
        grave = any(each.isascii() and each.islower() for each in changed)
        yield Finding(
            name,
            FAILS,
            f"listed otherwise than given: {', '.join(map(ascii, changed))}",
            "Listings, pruning and reaping find nothing, and paths can't be stored."
            if grave
            else "What a builder makes may be listed under names that are spelled differently.",
            "the cache's own names are not listed as they were given" if grave else "",
            grave,
        )
    name = "length of names"
    longest = crew.keeper.ask("longest_name", crew.path("longest"))
    detail = f"{longest} bytes" + ("" if longest < LONGEST_NAME else " or more")
    if longest < NEEDED_NAME:
        meaning = f"The library needs {NEEDED_NAME}."
        brief = f"names of {NEEDED_NAME} bytes are too long"
        yield Finding(name, FAILS, detail, meaning, brief, grave=True)
    elif longest < LONGEST_NAME:
        meaning = (
            f"The library needs {NEEDED_NAME}. The name= of a path, and the names that a builder "
            f"gives, can't be as long as elsewhere ({LONGEST_NAME} bytes); a longer one raises "
            "StorageError."
        )
        yield Finding(name, FAILS, detail, meaning)
    else:
        yield Finding(name, HOLDS, f"{detail}; the library needs {NEEDED_NAME}")
    name = "length of paths"
    most = crew.keeper.ask("longest_path", crew.path())
    own = len(os.fsencode(crew.asked))
    needed = own + len("/v1/ab/") + NEEDED_NAME + 1 + LONGEST_NAME
    if most is None:
        yield Finding(name, UNKNOWN, "this system does not tell")
    elif needed > most:
        yield Finding(
            name,
            FAILS,
            f"{most} bytes, of which this folder takes {own}",
            "Entries, or files with long names in them, can't be made so deep.",
            "the path of this folder is too long",
            needed - LONGEST_NAME > most,
        )
    else:
        yield Finding(name, HOLDS, f"{most} bytes, of which this folder takes {own}")


def _times(crew: _Crew) -> Iterator[Finding]:
    path = crew.path("times")
    name = "times of change"
    grain, zero, natural, ahead = crew.keeper.ask("times", path)
    steps = "" if natural is None else f"; two writes differ by {_ms(natural / 1e9)}"
    if grain is None:
        yield Finding(
            name,
            FAILS,
            "they can't be set",
            "Storing a file or folder that was built raises StorageError. Builders on other "
            "machines seem dead.",
            "times can't be set, as paths need it",
            grave=True,
        )
    elif grain >= 10**9:
        yield Finding(
            name,
            FAILS,
            f"kept to {grain / 1e9:g} s",
            f"A lease must be longer than {3 * grain / 1e9:g} s. An input that changes within "
            f"{RACY_SECONDS:g} s after it was read, to the same size, is told apart only because "
            "files that young are always read again.",
        )
    else:
        yield Finding(name, HOLDS, f"kept to {_ms(grain / 1e9)}{steps}")
    if grain is not None and not zero:
        yield Finding(
            "times long ago",
            FAILS,
            "1970 can't be kept",
            "Each look for a file or folder that was built reads its meta, which takes a few "
            "microseconds more.",
        )
    name = "times of access"
    off = crew.keeper.ask("access", path)
    if off is not None and off < USE_RECORDED:
        yield Finding(name, HOLDS, "kept to the hour at least, as the least recently used need it")
    else:
        yield Finding(
            name,
            FAILS,
            "kept to the day" if off is not None and off <= 86_400 else "not kept",
            "Limits (max_bytes, max_entries, max_idle) do not know what was used last: they "
            "may remove what is in use. It is built anew when it is asked for.",
            "limits do not know what was used last",
        )
    name = "clock"
    if abs(ahead) <= RACY_SECONDS + (grain or 0) / 1e9:
        yield Finding(name, HOLDS, "new files have the time of this machine")
    else:
        way = "ahead of" if ahead > 0 else "behind"
        yield Finding(
            name,
            FAILS,
            f"that of the filesystem is {abs(ahead):.1f} s {way} this machine's",
            "An input that changes within seconds after it was read may be taken for unchanged. "
            "Set the clocks by NTP.",
            "its clock is not that of this machine, so quick changes of inputs may be missed",
        )


def _mapping(crew: _Crew) -> Iterator[Finding]:
    name = "memory mapping"
    try:
        trouble = crew.keeper.ask("map", crew.path("mapped"))
    except OSError as error:
        trouble = str(error.strerror)
    if not trouble:
        yield Finding(name, HOLDS, "a mapped file has the bytes of the file, and keeps its own")
        return
    yield Finding(
        name,
        FAILS,
        trouble,
        "Large arrays are mapped when they are read, which raises StorageError or returns "
        "nothing here. Other values are read as everywhere.",
        "large arrays can't be read back",
        grave=True,
    )


def _identity(crew: _Crew) -> Iterator[Finding]:
    name = "identity of files"
    old, other = map(crew.path, _OLD)
    seen = [each.ask("identity", old) for each in (crew.keeper, *crew.others[:2], crew.keeper)]
    one = len({tuple(pair) for each in seen for pair in each}) == 1
    if one and seen[0] != crew.keeper.ask("identity", other):
        yield Finding(name, HOLDS, "device and inode number stay the same")
        return
    yield Finding(
        name,
        FAILS,
        "device and inode number change by themselves" if not one else "two files have the same",
        "A builder can't tell whether a claim is still its own. Nobody builds, and whoever asks "
        "for an entry that is not there waits for ever, unless timeout= is given.",
        "files have no lasting identity, so that nothing is ever built",
        grave=True,
    )


def _syncing(crew: _Crew) -> Iterator[Finding]:
    name = "forcing onto the disk"
    try:
        took = crew.keeper.ask("sync", crew.path("synced"))
    except OSError as error:
        yield Finding(
            name,
            FAILS,
            str(error.strerror),
            "Storing a file or folder that was built raises StorageError, unless durable=False is "
            "passed. Values are not concerned.",
            "paths can't be stored unless durable=False is passed",
            grave=True,
        )
        return
    meaning = ""
    if took > 0.05:
        meaning = (
            f"Storing a file or folder that was built takes some {_ms(5 * took)} more than "
            "building it; durable=False does without. Values are not concerned."
        )
    yield Finding(name, HOLDS, f"{_ms(took)} for a small file (median)", meaning)


def _rights(crew: _Crew) -> Iterator[Finding]:
    name = "modes"
    owner, user, wrong = crew.keeper.ask("rights", crew.path("rights"))
    if wrong is None:
        yield Finding(name, UNKNOWN, "this system has none")
    elif not wrong:
        yield Finding(name, HOLDS, "files are 0600 and folders 0700 when asked for")
    else:
        yield Finding(
            name,
            FAILS,
            wrong,
            "Who may read and write the cache is up to how the filesystem is mounted (umask=, "
            "fmask= and dmask= for some), and not private by itself.",
            "entries are as private as the mount makes them, not more",
        )
    name = "owner"
    if user is None:
        yield Finding(name, UNKNOWN, "this system has none")
    elif owner == user:
        yield Finding(name, HOLDS, f"what this user makes belongs to it (user {user})")
    else:
        yield Finding(
            name,
            FAILS,
            f"what user {user} makes belongs to user {owner}",
            "Codec 'pickle' refuses such entries, unless secret= is given.",
        )
    name = "a place for pickles"
    why, inside = crew.keeper.ask("pickles", crew.asked, crew.path("rights"))
    if why is None:
        yield Finding(name, HOLDS, "nobody else can write here")
    else:
        reason, _, remedy = why.partition("because ")[2].partition(": ")
        hint = " A cache folder of its own inside would do." if inside is None else ""
        yield Finding(
            name,
            FAILS,
            reason.partition(". ")[0],
            "Codec 'pickle' refuses this place, as unpickling runs what it reads: "
            f"{remedy}.{hint}",
        )


def _room(crew: _Crew) -> Iterator[Finding]:
    name = "room"
    room, files = crew.keeper.ask("room", crew.path())
    if room is None:
        yield Finding(name, UNKNOWN, "this filesystem does not tell")
        return
    detail = f"{room / 1e9:,.1f} GB" if room >= 1e8 else f"{room / 1e6:,.1f} MB"
    detail += "" if files is None else f" and {files:,} files"
    if room < 10_000_000 or (files is not None and files < 1000):
        meaning = "What does not fit raises StorageError, or is not stored on request."
        yield Finding(name, FAILS, f"only {detail} left", meaning, "there is little room")
    else:
        yield Finding(name, HOLDS, f"{detail} left")


TRIALS: tuple[tuple[str, Callable[[_Crew], Iterable[Finding]]], ...] = (
    ("exclusive creation", _creation),
    (_LOCKS, _locks),
    ("rename", _renames),
    ("exchange of two names", _exchange),
    ("hard links", _links),
    ("appending", _appending),
    ("removal of open files", _open_files),
    ("names", _names),
    ("times", _times),
    ("memory mapping", _mapping),
    ("identity of files", _identity),
    ("forcing onto the disk", _syncing),
    ("owner and modes", _rights),
    ("room", _room),
)


def _ms(seconds: float) -> str:
    """Return a short time for people."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    for unit in ("ms", "us"):
        seconds *= 1000
        if seconds >= 1:
            return f"{seconds:.3g} {unit}"
    return f"{seconds * 1000:.0f} ns"


# -- the helpers, seen from the caller -------------------------------------------------


class _Helper:
    """A process that does what it is told."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._line: str | None = None
        self.busy = False
        here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One that hangs must not keep anything open that somebody else reads.
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            # Ctrl-C is for the caller, who then lets the helpers end in order.
            start_new_session=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def start(self, task: str, *arguments: Any) -> None:
        """Give out a task; its answer has to be fetched before the next one."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([task, *arguments]) + "\n")
            self._process.stdin.flush()
            self.busy = True
        except BrokenPipeError:
            raise NoAnswer("a process of the trial ended by itself") from None

    def answered(self, within: float) -> bool:
        """Tell whether there is an answer, or will be in time."""
        try:
            self._line = self._line or self._lines.get(timeout=within)
        except Empty:
            return False
        return True

    def answer(self) -> Any:
        """Return the answer; raise the `OSError` that it is, or `NoAnswer`."""
        if not self.answered(self._patience):
            raise NoAnswer(f"no answer within {self._patience:g} s")
        line, self._line, self.busy = self._line, None, False
        if not line:
            raise NoAnswer("a process of the trial ended by itself")
        answer, error, mistake = json.loads(line)
        if mistake is not None:
            raise RuntimeError(f"a trial has a mistake:\n{mistake}")
        if error is not None:
            raise OSError(*error)
        return answer

    def ask(self, task: str, *arguments: Any) -> Any:
        """Have a task done and return its answer."""
        self.start(task, *arguments)
        return self.answer()

    def kill(self) -> None:
        """End the process as the kernel does; not even that ends who hangs in the kernel."""
        self._process.kill()

    def end(self, within: float) -> bool:
        """Let the process end; `False` if it doesn't, or can't remove what it made."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(within)
        except subprocess.TimeoutExpired:
            Thread(target=process.wait, daemon=True).start()  # to leave no zombie
            return False
        self._reader.join()
        process.stdout.close()
        return process.returncode == 0


class _Crew:
    """The helpers of one examination: one that keeps the folder, and those who race."""

    def __init__(self, asked: str, patience: float) -> None:
        self.asked = asked
        self.patience = patience
        self.folder: str | None = None
        self.keeper = _Helper(patience)
        self.others: list[_Helper] = []
        try:
            for _ in range(_RACERS):
                self.others.append(_Helper(patience))
        except BaseException:
            self.end(_GRACE)
            raise

    def path(self, name: str = "") -> str:
        """Return a path in the folder of the trials."""
        assert self.folder is not None
        return os.path.join(self.folder, name) if name else self.folder

    def all(self, task: str, *arguments: Any) -> list[Any]:
        """Have all racers do a task at the same time; return their answers."""
        for each in self.others:
            each.start(task, *arguments)
        answers, trouble = [], None
        for each in self.others:
            try:
                answers.append(each.answer())
            except OSError as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return answers

    def race(self, what: str) -> tuple[int, int]:
        """Race for something; return how often, and how often not exactly one has won."""
        found = self.all("race", what, self.path(f"race-{what}-"), monotonic() + 0.02)
        self.all("end_race")  # only now: who is late must find locks taken
        rounds = min(tried for tried, _ in found)
        won = [turn for _, turns in found for turn in turns]
        return rounds, sum(won.count(turn) != 1 for turn in range(rounds))

    def replace(self, helper: _Helper) -> None:
        """Kill a racer, and have another one in its place."""
        helper.kill()
        helper.end(_GRACE)
        self.others[self.others.index(helper)] = _Helper(self.patience)

    def settle(self) -> None:
        """Have nobody at work any more, after a trial that broke off."""
        for each in self.others:
            if each.busy:
                self.replace(each)

    def end(self, within: float) -> str | None:
        """End all helpers; return the folder of the trials if it is not removed in time."""
        for each in self.others:
            each.kill()
        until = monotonic() + _GRACE
        for each in self.others:
            each.end(max(0.0, until - monotonic()))
        # Who keeps the folder is never killed: if it hangs, it removes it when it can.
        return None if self.keeper.end(within) else self.folder


# -- the helpers, seen from inside -----------------------------------------------------


class _Tasks:
    """What a helper can do: each public method is a task."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._locked: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._kept: list[int] = []

    def find(self, directory: str, exact: bool) -> tuple[str, str]:
        """Return the folder, or the nearest one above it, and where it really stands."""
        place = directory
        while True:
            try:
                os.stat(place)
                break
            except _NO_FOLDER:
                if exact or place == os.path.dirname(place):
                    raise
            place = os.path.dirname(place)
        if exact and not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return place, os.path.realpath(place)

    def make(self, place: str) -> str:
        """Make the folder of the trials."""
        import tempfile

        self._folder = tempfile.mkdtemp(prefix=PREFIX, dir=place)
        return self._folder

    def _end(self) -> bool:
        """Remove the folder of the trials; tell whether it is gone."""
        if self._folder is None:
            return True
        for fd in [*self._locked.values(), *self._open.values(), *self._kept]:
            os.close(fd)
        for _ in range(_TRIES):
            try:
                door.remove_tree(self._folder)
            except OSError:  # it is cautious, and gives up where files change their identity
                for folder, _, files in os.walk(self._folder, topdown=False):
                    with suppress(OSError):
                        for name in files:
                            os.unlink(os.path.join(folder, name))
                        os.rmdir(folder)
            if not os.path.lexists(self._folder):
                return True
            sleep(_RACE / _TRIES)  # some filesystems show late what others made
        return False

    def write(self, path: str, text: str) -> None:
        """Make a file."""
        fd = os.open(path, CREATE, 0o600)
        try:
            door.write(fd, text.encode())
        finally:
            os.close(fd)

    # -- one winner ------------------------------------------------------------------

    def race(self, what: str, prefix: str, start: float) -> tuple[int, list[int]]:
        """Try for one name after another at the same moments as others do."""
        own = f"{prefix}of-{os.getpid()}"
        if what == "link":
            self.write(own, "linked")
        won: list[int] = []
        end = max(start, monotonic()) + _RACE
        for turn in range(_ROUNDS):
            if monotonic() > end:
                return turn, won
            while monotonic() < start + turn * _ROUND:
                pass
            if self._wins(what, f"{prefix}{turn}", own):
                won.append(turn)
        return _ROUNDS, won

    def end_race(self) -> None:
        """Let go of what was won."""
        for fd in self._kept:
            os.close(fd)
        self._kept.clear()

    def _wins(self, what: str, path: str, own: str) -> bool:
        try:
            if what == "link":
                os.link(own, path)
            elif what == "create":
                os.close(os.open(path, CREATE | APPEND, 0o600))
            else:
                fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                self._kept.append(fd)
                return door.lock_exclusive(fd)
        except FileExistsError:
            return False
        return True

    def lock(self, path: str, exclusive: bool) -> bool:
        """Try for a lock and keep it; what is refused is closed, as the library does."""
        fd = os.open(path, PROBE)
        granted = False
        try:
            granted = door.lock_exclusive(fd) if exclusive else door.lock_shared(fd)
            if granted and path not in self._locked:
                self._locked[path] = fd
        finally:
            if self._locked.get(path) != fd:
                os.close(fd)
        return granted

    def let_go(self, path: str) -> None:
        """Let go of a lock."""
        fd = self._locked.pop(path)
        door.unlock(fd)
        os.close(fd)

    def wait(self, path: str) -> bool:
        """Sleep until nobody has the lock."""
        fd = os.open(path, PROBE)
        try:
            if not door.can_wait:
                while not door.lock_shared(fd):
                    sleep(0.001)
                door.unlock(fd)
                return True
            return door.wait_shared(fd, None)
        finally:
            os.close(fd)

    # -- replacing what is read --------------------------------------------------------

    def watch(self, path: str, seen: str, limit: float) -> tuple[int, int, int]:
        """Read a file until it says that it is the last; count what was missing or mixed.

        Parameters
        ----------
        seen
            Made as soon as the file was seen to change often enough.
        """
        reads = missing = mixed = changes = 0
        last = b""
        end = monotonic() + limit
        while monotonic() < end:
            reads += 1
            try:
                fd = os.open(path, READ)
            except FileNotFoundError:
                missing += 1
                continue
            except PermissionError:  # being replaced (Windows)
                continue
            try:
                content = os.read(fd, 2 * _SHOWN_BLOCK)
            finally:
                os.close(fd)
            if content == _LAST:
                break
            if len(content) != _SHOWN_BLOCK or len(set(content)) != 1:
                mixed += 1
            changes += content != last
            last = content
            if changes == _CHANGES:
                self.write(seen, "enough")
                changes += 1
        return reads, missing, mixed

    def replace_often(self, path: str, made: str, seen: str) -> int:
        """Replace a file by a rename, many times."""

        def step(turn: int, content: bytes) -> None:
            scratch = f"{path}.{turn}"
            self._fill(scratch, content)
            persist(door, lambda: door.replace(scratch, path))

        return self._often(step, seen)

    def make_folder(self, path: str) -> None:
        """Make a folder with a file in it."""
        os.mkdir(path, 0o700)
        self._fill(os.path.join(path, "made"), b"-" * _SHOWN_BLOCK)

    def exchange_often(self, path: str, made: str, seen: str) -> int:
        """Exchange two folders, many times, one of them new each time.

        What is replaced stays, so that who is on the way into it finds what was there.
        """

        def step(turn: int, content: bytes) -> None:
            scratch = f"{path}.{turn}"
            os.mkdir(scratch, 0o700)
            self._fill(os.path.join(scratch, made), content)
            door.exchange(scratch, path)

        return self._often(step, seen)

    def _often(self, step: Callable[[int, bytes], None], seen: str) -> int:
        """Do a step with changing content until it was seen, then with the last one."""
        end = monotonic() + _RACE
        turn = 0
        while turn < 2 * _RENAMES and monotonic() < end:
            if turn >= _RENAMES and os.path.exists(seen):
                break
            turn += 1
            step(turn, b"ab"[turn % 2 :][:1] * _SHOWN_BLOCK)
        step(0, _LAST)
        return turn + 1

    def _fill(self, path: str, content: bytes) -> None:
        fd = os.open(path, CREATE, 0o600)
        try:
            door.write(fd, content)
        finally:
            os.close(fd)

    def rename_folders(self, path: str) -> str:
        """Rename folders as paths are published; return what is wrong with it."""
        scratch, entry, moved = path, f"{path}-entry", f"{path}-moved"
        for folder in (scratch, entry):
            self.make_folder(folder)
        try:
            door.rename(scratch, entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES):
                return f"over a filled folder: {error.strerror}"
        else:
            return "a filled folder is replaced"
        try:
            door.rename(scratch, moved)
        except OSError as error:
            return f"to a new name: {error.strerror}"
        if os.path.lexists(scratch) or not os.path.exists(os.path.join(moved, "made")):
            return "it does not move what is inside"
        return ""

    def link(self, path: str) -> str:
        """Give a file a second name; return what is wrong with that."""
        second = f"{path}-2"
        self.write(path, "linked")
        os.link(path, second)
        one, other = os.stat(path), os.stat(second)
        if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino):
            return "a link is another file"
        os.unlink(path)
        with open(second, "rb") as file:
            return "" if file.read() == b"linked" else "a link loses its content"

    # -- files that others use ---------------------------------------------------------

    def append(self, path: str, count: int) -> None:
        """Add lines to a file that others add to."""
        fd = os.open(path, ADD, 0o600)
        try:
            for turn in range(count):
                os.write(fd, b"%d %d %s\n" % (os.getpid(), turn, b"x" * 60))
        finally:
            os.close(fd)

    def count_lines(self, path: str) -> tuple[int, int]:
        """Return how many lines there are, and how many of them are whole and there once."""
        with open(path, "rb") as file:
            lines = file.read().splitlines()
        good = {line for line in lines if line.endswith(b" " + b"x" * 60)}
        return len(lines), sum(line.count(b" ") == 2 for line in good)

    def hold_open(self, path: str) -> None:
        """Open a file and keep it open."""
        self._open[path] = os.open(path, PROBE)

    def remove_and_list(self, path: str) -> list[str]:
        """Remove a file, make and remove another of its name; return what is left of it."""
        folder = os.path.dirname(path)
        before = set(os.listdir(folder)) - {os.path.basename(path)}
        os.unlink(path)
        left = sorted(set(os.listdir(folder)) - before)
        self.write(path, "another")
        os.unlink(path)
        return left

    def read_held(self, path: str) -> str:
        """Return what a file says that is kept open, and close it."""
        fd = self._open.pop(path)
        try:
            os.lseek(fd, 0, 0)
            return os.read(fd, 100).decode()
        finally:
            os.close(fd)

    # -- names -------------------------------------------------------------------------

    def spell(self, path: str) -> tuple[bool, list[str]]:
        """Return whether case makes no difference, and names that are listed otherwise."""
        os.mkdir(path, 0o700)
        given = ["ab", "a" * 40 + CLAIM, "Mixed-Case", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]
        made = []
        for name in given:
            try:
                self.write(os.path.join(path, name), name)
                made.append(name)
            except (OSError, UnicodeError):
                if name.isascii():
                    raise
        one = os.path.lexists(os.path.join(path, "AB"))
        listed = os.listdir(path)
        return one, [name for name in made if name not in listed]

    def longest_name(self, path: str) -> int:
        """Return how long a name may be, up to what anybody needs."""
        os.mkdir(path, 0o700)
        fits, fails = 1, LONGEST_NAME + 1
        length = LONGEST_NAME
        while fits + 1 < fails:
            name = os.path.join(path, "n" * length)
            try:
                self.write(name, "")
                os.unlink(name)
                fits = length
            except OSError:
                fails = length
            length = (fits + fails) // 2
        return fits

    def longest_path(self, path: str) -> int | None:
        """Return how long the system says that a path may be."""
        try:
            return os.pathconf(path, "PC_PATH_MAX")
        except (AttributeError, OSError, ValueError):
            return None

    # -- what is known of a file -------------------------------------------------------

    def times(self, path: str) -> tuple[int | None, bool, int | None, float]:
        """Return the grain of times that are set, whether 1970 is kept, and of two writes.

        The last is how many seconds the filesystem's clock is ahead.
        """
        from time import time

        before = time()
        self.write(path, "new")
        made = os.stat(path).st_mtime
        after = time()
        ahead = made - after if made > after else min(0.0, made - before)
        grain = next((step for step in _GRAINS if self._keeps(path, _EPOCH + step)), None)
        natural = None if grain is None or grain >= 10**9 else self._natural(path)
        return grain, self._keeps(path, 0), natural, ahead

    def _keeps(self, path: str, time: int) -> bool:
        try:
            os.utime(path, ns=(time, time))
        except OSError:
            return False
        return os.stat(path).st_mtime_ns == time

    def _natural(self, path: str) -> int | None:
        """Return by how many nanoseconds the times of two writes differ at least."""
        least = None
        fd = os.open(path, os.O_WRONLY)
        try:
            last = None
            end = monotonic() + 0.05
            while monotonic() < end:
                os.write(fd, b"x")
                now = os.fstat(fd).st_mtime_ns
                if last is not None and now > last:
                    least = now - last if least is None else min(least, now - last)
                last = now
        finally:
            os.close(fd)
        return least

    def access(self, path: str) -> float | None:
        """Return by how much a time of access that is set is wrong; `None` if it can't be set."""
        from time import time

        used = time() - 50 * USE_RECORDED
        fd = os.open(path, READ)
        try:
            os.utime(fd, ns=(int(used * 1e9), os.fstat(fd).st_mtime_ns))
        except OSError:
            return None
        finally:
            os.close(fd)
        return abs(os.stat(path).st_atime - used)

    def map(self, path: str) -> str:
        """Map a file as a hit does; return what is wrong with it."""
        content = os.urandom(3 * _SHOWN_BLOCK)
        self._fill(path, content)
        fd = os.open(path, READ)
        try:
            view = door.map(fd, len(content))
        finally:
            os.close(fd)
        if view != content:
            return "a mapped file has other bytes than the file"
        view[0] ^= 255
        with open(path, "rb") as file:
            return "" if file.read() == content else "a private mapping changes the file"

    def identity(self, path: str) -> list[tuple[int, int]]:
        """Return what tells a file from others: by its name, and by a descriptor."""
        fd = os.open(path, READ)
        try:
            return [(found.st_dev, found.st_ino) for found in (os.lstat(path), os.fstat(fd))]
        finally:
            os.close(fd)

    def sync(self, path: str) -> float:
        """Return how long it takes to force a file onto the disk, and try it with a folder."""
        from statistics import median

        os.mkdir(path, 0o700)
        took: list[float] = []
        while len(took) < 7 and sum(took) < _RACE:
            name = os.path.join(path, str(len(took)))
            self._fill(name, bytes(4096))
            began = monotonic()
            door.sync_tree(name)
            took.append(monotonic() - began)
        door.sync_tree(path)
        door.sync_folder(path)
        return median(took)

    def rights(self, path: str) -> tuple[int | None, int | None, str | None]:
        """Return whose a new file is, who this user is, and which mode is not as asked for."""
        os.mkdir(path, 0o700)
        name = os.path.join(path, "file")
        self.write(name, "")
        if not hasattr(os, "geteuid"):
            return None, None, None
        owner = os.lstat(name).st_uid
        wrong = []
        for each, mode in ((name, 0o600), (path, 0o700)):
            found = os.lstat(each).st_mode & 0o777
            if found != mode:
                wrong.append(f"asked for {mode:04o}, got {found:04o}")
        if not wrong:
            for mode in (0o640, 0o600):
                try:
                    os.chmod(name, mode)
                except OSError as error:
                    wrong.append(f"they can't be changed: {error.strerror}")
                    break
                found = os.lstat(name).st_mode & 0o777
                if found != mode:
                    wrong.append(f"changed to {mode:04o}, is {found:04o}")
        return owner, os.geteuid(), "; ".join(wrong)

    def pickles(self, directory: str, folder: str) -> tuple[str | None, str | None]:
        """Return why pickles would be refused in a folder, and in a private one inside it."""
        from ._pickle import check_private, check_private_file

        def refusal(place: str) -> str | None:
            try:
                check_private(place, place)
                check_private_file(folder, os.lstat(os.path.join(folder, "file")))
            except UnsafeDirectoryError as error:
                return error.strerror
            return None

        return refusal(directory), refusal(folder)

    def room(self, path: str) -> tuple[int | None, int | None]:
        """Return how many bytes, and if that is limited how many files, have room."""
        if not hasattr(os, "statvfs"):
            import shutil

            return shutil.disk_usage(path).free, None
        found = os.statvfs(path)
        if not found.f_blocks:
            return None, None
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None


_EPOCH = 1_600_000_000 * 10**9
_GRAINS = (1, 100, 1000, 10**6, 10**7, 10**9, 2 * 10**9)
"""Nanoseconds: of most, NTFS, UDF, some network filesystems, exFAT, HFS+ and ext3, and FAT."""


def main() -> int:
    """Do one task after another, as the lines on the standard input say."""
    tasks = _Tasks()
    try:
        for line in sys.stdin:
            task, *arguments = json.loads(line)
            try:
                answer = [getattr(tasks, task)(*arguments), None, None]
            except OSError as error:
                answer = [None, [error.errno, error.strerror or str(error)], None]
            except Exception:
                import traceback

                answer = [None, None, traceback.format_exc()]
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:  # nobody wants to know any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0 if tasks._end() else 1


if __name__ == "__main__":
    sys.exit(main())
