"""What `examples/c_extension.py` promises to who runs it, tested by running it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from .crew import leftovers, sleepers, until

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "c_extension.py"
TIMEOUT = 60.0
COMPILER = shlex.split(os.environ.get("CC", "cc"))
HEADER = Path(sysconfig.get_path("include"), "Python.h")

pytestmark = [
    pytest.mark.skipif(
        shutil.which(COMPILER[0]) is None, reason=f"there is no C compiler {COMPILER[0]!r}"
    ),
    pytest.mark.skipif(not HEADER.exists(), reason=f"Python's headers are missing: no {HEADER}"),
]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLE), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(example: subprocess.Popen[str], status: int = 0) -> str:
    """Return the output of an example; its workers hold it open, so all of them have ended."""
    try:
        output, errors = example.communicate(timeout=TIMEOUT)
    finally:
        example.kill()
    assert example.returncode == status, output + errors
    return output


def compilers(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"worker (\d+) compiles", output)]


def users(output: str) -> set[int]:
    """Return the workers that got the right answer from the module."""
    return {int(pid) for pid in re.findall(r"worker (\d+): 77031 takes 350 steps", output)}


def test_the_right_answer_is_350_steps() -> None:
    number, steps = 77031, 0
    while number > 1:
        number, steps = (3 * number + 1 if number % 2 else number // 2), steps + 1
    assert steps == 350


def test_one_of_six_workers_compiles_and_all_import(tmp_path: Path) -> None:
    output = finish(start("--workers=6", "--cache", tmp_path))
    assert len(compilers(output)) == 1
    assert len(users(output)) == 6
    [module] = tmp_path.rglob("collatz*")  # no source, no object file, no lock file
    assert module.name == f"collatz{sysconfig.get_config_var('EXT_SUFFIX')}"


def test_a_kept_module_is_compiled_again_for_other_flags_only(tmp_path: Path) -> None:
    arguments = ("--workers=1", "--cache", tmp_path)
    assert len(compilers(finish(start(*arguments)))) == 1
    assert len(compilers(finish(start(*arguments)))) == 0
    assert len(compilers(finish(start(*arguments, CFLAGS="-O1")))) == 1


def test_who_compiles_first_can_be_killed_and_the_others_import() -> None:
    output = finish(start("--kill"))
    first, second = compilers(output)
    assert re.findall(r"worker (\d+) is killed", output) == [str(first)]
    assert len(users(output)) == 3
    assert second in users(output)


@pytest.mark.skipif(
    not os.path.exists("/proc/locks"), reason="counts sleepers in Linux's table of locks"
)
def test_those_who_sleep_take_over_though_the_dead_ones_compiler_runs_on(tmp_path: Path) -> None:
    with gated_compiler(tmp_path) as (compiler, gate):
        example = start("--cache", tmp_path / "cache", CC=str(compiler))
        started = tmp_path / "started"
        until(lambda: started.exists() and started.read_text(), "somebody compiles")
        until(lambda: asleep(tmp_path / "cache") == 3, "the others sleep")
        killed = int(started.read_text().split()[0])
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(started.read_text().split()) == 2, "another one compiles")
        gate.write_text("open\n")
        output = finish(example, status=1)  # a worker died, and that was not asked for
    assert compilers(output) == [int(pid) for pid in started.read_text().split()]
    assert compilers(output)[0] == killed
    assert len(users(output) - {killed}) == 3
    assert leftovers(tmp_path / "cache") == []


def asleep(cache: Path) -> int:
    return sum(sleepers(claim) for claim in leftovers(cache))


@contextlib.contextmanager
def gated_compiler(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Give a compiler that tells who started it, then waits at a gate; open that at the end."""
    compiler, gate = folder / "gated-cc", folder / "gate"
    compiler.write_text(
        f"#!/bin/sh\necho $PPID >> {folder}/started\nread open < {gate}\n"
        f'exec {shlex.join(COMPILER)} "$@"\n'
    )
    compiler.chmod(0o700)
    os.mkfifo(gate)
    try:
        yield compiler, gate
    finally:
        os.close(os.open(gate, os.O_RDWR | os.O_NONBLOCK))
