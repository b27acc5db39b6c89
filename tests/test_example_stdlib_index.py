"""What `examples/stdlib_index.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "stdlib_index.py"
FEW = "--files=100"
TIMEOUT = 120.0


def has_fts5() -> bool:
    try:
        sqlite3.connect(":memory:").execute("CREATE VIRTUAL TABLE probe USING fts5(text)")
    except sqlite3.OperationalError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_fts5(), reason="this Python's SQLite lacks FTS5")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(example: subprocess.Popen[str]) -> str:
    """Return the output of an example that goes well.

    Its workers hold its output open too, so this also waits for the last of them to end.
    """
    try:
        output, errors = example.communicate(timeout=TIMEOUT)
    finally:
        example.kill()
    assert (example.returncode, errors) == (0, ""), output + errors
    return output


def run(*arguments: str) -> str:
    return finish(start(*arguments))


def answers(output: str) -> str:
    table = output.partition("What the index says\n")[2].partition("\n\nThe index is kept")[0]
    table = table.partition("\n\nAll workers")[0]
    assert re.search(r"  deadlock +[1-9][0-9]*  \S+\.py", table)
    return table


def remnants(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if ".temp" in path.name]


def test_one_of_eight_workers_builds_and_the_others_wait() -> None:
    output = run(FEW)
    first, second = output.split("Second run")
    assert len(re.findall(r"built it in", first)) == 1
    assert len(re.findall(r"waited", first)) == 7
    assert "Builds: 1." in first
    assert len(re.findall(r"found it", second)) == 8
    assert "Builds: 0." in second
    assert "All workers gave the same answers." in output


def test_another_worker_takes_over_from_a_killed_builder(tmp_path: Path) -> None:
    output = run(FEW, "--kill-builder", f"--cache={tmp_path}")
    first, second = output.split("Second run")
    assert len(re.findall(r"killed half-way", first)) == 1
    assert len(re.findall(r"built it in", first)) == 1
    assert len(re.findall(r"waited", first)) == 6
    assert "Builds: 2." in first
    killed = re.search(r"Worker (\d) was killed", first)
    successor = re.search(r"Worker (\d) began anew [0-9.]+ m?s later", first)
    assert killed is not None
    assert successor is not None
    assert killed[1] != successor[1]
    assert len(re.findall(r"found it", second)) == 8
    assert remnants(tmp_path) == []


def test_a_build_after_a_kill_answers_as_an_undisturbed_one() -> None:
    killed = run(FEW, "--kill-builder", "--workers=2")
    assert "An undisturbed build gives the same answers." in killed
    assert answers(killed) == answers(run(FEW, "--workers=2"))


def test_a_kept_cache_is_not_built_again(tmp_path: Path) -> None:
    run(FEW, "--workers=2", f"--cache={tmp_path}")
    output = run(FEW, "--workers=2", f"--cache={tmp_path}")
    assert output.count("Builds: 0.") == 2
    kept = re.search(r"The index is kept: (.+)", output)
    assert kept is not None
    assert Path(kept[1]).is_relative_to(tmp_path)
    assert Path(kept[1]).stat().st_size > 0


def test_no_worker_outlives_a_killed_script_and_the_next_run_builds(tmp_path: Path) -> None:
    example = start(f"--cache={tmp_path}")
    deadline = time.monotonic() + TIMEOUT
    while not remnants(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.005)
    example.kill()
    example.communicate(timeout=TIMEOUT)  # returns when the last worker has ended
    assert "Builds: 1." in run("--workers=2", f"--cache={tmp_path}")
    assert remnants(tmp_path) == []
