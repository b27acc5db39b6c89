"""Trials of files that others use meanwhile: replaced, linked, added to and removed.

What it is for: readers take no locks, so whoever replaces an entry has to do it in one step; a
value is published by a link, which must not replace; and claims are added to and removed while
others have them open.

Who calls it: the examination.  What may go wrong: `OSError` and `NoAnswer` as the crew passes them
on.  Errors that the library knows how to live with are findings.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._door import door
from .._publish import _NO_EXCHANGE, _NO_LINKS
from .changing import SHOWN_BLOCK
from .crew import RACERS
from .findings import FAILS, HOLDS, UNKNOWN, Finding, often

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .crew import Crew

_LINES = 400
"""Lines that each helper adds."""

_TOO_FEW = 5
"""Changes of a file; from fewer that were seen nothing follows."""


def renames(crew: Crew) -> Iterator[Finding]:
    """Try whether a rename replaces files in one step, and moves folders where none is."""
    place = crew.path("renamed")
    crew.keeper.ask("write", place, "-" * SHOWN_BLOCK)
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
    crew: Crew, place: str, task: str, name: str, meaning: str, brief: str, made: str = ""
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
    reads, missing, mixed, changes = watcher.answer()
    told = f"{often(times)} while another process read {often(reads)}"
    if mixed:
        return Finding(
            name,
            FAILS,
            f"{told}, of which {often(mixed)} parts of two",
            "A reader may see half of one entry and half of another. Values have a checksum and "
            "are built anew then; files and folders that are built have none.",
            "readers see parts of two files while one is replaced",
            grave=True,
        )
    if missing:
        return Finding(name, FAILS, f"{told}, of which {often(missing)} nothing", meaning, brief)
    if changes < _TOO_FEW:
        return Finding(
            name,
            UNKNOWN,
            f"{told}, which saw it change {often(changes)}",
            "That is too seldom to tell. Try again when the machine has less to do.",
        )
    return Finding(name, HOLDS, f"{told}, always the whole old or the whole new one")


def exchange(crew: Crew) -> Iterator[Finding]:
    """Try whether two folders can change places in one step."""
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


def links(crew: Crew) -> Iterator[Finding]:
    """Try whether one of several wins who link to the same name."""
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
            or f"{RACERS} processes raced {often(rounds)} for a name, and {often(wrong)} "
            "not exactly one won",
            "Where work is done twice, the second result may replace the first.",
            "the second result may replace the first where work is done twice",
        )
        return
    yield Finding(
        name,
        HOLDS,
        f"{RACERS} processes raced {often(rounds)} for a name, one won each time",
    )


def appending(crew: Crew) -> Iterator[Finding]:
    """Try whether lines stay whole that several add at the same time."""
    name = "appending"
    path = crew.path("lines")
    crew.all("append", path, _LINES)
    lines, whole = crew.keeper.ask("count_lines", path)
    wanted = RACERS * _LINES
    if lines == whole == wanted:
        yield Finding(name, HOLDS, f"all {wanted} lines that {RACERS} processes added are whole")
        return
    yield Finding(
        name,
        FAILS,
        f"of {wanted} lines that {RACERS} processes added at the same time, {whole} are whole",
        "A builder may miss the word that its entry was removed meanwhile, and bring it back. "
        "Estimates of how full the cache is may be off.",
        "an entry that is removed while it is built may come back",
    )


def open_files(crew: Crew) -> Iterator[Finding]:
    """Try whether a file can be removed, and still be read, while somebody has it open."""
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
