"""What ``import atomcache`` costs over bare Python, and what a process that hits loads.

Interpreters that only import are started in turn with ones that do nothing (``-c pass``),
in an empty folder, with compiled modules in place.  The cost is the median, over all rounds,
of the difference in the same round: in time, and in processor time (user and system),
which other processes disturb less.  An editable installation costs both sides the same.

A command that ``atomcache run`` replays is measured alike, by the ratio to the empty interpreter,
from the default cache and from one that ``ATOMCACHE_DIR`` names.

Another check runs a process that only hits and lists what it has loaded since `atomcache`
was imported, and whether `filelock` is among all modules.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from statistics import median

from atomcache import Cache

from .findings import Findings, Settings, Table, Verdict

MODULES = {
    "atomcache": "atomcache",
    "platformdirs": "platformdirs",
    "filelock": "filelock",
    "zict": "zict",
    "diskcache": "diskcache",
    "diskcache-community": "diskcache_community",
    "dogpile.cache": "dogpile.cache",
    "joblib": "joblib",
    "cachier": "cachier",
}

_HIT = """
import sys, atomcache
before = set(sys.modules)
cache = atomcache.Cache(sys.argv[1])
for key in ("bytes", ("tuple", 1), "list"):
    cache.get_or_create(key, None)
cache.get_or_create_path("path", None, name="x")
print(*sorted(name for name in set(sys.modules) - before if "." not in name))
print("filelock" in sys.modules)
"""


def _start(arguments: list[str], folder: str, cache: str = "") -> tuple[float, float]:
    """Return the time and the processor time of an interpreter; all default caches are apart."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["HOME"] = os.path.join(folder, "home")
    environment["XDG_CACHE_HOME"] = os.path.join(folder, "home", "caches")
    environment["ATOMCACHE_DIR"] = cache
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment) as child:
        _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{arguments!r} failed")
    return took, usage.ru_utime + usage.ru_stime


def measure(settings: Settings) -> Findings:
    """Start many interpreters and compare."""
    found = Findings("Imports", ["Milliseconds over an interpreter that does nothing."])
    folder = str(settings.folder / "imports")
    os.makedirs(folder)
    rows = [["", "time over bare Python", "processor time"]]
    commands = {"bare": "pass"}
    for name, module in MODULES.items():
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            commands[name] = f"import {module}"
    if settings.quick:
        commands = {name: commands[name] for name in ("bare", "atomcache", "diskcache")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for turn in range(13 if settings.quick else 31):
        for name, command in commands.items():
            taken = _start(["-c", command], folder)
            if turn:  # the first one compiles
                times[name].append(taken)

    def over(name: str, part: int) -> float:
        pairs = zip(times[name], times["bare"], strict=True)
        return median(one[part] - bare[part] for one, bare in pairs) * 1000

    for name in MODULES:
        if name in times:
            rows.append([name, f"{over(name, 0):.1f} ms", f"{over(name, 1):.1f} ms"])
            if name != "atomcache" and over(name, 0) < over("atomcache", 0):
                found.better.append(
                    f"Import: {name} takes {over(name, 0):.1f} ms, atomcache "
                    f"{over('atomcache', 0):.1f} ms."
                )
        elif not settings.quick:
            rows.append([name, "not installed", ""])
    found.tables.append(Table("Importing", rows))
    found.at_most("import atomcache over bare Python", over("atomcache", 0), 20, "ms")

    _replay(found, folder, settings.quick)

    cache = Cache(os.path.join(folder, "cache"))
    cache.set("bytes", b"x")
    cache.set(("tuple", 1), "text")
    cache.set("list", [1, 2.0])
    cache.get_or_create_path("path", lambda target: target.write_bytes(b"x"), name="x")
    hitting = [sys.executable, "-c", _HIT, os.path.join(folder, "cache")]
    said = subprocess.run(hitting, cwd=folder, capture_output=True, text=True, check=True).stdout
    loaded, has_filelock = said.splitlines()
    found.verdicts.append(
        Verdict(
            "a process that only hits imports filelock",
            "never",
            "yes" if has_filelock == "True" else "no",
            has_filelock != "True",
        )
    )
    found.remarks.append(
        "A process that hits bytes, text, a list and a path, under text and tuple keys, loads "
        f"beyond `import atomcache`: {loaded or 'nothing'}."
    )
    return found


def _replay(found: Findings, folder: str, quick: bool) -> None:
    """Compare a command that is replayed with an interpreter that does nothing."""
    run = ["-m", "atomcache", "run", "--", "true"]
    commands = {
        "python -c pass": (["-c", "pass"], ""),
        "python -m atomcache run -- true": (run, ""),
        "ATOMCACHE_DIR=... python -m atomcache run -- true": (run, os.path.join(folder, "named")),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(13 if quick else 41):
        for name, (arguments, cache) in commands.items():
            taken, _ = _start(arguments, folder, cache)
            if turn:  # the first one runs the command
                times[name].append(taken)
    bare = times.pop("python -c pass")
    rows = [["", "median", "ratio"], ["python -c pass", f"{median(bare) * 1000:.1f} ms", ""]]
    for name, replayed in times.items():
        ratio = median(one / other for one, other in zip(replayed, bare, strict=True))
        rows.append([name, f"{median(replayed) * 1000:.1f} ms", f"{ratio:.2f}"])
        which = "of the default cache" if name.startswith("python") else "of a named cache"
        found.at_most(f"a replayed command {which}, against python -c pass", ratio, 2.5, "times")
    found.tables.append(Table("A command that is replayed", rows))
