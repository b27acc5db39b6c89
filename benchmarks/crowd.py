"""Many processes that ask for one cold key: who builds once, who waits well, who hangs.

Three measurements, all with the processes and the clock of `waiting`:

1. Every competitor, up to three times: 32 processes (8 in quick mode), a build of 2 s.  How
   many ran the factory, how many callers had their answer within 26 s after the build should
   have ended, what the hand-off took, and the processor time of all waiters.
2. atomcache, the bare limit and the FileLock recipe, in turn, as ``waiting.py`` itself does:
   the verdicts on hand-off, processor time and takeover are taken from here.
3. The hand-off by the number of waiters, with a build of half a second.

A competitor that hangs is stopped, shown as hung, and not asked again.  ``diskcache barrier``
is diskcache's own recipe against stampedes; `diskcache.memoize` and `joblib.Memory` do not
claim to build once, and don't.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from . import waiting
from .findings import Findings, Settings, Table, Verdict, micro
from .waiting import LIMIT, OURS, RECIPE

NEEDS = {
    LIMIT: "os",
    OURS: "atomcache",
    RECIPE: "filelock",
    "dogpile.cache dbm": "dogpile.cache",
    "diskcache barrier": "diskcache",
    "diskcache.memoize": "diskcache",
    "joblib.Memory": "joblib",
    "cachier": "cachier",
}
PROCESSES = 32
QUICK_PROCESSES = 8
ONCE = (LIMIT, OURS, RECIPE, "dogpile.cache dbm", "diskcache barrier")
"""Those that build once, and return."""


def _crowd(name: str, processes: int, build: float, patience: float, base: Path) -> dict[str, Any]:
    """Let many processes ask one competitor once."""
    place = Path(tempfile.mkdtemp(dir=base))
    folder = place / "place"
    folder.mkdir()
    facts: dict[str, Any] = {"trouble": ""}
    try:
        with waiting.Crew(name, processes, build, folder) as crew:
            began = time.monotonic()
            crew.release()
            time.sleep(build + 0.5)
            try:
                reports = crew.reports(began + build + patience)
            except waiting.TroubleError as trouble:
                facts["trouble"] = str(trouble)
                reports = []
            facts["returned"] = crew.returned()
            facts["builds"] = len(crew.starts(1 << 20, time.monotonic()))
        ends = [end for report in reports for end in report.ended]
        waiters = [report for report in reports if not report.began]
        if ends and waiters:
            facts["hand_off"] = median(report.returned - min(ends) for report in waiters)
            facts["cpu"] = sum(report.cpu for report in waiters)
        errors = sorted({report.error for report in reports if report.error})
        facts["trouble"] = facts["trouble"] or "; ".join(errors)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return facts


def _everybody(found: Findings, settings: Settings, present: list[str], base: Path) -> None:
    processes = QUICK_PROCESSES if settings.quick else PROCESSES
    build, patience = (1.0, 3.0) if settings.quick else (2.0, 26.0)
    rows = [["", "builds", "callers back", "hand-off", "CPU of the waiters", "remark"]]
    for name in NEEDS:
        if settings.quick and name in (LIMIT, OURS, RECIPE):
            continue  # they are in the first table
        if name not in present:
            rows.append([name, "not installed", *[""] * 4])
            continue
        facts = []
        for _ in range(1 if settings.quick else 3):
            facts.append(_crowd(name, processes, build, patience, base))
            if facts[-1]["returned"] < processes:
                break
        builds = sorted({fact["builds"] for fact in facts})
        back = min(fact["returned"] for fact in facts)
        handed = [fact["hand_off"] for fact in facts if "hand_off" in fact]
        spent = [fact["cpu"] for fact in facts if "cpu" in fact]
        remark = facts[-1]["trouble"]
        if back < processes:
            remark = f"hangs: {processes - back} not back {build + patience:.0f} s after asking"
        elif builds[-1] > 1:
            remark = f"builds more than once {remark}".strip()
        rows.append(
            [
                name,
                "-".join(map(str, builds)),
                f"{back} of {processes}",
                micro(median(handed)) if handed else "-",
                micro(median(spent)) if spent else "-",
                remark,
            ]
        )
        if handed:
            found.lines.setdefault("cpu", {})[name] = median(spent)
    title = f"{processes} processes ask for one cold key, the build takes {build:.0f} s"
    found.tables.append(Table(title, rows))


def _judged(found: Findings, settings: Settings, present: list[str], base: Path) -> None:
    trio = [name for name in (LIMIT, OURS, RECIPE) if name in present]
    rounds, build = (1, 0.5) if settings.quick else (5, 2.0)
    handing = waiting.interleave(waiting.hand_off, trio, rounds, PROCESSES, build, base)
    others = trio if settings.quick else [*trio, *(set(present) & {"dogpile.cache dbm"})]
    taking = waiting.interleave(
        waiting.takeover,
        others,
        2 if settings.quick else 20,
        waiting.TAKEOVER_PROCESSES,
        waiting.TAKEOVER_BUILD,
        base,
    )
    if not settings.quick:
        stuck: list[str] = [name for name in ("diskcache barrier", "cachier") if name in present]
        taking |= waiting.interleave(
            waiting.takeover, stuck, 1, waiting.TAKEOVER_PROCESSES, waiting.TAKEOVER_BUILD, base
        )
    limit = handing[LIMIT]
    rows = [["", "builds", "hand-off", "ratio", "last waiter", "CPU of the waiters", "ratio"]]
    for name, series in handing.items():
        rows.append(
            [
                name,
                "-".join(map(str, sorted(set(series.builds)))),
                _median(series.hand_off),
                _ratio(series.hand_off, limit.hand_off),
                _median(series.last),
                _median(series.cpu),
                _ratio(series.cpu, limit.cpu),
            ]
        )
        if series.cpu:
            found.lines.setdefault("cpu", {})[name] = median(series.cpu)
    title = f"Hand-off, {PROCESSES} processes, in turn, {rounds} rounds of a build of {build} s"
    found.tables.append(Table(title, rows))
    rows = [["", "next build starts after", "rounds", "remark"]]
    for name, series in taking.items():
        remark = "; ".join(filter(None, dict.fromkeys([*series.faults, series.stopped])))
        rows.append([name, _median(series.takeover), str(len(series.takeover)), remark])
    found.lines["takeover"] = {
        name: series.takeover for name, series in taking.items() if series.takeover
    }
    found.tables.append(Table("Takeover: the builder is killed half-way, seven others wait", rows))
    for line in waiting.verdicts(handing, taking):
        what, _, most = line["target"].partition(" at most ")
        if most:
            verdict = f"{PROCESSES} waiters: {what}", f"at most {most}"
        elif "within 10 ms" in what:
            verdict = "takeover from a killed builder, median", "at most 10 ms"
        else:
            verdict = what, "always"
        found.verdicts.append(Verdict(*verdict, line["figure"], line["met"]))
    ours = handing[OURS]
    for name, series in handing.items():
        if name in (OURS, LIMIT) or not (series.hand_off and ours.hand_off):
            continue
        ratio = median(series.hand_off) / median(ours.hand_off)
        if ratio < 0.97:
            found.better.append(f"Hand-off: {name} takes {ratio:.2f} times what atomcache takes.")
    mine = taking[OURS].takeover
    for name, series in taking.items():
        if name not in (OURS, LIMIT) and series.takeover and mine:
            ratio = median(series.takeover) / median(mine)
            if ratio < 0.97:
                found.better.append(
                    f"Takeover: {name} takes {ratio:.2f} times what atomcache takes."
                )


def _by_waiters(found: Findings, settings: Settings, present: list[str], base: Path) -> None:
    names = [name for name in ONCE if name in present and name != "diskcache barrier"]
    rows = [["waiters", *names]]
    lines: dict[str, dict[str, float]] = {name: {} for name in names}
    for waiters in (3, 7, 15, 31, 63):
        handing = waiting.interleave(waiting.hand_off, names, 3, waiters + 1, 0.5, base)
        row = [str(waiters)]
        for name in names:
            handed = handing[name].hand_off
            if handed:
                lines[name][str(waiters)] = median(handed)
            row.append(_median(handed))
        rows.append(row)
    found.lines["hand_off"] = lines
    found.tables.append(Table("Median hand-off by number of waiters, 3 rounds", rows))


def _median(values: list[float]) -> str:
    return micro(median(values)) if values else "-"


def _ratio(values: list[float], limit: list[float]) -> str:
    return f"{median(values) / median(limit):.2f}" if values and limit else "-"


def measure(settings: Settings) -> Findings:
    """Let many processes ask, and kill a builder."""
    found = Findings(
        "Many processes, one key",
        [
            "`hand-off`: from the end of the build to the return of the median waiter.  The "
            "bare limit is the smallest correct loop over exclusive creation and `flock`."
        ],
    )
    base = Path(tempfile.mkdtemp(dir=settings.folder)).resolve()
    present = [
        name
        for name, module in NEEDS.items()
        if importlib.util.find_spec(module.partition(".")[0]) is not None
    ]
    # Unmeasured: compiles every module once.
    imports = ", ".join({NEEDS[name]: 0 for name in present})
    command = [sys.executable, "-c", f"import {imports}"]
    subprocess.run(command, cwd=base, env=waiting.environment(base), check=True)
    some = [name for name in (LIMIT, OURS, RECIPE) if name in present]
    waiting.interleave(waiting.hand_off, some if settings.quick else present, 1, 2, 0.1, base)
    _judged(found, settings, present, base)
    _everybody(found, settings, present, base)
    if not settings.quick:
        _by_waiters(found, settings, present, base)
    return found
