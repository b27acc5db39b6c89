"""The course of an examination: which trials there are, in which order, and what if one breaks.

What it is for: `examine` finds out where a folder stands, has the folder of the trials made, and
lets one trial after another say what it found.  A filesystem that does not answer ends the
examination; an error that a trial did not expect ends that trial only.

Who calls it: the command line; programs may.  What may go wrong: `FileNotFoundError` and
`NotADirectoryError` for a folder that is none; all else is a finding.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .._errors import remedy_for
from .crew import GRACE, Crew, NoAnswer
from .exclusion import LOCKS, creation, locks
from .filesystems import describe, filesystem_of
from .findings import FAILS, HOLDS, Finding, Report
from .looking import NO_FOLDER
from .names import names
from .shared_files import appending, exchange, links, open_files, renames
from .storage import OLD, identity, mapping, rights, room, syncing
from .times import times

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PATIENCE = 20.0
"""Seconds for which a filesystem may keep a trial waiting.  Each takes less than one where all is
well; disks that spin up and servers that restart take some ten."""

_FINDING = "an answer"
"""What is tried before all else: to find the folder."""

TRIALS: tuple[tuple[str, Callable[[Crew], Iterable[Finding]]], ...] = (
    ("exclusive creation", creation),
    (LOCKS, locks),
    ("rename", renames),
    ("exchange of two names", exchange),
    ("hard links", links),
    ("appending", appending),
    ("removal of open files", open_files),
    ("names", names),
    ("times", times),
    ("memory mapping", mapping),
    ("identity of files", identity),
    ("forcing onto the disk", syncing),
    ("owner and modes", rights),
    ("room", room),
)


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
    crew = Crew(asked, patience)
    try:
        for finding in _findings(crew, report, exact):
            report.findings.append(finding)
            if tell is not None:
                tell(report)
    finally:
        report.left = crew.end(patience if report.answered else min(patience, GRACE))
    return report


def _findings(crew: Crew, report: Report, exact: bool) -> Iterator[Finding]:
    """Yield one finding after another, as they come."""
    current = _FINDING
    try:
        report.directory, real = crew.keeper.ask("find", crew.asked, exact)
        report.filesystem = filesystem_of(real)
        yield describe(report.filesystem)
        current = "writing"
        crew.folder = crew.keeper.ask("make", report.directory)
        for name in OLD:
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
        if exact and current == _FINDING and isinstance(error, NO_FOLDER):
            raise
        yield _trouble(current, error)


def _hung(name: str, why: str) -> Finding:
    """Say what it means that no answer came."""
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
