"""What it costs to wait for somebody else's build, and to take over from a dead builder.

How to run::

    python benchmarks/waiting.py [--processes 32] [--build 2.0] [--rounds 5] [--json FILE]
                                 [--directory FOLDER] [--quick]

Linux and other POSIX systems only.  `filelock` is compared with if it is installed.
All competitors run in the same run, one after the other in each round, in an order that
rotates, so that what else the machine does meets all of them alike.

A. Hand-off.  32 processes, released together, ask for one cold key; the build (a sleep)
   takes 2 s.

   builds     how many of them ran the factory; anything but 1 is a fault.
   hand-off   from the last statement of the factory to the return of a waiter's call:
              the median waiter and the last one, each the median of all rounds, in
              brackets the least and the greatest round.
   CPU        user and system time inside the calls of all waiters together, without
              the builder.  Imports inside the call count; imports of the competitor itself
              and `Cache(...)` come before the clock starts.

B. Takeover.  8 processes ask, the builder is killed with SIGKILL half-way (and stays a
   zombie meanwhile), and another has to build.

   takeover   from just before the kill to the first statement of the next factory call:
              the median of 20 rounds, in brackets the fastest and the slowest.
   left       files of dead builders (``*.temp*``) that are still there at the end.

"limit" is the smallest correct loop with exclusive creation and `flock`, written out in
`_waiter.py`: what the system itself costs, without durability, key hashing, checksums,
filesystems without locks, failures to be told, or threads.  Quote the ratios to it rather
than the times: machines differ and drift.

The exit status is 0 even where a target is missed; the table says so.  A competitor that
does not return in time is shown as hung and not run again; no process outlives this one.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

WAITER = Path(__file__).with_name("_waiter.py")
LIMIT = "bare limit"
OURS = "atomcache"
RECIPE = "FileLock recipe"

HAND_OFF_TARGET = 1.3
CPU_TARGET = 3.0
TAKEOVER_TARGET = 0.010

TAKEOVER_PROCESSES = 8
TAKEOVER_BUILD = 0.4
STARTING = 60.0
"""Seconds within which all processes of a round must have started."""
PATIENCE = 20.0
"""Seconds after the expected end until a competitor counts as hung."""
SETTLE = 0.15
"""Seconds for processes that said they are ready to fall asleep in fact."""


# -- one round of one competitor ----------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What one process says of its call; times are of the system-wide monotonic clock.

    `imported_before` are modules that a builder imported inside the call before its factory
    ran, `imported` those after; a waiter's are all in `imported`.
    """

    pid: int
    returned: float
    cpu: float
    began: list[float]
    ended: list[float]
    builder: int
    imported_before: list[str]
    imported: list[str]
    error: str


class TroubleError(Exception):
    """A round that can't be judged: processes that did not start, or fell silent."""


