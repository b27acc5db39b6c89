"""Writes `results.md`: the verdicts first, then where peers are better, then every table.

No folder, user or host is named in it.
"""

from __future__ import annotations

import datetime
import os
import platform
from typing import TYPE_CHECKING

from . import peers
from .waiting import filesystem, processor

if TYPE_CHECKING:
    from pathlib import Path

    from .findings import Findings, Table

_INTRODUCTION = """\
# What atomcache costs

Written by `python -m benchmarks`; see there, and at the top of each of its modules, for how
each figure is measured and what it means.  Ratios are taken in one run, a few milliseconds
apart; times are of one machine and drift with it.  Checksums are on everywhere.
"""

_REPEAT = """\
To repeat it, on any machine with some 5 GB of disk and memory to spare:

```sh
pip install -e '.[bench]'
python -m benchmarks             # all of it, into benchmarks/results.md and benchmarks/plots
python -m benchmarks --quick     # under a minute on an idle machine, into build/benchmarks
python -m benchmarks --only hits misses
```
"""


def surroundings(folder: Path, quick: bool, load: tuple[float, float]) -> list[str]:
    """Say what the figures were measured on."""
    versions = peers.versions()
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        f"{', quick mode (coarse)' if quick else ''}",
        f"- machine: {processor()}, {os.cpu_count()} cores, "
        f"{_memory()}load {load[0]:.1f} at the start and {load[1]:.1f} at the end",
        f"- system: {platform.system()} {platform.release()}, {filesystem(folder)}",
        f"- Python: {platform.python_implementation()} {platform.python_version()}; dbm: {_dbm()}",
        f"- versions: {shown}",
    ]


def _memory() -> str:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return ""
    return f"{total / 2**30:.0f} GB, "


def _dbm() -> str:
    """Return which module this Python's `dbm` creates files with."""
    import dbm
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "x")
        dbm.open(place, "c").close()
        return dbm.whichdb(place) or "unknown"


def markdown(found: dict[str, Findings], around: list[str], plots: list[tuple[str, str]]) -> str:
    """Return the whole report."""
    parts = [_INTRODUCTION, "\n".join(around) + "\n", _REPEAT, "## Targets\n"]
    rows = [["", "target", "figure", ""]]
    for findings in found.values():
        for verdict in findings.verdicts:
            met = {True: "met", False: "**not met**", None: "no figure"}[verdict.met]
            rows.append([verdict.what, verdict.target, verdict.figure, met])
    parts.append(_table(rows))
    parts.append("## Where a peer is better\n")
    better = [f"- {each}" for findings in found.values() for each in findings.better]
    parts.append("\n".join(better or ["Nowhere in this run."]) + "\n")
    for title, file in plots:
        parts.append(f"![{title}](plots/{file})\n")
    for findings in found.values():
        parts.append(f"## {findings.title}\n")
        parts += [f"{text}\n" for text in findings.text]
        for table in findings.tables:
            parts.append(f"### {table.title}\n\n{_table(table.rows)}")
        parts += [f"{text}\n" for text in findings.remarks]
    return "\n".join(parts)


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


def text(found: Findings) -> str:
    """Return one measurement for a terminal."""
    lines = [f"\n== {found.title}"]
    for table in found.tables:
        lines += [f"\n{table.title}", *_columns(table)]
    lines.append("")
    for verdict in found.verdicts:
        met = {True: "met      ", False: "NOT MET  ", None: "no figure"}[verdict.met]
        lines.append(f"  {met}  {verdict.what}: {verdict.figure} ({verdict.target})")
    lines += [f"  better     {each}" for each in found.better]
    lines += [f"  {each}" for each in found.remarks]
    return "\n".join(lines)


def _columns(table: Table) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table.rows, strict=True)]
    return [
        "  "
        + "   ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table.rows
    ]
