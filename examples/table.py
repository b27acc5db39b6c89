"""Worker processes need the same large CSV file; one parses it and all map the result.

What is stored is not the DataFrame but its columns, as numpy arrays::

    @cache.memoize(inputs=lambda file: [file])
    def columns(file: Path) -> dict[str, Any]: ...

The default codec takes a dict of arrays, and nothing read from the cache can run code.
Large arrays come back as mappings of the file, so the columns of numbers and times are in
memory once, however many workers use them.  A DataFrame itself would need
``codec="pickle"``: shorter, but reading it runs what the file says, and only a pandas that
understands the pickles of the one that wrote it can.

Run it::

    python examples/table.py                        # writes a file of measurements to parse
    python examples/table.py --cache DIR FILE.csv   # with columns time, station, celsius

What one sees: who parsed, how long that took, and after how long each of the others had the
table; then how long that takes when it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from atomcache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.pool import Pool

STATIONS = ("Bergen", "Lagos", "Lima", "Osaka")


def say(line: str) -> None:
    """Print a line by one call, so that those of several processes don't mix."""
    print(f"{line}\n", end="", flush=True)


def tables(cache: Cache) -> Callable[[Path], Any]:
    """Return the function that gives a CSV file as DataFrame, parsed by one process."""

    @cache.memoize(inputs=lambda file: [file], version="source")
    def columns(file: Path) -> dict[str, Any]:
        began = time.perf_counter()
        frame = pd.read_csv(file, dtype={"station": "category"}, parse_dates=["time"])
        seconds = time.perf_counter() - began
        say(f"  worker {os.getpid()} parsed {len(frame)} rows in {seconds:.3f} s")
        return {
            "time": frame["time"].to_numpy(),
            "station": frame["station"].cat.codes.to_numpy(),
            "stations": list(frame["station"].cat.categories),
            "celsius": frame["celsius"].to_numpy(),
        }

    def table(file: Path) -> Any:
        found = columns(file)
        station = pd.Categorical.from_codes(found["station"], found["stations"])
        by_name = {"time": found["time"], "station": station, "celsius": found["celsius"]}
        return pd.DataFrame(by_name, copy=False)

    return table


def work(cache: Cache, file: Path) -> dict[str, float]:
    """Get the table and use it: what each worker process does."""
    table = tables(cache)
    began = time.perf_counter()
    frame = table(file)
    seconds = time.perf_counter() - began
    say(f"  worker {os.getpid()} had the table after {seconds:.3f} s")
    warmest = frame.groupby("station", observed=True)["celsius"].max()
    return {str(station): float(celsius) for station, celsius in warmest.items()}


def run(pool: Pool, workers: int, *job: Any) -> dict[str, float]:
    """Have several workers ask for the table at the same time."""
    answers = pool.starmap(work, [job] * workers, chunksize=1)
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def write(file: Path, rows: int) -> None:
    """Write measurements, to have some: one per minute, from each station in turn."""
    start = pd.Timestamp("2024-01-01")
    times = pd.date_range(start, periods=rows, freq="min").strftime("%Y-%m-%d %H:%M")
    lines = (
        f"{when},{STATIONS[number % 4]},{number % 4 * 5 + number % 250 / 10}\n"
        for number, when in enumerate(times)
    )
    with file.open("w", encoding="utf-8") as out:
        out.write("time,station,celsius\n")
        out.writelines(lines)


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, help="what to parse (one of its own)")
    parser.add_argument("--rows", type=int, default=200_000, metavar="N", help="of its own file")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="how many (4)")
    parser.add_argument("--cache", metavar="DIR", help="keep the columns here (not at all)")
    options = parser.parse_args()

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cache = Cache(options.cache or folder / "cache")
        file = options.file or folder / "measurements.csv"
        if not options.file:
            write(file, options.rows)
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(options.workers))
        say("All workers ask for the table")
        run(pool, options.workers, cache, file)
        say("All ask again")
        found = run(pool, options.workers, cache, file)
        for station, celsius in found.items():
            print(f"{station}: at most {celsius} degrees")
    return 0


if __name__ == "__main__":
    sys.exit(main())