class Crew:
    """The processes of one competitor in one round, and the pipes to talk to them."""

    def __init__(self, competitor: str, processes: int, build: float, folder: Path) -> None:
        self._start_read, self._start = os.pipe()
        self._leave_read, self._leave = os.pipe()
        self._announced, announce = os.pipe()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._said: dict[int, bytes] = {}
        self._errors = (folder.parent / "stderr").open("w+b")
        longest = int(STARTING + 2 * build + 2 * PATIENCE) + 1
        command = [sys.executable, str(WAITER), competitor, str(folder), repr(build)]
        try:
            for _ in range(processes):
                worker = subprocess.Popen(
                    [*command, str(self._leave_read), str(announce)],
                    stdin=self._start_read,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    env=environment(folder.parent.parent),
                    pass_fds=(self._leave_read, announce),
                    preexec_fn=lambda: _die_in_time(longest),
                )
                self.workers.append(worker)
                self._said[worker.pid] = b""
            self._listen(1, time.monotonic() + STARTING)
            time.sleep(SETTLE)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(announce)

    def release(self) -> None:
        """Let all of them ask at once."""
        os.close(self._start)
        self._start = -1

    def starts(self, number: int, deadline: float) -> list[tuple[int, float]]:
        """Return pid and time of factory calls, once there are `number` of them."""
        said = b""
        poll = select.poll()
        poll.register(self._announced, select.POLLIN)
        while said.count(b"\n") < number:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                break
            more = os.read(self._announced, 4096)
            if not more:
                break
            said += more
        rows = [line.split() for line in said.splitlines()]
        return [(int(pid), float(when)) for pid, when in rows]

    def reports(self, deadline: float, killed: int | None = None) -> list[Report]:
        """Return what all but the killed one report; raise if some don't in time."""
        self._listen(2, deadline, killed)
        return [
            Report(*ast.literal_eval(said.splitlines()[1].decode()))
            for pid, said in self._said.items()
            if pid != killed
        ]

    def returned(self) -> int:
        """Return how many have reported by the last deadline."""
        return sum(said.count(b"\n") >= 2 for said in self._said.values())

    def _listen(self, lines: int, deadline: float, killed: int | None = None) -> None:
        """Read until everybody has said so many lines."""
        waiting = {
            worker.stdout.fileno(): worker.pid
            for worker in self.workers
            if worker.stdout is not None and worker.pid != killed
        }
        poll = select.poll()
        for fd, pid in list(waiting.items()):
            if self._said[pid].count(b"\n") >= lines:
                del waiting[fd]
            else:
                poll.register(fd, select.POLLIN)
        while waiting:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TroubleError(f"hung: {len(waiting)} of {len(self.workers)} not back")
            for fd, _ in ready:
                pid = waiting[fd]
                more = os.read(fd, 65536)
                if not more:
                    raise TroubleError(f"a process died: {self._last_words()}")
                self._said[pid] += more
                if self._said[pid].count(b"\n") >= lines:
                    poll.unregister(fd)
                    del waiting[fd]

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def close(self) -> None:
        """End all processes and close all pipes."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        for fd in (self._start_read, self._start, self._leave_read, self._leave, self._announced):
            if fd >= 0:
                os.close(fd)
        self._errors.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def environment(base: Path) -> dict[str, str]:
    """Have bytecode kept in our own folder, as in an installation, whatever is set outside."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(base / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _prctl() -> Any:
    return ctypes.CDLL(None).prctl if sys.platform == "linux" else None


_PRCTL = _prctl()
_PR_SET_PDEATHSIG = 1


def _die_in_time(seconds: int) -> None:
    """Have a process killed when its time is over or its parent dies; survives `exec`."""
    signal.alarm(seconds)
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Series:
    """All rounds of one competitor in one of the two tests."""

    competitor: str
    builds: list[int] = field(default_factory=list)
    hand_off: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    takeover: list[float] = field(default_factory=list)
    imported: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    stopped: str = ""


def hand_off(series: Series, processes: int, build: float, folder: Path) -> None:
    """Run test A once for one competitor."""
    with Crew(series.competitor, processes, build, folder) as crew:
        began = time.monotonic()
        crew.release()
        time.sleep(build + 0.5)  # nobody else is woken meanwhile, not even this process
        reports = crew.reports(began + build + PATIENCE)
    builds = sum(len(each.began) for each in reports)
    series.builds.append(builds)
    _check_answers(series, reports)
    if builds != 1:
        series.faults.append(f"{builds} builds")
    ends = [each for report in reports for each in report.ended]
    if not ends:
        raise TroubleError("nobody built")
    waiters = [each for each in reports if not each.began]
    if waiters:
        series.hand_off.append(median(each.returned - min(ends) for each in waiters))
        series.last.append(max(each.returned - min(ends) for each in waiters))
        series.cpu.append(sum(each.cpu for each in waiters))
    builders = [each for each in reports if each.began]
    for who, modules in (
        ("waiters", [name for each in waiters for name in each.imported]),
        (
            "builder, before the build",
            [name for each in builders for name in each.imported_before],
        ),
        ("builder, after the build", [name for each in builders for name in each.imported]),
    ):
        series.imported[who] = sorted({*series.imported.get(who, ()), *modules})


def takeover(series: Series, processes: int, build: float, folder: Path) -> None:
    """Run test B once for one competitor."""
    with Crew(series.competitor, processes, build, folder) as crew:
        began = time.monotonic()
        crew.release()
        first = crew.starts(1, began + PATIENCE)
        if not first:
            raise TroubleError("hung: nobody began to build")
        victim, started = first[0]
        if victim not in {worker.pid for worker in crew.workers}:
            raise TroubleError(f"process {victim} claims to build, and is none of ours")
        time.sleep(max(0.0, started + build / 2 - time.monotonic()))
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        time.sleep(build + 0.2)
        second = crew.starts(1, killed + PATIENCE)
        if not second:
            raise TroubleError(f"hung: no takeover within {PATIENCE:.0f} s")
        reports = crew.reports(second[0][1] + build + PATIENCE, killed=victim)
        left = [str(path.name) for path in folder.rglob("*.temp*")]
    builds = 1 + sum(len(each.began) for each in reports)
    series.builds.append(builds)
    series.takeover.append(second[0][1] - killed)
    _check_answers(series, reports)
    if builds != 2:
        series.faults.append(f"{builds} builds in place of 2")
    if left:
        series.faults.append(f"left behind: {', '.join(left)}")


