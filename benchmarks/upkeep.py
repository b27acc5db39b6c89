"""What it costs to keep a cache within its limits.

How to run::

    python benchmarks/upkeep.py [--quick] [--files NUMBER] [--only A B C] [--json FILE]
                                [--directory FOLDER]

A. Scan.  A cache of two million entries (100,000 in quick mode), and one of a tenth.

   rate       entries a second that `prune` looks at when nothing has to go: one walk.
   growth     how much the greatest resident size of the process grew by that, after a prune
              of an empty cache has loaded every module.  Constant memory means that a cache
              ten times as large adds nothing.
   evicting   the same with a limit of 95 %: two walks, and the oldest twentieth goes.

B. Publications.  One process publishes 4 KB values as fast as it can into a cache that is
   full, so that a thread trims it again and again.  It has the same folder open without limits
   too, and both take turns, ten entries each.

   beside     publications during which a thread was trimming; the others are shown apart.
   slowest    the target is that a publication never takes 5 ms longer because of a trim, so
              the slowest one of each kind is compared.

C. Overshoot.  Four processes publish 10 KB values at once, or 10 KB files as path entries, as fast
   as they can, several times as many as the limit allows; another one adds up what is there all
   the while.  In the last row each process publishes ten values and ends, and another one starts.

   most       the largest sum seen while they published; one that is seen late is not seen.
   at rest    the sum after the last publication, when no thread is trimming any more.

Pitfalls.  Files of A are made directly, without content (a hole of 300 bytes each), so that
two million take inodes and no blocks; their last uses are spread over a month.  Hard links
to a few files would be made faster, but all would share a few inodes, and those are what a
scan has to fetch.  Having just been made they are in the system's memory; a scan of what has
to be read from a disk is as slow as the disk.  Two folders on ext4 can't be compared in B:
making a file may take five times as long in one as in the other, depending on what was removed
near it in the last seconds.  In C the factory costs nothing; a real one leaves whoever trims
much more time.

The exit status is 0 even where a target is missed; the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from atomcache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable

RATE_TARGET = 150_000
GROWTH_TARGET = 16.0
"""Megabytes by which ten times as many entries may differ and still count as constant."""
PUBLISH_TARGET = 0.005
OVERSHOOT_TARGET = 1.1

MONTH = 30 * 86_400
PUBLISHERS = 4
PATIENCE = 900.0


# -- processes that do the work -----------------------------------------------------------


def fill(folder: str, first: int, last: int, step: int) -> None:
    """Make entry files, for every `step`-th number of a range."""
    root = os.path.join(folder, "v1")
    for shard in range(256):
        os.makedirs(os.path.join(root, f"{shard:02x}"), mode=0o700, exist_ok=True)
    chance = random.Random(first)
    now = time.time()
    for number in range(first, last, step):
        name = f"{number % 256:02x}{chance.getrandbits(118):030x}{number:08x}"
        fd = os.open(
            os.path.join(root, name[:2], name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        os.ftruncate(fd, 300)
        os.utime(fd, (now - MONTH * chance.random(), now - MONTH))
        os.close(fd)


def scan(folder: str, limit: int) -> dict[str, float]:
    """Prune a cache to a number of entries; say how long it took and how much memory."""
    with tempfile.TemporaryDirectory() as empty:
        Cache(empty).prune(max_entries=1)
    before = greatest_size()
    began, spent = time.perf_counter(), time.process_time()
    done = Cache(folder).prune(max_entries=limit)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - spent,
        "growth": (greatest_size() - before) / 1e6,
        "removed": done.removed,
        "entries": done.entries,
    }


def greatest_size() -> int:
    """Return the greatest resident size of this process so far, in bytes.

    What `getrusage` tells on Linux begins with that of the process that started this one.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def publish(folder: str, number: int, full: int) -> dict[str, list[float]]:
    """Publish in turns into a full cache with limits and without; say how long each took."""
    value = bytes(4096)
    caches = {"without limits": Cache(folder), "full": Cache(folder, max_entries=full)}
    for each in range(full):
        caches["full"].get_or_create(each, lambda: value)
    _rest()
    took: dict[str, list[float]] = {"without limits": [], "full, at rest": [], "full, beside": []}
    for start in range(0, number, 10):
        for name, cache in caches.items():
            for each in range(start, start + 10):
                began = time.perf_counter()
                cache.get_or_create((name, each), lambda: value)
                ended = time.perf_counter() - began
                if name == "full":
                    took["full, beside" if _trims() else "full, at rest"].append(ended)
                else:
                    took[name].append(ended)
            if name == "full":
                _rest()  # else the trim would disturb those without limits
    return took


