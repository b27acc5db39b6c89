"""What a measurement hands over to the report: tables, verdicts, remarks, lines to plot.

Everything here is plain data that survives JSON, because each measurement runs in a
process of its own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """How thorough to be, and where the files go (a folder of our own)."""

    folder: Path
    quick: bool


@dataclass
class Table:
    """A table; the first row is the heading."""

    title: str
    rows: list[list[str]]


@dataclass
class Verdict:
    """A target, what came out, and whether that meets it; `None` where there is no figure."""

    what: str
    target: str
    figure: str
    met: bool | None


@dataclass
class Findings:
    """What one measurement found out.

    `better` are the places where a peer beats atomcache, in words; `lines` is what the
    plots are drawn from; `raw` holds, for pyperf, the values of each micro-figure by name,
    one list per process.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    better: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lines: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, list[list[float]]] = field(default_factory=dict)

    def at_most(self, what: str, figure: float | None, most: float, times: str = "times") -> None:
        """Add a verdict on a figure that should not be greater than `most`."""
        self._add(what, f"at most {most:g} {times}", figure, times, lambda it: it <= most)

    def at_least(self, what: str, figure: float | None, least: float) -> None:
        """Add a verdict on a figure that should not be less than `least`."""
        self._add(what, f"at least {least:g} times", figure, "times", lambda it: it >= least)

    def _add(self, what: str, target: str, figure: float | None, unit: str, test: Any) -> None:
        if figure is None:
            self.verdicts.append(Verdict(what, target, "no figure", None))
        else:
            shown = f"{figure:.2f}" if figure < 20 else f"{figure:.0f}"
            # What is judged is what is shown: nobody should see "1.60, at most 1.6: not met".
            self.verdicts.append(Verdict(what, target, f"{shown} {unit}", test(float(shown))))

    def to_json(self) -> str:
        """Return everything as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Findings:
        """Read what `to_json` wrote."""
        given = json.loads(text)
        given["tables"] = [Table(**table) for table in given["tables"]]
        given["verdicts"] = [Verdict(**verdict) for verdict in given["verdicts"]]
        return cls(**given)


def micro(seconds: float) -> str:
    """Return a time for people to read."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
