"""Eight processes need the same expensive file; one builds it and all use it.

The file is a full-text index (SQLite's FTS5) of every source file in the standard library
of the Python that runs this.  Eight worker processes ask for it at the same moment, with
one call each::

    path = cache.get_or_create_path(key, build, name="index.sqlite")

One of them builds it, the others sleep until it is there; then each opens it read-only
and answers the same questions.  After that eight new processes ask, and find it.

Run it::

    python examples/stdlib_index.py                   # build once, then find
    python examples/stdlib_index.py --kill-builder    # ... though the builder is killed
    python examples/stdlib_index.py --cache DIR       # keep the index for the next time

What one sees: which worker built and how long that took, how long each of the others
waited, how long it takes to find what is there (the first time in a process, modules are
loaded; "asked again" shows the cost itself), and what the index says.  With
``--kill-builder`` the first builder is killed (SIGKILL) when half the files are indexed:
one sees who took over and how long after the kill.  The exit status is 0 if there were as
many builds as there should be and all workers gave the same answers.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sqlite3
import sys
import sysconfig
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atomcache import Cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.context import SpawnProcess

LIMIT = 300.0
"""Seconds after which any wait is given up."""

QUESTIONS = ['"exclusive creation"', "deadlock", "atomic AND rename", "NEAR(zombie process)"]
"""Queries in FTS5's language: a phrase, a word, two words, two words close together."""

STDLIB = Path(sysconfig.get_path("stdlib"))

Answers = dict[str, tuple[int, list[str]]]
"""For each question: how many files match, and the best of them."""


# -- The expensive thing, and what it is good for ------------------------------------------


def source_files(limit: int | None) -> list[Path]:
    """List the standard library's source files, in the same order everywhere."""
    others = {"site-packages", "dist-packages"}
    files = [p for p in STDLIB.rglob("*.py") if p.relative_to(STDLIB).parts[0] not in others]
    return sorted(files)[:limit]


def build_index(target: Path, files: list[Path], halfway: Callable[[], None]) -> None:
    """Make the index at `target`; call `halfway` once, when half the files are in it.

    No journal and no sync: nobody sees a half-made index, and the cache brings the
    finished one safely onto the disk.
    """
    half = (len(files) + 1) // 2
    with contextlib.closing(sqlite3.connect(target)) as index:
        index.execute("PRAGMA journal_mode = OFF")
        index.execute("PRAGMA synchronous = OFF")
        index.execute("CREATE VIRTUAL TABLE source USING fts5(path UNINDEXED, text)")
        for count, file in enumerate(files, start=1):
            text = file.read_text(encoding="utf-8", errors="replace")
            row = (file.relative_to(STDLIB).as_posix(), text)
            index.execute("INSERT INTO source VALUES (?, ?)", row)
            if count == half:
                halfway()
        index.commit()


def ask(path: Path) -> Answers:
    """Put all questions to the index, which nobody changes any more."""
    number = "SELECT count(*) FROM source WHERE source MATCH ?"
    best = "SELECT path FROM source WHERE source MATCH ? ORDER BY rank, path LIMIT 3"
    answers: Answers = {}
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as index:
        for question in QUESTIONS:
            [count] = index.execute(number, [question]).fetchone()
            answers[question] = (count, [name for [name] in index.execute(best, [question])])
    return answers


def index_key(limit: int | None) -> dict[str, object]:
    """Name what the index depends on: if any of it changes, a new one is built."""
    return {
        "what": "full-text index of the standard library",
        "schema": 1,
        "implementation": sys.implementation.name,
        "python": sys.version,
        "folder": STDLIB,
        "sqlite": sqlite3.sqlite_version,
        "files": limit,
    }


# -- A worker ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halfway:
    """A builder says: half the files are indexed, and I wait for your word to go on."""

    began: float


@dataclass(frozen=True)
class Report:
    """A worker says what it got."""

    seconds: float  # from asking the cache to having the path
    again: float  # the same for the same process asking once more
    built: float | None  # seconds that its own build took, if it was the builder
    path: Path
    answers: Answers


