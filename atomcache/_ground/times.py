"""Trials of times: how fine those of files are, whether uses are kept, and what the clock says.

What it is for: inputs are told apart by when they changed, a builder shows that it lives by
touching its claim, and limits go by when an entry was used last.

Who calls it: the examination.  What may go wrong: `OSError` and `NoAnswer` as the crew passes them
on.  A filesystem where times can't be set is a finding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._freshness import RACY_SECONDS
from .._watch import USE_RECORDED
from .findings import FAILS, HOLDS, Finding, short_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .crew import Crew


def times(crew: Crew) -> Iterator[Finding]:
    """Try how times are kept that are set, and whose clock new files have."""
    path = crew.path("times")
    grain, zero, natural, ahead = crew.keeper.ask("times", path)
    yield _change(grain, natural)
    if grain is not None and not zero:
        yield Finding(
            "times long ago",
            FAILS,
            "1970 can't be kept",
            "Each look for a file or folder that was built reads its meta, which takes a few "
            "microseconds more.",
        )
    yield _access(crew.keeper.ask("access", path))
    yield _clock(ahead, grain)


def _change(grain: int | None, natural: int | None) -> Finding:
    name = "times of change"
    if grain is None:
        return Finding(
            name,
            FAILS,
            "they can't be set",
            "Storing a file or folder that was built raises StorageError. Builders on other "
            "machines seem dead.",
            "times can't be set, as paths need it",
            grave=True,
        )
    if grain >= 10**9:
        return Finding(
            name,
            FAILS,
            f"kept to {grain / 1e9:g} s",
            f"A lease must be longer than {3 * grain / 1e9:g} s. An input that changes within "
            f"{RACY_SECONDS:g} s after it was read, to the same size, is told apart only because "
            "files that young are always read again.",
        )
    steps = "" if natural is None else f"; two writes differ by {short_time(natural / 1e9)}"
    return Finding(name, HOLDS, f"kept to {short_time(grain / 1e9)}{steps}")


def _access(off: float | None) -> Finding:
    name = "times of access"
    if off is not None and off < USE_RECORDED:
        return Finding(
            name, HOLDS, "kept to the hour at least, as the least recently used need it"
        )
    return Finding(
        name,
        FAILS,
        "kept to the day" if off is not None and off <= 86_400 else "not kept",
        "Limits (max_bytes, max_entries, max_idle) do not know what was used last: they "
        "may remove what is in use. It is built anew when it is asked for.",
        "limits do not know what was used last",
    )


def _clock(ahead: float, grain: int | None) -> Finding:
    name = "clock"
    if abs(ahead) <= RACY_SECONDS + (grain or 0) / 1e9:
        return Finding(name, HOLDS, "new files have the time of this machine")
    way = "ahead of" if ahead > 0 else "behind"
    return Finding(
        name,
        FAILS,
        f"that of the filesystem is {abs(ahead):.1f} s {way} this machine's",
        "An input that changes within seconds after it was read may be taken for unchanged. "
        "Set the clocks by NTP.",
        "its clock is not that of this machine, so quick changes of inputs may be missed",
    )
