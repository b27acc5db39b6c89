"""What tasks that wait for another process's builds cost the event loop that they run on.

How to run::

    python benchmarks/loop.py [--keys 50] [--tasks 200] [--build 2.0] [--rounds 7]
                              [--json FILE] [--directory FOLDER] [--quick]

Linux and other POSIX systems only.  Another process holds 50 keys for 2 s.  A fresh process
runs a loop on which 200 tasks wait for them, four on each key, while a heartbeat sleeps for
5 ms at a time.

   slip       by how much a sleep of the heartbeat was longer than 5 ms, by the loop's clock:
              the largest of a round.  So long the loop answered nobody.
   start      the slips until all 200 tasks wait,
   wait       those while they do,
   wake       those from the end of the builds until all tasks have their value.
   control    the same loop and process, for as long, without tasks that wait.

Each round has both, one after the other, in an order that alternates, so that what else the
machine does meets both alike.  The worst of all rounds is compared with the target.

Pitfalls:

- The slip of the control is the machine's: other processes on its cores, and the timer.  On a
  busy machine it alone can exceed the target; then the figure says nothing of the library.
- `atomcache` is imported before the clock starts, as an application would; what its first call
  imports is in "start", because the first request of an application pays it on its loop.
- The garbage collector runs as usual, and its pauses count.
- The holder ends 50 builds at once, one thread each, and takes a core for it while the loop
  wakes; on a machine with few cores that is part of "wake".
- A loop that ticks every 5 ms can't tell slips shorter than its own lateness: see control.

The exit status is 1 if the target is missed, or a key is built here too; not where the control
misses the target as well, for then the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .waiting import surroundings, table
else:
    from waiting import surroundings, table

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TICK = 0.005
"""Seconds that the heartbeat sleeps."""

TARGET = 0.020
"""Seconds by which no tick may be late."""

PATIENCE = 60.0
"""Seconds after which a round that should have ended counts as a hang."""

QUIET = 0.3
"""Seconds of heartbeat before and after, so that nothing at the edges goes unseen."""

PHASES = ("start", "wait", "wake")


@dataclass(frozen=True)
class Round:
    """The largest slips of one process on one loop, in seconds."""

    start: float
    wait: float
    wake: float
    built_here: int

    @property
    def worst(self) -> float:
        """The largest of the three."""
        return max(self.start, self.wait, self.wake)


class Heartbeat:
    """A task that ticks, and how late it was in each phase."""

    def __init__(self) -> None:
        self.phase = PHASES[0]
        self.slips = dict.fromkeys(PHASES, 0.0)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            began, phase = self._loop.time(), self.phase
            await asyncio.sleep(TICK)
            slip = self._loop.time() - began - TICK
            for each in {phase, self.phase}:  # a tick on the border belongs to both
                self.slips[each] = max(self.slips[each], slip)

    async def stop(self) -> None:
        """End the task."""
        self._task.cancel()
        await asyncio.wait([self._task])


def hold(line: Connection, folder: str, keys: list[str]) -> None:
    """Build all keys, each in a thread, until told to end."""
    from atomcache import Cache

    cache = Cache(folder)
    all_build = threading.Barrier(len(keys) + 1)
    may_end = threading.Event()

    def build() -> str:
        all_build.wait(PATIENCE)
        may_end.wait()
        return "value"

    threads = [threading.Thread(target=cache.get_or_create, args=(key, build)) for key in keys]
    for thread in threads:
        thread.start()
    all_build.wait(PATIENCE)
    line.send("holding")
    line.recv()
    may_end.set()
    for thread in threads:
        thread.join()
    line.send("done")


def ask(line: Connection, folder: str, keys: list[str], tasks: int) -> None:
    """Run the loop that is measured; with no tasks it is the control."""
    from atomcache import Cache

    cache = Cache(folder)
    built = 0

    def build() -> str:
        nonlocal built
        built += 1
        return "built here"

    async def main() -> Round:
        heart = Heartbeat()
        await asyncio.sleep(QUIET)
        asking = [
            asyncio.create_task(cache.aget_or_create(keys[number % len(keys)], build))
            for number in range(tasks)
        ]
        await asyncio.sleep(QUIET)
        heart.phase = "wait"
        line.send("waiting")
        while not line.poll():  # a look takes some us; the end of the wait is not measured
            await asyncio.sleep(TICK)
        line.recv()
        heart.phase = "wake"
        line.send("waking")
        await asyncio.gather(*asking)
        await asyncio.sleep(QUIET)
        await heart.stop()
        return Round(**heart.slips, built_here=built)

    line.send(asyncio.run(main()))


class TroubleError(Exception):
    """A round that can't be judged."""


