"""What `examples/server.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .crew import PATIENCE, until

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "server.py"
RUN = 5 * PATIENCE
"""Seconds after which a run of pytest counts as a hang: its workers take a minute to start where
others want the processor."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Have the server's folder made in one of the test's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}


def servers(folder: Path) -> list[str]:
    """Return the processes whose command line speaks of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if b"redis-server" in command and os.fsencode(folder) in command:
            found.append(process.name)
    return found


@pytest.mark.parametrize("workers", [0, 4])
def test_all_workers_use_one_server(
    tmp_path: Path, environment: dict[str, str], workers: int
) -> None:
    options = ["-p", "no:cacheprovider", f"-n{workers}", "--rootdir", str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", os.devnull, *options, str(EXAMPLE)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "16 passed" in run.stdout
    [told] = re.findall(r"redis_url: built( by gw\d)? in", run.stdout)
    assert bool(told) == bool(workers)
    assert servers(tmp_path) == []


def test_a_server_does_not_outlive_a_worker_that_is_killed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(EXAMPLE.parent)!r})
import server
with server.running_server() as url:
    print(url, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline().startswith("unix://")
            assert servers(tmp_path) != []
        finally:
            worker.send_signal(signal.SIGKILL)
    until(lambda: servers(tmp_path) == [], "the server ends")