def _trims() -> bool:
    return any(each.name == "atomcache" for each in threading.enumerate())


def _rest() -> None:
    while _trims():
        time.sleep(0.001)


def publish_much(folder: str, first: int, number: int, limit: int, kind: str) -> None:
    """Publish when a line comes in; say when all is done and at rest."""
    cache = Cache(folder, max_bytes=limit, durable=False)
    print("ready", flush=True)
    sys.stdin.readline()
    for each in range(first, first + number):
        if kind == "paths":
            cache.get_or_create_path(each, make_file, name="made")
        elif kind == "values":
            cache.get_or_create(each, lambda: bytes(10_000))
        elif each % 10 == 0:
            answer(work("publish_ten", folder, each, limit))
    print("published", flush=True)
    _rest()
    print("rests", flush=True)
    sys.stdin.readline()


def make_file(target: Path) -> None:
    """Build a path entry."""
    target.write_bytes(bytes(10_000))


def publish_ten(folder: str, first: int, limit: int) -> None:
    """Publish a little, in a process that ends then."""
    cache = Cache(folder, max_bytes=limit)
    for each in range(first, first + 10):
        cache.get_or_create(each, lambda: bytes(10_000))


WORK: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (fill, scan, publish, publish_much, publish_ten)
}


def work(name: str, *given: Any) -> subprocess.Popen[str]:
    """Start a process of our own."""
    return subprocess.Popen(
        [sys.executable, __file__, "--work", name, json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """Return what a process says at its end."""
    try:
        told, _ = process.communicate(timeout=PATIENCE)
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"{process.args!r} failed")
    return json.loads(told)


# -- A: scan ------------------------------------------------------------------------------


def measure_scan(base: Path, files: int) -> dict[str, Any]:
    """Make the files and scan them."""
    space = os.statvfs(base)
    if space.f_files and space.f_favail < files * 1.2:
        raise SystemExit("the filesystem has too few free inodes for this many entries")
    figures: dict[str, Any] = {}
    for name, number in (("tenth", files // 10), ("whole", files)):
        folder = str(base / name)
        workers = os.cpu_count() or 1
        began = time.perf_counter()
        crew = [work("fill", folder, at, number, workers) for at in range(workers)]
        for each in crew:
            answer(each)
        making = time.perf_counter() - began
        looks = [answer(work("scan", folder, number)) for _ in range(3)]
        evicts = answer(work("scan", folder, number * 95 // 100))
        figures[name] = {"files": number, "making": making, "looks": looks, "evicts": evicts}
    return figures


def show_scan(figures: dict[str, Any]) -> list[str]:
    """Print the table of A and return the verdicts."""
    rows = [["entries", "made in", "scan", "entries/s", "CPU", "growth", "evicting 5 %", "growth"]]
    for each in figures.values():
        looks, evicts = each["looks"], each["evicts"]
        took = median(look["seconds"] for look in looks)
        rows.append(
            [
                f"{each['files']:,}",
                f"{each['making']:.0f} s",
                f"{took:.2f} s",
                f"{each['files'] / took:,.0f}",
                f"{median(look['cpu'] for look in looks):.2f} s",
                f"{max(look['growth'] for look in looks):.1f} MB",
                f"{evicts['removed']:,} in {evicts['seconds']:.2f} s",
                f"{evicts['growth']:.1f} MB",
            ]
        )
    table(rows)
    whole, tenth = figures["whole"], figures["tenth"]
    rate = whole["files"] / median(look["seconds"] for look in whole["looks"])
    grown = max(look["growth"] for look in whole["looks"])
    more = grown - max(look["growth"] for look in tenth["looks"])
    missing = whole["evicts"]["entries"] - whole["files"] * 95 // 100
    return [
        verdict(f"at least {RATE_TARGET:,} entries/s", rate >= RATE_TARGET, f"{rate:,.0f}"),
        verdict(
            "constant memory when scanning",
            more <= GROWTH_TARGET,
            f"{grown:.1f} MB, {more:+.1f} MB for ten times as many",
        ),
        verdict("eviction comes down to the limit", missing <= 0, f"{missing:,} too many"),
    ]


# -- B: publications ------------------------------------------------------------------------


def measure_publications(base: Path, number: int, full: int) -> dict[str, list[float]]:
    """Time publications beside a trim and without limits."""
    took: dict[str, list[float]] = answer(work("publish", str(base / "publish"), number, full))
    return took


def show_publications(took: dict[str, list[float]]) -> list[str]:
    """Print the table of B and return the verdicts."""
    rows = [["a publication", "number", "median", "99 %", "99.9 %", "slowest"]]
    for name, times in took.items():
        if len(times) < 10:
            rows.append([name, str(len(times)), "-", "-", "-", "-"])
            continue
        parts = quantiles(times, n=1000, method="inclusive")
        shown = [f"{part * 1000:.2f} ms" for part in (parts[499], parts[989], parts[998])]
        rows.append([name, f"{len(times):,}", *shown, f"{max(times) * 1000:.2f} ms"])
    table(rows)
    slowest = max(took["without limits"])
    beside = took["full, beside"] + took["full, at rest"]
    more = max(beside) - slowest
    late = sum(each > median(took["without limits"]) + PUBLISH_TARGET for each in beside)
    usual = sum(
        each > median(took["without limits"]) + PUBLISH_TARGET for each in took["without limits"]
    )
    return [
        verdict(
            "never more than 5 ms for the trim",
            more <= PUBLISH_TARGET,
            f"the slowest takes {more * 1000:+.2f} ms; 5 ms over the median are {late} of "
            f"{len(beside):,}, without limits {usual}",
        )
    ]


# -- C: overshoot ---------------------------------------------------------------------------


def measure_overshoot(base: Path, limit: int, number: int, kind: str) -> dict[str, Any]:
    """Have several processes publish at once, and look on."""
    folder = str(base / f"overshoot-{limit}-{kind}")
    crew = [
        work("publish_much", folder, 10**6 * at, number, limit, kind) for at in range(PUBLISHERS)
    ]
    try:
        _all_say(crew, "ready")
        began = time.perf_counter()
        for each in crew:
            _tell(each)
        published = threading.Event()

        def watch() -> None:
            _all_say(crew, "published")
            published.set()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        most = looks = 0
        while not published.is_set():
            most = max(most, taken(folder))
            looks += 1
        took = time.perf_counter() - began
        _all_say(crew, "rests")
        rest = taken(folder)
        for each in crew:
            _tell(each)
            each.wait(60)
    finally:
        for each in crew:
            each.kill()
            each.communicate()
    return {
        "kind": kind,
        "limit": limit,
        "number": number * PUBLISHERS,
        "rate": number * PUBLISHERS / took,
        "most": most,
        "rest": rest,
        "looks": looks,
    }


def _all_say(crew: list[subprocess.Popen[str]], word: str) -> None:
    for each in crew:
        assert each.stdout is not None
        said = each.stdout.readline().strip()
        if said != word:
            raise RuntimeError(f"a publisher said {said!r} and not {word!r}")


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


def taken(folder: str) -> int:
    """Return how many bytes a cache's entries and scratch take; a link counts once."""
    sizes: dict[int, int] = {}
    for place, _, files in os.walk(os.path.join(folder, "v1")):
        for name in files:
            try:
                found = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def show_overshoot(figures: list[dict[str, Any]]) -> list[str]:
    """Print the table of C and return the verdicts."""
    rows = [["limit", "published", "a second", "most", "of the limit", "at rest", "of the limit"]]
    for each in figures:
        limit = each["limit"]
        rows.append(
            [
                f"{limit / 1e6:g} MB, {each['kind']}",
                f"{each['number']:,.0f}",
                f"{each['rate']:,.0f}",
                f"{each['most'] / 1e6:.2f} MB",
                f"{each['most'] / limit:.0%}",
                f"{each['rest'] / 1e6:.2f} MB",
                f"{each['rest'] / limit:.0%}",
            ]
        )
    table(rows)
    lines = []
    for what, name in (("while they publish", "most"), ("at rest", "rest")):
        worst = max(each[name] / each["limit"] for each in figures)
        lines.append(
            verdict(
                f"at most {OVERSHOOT_TARGET:.0%} of the limit {what}",
                worst <= OVERSHOOT_TARGET,
                ", ".join(f"{each[name] / each['limit']:.0%}" for each in figures),
            )
        )
    return lines


# -- command line -------------------------------------------------------------------------


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


def verdict(target: str, met: bool, figure: str) -> str:
    """Say in one line whether a target is met."""
    return f"{'met    ' if met else 'NOT MET'}  {target}: {figure}"


def options() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], epilog="See the top of this file."
    )
    parser.add_argument("--quick", action="store_true", help="fewer files and publications")
    parser.add_argument("--files", type=int, help="entries to scan (2,000,000)")
    parser.add_argument("--only", nargs="+", choices="ABC", default=list("ABC"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument("--directory", type=Path, help="where to work (the temporary folder)")
    chosen = parser.parse_args()
    if chosen.files is None:
        chosen.files = 100_000 if chosen.quick else 2_000_000
    if chosen.files < 1000:
        parser.error("at least 1000 files")
    return chosen


def main() -> None:
    """Measure and print what came out."""
    if sys.argv[1:2] == ["--work"]:
        print(json.dumps(WORK[sys.argv[2]](*json.loads(sys.argv[3]))))
        return
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up then, too
    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, load {os.getloadavg()[0]:.2f}"
    )
    figures: dict[str, Any] = {}
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="upkeep-", dir=chosen.directory) as made:
        base = Path(made).resolve()
        if "A" in chosen.only:
            print("\nA. Pruning with nothing to remove, and with a twentieth of it")
            figures["scan"] = measure_scan(base, chosen.files)
            lines += show_scan(figures["scan"])
        if "B" in chosen.only:
            number, full = (1000, 500) if chosen.quick else (20_000, 10_000)
            print(f"\nB. Publishing 4 KB; full are {full:,} entries")
            figures["publications"] = measure_publications(base, number, full)
            lines += show_publications(figures["publications"])
        if "C" in chosen.only:
            values = [(10**6, 300), (10**7, 1500), (10**8, 7000)][: 1 if chosen.quick else 3]
            sizes = [
                *((*each, "values") for each in values),
                *((*each, "paths") for each in values),
                (10**6, 100 if chosen.quick else 300, "short processes"),
            ]
            print(f"\nC. {PUBLISHERS} processes publish 10 KB as fast as they can")
            figures["overshoot"] = [measure_overshoot(base, *each) for each in sizes]
            lines += show_overshoot(figures["overshoot"])
    print("\nTargets of atomcache")
    for line in lines:
        print(f"  {line}")
    print(f"load at the end: {os.getloadavg()[0]:.2f}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