def _check_answers(series: Series, reports: list[Report]) -> None:
    series.faults += sorted({each.error for each in reports if each.error})
    if len({each.builder for each in reports}) != 1:
        series.faults.append("different answers")


# -- all rounds ---------------------------------------------------------------------------


Test: TypeAlias = "Callable[[Series, int, float, Path], None]"


def interleave(
    test: Test, competitors: list[str], rounds: int, processes: int, build: float, base: Path
) -> dict[str, Series]:
    """Run a test so often for each competitor, in turn, the first one changing."""
    all_series = {name: Series(name) for name in competitors}
    for number in range(rounds):
        turn = number % len(competitors)
        for name in competitors[turn:] + competitors[:turn]:
            series = all_series[name]
            if series.stopped:
                continue
            _progress(f"round {number + 1} of {rounds}: {name}")
            place = Path(tempfile.mkdtemp(dir=base))
            folder = place / "place"
            folder.mkdir()
            try:
                test(series, processes, build, folder)
            except TroubleError as trouble:
                series.stopped = f"{trouble} (round {number + 1})"
            finally:
                shutil.rmtree(place, ignore_errors=True)
    _progress("")
    return all_series


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# -- what is printed ----------------------------------------------------------------------


def surroundings(base: Path) -> dict[str, str]:
    """Say what the figures were measured on."""
    versions = [f"CPython {platform.python_version()}"]
    for name in ("atomcache", "filelock"):
        if importlib.util.find_spec(name) is not None:
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[0]:.2f}",
        "filesystem": f"{filesystem(base)} at {base.parent}",
        "versions": ", ".join(versions),
    }


def processor() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def filesystem(base: Path) -> str:
    """Return the type of the filesystem that a folder is on."""
    best = ("", "unknown filesystem")
    try:
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if base.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    except OSError:
        pass
    return best[1]


