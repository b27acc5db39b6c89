"""The one command: ``python -m benchmarks [--quick] [--only NAME ...] [--directory FOLDER]``.

Each measurement runs in a process of its own, one after the other, with a limit of time;
one that hangs or fails is shown as such and the others go on.  A full run writes
``benchmarks/results.md`` and ``benchmarks/plots``; a quick or partial one writes the same
into ``build/benchmarks``, so that it does not take the place of a full one.  The samples of
the micro-figures go to ``build/benchmarks/pyperf.json`` for pyperf's tools.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import plots, report
from .findings import Findings, Settings
from .timing import ROOT

# Misses come first: files deleted before would make creating them slower on ext4.
MEASUREMENTS = ("misses", "hits", "arrays", "scale", "imports", "together", "crowd")
TIMEOUT = 1800.0


def _measure(name: str, settings: Settings, quick: bool) -> Findings:
    """Run one measurement in a process of its own."""
    result = settings.folder / f"{name}.json"
    folder = settings.folder / name
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks", "--measure", name, str(folder), str(result)]
    if quick:
        command.append("--quick")
    try:
        with subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as child:
            try:
                _, errors = child.communicate(timeout=TIMEOUT)
                last = (errors.strip().splitlines() or ["without a word"])[-1]
                trouble = f"failed: {last}" if child.returncode else ""
            except subprocess.TimeoutExpired:
                trouble = f"hung for {TIMEOUT:.0f} s"
            except BaseException:
                os.killpg(child.pid, 9)
                raise
            if trouble:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, 9)  # its own workers, if any are left
                return Findings(name, [f"This measurement has no figures: it {trouble}"])
        return Findings.from_json(result.read_text())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save_samples(raw: dict[str, list[list[float]]], file: Path) -> None:
    """Hand all samples to pyperf, and say which of them it would call unstable."""
    try:
        pyperf: Any = importlib.import_module("pyperf")
    except ImportError:
        print("pyperf is not installed: no samples are saved")
        return
    benchmarks = []
    for name, runs in raw.items():
        made = [
            pyperf.Run(values, metadata={"name": name, "unit": "second"}, collect_metadata=False)
            for values in runs
            if values
        ]
        if made:
            benchmarks.append(pyperf.Benchmark(made))
    if benchmarks:
        file.parent.mkdir(parents=True, exist_ok=True)
        pyperf.BenchmarkSuite(benchmarks).dump(str(file), replace=True)
        unstable = [
            each
            for each in benchmarks
            if each.stdev() > 0.1 * each.mean() and each.get_nvalue() > 1
        ]
        print(
            f"{len(unstable)} of {len(benchmarks)} micro-figures have a standard deviation "
            "above a tenth of the mean, which is where pyperf begins to warn"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="coarse figures, about a minute")
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, metavar="NAME", help=", ".join(MEASUREMENTS)
    )
    parser.add_argument("--directory", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--output", type=Path, help="where to write results.md and plots")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.output is None:
        partly = chosen.quick or chosen.only
        chosen.output = ROOT / "build" / "benchmarks" if partly else ROOT / "benchmarks"
    return chosen


def main() -> None:
    """Measure, print, and write the report."""
    chosen = _options()
    if chosen.measure:
        name, folder, result = chosen.measure
        module = importlib.import_module(f"benchmarks.{name}")
        found = module.measure(Settings(Path(folder), chosen.quick))
        Path(result).write_text(found.to_json())
        return
    if sys.platform == "win32":
        print("The benchmarks need POSIX processes and locks.")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up then, too
    load = os.getloadavg()[0]
    everything: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.directory) as made:
        base = Path(made).resolve()
        for name in (each for each in MEASUREMENTS if each in (chosen.only or MEASUREMENTS)):
            began = time.monotonic()
            everything[name] = _measure(name, Settings(base, chosen.quick), chosen.quick)
            print(report.text(everything[name]))
            print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
        around = report.surroundings(base, chosen.quick, (load, os.getloadavg()[0]))
    lines: dict[str, Any] = {}
    raw: dict[str, list[list[float]]] = {}
    for found in everything.values():
        lines |= found.lines
        raw |= found.raw
    print()
    _save_samples(raw, ROOT / "build" / "benchmarks" / "pyperf.json")
    drawn = plots.draw(lines, chosen.output / "plots")
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "results.md").write_text(report.markdown(everything, around, drawn))
    print(f"written to {os.path.relpath(chosen.output / 'results.md')}")


if __name__ == "__main__":
    main()
