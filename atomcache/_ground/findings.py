"""What the trials found, and what it comes to.

What it is for: a `Finding` is what one trial says, for people and for programs; a `Report` has
all of them, and a verdict on the whole.

Who calls it: all trials, and whoever reads the report.  What may go wrong: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .filesystems import Filesystem

HOLDS = "holds"
FAILS = "does not hold"
UNKNOWN = "unknown"


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


def short_time(seconds: float) -> str:
    """Return a short time for people."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    for unit in ("ms", "us"):
        seconds *= 1000
        if seconds >= 1:
            return f"{seconds:.3g} {unit}"
    return f"{seconds * 1000:.0f} ns"


def often(number: int) -> str:
    """Return how often something was done, for people."""
    return f"{number} time" if number == 1 else f"{number} times"
