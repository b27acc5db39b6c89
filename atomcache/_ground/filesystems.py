"""On which filesystem a path stands, and what its kind says already.

What it is for: what several machines see of a filesystem can't be tried from one of them, and
what is kept in memory only is gone after a restart.  Its kind tells both.  The system's table of
mounts is asked, not the filesystem, so a name is known also of one that hangs.

Who calls it: the examination, before it tries anything; programs may.  What may go wrong:
nothing.  Systems without such a table (all but Linux) get `None`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._claim import LEASE
from .._patience import LONGEST_PAUSE
from .findings import HOLDS, UNKNOWN, Finding

_SHARED = (
    *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs"),
    *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2"),
    *("smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "wekafs"),
)
"""Filesystems that other machines may have mounted too; those of FUSE come on top."""

_VOLATILE = ("ramfs", "tmpfs")


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


def describe(found: Filesystem | None) -> Finding:
    """Say what it means for a cache to stand on such a filesystem."""
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