def play(folder: Path, keys: int, tasks: int, build: float) -> Round:
    """Play one round; return what the asking process saw."""
    context = multiprocessing.get_context("spawn")
    names = [f"key {number}" for number in range(keys)]
    holding, holders_end = context.Pipe()
    asking, askers_end = context.Pipe()
    holder = context.Process(target=hold, args=(holders_end, str(folder), names), daemon=True)
    asker = context.Process(target=ask, args=(askers_end, str(folder), names, tasks), daemon=True)

    def hear(line: Connection) -> Any:
        if not line.poll(PATIENCE):
            raise TroubleError("hung")
        return line.recv()

    try:
        holder.start()
        hear(holding)
        asker.start()
        hear(asking)
        time.sleep(build)  # both are left alone
        asking.send("wake")
        hear(asking)
        holding.send("end")
        hear(holding)
        found = hear(asking)
    except EOFError:
        raise TroubleError("a process died") from None
    finally:
        for process in (holder, asker):
            if process.pid is not None:
                process.kill()
                process.join()
    assert isinstance(found, Round)
    return found


# -- what is printed ----------------------------------------------------------------------


def _ms(values: list[float]) -> str:
    return f"{median(values) * 1000:.1f} ({max(values) * 1000:.1f})"


def show(rounds: dict[str, list[Round]]) -> None:
    """Print the largest slips of each phase: median and worst of all rounds."""
    rows = [["largest slip in ms, median (worst)", *PHASES, "whole round"]]
    for name, played in rounds.items():
        phases = [_ms([getattr(each, phase) for each in played]) for phase in PHASES]
        rows.append([name, *phases, _ms([each.worst for each in played])])
    table(rows)


def judge(ours: list[Round], control: list[Round]) -> tuple[list[str], bool]:
    """Return what to say of the targets, and whether none is missed by our doing."""
    worst, machine = (max(each.worst for each in rounds) for rounds in (ours, control))
    built = sum(each.built_here for each in ours)
    said = "met    " if worst <= TARGET else "NOT MET" if machine <= TARGET else "unknown"
    lines = [
        f"  {said}  no tick more than {TARGET * 1000:.0f} ms late: {worst * 1000:.1f} ms, "
        f"control {machine * 1000:.1f} ms",
        f"  {'NOT MET' if built else 'met    '}  nothing is built twice: {built} builds here",
    ]
    return lines, said != "NOT MET" and not built


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="See the top of this file."
    )
    parser.add_argument("--keys", type=int, default=50, help="how many keys are held")
    parser.add_argument("--tasks", type=int, default=200, help="how many tasks wait")
    parser.add_argument("--build", type=float, help="seconds that all wait (2.0)")
    parser.add_argument("--rounds", type=int, help="how often (7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--directory", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--quick", action="store_true", help="a short build, few rounds")
    chosen = parser.parse_args()
    if chosen.build is None:
        chosen.build = 0.5 if chosen.quick else 2.0
    if chosen.rounds is None:
        chosen.rounds = 2 if chosen.quick else 7
    if chosen.keys < 1 or chosen.tasks < chosen.keys or chosen.build < 0 or chosen.rounds < 1:
        parser.error("at least 1 key, as many tasks as keys, and 1 round")
    return chosen


def main() -> int:
    """Play all rounds and print what came out; return the exit status."""
    chosen = options()
    if sys.platform == "win32":
        print("This benchmark measures waits in the kernel, which Windows does not have.")
        return 0
    competitors = {f"{chosen.tasks} tasks": chosen.tasks, "control": 0}
    rounds: dict[str, list[Round]] = {name: [] for name in competitors}
    with tempfile.TemporaryDirectory(prefix="loop-", dir=chosen.directory) as made:
        base = Path(made).resolve()
        around = surroundings(base)
        for what, figure in around.items():
            print(f"{what}: {figure}")
        play(base / "unmeasured", 2, 2, 0.1)  # compiles every module once
        for number in range(chosen.rounds):
            order = list(competitors.items())
            for name, tasks in order if number % 2 == 0 else order[::-1]:
                folder = base / f"{number} {name}"
                rounds[name].append(play(folder, chosen.keys, tasks, chosen.build))
    ours, control = rounds.values()
    print(
        f"\n{chosen.tasks} tasks wait for {chosen.keys} keys of another process for "
        f"{chosen.build} s, {chosen.rounds} rounds"
    )
    show(rounds)
    lines, well = judge(ours, control)
    print("\n" + "\n".join(lines))
    print(f"load at the end: {os.getloadavg()[0]:.2f}")
    if chosen.json is not None:
        figures = {
            "surroundings": around,
            "keys": chosen.keys,
            "tasks": chosen.tasks,
            "build": chosen.build,
            "rounds": {name: [asdict(each) for each in played] for name, played in rounds.items()},
            "target": TARGET,
            "worst": max(each.worst for each in ours),
        }
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
