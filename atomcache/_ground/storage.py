"""Trials of what is stored: mapped, told apart, forced onto the disk, kept private, and its room.

What it is for: large arrays are mapped when they are read; a builder knows its claim by device
and inode number; paths are forced onto the disk before they are published; and pickles are read
only where nobody else can write.

Who calls it: the examination.  What may go wrong: `OSError` and `NoAnswer` as the crew passes them
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._pickle import REMEDY
from .findings import FAILS, HOLDS, UNKNOWN, Finding, short_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .crew import Crew

OLD = ("old", "other")
"""Files that are made first and looked at last: some filesystems forget after a second."""


def mapping(crew: Crew) -> Iterator[Finding]:
    """Try whether a file can be mapped, and is not changed through the map."""
    name = "memory mapping"
    try:
        trouble = crew.keeper.ask("map_file", crew.path("mapped"))
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


def identity(crew: Crew) -> Iterator[Finding]:
    """Try whether a file can be told from others, by all and at any time."""
    name = "identity of files"
    old, other = map(crew.path, OLD)
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


def syncing(crew: Crew) -> Iterator[Finding]:
    """Try what it takes to force a file onto the disk."""
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
            f"Storing a file or folder that was built takes some {short_time(5 * took)} more than "
            "building it; durable=False does without. Values are not concerned."
        )
    yield Finding(name, HOLDS, f"{short_time(took)} for a small file (median)", meaning)


def rights(crew: Crew) -> Iterator[Finding]:
    """Try whether what is made belongs to this user, and to nobody else."""
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
        hint = " A cache folder of its own inside would do." if inside is None else ""
        yield Finding(
            name,
            FAILS,
            why,
            "Codec 'pickle' refuses this place, as unpickling runs what it reads: "
            f"{REMEDY}.{hint}",
        )


def room(crew: Crew) -> Iterator[Finding]:
    """See how much room there is."""
    name = "room"
    free, files = crew.keeper.ask("room", crew.path())
    if free is None:
        yield Finding(name, UNKNOWN, "this filesystem does not tell")
        return
    detail = f"{free / 1e9:,.1f} GB" if free >= 1e8 else f"{free / 1e6:,.1f} MB"
    detail += "" if files is None else f" and {files:,} files"
    if free < 10_000_000 or (files is not None and files < 1000):
        meaning = "What does not fit raises StorageError, or is not stored on request."
        yield Finding(name, FAILS, f"only {detail} left", meaning, "there is little room")
    else:
        yield Finding(name, HOLDS, f"{detail} left")