def work(pipe: Connection, cache: Cache, key: object, limit: int | None) -> None:
    """Get the index, ask it, report: all that a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    built: float | None = None

    def build(target: Path) -> None:
        nonlocal built
        began = time.monotonic()

        def halfway() -> None:
            pipe.send(Halfway(began))
            hear(pipe)

        build_index(target, source_files(limit), halfway)
        built = time.monotonic() - began

    pipe.send("ready")
    hear(pipe)
    asked = time.monotonic()
    path = cache.get_or_create_path(key, build, name="index.sqlite")
    got = time.monotonic()
    cache.get_or_create_path(key, build, name="index.sqlite")
    again = time.monotonic() - got
    pipe.send(Report(got - asked, again, built, path, ask(path)))


def end_with_parent() -> None:
    """End this process when the script ends, however it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def hear(pipe: Connection) -> Any:
    """Return the next message; raise if none comes, or if the other side is gone."""
    if not pipe.poll(LIMIT):
        raise TimeoutError(f"no word from the other process for {LIMIT:g} seconds")
    return pipe.recv()


# -- A round: all workers ask at the same moment -------------------------------------------


@dataclass
class Round:
    """What happened while some workers asked for the index."""

    pids: list[int]
    seconds: float = 0.0
    reports: dict[int, Report] = field(default_factory=dict)
    builds: list[tuple[int, float]] = field(default_factory=list)  # worker, when it began
    killed: int | None = None
    killed_at: float = 0.0


def run_round(
    workers: int, cache: Cache, key: object, limit: int | None, *, kill: bool = False
) -> Round:
    """Have new processes ask for the index; with `kill`, kill the first that builds it."""
    with crew(workers, cache, key, limit) as (processes, pipes):
        for pipe in pipes:
            hear(pipe)  # "ready"
        result = Round([process.pid or 0 for process in processes])
        asked = time.monotonic()
        for pipe in pipes:
            pipe.send("go")
        for number, message in messages(pipes):
            if isinstance(message, Report):
                result.reports[number] = message
                result.seconds = time.monotonic() - asked
            elif isinstance(message, Halfway):
                result.builds.append((number, message.began))
                if kill and result.killed is None:
                    result.killed = number
                    result.killed_at = time.monotonic()
                    processes[number].kill()
                else:
                    pipes[number].send("go on")
    return result


@contextlib.contextmanager
def crew(
    workers: int, cache: Cache, key: object, limit: int | None
) -> Iterator[tuple[list[SpawnProcess], list[Connection]]]:
    """Start worker processes with a pipe to each; none is left afterwards."""
    context = multiprocessing.get_context("spawn")
    processes: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, cache, key, limit), daemon=True)
            pipes.append(ours)
            processes.append(process)
            process.start()
            theirs.close()  # so that we hear when the worker hangs up
        yield processes, pipes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join(LIMIT)
        for pipe in pipes:
            pipe.close()


def messages(pipes: list[Connection]) -> Iterator[tuple[int, Any]]:
    """Yield what each worker says, with its number, until all have hung up."""
    deadline = time.monotonic() + LIMIT
    talking: list[Any] = list(pipes)
    while talking:
        heard: list[Any] = wait(talking, max(0.0, deadline - time.monotonic()))
        if not heard:
            raise TimeoutError(f"the workers are not done after {LIMIT:g} seconds")
        for pipe in heard:
            try:
                message = pipe.recv()
            except (EOFError, OSError):  # it is done, or dead
                talking.remove(pipe)
            else:
                yield pipes.index(pipe), message


# -- What one sees -------------------------------------------------------------------------