def table(rows: list[list[str]]) -> None:
    """Print rows in columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "   ".join(cells).rstrip())
        if number == 0:
            print("  " + "   ".join("-" * width for width in widths))


def _ms(values: list[float]) -> str:
    if not values:
        return "-"
    least, greatest = min(values) * 1000, max(values) * 1000
    return f"{median(values) * 1000:.1f} ms ({least:.1f}-{greatest:.1f})"


def _ratio(values: list[float], limit: list[float]) -> float | None:
    return median(values) / median(limit) if values and limit else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _numbers(values: list[int]) -> str:
    distinct = sorted(set(values))
    return "-" if not distinct else "/".join(map(str, distinct))


def show_hand_off(all_series: dict[str, Series]) -> None:
    """Print the table of test A."""
    limit = all_series[LIMIT]
    rows = [["", "builds", "hand-off", "ratio", "last waiter", "ratio", "CPU, waiters", "ratio"]]
    for name, series in all_series.items():
        rows.append(
            [
                name,
                _numbers(series.builds),
                _ms(series.hand_off),
                _times(_ratio(series.hand_off, limit.hand_off)),
                _ms(series.last),
                _times(_ratio(series.last, limit.last)),
                _ms(series.cpu),
                _times(_ratio(series.cpu, limit.cpu)),
            ]
        )
    table(rows)
    for name, series in all_series.items():
        for who, modules in series.imported.items():
            if modules:
                print(f"  imported inside the call, {name}, {who}: {', '.join(modules)}")


def show_takeover(all_series: dict[str, Series]) -> None:
    """Print the table of test B."""
    limit = all_series[LIMIT]
    rows = [["", "builds", "takeover", "ratio", "rounds"]]
    for name, series in all_series.items():
        rows.append(
            [
                name,
                _numbers(series.builds),
                _ms(series.takeover),
                _times(_ratio(series.takeover, limit.takeover)),
                str(len(series.takeover)),
            ]
        )
    table(rows)


def verdicts(handing: dict[str, Series], taking: dict[str, Series]) -> list[dict[str, Any]]:
    """Compare atomcache with the targets and say what went wrong anywhere."""
    ours, limit = handing[OURS], handing[LIMIT]
    handed = _ratio(ours.hand_off, limit.hand_off)
    spent = _ratio(ours.cpu, limit.cpu)
    took = median(taking[OURS].takeover) if taking[OURS].takeover else None
    lines = [
        _verdict(f"hand-off at most {HAND_OFF_TARGET}x the limit", handed, HAND_OFF_TARGET),
        _verdict(f"CPU of the waiters at most {CPU_TARGET}x the limit", spent, CPU_TARGET),
        _verdict("takeover within 10 ms, in the median", took, TAKEOVER_TARGET, "ms"),
    ]
    faults = [
        fault
        for series in (ours, taking[OURS])
        for fault in (*series.faults, *([series.stopped] if series.stopped else []))
    ]
    lines.append(
        {
            "target": "one build, one answer for all, nothing left behind, nobody hangs",
            "met": not faults,
            "figure": "; ".join(dict.fromkeys(faults)) or "in every round",
        }
    )
    return lines


def _verdict(target: str, figure: float | None, most: float, unit: str = "x") -> dict[str, Any]:
    shown = "no figure" if figure is None else f"{figure:.2f}x"
    if figure is not None and unit == "ms":
        shown = f"{figure * 1000:.1f} ms"
    return {"target": target, "met": figure is not None and figure <= most, "figure": shown}


def _show_faults(all_series: dict[str, Series]) -> None:
    for name, series in all_series.items():
        for fault in dict.fromkeys(series.faults):
            print(f"  FAULT of {name}, {series.faults.count(fault)} times: {fault}")
        if series.stopped:
            print(f"  STOPPED {name}: {series.stopped}")


# -- command line -------------------------------------------------------------------------


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="See the top of this file."
    )
    parser.add_argument("--processes", type=int, default=32, help="how many ask in test A")
    parser.add_argument("--build", type=float, help="seconds that a build takes in test A (2.0)")
    parser.add_argument("--rounds", type=int, help="rounds of test A (5); B has 4 times as many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--directory", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--quick", action="store_true", help="a short build, few rounds")
    chosen = parser.parse_args()
    if chosen.build is None:
        chosen.build = 0.5 if chosen.quick else 2.0
    if chosen.rounds is None:
        chosen.rounds = 1 if chosen.quick else 5
    if chosen.processes < 2 or chosen.build <= 0 or chosen.rounds < 1:
        parser.error("at least 2 processes, 1 round, and a build that takes time")
    return chosen


def main() -> None:
    """Run both tests and print what came out."""
    chosen = options()
    if sys.platform == "win32":
        print("This benchmark measures flock, which Windows does not have.")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up then, too
    competitors = [LIMIT, OURS]
    if importlib.util.find_spec("filelock") is not None:
        competitors.append(RECIPE)
    else:
        print(f"{RECIPE} is skipped: the package filelock is not installed.")

    with tempfile.TemporaryDirectory(prefix="waiting-", dir=chosen.directory) as made:
        base = Path(made).resolve()
        around = surroundings(base)
        for what, figure in around.items():
            print(f"{what}: {figure}")
        # Unmeasured rounds: they fill the page cache and compile every module once.
        interleave(hand_off, competitors, 1, 2, 0.1, base)
        interleave(takeover, competitors, 1, 3, 0.2, base)

        handing = interleave(
            hand_off, competitors, chosen.rounds, chosen.processes, chosen.build, base
        )
        print(
            f"\nA. {chosen.processes} processes ask for one cold key, the build takes "
            f"{chosen.build} s, {chosen.rounds} rounds"
        )
        show_hand_off(handing)
        _show_faults(handing)

        taking = interleave(
            takeover, competitors, chosen.rounds * 4, TAKEOVER_PROCESSES, TAKEOVER_BUILD, base
        )
        print(f"\nB. {TAKEOVER_PROCESSES} processes ask, the builder is killed half-way")
        show_takeover(taking)
        _show_faults(taking)

    print("\nTargets of atomcache")
    lines = verdicts(handing, taking)
    for line in lines:
        print(f"  {'met    ' if line['met'] else 'NOT MET'}  {line['target']}: {line['figure']}")
    print(f"load at the end: {os.getloadavg()[0]:.2f}")

    if chosen.json is not None:
        figures = {
            "surroundings": around,
            "processes": chosen.processes,
            "build": chosen.build,
            "hand_off": [asdict(series) for series in handing.values()],
            "takeover": [asdict(series) for series in taking.values()],
            "targets": lines,
        }
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
