"""How the subcommands say things: sizes, times, tables, lists of facts, and JSON.

What people and other programs stored in a cache is shown by `shown`, which leaves nothing in it
that a terminal would obey.

Who calls it: the subcommands.  What may go wrong: `BrokenPipeError` when the reader went away;
other `OSError` from where the output goes.
"""

from __future__ import annotations

import sys

from .._errors import AtomcacheError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

SAMPLE = 1000
"""Rows by which the widths of a table's columns are chosen, so that long ones can stream."""

_NARROWEST = 20


def shown(text: str) -> str:
    """Return text with what is not printable escaped: keys may hold anything."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quoted(text: str) -> str:
    """Return text in quotes, escaped, and cut if it is long: for messages of one line."""
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


def say(line: str) -> None:
    """Print a line; what the terminal's encoding can't say is escaped."""
    try:
        print(line)
    except UnicodeEncodeError as error:
        print(line.encode(error.encoding, "backslashreplace").decode(error.encoding))


def say_json(thing: object) -> None:
    """Print a thing as one line of JSON."""
    import json

    print(json.dumps(thing))


def on_terminal() -> bool:
    """Tell whether somebody reads this on a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def write_bytes(pieces: Iterable[bytes]) -> None:
    """Write bytes as they are."""
    if sys.stdout is None:
        raise AtomcacheError("the standard output is closed")
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def size_text(size: float) -> str:
    """Return bytes for people, in the units that options take."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 99.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"


def time_text(seconds: float) -> str:
    """Return a length of time for people, of two units at most."""
    if not seconds < 1e12:
        return "?"  # an entry or a claim may say any number
    if seconds < 0.0995:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def moment(when: float, *, utc: bool = False) -> str:
    """Return a point in time, of this machine's time zone or in the form of RFC 3339."""
    import time

    try:
        if utc:
            return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):  # an entry may claim any time
        return f"{when:.0f}"


def number_of(number: int, thing: str, things: str | None = None) -> str:
    """Return a number and the word that goes with it."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def cut(text: str, width: int) -> str:
    """Return as much of a text as fits."""
    if cells(text) <= width:
        return text
    while text and cells(text) > width - 3:
        text = text[: min(len(text) - 1, width)]
    return f"{text}..."


def say_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and what is to be said of each, in two columns."""
    told = list(facts)
    width = max((len(name) for name, _ in told), default=0) + 1
    for name, text in told:
        say(f"{name + ':':{width}}  {text}".rstrip())


def say_table(
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: frozenset[str] = frozenset(),
    spare: Sequence[str] = (),
) -> None:
    """Print a table for people, the last column cut to the terminal's width.

    The widths follow from the first `SAMPLE` rows; the rest is printed as it comes.

    Parameters
    ----------
    right
        Titles of the columns that are aligned to the right.
    spare
        Titles of the columns that a narrow terminal does without, the first one first.
    """
    import shutil
    from itertools import chain, islice

    rows = iter(rows)
    sample = list(islice(rows, SAMPLE))
    if not sample:
        return
    widths = [max(map(cells, column)) for column in zip(titles, *sample, strict=True)]
    screen = shutil.get_terminal_size().columns
    kept = list(range(len(titles)))

    def room() -> int:
        return screen - sum(widths[place] + 2 for place in kept[:-1])

    for title in spare:
        if room() < min(widths[-1], _NARROWEST):
            kept.remove(titles.index(title))
    for row in chain([titles], sample, rows):
        parts = []
        for place in kept[:-1]:
            gap = " " * (widths[place] - cells(row[place]))
            parts.append(gap + row[place] if titles[place] in right else row[place] + gap)
        say("  ".join([*parts, cut(row[-1], max(_NARROWEST, room()))]).rstrip())


def facts_of(entry: Any) -> dict[str, object]:
    """Return what JSON says of an entry."""
    return {
        "id": entry.id,
        "key": entry.key,
        "kind": entry.kind,
        "path": str(entry.path),
        "size": entry.size,
        "created": entry.created,
        "last_used": entry.last_used,
        "build_seconds": entry.build_seconds,
        "expires": entry.expires,
        "codec": entry.codec,
        "tags": list(entry.tags),
        "function": entry.function,
    }