def show_round(title: str, found: Round) -> None:
    """Print a table: each worker, what it did, and after how long it had the path."""
    print(f"\n{title}\n\n  worker      pid  what it did           got the path  asked again")
    for number, pid in enumerate(found.pids):
        report = found.reports.get(number)
        if number == found.killed:
            did = "killed half-way"
        elif report is None:
            did = "died"
        elif report.built is not None:
            did = f"built it in {duration(report.built)}"
        else:
            did = "waited" if found.builds else "found it"
        got, again = ("", "") if report is None else map(duration, (report.seconds, report.again))
        print(f"  {number + 1:6}  {pid:7}  {did:20}  {got:>12}  {again:>11}")
    print(f"\n  Builds: {len(found.builds)}.  All answers after {duration(found.seconds)}.")
    if found.killed is not None and len(found.builds) > 1:
        number, began = found.builds[1]
        print(f"  Worker {found.killed + 1} was killed with half the files indexed.")
        print(f"  Worker {number + 1} began anew {duration(began - found.killed_at)} later.")


def show_answers(answers: Answers) -> None:
    """Print a table of questions and answers."""
    print(f"\nWhat the index says\n\n  {'question':22}  files  best matches")
    for question, (count, best) in answers.items():
        for line, name in enumerate(best or ["-"]):
            print(f"  {question:22}  {count:5}  {name}" if line == 0 else f"{'':33}{name}")


def duration(seconds: float) -> str:
    """Write a length of time for people."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.2f} ms"


def complaints(title: str, found: Round, builds: list[int], expected: Answers) -> list[str]:
    """List what did not go as promised."""
    wrong = []
    if len(found.builds) not in builds:
        wrong.append(f"{title}: {len(found.builds)} builds instead of {builds[-1]}")
    for number in range(len(found.pids)):
        report = found.reports.get(number)
        if report is None and number != found.killed:
            wrong.append(f"{title}: worker {number + 1} died without an answer")
        elif report is not None and report.answers != expected:
            wrong.append(f"{title}: worker {number + 1} gave different answers")
    return wrong


# -- The whole story -----------------------------------------------------------------------


def tell(cache: Cache, options: argparse.Namespace) -> list[str]:
    """Run both rounds, print what happened, and return what went wrong."""
    key = index_key(options.files)
    job = (cache, key, options.files)
    builds = [1] if options.cache is None else [0, 1]  # a kept cache may have it already
    if options.kill_builder:
        cache.remove(key)  # to have something to build
        builds = [2]

    first = run_round(options.workers, *job, kill=options.kill_builder)
    show_round("First run: all ask at the same moment", first)
    second = run_round(options.workers, *job)
    show_round("Second run: new processes ask again", second)
    if not first.reports:
        return ["first run: nobody got an answer"]
    report = next(iter(first.reports.values()))
    show_answers(report.answers)
    wrong = complaints("first run", first, builds, report.answers)
    wrong += complaints("second run", second, [0], report.answers)
    if options.kill_builder:
        undisturbed = run_round(1, cache, {**key, "for": "comparison"}, options.files)
        wrong += complaints("undisturbed build", undisturbed, [0, 1], report.answers)
    if options.cache is not None:
        print(f"\nThe index is kept: {report.path}")
    return wrong


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kill-builder", action="store_true", help="kill the first builder")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="how many (8)")
    parser.add_argument("--cache", metavar="DIR", help="keep the index here (not at all)")
    parser.add_argument("--files", type=int, metavar="N", help="index only N files (all)")
    options = parser.parse_args(arguments)
    if options.workers < 1 + options.kill_builder:
        parser.error("there must be a worker, and one to take over from a killed one")
    if options.files is not None and options.files < 1:
        parser.error("there must be a file")
    try:
        sqlite3.connect(":memory:").execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
    except sqlite3.OperationalError as error:
        parser.error(f"this Python's SQLite ({sqlite3.sqlite_version}) lacks FTS5: {error}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the example; the exit status is 0 if all went as promised."""
    options = parse(arguments)
    size = len(source_files(options.files))
    print(f"Full-text index of {size} source files in {STDLIB}")
    print(f"Worker processes that need it: {options.workers}")
    with contextlib.ExitStack() as stack:
        folder = options.cache or stack.enter_context(tempfile.TemporaryDirectory())
        wrong = tell(Cache(folder, timeout=LIMIT), options)
    for complaint in wrong:
        print(f"WRONG: {complaint}")
    if not wrong:
        print("\nAll workers gave the same answers.")
        if options.kill_builder:
            print("An undisturbed build gives the same answers.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
