"""What a filesystem is good for: the trials behind ``atomcache doctor``.

What it is for: `examine` tries, in a private folder, all that the protocol asks of a
filesystem, by the same calls as the protocol, and returns what holds, what does not, and what
the library makes of it there.

Whatever touches the filesystem is done by helpers: processes that run this package as a program
and do one task after another.  The process that called only talks to them, and waits for an
answer no longer than it was told to, so a filesystem that hangs leads to a finding and not to
a hang.  The first helper makes the folder of the trials.  It removes the folder when its input
ends, which it does however the caller ends::

    examination      which trials there are, in which order
    findings         what they found, and the verdict on all of it
    filesystems      where a path stands
    crew             the helpers, as the caller sees them
    exclusion, shared_files, names, times, storage
                     the trials by subject: they give out tasks, and say what the answers mean
    holding, changing, looking
                     the tasks, which only helpers do
    __main__         the program of a helper

Who calls it: the command line; programs may.  What may go wrong: `FileNotFoundError` and
`NotADirectoryError` for a folder that is none; all else is a finding.
"""

from .examination import PATIENCE, examine
from .filesystems import Filesystem, filesystem_of
from .findings import FAILS, HOLDS, UNKNOWN, Finding, Report
from .holding import PREFIX

__all__ = [
    "FAILS",
    "HOLDS",
    "PATIENCE",
    "PREFIX",
    "UNKNOWN",
    "Filesystem",
    "Finding",
    "Report",
    "examine",
    "filesystem_of",
]
