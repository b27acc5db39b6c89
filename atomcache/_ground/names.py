"""Trials of names: case, spelling, and how long they and paths may be.

What it is for: the library finds its own files by listing folders, so their names have to be
listed as they were given; and its own names, and those that users give, have to fit.

Who calls it: the examination.  What may go wrong: `OSError` and `NoAnswer` as the crew passes them
on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._keys import DIGEST_SIZE
from .._layout import CLAIM
from .._publish import STAGED
from .findings import FAILS, HOLDS, UNKNOWN, Finding
from .looking import LONGEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .crew import Crew

NEEDED_NAME = 2 * DIGEST_SIZE + len(CLAIM) + 1 + 16 + len(STAGED)
"""Characters of the longest name that the library gives to a file."""


def names(crew: Crew) -> Iterator[Finding]:
    """Try whether names stay as they were given, and how long they and paths may be."""
    one, changed = crew.keeper.ask("spell", crew.path("names"))
    yield _case(one)
    yield _spelling(changed)
    yield _length(crew.keeper.ask("longest_name", crew.path("longest")))
    yield _depth(crew.keeper.ask("longest_path", crew.path()), len(os.fsencode(crew.asked)))


def _case(one: bool) -> Finding:
    return Finding(
        "upper and lower case",
        FAILS if one else HOLDS,
        "'a' and 'A' are one name" if one else "'a' and 'A' are two names",
        "The cache does not mind, its own names are all in lower case. A builder must not make "
        "two files whose names differ in nothing else."
        if one
        else "",
    )


def _spelling(changed: list[str]) -> Finding:
    name = "spelling of names"
    if not changed:
        return Finding(name, HOLDS, "names are listed as they were given")
    grave = any(each.isascii() and each.islower() for each in changed)
    return Finding(
        name,
        FAILS,
        f"listed otherwise than given: {', '.join(map(ascii, changed))}",
        "Listings, pruning and reaping find nothing, and paths can't be stored."
        if grave
        else "What a builder makes may be listed under names that are spelled differently.",
        "the cache's own names are not listed as they were given" if grave else "",
        grave,
    )


def _length(longest: int) -> Finding:
    name = "length of names"
    detail = f"{longest} bytes" + ("" if longest < LONGEST_NAME else " or more")
    if longest < NEEDED_NAME:
        meaning = f"The library needs {NEEDED_NAME}."
        brief = f"names of {NEEDED_NAME} bytes are too long"
        return Finding(name, FAILS, detail, meaning, brief, grave=True)
    if longest < LONGEST_NAME:
        meaning = (
            f"The library needs {NEEDED_NAME}. The name= of a path, and the names that a builder "
            f"gives, can't be as long as elsewhere ({LONGEST_NAME} bytes); a longer one raises "
            "StorageError."
        )
        return Finding(name, FAILS, detail, meaning)
    return Finding(name, HOLDS, f"{detail}; the library needs {NEEDED_NAME}")


def _depth(most: int | None, own: int) -> Finding:
    name = "length of paths"
    needed = own + len("/v1/ab/") + NEEDED_NAME + 1 + LONGEST_NAME
    if most is None:
        return Finding(name, UNKNOWN, "this system does not tell")
    if needed > most:
        return Finding(
            name,
            FAILS,
            f"{most} bytes, of which this folder takes {own}",
            "Entries, or files with long names in them, can't be made so deep.",
            "the path of this folder is too long",
            needed - LONGEST_NAME > most,
        )
    return Finding(name, HOLDS, f"{most} bytes, of which this folder takes {own}")
