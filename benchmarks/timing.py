"""The clock: competitors in turn, in short samples, in several processes.

How it measures.  A worker process prepares all competitors of a group, warms them up, and
finds for each how many calls fill a sample of a millisecond, which is shorter than what
the system usually gives to another process in one go.  Then come rounds: in
each, every competitor gives one sample, the first one changing from round to round.  The
whole is repeated in several worker processes, one after the other, since hash seeds and
memory layout differ between processes.

What the figures mean.  `median` and `best` are over all samples of all processes; a sample
is the mean of its calls.  A ratio is the median of the ratios *within* each round: two
competitors are compared a few milliseconds apart, so that whatever else the machine does
meets both alike.  Ratios can therefore differ a little from the quotient of the medians.

Why not `pyperf.Runner`: it measures one benchmark after the other, each in its own
processes, seconds apart; on a machine that others use too the ratios then say more about
the neighbours than about the code.  pyperf gets all samples as a suite instead (one run per
process), so that its tools can be used on them (``python -m pyperf stats FILE``), and its
verdict on stability is in the report.

Pitfalls.  The call itself, through one Python function, is part of every figure, also of
the bare system calls.  Everything is in the page cache: this measures software, not disks.
"""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300.0
"""Seconds after which a worker counts as hung."""


@dataclass(frozen=True)
class Contestant:
    """What is timed: `ask` is called with one of `items` after the other, which never end."""

    ask: Callable[[Any], object]
    items: Iterator[Any]


@dataclass
class Samples:
    """Seconds per call, by name, then process, then round; and why some have none."""

    values: dict[str, list[list[float]]]
    troubles: dict[str, str]

    def flat(self, name: str) -> list[float]:
        """Return all samples of one competitor."""
        return [value for run in self.values.get(name, ()) for value in run]

    def median(self, name: str) -> float:
        """Return the median of all samples."""
        return median(self.flat(name))

    def best(self, name: str) -> float:
        """Return the least of all samples."""
        return min(self.flat(name))

    def ratio(self, name: str, other: str) -> float | None:
        """Return how many times `other` a competitor takes: the median over all rounds."""
        pairs = list(zip(self.flat(name), self.flat(other), strict=False))
        return median(one / two for one, two in pairs) if pairs else None

    def spread(self, name: str, other: str) -> str:
        """Return the quartiles of the ratios of all rounds, in words; how far to trust it."""
        ratios = [a / b for a, b in zip(self.flat(name), self.flat(other), strict=False)]
        if len(ratios) < 2:
            return ""
        least, _, greatest = quantiles(ratios, n=4)
        return f"{least:.2f}-{greatest:.2f}" if greatest < 20 else f"{least:.0f}-{greatest:.0f}"


def interleaved(module: str, group: str, given: dict[str, Any], *, quick: bool) -> Samples:
    """Time what ``module.contestants(group, given)`` returns, in worker processes."""
    processes, rounds, sample = (1, 30, 0.001) if quick else (5, 100, 0.001)
    samples = Samples({}, {})
    for _ in range(processes):
        command = [sys.executable, "-m", "benchmarks.timing", module, group]
        command += [json.dumps(given), str(rounds), str(sample)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{module} {group}: hung for {TIMEOUT:.0f} s") from None
        if done.returncode:
            raise RuntimeError(f"{module} {group}: {done.stderr[-2000:]}")
        for name, result in json.loads(done.stdout.splitlines()[-1]).items():
            if isinstance(result, str):
                samples.troubles[name] = result
            else:
                samples.values.setdefault(name, []).append(result)
    for name in samples.troubles:
        samples.values.pop(name, None)  # pairs of rounds must stay pairs
    return samples


def _loops(contestant: Contestant, sample: float) -> int:
    """Return how many calls fill a sample; warms up on the way."""
    loops = 1
    _sample(contestant, 1)  # the first call of all may load modules
    while True:
        spent = _sample(contestant, loops) * loops
        if spent >= sample / 2 or loops >= 1 << 16:
            return max(1, round(loops * sample / spent))
        loops *= 2


def _sample(contestant: Contestant, loops: int) -> float:
    items = list(itertools.islice(contestant.items, loops))
    ask = contestant.ask
    began = time.perf_counter()
    for item in items:
        ask(item)
    return (time.perf_counter() - began) / loops


def main() -> None:
    """Be a worker: time one group and print the samples."""
    module, group, given, rounds, sample = sys.argv[1:]
    prepare: dict[str, Callable[[], Contestant]] = importlib.import_module(
        f"benchmarks.{module}"
    ).contestants(group, json.loads(given))
    ready: dict[str, tuple[Contestant, int]] = {}
    results: dict[str, list[float] | str] = {}
    for name, make in prepare.items():
        try:
            contestant = make()
            ready[name] = contestant, _loops(contestant, float(sample))
            results[name] = []
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    names = list(ready)
    for turn in range(int(rounds)):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            result = results[name]
            if isinstance(result, list):
                result.append(_sample(*ready[name]))
    sys.stdout.write("\n" + json.dumps(results) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
